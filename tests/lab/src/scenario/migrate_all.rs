// SPDX-License-Identifier: GPL-3.0-or-later
//! Every kind of device attached to one guest with our module, each kept busy, through live
//! migrations.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;

use super::Options;
use crate::bench::hops::{Hops, Passage};
use crate::bench::job::{Job, Score};
use crate::bench::{self, Bench, Kind, Plugged, User};
use crate::disk::{self, Frontend};
use crate::guest;
use crate::lab::Lab;
use crate::measure::{self, Migration, start_ticker};
use crate::progress::{Step, patience};
use crate::stack;
use crate::workload::Report;

/// Blocks of each disk's file, and milliseconds that a writer pauses between two batches of four: five
/// of them share one emulated processor with everything else. A batch takes some seconds here.
const FILE_BLOCKS: u32 = 64;
const PAUSE_MS: u32 = 200;

/// A controller's ring has 16 slots, and a transfer that waits for its device has one for as long.
const CONTROLLERS: usize = 4;

/// The controller that a device is attached to.
fn controller(kind: Kind) -> usize {
    match kind {
        // Up to 15 transfers on the way, all the time.
        Kind::Headset => 0,
        Kind::Speaker | Kind::Keyboard | Kind::Tablet | Kind::HidGadget => 1,
        Kind::Serial | Kind::AcmGadget | Kind::PrinterGadget | Kind::Reader => 2,
        _ => 3,
    }
}

/// How often each of them is used. A key is two reports, a report a round trip, and fourteen busy devices
/// make that most of a second here; what is typed faster than it is fetched overflows in the keyboard (which
/// is counted apart), and what is typed in a long pause in what an exporter keeps. With fewer devices the
/// pace is quicker.
const EVERY_MS: usize = 2000;

/// A round trip takes that much longer beside the others: it is to be again shorter than what the audio driver
/// has in flight, 12 packets. At 5 that was 3 seconds, which the slowest of thousands exceeded: in ten migrations
/// one packet was lost, twice.
const HEADSET_SLOWER: u32 = 10;

/// A device with what keeps it busy.
struct Busy {
    plugged: Plugged,
    user: User,
    /// None for a disk, which has a file system and a writer.
    job: Option<Job>,
}

#[derive(Serialize)]
struct Line {
    device: &'static str,
    good: bool,
    score: Score,
    disconnects: usize,
    /// What passed on both buses, where that was counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    passage: Option<Passage>,
}

impl Line {
    /// Of a device that never got to work.
    fn failed(kind: Kind, error: &anyhow::Error) -> Self {
        Self {
            device: kind.name(),
            good: false,
            score: Score {
                errors: vec![format!("{error:#}")],
                ..Score::default()
            },
            disconnects: 0,
            passage: None,
        }
    }
}

/// Run the scenario.
pub fn run(lab: &Lab, options: &Options) -> Result<()> {
    lab.fresh(options.guest.hypervisor(true))?;
    stack::deploy(lab)?;
    let count = options.migrations_or(10);
    let (migrations, lines) = stack::with_logs(lab, 25, attempt(lab, options, count))?;
    let failed = lines.iter().filter(|line| !line.good).count();
    let result = if failed == 0 { "ok" } else { "failed" };
    if options.json {
        println!(
            "{}",
            serde_json::json!({ "scenario": "migrate-all", "result": result, "migrations": migrations, "devices": lines })
        );
    } else {
        for line in &lines {
            if let Some(passage) = &line.passage {
                println!("{}: {passage}", line.device);
            }
        }
        for line in &lines {
            let score = &line.score;
            println!(
                "RESULT {} device={} {} sent={} received={} lost={} lost_standing={} doubled={} disconnects={} dropped_by_device={}{}",
                if line.good { "ok" } else { "failed" },
                line.device,
                score.unit,
                score.sent,
                score.received,
                score.lost,
                score.lost_standing,
                score.doubled,
                line.disconnects,
                score.dropped_by_device,
                score.words(),
            );
        }
        let pause = migrations
            .iter()
            .map(|one| one.pause_ms)
            .fold(0.0, f64::max);
        println!(
            "RESULT {result} migrations={} devices={} failed={failed} pause_ms_max={pause:.0}",
            migrations.len(),
            lines.len(),
        );
    }
    if failed > 0 {
        let noticed = anyhow!("{failed} of {} devices noticed the migrations", lines.len());
        return stack::with_logs(lab, 100, Err(noticed));
    }
    guest::destroy(lab)
}

fn attempt(lab: &Lab, options: &Options, count: u32) -> Result<(Vec<Migration>, Vec<Line>)> {
    let bench = Bench::open(lab)?.with_slower_headset(HEADSET_SLOWER);
    let step = Step::start("guest with USB controllers");
    let guest = guest::create_with(lab, "host-a", CONTROLLERS, options.guest)?;
    disk::load_frontend(lab, &guest, options.guest, Frontend::Ours)?;
    bench::install(&guest)?;
    guest.must("modprobe ext4")?;
    step.done();
    // One that does not get as far as its job fails by itself: the others go on without it.
    let mut lines = Vec::new();
    let mut attached = Vec::new();
    for kind in options.devices_of(&Kind::USEFUL) {
        let step = Step::start(format!("{} attached", kind.name()));
        let one = bench.plug(lab, kind).and_then(|plugged| {
            let user = bench::attach_to(lab, "host-a", &guest, &plugged, controller(kind))?;
            Ok((plugged, user))
        });
        match one {
            Ok(one) => {
                attached.push(one);
                step.done();
            }
            Err(error) => lines.push(Line::failed(kind, &error)),
        }
    }
    start_ticker(&guest)?;
    // File systems first: made beside everything else, they take minutes.
    attached.sort_by_key(|(plugged, _): &(Plugged, User)| !plugged.kind.is_disk());
    let every = EVERY_MS * attached.len() / Kind::USEFUL.len();
    let every = Duration::from_millis(every as u64).max(Duration::from_millis(300));
    let hops = Hops::start(&bench, &guest, &attached)?;
    let mut busy = Vec::new();
    for (plugged, user) in attached {
        let kind = plugged.kind;
        let step = Step::start(format!("{} busy", kind.name()));
        let job = if kind.is_disk() {
            start_writer(&plugged, &user).map(|()| None)
        } else {
            Job::start_every(&bench, &plugged, &user, every).map(Some)
        };
        match job {
            Ok(job) => {
                busy.push(Busy { plugged, user, job });
                step.done();
            }
            Err(error) => lines.push(Line::failed(kind, &error)),
        }
    }
    let (migrations, host) = measure::migrate_many(lab, count, false, "all devices")?;
    let guest = guest::agent_through(lab, host)?;
    // What does the most work is stopped first; e2fsck beside it takes a minute.
    busy.sort_by_key(|one| one.plugged.kind.is_disk());
    let mut done = Vec::new();
    for mut one in busy {
        one.user.agent = guest.clone();
        let kind = one.plugged.kind;
        let name = kind.name();
        let step = Step::start(format!("{name}: account"));
        let score = match one.job.take() {
            Some(job) => job.finish(&bench, &one.plugged, &one.user),
            None => finish_writer(&one.plugged, &one.user),
        };
        let score = score.unwrap_or_else(|error| Score {
            errors: vec![format!("{error:#}")],
            ..Score::default()
        });
        let disconnect = format!("usb {}: USB disconnect", one.user.device);
        let disconnects = guest
            .must("dmesg")?
            .lines()
            .filter(|line| line.contains(&disconnect))
            .count();
        step.done();
        done.push((kind, score, disconnects));
    }
    let mut passages = hops.finish(lab, &bench, host, &guest)?;
    for (kind, score, disconnects) in done {
        let passage = passages.remove(kind.name());
        let score = match &passage {
            Some(passage) => passage.judge(score),
            None => score,
        };
        lines.push(Line {
            device: kind.name(),
            good: score.perfect() && disconnects == 0,
            score,
            disconnects,
            passage,
        });
    }
    guest::healthy(&guest)?;
    Ok((migrations, lines))
}

/// A file system on the disk, written and verified, with a pause between two batches.
fn start_writer(plugged: &Plugged, user: &User) -> Result<()> {
    let name = plugged.kind.name();
    let disk = user.node("/dev", "sd?")?;
    user.wait_for_medium(&disk)?;
    user.agent
        .exec_for(
            &format!(
                "mkdir -p /mnt/{name} && mkfs.ext4 -q -F -N 64 {disk} && mount -t ext4 {disk} /mnt/{name}"
            ),
            patience(240),
        )?
        .ok("making and mounting a file system")?;
    user.agent.must(&format!(
        "setsid lab-disk write /mnt/{name}/data {FILE_BLOCKS} 11 /run/{name}.json {PAUSE_MS} </dev/null >/dev/null 2>/run/{name}.err &"
    ))?;
    let start = Instant::now();
    while measure::report(&user.agent, &format!("/run/{name}.json")).is_err() {
        if start.elapsed() > patience(180) {
            bail!("the writer on {name} does not begin");
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

fn finish_writer(plugged: &Plugged, user: &User) -> Result<Score> {
    let name = plugged.kind.name();
    let path = format!("/run/{name}.json");
    user.agent.must(&format!("touch {path}.stop"))?;
    let start = Instant::now();
    let report: Report = loop {
        let report = measure::report(&user.agent, &path)?;
        if report.finished {
            break report;
        }
        if start.elapsed() > patience(300) {
            bail!("the writer on {name} does not end");
        }
        std::thread::sleep(Duration::from_millis(500));
    };
    let disk = user.node("/dev", "sd?")?;
    let check = user
        .agent
        .exec_for(
            &format!("umount /mnt/{name} && e2fsck -fn {disk}"),
            patience(300),
        )
        .context("e2fsck")?;
    let mut errors = report.errors.clone();
    if check.status != 0 {
        errors.push(format!("e2fsck: {}", check.stdout.trim()));
    }
    if report.sha256_expected != report.sha256_read {
        errors.push("the file's hash differs".to_owned());
    }
    Ok(Score {
        sent: report.written,
        received: report.verified,
        lost: report.mismatches + report.io_errors,
        doubled: 0,
        unit: "blocks",
        errors,
        ..Score::default()
    })
}
