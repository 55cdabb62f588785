// SPDX-License-Identifier: GPL-3.0-or-later
//! `xl save` and `xl restore`.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use xen::{DomId, PAGE_SIZE};

use super::migrate::Memory;
use super::{Doing, DomainConfig, Toolstack, ToolstackError};
use crate::shm;
use crate::wire::{Request, ShutdownReason};

/// A saved domain. The guest's process waits in it; dropped, the guest is lost.
#[derive(Debug)]
pub struct SavedDomain {
    config: DomainConfig,
    memory: Memory,
    context: OwnedFd,
}

impl Toolstack {
    /// `xl save`: suspends the guest, keeps its memory and destroys the domain.
    pub fn save(&self, domid: DomId) -> Result<SavedDomain, ToolstackError> {
        self.save_while(domid, || ())
    }

    /// The same where writing the guest's memory takes as long as `during`: the guest is suspended, and
    /// its domain is still there.
    pub fn save_while(
        &self,
        domid: DomId,
        during: impl FnOnce(),
    ) -> Result<SavedDomain, ToolstackError> {
        let config = self.config(domid)?;
        self.request_shutdown(domid, "suspend", ShutdownReason::Suspend)?;
        let saved = self.take(domid, config);
        during();
        match saved {
            Ok(saved) => {
                self.destroy(domid)?;
                Ok(saved)
            }
            Err(err) => {
                self.resume_cancelled(domid)?;
                Err(err)
            }
        }
    }

    fn take(&self, domid: DomId, config: DomainConfig) -> Result<SavedDomain, ToolstackError> {
        let len_bytes = config.pages * PAGE_SIZE;
        let fd = shm::memfd(c"xen-sim-saved", len_bytes).doing(|| "saving".to_owned())?;
        let memory = Memory::new(fd, config.pages);
        self.memory(domid)?.copy_to(&memory)?;
        Ok(SavedDomain {
            config,
            memory,
            context: self.context(domid)?,
        })
    }

    /// `xl save -c`: the guest is suspended, saved, and goes on where it was. Gives how long it
    /// was suspended. (A process cannot be two: what was saved is not kept.)
    pub fn checkpoint(&self, domid: DomId) -> Result<Duration, ToolstackError> {
        self.checkpoint_while(domid, || ())
    }

    /// The same where writing the guest's memory takes as long as `during`: the guest is suspended.
    pub fn checkpoint_while(
        &self,
        domid: DomId,
        during: impl FnOnce(),
    ) -> Result<Duration, ToolstackError> {
        let config = self.config(domid)?;
        self.request_shutdown(domid, "suspend", ShutdownReason::Suspend)?;
        let suspended = Instant::now();
        let saved = self.take(domid, config);
        during();
        self.resume_cancelled(domid)?;
        saved.map(|_| suspended.elapsed())
    }

    /// `xl restore`: makes the domain from what was saved, here, and lets it run.
    pub fn restore(&self, saved: SavedDomain) -> Result<DomId, ToolstackError> {
        let SavedDomain {
            config,
            memory,
            context,
        } = saved;
        let domid = self.make_new_domain(&config)?;
        let fill = || {
            memory.copy_to(&self.memory(domid)?)?;
            self.call(&Request::SetContext { domid: domid.0 }, &[context.as_fd()])?;
            self.finish_build(domid, config.pages)?;
            self.attach_controllers(domid, &config.usbctrl)?;
            self.unpause(domid)
        };
        self.or_destroy(domid, fill())
    }
}
