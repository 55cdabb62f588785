// SPDX-License-Identifier: GPL-3.0-or-later
//! The guest's module in a kernel that looks for faults: KASAN, lockdep, kmemleak, object debugging,
//! and faults that are injected. What the kernel complains of counts, and what is not freed.

mod bad_backend;
mod faults;
mod findings;
mod lifecycle;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::json;

use self::findings::Findings;
use super::{Options, usbtest};
use crate::agent::Agent;
use crate::bench;
use crate::disk::{self, Frontend};
use crate::guest::{self, Kind, Setup};
use crate::guest_module::Module;
use crate::kernel::Choice;
use crate::lab::Lab;
use crate::measure;
use crate::progress::{Step, patience};
use crate::stack;

/// Its name. It is not one of those that `all` runs: its kernel takes half an hour to build.
pub const NAME: &str = "debug-kernel";

const SEED: u64 = 0x5eed_0019;

/// The guest with the stick, and what was found in it.
struct Subject<'a> {
    lab: &'a Lab,
    host: &'static str,
    guest: Agent,
    /// Its kernel is the one with checks, and the module has faults.
    checks: bool,
    findings: Findings,
}

/// Run the scenario.
pub fn run(lab: &Lab, options: &Options) -> Result<()> {
    // With another kernel (`--kernel debian-13`) the same runs, without its checks and its faults.
    let kernel = match options.guest.kernel {
        Choice::Backports => Choice::Debug,
        other => other,
    };
    let setup = Setup {
        kernel,
        kind: Kind::Pvh,
        module: Module::Hcd,
    };
    // First: without it there is nothing to start machines for.
    lab.guest_module(setup.module, setup.kernel)?;
    lab.fresh(setup.hypervisor(true))?;
    stack::deploy(lab)?;
    let findings = stack::with_logs(lab, 15, attempt(lab, options, setup))?;
    let result = if findings.good() { "ok" } else { "failed" };
    let Findings {
        runs,
        failures,
        splats,
        leaks,
    } = &findings;
    if options.json {
        println!(
            "{}",
            json!({ "scenario": NAME, "result": result, "runs": runs, "failures": failures, "splats": splats, "leaks": leaks })
        );
    } else {
        for (what, lines) in [("failed", failures), ("splat", splats), ("leak", leaks)] {
            for line in lines {
                println!("{what}: {line}");
            }
        }
        println!(
            "RESULT {result} runs={runs} failed={} splats={} leaks={}",
            failures.len(),
            splats.len(),
            leaks.len()
        );
    }
    if !findings.good() {
        bail!("the kernel has complained, or something did not work");
    }
    guest::destroy(lab)
}

/// What is tried, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Every case of `usbtest`.
    Usbtest,
    /// The disk under migration.
    Migration,
    /// What comes and goes in use, and the guest's own sleep.
    Lifecycle,
    /// Injected faults.
    Faults,
    /// A backend that misbehaves.
    Backend,
}

fn attempt(lab: &Lab, options: &Options, setup: Setup) -> Result<Findings> {
    let wanted = |part| options.parts.is_empty() || options.parts.contains(&part);
    let mut findings = Findings::default();
    if wanted(Part::Usbtest) {
        let (guest, rows) = usbtest::cases(lab, setup)?;
        for row in &rows {
            let name = format!("usbtest {}", row.case);
            let result = match row.errno {
                0 => Ok(()),
                errno => Err(std::io::Error::from_raw_os_error(errno).into()),
            };
            findings.ran(&name, result);
        }
        findings.look_at_log(&guest, "usbtest")?;
        findings.look_for_leaks(&guest, "usbtest")?;
    }
    if options.parts == [Part::Usbtest] {
        return Ok(findings);
    }

    let mut guest = disk::start(lab, setup, Frontend::Ours, SEED)?;
    let mut host = "host-a";
    if wanted(Part::Migration) {
        let count = options.migrations_or(2);
        let migrated = measure::migrate_many(lab, count, true, "with the stick");
        host = migrated.as_ref().map_or(host, |(_, host)| *host);
        for _ in 1..count {
            findings.ran("migration", Ok(()));
        }
        findings.ran("migration", migrated.map(drop));
        if let Ok(moved) = guest::agent_through(lab, host) {
            guest = moved;
        }
    }
    findings.ran("disk in constant use", account(&guest));
    bench::install(&guest)?;
    let mut subject = Subject {
        lab,
        host,
        guest,
        checks: setup.kernel == Choice::Debug,
        findings,
    };
    subject.look("the disk")?;
    subject.faults_off()?;
    if wanted(Part::Lifecycle) {
        lifecycle::run(&mut subject)?;
        subject.look("what comes and goes")?;
    }
    if subject.checks && wanted(Part::Faults) {
        faults::run(&mut subject)?;
        subject.look("injected faults")?;
    }
    if wanted(Part::Backend) {
        bad_backend::run(&mut subject)?;
        subject.look("a backend that misbehaves")?;
    }
    Ok(subject.findings)
}

fn account(guest: &Agent) -> Result<()> {
    let account = disk::finish(guest)?;
    if !account.good() {
        bail!("{}: {:?}", account.fields(), account.kernel.lines);
    }
    Ok(())
}

impl Subject<'_> {
    /// One run of something. That it failed is found, and does not end the scenario.
    fn run(&mut self, name: &str, act: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let step = Step::start(name);
        let result = act(self);
        step.done_with(if result.is_ok() { "ok" } else { "failed" });
        self.findings.ran(name, result);
        self.findings.look_at_log(&self.guest, name)
    }

    /// The end of a part.
    fn look(&mut self, after: &str) -> Result<()> {
        self.findings.look_at_log(&self.guest, after)?;
        self.findings.look_for_leaks(&self.guest, after)
    }

    /// The stick's block device, waited for.
    fn disk(&self) -> Result<String> {
        let start = Instant::now();
        loop {
            let found = self.guest.exec(
                "for d in /sys/block/sd*; do test -e $d/size && test $(cat $d/size) -gt 0 && echo /dev/${d##*/}; done | tail -n 1",
            )?;
            let disk = found.stdout.trim();
            if !disk.is_empty() {
                return Ok(disk.to_owned());
            }
            if start.elapsed() > patience(90) {
                bail!(
                    "the stick has no block device; the end of the kernel's log:\n{}",
                    self.guest.must("dmesg | tail -n 15")?
                );
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Blocks written and read back.
    fn use_disk(&self) -> Result<()> {
        let disk = self.disk()?;
        let command = format!("lab-usb blocks {disk} 60 {SEED}");
        let text = self.guest.exec_for(&command, patience(180))?.ok(&command)?;
        if text.contains("\"received\":60") {
            return Ok(());
        }
        bail!("{command}: {text}");
    }

    /// The usbfs node of the stick.
    fn node(&self) -> Result<String> {
        let text = self.guest.must(
            "for d in /sys/bus/usb/devices/*-*; do test -e $d/busnum || continue; \
             printf '/dev/bus/usb/%03d/%03d\\n' $(cat $d/busnum) $(cat $d/devnum); done | head -n 1",
        )?;
        let node = text.trim();
        if node.is_empty() {
            bail!("the guest has no USB device");
        }
        Ok(node.to_owned())
    }

    /// Sets one of the module's own faults, or a file of the kernel's, in debugfs.
    fn set(&self, file: &str, value: &str) -> Result<()> {
        if !self.checks {
            return Ok(());
        }
        self.guest
            .must(&format!("echo {value} > /sys/kernel/debug/{file}"))
            .with_context(|| format!("setting {file}"))?;
        Ok(())
    }

    fn faults_off(&self) -> Result<()> {
        if !self.checks {
            return Ok(());
        }
        self.guest
            .must("grep -q debugfs /proc/mounts || mount -t debugfs debugfs /sys/kernel/debug")?;
        for fault in [
            "xen-vusb-hcd/fail_pages",
            "xen-vusb-hcd/fail_grants",
            "xen-vusb-hcd/lose_grants",
            "failslab",
        ] {
            // Each that is injected would be in the log, with a stack.
            for (file, value) in [("probability", "0"), ("times", "-1"), ("verbose", "0")] {
                self.set(&format!("{fault}/{file}"), value)?;
            }
        }
        self.set("xen-vusb-hcd/enqueue_delay_us", "0")
    }
}
