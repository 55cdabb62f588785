// SPDX-License-Identifier: GPL-3.0-or-later
//! `cargo xtask demo`: a guest works on a remote USB disk while it is migrated back and forth.

mod journey;
mod progress;
mod summary;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use xen_sim::toolstack::{Failure, MigrateError};

use crate::rig::{Guest, GuestOptions, Rig, RigOptions};
use journey::{Step, plan};
use progress::Progress;

pub use summary::Summary;

/// What the guest carries out at least between two migrations.
const COMMANDS_BETWEEN: u64 = 20;

/// What the demo is asked for.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoOptions {
    /// Live migrations between the two hosts, there and back.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub migrations: u32,
    /// Keep the disk's image in this file; made if it does not exist, overwritten if it does.
    #[arg(long, value_name = "FILE")]
    pub disk: Option<PathBuf>,
    /// Seed of what the guest writes and of what happens when.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Print the result as one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Keep the programs' logs in this directory.
    #[arg(long, value_name = "DIR")]
    pub logs: Option<PathBuf>,
}

/// Runs the demo. What the summary says of the run is true, also when it says that it failed.
///
/// # Errors
/// When the system did not even start.
pub fn run(options: &DemoOptions) -> Result<Summary> {
    let started = Instant::now();
    let mut progress = Progress::new(options.migrations);
    progress.say("two simulated hosts, an exporter over TLS, a fresh pool");
    let rig = Rig::start(&RigOptions {
        disk: options.disk.clone(),
        seed: options.seed,
        logs: options.logs.clone(),
        ..RigOptions::default()
    })?;
    let mut summary = Summary::default();
    if let Err(e) = travel(rig, options, &mut progress, &mut summary) {
        summary.failures.push(format!("{e:#}"));
    }
    progress.finish();
    summary.seconds = started.elapsed().as_secs_f64();
    summary.judge(options.migrations);
    Ok(summary)
}

fn travel(
    rig: Rig,
    options: &DemoOptions,
    progress: &mut Progress,
    summary: &mut Summary,
) -> Result<()> {
    let mut guest = Guest::start(
        &rig,
        0,
        &GuestOptions {
            seed: options.seed,
            ..GuestOptions::new("guest")
        },
    )?;
    let result = steps(&rig, &mut guest, options, progress, summary);
    summary.guest = guest.last_report().clone();
    if let Err(e) = result {
        eprint!("{}--- guest\n{}\n", rig.log_tails(), guest.log_tail());
        return Err(e);
    }
    progress.say("the guest stops, and its disk is compared");
    summary.guest = guest.stop(&rig)?;
    let disk = sha256(rig.exporter.disk())?;
    summary.sha256_matches = Some(summary.guest.sha256.as_ref() == Some(&disk));
    summary.violations = rig.stop()?;
    Ok(())
}

fn steps(
    rig: &Rig,
    guest: &mut Guest,
    options: &DemoOptions,
    progress: &mut Progress,
    summary: &mut Summary,
) -> Result<()> {
    rig.attach_disk(guest)?;
    progress.say("the disk is attached; the guest reads all of it");
    guest.wait_ready()?;
    progress.say("the guest writes, reads back and compares without pause");
    for step in plan(options.migrations, options.seed) {
        let there = 1 - guest.host;
        match step {
            Step::Migrate => {
                let pause = rig.migrate(guest, there, &step.options())?.pause;
                let (cancelled, blackout) = guest.wait_resumed()?;
                if cancelled {
                    bail!("the guest did not notice that it moved");
                }
                summary.blackouts_us.push(blackout.as_micros() as u64);
                progress.migrated(guest, pause, blackout);
            }
            Step::Localhost => {
                rig.migrate(guest, guest.host, &step.options())?;
                guest.wait_resumed()?;
                summary.localhost += 1;
                progress.say("migrated to the host that it is on");
            }
            Step::Fail(failure) => {
                match rig.migrate(guest, there, &step.options()) {
                    Err(MigrateError::ResumedAtSource { .. } | MigrateError::NotSuspended(_)) => {}
                    Err(e) => return Err(e.into()),
                    Ok(_) => bail!("a migration that was made to fail did not"),
                }
                if failure == Failure::BeforeGo && !guest.wait_resumed()?.0 {
                    bail!("the guest did not notice that its suspend was cancelled");
                }
                summary.cancelled += 1;
                progress.say("a migration failed, as it was made to; the guest went on");
            }
        }
        guest.wait_commands(COMMANDS_BETWEEN)?;
        summary.guest = guest.last_report().clone();
        if let Some(wrong) = summary.first_fault() {
            bail!("{wrong}");
        }
    }
    Ok(())
}

/// SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// When it cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            len => hash.update(&buffer[..len]),
        }
    }
    let digest = hash.finalize();
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}
