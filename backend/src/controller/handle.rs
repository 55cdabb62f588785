// SPDX-License-Identifier: GPL-3.0-or-later
//! A controller as the daemon sees it: what it is made of, what it is told, what it answers.

use std::sync::Arc;
use std::time::Duration;

use control::Counters;
use handoff::{Incoming, State};
use session::{DeviceId, Lease, VmUuid};
use slog::{Logger, error};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::LocalSet;
use tokio::time::timeout;
use transport::Identity;
use usbif::PortNumber;
use xen::Backend;
use xen::xenstore::XenStore;

use super::actor::Actor;
use super::rings::RingDetails;
use crate::config::{self, HandOff};
use crate::domain::Domains;
use crate::state::{ControllerFiles, ControllerJournal, SavedDevice};
use crate::totals::Totals;
use crate::xenbus::{Key, UsbVersion, XenbusState};

/// What a controller is made of.
pub struct Setup<B> {
    /// Which.
    pub key: Key,
    /// The VM.
    pub vm: VmUuid,
    /// Whether the toolstack said that the VM arrives in this domain from another one.
    pub arrives: bool,
    /// Its number of ports.
    pub port_count: u8,
    /// Which devices it can have.
    pub usb_version: UsbVersion,
    /// What a later process is to know, or what an earlier one kept.
    pub journal: ControllerJournal,
    /// Where that is.
    pub files: ControllerFiles,
    /// The controller was served by an earlier process.
    pub adopted: Option<Adopted>,
    /// Xen.
    pub platform: B,
    /// Its nodes.
    pub store: XenStore,
    /// Which VM each domain of this host is.
    pub domains: Domains,
    /// Our certificate.
    pub identity: Identity,
    /// Times.
    pub hand_off: HandOff,
    /// How long to look at the rings before sleeping, at most.
    pub poll: Duration,
    /// The daemon's counters.
    pub totals: Arc<Totals>,
    /// Notified when a device is to be looked for that was pulled out.
    pub look: Arc<Notify>,
    /// Its logger.
    pub log: Logger,
}

/// Longest wait for a controller's answer to a question. Its thread answers between two wake-ups of its
/// guest, and waits for nothing; one that takes longer hangs in the kernel.
pub const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// What is known of a controller that an earlier process served, besides its journal.
pub struct Adopted {
    /// The state of its backend node.
    pub backend: XenbusState,
    /// Its devices.
    pub devices: Vec<(config::Exporter, SavedDevice)>,
    /// Whether the toolstack said that the VM arrives in this domain from another one.
    pub arrives: bool,
    /// Whether its frontend has not connected yet, to nobody.
    pub first_connect: bool,
}

/// What the daemon tells a controller.
#[derive(Debug)]
pub enum Command {
    /// The VM's leases for this controller, with the exporter of each, and what is to become of
    /// them. libxl is waiting.
    Leases(Vec<(config::Exporter, Lease, Incoming)>),
    /// The same once more, since the frontend connects for the first time: they take the place of the first.
    LeasesAgain {
        /// The VM's leases for this controller.
        leases: Vec<(config::Exporter, Lease, Incoming)>,
        /// Names of the exporters that did not answer: their leases are as they were.
        silent: Vec<String>,
    },
    /// A lease forbids that the guest moves here.
    Refuse,
    /// The frontend has connected with these rings.
    FrontendConnected(RingDetails),
    /// The frontend is Closing or Closed; the state it has.
    FrontendClosed(XenbusState),
    /// The frontend starts anew, from Initialising.
    FrontendInitialising,
    /// The frontend says that it can resume, or not.
    FrontendResumes(bool),
    /// `control/shutdown` was set to `suspend`.
    Suspend,
    /// This exporter says that the guest is on its way to another domain, or is not after all.
    Moving(String, bool),
    /// The domain or the controller goes away.
    Gone,
    /// Plug in a device that was just leased. Answered when its lease is claimed; at once where
    /// the frontend has not connected yet.
    Attach(
        config::Exporter,
        Box<Lease>,
        oneshot::Sender<Result<(), String>>,
    ),
    /// Unplug what is at a port.
    Detach(PortNumber, oneshot::Sender<Option<Detached>>),
    /// What is known of a device that is waited for at a port: its lease, as the old exporter has it, and
    /// a note for people.
    Away(u8, Option<Box<Lease>>, Option<String>),
    /// A device that is waited for is found, and leased again.
    Back {
        /// Where it was.
        port: u8,
        /// Where it is now.
        exporter: config::Exporter,
        /// Its new lease.
        lease: Box<Lease>,
        /// Whether it is what the guest knows, with the same descriptors.
        same: bool,
        /// What came of it.
        answer: oneshot::Sender<Fetched>,
    },
    /// This exporter has ended the lease of what was at this place.
    Ended(String, DeviceId),
    /// What is there.
    Describe(oneshot::Sender<Report>),
}

/// What was at a port.
#[derive(Clone, Debug)]
pub struct Detached {
    /// The exporter's name.
    pub exporter: String,
    /// The lease, with its epoch of now.
    pub lease: Lease,
    /// Another domain with the VM's uuid holds it: it is not ours to give back.
    pub elsewhere: bool,
}

/// What came of a device that was waited for and found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// It is at its port again.
    Plugged,
    /// The guest does not run here this moment.
    Later,
    /// It is not waited for any more.
    NotWanted,
}

/// A device that was pulled out, and is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Whether the guest stays connected.
    pub paused: bool,
    /// Whether its exporter has said so, and the lease is as it is there.
    pub confirmed: bool,
    /// Why it was not taken, for people.
    pub note: Option<String>,
}

/// What a controller says of itself.
#[derive(Clone, Debug)]
pub struct Report {
    /// Where its hand-off is.
    pub state: State,
    /// The state that its backend node has, or will have in a moment.
    pub backend: XenbusState,
    /// Whether the frontend can resume.
    pub frontend_resumes: bool,
    /// Its devices.
    pub devices: Vec<Device>,
}

/// One device of a [`Report`].
#[derive(Clone, Debug)]
pub struct Device {
    /// The exporter's name.
    pub exporter: String,
    /// The lease as it was when it was attached, but with its epoch of now.
    pub lease: Lease,
    /// Whether it was leased for this controller and never claimed: then nobody else waits for it.
    pub fresh: bool,
    /// What went through.
    pub counters: Counters,
    /// Its device is pulled out.
    pub waiting: Option<Waiting>,
    /// Another domain with the VM's uuid has it, and the guest is not shown it: what people are told.
    pub elsewhere: Option<String>,
}

impl Report {
    /// The device at a port.
    pub fn at(&self, port: u8) -> Option<&Device> {
        self.devices.iter().find(|d| d.lease.port == port)
    }
}

/// The daemon's handle of a controller. The thread ends after [`Command::Gone`], or when the handle
/// is dropped.
pub struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    /// How many ports it has.
    pub port_count: u8,
    /// Which devices it can have.
    pub usb_version: UsbVersion,
}

impl Handle {
    /// Tells it something. False when it has ended.
    pub fn tell(&self, command: Command) -> bool {
        self.commands.send(command).is_ok()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&self) -> bool {
        !self.commands.is_closed()
    }

    /// Asks what is there; `None` when it has ended, or [does not answer](ANSWERS_WITHIN).
    pub async fn describe(&self) -> Option<Report> {
        timeout(ANSWERS_WITHIN, self.ask()).await.ok()?.ok()
    }

    /// Asks the same; the answer never comes where the thread is stuck.
    pub fn ask(&self) -> oneshot::Receiver<Report> {
        let (answer, report) = oneshot::channel();
        self.tell(Command::Describe(answer));
        report
    }
}

/// Starts a controller's thread.
pub fn spawn<B: Backend>(setup: Setup<B>) -> std::io::Result<Handle> {
    let (commands, inbox) = mpsc::unbounded_channel();
    let (port_count, usb_version) = (setup.port_count, setup.usb_version);
    let log = setup.log.clone();
    std::thread::Builder::new()
        .name(setup.key.to_string())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            match runtime {
                Ok(runtime) => {
                    LocalSet::new()
                        .block_on(&runtime, async { Actor::new(setup).run(inbox).await });
                }
                Err(e) => error!(log, "controller not started: {}", e),
            }
        })?;
    Ok(Handle {
        commands,
        port_count,
        usb_version,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A controller whose thread hangs: what it is told is never read.
    fn stuck() -> (Handle, mpsc::UnboundedReceiver<Command>) {
        let (commands, inbox) = mpsc::unbounded_channel();
        let handle = Handle {
            commands,
            port_count: 4,
            usb_version: UsbVersion::Usb20,
        };
        (handle, inbox)
    }

    #[test]
    fn who_asks_a_controller_that_is_stuck_does_not_wait_for_ever() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let (handle, inbox) = stuck();
        assert!(runtime.block_on(handle.describe()).is_none());
        assert!(handle.is_running());
        drop(inbox);
        assert!(runtime.block_on(handle.describe()).is_none());
        assert!(!handle.is_running());
    }
}
