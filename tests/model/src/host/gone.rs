// SPDX-License-Identifier: GPL-3.0-or-later
//! A domain that went away while nobody was there to tell its exporter: after `daemon/adoption.rs`.

use session::frame::{Kind, encode_plain};
use session::open::{Attempt, Evidence, How, Open, Opened};
use session::{Epoch, Lease};

use crate::exporter::{device, vm};
use crate::memory::Kept;

/// What is left to be told.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Gone {
    how: How,
    attempt: Attempt,
    lease: Lease,
    suspended: bool,
    pub(crate) connection: Option<u8>,
}

impl Gone {
    /// From what is left on disk; `None` where there is nothing to say.
    pub(crate) fn new(dom: u16) -> Option<Self> {
        let (lease, _) = Kept(dom).devices()?.pop()?;
        let journal = journal::Journal::open(Kept(dom)).ok()?;
        let port = usbif::PortNumber::new(lease.port)?;
        let session = journal.session(port)?;
        Some(Self {
            how: How::Resume {
                epoch: Epoch(session.epoch),
                completions_received: session.completions_received,
            },
            attempt: Attempt {
                life: session.life,
                number: u64::MAX,
            },
            lease,
            suspended: journal.is_quiescing(),
            connection: None,
        })
    }

    /// What a connection begins with.
    pub(crate) fn open(&self, dom: u16) -> Open {
        Open {
            device: device(),
            vm: vm(),
            domid: dom,
            attempt: self.attempt,
            frontend_resumes: self.lease.frontend_resumes,
            evidence: Evidence::Uuid,
            how: self.how,
        }
    }

    /// The exporter's answer: the last words, where they can be said. `Err` where there is nothing more
    /// to do; else it connects again.
    pub(crate) fn opened(&mut self, opened: &Opened) -> Result<Option<Vec<u8>>, ()> {
        let completions_received = match self.how {
            How::Resume {
                completions_received,
                ..
            } => completions_received,
            How::Claim { .. } => 0,
        };
        match (opened, self.how) {
            (Opened::Ready { .. }, _) => {
                let mut bytes = Vec::new();
                if self.suspended {
                    encode_plain(&mut bytes, Kind::Freeze, 0, completions_received, &[]);
                }
                encode_plain(&mut bytes, Kind::Orphan, 0, completions_received, &[]);
                Ok(Some(bytes))
            }
            (Opened::Refused(_), How::Resume { epoch, .. }) => {
                self.how = How::Claim { seen: epoch };
                Ok(None)
            }
            (Opened::Refused(_), How::Claim { .. }) => Err(()),
        }
    }
}
