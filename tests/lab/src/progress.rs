// SPDX-License-Identifier: GPL-3.0-or-later
//! Progress of long steps: a spinner on a terminal, plain lines with elapsed time elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How long to wait, at most, for what takes that many seconds on a computer with other work: a computer with much
/// other work is several times slower, and a wait that ends too soon says nothing about what it waits for.
pub const fn patience(seconds: u64) -> Duration {
    Duration::from_secs(4 * seconds)
}

/// One long step. Dropped without [`Step::done`] it says that it failed.
pub struct Step {
    label: String,
    start: Instant,
    bar: Option<ProgressBar>,
    last_line: Instant,
    finished: bool,
}

impl Step {
    /// Announce a step.
    pub fn start(label: impl Into<String>) -> Self {
        let label = label.into();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} [{elapsed}]") {
                bar.set_style(style);
            }
            bar.set_message(label.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            eprintln!("lab: {label} ...");
        }
        Self {
            label,
            start: Instant::now(),
            bar,
            last_line: Instant::now(),
            finished: false,
        }
    }

    /// Say how far it is; without a terminal at most one line in 15 seconds.
    pub fn note(&mut self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {text}", self.label));
        } else if self.last_line.elapsed() > Duration::from_secs(15) {
            eprintln!(
                "lab: {} [{} s]: {text}",
                self.label,
                self.start.elapsed().as_secs()
            );
            self.last_line = Instant::now();
        }
    }

    /// Time since the step began.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// The step succeeded.
    pub fn done(self) {
        self.done_with("done");
    }

    /// The step succeeded, with a word about the outcome.
    pub fn done_with(mut self, text: &str) {
        self.finished = true;
        let line = format!(
            "lab: {}: {text} ({:.1} s)",
            self.label,
            self.start.elapsed().as_secs_f64()
        );
        match &self.bar {
            Some(bar) => {
                bar.finish_and_clear();
                eprintln!("{line}");
            }
            None => eprintln!("{line}"),
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!(
            "lab: {}: failed after {:.1} s",
            self.label,
            self.start.elapsed().as_secs_f64()
        );
    }
}
