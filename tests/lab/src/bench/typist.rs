// SPDX-License-Identifier: GPL-3.0-or-later
//! Typing and pointing through QEMU's monitor, at a known rate.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use serde_json::{Value, json};

use crate::qmp::Qmp;
use crate::usbmon::{TABLET_POSITIONS, TABLET_STEP};

/// What is typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The letters a, b … z, a …
    Letters,
    /// Clicks at positions 1, 2, 3 …
    Clicks,
}

/// A thread that types.
pub struct Typist {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

impl Typist {
    /// Begin, one stroke or click in each `interval`, `limit` at most.
    pub fn start(qmp: &Path, input: Input, interval: Duration, limit: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let socket = qmp.to_owned();
        let thread = std::thread::spawn(move || {
            let mut due = Instant::now();
            let mut count = 0;
            while count < limit && !flag.load(Ordering::Relaxed) {
                for events in strokes(input, count) {
                    // The monitor serves one client at a time: it is left between strokes.
                    Qmp::connect(&socket)?
                        .execute("input-send-event", json!({ "events": events }))?;
                    // A key that is up before it was polled is two events in one poll, which a
                    // device queues; but a tablet's click would be moved on to the next place.
                    std::thread::sleep(Duration::from_millis(20));
                }
                count += 1;
                due += interval;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            Ok(count)
        });
        Self { stop, thread }
    }

    /// Wait for its limit, or make it stop now; how many it has typed.
    pub fn finish(self, now: bool) -> Result<u64> {
        if now {
            self.stop.store(true, Ordering::Relaxed);
        }
        self.thread
            .join()
            .map_err(|_| anyhow!("the typist's thread has panicked"))?
    }
}

/// The lists of events that are sent one after the other.
fn strokes(input: Input, number: u64) -> [Value; 2] {
    match input {
        Input::Letters => {
            let letter = char::from(b'a' + (number % 26) as u8).to_string();
            [true, false].map(|down| {
                json!([{ "type": "key", "data": { "down": down, "key": { "type": "qcode", "data": letter } } }])
            })
        }
        Input::Clicks => {
            let x = number % TABLET_POSITIONS * TABLET_STEP;
            [true, false].map(|down| {
                json!([
                    { "type": "abs", "data": { "axis": "x", "value": x } },
                    { "type": "abs", "data": { "axis": "y", "value": 16384 } },
                    { "type": "btn", "data": { "down": down, "button": "left" } },
                ])
            })
        }
    }
}
