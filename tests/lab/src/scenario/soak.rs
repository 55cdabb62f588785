// SPDX-License-Identifier: GPL-3.0-or-later
//! Very many live migrations of a guest with its stick in constant use, each with a line in a log that
//! runs add to. A guest that does not come up is kept, and its state is written down beside the log.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::Options;
use crate::agent::Agent;
use crate::disk::{self, Frontend};
use crate::guest::{self, Setup};
use crate::lab::Lab;
use crate::measure::{self, DISK_REPORT, kernel_log, report};
use crate::progress::{Step, patience};
use crate::stack;

const SEED: u64 = 0x5eed_0005;
/// How many migrations a run does where it is not said.
const USUAL: u32 = 10;

/// A line of the log, one for each migration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Line {
    /// Of all runs, from 1.
    migration: u64,
    /// Seconds since 1970.
    at: u64,
    result: Ended,
    from: String,
    to: String,
    /// How long `xl migrate` took, and the guest stood still.
    wall_s: f64,
    pause_ms: f64,
    io_gap_ms: f64,
    /// Blocks verified since the guest was created.
    verified: u64,
    #[serde(rename = "type")]
    kind: guest::Kind,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    error: String,
    /// Where the state of the guest that is kept was written.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    state: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Ended {
    Ok,
    Failed,
}

/// The log: lines of JSON, which are only added.
struct Log {
    path: PathBuf,
    lines: Vec<Line>,
}

impl Log {
    fn open(path: &Path) -> Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            other => other.with_context(|| format!("reading {}", path.display()))?,
        };
        Ok(Self {
            path: path.to_owned(),
            lines: parse(&text).with_context(|| format!("{} is no log of soak", path.display()))?,
        })
    }

    fn add(&mut self, line: Line) -> Result<()> {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.path)?;
        let mut text = serde_json::to_string(&line)?;
        text.push('\n');
        file.write_all(text.as_bytes())?;
        file.sync_data()?;
        self.lines.push(line);
        Ok(())
    }

    fn next(&self) -> u64 {
        self.lines.last().map_or(1, |line| line.migration + 1)
    }
}

/// A last line without its end was being written when the machine went down.
fn parse(text: &str) -> Result<Vec<Line>> {
    let complete = text.rfind('\n').map_or("", |end| &text[..end]);
    complete
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect()
}

/// Run the scenario.
pub fn run(lab: &Lab, options: &Options) -> Result<()> {
    let path = options
        .log
        .clone()
        .unwrap_or_else(|| lab.cache().path("soak.log"));
    let mut log = Log::open(&path)?;
    let before = log.lines.len();
    let count = options.migrations_or(USUAL);
    let mut here = begin(lab, options.guest, &log)?;
    let mut verified = report(&guest::agent_through(lab, here)?, DISK_REPORT)?.verified;
    for number in 1..=count {
        let there = other(here);
        let migration = log.next();
        let step = Step::start(format!(
            "migration {number}/{count} {here} -> {there}, number {migration} of {}",
            path.display()
        ));
        let start = Instant::now();
        let mut line = Line {
            migration,
            at: now(),
            result: Ended::Ok,
            from: here.to_owned(),
            to: there.to_owned(),
            wall_s: 0.0,
            pause_ms: 0.0,
            io_gap_ms: 0.0,
            verified,
            kind: options.guest.kind,
            error: String::new(),
            state: String::new(),
        };
        match one(lab, here, there, verified) {
            Ok((measured, now_verified)) => {
                line.wall_s = measured.wall_s;
                line.pause_ms = measured.pause_ms;
                line.io_gap_ms = measured.io_gap_ms.unwrap_or_default();
                line.verified = now_verified;
                verified = now_verified;
                log.add(line)?;
                step.done();
                here = there;
            }
            Err(error) => {
                line.result = Ended::Failed;
                line.wall_s = start.elapsed().as_secs_f64();
                line.error = format!("{error:#}");
                let state = path.with_extension(format!("{migration}.state"));
                line.state = state.display().to_string();
                fs::write(&state, stack::state(lab))?;
                log.add(line)?;
                return Err(error.context(format!(
                    "migration {migration}: the machines are left as they are; their state is in {}",
                    state.display()
                )));
            }
        }
    }
    let lines = &log.lines[before..];
    let longest = lines.iter().map(|line| line.pause_ms).fold(0.0, f64::max);
    let failed = |lines: &[Line]| lines.iter().filter(|l| l.result == Ended::Failed).count();
    if options.json {
        println!(
            "{}",
            serde_json::json!({ "scenario": "soak", "result": "ok", "log": path, "migrations": lines })
        );
    } else {
        println!(
            "RESULT ok migrations={} pause_ms_max={longest:.0} verified={verified} mismatches=0 in_log={} failed_in_log={}",
            lines.len(),
            log.lines.len(),
            failed(&log.lines),
        );
    }
    Ok(())
}

/// The host that has the guest, working: that of the run before, where it still does, or a new one.
fn begin(lab: &Lab, setup: Setup, log: &Log) -> Result<&'static str> {
    for host in ["host-a", "host-b"] {
        if works(lab, host) {
            eprintln!("lab: the guest of the run before is on {host}, and works");
            return Ok(host);
        }
    }
    if let Some(last) = log.lines.last()
        && last.result == Ended::Failed
        && has_domain(lab)
    {
        bail!(
            "the guest of migration {} is kept as it failed ({}); `cargo xtask lab down` lets it go",
            last.migration,
            last.state
        );
    }
    lab.fresh(setup.hypervisor(true))?;
    stack::deploy(lab)?;
    stack::with_logs(lab, 15, disk::start(lab, setup, Frontend::Ours, SEED))?;
    Ok("host-a")
}

/// Whether a host has the guest, and its writer writes.
fn works(lab: &Lab, host: &str) -> bool {
    guest::domid(lab, host).is_ok()
        && guest::agent_through(lab, host)
            .and_then(|agent| report(&agent, DISK_REPORT))
            .is_ok_and(|report| !report.finished)
}

fn has_domain(lab: &Lab) -> bool {
    let listing = |host| lab.agent(host).and_then(|agent| agent.must("xl list"));
    ["host-a", "host-b"]
        .into_iter()
        .any(|host| listing(host).is_ok_and(|text| text.contains(guest::NAME)))
}

fn other(host: &str) -> &'static str {
    if host == "host-a" { "host-b" } else { "host-a" }
}

/// One migration and what must be right after it: the measurement, and the blocks verified so far.
fn one(lab: &Lab, here: &str, there: &str, verified: u64) -> Result<(measure::Migration, u64)> {
    let measured = measure::migrate(lab, here, there, true)?;
    let guest = guest::agent_through(lab, there)?;
    let after = goes_on(&guest, verified)?;
    let log = kernel_log(&guest.must("dmesg")?);
    if !log.lines.is_empty() {
        bail!("the guest noticed it: {:?}", log.lines);
    }
    guest::healthy(&guest)?;
    Ok((measured, after))
}

/// Blocks verified by now, more than before.
fn goes_on(guest: &Agent, verified: u64) -> Result<u64> {
    let start = Instant::now();
    loop {
        let report = report(guest, DISK_REPORT)?;
        if report.mismatches > 0 || report.io_errors > 0 {
            bail!(
                "{} blocks differ, {} I/O errors: {:?}",
                report.mismatches,
                report.io_errors,
                report.errors
            );
        }
        if report.verified > verified {
            return Ok(report.verified);
        }
        if start.elapsed() > patience(120) {
            bail!("no block was verified since the migration");
        }
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(migration: u64) -> Line {
        Line {
            migration,
            at: 1,
            result: Ended::Ok,
            from: "host-a".into(),
            to: "host-b".into(),
            wall_s: 30.5,
            pause_ms: 2000.0,
            io_gap_ms: 3000.0,
            verified: 7,
            kind: guest::Kind::Pvh,
            error: String::new(),
            state: String::new(),
        }
    }

    #[test]
    fn a_run_adds_to_the_log_of_the_runs_before() {
        let directory = std::env::temp_dir().join(format!("lab-soak-{}", std::process::id()));
        let path = directory.join("soak.log");
        let mut log = Log::open(&path).unwrap();
        assert_eq!(log.next(), 1);
        log.add(line(1)).unwrap();
        log.add(line(2)).unwrap();
        let log = Log::open(&path).unwrap();
        assert_eq!(log.lines, [line(1), line(2)]);
        assert_eq!(log.next(), 3);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_line_that_was_not_finished_does_not_count() {
        let whole = serde_json::to_string(&line(1)).unwrap();
        assert_eq!(
            parse(&format!("{whole}\n{}", &whole[..9])).unwrap(),
            [line(1)]
        );
        assert!(parse("").unwrap().is_empty());
        assert!(parse("something else\n").is_err());
    }
}
