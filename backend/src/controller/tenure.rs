// SPDX-License-Identifier: GPL-3.0-or-later
//! How a controller takes up the lease of a device, and what the exporter's answer means. Decisions
//! only: the device's task connects and waits, and so does the world of `tests/model`.

use std::time::Duration;

use session::client::Client;
use session::control::Refusal;
use session::open::{Evidence, How, Opened};
use session::{Epoch, Holder};

/// What is known of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tenure {
    /// The epoch that was seen in the lease.
    seen: Epoch,
    /// The epoch under which we hold it.
    session: Option<Epoch>,
    /// Whether we have held it.
    held: bool,
    /// What says that our guest is the VM.
    evidence: Evidence,
    /// Another domain with the VM's uuid has it, or has had it since it was seen here: our guest is not shown
    /// the device before we hold it.
    waits: bool,
}

/// What is next after the exporter's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// The lease is ours under this epoch: numbers start anew.
    Claimed(Epoch),
    /// The session goes on; the exporter has had the requests up to this one.
    Resumed(u64),
    /// Connect again: the lease is at this epoch meanwhile.
    Again(Epoch),
    /// The lease is at this epoch meanwhile. If the guest is still here, say so with
    /// [`Tenure::stays`] and connect again; if it has moved on, the device is where it is.
    Elsewhere(Epoch),
    /// Another domain with the VM's uuid holds it and may be running: connect again after a while. Where it
    /// is one of this host and is gone, say so with [`Tenure::holder_is_gone`] first.
    HeldElsewhere {
        /// That domain.
        holder: Holder,
        /// Whether its host is connected to the exporter.
        connected: bool,
    },
    /// The VM is suspended at its holder, and perhaps our guest is this VM: connect again in a moment. Where the
    /// holder is a domain of this host and is gone, say so with [`Tenure::holder_is_gone`] first.
    Undecided(Holder),
    /// No.
    Refused(Refusal),
}

impl Tenure {
    /// A lease that was seen at this epoch; `session` is the epoch under which an earlier process
    /// held it here.
    pub fn new(seen: Epoch, session: Option<Epoch>) -> Self {
        Self {
            seen,
            session,
            held: session.is_some(),
            evidence: Evidence::Uuid,
            waits: false,
        }
    }

    /// The same, with what says that our guest is the VM.
    #[must_use]
    pub fn with(self, evidence: Evidence) -> Self {
        Self { evidence, ..self }
    }

    /// The same, where another domain with the VM's uuid was seen to have it.
    #[must_use]
    pub fn waiting(self, waits: bool) -> Self {
        match waits {
            true => Self {
                waits,
                evidence: Evidence::Uuid,
                ..self
            },
            false => self,
        }
    }

    /// What says that our guest is the VM, for the next connection.
    pub fn evidence(&self) -> Evidence {
        self.evidence
    }

    /// Whether another domain with the VM's uuid has it, or has had it since it was seen here.
    pub fn waits(&self) -> bool {
        self.waits
    }

    /// The same, where nobody else's claim is to be overruled.
    #[must_use]
    pub fn holding(self, held: bool) -> Self {
        Self {
            held: self.held || held,
            ..self
        }
    }

    /// The epoch under which it is held.
    pub fn session(&self) -> Option<Epoch> {
        self.session
    }

    /// How to open the connection.
    pub fn how(&self, client: Option<&Client>) -> How {
        match client {
            Some(client) if self.session == Some(client.epoch()) => client.resume(),
            _ => How::Claim {
                seen: self.session.unwrap_or(self.seen),
            },
        }
    }

    /// The answer to a connection opened like this.
    pub fn answered(&mut self, how: How, opened: Opened) -> Next {
        match (how, opened) {
            // The epoch has grown since the lease was read, for example because the source was
            // restarted. The frontend is connected here, so here is where the guest runs, unless it
            // has moved on before it could claim.
            // Who has held it before does not do this: who fenced it off is where the guest is.
            (How::Claim { .. }, Opened::Refused(Refusal::Fenced { current, .. }))
                if !self.held && current > self.seen =>
            {
                // A guest that was restored before, and let run now, remembers what is true no more.
                if self.evidence != Evidence::Arrival {
                    *self = self.waiting(true);
                }
                Next::Elsewhere(current)
            }
            // Evidence that the exporter has turned down is none later either: a copy that waits must not be
            // taken for a guest that arrives when the VM is suspended for a moment.
            (
                How::Claim { .. },
                Opened::Refused(Refusal::HeldElsewhere {
                    holder,
                    silent_seconds,
                    ..
                }),
            ) => {
                *self = self.waiting(true);
                Next::HeldElsewhere {
                    holder,
                    connected: silent_seconds.is_none(),
                }
            }
            // The evidence stands: our guest sees nothing before it is known whether it is the VM.
            (How::Claim { .. }, Opened::Refused(Refusal::SuspendedElsewhere { holder, .. })) => {
                Next::Undecided(holder)
            }
            // The exporter was restarted and knows nothing of what was in flight, or somebody else
            // holds the lease. A claim tells: only the holder of before may make it with its old
            // epoch.
            (How::Resume { .. }, Opened::Refused(Refusal::Fenced { current, .. })) => {
                self.seen = self.session.take().unwrap_or(self.seen);
                Next::Again(current)
            }
            (_, Opened::Refused(refusal)) => Next::Refused(refusal),
            (How::Claim { .. }, Opened::Ready { epoch, .. }) => {
                (self.session, self.held) = (Some(epoch), true);
                self.waits = false;
                Next::Claimed(epoch)
            }
            (
                How::Resume { .. },
                Opened::Ready {
                    requests_received, ..
                },
            ) => Next::Resumed(requests_received),
        }
    }

    /// The guest is still here: the next claim is made with this epoch.
    pub fn stays(&mut self, current: Epoch) {
        self.seen = current;
    }

    /// The session cannot go on: what the two ends have had of each other contradicts. The next attempt
    /// claims, under the epoch at which the lease is ours.
    pub fn lose_session(&mut self) {
        self.seen = self.session.take().unwrap_or(self.seen);
    }

    /// How long it is of use to ask again after this refusal.
    pub fn patience(refusal: &Refusal) -> Patience {
        match refusal {
            // A full disk, too many connections: nothing is said about the device.
            Refusal::Limit(_) => Patience::Endless,
            Refusal::NotReady { seconds, .. } => {
                Patience::For(Duration::from_secs((*seconds).into()))
            }
            // An administrator who has just mended the wrong line starts the exporter again.
            Refusal::Policy { .. } => Patience::For(Duration::ZERO),
            // Somebody else has the device, or it is not this VM's any more.
            Refusal::Fenced { .. } | Refusal::NoLease { .. } | Refusal::Busy { .. } => {
                Patience::None
            }
            // The device is pulled out: an attachment that follows it looks for it elsewhere.
            Refusal::Absent { .. } => Patience::None,
            // Asked again, the exporter says yes when that domain is gone.
            Refusal::HeldElsewhere { .. } | Refusal::SuspendedElsewhere { .. } => Patience::Endless,
            // Answers to who asks for a new lease.
            Refusal::UnknownDevice(_) | Refusal::Ambiguous { .. } | Refusal::Unavailable { .. } => {
                Patience::None
            }
        }
    }

    /// The holder that the exporter has named was a domain of this host, and is gone.
    pub fn holder_is_gone(&mut self, domid: u16) {
        self.evidence = Evidence::HolderGone(domid);
    }

    /// Whether asking again is of no use.
    pub fn is_final(refusal: &Refusal) -> bool {
        Self::patience(refusal) == Patience::None
    }
}

/// How long a device may be refused, with a reason that passes, before it counts as lost.
pub const NOT_READY_FOR: Duration = Duration::from_secs(60);

/// How long it is of use to ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// It is of no use.
    None,
    /// For [`NOT_READY_FOR`] after the first such refusal, and for this long from now on.
    For(Duration),
    /// As long as it takes.
    Endless,
}

/// Until when refusals that pass are borne.
#[derive(Clone, Copy, Debug, Default)]
pub struct Waiting {
    /// The first of them.
    since: Option<Duration>,
}

impl Waiting {
    /// The exporter has refused, at this time of any clock that only grows. Answers whether that is
    /// final.
    pub fn refused(&mut self, refusal: &Refusal, now: Duration) -> bool {
        match Tenure::patience(refusal) {
            Patience::None => true,
            Patience::Endless => {
                self.over();
                false
            }
            Patience::For(more) => {
                let first = *self.since.get_or_insert(now);
                more.is_zero() && now.saturating_sub(first) >= NOT_READY_FOR
            }
        }
    }

    /// Something else came of an attempt: the next refusal is the first one.
    pub fn over(&mut self) {
        self.since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(seen: u64) -> How {
        How::Claim { seen: Epoch(seen) }
    }

    fn fenced(current: u64) -> Opened {
        Opened::Refused(Refusal::Fenced {
            yours: Epoch(0),
            current: Epoch(current),
        })
    }

    #[test]
    fn who_never_held_it_asks_where_the_guest_is() {
        let mut tenure = Tenure::new(Epoch(3), None);
        assert_eq!(tenure.how(None), claim(3));
        assert_eq!(
            tenure.answered(claim(3), fenced(5)),
            Next::Elsewhere(Epoch(5))
        );
        assert_eq!(tenure.how(None), claim(3), "unless it says that it stays");
        tenure.stays(Epoch(5));
        assert_eq!(tenure.how(None), claim(5));
        let refused = tenure.answered(claim(5), fenced(5));
        assert!(matches!(refused, Next::Refused(_)), "{refused:?}");
    }

    fn held_elsewhere(silent_seconds: Option<u64>) -> (Opened, Next) {
        let holder = Holder {
            host: "a".into(),
            domid: 7,
        };
        let refused = Opened::Refused(Refusal::HeldElsewhere {
            device: session::DeviceId("1-2".into()),
            vm: session::VmUuid(Default::default()),
            holder: holder.clone(),
            epoch: Epoch(3),
            silent_seconds,
        });
        let connected = silent_seconds.is_none();
        (refused, Next::HeldElsewhere { holder, connected })
    }

    #[test]
    fn evidence_that_was_turned_down_is_not_shown_again() {
        for evidence in [Evidence::FirstConnect, Evidence::Arrival] {
            let mut tenure = Tenure::new(Epoch(3), None).with(evidence);
            assert_eq!((tenure.evidence(), tenure.waits()), (evidence, false));
            let (refused, next) = held_elsewhere(None);
            assert_eq!(tenure.answered(claim(3), refused), next);
            assert_eq!((tenure.evidence(), tenure.waits()), (Evidence::Uuid, true));
            // Nor by a process that comes later.
            let later = Tenure::new(Epoch(3), None).with(evidence).waiting(true);
            assert_eq!(later, tenure);
            // But what this host knows of its own domains is.
            tenure.holder_is_gone(7);
            assert_eq!(tenure.evidence(), Evidence::HolderGone(7));
            assert!(tenure.waits(), "until it is claimed");
        }
    }

    /// The evidence stands until it is known what becomes of the VM.
    #[test]
    fn who_may_be_a_vm_that_is_suspended_asks_on() {
        let mut tenure = Tenure::new(Epoch(3), None).with(Evidence::FirstConnect);
        let holder = Holder {
            host: "a".into(),
            domid: 7,
        };
        let suspended = || {
            Opened::Refused(Refusal::SuspendedElsewhere {
                device: device(),
                vm: session::VmUuid(Default::default()),
                holder: holder.clone(),
            })
        };
        let next = tenure.answered(claim(3), suspended());
        assert_eq!(next, Next::Undecided(holder.clone()));
        assert_eq!(
            (tenure.evidence(), tenure.waits()),
            (Evidence::FirstConnect, false)
        );
        // It went on where it was.
        let mut copy = tenure;
        let (refused, next) = held_elsewhere(None);
        assert_eq!(copy.answered(claim(3), refused), next);
        assert!(copy.waits());
        // Or it has left.
        let ready = Opened::Ready {
            epoch: Epoch(4),
            requests_received: 0,
        };
        assert_eq!(tenure.answered(claim(3), ready), Next::Claimed(Epoch(4)));
        assert!(!tenure.waits());
    }

    /// `xl restore -p`, and the VM was started elsewhere meanwhile.
    #[test]
    fn a_guest_that_did_not_arrive_waits_where_the_epoch_has_grown() {
        let mut tenure = Tenure::new(Epoch(3), None).with(Evidence::FirstConnect);
        let next = tenure.answered(claim(3), fenced(5));
        assert_eq!(next, Next::Elsewhere(Epoch(5)));
        assert_eq!((tenure.evidence(), tenure.waits()), (Evidence::Uuid, true));
        let mut tenure = Tenure::new(Epoch(3), None).with(Evidence::Arrival);
        let next = tenure.answered(claim(3), fenced(5));
        assert_eq!(next, Next::Elsewhere(Epoch(5)));
        assert_eq!(
            (tenure.evidence(), tenure.waits()),
            (Evidence::Arrival, false)
        );
    }

    #[test]
    fn who_held_it_claims_with_its_own_epoch_only() {
        let mut tenure = Tenure::new(Epoch(3), Some(Epoch(4)));
        let client = Client::new(Epoch(4));
        let resume = tenure.how(Some(&client));
        assert!(matches!(resume, How::Resume { epoch, .. } if epoch == Epoch(4)));
        // A client that could not be restored.
        assert_eq!(tenure.how(None), claim(4));
        assert_eq!(tenure.answered(resume, fenced(7)), Next::Again(Epoch(7)));
        assert_eq!(tenure.how(Some(&client)), claim(4));
        let refused = tenure.answered(claim(4), fenced(7));
        assert!(matches!(refused, Next::Refused(_)), "{refused:?}");
    }

    #[test]
    fn a_session_that_contradicts_itself_is_claimed_with_its_own_epoch() {
        let mut tenure = Tenure::new(Epoch(3), Some(Epoch(4)));
        let client = Client::new(Epoch(4));
        assert!(matches!(tenure.how(Some(&client)), How::Resume { .. }));
        tenure.lose_session();
        assert_eq!(tenure.how(Some(&client)), claim(4));
        // Somebody else has it: it is not taken back.
        let refused = tenure.answered(claim(4), fenced(7));
        assert!(matches!(refused, Next::Refused(_)), "{refused:?}");
        // The exporter says the same of a resume.
        let mut tenure = Tenure::new(Epoch(3), Some(Epoch(4)));
        let resume = tenure.how(Some(&client));
        assert_eq!(tenure.answered(resume, fenced(4)), Next::Again(Epoch(4)));
        assert_eq!(tenure.how(Some(&client)), claim(4));
    }

    fn not_ready(seconds: u32) -> Refusal {
        Refusal::NotReady {
            device: device(),
            reason: "busy".into(),
            seconds,
        }
    }

    fn device() -> session::DeviceId {
        session::DeviceId("1-1".into())
    }

    /// Every refusal: final at once, final after a minute, or never.
    #[test]
    fn what_is_final_and_what_passes() {
        let (device, vm) = (device(), session::VmUuid(uuid::Uuid::nil()));
        let table = [
            (Refusal::UnknownDevice("1-1".into()), Some(0)),
            (
                Refusal::Ambiguous {
                    selector: "0951:1666".into(),
                    count: 2,
                },
                Some(0),
            ),
            (
                Refusal::Busy {
                    device: device.clone(),
                    vm,
                    vm_name: "other".into(),
                },
                Some(0),
            ),
            (
                Refusal::Policy {
                    device: device.clone(),
                    vm,
                    host: "host-a".into(),
                },
                Some(60),
            ),
            (
                Refusal::Unavailable {
                    device: device.clone(),
                    reason: "a hub".into(),
                },
                Some(0),
            ),
            (
                Refusal::NoLease {
                    device: device.clone(),
                    vm,
                },
                Some(0),
            ),
            (
                Refusal::Fenced {
                    yours: Epoch(1),
                    current: Epoch(2),
                },
                Some(0),
            ),
            (Refusal::Absent { device }, Some(0)),
            (not_ready(0), Some(60)),
            // The exporter says itself when it is over.
            (not_ready(1), None),
            (Refusal::Limit("disk full".into()), None),
        ];
        for (refusal, expected) in table {
            let mut waiting = Waiting::default();
            let start = 1_000;
            let times = start..start + 100;
            let is_final = |second: &u64| waiting.refused(&refusal, Duration::from_secs(*second));
            let found = times.clone().find(is_final).map(|second| second - start);
            assert_eq!(found, expected, "{refusal:?}");
        }
    }

    #[test]
    fn only_refusals_in_a_row_count() {
        let seconds = Duration::from_secs;
        let mut waiting = Waiting::default();
        assert!(!waiting.refused(&not_ready(0), seconds(0)));
        assert!(!waiting.refused(&not_ready(0), seconds(59)));
        // The exporter was out of reach, for however long.
        waiting.over();
        assert!(!waiting.refused(&not_ready(0), seconds(500)));
        assert!(!waiting.refused(&Refusal::Limit(String::new()), seconds(550)));
        assert!(!waiting.refused(&not_ready(0), seconds(560)));
        assert!(waiting.refused(&not_ready(0), seconds(620)));
        // A device that takes longer to appear, at an exporter that waits longer.
        waiting.over();
        assert!(!waiting.refused(&not_ready(120), seconds(1000)));
        assert!(!waiting.refused(&not_ready(40), seconds(1080)));
    }
}
