// SPDX-License-Identifier: GPL-3.0-or-later
//! What a daemon says to systemd (sd_notify(3)): that it is ready, that it stops, and that it is
//! alive (`WatchdogSec=`). A daemon that systemd has not started says nothing, which is no error.

use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

/// Of `WatchdogSec=`, how many times the watchdog is fed. sd_watchdog_enabled(3) asks for two; with
/// four, one that is late does no harm.
const FEEDS: u32 = 4;

/// The daemon serves its clients from now on.
pub fn ready() {
    say(NotifyState::Ready);
}

/// The daemon has begun to stop.
pub fn stopping() {
    say(NotifyState::Stopping);
}

/// Feeds systemd's watchdog, if the unit has one. Never ends. To be polled by the thread whose loop
/// serves everybody: while that thread is stuck nothing is fed, and systemd starts the daemon again.
/// Threads that serve one device only are not asked, so that a device that does not answer ends
/// nobody else's session.
pub async fn watchdog() -> Infallible {
    match sd_notify::watchdog_enabled() {
        Some(limit) => feed(limit, || say(NotifyState::Watchdog)).await,
        None => pending().await,
    }
}

/// Calls `say` often enough for a watchdog with this limit.
async fn feed(limit: Duration, mut say: impl FnMut()) -> Infallible {
    let mut due = interval((limit / FEEDS).max(Duration::from_millis(1)));
    // After a time in which the thread was stuck, once is enough.
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        say();
    }
}

fn say(state: NotifyState<'_>) {
    // Whether systemd hears it is systemd's concern: without an answer it starts the daemon again.
    let _ = sd_notify::notify(&[state]);
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;
    use std::thread;

    use tokio::runtime::Builder;
    use tokio::sync::mpsc;
    use tokio::task::{LocalSet, spawn_blocking, spawn_local};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(40);

    /// Runs `test` on a loop of one thread that feeds a watchdog; it is given what counts the feeds, and
    /// waits for one more.
    fn with_watchdog(test: impl AsyncFnOnce(Rc<Cell<u32>>, mpsc::UnboundedReceiver<()>)) {
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let fed = Rc::new(Cell::new(0));
            let (said, heard) = mpsc::unbounded_channel();
            let count = fed.clone();
            spawn_local(feed(LIMIT, move || {
                count.set(count.get() + 1);
                let _ = said.send(());
            }));
            test(fed, heard).await;
        });
    }

    #[test]
    fn a_loop_that_is_stuck_feeds_nothing() {
        with_watchdog(async |fed, mut heard| {
            for _ in 0..3 {
                heard.recv().await.unwrap();
            }
            let before = fed.get();
            // This task shares the thread with the watchdog, as each session does.
            thread::sleep(3 * LIMIT);
            assert_eq!(fed.get(), before);
            while heard.try_recv().is_ok() {}
            heard.recv().await.unwrap();
            assert!(fed.get() > before, "it goes on when the loop does");
        });
    }

    #[test]
    fn a_thread_of_one_device_that_is_stuck_withholds_nothing() {
        with_watchdog(async |fed, mut heard| {
            let (let_go, wait) = std::sync::mpsc::channel::<()>();
            let stuck = spawn_blocking(move || wait.recv());
            let before = fed.get();
            for _ in 0..3 * FEEDS {
                heard.recv().await.unwrap();
            }
            assert!(!stuck.is_finished());
            assert!(fed.get() >= before + 3 * FEEDS - 1);
            drop(let_go);
            let _ = stuck.await;
        });
    }
}
