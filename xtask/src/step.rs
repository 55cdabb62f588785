// SPDX-License-Identifier: GPL-3.0-or-later
//! Steps: commands whose output is shown as it comes, and counted.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

/// The exit status of a program that could not try what it is for, because this machine or an archive
/// lacks something. Its last line then is [`SKIPPED`] and the reason (`docs/lab.md`).
const SKIP_STATUS: i32 = 77;
const SKIPPED: &str = "RESULT skipped ";

/// What passed, what failed, and what could not be tried.
#[derive(Debug, Default)]
pub struct Tally {
    passed: u64,
    failures: Vec<String>,
    failed: u64,
    /// With the reasons.
    skipped: Vec<String>,
}

impl Tally {
    /// Runs a command. Where it says how many tests it ran, as cargo's test runner does, they are
    /// counted; otherwise it counts as one. Standard error goes through.
    pub fn run(&mut self, name: &str, command: Command) {
        println!("==> {name}");
        let started = Instant::now();
        let ended = match watch(command) {
            Ok(ended) => ended,
            Err(error) => return self.fail(format!("{name}: {error:#}")),
        };
        let seconds = started.elapsed().as_secs();
        let Ended {
            status,
            passed,
            failed,
            last_line,
        } = ended;
        self.passed += passed;
        self.failed += failed;
        let reason = last_line.strip_prefix(SKIPPED);
        if status.success() {
            self.passed += u64::from((passed, failed) == (0, 0));
            println!("==> {name}: passed, {seconds} s");
        } else if let (Some(SKIP_STATUS), Some(reason)) = (status.code(), reason) {
            self.skip(format!("{name}: {reason}"));
        } else {
            // A failure that no test owns up to: it did not compile, or it crashed.
            self.failed += u64::from(failed == 0);
            self.failures.push(format!("{name}: {status}"));
            println!("==> {name}: FAILED ({status}), {seconds} s");
        }
    }

    /// Something that went wrong outside a command.
    pub fn fail(&mut self, what: String) {
        println!("==> FAILED: {what}");
        self.failed += 1;
        self.failures.push(what);
    }

    /// Something that could not be tried, and the reason.
    pub fn skip(&mut self, what: String) {
        println!("==> skipped: {what}");
        self.skipped.push(what);
    }

    /// Prints what was skipped and what failed, and as the last line how many of each. True: nothing
    /// failed.
    pub fn finish(&self) -> bool {
        for skipped in &self.skipped {
            println!("SKIPPED {skipped}");
        }
        for failure in &self.failures {
            println!("FAILED {failure}");
        }
        println!("{}", self.closing_line());
        self.failed == 0
    }

    fn closing_line(&self) -> String {
        let Self { passed, failed, .. } = self;
        format!(
            "{passed} passed, {failed} failed, {} skipped",
            self.skipped.len()
        )
    }
}

/// How a command ended.
struct Ended {
    status: ExitStatus,
    passed: u64,
    failed: u64,
    /// The last line of its output that is not empty.
    last_line: String,
}

/// Runs a command to its end, and shows its output as it comes.
fn watch(mut command: Command) -> Result<Ended> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    let (mut passed, mut failed) = (0, 0);
    let mut last_line = String::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let mut line = line?;
            let text = String::from_utf8_lossy(&line);
            if let Some(counts) = test_result(&text) {
                passed += counts.0;
                failed += counts.1;
            }
            if !text.trim().is_empty() {
                last_line = text.into_owned();
            }
            line.push(b'\n');
            std::io::stdout().write_all(&line)?;
        }
    }
    Ok(Ended {
        status: child.wait()?,
        passed,
        failed,
        last_line,
    })
}

/// Passed and failed out of `test result: ok. 3 passed; 0 failed; …`.
fn test_result(line: &str) -> Option<(u64, u64)> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let number = |word: &str| {
        let part = counts.split("; ").find(|part| part.ends_with(word))?;
        part.split(' ').next()?.parse().ok()
    };
    Some((number("passed")?, number("failed")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_the_runner_s_line() {
        let line = "test result: ok. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; \
                    finished in 0.01s";
        assert_eq!(test_result(line), Some((12, 3)));
        assert_eq!(test_result("running 3 tests"), None);
    }

    #[test]
    fn a_command_that_fails_without_a_count_is_one_failure() {
        let mut tally = Tally::default();
        tally.run("true", Command::new("true"));
        tally.run("false", Command::new("false"));
        tally.run("missing", Command::new("/nonexistent/program"));
        let mut says = Command::new("printf");
        says.arg("test result: ok. 5 passed; 0 failed; 0 ignored\n");
        tally.run("says", says);
        assert_eq!((tally.passed, tally.failed), (6, 2));
        assert_eq!(tally.closing_line(), "6 passed, 2 failed, 0 skipped");
        assert!(!tally.finish());
    }

    fn says(line: &str, status: i32) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("echo '{line}'; exit {status}")]);
        command
    }

    #[test]
    fn what_could_not_be_tried_is_skipped_with_its_reason() {
        let mut tally = Tally::default();
        tally.run("lab: devices", says("RESULT skipped no apt-get", 77));
        assert_eq!(tally.skipped, ["lab: devices: no apt-get"]);
        assert_eq!(tally.closing_line(), "0 passed, 0 failed, 1 skipped");
        assert!(tally.finish());
    }

    #[test]
    fn a_failure_is_not_skipped() {
        let mut tally = Tally::default();
        tally.run("without a reason", says("RESULT failed", 77));
        tally.run("another status", says("RESULT skipped because", 1));
        tally.run("success", says("RESULT skipped because", 0));
        assert_eq!(tally.closing_line(), "1 passed, 2 failed, 0 skipped");
    }
}
