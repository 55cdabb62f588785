// SPDX-License-Identifier: GPL-3.0-or-later
//! What is shown meanwhile: a bar on a terminal, lines elsewhere. On standard error, so that
//! standard output has the result alone.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::rig::{Guest, HOSTS};

/// Shows how far the demo is.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    started: Instant,
    done: u32,
    all: u32,
}

impl Progress {
    pub(super) fn new(migrations: u32) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(migrations.into());
            let style = "{bar:30} {pos}/{len} migrations  {elapsed}  {msg}";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self {
            bar,
            started: Instant::now(),
            done: 0,
            all: migrations,
        }
    }

    /// Something that happens once.
    pub(super) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{:6.1} s  {text}", self.started.elapsed().as_secs_f64()),
        }
    }

    /// A migration is done.
    pub(super) fn migrated(&mut self, guest: &Guest, pause: Duration, blackout: Duration) {
        self.done += 1;
        let report = guest.last_report();
        let text = format!(
            "to {} as domain {}: paused {} ms, no transfer for {} ms; {} URBs, {} MiB written, {} \
             MiB compared",
            HOSTS[guest.host],
            guest.domid,
            pause.as_millis(),
            blackout.as_millis(),
            report.urbs,
            report.bytes_written >> 20,
            report.bytes_read >> 20,
        );
        match &self.bar {
            Some(bar) => {
                bar.set_position(self.done.into());
                bar.set_message(text);
            }
            None => self.say(&format!("{}/{}  {text}", self.done, self.all)),
        }
    }

    /// Nothing more to come.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
