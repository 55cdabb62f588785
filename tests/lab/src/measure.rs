// SPDX-License-Identifier: GPL-3.0-or-later
//! What a live migration did to a guest: how long it stood still, how long its I/O did, and
//! what its kernel said.

use std::time::Duration;

use anyhow::{Result, bail};
use serde::Serialize;

use crate::agent::{Agent, Output};
use crate::guest::{self, Setup};
use crate::lab::Lab;
use crate::progress::{Step, patience};
use crate::workload::Report;

/// Where the ticker reports, in the guest.
pub const TICK_REPORT: &str = "/run/tick.json";
/// Where the writer reports, in the guest.
pub const DISK_REPORT: &str = "/run/disk.json";

/// One live migration as measured.
#[derive(Debug, Clone, Serialize)]
pub struct Migration {
    /// Source host.
    pub from: String,
    /// Target host.
    pub to: String,
    /// From the start of `xl migrate` to its end, in seconds.
    pub wall_s: f64,
    /// The guest's longest standstill during it, in milliseconds.
    pub pause_ms: f64,
    /// The longest time without a completed write-sync-read round, in milliseconds.
    pub io_gap_ms: Option<f64>,
}

/// A workload's report.
pub fn report(guest: &Agent, path: &str) -> Result<Report> {
    Ok(serde_json::from_slice(&guest.get(path)?)?)
}

/// Start the ticker.
pub fn start_ticker(guest: &Agent) -> Result<()> {
    guest.must(&format!(
        "setsid lab-disk tick {TICK_REPORT} </dev/null >/dev/null 2>/run/tick.err &"
    ))?;
    Ok(())
}

/// The longest gap in a time window, by a clock that did not jump.
///
/// `since_ns` is by the guest's clock. `before_ns` and `after_ns` say how far that clock was
/// ahead of this machine's before and after the migration; a gap that spans it is longer or
/// shorter by the difference.
pub fn longest_gap_ms(report: &Report, since_ns: u64, before_ns: i64, after_ns: i64) -> f64 {
    let longest = report
        .gaps
        .iter()
        .filter(|gap| gap.to_ns >= since_ns)
        .map(|gap| gap.ms())
        .fold(0.0, f64::max);
    longest - (after_ns - before_ns) as f64 / 1e6
}

/// Migrate the guest with its ticker, and its writer if it has one.
pub fn migrate(lab: &Lab, from: &str, to: &str, writer: bool) -> Result<Migration> {
    migrate_by(lab, from, to, writer, || guest::migrate(lab, from, to))
}

/// The same by any means, which answer with what was printed and how long it took.
pub fn migrate_by(
    lab: &Lab,
    from: &str,
    to: &str,
    writer: bool,
    migrate: impl FnOnce() -> Result<(Output, Duration)>,
) -> Result<Migration> {
    let guest = guest::agent_through(lab, from)?;
    let before = guest.clock_offset(false)?;
    let since = u64::try_from(crate::agent::now_ns() as i64 + before)?;
    let (output, wall) = migrate()?;
    if output.status != 0 {
        bail!(
            "xl migrate {from} -> {to}: exit status {}\n{}",
            output.status,
            output.stdout
        );
    }
    let guest = guest::agent_through(lab, to)?;
    guest.wait_ready(patience(120))?;
    let after = guest.clock_offset(false)?;
    // Reports are saved twice a second, and a gap is in one only when it has ended.
    std::thread::sleep(Duration::from_secs(2));
    let gap =
        |path| -> Result<f64> { Ok(longest_gap_ms(&report(&guest, path)?, since, before, after)) };
    Ok(Migration {
        from: from.to_owned(),
        to: to.to_owned(),
        wall_s: wall.as_secs_f64(),
        pause_ms: gap(TICK_REPORT)?,
        io_gap_ms: if writer {
            Some(gap(DISK_REPORT)?)
        } else {
            None
        },
    })
}

/// Migrate there and back, `count` times in all, starting on `host-a`; the measurements and
/// the host where the guest is at the end.
pub fn migrate_many(
    lab: &Lab,
    count: u32,
    writer: bool,
    label: &str,
) -> Result<(Vec<Migration>, &'static str)> {
    let (mut here, mut there) = ("host-a", "host-b");
    let mut all = Vec::new();
    for number in 1..=count {
        let step = Step::start(format!(
            "{label}: migration {number}/{count} {here} -> {there}"
        ));
        let one = migrate(lab, here, there, writer)?;
        let gap = one.io_gap_ms.map_or(String::new(), |gap| {
            format!(", longest I/O gap {gap:.0} ms")
        });
        step.done_with(&format!("pause {:.0} ms{gap}", one.pause_ms));
        all.push(one);
        (here, there) = (there, here);
    }
    Ok((all, here))
}

/// The same guest without USB: what a migration costs here anyway.
pub fn baseline(lab: &Lab, count: u32, setup: Setup) -> Result<Vec<Migration>> {
    guest::destroy(lab)?;
    let step = Step::start("guest without USB");
    start_ticker(&guest::create_as(lab, "host-a", false, setup)?)?;
    step.done();
    let (measured, host) = migrate_many(lab, count, false, "without USB")?;
    guest::healthy(&guest::agent_through(lab, host)?)?;
    guest::destroy(lab)?;
    Ok(measured)
}

/// What the guest's kernel logged about its USB disk.
#[derive(Debug, Clone, Default, Serialize)]
pub struct KernelLog {
    /// Devices that went away.
    pub disconnects: usize,
    /// Failed block or file-system operations.
    pub io_errors: usize,
    /// Devices that were reset by their driver, which it does after a time-out.
    pub resets: usize,
    /// The lines counted.
    pub lines: Vec<String>,
}

/// Count the marks of trouble in a guest's kernel log.
pub fn kernel_log(text: &str) -> KernelLog {
    const IO_ERRORS: &[&str] = &[
        "I/O error",
        "critical medium error",
        "critical target error",
        "EXT4-fs error",
        "EXT4-fs warning",
        "Aborting journal",
        "Remounting filesystem read-only",
        "rejecting I/O",
        "timing out command",
        "protocol error",
    ];
    let mut log = KernelLog::default();
    for line in text.lines() {
        let disconnect = line.contains("USB disconnect");
        let reset = line.contains("reset ") && line.contains("USB device");
        let io_error = IO_ERRORS.iter().any(|mark| line.contains(mark));
        log.disconnects += usize::from(disconnect);
        log.resets += usize::from(reset);
        log.io_errors += usize::from(io_error);
        if disconnect || reset || io_error {
            log.lines.push(line.to_owned());
        }
    }
    log
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Gap;

    #[test]
    fn gaps_are_corrected_by_the_clocks_difference() {
        let gap = |from_ms: u64, to_ms: u64| Gap {
            from_ns: from_ms * 1_000_000,
            to_ns: to_ms * 1_000_000,
        };
        let report = Report {
            gaps: vec![gap(0, 900), gap(1000, 1500), gap(2000, 2100)],
            ..Report::default()
        };
        // The first gap ended before the migration; the target's clock is 100 ms ahead.
        assert!((longest_gap_ms(&report, 950_000_000, 0, 100_000_000) - 400.0).abs() < 1e-6);
    }

    #[test]
    fn kernel_lines_are_counted_once_and_by_kind() {
        let log = kernel_log(
            "[1.0] usb 1-1: new high-speed USB device number 2 using xen-hcd\n\
             [2.0] usb 1-1: USB disconnect, device number 2\n\
             [2.1] I/O error, dev sda, sector 8 op 0x1:(WRITE)\n\
             [2.2] usb 1-1: reset high-speed USB device number 2 using xen-hcd\n",
        );
        assert_eq!(
            (log.disconnects, log.io_errors, log.resets, log.lines.len()),
            (1, 1, 1, 3)
        );
    }
}
