// SPDX-License-Identifier: GPL-3.0-or-later
//! How a controller takes up the lease of a device, and what the exporter's answer means. Decisions
//! only: the device's task connects and waits, and so does the world of `tests/model`.

use session::Epoch;
use session::client::Client;
use session::control::Refusal;
use session::open::{How, Opened};

/// What is known of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tenure {
    /// The epoch that was seen in the lease.
    seen: Epoch,
    /// The epoch under which we hold it.
    session: Option<Epoch>,
    /// Whether we have held it.
    held: bool,
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
        }
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
                Next::Elsewhere(current)
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

    /// Whether trying again is of no use. Limits pass, and a policy can be mended while we wait.
    pub fn is_final(refusal: &Refusal) -> bool {
        !matches!(refusal, Refusal::Limit(_))
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
    fn a_limit_passes_and_a_fence_does_not() {
        assert!(!Tenure::is_final(&Refusal::Limit("too many".into())));
        let Opened::Refused(refusal) = fenced(2) else {
            unreachable!("made so above")
        };
        assert!(Tenure::is_final(&refusal));
    }
}
