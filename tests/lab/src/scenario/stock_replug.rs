// SPDX-License-Identifier: GPL-3.0-or-later
//! A stock guest, whose driver cannot resume, with a keyboard, a serial adapter and a headset in
//! use: every migration replugs them, they come back and work, nothing in the guest hangs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::Options;
use crate::agent::Agent;
use crate::bench::{self, Bench, Kind, Plugged, User, job};
use crate::disk::{self, Frontend};
use crate::guest;
use crate::lab::Lab;
use crate::progress::{Step, patience};
use crate::stack;

/// Its packets share 16 slots of the ring with the other two's transfers: fewer of them are on the way at a time, and
/// each has to last longer. Without it one of thousands was lost in the job of a guest that nobody migrated.
const HEADSET_SLOWER: u32 = 4;

const KINDS: [Kind; 3] = [Kind::Keyboard, Kind::Serial, Kind::Headset];

/// Seconds after which the guest's kernel calls a task hung: its usual 120 would be longer than
/// anything here takes.
const HUNG_S: u32 = 20;

/// Where the guest is saved to.
const FILE: &str = "/root/lab.save";
/// How often that is done after the migrations. Nobody says beforehand where it will be restored.
const SAVES: u32 = 2;

/// One migration, or one `xl save` and `xl restore`.
#[derive(Serialize)]
struct Round {
    what: &'static str,
    from: &'static str,
    to: &'static str,
    /// Of `xl`.
    wall_s: f64,
    /// From its end until every device did its job again.
    back_s: f64,
    /// What they did: device, sent, received.
    jobs: Vec<(&'static str, u64, u64)>,
}

/// Run the scenario.
pub fn run(lab: &Lab, options: &Options) -> Result<()> {
    options.guest.must_have_stock_driver()?;
    lab.fresh(options.guest.hypervisor(true))?;
    stack::deploy(lab)?;
    let count = options.migrations_or(10);
    let rounds = stack::with_logs(lab, 25, attempt(lab, options, count))?;
    if options.json {
        println!(
            "{}",
            serde_json::json!({ "scenario": "stock-replug", "result": "ok", "migrations": rounds })
        );
    } else {
        println!("                      wall s  back after s  jobs (sent/received)");
        for (number, round) in rounds.iter().enumerate() {
            let jobs: Vec<String> = round
                .jobs
                .iter()
                .map(|(device, sent, received)| format!("{device} {sent}/{received}"))
                .collect();
            println!(
                "{:<2} {:<9} {} -> {}  {:>5.1}  {:>12.1}  {}",
                number + 1,
                round.what,
                round.from,
                round.to,
                round.wall_s,
                round.back_s,
                jobs.join(", ")
            );
        }
        let devices = options.devices_of(&KINDS).len();
        let back = rounds.iter().map(|round| round.back_s).fold(0.0, f64::max);
        println!(
            "RESULT ok migrations={} saves={SAVES} devices={} came_back={} hung_tasks=0 console=ok back_s_max={back:.1}",
            rounds.len() - SAVES as usize,
            devices,
            rounds.len() * devices,
        );
    }
    guest::destroy(lab)
}

fn attempt(lab: &Lab, options: &Options, count: u32) -> Result<Vec<Round>> {
    let bench = Bench::open(lab)?.with_slower_headset(HEADSET_SLOWER);
    let step = Step::start("stock guest with three devices");
    let guest = guest::create_as(lab, "host-a", true, options.guest)?;
    disk::load_frontend(lab, &guest, options.guest, Frontend::Stock)?;
    bench::install(&guest)?;
    guest.must(&format!(
        "echo {HUNG_S} > /proc/sys/kernel/hung_task_timeout_secs"
    ))?;
    let mut devices = Vec::new();
    for kind in options.devices_of(&KINDS) {
        let plugged = bench.plug(lab, kind)?;
        let user = bench::attach(lab, "host-a", &guest, &plugged)?;
        devices.push((plugged, user));
    }
    for (plugged, user) in &devices {
        work(&bench, plugged, user)?;
    }
    step.done();
    let mut rounds = Vec::new();
    let (mut from, mut to) = ("host-a", "host-b");
    for number in 1..=count {
        let step = Step::start(format!("migration {number}/{count} {from} -> {to}"));
        for (plugged, user) in &devices {
            keep_busy(&bench, plugged, user)?;
        }
        let (output, wall) = guest::migrate(lab, from, to)?;
        if output.status != 0 {
            bail!(
                "xl migrate {from} -> {to}: exit status {}\n{}",
                output.status,
                output.stdout
            );
        }
        rounds.push(Round {
            what: "migration",
            from,
            to,
            wall_s: wall.as_secs_f64(),
            ..after(lab, &bench, to, &mut devices, rounds.len())?
        });
        step.done();
        (from, to) = (to, from);
    }
    for number in 1..=SAVES {
        let step = Step::start(format!("save and restore {number}/{SAVES} on {from}"));
        for (plugged, user) in &devices {
            keep_busy(&bench, plugged, user)?;
        }
        let save = guest::save(lab, from, FILE)?;
        let (_, restore) = guest::restore(lab, from, FILE)?;
        lab.agent(from)?.must(&format!("rm {FILE}"))?;
        rounds.push(Round {
            what: "save",
            from,
            to: from,
            wall_s: (save + restore).as_secs_f64(),
            ..after(lab, &bench, from, &mut devices, rounds.len())?
        });
        step.done();
    }
    // A task that hangs now is seen after its time.
    std::thread::sleep(Duration::from_secs(u64::from(HUNG_S) + 5));
    hung_tasks(&guest::agent_through(lab, from)?)?;
    Ok(rounds)
}

/// Everything is back on `host`, and works.
fn after(
    lab: &Lab,
    bench: &Bench,
    host: &'static str,
    devices: &mut [(Plugged, User)],
    number: usize,
) -> Result<Round> {
    let start = Instant::now();
    let guest = guest::agent_through(lab, host)?;
    guest.wait_ready(patience(120))?;
    let mut jobs = Vec::new();
    for (plugged, user) in devices {
        user.agent = guest.clone();
        jobs.push(
            came_back(bench, plugged, user)
                .with_context(|| format!("{} after round {}", plugged.kind.name(), number + 1))?,
        );
    }
    let back = start.elapsed();
    console(lab, host, &guest, number)?;
    hung_tasks(&guest)?;
    Ok(Round {
        what: "",
        from: host,
        to: host,
        wall_s: 0.0,
        back_s: back.as_secs_f64(),
        jobs,
    })
}

/// Something of the device is in flight when the guest is suspended; how that ends is up to the
/// driver.
fn keep_busy(bench: &Bench, plugged: &Plugged, user: &User) -> Result<()> {
    let command = match plugged.kind {
        Kind::Serial => format!(
            "lab-usb stream {} /run/busy-serial.json 100",
            user.node("/dev", "ttyUSB*")?
        ),
        Kind::Headset => format!(
            "lab-usb record {} /run/busy-headset.json {}",
            user.node("/dev/snd", "pcmC*c")?,
            bench.headset_buffer_ms()
        ),
        _ => format!(
            "lab-usb keys {} /run/busy-keyboard.json",
            user.node("/dev/input", "event*")?
        ),
    };
    user.agent
        .must(&format!("setsid {command} </dev/null >/dev/null 2>&1 &"))?;
    Ok(())
}

fn work(bench: &Bench, plugged: &Plugged, user: &User) -> Result<(&'static str, u64, u64)> {
    let (what, score) = job::once(bench, plugged, user)?;
    if !score.perfect() {
        bail!("{}: {what}: {score:?}", plugged.kind.name());
    }
    Ok((plugged.kind.name(), score.sent, score.received))
}

/// The device is plugged in again, and does its job.
fn came_back(bench: &Bench, plugged: &Plugged, user: &User) -> Result<(&'static str, u64, u64)> {
    // Whoever had it open has heard that it went away, or is told now that it may go.
    user.agent.must(
        "for name in serial headset keyboard; do touch /run/busy-$name.json.stop; done; \
         for i in 1 2 3 4 5 6 7 8 9 10; do pidof lab-usb >/dev/null || exit 0; sleep 1; done; true",
    )?;
    user.wait_configured()?;
    work(bench, plugged, user)
}

/// A line that the guest writes to its console arrives in dom0.
fn console(lab: &Lab, host: &str, guest: &Agent, number: usize) -> Result<()> {
    let mark = format!("stock-replug-console-{number}");
    guest.must(&format!("echo {mark} > /dev/hvc0"))?;
    let dom0 = lab.agent(host)?;
    let start = Instant::now();
    while dom0
        .exec(&format!(
            "grep -q {mark} /var/log/xen/console/guest-{}*.log",
            guest::NAME
        ))?
        .status
        != 0
    {
        if start.elapsed() > patience(20) {
            bail!("the guest's console is dead after round {}", number + 1);
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

/// Fail when the guest's kernel found a task that hangs, or worse.
fn hung_tasks(guest: &Agent) -> Result<()> {
    let log = guest.must("dmesg")?;
    if let Some(line) = log
        .lines()
        .find(|line| line.contains("blocked for more than"))
    {
        bail!("the guest's kernel says: {line}");
    }
    guest::healthy(guest)
}
