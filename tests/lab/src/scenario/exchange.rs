// SPDX-License-Identifier: GPL-3.0-or-later
//! Devices that are pulled out of the exporter machine and plugged into another of its ports: they
//! come back to the same ports of the guest, as `--on-exchange` says, also when it was migrated meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Serialize;

use super::Options;
use crate::agent::Agent;
use crate::bench::job::{self, User};
use crate::bench::{self, Bench, Kind, Plugged};
use crate::disk::{self, Frontend};
use crate::guest;
use crate::lab::Lab;
use crate::progress::Step;
use crate::stack;

/// Devices, what `--on-exchange` says of each, and the ports that they are moved to and from.
const DEVICES: [(Kind, &str, [&str; 2]); 3] = [
    (Kind::Keyboard, "pause", ["2", "1"]),
    (Kind::SuperStick, "pause", ["7", "6"]),
    (Kind::Serial, "replug", ["2", "1"]),
];

/// For how long a device may be away: a migration takes less than that.
const SECONDS: u32 = 600;

/// A device with its user.
struct One {
    plugged: Plugged,
    user: User,
    /// What the guest calls it: another number says that it saw another device.
    guests: String,
}

#[derive(Serialize)]
struct Row {
    device: &'static str,
    on: &'static str,
    /// Whether the guest was migrated while the device was away.
    migrated: bool,
    /// From when it was plugged in until it had done its job, in which `received` arrived.
    back_s: f64,
    received: u64,
    /// What the guest saw of it.
    reconnected: bool,
}

/// Run the scenario.
pub fn run(lab: &Lab, options: &Options) -> Result<()> {
    lab.fresh()?;
    stack::deploy(lab)?;
    let rows = stack::with_logs(lab, 25, attempt(lab, options))?;
    if options.json {
        println!(
            "{}",
            serde_json::json!({ "scenario": "exchange", "result": "ok", "exchanges": rows })
        );
    } else {
        println!("device       on exchange  migrated  guest saw  back after s  arrived");
        for row in &rows {
            println!(
                "{:<11}  {:<11}  {:<8}  {:<9}  {:>12.1}  {:>7}",
                row.device,
                row.on,
                if row.migrated { "yes" } else { "no" },
                if row.reconnected {
                    "a replug"
                } else {
                    "a pause"
                },
                row.back_s,
                row.received
            );
        }
        let migrated = rows.iter().filter(|row| row.migrated).count();
        println!(
            "RESULT ok exchanges={} while_migrated={migrated}",
            rows.len()
        );
    }
    guest::destroy(lab)
}

fn attempt(lab: &Lab, options: &Options) -> Result<Vec<Row>> {
    let bench = Bench::open(lab)?;
    let step = Step::start("guest with devices that are followed");
    let guest = guest::create_as(lab, "host-a", true, options.guest)?;
    disk::load_frontend(lab, &guest, options.guest, Frontend::Ours)?;
    bench::install(&guest)?;
    let mut devices = Vec::new();
    for (kind, on, _) in DEVICES {
        let plugged = bench.plug(lab, kind)?;
        let user = bench::attach_as(
            lab,
            "host-a",
            &guest,
            &plugged.identity(&bench)?,
            0,
            &format!("--on-exchange {on} --exchange-seconds {SECONDS}"),
        )?;
        work(&bench, &plugged, &user)?;
        devices.push(One {
            guests: number(&user)?,
            plugged,
            user,
        });
    }
    xl_lists_the_controller(lab)?;
    step.done();
    let mut rows = Vec::new();
    // All stay on host-a; then all are away while the guest goes to host-b.
    for (one, (_, on, ports)) in devices.iter_mut().zip(DEVICES) {
        let step = Step::start(format!("{} exchanged ({on})", one.plugged.kind.name()));
        bench.pull(&one.plugged)?;
        is_away(lab, "host-a", one, on)?;
        rows.push(returns(&bench, one, on, ports[0], false)?);
        step.done();
    }
    let step = Step::start("migration with all of them away");
    for (one, (_, on, _)) in devices.iter().zip(DEVICES) {
        bench.pull(&one.plugged)?;
        is_away(lab, "host-a", one, on)?;
    }
    let (output, _) = guest::migrate(lab, "host-a", "host-b")?;
    if output.status != 0 {
        bail!(
            "xl migrate: exit status {}\n{}",
            output.status,
            output.stdout
        );
    }
    let guest = guest::agent_through(lab, "host-b")?;
    guest.wait_ready(Duration::from_secs(120))?;
    step.done();
    for (one, (_, on, ports)) in devices.iter_mut().zip(DEVICES) {
        let step = Step::start(format!(
            "{} comes back to host-b ({on})",
            one.plugged.kind.name()
        ));
        one.user.agent = guest.clone();
        is_away(lab, "host-b", one, on)?;
        rows.push(returns(&bench, one, on, ports[1], true)?);
        step.done();
    }
    guest::healthy(&guest)?;
    Ok(rows)
}

/// `xl usb-list` goes on working beside devices that `xl` knows nothing of.
fn xl_lists_the_controller(lab: &Lab) -> Result<()> {
    let list = lab
        .agent("host-a")?
        .must(&format!("xl usb-list {}", guest::NAME))?;
    // Columns: Devid, Type, BE, state (4: connected), usb-ver, ports.
    let connected = list.lines().any(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        matches!(columns[..], ["0", _, "0", "4", "2", _])
    });
    if !connected {
        bail!("xl usb-list {}:\n{list}", guest::NAME);
    }
    Ok(())
}

/// The number that the guest has given the device.
fn number(user: &User) -> Result<String> {
    user.agent
        .must(&format!("cat /sys/bus/usb/devices/{}/devnum", user.device))
}

fn work(bench: &Bench, plugged: &Plugged, user: &User) -> Result<u64> {
    let (what, score) = job::once(bench, plugged, user)?;
    if !score.perfect() {
        bail!("{}: {what}: {score:?}", plugged.kind.name());
    }
    Ok(score.received)
}

/// The host lists the device as waiting, and the guest sees what it is to see.
fn is_away(lab: &Lab, host: &str, one: &One, on: &str) -> Result<()> {
    let (_, port) = one.user.plug;
    let wanted = ["absent", if on == "pause" { "there" } else { "gone" }];
    let start = Instant::now();
    loop {
        let list = stack::xl_vusb(lab, host, "list")?;
        let phase = list["attachments"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|attachment| attachment["port"] == port)
            .and_then(|attachment| attachment["phase"].as_str())
            .unwrap_or("none")
            .to_owned();
        let seen = if has(&one.user.agent, &one.user.device)? {
            "there"
        } else {
            "gone"
        };
        if [phase.as_str(), seen] == wanted {
            return Ok(());
        }
        if start.elapsed() > Duration::from_secs(60) {
            bail!(
                "{}, pulled out: phase {phase}, to the guest {seen}; expected {wanted:?}",
                one.plugged.kind.name()
            );
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn has(guest: &Agent, device: &str) -> Result<bool> {
    let found = guest.exec(&format!("test -e /sys/bus/usb/devices/{device}"))?;
    Ok(found.status == 0)
}

/// Plugged into that port it is back, and does its job.
fn returns(
    bench: &Bench,
    one: &mut One,
    on: &'static str,
    port: &str,
    migrated: bool,
) -> Result<Row> {
    one.plugged = bench.plug_again(one.plugged.kind, port)?;
    let start = Instant::now();
    one.user.wait_configured()?;
    let received = work(bench, &one.plugged, &one.user)?;
    let back = start.elapsed();
    let now = number(&one.user)?;
    let reconnected = now != one.guests;
    one.guests = now;
    if reconnected != (on == "replug") {
        bail!(
            "{} came back and the guest {} another device",
            one.plugged.kind.name(),
            if reconnected { "sees" } else { "does not see" }
        );
    }
    Ok(Row {
        device: one.plugged.kind.name(),
        on,
        migrated,
        back_s: back.as_secs_f64(),
        received,
        reconnected,
    })
}
