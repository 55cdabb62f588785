// SPDX-License-Identifier: GPL-3.0-or-later
//! A guest with the exporter's stick: from an empty lab to constant writing, and to the final
//! account of what came of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::agent::Agent;
use crate::guest::{self, Setup};
use crate::guest_module::{Module, STOCK_DRIVER};
use crate::lab::Lab;
use crate::measure::{DISK_REPORT, KernelLog, kernel_log, report, start_ticker};
use crate::progress::{Step, patience};
use crate::stack::{self, STICK};
use crate::workload::Report;

/// Size of the file that is written: most of it is overwritten several times between two
/// migrations.
const FILE_BLOCKS: u32 = 2048;

/// The stock `xen-hcd` fails a URB whose pages are more than the 16 of a request ("xenhcd: error: 17
/// grants"). Linux 7.3 gives it such: one piece of 64 KiB that does not begin with a page. No request
/// above 60 KiB is ever so.
const SMALL_REQUESTS: &str = "echo 60 >/sys/block/sda/queue/max_sectors_kb";

/// Whose frontend a guest has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frontend {
    /// The module that the guest's [`Setup`] names.
    Ours,
    /// `xen-hcd` alone.
    Stock,
}

/// Load a guest's frontend. Its controllers are there when this returns.
pub fn load_frontend(lab: &Lab, agent: &Agent, setup: Setup, frontend: Frontend) -> Result<()> {
    let driver = match frontend {
        Frontend::Ours => {
            let module = setup.module;
            let file = lab.guest_module(module, setup.kernel)?;
            let to = format!("/root/{}.ko", module.name());
            agent.put(&to, 0o644, &std::fs::read(file)?)?;
            // What DKMS would have installed is put there by hand: what it needs must be too.
            agent.must(&format!("modprobe usbcore && insmod {to}"))?;
            module.driver()
        }
        Frontend::Stock => {
            agent.must("modprobe xen-hcd")?;
            STOCK_DRIVER
        }
    };
    wait_for(
        agent,
        &format!(
            "cd /sys/bus/xen && for c in $(cd devices && ls -d vusb-*); do \
             test -e drivers/{driver}/$c && ls -d devices/$c/usb* || exit 1; done"
        ),
        &format!("the guest's USB controllers, driven by {driver},"),
        patience(60),
    )
}

/// Who makes the guest's controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    /// `xl`, by the guest's configuration.
    Toolstack,
    /// `vusbd`, when it is asked to.
    Ours,
}

/// How a guest gets its stick.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// Its controller.
    pub controller: Controller,
    /// Options of `xl-vusb attach`.
    pub options: &'static str,
}

impl Way {
    /// The usual one.
    pub const USUAL: Self = Self {
        controller: Controller::Toolstack,
        options: "",
    };
}

/// Ports of a controller that `vusbd` makes.
const PORTS: u32 = 4;

/// The guest on `host-a` with the stick's file system mounted, written and verified without
/// pause.
pub fn start(lab: &Lab, setup: Setup, frontend: Frontend, seed: u64) -> Result<Agent> {
    start_with(lab, setup, frontend, Way::USUAL, seed)
}

/// The same another way.
pub fn start_with(
    lab: &Lab,
    setup: Setup,
    frontend: Frontend,
    way: Way,
    seed: u64,
) -> Result<Agent> {
    stack::plug_stick(lab)?;
    guest::destroy(lab)?;
    let step = Step::start("guest with a USB controller");
    let by_toolstack = way.controller == Controller::Toolstack;
    let agent = guest::create_as(lab, "host-a", by_toolstack, setup)?;
    if !by_toolstack {
        let name = guest::NAME;
        stack::xl_vusb(
            lab,
            "host-a",
            &format!("controller add {name} --ports {PORTS}"),
        )?;
    }
    step.done();
    let step = Step::start("stick in the guest");
    load_frontend(lab, &agent, setup, frontend)?;
    agent.must("modprobe -a usb-storage sd_mod ext4")?;
    stack::xl_vusb(
        lab,
        "host-a",
        &format!("attach {} {STICK} {}", guest::NAME, way.options),
    )?;
    wait_for(
        &agent,
        "test -b /dev/sda && test $(cat /sys/block/sda/size) -gt 0",
        "the stick's block device",
        patience(60),
    )?;
    if frontend == Frontend::Stock || setup.module == Module::Resume {
        agent.must(SMALL_REQUESTS)?;
    }
    step.done();
    let step = Step::start("file system and workload");
    agent
        .exec_for(
            "mkfs.ext4 -q -F /dev/sda && mount -t ext4 /dev/sda /mnt",
            patience(180),
        )?
        .ok("making and mounting the file system")?;
    start_ticker(&agent)?;
    agent.must(&format!("setsid lab-disk write /mnt/data {FILE_BLOCKS} {seed} {DISK_REPORT} </dev/null >/dev/null 2>/run/disk.err &"))?;
    wait_for(
        &agent,
        &format!("test -s {DISK_REPORT}"),
        "the writer's first report",
        patience(120),
    )?;
    step.done();
    Ok(agent)
}

/// Waits until a shell command succeeds in a machine.
pub fn wait_for(agent: &Agent, condition: &str, what: &str, timeout: Duration) -> Result<()> {
    let start = Instant::now();
    while agent.exec(condition)?.status != 0 {
        if start.elapsed() > timeout {
            bail!(
                "{what} did not appear within {timeout:?}; the end of the guest's kernel log:\n{}",
                agent.must("dmesg | tail -n 15")?
            );
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Account {
    /// The writer's own report.
    pub report: Report,
    /// From the guest's kernel log.
    pub kernel: KernelLog,
    /// Whether `e2fsck -fn` found nothing to do.
    pub fsck_clean: bool,
    /// What it printed.
    pub fsck: String,
}

impl Account {
    /// Nothing was lost, wrong or noticed.
    pub fn good(&self) -> bool {
        let report = &self.report;
        report.finished
            && report.verified > 0
            && report.mismatches == 0
            && report.io_errors == 0
            && self.sha256_matches()
            && self.kernel.disconnects == 0
            && self.kernel.io_errors == 0
            && self.kernel.resets == 0
            && self.fsck_clean
    }

    /// The file as read back is the file as written.
    pub fn sha256_matches(&self) -> bool {
        !self.report.sha256_expected.is_empty()
            && self.report.sha256_expected == self.report.sha256_read
    }

    /// The common fields of a RESULT line.
    pub fn fields(&self) -> String {
        format!(
            "disconnects={} io_errors={} resets={} written={} verified={} mismatches={} sha256={} fsck={}",
            self.kernel.disconnects,
            self.kernel.io_errors as u64 + self.report.io_errors,
            self.kernel.resets,
            self.report.written,
            self.report.verified,
            self.report.mismatches,
            if self.sha256_matches() {
                "match"
            } else {
                "differ"
            },
            if self.fsck_clean { "clean" } else { "errors" },
        )
    }
}

/// Stop the workload, unmount, check.
pub fn finish(guest: &Agent) -> Result<Account> {
    let step = Step::start("final account");
    guest.must(&format!("touch {DISK_REPORT}.stop"))?;
    let start = Instant::now();
    let report = loop {
        let report = report(guest, DISK_REPORT)?;
        if report.finished {
            break report;
        }
        if start.elapsed() > patience(600) {
            bail!(
                "the writer does not end; the end of the guest's kernel log:\n{}",
                guest.must("dmesg | tail -n 20")?
            );
        }
        std::thread::sleep(Duration::from_millis(500));
    };
    guest.exec_for("umount /mnt", patience(120))?.ok("umount")?;
    let fsck = guest
        .exec_for("e2fsck -fn /dev/sda", patience(180))
        .context("e2fsck")?;
    let kernel = kernel_log(&guest.must("dmesg")?);
    step.done();
    Ok(Account {
        report,
        kernel,
        fsck_clean: fsck.status == 0,
        fsck: fsck.stdout,
    })
}
