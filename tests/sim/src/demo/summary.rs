// SPDX-License-Identifier: GPL-3.0-or-later
//! What a run came to.

use std::fmt;

use serde_json::{Value, json};

use crate::guest::Report;

/// The result of a demo.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Blackout of each migration between the hosts, in µs.
    pub blackouts_us: Vec<u64>,
    /// Migrations to the host that the guest was on.
    pub localhost: u32,
    /// Migrations that failed as they were made to.
    pub cancelled: u32,
    /// What the guest has seen.
    pub guest: Report,
    /// Whether the disk holds what the guest wrote; `None` when it did not come to that.
    pub sha256_matches: Option<bool>,
    /// What the hosts have seen that no guest and no backend may do.
    pub violations: Vec<String>,
    /// What went wrong, for people. Empty: nothing.
    pub failures: Vec<String>,
    /// How long it took.
    pub seconds: f64,
}

impl Summary {
    /// What the guest has seen that must not be, if anything.
    pub(super) fn first_fault(&self) -> Option<String> {
        let Report {
            lost,
            duplicated,
            disconnects,
            mismatches,
            errors,
            ref violations,
            ..
        } = self.guest;
        for (count, what) in [
            (lost, "URBs were never answered"),
            (duplicated, "URBs were answered twice"),
            (disconnects, "times the disk was disconnected"),
            (mismatches, "times something else was read than was written"),
            (errors, "URBs failed"),
            (violations.len() as u64, "breaches of the protocol"),
        ] {
            if count > 0 {
                return Some(format!("{count} {what}"));
            }
        }
        None
    }

    /// Makes the final list of failures.
    pub(super) fn judge(&mut self, migrations: u32) {
        if let Some(fault) = self.first_fault()
            && !self.failures.contains(&fault)
        {
            self.failures.push(fault);
        }
        if self.blackouts_us.len() != migrations as usize {
            let done = self.blackouts_us.len();
            self.failures
                .push(format!("{done} of {migrations} migrations"));
        }
        if self.sha256_matches == Some(false) {
            self.failures
                .push("the disk does not hold what the guest wrote".into());
        }
        for violation in &self.violations {
            self.failures.push(format!("bad manners: {violation}"));
        }
    }

    /// Whether everything was as it must be.
    pub fn is_ok(&self) -> bool {
        self.failures.is_empty() && self.sha256_matches == Some(true)
    }

    /// The blackout that so many per cent of the migrations do not exceed, in ms.
    fn blackout_ms(&self, percent: usize) -> f64 {
        let mut sorted = self.blackouts_us.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).map_or(0.0, |us| *us as f64 / 1000.0)
    }

    fn sha256_word(&self) -> &'static str {
        match self.sha256_matches {
            Some(true) => "match",
            Some(false) => "differ",
            None => "unknown",
        }
    }

    /// Everything, for programs.
    pub fn to_json(&self) -> Value {
        let Report {
            urbs,
            lost,
            duplicated,
            disconnects,
            mismatches,
            errors,
            unlinked,
            commands,
            bytes_written,
            bytes_read,
            ref violations,
            ref sha256,
        } = self.guest;
        let all_violations = [violations.as_slice(), self.violations.as_slice()].concat();
        json!({
            "result": if self.is_ok() { "ok" } else { "failed" },
            "migrations": self.blackouts_us.len(),
            "urbs": urbs,
            "lost": lost,
            "duplicated": duplicated,
            "disconnects": disconnects,
            "sha256": self.sha256_word(),
            "blackout_ms_p50": self.blackout_ms(50),
            "blackout_ms_max": self.blackout_ms(100),
            "blackouts_us": self.blackouts_us,
            "mismatches": mismatches,
            "errors": errors,
            "unlinked": unlinked,
            "commands": commands,
            "bytes_written": bytes_written,
            "bytes_read": bytes_read,
            "localhost_migrations": self.localhost,
            "failed_migrations": self.cancelled,
            "disk_sha256": sha256,
            "violations": all_violations,
            "failures": self.failures,
            "seconds": self.seconds,
        })
    }
}

impl fmt::Display for Summary {
    /// For people; the last line is the `RESULT` line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = &self.guest;
        writeln!(
            f,
            "{} migrations between the hosts, {} to localhost, {} made to fail, in {:.1} s",
            self.blackouts_us.len(),
            self.localhost,
            self.cancelled,
            self.seconds
        )?;
        writeln!(
            f,
            "{} commands: {} MiB written, {} MiB read and compared; {} URBs taken back at \
             suspends and finished afterwards",
            report.commands,
            report.bytes_written >> 20,
            report.bytes_read >> 20,
            report.unlinked
        )?;
        for failure in &self.failures {
            writeln!(f, "FAILED: {failure}")?;
        }
        write!(
            f,
            "RESULT {} migrations={} urbs={} lost={} duplicated={} disconnects={} sha256={} \
             blackout_ms_p50={:.1} blackout_ms_max={:.1}",
            if self.is_ok() { "ok" } else { "failed" },
            self.blackouts_us.len(),
            report.urbs,
            report.lost,
            report.duplicated,
            report.disconnects,
            self.sha256_word(),
            self.blackout_ms(50),
            self.blackout_ms(100),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Summary {
        Summary {
            blackouts_us: vec![30_000, 10_000, 20_000],
            sha256_matches: Some(true),
            guest: Report {
                urbs: 1000,
                ..Report::default()
            },
            ..Summary::default()
        }
    }

    #[test]
    fn the_last_line_is_the_result() {
        let mut summary = good();
        summary.judge(3);
        let text = summary.to_string();
        assert_eq!(
            text.lines().last(),
            Some(
                "RESULT ok migrations=3 urbs=1000 lost=0 duplicated=0 disconnects=0 sha256=match \
                 blackout_ms_p50=20.0 blackout_ms_max=30.0"
            )
        );
    }

    #[test]
    fn every_fault_fails_the_run() {
        let faults: [fn(&mut Summary); 10] = [
            |s| s.guest.lost = 1,
            |s| s.guest.duplicated = 1,
            |s| s.guest.disconnects = 1,
            |s| s.guest.mismatches = 1,
            |s| s.guest.errors = 1,
            |s| s.guest.violations.push("x".into()),
            |s| s.violations.push("x".into()),
            |s| s.sha256_matches = Some(false),
            |s| s.sha256_matches = None,
            |s| s.blackouts_us.truncate(2),
        ];
        for (n, fault) in faults.into_iter().enumerate() {
            let mut summary = good();
            fault(&mut summary);
            summary.judge(3);
            assert!(!summary.is_ok(), "fault {n}");
            let text = summary.to_string();
            let result = text.lines().last().unwrap();
            assert!(result.starts_with("RESULT failed "), "{result}");
        }
    }
}
