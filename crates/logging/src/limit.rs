// SPDX-License-Identifier: GPL-3.0-or-later
//! A limit to how much is logged on behalf of one guest or peer.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use slog::{Drain, Level, Logger, OwnedKVList, Record, o, warn};

/// Lines at once.
const BURST: u32 = 100;
/// Time after which one more line may be written.
const REFILL: Duration = Duration::from_secs(1);

/// How many lines may be written: [`BURST`] at once, and one for each [`REFILL`].
///
/// A pure machine; the time is an argument.
#[derive(Debug)]
pub struct Allowance {
    lines: u32,
    since: Instant,
    suppressed: u64,
}

impl Allowance {
    /// Everything is allowed that is at all.
    pub fn new(now: Instant) -> Self {
        Self {
            lines: BURST,
            since: now,
            suppressed: 0,
        }
    }

    /// Whether a line may be written now, and how many were not since the last one that was.
    pub fn take(&mut self, now: Instant) -> Option<u64> {
        let gained = now.duration_since(self.since).as_nanos() / REFILL.as_nanos();
        if let Ok(gained @ 1..) = u32::try_from(gained) {
            self.lines = self.lines.saturating_add(gained).min(BURST);
            // What is left of an interval counts.
            self.since += REFILL * gained;
        }
        if self.lines == 0 {
            self.suppressed += 1;
            return None;
        }
        self.lines -= 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

struct Limited {
    log: Logger,
    allowance: Mutex<Allowance>,
}

impl Drain for Limited {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), slog::Never> {
        // Details are only there when somebody asked for all of them.
        if !record.level().is_at_least(Level::Info) {
            return Drain::log(&self.log, record, values);
        }
        let taken = {
            // Counters are right whoever panicked with them.
            let mut allowance = self
                .allowance
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            allowance.take(Instant::now())
        };
        match taken {
            None => return Ok(()),
            Some(0) => (),
            Some(suppressed) => warn!(self.log, "lines suppressed: {}", suppressed),
        }
        Drain::log(&self.log, record, values)
    }
}

/// A logger like `log`, with its values, for what one guest or peer can cause: a hundred lines at
/// once and one per second, then only how many there would have been.
pub fn limited(log: &Logger) -> Logger {
    let allowance = Mutex::new(Allowance::new(Instant::now()));
    let drain = Limited {
        log: log.clone(),
        allowance,
    };
    Logger::root(drain.fuse(), o!())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use slog::info;

    use super::*;

    #[test]
    fn a_burst_and_then_one_for_each_interval() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        for _ in 0..BURST {
            assert_eq!(allowance.take(start), Some(0));
        }
        assert_eq!(allowance.take(start), None);
        assert_eq!(allowance.take(start + REFILL / 2), None);
        assert_eq!(allowance.take(start + REFILL), Some(2));
        assert_eq!(allowance.take(start + REFILL * 3 / 2), None);
        assert_eq!(allowance.take(start + REFILL * 2), Some(1));
    }

    #[test]
    fn silence_earns_no_more_than_a_burst() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let later = start + Duration::from_secs(1 << 40);
        for _ in 0..BURST {
            assert!(allowance.take(later).is_some());
        }
        assert_eq!(allowance.take(later), None);
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    impl Drain for Lines {
        type Ok = ();
        type Err = slog::Never;

        fn log(&self, record: &Record<'_>, _: &OwnedKVList) -> Result<(), slog::Never> {
            self.0.lock().unwrap().push(record.msg().to_string());
            Ok(())
        }
    }

    #[test]
    fn one_that_floods_does_not_silence_another() {
        let lines = Lines::default();
        let log = Logger::root(lines.clone().fuse(), o!());
        let (noisy, quiet) = (limited(&log), limited(&log));
        for i in 0..10_000 {
            info!(noisy, "noise {}", i);
        }
        info!(quiet, "a word");
        let lines = lines.0.lock().unwrap();
        assert_eq!(lines.last().unwrap(), "a word");
        assert!(lines.len() < 200, "{} lines", lines.len());
    }
}
