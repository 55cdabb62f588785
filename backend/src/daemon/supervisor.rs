// SPDX-License-Identifier: GPL-3.0-or-later
//! Whether the controllers' threads answer. One that hangs in the kernel harms its own guest; it is
//! logged, and shown by `xl-vusb status`, and all others go on.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use slog::{Logger, error, info};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::{Instant, sleep};

use crate::admin::Admin;
use crate::controller::Report;
use crate::xenbus::Key;

/// How often each is asked.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// One that does not answer for so long is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(10);

/// A question that was not answered when it was last looked at.
struct Question {
    answer: oneshot::Receiver<Report>,
    asked: Instant,
    /// Whether it was said that the thread is stuck.
    said: bool,
}

/// What is news about a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    Stuck,
    Answers,
}

/// The questions of all controllers.
#[derive(Default)]
struct Questions(BTreeMap<Key, Question>);

impl Questions {
    /// Looks whether there is an answer, and what that says. Without a question there is nothing to say.
    fn look(&mut self, key: Key, now: Instant) -> Option<News> {
        let question = self.0.get_mut(&key)?;
        match question.answer.try_recv() {
            Err(TryRecvError::Empty) => {
                let is_stuck = now.duration_since(question.asked) >= STUCK_AFTER;
                let is_news = is_stuck && !std::mem::replace(&mut question.said, is_stuck);
                is_news.then_some(News::Stuck)
            }
            // One that has ended says nothing, and is not stuck.
            answer => {
                let news = question.said && answer.is_ok();
                self.0.remove(&key);
                news.then_some(News::Answers)
            }
        }
    }

    /// Whether a question waits for its answer.
    fn waits(&self, key: Key) -> bool {
        self.0.contains_key(&key)
    }

    fn ask(&mut self, key: Key, answer: oneshot::Receiver<Report>, now: Instant) {
        let question = Question {
            answer,
            asked: now,
            said: false,
        };
        self.0.insert(key, question);
    }
}

/// Asks every controller now and then, and logs which do not answer.
pub(super) async fn run(admin: Rc<Admin>, log: Logger) {
    let mut questions = Questions::default();
    loop {
        sleep(ASK_EVERY).await;
        let keys = admin.controllers.keys();
        questions.0.retain(|key, _| keys.contains(key));
        for key in keys {
            match questions.look(key, Instant::now()) {
                Some(News::Stuck) => {
                    error!(log, "a controller's thread does not answer for {} s: it hangs \
                    in the kernel, and its guest's USB with it. Other guests are not affected. `dmesg` \
                    may say why. Restart vusbd when their USB can pause",
                    STUCK_AFTER.as_secs(); "controller" => %key)
                }
                Some(News::Answers) => {
                    info!(log, "a controller's thread answers again"; "controller" => %key);
                }
                None => {}
            }
            if !questions.waits(key)
                && let Some(entry) = admin.controllers.get(key)
            {
                questions.ask(key, entry.handle.ask(), Instant::now());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use handoff::State;
    use xen::DomId;

    use super::*;
    use crate::xenbus::XenbusState;

    fn report() -> Report {
        Report {
            state: State::Serving,
            backend: XenbusState::Connected,
            frontend_resumes: true,
            devices: Vec::new(),
        }
    }

    #[test]
    fn a_thread_that_is_stuck_is_named_once_and_so_is_its_return() {
        let key = |devid| Key {
            domid: DomId(7),
            devid,
        };
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut questions = Questions::default();
        let (stuck, answer) = oneshot::channel();
        questions.ask(key(0), answer, start);
        let (lively, answer) = oneshot::channel();
        questions.ask(key(1), answer, start);
        lively.send(report()).unwrap();
        for (seconds, expected) in [(5, None), (10, Some(News::Stuck)), (15, None), (600, None)] {
            assert_eq!(
                questions.look(key(0), after(seconds)),
                expected,
                "{seconds}"
            );
            assert_eq!(questions.look(key(1), after(seconds)), None, "{seconds}");
        }
        assert!(questions.waits(key(0)) && !questions.waits(key(1)));
        stuck.send(report()).unwrap();
        assert_eq!(questions.look(key(0), after(601)), Some(News::Answers));
        assert!(!questions.waits(key(0)));
    }

    #[test]
    fn a_thread_that_has_ended_is_not_stuck() {
        let key = Key {
            domid: DomId(7),
            devid: 0,
        };
        let start = Instant::now();
        let mut questions = Questions::default();
        let (ended, answer) = oneshot::channel();
        questions.ask(key, answer, start);
        drop(ended);
        assert_eq!(questions.look(key, start + STUCK_AFTER), None);
        assert!(!questions.waits(key));
    }
}
