// SPDX-License-Identifier: GPL-3.0-or-later
//! A guest with our module works on its stick, is typed at and talks over a serial line while daemons
//! are killed, links cut and slowed, and the guest migrated, by a schedule that a seed repeats.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::Options;
use super::disk_migrate::{Counters, counters};
use crate::agent::Agent;
use crate::bench::job::Score;
use crate::disk::{self, Account, Frontend};
use crate::guest;
use crate::guest_module::Module;
use crate::lab::Lab;
use crate::machine::Machine;
use crate::measure::{DISK_REPORT, KernelLog, kernel_log, report};
use crate::progress::{Step, patience};
use crate::{stack, switch};

mod company;
mod schedule;

use company::{Company, Flows, Losses};
use schedule::{Fault, KINDS, Schedule};

const SEED: u64 = 0x5eed_0004;
const MINUTES: u32 = 10;
/// How long a link stays slow.
const SLOW: Duration = Duration::from_secs(5);
/// In which the guest must work again: usb-storage gives a command 30 s before it resets its device.
const RECOVERY: Duration = patience(150);

/// What came of one kind of fault.
#[derive(Debug, Default, Clone, Copy, Serialize)]
struct Effect {
    injected: u32,
    /// Device resets in the guest by the time that it worked again.
    resets: usize,
    /// Lines about failed I/O, likewise.
    io_errors: usize,
    /// Devices that went away, likewise.
    disconnects: usize,
    /// Longest time from the fault to verified blocks, keys and records, in seconds.
    worst_s: f64,
    /// Keys and records that did not arrive, likewise.
    losses: Losses,
}

#[derive(Serialize)]
struct Outcome {
    scenario: &'static str,
    result: &'static str,
    guest: guest::Setup,
    seed: u64,
    effects: Effects,
    migrations_tried: u32,
    migrations_done: u32,
    /// Requests that daemons counted which were killed later: read just before, so no more than that.
    urbs_before_kills: u64,
    /// Of the daemons that live at the end; they count what they took over from killed ones.
    counters: Counters,
    account: Account,
    keys: Score,
    records: Score,
}

/// Run the scenario.
pub fn run(lab: &Lab, options: &Options) -> Result<()> {
    lab.fresh(options.guest.hypervisor(true))?;
    stack::deploy(lab)?;
    let outcome = stack::with_logs(lab, 15, attempt(lab, options))?;
    if options.json {
        println!("{}", serde_json::to_string(&outcome)?);
    } else {
        print(&outcome);
    }
    if outcome.result != "ok" {
        bail!(
            "not everything was right: {:?} {:?}; keyboard {:?}, serial line {:?}",
            outcome.account.report.errors,
            outcome.account.kernel.lines,
            outcome.keys.words(),
            outcome.records.words()
        );
    }
    guest::destroy(lab)
}

fn print(outcome: &Outcome) {
    println!(
        "fault          injected  resets  io_errors  disconnects  worst s  lost: keys  records in  out"
    );
    for (kind, one) in &outcome.effects {
        println!(
            "{kind:<14} {:>8}  {:>6}  {:>9}  {:>11}  {:>7.1}  {:>10}  {:>10}  {:>3}",
            one.injected,
            one.resets,
            one.io_errors,
            one.disconnects,
            one.worst_s,
            one.losses.keys,
            one.losses.records_in,
            one.losses.records_out,
        );
    }
    let faults: String = outcome
        .effects
        .iter()
        .map(|(kind, one)| format!("{kind}={} ", one.injected))
        .collect();
    println!(
        "RESULT {} seed={} {faults}migrations_tried={} migrations_done={} urbs={} lost={} doubled={} {} {} {}",
        outcome.result,
        outcome.seed,
        outcome.migrations_tried,
        outcome.migrations_done,
        outcome.urbs_before_kills + outcome.counters.urbs,
        outcome.counters.lost,
        outcome.counters.duplicated,
        outcome.account.fields(),
        fields("keys", &outcome.keys, explained_keys(&outcome.effects)),
        fields(
            "records",
            &outcome.records,
            explained_records(&outcome.effects, outcome.guest.module)
        ),
    );
}

/// The fields of a device in the RESULT line.
fn fields(what: &str, score: &Score, explained: u64) -> String {
    let Score {
        sent,
        received,
        lost,
        doubled,
        ..
    } = score;
    format!(
        "{what}_sent={sent} {what}_received={received} {what}_lost={lost} {what}_explained={explained} \
         {what}_doubled={doubled}"
    )
}

type Effects = BTreeMap<&'static str, Effect>;

fn losses(effects: &Effects, kind: &str) -> Losses {
    effects.get(kind).map_or_else(Losses::default, |e| e.losses)
}

/// A key that was on its way through an exporter that died, or was pressed while nobody asked the
/// keyboard, which the new exporter resets.
fn explained_keys(effects: &Effects) -> u64 {
    losses(effects, "kill_exporter").keys
}

/// The same of records in both directions. Where the drivers notice a suspend (decision 0014 says
/// where they do not), they take back transfers of bulk endpoints that had brought something by then
/// (decision 0010): records on their way to the guest.
fn explained_records(effects: &Effects, module: Module) -> u64 {
    let killed = losses(effects, "kill_exporter");
    let suspended = match module {
        Module::Hcd => 0,
        Module::Resume => losses(effects, "migrate").records_in,
    };
    killed.records_in + killed.records_out + suspended
}

/// Nothing came twice, and what did not come is explained. A record that was torn is malformed for
/// whoever gets the rest of it, and counts as lost.
fn excused(score: &Score, explained: u64) -> bool {
    let torn = |error: &String| error.ends_with(" malformed") && explained > 0;
    score.received > 0
        && score.doubled == 0
        && score.lost <= explained
        && score.errors.iter().all(torn)
}

/// The run while it goes on.
struct Chaos<'a> {
    lab: &'a Lab,
    guest: Agent,
    here: &'static str,
    there: &'static str,
    company: Company,
    flows: Flows,
    effects: Effects,
    log: KernelLog,
    tried: u32,
    done: u32,
    urbs: u64,
}

fn attempt(lab: &Lab, options: &Options) -> Result<Outcome> {
    let seed = options.seed.unwrap_or(1);
    let minutes = options.minutes.unwrap_or(MINUTES);
    let guest = disk::start(lab, options.guest, Frontend::Ours, SEED)?;
    let company = Company::start(lab, &guest)?;
    let flows = company.flows()?;
    let mut chaos = Chaos {
        lab,
        guest,
        company,
        flows,
        here: "host-a",
        there: "host-b",
        effects: KINDS
            .iter()
            .map(|kind| (*kind, Effect::default()))
            .collect(),
        log: KernelLog::default(),
        tried: 0,
        done: 0,
        urbs: 0,
    };
    let end = Instant::now() + Duration::from_secs(60 * u64::from(minutes));
    for (number, (wait, fault)) in Schedule::new(seed).enumerate() {
        if Instant::now() + wait >= end {
            break;
        }
        std::thread::sleep(wait);
        chaos
            .one(fault)
            .with_context(|| format!("seed {seed}, fault {}: {fault:?}", number + 1))?;
    }
    // The disk last: counters are read when nothing is in flight. The guest sees the others being detached, which is
    // our doing.
    let log = || Ok::<_, anyhow::Error>(kernel_log(&chaos.guest.must("dmesg")?));
    let before = log()?.disconnects;
    let (keys, records) = chaos.company.finish(lab, chaos.here)?;
    let detached = log()?.disconnects - before;
    let mut account = disk::finish(&chaos.guest)?;
    account.kernel.disconnects -= detached;
    guest::healthy(&chaos.guest)?;
    let counters = counters(lab)?;
    let good = right(&account, &chaos.effects, counters)
        && detached == Company::DEVICES
        && chaos.tried == chaos.done
        && excused(&keys, explained_keys(&chaos.effects))
        && excused(
            &records,
            explained_records(&chaos.effects, options.guest.module),
        );
    Ok(Outcome {
        scenario: "chaos",
        result: if good { "ok" } else { "failed" },
        guest: options.guest,
        seed,
        effects: chaos.effects,
        migrations_tried: chaos.tried,
        migrations_done: chaos.done,
        urbs_before_kills: chaos.urbs,
        counters,
        account,
        keys,
        records,
    })
}

/// Nothing is wrong for the guest, and its resets are those that an exporter's death explains: the
/// fate of what it executed is unknown, which it says; the guest's driver resets the device and
/// repeats the command.
fn right(account: &Account, effects: &Effects, counters: Counters) -> bool {
    let report = &account.report;
    let explained = effects.get("kill_exporter").map_or(0, |one| one.resets);
    report.finished
        && report.verified > 0
        && report.mismatches == 0
        && report.io_errors == 0
        && account.sha256_matches()
        && account.fsck_clean
        && account.kernel.io_errors == 0
        && account.kernel.disconnects == 0
        && account.kernel.resets == explained
        && counters.lost == 0
        && counters.duplicated == 0
}

impl Chaos<'_> {
    /// Inject one fault and see the guest work again.
    fn one(&mut self, fault: Fault) -> Result<()> {
        let kind = fault.kind();
        let step = Step::start(format!("{fault:?}, the guest on {}", self.here));
        let start = Instant::now();
        self.inject(fault)?;
        let before = report(&self.guest, DISK_REPORT)?.verified;
        let flows_before = self.company.flows()?;
        // The report is up to half a second old: a block or two more may be from before the fault.
        loop {
            let verified = report(&self.guest, DISK_REPORT)?.verified;
            let flows = self.company.flows()?;
            if verified > before + 8 && flows.are_beyond(&flows_before) {
                break;
            }
            if start.elapsed() > RECOVERY + Duration::from_secs(300) * u32::from(kind == "migrate")
            {
                bail!(
                    "the guest stands still: {} blocks verified, {} before; {flows:?}, {flows_before:?} \
                     before; its kernel log ends in\n{}",
                    verified,
                    before,
                    self.guest.must("dmesg | tail -n 20")?
                );
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        let took = start.elapsed().as_secs_f64();
        let log = kernel_log(&self.guest.must("dmesg")?);
        let effect = self.effects.entry(kind).or_default();
        effect.injected += 1;
        effect.resets += log.resets.saturating_sub(self.log.resets);
        effect.io_errors += log.io_errors.saturating_sub(self.log.io_errors);
        effect.disconnects += log.disconnects.saturating_sub(self.log.disconnects);
        effect.worst_s = effect.worst_s.max(took);
        let flows = self.company.flows()?;
        effect.losses.add(&self.flows, &flows);
        self.flows = flows;
        self.log = log;
        step.done();
        Ok(())
    }

    fn inject(&mut self, fault: Fault) -> Result<()> {
        match fault {
            Fault::KillVusbd(away_ms) => {
                let totals = stack::totals(self.lab, self.here)?;
                self.urbs += totals;
                self.kill(self.here, "vusbd", away_ms)
            }
            Fault::KillExporter(away_ms) => self.kill("exporter", "vusb-exporter", away_ms),
            Fault::Cut(machine, ms) => {
                self.link(machine, "cut=1")?;
                std::thread::sleep(Duration::from_millis(ms));
                self.link(machine, "cut=0")
            }
            Fault::Delay(machine, ms) => {
                self.link(machine, &format!("delay_ms={ms}"))?;
                std::thread::sleep(SLOW);
                self.link(machine, "delay_ms=0")
            }
            Fault::Migrate => self.migrate(),
        }
    }

    /// SIGKILL, some time without the daemon, and the daemon again.
    fn kill(&self, machine: &'static str, daemon: &str, away_ms: u64) -> Result<()> {
        self.lab
            .agent(machine)?
            .must(&format!("kill -9 $(pidof {daemon})"))?;
        std::thread::sleep(Duration::from_millis(away_ms));
        stack::start(self.lab, &Machine::named(machine)?)
    }

    fn link(&self, machine: &str, setting: &str) -> Result<()> {
        let answer = switch::control(self.lab.run_directory(), &format!("{machine} {setting}"))?;
        if !answer.starts_with("ok ") {
            bail!("the switch says {answer:?}");
        }
        Ok(())
    }

    /// A migration that is refused leaves the guest where it is, at work.
    fn migrate(&mut self) -> Result<()> {
        self.tried += 1;
        let (output, _) = guest::migrate(self.lab, self.here, self.there)?;
        if output.status == 0 {
            self.done += 1;
            (self.here, self.there) = (self.there, self.here);
        } else {
            eprintln!("lab: refused: {}", output.stdout.trim());
        }
        self.guest = guest::agent_through(self.lab, self.here)?;
        self.company.follow(&self.guest);
        self.guest.wait_ready(patience(120))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::Tally;

    #[test]
    fn only_what_is_explained_is_excused() {
        let arrived = Tally {
            received: 88,
            lost: 12,
            last: 100,
            gaps: vec!["at 7.0 s: 20 after 7".to_owned()],
            ..Tally::default()
        };
        let score = Score::one_way("records", 100, &arrived);
        assert!(excused(&score, 12));
        assert!(!excused(&score, 11));
        let torn = Tally {
            malformed: 1,
            ..arrived.clone()
        };
        let torn = Score::one_way("records", 100, &torn);
        assert!(excused(&torn, 12));
        let doubled = Tally {
            doubled: 1,
            ..arrived
        };
        assert!(!excused(&Score::one_way("records", 100, &doubled), 12));
        assert!(!excused(
            &Score::one_way("records", 0, &Tally::default()),
            0
        ));
    }
}
