// SPDX-License-Identifier: GPL-3.0-or-later
//! Live migrations that somebody breaks off, or takes the daemons from, half-way: the guest goes on where it
//! is or arrives, its stick with it, and the next migration works. At the end its host loses power, and the VM
//! is started on the other one.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;

use super::Options;
use super::disk_migrate::{Counters, counters};
use crate::agent::Agent;
use crate::disk::{self, Account, Frontend};
use crate::guest;
use crate::lab::Lab;
use crate::machine::Machine;
use crate::measure::{self, DISK_REPORT, report};
use crate::progress::{Step, patience};
use crate::stack;

const SEED: u64 = 0x5eed_0005;
/// For a stage to come, a migration to end, a stick to be back.
const PATIENCE: Duration = patience(300);
/// What is on the stick, by its hash, when the host loses power.
const KEPT: &str = "/mnt/kept";
const KEPT_BYTES: u32 = 1 << 20;

/// How far a migration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Stage {
    /// The target has a domain, whose memory is on its way; the guest runs.
    Incoming,
    /// The guest is suspended.
    Suspended,
}

/// What is killed, with SIGKILL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Killed {
    /// `xl migrate-receive` at the target.
    Receiver,
    /// `xl migrate` at the source.
    Sender,
    /// `vusbd` at the source, for two seconds.
    SourceVusbd,
    /// The same at the target.
    TargetVusbd,
    /// Both.
    BothVusbds,
}

impl Killed {
    /// Whether the guest gets to the target all the same.
    fn moves(self) -> bool {
        !matches!(self, Self::Receiver | Self::Sender)
    }
}

const CASES: [(Stage, Killed); 7] = [
    (Stage::Incoming, Killed::Receiver),
    (Stage::Incoming, Killed::Sender),
    (Stage::Suspended, Killed::Receiver),
    (Stage::Incoming, Killed::TargetVusbd),
    (Stage::Incoming, Killed::BothVusbds),
    (Stage::Suspended, Killed::SourceVusbd),
    (Stage::Suspended, Killed::BothVusbds),
];

/// What came of one migration.
#[derive(Debug, Serialize)]
struct Row {
    stage: Option<Stage>,
    killed: Option<Killed>,
    from: &'static str,
    moved: bool,
    /// From the start of `xl migrate` until the guest worked on its stick after it.
    seconds: f64,
}

#[derive(Serialize)]
struct Outcome {
    scenario: &'static str,
    result: &'static str,
    guest: guest::Setup,
    rows: Vec<Row>,
    counters: Counters,
    account: Account,
    /// From the loss of power until the VM had its stick on the other host, in seconds.
    followed_s: f64,
}

/// Run the scenario.
pub fn run(lab: &Lab, options: &Options) -> Result<()> {
    lab.fresh(options.guest.hypervisor(true))?;
    stack::deploy(lab)?;
    let outcome = stack::with_logs(lab, 40, attempt(lab, options))?;
    if options.json {
        println!("{}", serde_json::to_string(&outcome)?);
    } else {
        print(&outcome);
    }
    if outcome.result != "ok" {
        bail!(
            "not everything was right: {:?} {:?}",
            outcome.account.report.errors,
            outcome.account.kernel.lines
        );
    }
    guest::destroy(lab)
}

fn print(outcome: &Outcome) {
    println!("killed        at         from    the guest  seconds");
    for row in &outcome.rows {
        let killed = row.killed.map_or("nothing", |killed| match killed {
            Killed::Receiver => "receiver",
            Killed::Sender => "sender",
            Killed::SourceVusbd => "source vusbd",
            Killed::TargetVusbd => "target vusbd",
            Killed::BothVusbds => "both vusbds",
        });
        let stage = row.stage.map_or("", |stage| match stage {
            Stage::Incoming => "incoming",
            Stage::Suspended => "suspended",
        });
        println!(
            "{killed:<12}  {stage:<9}  {:<6}  {:<9}  {:>7.1}",
            row.from,
            if row.moved { "moved" } else { "stayed" },
            row.seconds
        );
    }
    let stayed = outcome.rows.iter().filter(|row| !row.moved).count();
    println!(
        "RESULT {} interrupted={} stayed={stayed} moved={} urbs={} lost={} duplicated={} {} power_losses=1 followed_s={:.1}",
        outcome.result,
        CASES.len(),
        outcome.rows.len() - stayed,
        outcome.counters.urbs,
        outcome.counters.lost,
        outcome.counters.duplicated,
        outcome.account.fields(),
        outcome.followed_s,
    );
}

/// The guest, and where it is.
struct Run<'a> {
    lab: &'a Lab,
    guest: Agent,
    here: &'static str,
    there: &'static str,
    rows: Vec<Row>,
}

fn attempt(lab: &Lab, options: &Options) -> Result<Outcome> {
    let mut run = Run {
        lab,
        guest: disk::start(lab, options.guest, Frontend::Ours, SEED)?,
        here: "host-a",
        there: "host-b",
        rows: Vec::new(),
    };
    for (stage, killed) in CASES {
        run.interrupted(stage, killed).with_context(|| {
            format!(
                "{killed:?} killed, {stage:?}, {} -> {}",
                run.here, run.there
            )
        })?;
    }
    // One in peace; host-a is to stay, for it has the pool's authority.
    loop {
        run.plain()?;
        if run.here == "host-b" {
            break;
        }
    }
    let account = disk::finish(&run.guest)?;
    guest::healthy(&run.guest)?;
    let counters = counters(lab)?;
    let followed = run.power_loss(options)?;
    let good = account.good() && counters.lost == 0 && counters.duplicated == 0;
    Ok(Outcome {
        scenario: "interrupt",
        result: if good { "ok" } else { "failed" },
        guest: options.guest,
        rows: run.rows,
        counters,
        account,
        followed_s: followed.as_secs_f64(),
    })
}

impl Run<'_> {
    fn interrupted(&mut self, stage: Stage, killed: Killed) -> Result<()> {
        let step = Step::start(format!(
            "{killed:?} killed, {stage:?}, {} -> {}",
            self.here, self.there
        ));
        let start = Instant::now();
        let (output, blow) = std::thread::scope(|scope| {
            let migration = scope.spawn(|| guest::migrate(self.lab, self.here, self.there));
            let blow = self.wait_for(stage).and_then(|()| self.kill(killed));
            let output = migration.join().expect("the thread of xl migrate");
            (output, blow)
        });
        let (output, _) = output?;
        blow.with_context(|| format!("xl migrate said\n{}", output.stdout))?;
        let moved = output.status == 0;
        if moved != killed.moves() {
            bail!(
                "xl migrate: exit status {}\n{}",
                output.status,
                output.stdout
            );
        }
        if !moved {
            self.no_remains()?;
        }
        self.account(Some(stage), Some(killed), moved, start)?;
        step.done();
        Ok(())
    }

    fn plain(&mut self) -> Result<()> {
        let step = Step::start(format!("nothing killed, {} -> {}", self.here, self.there));
        let start = Instant::now();
        measure::migrate(self.lab, self.here, self.there, true)?;
        self.account(None, None, true, start)?;
        step.done();
        Ok(())
    }

    /// The guest works on its stick, where it has to be.
    fn account(
        &mut self,
        stage: Option<Stage>,
        killed: Option<Killed>,
        moved: bool,
        start: Instant,
    ) -> Result<()> {
        let from = self.here;
        if moved {
            (self.here, self.there) = (self.there, self.here);
        }
        self.guest = guest::agent_through(self.lab, self.here)?;
        self.guest.wait_ready(patience(120))?;
        let other = self.lab.agent(self.there)?;
        let remains = other.exec("xl list | tail -n +3")?.stdout;
        if !remains.trim().is_empty() {
            bail!("{} still has\n{remains}", self.there);
        }
        let before = report(&self.guest, DISK_REPORT)?.verified;
        while report(&self.guest, DISK_REPORT)?.verified <= before + 8 {
            if start.elapsed() > PATIENCE {
                bail!(
                    "the guest stands still; its kernel log ends in\n{}",
                    self.guest.must("dmesg | tail -n 20")?
                );
            }
            std::thread::sleep(Duration::from_millis(300));
        }
        self.rows.push(Row {
            stage,
            killed,
            from,
            moved,
            seconds: start.elapsed().as_secs_f64(),
        });
        Ok(())
    }

    fn wait_for(&self, stage: Stage) -> Result<()> {
        let start = Instant::now();
        let (source, target) = (self.lab.agent(self.here)?, self.lab.agent(self.there)?);
        loop {
            let reached = match stage {
                Stage::Incoming => {
                    let incoming = format!("xl domid {}--incoming", guest::NAME);
                    target.exec(&incoming)?.status == 0
                }
                // The State column has a place for each of r, b, p, s, c, d.
                Stage::Suspended => {
                    let list = source.must("xl list | tail -n +3")?;
                    list.split_whitespace()
                        .any(|word| word.len() == 6 && word.as_bytes()[3] == b's')
                }
            };
            if reached {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                bail!("the migration never was {stage:?}");
            }
            // A guest is suspended for two seconds; asking all the time made its migration twice as long.
            std::thread::sleep(Duration::from_millis(400));
        }
    }

    fn kill(&self, killed: Killed) -> Result<()> {
        match killed {
            Killed::Receiver => self.kill_xl(self.there, "migrate-receive"),
            Killed::Sender => self.kill_xl(self.here, "migrate"),
            Killed::SourceVusbd => self.kill_vusbds(&[self.here]),
            Killed::TargetVusbd => self.kill_vusbds(&[self.there]),
            Killed::BothVusbds => self.kill_vusbds(&[self.here, self.there]),
        }
    }

    /// The `xl` with that subcommand; a host has others, which watch their domains.
    fn kill_xl(&self, host: &str, subcommand: &str) -> Result<()> {
        self.lab.agent(host)?.must(&format!(
            "for p in $(pidof xl); do \
             if tr '\\0' '\\n' </proc/$p/cmdline | grep -qx {subcommand}; then kill -9 $p && killed=1; fi; \
             done; test -n \"$killed\""
        ))?;
        Ok(())
    }

    fn kill_vusbds(&self, hosts: &[&str]) -> Result<()> {
        for host in hosts {
            self.lab.agent(host)?.must("kill -9 $(pidof vusbd)")?;
        }
        std::thread::sleep(Duration::from_secs(2));
        for host in hosts {
            stack::start(self.lab, &Machine::named(host)?)?;
        }
        Ok(())
    }

    /// What a killed `xl` leaves behind is the administrator's to remove.
    fn no_remains(&self) -> Result<()> {
        let target = self.lab.agent(self.there)?;
        let incoming = format!("{}--incoming", guest::NAME);
        let start = Instant::now();
        while target.exec(&format!("xl domid {incoming}"))?.status == 0 {
            target.exec(&format!("xl destroy {incoming}"))?;
            if start.elapsed() > PATIENCE {
                bail!("{incoming} cannot be destroyed");
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        Ok(())
    }

    /// The host is gone, and its guest with it. The VM is started on the other host: the exporter takes the stick
    /// from the old one, and what was written and synced is there.
    fn power_loss(&mut self, options: &Options) -> Result<Duration> {
        let step = Step::start(format!("{} loses power", self.here));
        self.guest.must(&format!(
            "mount -t ext4 /dev/sda /mnt && head -c {KEPT_BYTES} /dev/urandom >{KEPT} && sync"
        ))?;
        let hash = |guest: &Agent| guest.must(&format!("sha256sum {KEPT}"));
        let before = hash(&self.guest)?;
        Machine::named(self.here)?.stop(self.lab.run_directory())?;
        let start = Instant::now();
        let guest = guest::create_as(self.lab, self.there, true, options.guest)?;
        disk::load_frontend(self.lab, &guest, options.guest, Frontend::Ours)?;
        guest.must("modprobe -a usb-storage sd_mod ext4")?;
        while guest.exec("test $(cat /sys/block/sda/size) -gt 0")?.status != 0 {
            if start.elapsed() > PATIENCE {
                bail!(
                    "the stick did not follow: {}\n{}",
                    stack::xl_vusb(self.lab, self.there, "list").unwrap_or(Value::Null),
                    guest.must("dmesg | tail -n 8")?
                );
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        let followed = start.elapsed();
        guest.must("mount -t ext4 /dev/sda /mnt")?;
        let after = hash(&guest)?;
        if before != after {
            bail!("written and synced was {before}, there is {after}");
        }
        guest::healthy(&guest)?;
        step.done_with(&format!(
            "the stick followed after {:.1} s",
            followed.as_secs_f64()
        ));
        Ok(followed)
    }
}
