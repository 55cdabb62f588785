// SPDX-License-Identifier: GPL-3.0-or-later
//! A report in a file, fresh every second, and the request to stop.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use xen_vusb_lab::traffic::Tally;

/// Keeps a [`Tally`] in a file.
pub struct Reporter {
    path: String,
    /// What is reported.
    pub tally: Tally,
    saved: Instant,
}

impl Reporter {
    /// Begin; old requests to begin and to stop are void.
    pub fn new(path: &str) -> io::Result<Self> {
        for old in ["stop", "go"] {
            let _ = fs::remove_file(format!("{path}.{old}"));
        }
        let reporter = Self {
            path: path.to_owned(),
            tally: Tally::default(),
            saved: Instant::now(),
        };
        reporter.save()?;
        Ok(reporter)
    }

    /// Saves now and then; true when it is time to stop.
    pub fn poll(&mut self) -> io::Result<bool> {
        self.tally.now = uptime();
        if self.saved.elapsed() < Duration::from_secs(1) {
            return Ok(false);
        }
        self.saved = Instant::now();
        self.save()?;
        Ok(Path::new(&format!("{}.stop", self.path)).exists())
    }

    /// Whether it was told to begin.
    pub fn may_go(&self) -> bool {
        Path::new(&format!("{}.go", self.path)).exists()
    }

    /// The last report.
    pub fn finish(mut self) -> io::Result<()> {
        self.tally.finished = true;
        self.save()
    }

    fn save(&self) -> io::Result<()> {
        let temporary = format!("{}.part", self.path);
        fs::write(&temporary, serde_json::to_vec(&self.tally)?)?;
        fs::rename(&temporary, &self.path)
    }
}

/// Seconds, by the clock of the kernel's log.
/// Seconds since the machine was started, without those that it stood still.
pub fn uptime() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes the one structure that is borrowed for it.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
