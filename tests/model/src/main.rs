// SPDX-License-Identifier: GPL-3.0-or-later
//! `model`: tries everything within bounds, or many seeds.

use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};
use model::{check, sim, suites};

/// The whole system as one machine on one thread.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Every order of everything that may happen within bounds
    Model {
        /// Ends each suite after so many states.
        #[arg(long, default_value_t = 20_000_000)]
        max_states: usize,
        /// Only the suites of the ordinary tests.
        #[arg(long)]
        small: bool,
        /// Only these suites.
        suites: Vec<String>,
    },
    /// Long runs in which chance decides, with faults
    Sim {
        /// How many.
        #[arg(long, default_value_t = 10_000)]
        seeds: u64,
        /// Only this one, with all that happened.
        #[arg(long)]
        seed: Option<u64>,
    },
}

fn main() -> ExitCode {
    // Panics of the shipping code are reported with the way to them.
    std::panic::set_hook(Box::new(|_| ()));
    let good = match Arguments::parse().command {
        Command::Model {
            max_states,
            small,
            suites,
        } => model(max_states, small, &suites),
        Command::Sim {
            seed: Some(seed), ..
        } => one(seed),
        Command::Sim { seeds, .. } => many(seeds),
    };
    ExitCode::from(u8::from(!good))
}

fn model(max_states: usize, small: bool, only: &[String]) -> bool {
    let all = suites::SMALL.iter().chain(&suites::LARGE);
    let names: Vec<&str> = all.clone().map(|s| s.name).collect();
    if let Some(unknown) = only.iter().find(|n| !names.contains(&n.as_str())) {
        eprintln!("no suite {unknown}; there are: {}", names.join(", "));
        return false;
    }
    let mut good = true;
    let wanted = |name: &str| only.is_empty() || only.iter().any(|n| n == name);
    let count = match small {
        true => suites::SMALL.len(),
        false => usize::MAX,
    };
    for suite in all.take(count).filter(|s| wanted(s.name)) {
        let outcome = check::check(&suite.limits(), max_states);
        println!(
            "{:<18} {:>9} states {:>10} steps, depth {:>4}, {:>6.1} s{}  {}",
            suite.name,
            outcome.states,
            outcome.steps,
            outcome.depth,
            outcome.elapsed.as_secs_f64(),
            if outcome.complete || outcome.failure.is_some() {
                ""
            } else {
                " INCOMPLETE"
            },
            suite.what,
        );
        if let Some(failure) = &outcome.failure {
            println!("  FAILED: {}\n  after {:?}", failure.what, failure.steps);
        }
        good &= outcome.failure.is_none();
    }
    good
}

fn one(seed: u64) -> bool {
    let mut number = 0;
    let outcome = sim::run_watched(seed, |step, world| {
        number += 1;
        println!("{number:>6} {step:?}\n         {}", world.describe());
    });
    println!(
        "seed {seed}: {} steps, {} faults, {} transfers: {}",
        outcome.steps,
        outcome.faults,
        outcome.transfers,
        outcome.failure.as_deref().unwrap_or("clean")
    );
    outcome.failure.is_none()
}

fn many(seeds: u64) -> bool {
    let started = Instant::now();
    let (mut steps, mut faults, mut transfers) = (0, 0, 0);
    for seed in 1..=seeds {
        let outcome = sim::run(seed);
        steps += outcome.steps;
        faults += outcome.faults;
        transfers += outcome.transfers;
        if let Some(failure) = outcome.failure {
            println!("seed {seed} FAILED: {failure}");
            println!("again: cargo xtask sim --seed {seed}");
            return false;
        }
    }
    let minutes = started.elapsed().as_secs_f64() / 60.0;
    println!(
        "{seeds} seeds clean, {:.0} seeds per minute: {steps} steps, {faults} faults, {transfers} transfers",
        seeds as f64 / minutes.max(1e-9)
    );
    true
}
