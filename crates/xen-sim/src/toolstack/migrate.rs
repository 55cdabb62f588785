// SPDX-License-Identifier: GPL-3.0-or-later
//! `xl migrate`: sender and receiver in one (`xl_migrate.c`). In the other dialects the order of steps is the
//! same; what others see of them differs.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use xen::{DomId, PAGE_SIZE};

use super::{Doing, DomainConfig, Step, Toolstack, ToolstackError};
use crate::shm;
use crate::wire::{Request, Response, ShutdownReason, expect_fds, unexpected};

/// Where a migration is made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The connection breaks while memory is copied and the guest runs.
    DuringPrecopy,
    /// The target fails with its devices attached, before it reports that it is ready.
    BeforeGo,
    /// The connection breaks after the sender has said "go" and before it has the answer.
    AfterGo {
        /// Whether "go" still got there.
        target_runs: bool,
    },
}

/// How to migrate.
#[derive(Clone, Debug)]
pub struct MigrateOptions {
    /// Rounds in which all memory is copied while the guest runs.
    pub precopy_rounds: u32,
    /// Time between the rounds: how long the target is "incoming" at least.
    pub round_interval: Duration,
    /// A failure to inject.
    pub failure: Option<Failure>,
}

impl Default for MigrateOptions {
    fn default() -> MigrateOptions {
        MigrateOptions {
            precopy_rounds: 2,
            round_interval: Duration::from_millis(20),
            failure: None,
        }
    }
}

impl MigrateOptions {
    /// One that fails like this.
    pub fn failing(failure: Failure) -> MigrateOptions {
        MigrateOptions {
            failure: Some(failure),
            ..MigrateOptions::default()
        }
    }
}

/// A migration that succeeded.
#[derive(Clone, Debug)]
pub struct Migration {
    /// The domain at the target.
    pub domid: DomId,
    /// From the guest's suspend until it was unpaused at the target.
    pub pause: Duration,
    /// Of this, the time that attaching the devices took.
    pub attach: Duration,
    /// What went wrong while the source's domain was destroyed; the guest runs.
    pub source_leftover: Option<String>,
}

/// Why a migration failed.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// It never got as far as to suspend the guest; the guest runs on at the source.
    #[error("migration failed, the guest was not suspended")]
    NotSuspended(#[source] ToolstackError),
    /// "Migration failed, resuming at sender."
    #[error("migration failed, resumed at sender after {} ms", pause.as_millis())]
    ResumedAtSource {
        /// What happened.
        #[source]
        cause: ToolstackError,
        /// How long the guest was suspended.
        pause: Duration,
    },
    /// "Domain state is now undefined": nobody knows here whether the target got "go".
    #[error("connection lost after go: domain state is now undefined")]
    Undefined {
        /// The target's domain, if it runs.
        target: Option<DomId>,
    },
    /// Not even resuming worked.
    #[error("migration failed and the source could not be resumed")]
    Lost(#[source] ToolstackError),
}

impl MigrateError {
    /// Whether a backend at the target has removed its state node, by which it says at once that the
    /// guest may not come. The guest runs on at the source.
    pub fn is_refusal(&self) -> bool {
        let Self::ResumedAtSource { cause, .. } = self else {
            return false;
        };
        matches!(cause, ToolstackError::BackendRemoved { .. })
    }
}

fn injected(what: &str) -> ToolstackError {
    ToolstackError::Host {
        what: what.to_owned(),
        source: std::io::Error::other("injected failure"),
    }
}

impl Toolstack {
    /// `xl migrate DOMAIN HOST`, or what it is in the toolstack's dialect. `target` may be this same host,
    /// but not with libvirt.
    pub fn migrate(
        &self,
        domid: DomId,
        target: &Toolstack,
        options: &MigrateOptions,
    ) -> Result<Migration, MigrateError> {
        self.migrate_by_steps(domid, target, options, &mut |_, _| ())
    }

    /// The same, where `step` is called after each step, with the target's domain.
    pub fn migrate_by_steps(
        &self,
        domid: DomId,
        target: &Toolstack,
        options: &MigrateOptions,
        step: &mut dyn FnMut(Step, DomId),
    ) -> Result<Migration, MigrateError> {
        let config = self.config(domid).map_err(MigrateError::NotSuspended)?;
        let incoming = target
            .make_target(&config)
            .map_err(MigrateError::NotSuspended)?;
        step(Step::TargetMade, incoming);
        let copied = self
            .precopy(domid, target, incoming, options)
            .and_then(|()| self.request_shutdown(domid, "suspend", ShutdownReason::Suspend));
        if let Err(err) = copied {
            let _ = target.destroy(incoming);
            return Err(MigrateError::NotSuspended(err));
        }
        let suspended = Instant::now();
        step(Step::Suspended, incoming);
        // The target is ready; then the source's name is given up.
        let ready = self
            .receive(domid, target, incoming, &config, options)
            .and_then(|attach| {
                step(Step::Received, incoming);
                self.rename_source(domid, &config)?;
                step(Step::SourceRenamed, incoming);
                Ok(attach)
            });
        let attach = match ready {
            Ok(attach) => attach,
            Err(cause) => {
                let _ = target.destroy(incoming);
                if !self.dialect.resumes_at_source() {
                    let _ = self.destroy(domid);
                    return Err(MigrateError::Lost(cause));
                }
                self.resume_cancelled(domid).map_err(MigrateError::Lost)?;
                return Err(MigrateError::ResumedAtSource {
                    cause,
                    pause: suspended.elapsed(),
                });
            }
        };
        let lost = match options.failure {
            Some(Failure::AfterGo { target_runs }) => Some(target_runs),
            _ => None,
        };
        if lost == Some(false) {
            let _ = target.destroy(incoming);
            return Err(MigrateError::Undefined { target: None });
        }
        target
            .rename_target(incoming, &config, step)
            .and_then(|()| {
                step(Step::TargetRenamed, incoming);
                target.unpause(incoming)
            })
            .and_then(|()| target.target_runs(incoming))
            .map_err(MigrateError::Lost)?;
        step(Step::Unpaused, incoming);
        let pause = suspended.elapsed();
        if lost.is_some() {
            return Err(MigrateError::Undefined {
                target: Some(incoming),
            });
        }
        let leftover = self.destroy(domid).err();
        Ok(Migration {
            domid: incoming,
            pause,
            attach,
            source_leftover: leftover.map(|err| err.to_string()),
        })
    }

    fn precopy(
        &self,
        domid: DomId,
        target: &Toolstack,
        incoming: DomId,
        options: &MigrateOptions,
    ) -> Result<(), ToolstackError> {
        for _ in 0..options.precopy_rounds {
            self.memory(domid)?.copy_to(&target.memory(incoming)?)?;
            std::thread::sleep(options.round_interval);
        }
        match options.failure {
            Some(Failure::DuringPrecopy) => Err(injected("copying memory")),
            _ => Ok(()),
        }
    }

    /// What the receiver does while the guest is suspended. Gives the time that its devices took.
    fn receive(
        &self,
        domid: DomId,
        target: &Toolstack,
        incoming: DomId,
        config: &DomainConfig,
        options: &MigrateOptions,
    ) -> Result<Duration, ToolstackError> {
        self.memory(domid)?.copy_to(&target.memory(incoming)?)?;
        let context = self.context(domid)?;
        target.call(
            &Request::SetContext { domid: incoming.0 },
            &[context.as_fd()],
        )?;
        target.finish_build(incoming, config.pages)?;
        let started = Instant::now();
        target.attach_controllers(incoming, &config.usbctrl)?;
        match options.failure {
            Some(Failure::BeforeGo) => Err(injected("the target's report")),
            _ => Ok(started.elapsed()),
        }
    }

    /// `libxl_domain_resume` with the suspend cancelled.
    pub(super) fn resume_cancelled(&self, domid: DomId) -> Result<(), ToolstackError> {
        self.call(&Request::ResumeDomain { domid: domid.0 }, &[])?;
        self.store()?.resume(domid.0)?;
        Ok(())
    }

    /// Brings back a source whose migration ended undefined, once the administrator knows that
    /// the target does not run (`xl` has no command for it; `libxl_domain_resume` has).
    pub fn resume_source(&self, domid: DomId) -> Result<(), ToolstackError> {
        let name = self.config(domid)?.name;
        if let Some(name) = name.strip_suffix("--migratedaway") {
            self.rename(domid, name)?;
        }
        self.resume_cancelled(domid)
    }

    pub(super) fn context(&self, domid: DomId) -> Result<OwnedFd, ToolstackError> {
        let (_, fds) = self.call(&Request::GetContext { domid: domid.0 }, &[])?;
        let [context] = expect_fds(fds)?;
        Ok(context)
    }

    pub(super) fn memory(&self, domid: DomId) -> Result<Memory, ToolstackError> {
        let (response, fds) = self.call(&Request::DomainMemory { domid: domid.0 }, &[])?;
        let Response::Memory { pages } = response else {
            return Err(unexpected(&response).into());
        };
        let [memory] = expect_fds(fds)?;
        Ok(Memory::new(memory, pages))
    }
}

/// A domain's memory, or what was saved of it.
#[derive(Debug)]
pub(super) struct Memory {
    file: File,
    len_bytes: u64,
}

impl Memory {
    pub(super) fn new(memfd: OwnedFd, pages: usize) -> Memory {
        Memory {
            file: File::from(memfd),
            len_bytes: (pages * PAGE_SIZE) as u64,
        }
    }

    pub(super) fn copy_to(&self, to: &Memory) -> Result<(), ToolstackError> {
        shm::copy_memfd(&self.file, &to.file, self.len_bytes).doing(|| "copying memory".to_owned())
    }
}
