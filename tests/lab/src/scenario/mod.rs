// SPDX-License-Identifier: GPL-3.0-or-later
//! What the lab proves.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::bench::Kind;
use crate::guest::Setup;
use crate::lab::Lab;

pub mod all;
pub mod bench;
pub mod chaos;
pub mod debug_kernel;
pub mod devices;
pub mod disk_migrate;
pub mod dkms;
pub mod exchange;
pub mod hvm;
pub mod interrupt;
pub mod kernels;
pub mod migrate_all;
pub mod plain_migrate;
pub mod pvh;
pub mod save_restore;
pub mod soak;
pub mod stock_refuse;
pub mod stock_replug;
pub mod stuck_device;
pub mod toolstacks;
pub mod usbtest;

/// How a scenario is run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Print the result as one JSON object.
    pub json: bool,
    /// Number of live migrations; each scenario has its usual one.
    pub migrations: Option<u32>,
    /// How long `chaos` injects faults, in minutes.
    pub minutes: Option<u32>,
    /// Which of its schedules.
    pub seed: Option<u64>,
    /// The log that `soak` adds to; a file of the cache where it is not said.
    pub log: Option<PathBuf>,
    /// Only these devices of the scenario's; none: all.
    pub devices: Vec<Kind>,
    /// Only these parts of `debug-kernel`; none: all.
    pub parts: Vec<debug_kernel::Part>,
    /// The guest, where the scenario does not choose it.
    pub guest: Setup,
}

impl Options {
    /// The number of migrations, `usual` where none was asked for.
    pub fn migrations_or(&self, usual: u32) -> u32 {
        self.migrations.unwrap_or(usual)
    }

    /// Those of a scenario's `usual` devices that are wanted.
    pub fn devices_of(&self, usual: &[Kind]) -> Vec<Kind> {
        let wanted = |kind: &Kind| self.devices.is_empty() || self.devices.contains(kind);
        usual.iter().copied().filter(wanted).collect()
    }
}

/// A scenario.
pub struct Scenario {
    /// Its name.
    pub name: &'static str,
    /// What it proves.
    pub purpose: &'static str,
    /// `all` runs it.
    in_all: bool,
    run: fn(&Lab, &Options) -> Result<()>,
}

/// Every scenario, in the order in which `all` runs them.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "bench",
        purpose: "the exporter machine uses each of its own devices, without Xen",
        in_all: true,
        run: bench::run,
    },
    Scenario {
        name: "plain-migrate",
        purpose: "a guest without USB is migrated there and back; its pause",
        in_all: true,
        run: plain_migrate::run,
    },
    Scenario {
        name: "disk-migrate",
        purpose: "a remote stick, written without pause, stays through live migrations",
        in_all: true,
        run: disk_migrate::run,
    },
    Scenario {
        name: "stock-refuse",
        purpose: "a stock guest with a mounted stick: the migration is refused, I/O goes on",
        in_all: true,
        run: stock_refuse::run,
    },
    Scenario {
        name: "usbtest",
        purpose: "the kernel's usbtest driver in the guest, on a gadget and a simulated device",
        in_all: true,
        run: usbtest::run,
    },
    Scenario {
        name: "devices",
        purpose: "each kind of device does its job in the guest with its stock class driver",
        in_all: true,
        run: devices::run,
    },
    Scenario {
        name: "stuck-device",
        purpose: "devices that answer late or never delay no other guest's disk or keyboard",
        in_all: true,
        run: stuck_device::run,
    },
    Scenario {
        name: "stock-replug",
        purpose: "keyboard, serial adapter and headset come back to a stock guest",
        in_all: true,
        run: stock_replug::run,
    },
    Scenario {
        name: "migrate-all",
        purpose: "every kind of device, all busy, stays through live migrations",
        in_all: true,
        run: migrate_all::run,
    },
    Scenario {
        name: "exchange",
        purpose: "devices pulled out and plugged in elsewhere come back to the guest's same ports",
        in_all: true,
        run: exchange::run,
    },
    Scenario {
        name: "save-restore",
        purpose: "a guest is saved and restored, here and elsewhere, with its stick in use",
        in_all: true,
        run: save_restore::run,
    },
    Scenario {
        name: "interrupt",
        purpose: "migrations broken off or robbed of their daemons half-way, and a host that loses power",
        in_all: true,
        run: interrupt::run,
    },
    Scenario {
        name: "chaos",
        purpose: "daemons killed, links cut, migrations, by a seeded schedule; stick, keyboard, serial in use",
        in_all: true,
        run: chaos::run,
    },
    Scenario {
        name: "kernels",
        purpose: "disk-migrate in guests with the kernels of Debian 12 and Debian 13",
        in_all: true,
        run: kernels::run,
    },
    Scenario {
        name: "pvh",
        purpose: "disk-migrate in a PVH guest",
        in_all: true,
        run: pvh::run,
    },
    Scenario {
        name: "hvm",
        purpose: "disk-migrate in an HVM guest",
        in_all: true,
        run: hvm::run,
    },
    Scenario {
        name: "toolstacks",
        purpose: "the stick stays with a guest that is migrated as xl, xenopsd and libvirt do",
        in_all: true,
        run: toolstacks::run,
    },
    Scenario {
        name: debug_kernel::NAME,
        purpose: "the guest's module in a kernel that looks for faults; a backend that misbehaves",
        in_all: false,
        run: debug_kernel::run,
    },
    Scenario {
        name: "dkms",
        purpose: "the module's Debian package installs with DKMS on three kernels; no machines",
        in_all: true,
        run: dkms::run,
    },
    Scenario {
        name: "soak",
        purpose: "very many migrations with the stick in use, each a line in a log that runs add to",
        in_all: false,
        run: soak::run,
    },
    Scenario {
        name: "all",
        purpose: "every scenario but soak, one after the other",
        in_all: false,
        run: all::run,
    },
];

/// Say that one could not be tried, and why, as the last line.
pub fn print_skipped(name: &str, reason: &str, json: bool) {
    if json {
        println!(
            "{}",
            serde_json::json!({ "scenario": name, "result": "skipped", "reason": reason })
        );
    } else {
        println!("RESULT skipped {reason}");
    }
}

/// Run one by name.
pub fn run(lab: &Lab, name: &str, options: &Options) -> Result<()> {
    let scenario = SCENARIOS
        .iter()
        .find(|scenario| scenario.name == name)
        .with_context(|| {
            let names: Vec<&str> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
            format!("no scenario {name:?}; there are {}", names.join(", "))
        })?;
    (scenario.run)(lab, options)
}
