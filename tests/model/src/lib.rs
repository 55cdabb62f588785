// SPDX-License-Identifier: GPL-3.0-or-later
//! The whole system as one machine: a guest, two hosts' `vusbd`, an exporter, the toolstack, and the
//! network between them, all on one thread.
//!
//! A [`World`] knows what may happen next ([`World::enabled`]) and lets it happen
//! ([`World::apply`]). [`check`] tries everything within bounds; [`sim`] chooses at random, for
//! long. What is shipped does the work: `usbif`'s rings, `backend`'s `Serving` with `vusb-core` and its
//! journal, both ends of `session`, the lease table, `handoff::step`, what follows from xenstore and
//! from an exporter's answer. The world adds what they run in: xenstore, the toolstack's script,
//! connections, and the order of events.
//!
//! What must not happen is written down in [`History`], and judged when nothing more can happen.
#![forbid(unsafe_code)]

pub mod check;
mod exporter;
mod guest;
mod history;
mod host;
mod memory;
mod network;
pub mod sim;
pub mod suites;
mod world;

pub use history::History;
pub use world::{Step, World};

/// What moves the VM, and by which signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// `xl` makes the target's controller when the guest is suspended, waits for it, and says that the VM
    /// arrives from before that on.
    Xl,
    /// xenopsd says that the VM arrives as soon as the target's domain is made. `vusbd` makes the controller,
    /// and nobody waits for it.
    Xenopsd,
    /// libvirt says nothing. `vusbd` makes the controller, and nobody waits for it.
    Libvirt,
}

impl Dialect {
    /// All.
    pub const ALL: [Self; 3] = [Self::Xl, Self::Xenopsd, Self::Libvirt];

    /// Whether `vusbd` makes the controllers itself.
    pub fn has_own_controllers(self) -> bool {
        self != Self::Xl
    }
}

/// What a world may do, and what is left of that.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// The toolstack.
    pub dialect: Dialect,
    /// Transfers of the guest.
    pub transfers: u16,
    /// Most of them at a time.
    pub window: usize,
    /// Migrations.
    pub migrations: u16,
    /// Connections that break.
    pub cuts: u16,
    /// Migrations that fail before "go".
    pub aborts: u16,
    /// Crashes of the exporter.
    pub exporter_crashes: u16,
    /// Crashes of a host, with the guest on it.
    pub host_crashes: u16,
    /// Ends of a `vusbd` (SIGKILL) beside its guests; it is started again.
    pub restarts: u16,
    /// Such an end comes at any of so many next stores to shared memory, also in the middle of what
    /// it does; 0: only between two steps.
    pub stores: u16,
    /// Connections of a `vusbd` to xenstored that break, with its watches.
    pub store_losses: u16,
    /// Hold times that are over before somebody claims the lease.
    pub holds: u16,
    /// Second domains with the VM's uuid, one at a time.
    pub copies: u16,
    /// Claims of theirs that are tried again although nothing has happened.
    pub retries: u16,
    /// Times that the guest's driver is unloaded and loaded again.
    pub reloads: u16,
    /// Transfers that the guest's driver gives up on.
    pub unlinks: u16,
    /// Events that mean nothing: watches that fire again, signals without a request.
    pub spurious: u16,
    /// Whether controllers keep a journal.
    pub keeps: bool,
    /// Whether the frontend can resume. If it cannot, a migration is refused.
    pub resumes: bool,
    /// Whether the frontend takes its transfers back by itself at a suspend, and its driver does not
    /// notice.
    pub recalls: bool,
    /// Whether acknowledgements without a request are a step of their own.
    pub acknowledgements: bool,
    /// A bug, to see that it is found: the exporter's device goes on with transfers of epochs that
    /// have ended.
    pub planted_unfenced: bool,
    /// Another: a signal of the frontend is lost.
    pub planted_lost_signal: bool,
    /// Another: a `vusbd` that was started again claims its leases instead of resuming its sessions.
    pub planted_claims: bool,
    /// Another: what a `vusbd` stores last before it ends is not in its journal, as if it were written
    /// after the ring.
    pub planted_late_journal: bool,
    /// Another: the exporter answers a SET_ADDRESS at once, and saves the address afterwards.
    pub planted_hasty: bool,
    /// Another: the exporter takes every claimant's word that its guest is the VM.
    pub planted_credulous: bool,
}

impl Limits {
    /// Nothing goes wrong.
    pub fn calm(transfers: u16, migrations: u16) -> Self {
        Self {
            dialect: Dialect::Xl,
            transfers,
            window: 2,
            migrations,
            cuts: 0,
            aborts: 0,
            exporter_crashes: 0,
            host_crashes: 0,
            restarts: 0,
            stores: 0,
            store_losses: 0,
            holds: 0,
            copies: 0,
            retries: 0,
            reloads: 0,
            unlinks: 0,
            spurious: 0,
            keeps: false,
            resumes: true,
            recalls: false,
            acknowledgements: false,
            planted_unfenced: false,
            planted_lost_signal: false,
            planted_claims: false,
            planted_late_journal: false,
            planted_hasty: false,
            planted_credulous: false,
        }
    }
}
