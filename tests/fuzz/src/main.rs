// SPDX-License-Identifier: GPL-3.0-or-later
//! `fuzz`: tries inputs on every target, or one input on one.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Parser;
use fuzz::driver::{self, Outcome, Until};
use fuzz::{TARGETS, Target, regressions};

/// Fuzzes the shipping code: rings, sessions, leases, xenstore, configurations, certificates,
/// descriptors.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask fuzz")]
struct Arguments {
    /// Seconds for each target.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Which inputs are made.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only this target; `list` names them.
    #[arg(long)]
    target: Option<String>,
    /// Only this input, in hexadecimal; needs --target.
    #[arg(long, requires = "target")]
    input: Option<String>,
}

fn main() -> ExitCode {
    run(Arguments::parse()).unwrap_or_else(|error| {
        eprintln!("fuzz: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    if arguments.target.as_deref() == Some("list") {
        TARGETS.iter().for_each(|t| println!("{}", t.name));
        return Ok(ExitCode::SUCCESS);
    }
    let targets: Vec<&Target> = match &arguments.target {
        None => TARGETS.iter().collect(),
        Some(name) => TARGETS.iter().filter(|t| t.name == name).collect(),
    };
    if targets.is_empty() {
        bail!("no such target; `--target list` names them");
    }
    if let Some(input) = &arguments.input {
        let input = regressions::from_hex(input)?;
        // Not caught: the panic says where.
        (targets[0].run)(&mut fuzz::Input::new(&input));
        println!("{}: passed", targets[0].name);
        return Ok(ExitCode::SUCCESS);
    }
    // The panics of inputs that fail; the last one is shown below.
    std::panic::set_hook(Box::new(|_| ()));
    let mut failed = 0;
    for target in &targets {
        let until = Until::Elapsed(Duration::from_secs(arguments.seconds));
        failed += u8::from(!report(
            target,
            &driver::fuzz(target, arguments.seed, until),
        ));
    }
    println!("{} targets, {failed} failed", targets.len());
    Ok(ExitCode::from(u8::from(failed > 0)))
}

fn report(target: &Target, outcome: &Outcome) -> bool {
    let Outcome {
        executions,
        elapsed,
        corpus,
        features,
        failure,
    } = outcome;
    let per_second = *executions as f64 / elapsed.as_secs_f64().max(0.001);
    println!(
        "{:<12} {executions:>10} executions  {per_second:>8.0}/s  {features:>6} features  \
         {corpus:>5} inputs kept",
        target.name
    );
    if let Some(failure) = failure {
        let input = regressions::to_hex(&failure.input);
        println!("  FAILED: {}", failure.message);
        println!(
            "  again: cargo xtask fuzz --target {} --input {input}",
            target.name
        );
        println!("  and into tests/fuzz/regressions/{}.txt", target.name);
    }
    failure.is_none()
}
