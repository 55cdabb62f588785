// SPDX-License-Identifier: GPL-3.0-or-later
//! Devices of one guest that answer late or never, beside a disk and a keyboard of two other guests, at the
//! same exporter, in constant use: no operation of these may wait for those.
//!
//! The devices are simulated (`usbip-sim`) and on a bus of the exporter's kernel (`vhci_hcd`), so that the kernel's
//! calls for them take as long as for real ones. A slow reset is imitated by a GET_DESCRIPTOR that is answered late: the
//! bus itself resets at once, but the kernel reads the descriptors after it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::Options;
use crate::agent::Agent;
use crate::bench::{self, Bench, Kind, Plugged, Typist, User};
use crate::disk::{self, Frontend};
use crate::guest::{self, Domain, NEIGHBOURS};
use crate::lab::Lab;
use crate::machine::Machine;
use crate::measure::kernel_log;
use crate::progress::{Step, patience};
use crate::pulse::{Phase, Pulse};
use crate::stack;

const HOST: &str = "host-a";
const MACHINES: [&str; 2] = [HOST, "exporter"];

/// How long the exporter has to give back a device that answers nothing, after its guest was told that it is
/// detached.
const GIVING_BACK: Duration = Duration::from_secs(15);
/// How long a guest waits before it takes an operation back: longer than one that is answered late takes.
const PATIENCE_MS: u64 = 12_000;
/// What took less was no stuck operation, and proves nothing.
const STUCK_MS: u64 = 4_000;
/// How much longer than without stuck devices an operation of a neighbour may take.
const BOUND_MS: f64 = 1_000.0;
/// Between two keys. The emulated keyboard keeps 16 events, of which a key is two.
const KEYS: Duration = Duration::from_millis(300);
/// How long the neighbours are measured without a stuck device.
const UNDISTURBED: Duration = Duration::from_secs(60);
/// For operations that waited to end, and be counted, in the phase that they waited in.
const SETTLE: Duration = Duration::from_secs(2);

const QUIET: &str = "undisturbed";
/// Reports of the neighbours' programs.
const DISK_REPORT: &str = "disk-pulse";
const KEY_REPORT: &str = "key-pulse";

/// What is done with a device that is stuck.
struct Case {
    kind: Kind,
    /// What `lab-usb stuck` does, and `usbip-sim` holds; `detach` is the administrator's.
    operation: &'static str,
    held: &'static str,
    delay: &'static str,
}

const fn slow(operation: &'static str, held: &'static str, delay: &'static str) -> Case {
    Case {
        kind: Kind::SlowSourceSink,
        operation,
        held,
        delay,
    }
}

const fn silent(operation: &'static str) -> Case {
    Case {
        kind: Kind::SilentSourceSink,
        operation,
        held: "everything",
        delay: "never",
    }
}

/// A kernel gives a descriptor 5 s, and a device up after a few: the reset's answers come just before that. The reset
/// that is never answered is the end of its device.
const CASES: &[Case] = &[
    slow("set-interface", "set-interface", "5000"),
    slow("clear-halt", "clear-halt", "5000"),
    slow("set-configuration", "set-configuration", "5000"),
    slow("reset", "get-descriptor", "4500"),
    slow("set-interface", "set-interface", "never"),
    slow("clear-halt", "clear-halt", "never"),
    slow("set-configuration", "set-configuration", "never"),
    silent("everything"),
    slow("reset", "get-descriptor", "never"),
    silent("detach"),
];

impl Case {
    fn name(&self) -> String {
        format!("{} {}", self.operation, self.delay)
    }
}

/// What `lab-usb stuck` says.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Stuck {
    ms: u64,
    errno: i32,
    beside: u64,
    /// Why the operation proves nothing.
    #[serde(default)]
    error: Option<String>,
}

#[derive(Serialize)]
struct Row {
    case: String,
    stuck: Stuck,
    disk: Phase,
    keyboard: Phase,
}

/// The two guests beside the one with the stuck devices.
struct Neighbours {
    disk: User,
    keyboard: User,
    typist: Typist,
}

/// Run the scenario.
pub fn run(lab: &Lab, options: &Options) -> Result<()> {
    // Nothing is migrated: the other host would only take processor time from these.
    lab.fresh_some(&MACHINES, options.guest.hypervisor(false))?;
    let machines = MACHINES.map(Machine::named);
    let machines = machines.into_iter().collect::<Result<Vec<_>>>()?;
    stack::deploy_to(lab, &machines, &machines)?;
    stack::with_logs(lab, 15, attempt(lab, options))?;
    guest::destroy_neighbours(lab, HOST)?;
    guest::destroy(lab)
}

fn attempt(lab: &Lab, options: &Options) -> Result<()> {
    let bench = Bench::open(lab)?;
    let [disks, keys] = NEIGHBOURS;
    let disk = neighbour(lab, &bench, options, &disks, Kind::Stick)?;
    let keyboard = neighbour(lab, &bench, options, &keys, Kind::Keyboard)?;
    let step = Step::start("guest with devices that get stuck");
    let agent = guest::create_as(lab, HOST, true, options.guest)?;
    disk::load_frontend(lab, &agent, options.guest, Frontend::Ours)?;
    bench::install(&agent)?;
    // The program is the device's driver.
    agent.must("rmmod usbtest")?;
    let slow = plug(lab, &bench, &agent, Kind::SlowSourceSink)?;
    let silent = plug(lab, &bench, &agent, Kind::SilentSourceSink)?;
    step.done();

    let neighbours = Neighbours::start(&bench, disk, keyboard)?;
    let step = Step::start("the neighbours without a stuck device");
    neighbours.enter(QUIET)?;
    std::thread::sleep(UNDISTURBED);
    step.done();
    let mut stuck = Vec::new();
    for case in CASES {
        let step = Step::start(format!("{} of the {}", case.name(), case.kind.name()));
        let user = match case.kind {
            Kind::SilentSourceSink => &silent,
            _ => &slow,
        };
        neighbours.enter(&case.name())?;
        // What the neighbours saw is to be known also where the device did not do its part.
        let outcome = one(lab, &bench, user, case).unwrap_or_else(|error| Stuck {
            error: Some(format!("{error:#}")),
            ..Stuck::default()
        });
        std::thread::sleep(SETTLE);
        step.done_with(&match &outcome.error {
            Some(error) => error.clone(),
            None => format!("{} ms, errno {}", outcome.ms, outcome.errno),
        });
        stuck.push((case, outcome));
    }
    let account = neighbours.finish()?;
    account.print(stuck, options.json)?;
    guest::healthy(&agent)
}

/// A guest with one device.
fn neighbour(
    lab: &Lab,
    bench: &Bench,
    options: &Options,
    domain: &Domain,
    kind: Kind,
) -> Result<User> {
    let step = Step::start(format!("{} with a {}", domain.name, kind.name()));
    let agent = guest::create_domain(lab, HOST, domain, 1, options.guest)?;
    disk::load_frontend(lab, &agent, options.guest, Frontend::Ours)?;
    bench::install(&agent)?;
    let plugged = bench.plug(lab, kind)?;
    let user = bench::attach_domain(lab, HOST, domain.name, &agent, &plugged.device(), 0, "")?;
    step.done();
    Ok(user)
}

fn plug(lab: &Lab, bench: &Bench, agent: &Agent, kind: Kind) -> Result<User> {
    let plugged: Plugged = bench.plug(lab, kind)?;
    bench::attach(lab, HOST, agent, &plugged)
}

fn one(lab: &Lab, bench: &Bench, user: &User, case: &Case) -> Result<Stuck> {
    bench.hold(case.kind, case.held, case.delay)?;
    let outcome = match case.operation {
        "detach" => {
            let start = std::time::Instant::now();
            bench::detach(lab, HOST, user)?;
            // The administrator has the answer at once; the exporter gives the device back meanwhile.
            let ms = start.elapsed().as_millis() as u64;
            std::thread::sleep(GIVING_BACK);
            return Ok(Stuck {
                ms,
                ..Stuck::default()
            });
        }
        operation => stuck(user, operation),
    };
    // A device that is gone is not told anything.
    if case.delay != "never" || case.operation != "reset" {
        let next = if case.held == "everything" {
            "never"
        } else {
            "off"
        };
        bench.hold(case.kind, case.held, next)?;
    }
    let outcome = outcome.with_context(|| case.name())?;
    if outcome.ms < STUCK_MS {
        bail!(
            "{} was not stuck: over after {} ms with error {}",
            case.name(),
            outcome.ms,
            outcome.errno
        );
    }
    Ok(outcome)
}

fn stuck(user: &User, operation: &str) -> Result<Stuck> {
    let node = user.usbfs()?;
    let command = format!("lab-usb stuck {node} {operation} {PATIENCE_MS}");
    let output = user.agent.exec_for(&command, patience(180))?;
    let text = output.ok(&command)?;
    serde_json::from_str(&text).with_context(|| format!("{command}: {text:?}"))
}

impl Neighbours {
    fn start(bench: &Bench, disk: User, keyboard: User) -> Result<Self> {
        let node = disk.node("/dev", "sd?")?;
        disk.wait_for_medium(&node)?;
        let event = keyboard.node("/dev/input", "event*")?;
        for (user, command, report) in [
            (&disk, format!("disk-pulse {node}"), DISK_REPORT),
            (&keyboard, format!("key-pulse {event}"), KEY_REPORT),
        ] {
            let interval = if report == KEY_REPORT {
                KEYS.as_millis().to_string()
            } else {
                String::new()
            };
            user.background(
                &format!("lab-usb {command} /run/{report}.json {interval}"),
                report,
            )?;
            user.started(report)?;
        }
        let typist = bench.typist(KEYS);
        Ok(Self {
            disk,
            keyboard,
            typist,
        })
    }

    /// A phase begins.
    fn enter(&self, name: &str) -> Result<()> {
        for (user, report) in [(&self.disk, DISK_REPORT), (&self.keyboard, KEY_REPORT)] {
            user.agent
                .put(&format!("/run/{report}.json.phase"), 0o644, name.as_bytes())?;
        }
        // Until the programs have looked.
        std::thread::sleep(Duration::from_millis(500));
        Ok(())
    }

    fn finish(self) -> Result<Account> {
        let typed = self.typist.finish(true)?;
        std::thread::sleep(Duration::from_secs(3));
        let log = |user: &User| -> Result<u64> {
            guest::healthy(&user.agent)?;
            let log = kernel_log(&user.agent.must("dmesg")?);
            Ok((log.disconnects + log.resets + log.io_errors) as u64)
        };
        let disconnects = log(&self.disk)? + log(&self.keyboard)?;
        Ok(Account {
            disk: ended(&self.disk, DISK_REPORT)?,
            keyboard: ended(&self.keyboard, KEY_REPORT)?,
            typed,
            disconnects,
        })
    }
}

/// The last report of a neighbour's program.
fn ended(user: &User, report: &str) -> Result<Pulse> {
    let file = format!("/run/{report}.json");
    user.agent.must(&format!("touch {file}.stop"))?;
    for _ in 0..40 {
        std::thread::sleep(Duration::from_millis(500));
        let pulse: Pulse = serde_json::from_slice(&user.agent.get(&file)?)?;
        if pulse.finished {
            return Ok(pulse);
        }
    }
    bail!("{report} does not end on {}", user.agent.name)
}

/// What became of the neighbours.
struct Account {
    disk: Pulse,
    keyboard: Pulse,
    /// Keys.
    typed: u64,
    /// Disconnects, resets and I/O errors by their kernels' logs.
    disconnects: u64,
}

impl Account {
    fn print(&self, stuck: Vec<(&Case, Stuck)>, json: bool) -> Result<()> {
        let rows: Vec<Row> = stuck
            .into_iter()
            .map(|(case, stuck)| Row {
                case: case.name(),
                stuck,
                disk: self.disk.of(&case.name()),
                keyboard: self.keyboard.of(&case.name()),
            })
            .collect();
        let quiet = [self.disk.of(QUIET), self.keyboard.of(QUIET)];
        let worst =
            |of: fn(&Row) -> &Phase| rows.iter().map(|row| of(row).worst_ms).fold(0.0, f64::max);
        let worst = [worst(|row| &row.disk), worst(|row| &row.keyboard)];
        let ops: u64 = rows.iter().map(|row| row.disk.ops + row.keyboard.ops).sum();
        let keys: u64 = self.keyboard.phases.iter().map(|phase| phase.ops).sum();
        // The first key has none before it.
        let missing = self.typed.saturating_sub(keys + 1);
        let lost = self.disk.lost + missing.max(self.keyboard.lost);
        let errors = self.disk.error_count + self.keyboard.error_count;
        let in_time = (0..2).all(|at| worst[at] < quiet[at].worst_ms + BOUND_MS);
        let used = quiet.iter().all(|phase| phase.ops > 20)
            && rows
                .iter()
                .all(|row| row.disk.ops > 0 && row.keyboard.ops > 0);
        let all_stuck = rows.iter().all(|row| row.stuck.error.is_none());
        let ok = all_stuck && in_time && used && lost == 0 && errors == 0 && self.disconnects == 0;
        let result = if ok { "ok" } else { "failed" };
        let fields = format!(
            "stuck={} neighbour_ops={ops} neighbour_worst_ms={:.0} neighbour_lost={lost} disconnects={} \
             disk_worst_ms={:.0} disk_undisturbed_ms={:.0} keyboard_worst_ms={:.0} keyboard_undisturbed_ms={:.0} \
             errors={errors}",
            rows.iter().filter(|row| row.stuck.error.is_none()).count(),
            worst[0].max(worst[1]),
            self.disconnects,
            worst[0],
            quiet[0].worst_ms,
            worst[1],
            quiet[1].worst_ms,
        );
        if json {
            println!(
                "{}",
                serde_json::json!({ "scenario": "stuck-device", "result": result, "undisturbed": quiet,
                    "cases": rows, "lost": lost, "disconnects": self.disconnects, "errors": errors })
            );
        } else {
            println!(
                "operation                stuck ms  errno  beside  disk ops  worst ms  keys  worst ms"
            );
            let line = |name: &str, stuck: &Stuck, disk: &Phase, keys: &Phase| {
                println!(
                    "{name:<23}  {:>8}  {:>5}  {:>6}  {:>8}  {:>8.0}  {:>4}  {:>8.0}",
                    stuck.ms,
                    stuck.errno,
                    stuck.beside,
                    disk.ops,
                    disk.worst_ms,
                    keys.ops,
                    keys.worst_ms
                );
            };
            line(QUIET, &Stuck::default(), &quiet[0], &quiet[1]);
            for row in &rows {
                line(&row.case, &row.stuck, &row.disk, &row.keyboard);
            }
            for row in &rows {
                if let Some(error) = &row.stuck.error {
                    println!("{}: {error}", row.case);
                }
            }
            for error in self.disk.errors.iter().chain(&self.keyboard.errors) {
                println!("a neighbour's error: {error}");
            }
            println!("RESULT {result} {fields}");
        }
        if !ok {
            bail!("a neighbour noticed the stuck devices, or one was not stuck: {fields}");
        }
        Ok(())
    }
}
