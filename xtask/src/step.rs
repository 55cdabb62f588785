// SPDX-License-Identifier: GPL-3.0-or-later
//! Steps: commands whose output is shown as it comes, and counted.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

/// What passed and what failed.
#[derive(Debug, Default)]
pub struct Tally {
    passed: u64,
    failed: u64,
    failures: Vec<String>,
}

impl Tally {
    /// Runs a command. Where it says how many tests it ran, as cargo's test runner does, they are
    /// counted; otherwise it counts as one. Standard error goes through.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&mut self, name: &str, mut command: Command) -> Result<()> {
        println!("==> {name}");
        let started = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {:?}", command.get_program()))?;
        let mut counted = (0, 0);
        if let Some(stdout) = child.stdout.take() {
            for line in BufReader::new(stdout).split(b'\n') {
                let mut line = line?;
                if let Some((passed, failed)) = test_result(&String::from_utf8_lossy(&line)) {
                    counted.0 += passed;
                    counted.1 += failed;
                }
                line.push(b'\n');
                std::io::stdout().write_all(&line)?;
            }
        }
        let status = child.wait()?;
        let seconds = started.elapsed().as_secs();
        self.passed += counted.0;
        self.failed += counted.1;
        if status.success() {
            self.passed += u64::from(counted == (0, 0));
            println!("==> {name}: passed, {seconds} s");
        } else {
            // A failure that no test owns up to: it did not compile, or it crashed.
            self.failed += u64::from(counted.1 == 0);
            self.failures.push(format!("{name}: {status}"));
            println!("==> {name}: FAILED ({status}), {seconds} s");
        }
        Ok(())
    }

    /// Something that could not be tried.
    pub fn fail(&mut self, what: String) {
        println!("==> FAILED: {what}");
        self.failed += 1;
        self.failures.push(what);
    }

    /// Prints what failed, and as the last line how many passed and failed. True: all passed.
    pub fn finish(&self) -> bool {
        for failure in &self.failures {
            println!("FAILED {failure}");
        }
        println!("{} passed, {} failed", self.passed, self.failed);
        self.failed == 0
    }
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
        tally.run("true", Command::new("true")).unwrap();
        tally.run("false", Command::new("false")).unwrap();
        let mut says = Command::new("printf");
        says.arg("test result: ok. 5 passed; 0 failed; 0 ignored\n");
        tally.run("says", says).unwrap();
        assert_eq!((tally.passed, tally.failed), (6, 1));
    }
}
