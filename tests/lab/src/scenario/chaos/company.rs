// SPDX-License-Identifier: GPL-3.0-or-later
//! What works beside the stick: a keyboard that is typed on, and a serial line with records both
//! ways, both counted after each fault.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::agent::Agent;
use crate::bench::job::{Job, Score};
use crate::bench::{self, Bench, Kind, Plugged, User};
use crate::lab::Lab;
use crate::progress::Step;
use crate::traffic::Tally;

/// QEMU's keyboard keeps 16 events that nobody has asked for, two for each key. So slow, it
/// forgets none in the longest time for which nobody asks, which under emulation is some ten seconds.
const KEYS_EVERY: Duration = Duration::from_millis(1500);
/// A line with nobody behind it waits, so this only has to be slow enough for the emulator.
const RECORDS_EVERY: Duration = Duration::from_millis(300);
/// What must have come after a fault for the gaps that it made to show.
const ENOUGH: u64 = 2;

/// One direction of a device, so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Flow {
    /// What arrived.
    pub received: u64,
    /// Numbers that were skipped over.
    pub lost: u64,
    /// What came again.
    pub doubled: u64,
}

impl From<&Tally> for Flow {
    fn from(tally: &Tally) -> Self {
        Self {
            received: tally.received,
            lost: tally.lost,
            doubled: tally.doubled,
        }
    }
}

/// All of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Flows {
    /// Keys in the guest.
    pub keys: Flow,
    /// Records in the guest.
    pub records_in: Flow,
    /// Records at the far end of the line.
    pub records_out: Flow,
}

impl Flows {
    fn each(&self) -> [Flow; 3] {
        [self.keys, self.records_in, self.records_out]
    }

    /// Whether so much has come of each since `before` that no gap is hidden.
    pub fn are_beyond(&self, before: &Self) -> bool {
        let pairs = self.each().into_iter().zip(before.each());
        pairs
            .into_iter()
            .all(|(now, before)| now.received >= before.received + ENOUGH)
    }
}

/// What one kind of fault has cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Losses {
    /// Keys.
    pub keys: u64,
    /// Records on their way to the guest.
    pub records_in: u64,
    /// Records on their way out.
    pub records_out: u64,
}

impl Losses {
    /// Adds what was lost between two counts.
    pub fn add(&mut self, before: &Flows, now: &Flows) {
        let lost = |now: Flow, before: Flow| now.lost.saturating_sub(before.lost);
        self.keys += lost(now.keys, before.keys);
        self.records_in += lost(now.records_in, before.records_in);
        self.records_out += lost(now.records_out, before.records_out);
    }
}

/// A device at work.
struct One {
    plugged: Plugged,
    user: User,
    job: Job,
}

impl One {
    fn start(lab: &Lab, bench: &Bench, guest: &Agent, kind: Kind, every: Duration) -> Result<Self> {
        let plugged = bench.plug(lab, kind)?;
        let user = bench::attach(lab, "host-a", guest, &plugged)?;
        let job = Job::start_every(bench, &plugged, &user, every)?;
        Ok(Self { plugged, user, job })
    }

    fn finish(self, lab: &Lab, bench: &Bench, host: &str) -> Result<Score> {
        let score = self.job.finish(bench, &self.plugged, &self.user)?;
        // A keyboard always has a request that waits for a key; detached, all are answered.
        bench::detach(lab, host, &self.user)?;
        Ok(score)
    }
}

/// See the module's documentation.
pub struct Company {
    bench: Bench,
    keyboard: One,
    serial: One,
}

impl Company {
    /// How many they are.
    pub const DEVICES: usize = 2;

    /// Plugs both in and has them work for the guest, which is on `host-a`.
    pub fn start(lab: &Lab, guest: &Agent) -> Result<Self> {
        let step = Step::start("keyboard and serial line");
        let bench = Bench::open(lab)?;
        bench::install(guest)?;
        let keyboard = One::start(lab, &bench, guest, Kind::Keyboard, KEYS_EVERY)?;
        let serial = One::start(lab, &bench, guest, Kind::Serial, RECORDS_EVERY)?;
        step.done();
        Ok(Self {
            bench,
            keyboard,
            serial,
        })
    }

    /// The guest is reached in another way.
    pub fn follow(&mut self, guest: &Agent) {
        self.keyboard.user.agent = guest.clone();
        self.serial.user.agent = guest.clone();
    }

    /// What has come so far.
    pub fn flows(&self) -> Result<Flows> {
        let near = |one: &One| one.user.tally(one.plugged.kind.name());
        Ok(Flows {
            keys: Flow::from(&near(&self.keyboard)?),
            records_in: Flow::from(&near(&self.serial)?),
            records_out: Flow::from(&self.serial.job.far()),
        })
    }

    /// Ends the work: what came of the keyboard and of both directions of the line.
    pub fn finish(self, lab: &Lab, host: &str) -> Result<(Score, Score)> {
        let step = Step::start("keyboard and serial line: account");
        let keys = self.keyboard.finish(lab, &self.bench, host)?;
        let records = self.serial.finish(lab, &self.bench, host)?;
        step.done();
        Ok((keys, records))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flows(received: u64, lost: u64) -> Flows {
        let flow = Flow {
            received,
            lost,
            doubled: 0,
        };
        Flows {
            keys: flow,
            records_in: flow,
            records_out: flow,
        }
    }

    #[test]
    fn all_of_them_must_have_moved() {
        let before = flows(10, 0);
        let mut now = flows(12, 3);
        assert!(now.are_beyond(&before));
        now.keys.received = 11;
        assert!(!now.are_beyond(&before));
    }

    #[test]
    fn what_was_lost_is_added_up() {
        let mut losses = Losses::default();
        losses.add(&flows(10, 1), &flows(20, 4));
        losses.add(&flows(20, 4), &flows(30, 4));
        let three = Losses {
            keys: 3,
            records_in: 3,
            records_out: 3,
        };
        assert_eq!(losses, three);
    }
}
