// SPDX-License-Identifier: GPL-3.0-or-later
//! The two eventfds of an event channel, as either end holds them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use xen::EvtchnPort;

use crate::hypervisor::{fire, take};

/// One end's descriptors.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) port: EvtchnPort,
    fires: OwnedFd,
    signals: OwnedFd,
}

impl Ends {
    pub(crate) fn new(port: u32, [fires, signals]: [OwnedFd; 2]) -> Ends {
        Ends {
            port: EvtchnPort(port),
            fires,
            signals,
        }
    }

    pub(crate) fn notify(&self) {
        fire(&self.signals);
    }

    pub(crate) fn take_event(&self) -> bool {
        take(&self.fires)
    }
}

impl AsFd for Ends {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fires.as_fd()
    }
}
