// SPDX-License-Identifier: GPL-3.0-or-later
//! Every scenario, one after the other, each in a process of its own: one that fails, however it
//! does, is one line of the summary.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{Options, SCENARIOS};
use crate::lab::Lab;
use crate::missing::EXIT_STATUS;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Passed,
    Failed,
    /// It could not be tried.
    Skipped,
}

impl End {
    fn name(self) -> &'static str {
        match self {
            Self::Passed => "ok",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }

    /// By the exit status and the last line. Only a scenario that says `ok` has passed.
    fn of(status: Option<i32>, last: &str, json: bool) -> Self {
        let says = if json {
            let value: Option<Value> = serde_json::from_str(last).ok();
            value.and_then(|value| value["result"].as_str().map(str::to_owned))
        } else {
            result_of(last).map(|(result, _)| result.to_owned())
        };
        match (status, says.as_deref()) {
            (Some(0), Some("ok")) => Self::Passed,
            (Some(status), Some("skipped")) if status == i32::from(EXIT_STATUS) => Self::Skipped,
            _ => Self::Failed,
        }
    }
}

struct Line {
    scenario: &'static str,
    end: End,
    seconds: u64,
    /// The fields of its RESULT line, or how it ended.
    fields: String,
    /// Its result in JSON, where that was asked for and there is one.
    json: Value,
}

/// Run them. The lab is left as the last one leaves it.
pub fn run(_lab: &Lab, options: &Options) -> Result<()> {
    let mut lines = Vec::new();
    for scenario in SCENARIOS.iter().filter(|scenario| scenario.in_all) {
        eprintln!("lab: scenario {}", scenario.name);
        lines.push(one(scenario.name, options)?);
    }
    let count = |end| lines.iter().filter(|line| line.end == end).count();
    let (failed, skipped) = (count(End::Failed), count(End::Skipped));
    let result = if failed == 0 { "ok" } else { "failed" };
    if options.json {
        let scenarios: Vec<Value> = lines
            .iter()
            .map(|line| {
                json!({ "scenario": line.scenario, "result": line.end.name(), "seconds": line.seconds, "outcome": line.json })
            })
            .collect();
        println!(
            "{}",
            json!({ "scenario": "all", "result": result, "scenarios": scenarios })
        );
    } else {
        println!("\nscenario        result   seconds");
        for line in &lines {
            println!(
                "{:<14}  {:<7}  {:>7}  {}",
                line.scenario,
                line.end.name(),
                line.seconds,
                line.fields
            );
        }
        println!(
            "RESULT {result} scenarios={} failed={failed} skipped={skipped}",
            lines.len()
        );
    }
    if failed > 0 {
        bail!("{failed} of {} scenarios failed", lines.len());
    }
    Ok(())
}

fn one(scenario: &'static str, options: &Options) -> Result<Line> {
    let started = Instant::now();
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["run", scenario]);
    if options.json {
        command.arg("--json");
    }
    if let Some(count) = options.migrations {
        command.args(["--migrations", &count.to_string()]);
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the scenario")?;
    let mut last = String::new();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            last = line?;
            if !options.json {
                println!("{last}");
            }
        }
    }
    let status = child.wait()?;
    Ok(Line {
        scenario,
        end: End::of(status.code(), &last, options.json),
        seconds: started.elapsed().as_secs(),
        fields: match result_of(&last) {
            Some((_, fields)) => fields.to_owned(),
            None => status.to_string(),
        },
        json: serde_json::from_str(&last).unwrap_or(Value::Null),
    })
}

/// `ok` and the rest of a RESULT line.
fn result_of(line: &str) -> Option<(&str, &str)> {
    let rest = line.strip_prefix("RESULT ")?;
    Some(rest.split_once(' ').unwrap_or((rest, "")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_has_passed_only_if_it_says_so() {
        let end = |line, json| End::of(Some(0), line, json);
        assert_eq!(end("RESULT ok migrations=3 lost=0", false), End::Passed);
        assert_eq!(end("RESULT ok", false), End::Passed);
        assert_eq!(end("RESULT failed migrations=3", false), End::Failed);
        assert_eq!(end("", false), End::Failed);
        assert_eq!(end(r#"{"result":"ok"}"#, true), End::Passed);
        assert_eq!(end(r#"{"result":"failed"}"#, true), End::Failed);
        assert_eq!(end("RESULT ok", true), End::Failed);
        assert_eq!(End::of(Some(1), "RESULT ok", false), End::Failed);
        assert_eq!(End::of(None, "RESULT ok", false), End::Failed);
        assert_eq!(result_of("RESULT ok a=1 b=2"), Some(("ok", "a=1 b=2")));
    }

    #[test]
    fn a_scenario_is_skipped_only_if_it_says_so_and_ends_so() {
        let status = Some(i32::from(EXIT_STATUS));
        let end = |line, json| End::of(status, line, json);
        assert_eq!(end("RESULT skipped no apt-get", false), End::Skipped);
        assert_eq!(end(r#"{"result":"skipped"}"#, true), End::Skipped);
        assert_eq!(end("RESULT ok", false), End::Failed);
        assert_eq!(end("", false), End::Failed);
        let other = End::of(Some(1), "RESULT skipped no apt-get", false);
        assert_eq!(other, End::Failed);
    }

    #[test]
    fn names_are_unique() {
        for (index, scenario) in SCENARIOS.iter().enumerate() {
            assert!(
                SCENARIOS[..index]
                    .iter()
                    .all(|other| other.name != scenario.name)
            );
        }
    }
}
