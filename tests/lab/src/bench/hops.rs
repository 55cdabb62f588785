// SPDX-License-Identifier: GPL-3.0-or-later
//! Where something was lost: the same keys, clicks, records and commands counted on the exporter machine's
//! bus and on the guest's.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;

use super::job::Score;
use super::{Bench, Kind, Plugged, User};
use crate::agent::Agent;
use crate::lab::Lab;
use crate::progress::patience;
use crate::stack;
use crate::usbmon::{Carries, Passed, Report};

/// QEMU's trace event of a key that its keyboard has no room for, in its log.
const QUEUE_FULL: &str = "hid_kbd_queue_full";

/// What is counted of a device, where anything is.
fn carries(kind: Kind) -> Option<Carries> {
    match kind {
        Kind::Keyboard | Kind::HidGadget => Some(Carries::Keys),
        Kind::Tablet => Some(Carries::Clicks),
        Kind::Serial => Some(Carries::FtdiRecords),
        Kind::AcmGadget | Kind::PrinterGadget => Some(Carries::Records),
        Kind::Reader => Some(Carries::Commands),
        _ => None,
    }
}

/// A device on a bus that is watched.
struct Spot {
    bus: u64,
    number: u8,
}

impl Spot {
    fn of(user: &User) -> Result<Self> {
        let text = user.agent.must(&format!(
            "cd /sys/bus/usb/devices/{} && cat busnum devnum",
            user.device
        ))?;
        let mut words = text.split_whitespace();
        let mut next = || words.next().context("no bus or device number");
        Ok(Self {
            bus: next()?.parse()?,
            number: next()?.parse()?,
        })
    }
}

/// A device with its two places.
struct Watched {
    kind: Kind,
    /// Controller and port, by which its attachment is known.
    plug: (usize, u64),
    exporter: Spot,
    guest: Spot,
}

/// The two ends that are watched.
pub struct Hops {
    devices: Vec<Watched>,
}

/// What passed of a device at each end, and between them.
#[derive(Debug, Clone, Serialize)]
pub struct Passage {
    carries: &'static str,
    /// On the exporter machine's bus.
    pub exporter: Passed,
    /// On the guest's.
    pub guest: Passed,
    /// Keys that the emulated keyboard had no room for, down and up.
    queue_full: u64,
    /// What the exporter kept while the guest was suspended.
    stash: Value,
}

impl Hops {
    /// Begin to watch, before anything is typed or sent.
    pub fn start(bench: &Bench, guest: &Agent, devices: &[(Plugged, User)]) -> Result<Self> {
        let mut watched = Vec::new();
        for (plugged, user) in devices {
            if carries(plugged.kind).is_some() {
                watched.push(Watched {
                    kind: plugged.kind,
                    plug: user.plug,
                    exporter: Spot::of(&bench.user(&plugged.place))?,
                    guest: Spot::of(user)?,
                });
            }
        }
        bench
            .machine
            .qmp(&bench.run)?
            .human(&format!("trace-event {QUEUE_FULL} on"))?;
        let hops = Self { devices: watched };
        watch(&bench.agent, &hops.buses(|one| &one.exporter))?;
        watch(guest, &hops.buses(|one| &one.guest))?;
        Ok(hops)
    }

    /// Each bus with what is to be counted on it.
    fn buses(&self, end: impl Fn(&Watched) -> &Spot) -> BTreeMap<u64, Vec<String>> {
        let mut buses: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for one in &self.devices {
            let (spot, what) = (end(one), carries(one.kind).map_or("", Carries::name));
            let device = format!("{}={what}", spot.number);
            buses.entry(spot.bus).or_default().push(device);
        }
        buses
    }

    /// Stop watching; what passed of each device. `host` has the guest.
    pub fn finish(
        self,
        lab: &Lab,
        bench: &Bench,
        host: &str,
        guest: &Agent,
    ) -> Result<BTreeMap<&'static str, Passage>> {
        let exporter = stop(&bench.agent, self.buses(|one| &one.exporter).into_keys())?;
        let guest = stop(guest, self.buses(|one| &one.guest).into_keys())?;
        let log = bench.run.join(format!("{}.log", bench.machine.name));
        let log = std::fs::read_to_string(log).unwrap_or_default();
        let full = log.lines().filter(|line| line.contains(QUEUE_FULL)).count() as u64;
        let status = stack::xl_vusb(lab, host, "status")?;
        let passed = |reports: &BTreeMap<u64, Report>, spot: &Spot| -> Result<Passed> {
            let report = reports.get(&spot.bus).context("no report of a bus")?;
            let passed = report.devices.get(&spot.number);
            passed.cloned().context("no report of a device")
        };
        let mut all = BTreeMap::new();
        for one in &self.devices {
            let passage = Passage {
                carries: carries(one.kind).map_or("", Carries::name),
                exporter: passed(&exporter, &one.exporter)?,
                guest: passed(&guest, &one.guest)?,
                queue_full: if one.kind == Kind::Keyboard { full } else { 0 },
                stash: stash(&status, one.plug),
            };
            all.insert(one.kind.name(), passage);
        }
        Ok(all)
    }
}

fn report_of(bus: u64) -> String {
    format!("/run/watch-{bus}.json")
}

fn watch(agent: &Agent, buses: &BTreeMap<u64, Vec<String>>) -> Result<()> {
    agent.must("modprobe usbmon")?;
    for (bus, devices) in buses {
        let (report, devices) = (report_of(*bus), devices.join(" "));
        agent.must(&format!(
            "rm -f {report}; setsid lab-usb watch {bus} {report} {devices} </dev/null >/dev/null 2>/run/watch-{bus}.err &"
        ))?;
        let start = Instant::now();
        while agent.exec(&format!("test -s {report}"))?.status != 0 {
            if start.elapsed() > patience(30) {
                bail!(
                    "{}: bus {bus} cannot be watched: {}",
                    agent.name,
                    agent.exec(&format!("cat /run/watch-{bus}.err"))?.stdout
                );
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }
    Ok(())
}

fn stop(agent: &Agent, buses: impl Iterator<Item = u64>) -> Result<BTreeMap<u64, Report>> {
    let mut reports = BTreeMap::new();
    for bus in buses {
        let path = report_of(bus);
        agent.must(&format!("touch {path}.stop"))?;
        let start = Instant::now();
        let report: Report = loop {
            let report: Report = serde_json::from_slice(&agent.get(&path)?)?;
            if report.finished {
                break report;
            }
            if start.elapsed() > patience(60) {
                bail!("{}: the watch on bus {bus} does not end", agent.name);
            }
            std::thread::sleep(Duration::from_millis(500));
        };
        if report.dropped_events > 0 {
            bail!(
                "{}: the monitor of bus {bus} dropped {} events, so its counts say nothing",
                agent.name,
                report.dropped_events
            );
        }
        reports.insert(bus, report);
    }
    Ok(reports)
}

/// The counters of what was kept for an attachment.
fn stash(status: &Value, plug: (usize, u64)) -> Value {
    let attachments = status["attachments"].as_array();
    let of = |one: &&Value| (&one["controller"], &one["port"]) == (&plug.0.into(), &plug.1.into());
    let found = attachments.and_then(|all| all.iter().find(of));
    found.map_or(Value::Null, |one| one["stash"].clone())
}

impl Passage {
    /// What a keyboard or a tablet was given and did not hand over: it was asked too seldom. None of other
    /// devices, which make the line wait instead.
    pub fn dropped_by_device(&self, sent: u64) -> u64 {
        match self.carries.parse() {
            Ok(Carries::Keys | Carries::Clicks) => {
                sent.saturating_sub(self.exporter.from_device.received)
            }
            _ => 0,
        }
    }

    /// The score without what its device did not hand over, and with where the rest was lost.
    pub fn judge(&self, mut score: Score) -> Score {
        let dropped = self.dropped_by_device(score.sent).min(score.lost);
        score.lost -= dropped;
        score.dropped_by_device = dropped;
        if dropped > 0 || score.lost > 0 || score.doubled > 0 {
            score.notes.push(self.to_string());
        }
        score
    }
}

impl fmt::Display for Passage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (exporter, guest) = (&self.exporter, &self.guest);
        write!(
            f,
            "{} from the device: {} on the exporter machine's bus, {} on the guest's",
            self.carries, exporter.from_device.received, guest.from_device.received
        )?;
        if exporter.to_device.received + guest.to_device.received > 0 {
            write!(
                f,
                "; to the device: {} on the guest's bus, {} on the exporter machine's",
                guest.to_device.received, exporter.to_device.received
            )?;
        }
        if self.queue_full > 0 {
            let full = self.queue_full;
            write!(f, "; {full} times the keyboard's queue was full")?;
        }
        for (place, passed) in [("exporter machine", exporter), ("guest", guest)] {
            if passed.failed_with_data > 0 {
                let count = passed.failed_with_data;
                write!(f, "; {place}: {count} failed transfers with data")?;
            }
            for gap in passed.from_device.gaps.iter().chain(&passed.to_device.gaps) {
                write!(f, "; {place}: {gap}")?;
            }
        }
        if !self.stash.is_null() {
            write!(f, "; kept for the guest: {}", self.stash)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn passage(carries: Carries, exporter: u64, guest: u64) -> Passage {
        let passed = |received| {
            let mut passed = Passed::default();
            passed.from_device.received = received;
            passed
        };
        Passage {
            carries: carries.name(),
            exporter: passed(exporter),
            guest: passed(guest),
            queue_full: 0,
            stash: Value::Null,
        }
    }

    fn score(sent: u64, received: u64) -> Score {
        Score {
            sent,
            received,
            lost: sent - received,
            ..Score::default()
        }
    }

    #[test]
    fn what_a_keyboard_did_not_hand_over_is_not_lost_on_the_way() {
        let judged = passage(Carries::Keys, 98, 98).judge(score(100, 98));
        assert_eq!((judged.lost, judged.dropped_by_device), (0, 2));
        assert!(judged.notes[0].contains("98 on the exporter machine's bus"));
    }

    #[test]
    fn what_was_handed_over_and_did_not_arrive_is_lost() {
        let judged = passage(Carries::Keys, 99, 98).judge(score(100, 98));
        assert_eq!((judged.lost, judged.dropped_by_device), (1, 1));
        let judged = passage(Carries::Clicks, 100, 100).judge(score(100, 99));
        assert_eq!((judged.lost, judged.dropped_by_device), (1, 0));
    }

    #[test]
    fn a_line_drops_nothing_by_itself() {
        let judged = passage(Carries::Records, 90, 90).judge(score(100, 90));
        assert_eq!((judged.lost, judged.dropped_by_device), (10, 0));
    }

    #[test]
    fn a_stash_is_found_by_controller_and_port() {
        let status = json!({ "attachments": [
            { "controller": 0, "port": 2, "stash": { "kept": 1 } },
            { "controller": 1, "port": 2, "stash": { "kept": 2 } },
        ] });
        assert_eq!(stash(&status, (1, 2)), json!({ "kept": 2 }));
        assert_eq!(stash(&status, (1, 3)), Value::Null);
    }
}
