// SPDX-License-Identifier: GPL-3.0-or-later
//! Devices that are pulled out of an exporter machine and plugged into another of its ports or another
//! machine, or whose machine is switched off and on again: they come back to the same ports of the guest,
//! as `--on-exchange` says, also when it was migrated meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::Serialize;

use super::Options;
use crate::agent::Agent;
use crate::bench::{self, Bench, Kind, Plugged, User, job};
use crate::disk::{self, Frontend};
use crate::guest;
use crate::lab::Lab;
use crate::machine::{Machine, SPARE};
use crate::progress::{Step, patience};
use crate::stack;

/// How long a host may take to notice.
const PATIENCE: Duration = patience(60);

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
    /// What `--on-exchange` says of it.
    on: &'static str,
    user: User,
    /// What the guest calls it: another number says that it saw another device.
    guests: String,
}

/// Where a device comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Way {
    /// Another port of the same machine.
    Port,
    /// Another machine.
    Exporter,
    /// Another machine, and the guest is on another host.
    ExporterAndHost,
    /// The same port: the machine was off.
    Reboot,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Port => "another port",
            Self::Exporter => "another exporter",
            Self::ExporterAndHost => "another exporter, guest migrated",
            Self::Reboot => "exporter rebooted",
        }
    }
}

#[derive(Serialize)]
struct Row {
    device: &'static str,
    on: &'static str,
    way: Way,
    /// From when it was plugged in until it had done its job, in which `received` arrived.
    back_s: f64,
    received: u64,
    /// What the guest saw of it.
    reconnected: bool,
}

/// Run the scenario.
pub fn run(lab: &Lab, options: &Options) -> Result<()> {
    lab.fresh(options.guest.hypervisor(true))?;
    lab.up(&[SPARE.name], None)?;
    let machines: Vec<Machine> = Machine::all().collect();
    stack::deploy_to(lab, &machines, &machines)?;
    let rows = stack::with_logs(lab, 25, attempt(lab, options))?;
    if options.json {
        println!(
            "{}",
            serde_json::json!({ "scenario": "exchange", "result": "ok", "exchanges": rows })
        );
    } else {
        println!(
            "device       on exchange  came back                         guest saw  after s  arrived"
        );
        for row in &rows {
            println!(
                "{:<11}  {:<11}  {:<32}  {:<9}  {:>7.1}  {:>7}",
                row.device,
                row.on,
                row.way.name(),
                if row.reconnected {
                    "a replug"
                } else {
                    "a pause"
                },
                row.back_s,
                row.received
            );
        }
        let count = |ways: &[Way]| rows.iter().filter(|row| ways.contains(&row.way)).count();
        println!(
            "RESULT ok exchanges={} other_exporter={} while_migrated={} exporter_rebooted={}",
            rows.len(),
            count(&[Way::Exporter, Way::ExporterAndHost]),
            count(&[Way::ExporterAndHost]),
            count(&[Way::Reboot]),
        );
    }
    guest::destroy(lab)
}

fn attempt(lab: &Lab, options: &Options) -> Result<Vec<Row>> {
    let bench = Bench::open(lab)?;
    let other = Bench::open_on(lab, SPARE)?;
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
            on,
            user,
        });
    }
    xl_lists_the_controller(lab)?;
    step.done();
    let mut rows = Vec::new();
    for (one, (kind, on, ports)) in devices.iter_mut().zip(DEVICES) {
        let step = Step::start(format!("{} into another port ({on})", kind.name()));
        bench.pull(&one.plugged)?;
        is_away(lab, "host-a", one)?;
        let plugged = bench.plug_again(kind, ports[0], None)?;
        rows.push(returns((lab, "host-a"), &bench, one, plugged, Way::Port)?);
        step.done();
    }
    for (one, (kind, on, _)) in devices.iter_mut().zip(DEVICES) {
        let step = Step::start(format!("{} into another exporter ({on})", kind.name()));
        bench.pull(&one.plugged)?;
        is_away(lab, "host-a", one)?;
        let contents = bench.contents(kind)?;
        let plugged = other.plug_moved(kind, contents.as_deref())?;
        rows.push(returns(
            (lab, "host-a"),
            &other,
            one,
            plugged,
            Way::Exporter,
        )?);
        step.done();
    }
    let step = Step::start("migration with all of them away");
    for one in &devices {
        other.pull(&one.plugged)?;
        is_away(lab, "host-a", one)?;
    }
    let guest = migrate(lab)?;
    step.done();
    for (one, (kind, on, ports)) in devices.iter_mut().zip(DEVICES) {
        let step = Step::start(format!("{} comes back to host-b ({on})", kind.name()));
        one.user.agent = guest.clone();
        is_away(lab, "host-b", one)?;
        let contents = other.contents(kind)?;
        let plugged = bench.plug_again(kind, ports[1], contents.as_deref())?;
        rows.push(returns(
            (lab, "host-b"),
            &bench,
            one,
            plugged,
            Way::ExporterAndHost,
        )?);
        step.done();
    }
    let disks: Vec<_> = DEVICES
        .iter()
        .map(|(kind, ..)| bench.contents(*kind))
        .collect::<Result<_>>()?;
    let bench = reboot(lab)?;
    for ((one, contents), (kind, on, _)) in devices.iter_mut().zip(disks).zip(DEVICES) {
        let step = Step::start(format!("{} is there again ({on})", kind.name()));
        is_away(lab, "host-b", one)?;
        let plugged = bench.plug_moved(kind, contents.as_deref())?;
        rows.push(returns((lab, "host-b"), &bench, one, plugged, Way::Reboot)?);
        step.done();
    }
    guest::healthy(&guest)?;
    Ok(rows)
}

/// The guest goes to host-b.
fn migrate(lab: &Lab) -> Result<Agent> {
    let (output, _) = guest::migrate(lab, "host-a", "host-b")?;
    if output.status != 0 {
        bail!(
            "xl migrate: exit status {}\n{}",
            output.status,
            output.stdout
        );
    }
    let guest = guest::agent_through(lab, "host-b")?;
    guest.wait_ready(patience(120))?;
    Ok(guest)
}

fn reboot(lab: &Lab) -> Result<Bench> {
    let step = Step::start("exporter off and on again");
    stack::reboot_exporter(lab, &Machine::all().collect::<Vec<_>>())?;
    step.done();
    Bench::open(lab)
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
fn is_away(lab: &Lab, host: &str, one: &One) -> Result<()> {
    let wanted = ["absent", if one.on == "pause" { "there" } else { "gone" }];
    let start = Instant::now();
    loop {
        let phase = phase(lab, host, one)?;
        let seen = if has(&one.user.agent, &one.user.device)? {
            "there"
        } else {
            "gone"
        };
        if [phase.as_str(), seen] == wanted {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            bail!(
                "{}, pulled out: phase {phase}, to the guest {seen}; expected {wanted:?}",
                one.plugged.kind.name()
            );
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// The host has it again: a guest that is to see only a pause does not say so.
fn is_back(lab: &Lab, host: &str, one: &One) -> Result<()> {
    let start = Instant::now();
    while phase(lab, host, one)? != "serving" {
        if start.elapsed() > PATIENCE {
            bail!(
                "{}, plugged in again: phase {}",
                one.plugged.kind.name(),
                phase(lab, host, one)?
            );
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    Ok(())
}

/// The attachment's, as the host lists it.
fn phase(lab: &Lab, host: &str, one: &One) -> Result<String> {
    let (_, port) = one.user.plug;
    let list = stack::xl_vusb(lab, host, "list")?;
    let phase = list["attachments"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|attachment| attachment["port"] == port)
        .and_then(|attachment| attachment["phase"].as_str())
        .unwrap_or("none");
    Ok(phase.to_owned())
}

fn has(guest: &Agent, device: &str) -> Result<bool> {
    let found = guest.exec(&format!("test -e /sys/bus/usb/devices/{device}"))?;
    Ok(found.status == 0)
}

/// Plugged in there it is back, and does its job.
fn returns(
    (lab, host): (&Lab, &str),
    bench: &Bench,
    one: &mut One,
    plugged: Plugged,
    way: Way,
) -> Result<Row> {
    one.plugged = plugged;
    let start = Instant::now();
    is_back(lab, host, one)?;
    one.user.wait_configured()?;
    let received = work(bench, &one.plugged, &one.user)?;
    let back = start.elapsed();
    let now = number(&one.user)?;
    let reconnected = now != one.guests;
    one.guests = now;
    if reconnected != (one.on == "replug") {
        bail!(
            "{} came back and the guest {} another device",
            one.plugged.kind.name(),
            if reconnected { "sees" } else { "does not see" }
        );
    }
    Ok(Row {
        device: one.plugged.kind.name(),
        on: one.on,
        way,
        back_s: back.as_secs_f64(),
        received,
        reconnected,
    })
}
