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

/// Its name, which it does not run itself.
pub const NAME: &str = "all";

struct Line {
    scenario: &'static str,
    passed: bool,
    seconds: u64,
    /// The fields of its RESULT line, or how it ended.
    fields: String,
    /// Its result in JSON, where that was asked for and there is one.
    json: Value,
}

/// Run them. The lab is left as the last one leaves it.
pub fn run(_lab: &Lab, options: &Options) -> Result<()> {
    let mut lines = Vec::new();
    for scenario in SCENARIOS.iter().filter(|scenario| scenario.name != NAME) {
        eprintln!("lab: scenario {}", scenario.name);
        lines.push(one(scenario.name, options)?);
    }
    let failed = lines.iter().filter(|line| !line.passed).count();
    let result = if failed == 0 { "ok" } else { "failed" };
    if options.json {
        let scenarios: Vec<Value> = lines
            .iter()
            .map(|line| {
                json!({ "scenario": line.scenario, "passed": line.passed, "seconds": line.seconds, "outcome": line.json })
            })
            .collect();
        println!(
            "{}",
            json!({ "scenario": NAME, "result": result, "scenarios": scenarios })
        );
    } else {
        println!("\nscenario        result  seconds");
        for line in &lines {
            println!(
                "{:<14}  {:<6}  {:>7}  {}",
                line.scenario,
                if line.passed { "ok" } else { "failed" },
                line.seconds,
                line.fields
            );
        }
        println!("RESULT {result} scenarios={} failed={failed}", lines.len());
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
        passed: status.success() && says_ok(&last, options.json),
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

fn says_ok(line: &str, json: bool) -> bool {
    if json {
        serde_json::from_str::<Value>(line).is_ok_and(|value| value["result"] == "ok")
    } else {
        result_of(line).is_some_and(|(result, _)| result == "ok")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_has_passed_only_if_it_says_so() {
        assert!(says_ok("RESULT ok migrations=3 lost=0", false));
        assert!(says_ok("RESULT ok", false));
        assert!(!says_ok("RESULT failed migrations=3", false));
        assert!(!says_ok("", false));
        assert!(says_ok(r#"{"scenario":"pvh","result":"ok"}"#, true));
        assert!(!says_ok(r#"{"scenario":"pvh","result":"failed"}"#, true));
        assert!(!says_ok("RESULT ok", true));
        assert_eq!(result_of("RESULT ok a=1 b=2"), Some(("ok", "a=1 b=2")));
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
