// SPDX-License-Identifier: GPL-3.0-or-later
//! How often a domain's nodes are looked at.
//!
//! A guest may write its frontend's nodes as often as it likes, and each time `vusbd` is told. One
//! that never stops (it connects and closes for ever) would have the daemon do nothing but read its
//! nodes, one after the other, while other domains wait. Nodes have a state, not a history, so
//! it is enough to look at them now and then: at once a number of times, later after a pause in
//! which they are not watched at all.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use xen::DomId;

/// Looks at once: several controllers that connect, each with some ten changes.
const BURST: u32 = 128;
/// One more look after this time.
const REFILL: Duration = Duration::from_millis(50);

/// Which of its nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Nodes {
    /// Those of its frontends.
    Frontend,
    /// `control/shutdown`, of which also counts that it changed.
    Shutdown,
}

/// What to do about a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Look at the nodes.
    Now,
    /// Stop watching them, until they are [due](Pace::due).
    Later,
    /// That was said already.
    Waits,
}

#[derive(Debug)]
struct Looks {
    left: u32,
    /// When `left` was true.
    at: Instant,
    /// When they are watched again.
    due: Option<Instant>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Pace {
    domains: BTreeMap<(DomId, Nodes), Looks>,
}

impl Pace {
    /// Something changed at a domain.
    pub(super) fn may_look(&mut self, domid: DomId, nodes: Nodes, now: Instant) -> Look {
        let looks = self.domains.entry((domid, nodes)).or_insert(Looks {
            left: BURST,
            at: now,
            due: None,
        });
        if looks.due.is_some() {
            return Look::Waits;
        }
        let elapsed = now.duration_since(looks.at).as_nanos();
        let refilled = u32::try_from(elapsed / REFILL.as_nanos()).unwrap_or(BURST);
        looks.left = looks.left.saturating_add(refilled).min(BURST);
        // What is left of an interval counts; it is less than one.
        looks.at = now - Duration::from_nanos((elapsed % REFILL.as_nanos()) as u64);
        match looks.left.checked_sub(1) {
            Some(left) => {
                looks.left = left;
                Look::Now
            }
            None => {
                looks.due = Some(looks.at + REFILL);
                Look::Later
            }
        }
    }

    /// When the first nodes are to be watched again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.domains.values().filter_map(|looks| looks.due).min()
    }

    /// Nodes to be watched again now. That counts as a change, which there was.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<(DomId, Nodes)> {
        let is_due = |looks: &Looks| looks.due.filter(|due| *due <= now);
        let mut domains = self.domains.iter_mut();
        let (changed, looks, due) = domains.find_map(|(k, l)| is_due(l).map(|due| (*k, l, due)))?;
        (looks.due, looks.left, looks.at) = (None, 1, due);
        Some(changed)
    }

    /// They could not be watched: later again.
    pub(super) fn again(&mut self, domid: DomId, nodes: Nodes, now: Instant) {
        if let Some(looks) = self.domains.get_mut(&(domid, nodes)) {
            looks.due = Some(now + REFILL);
        }
    }

    /// The domain has no controller any more.
    pub(super) fn forget(&mut self, domid: DomId) {
        self.domains.retain(|(of, _), _| *of != domid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORMY: DomId = DomId(1);
    const QUIET: DomId = DomId(2);

    #[test]
    fn a_storm_is_looked_at_now_and_then_and_to_its_end() {
        let start = Instant::now();
        let mut pace = Pace::default();
        let mut looks = 0;
        let mut watched = true;
        for us in (0..10_000_000).step_by(100) {
            let now = start + Duration::from_micros(us);
            if pace.due().is_some_and(|due| due <= now) {
                assert_eq!(pace.take_due(now), Some((STORMY, Nodes::Frontend)));
                assert!(!watched);
                watched = true;
            }
            match pace.may_look(STORMY, Nodes::Frontend, now) {
                Look::Now => looks += 1,
                Look::Later => watched = false,
                Look::Waits => assert!(!watched, "what waits is not watched"),
            }
        }
        assert!((200..=128 + 200 + 1).contains(&looks), "{looks}");
        // The last change is not forgotten.
        let due = pace.due().unwrap();
        assert_eq!(pace.take_due(due), Some((STORMY, Nodes::Frontend)));
        assert_eq!(pace.may_look(STORMY, Nodes::Frontend, due), Look::Now);
        assert_eq!(pace.due(), None);
    }

    #[test]
    fn others_do_not_wait() {
        let now = Instant::now();
        let mut pace = Pace::default();
        while pace.may_look(STORMY, Nodes::Frontend, now) == Look::Now {}
        assert_eq!(pace.may_look(QUIET, Nodes::Frontend, now), Look::Now);
        assert_eq!(pace.may_look(STORMY, Nodes::Shutdown, now), Look::Now);
        assert_eq!(pace.take_due(now), None);
        pace.forget(STORMY);
        assert_eq!(pace.due(), None);
        let first = pace.may_look(STORMY, Nodes::Frontend, now);
        assert_eq!(first, Look::Now, "a new domain of this number");
    }

    /// What is left of an interval counts.
    #[test]
    fn the_rate_does_not_depend_on_when_something_changes() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let mut now = start;
        let mut looks = 0;
        while now < start + REFILL * 1000 {
            now += REFILL * 6 / 10;
            if pace.due().is_some_and(|due| due <= now) {
                pace.take_due(now);
            }
            if pace.may_look(DomId(1), Nodes::Frontend, now) == Look::Now {
                looks += 1;
            }
        }
        let most = 1000 + BURST + 5;
        assert!((990..=most).contains(&looks), "{looks} in the time of 1000");
    }
}
