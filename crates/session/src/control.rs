// SPDX-License-Identifier: GPL-3.0-or-later
//! The control connection: devices and leases.
//!
//! The backend sends [`FromBackend`]s. The exporter begins with each request in the order of their
//! arrival, and answers each with one [`Reply`] when it has it: a device takes seconds to open, and other
//! requests do not wait for it. After [`Request::Subscribe`] it also sends [`ToBackend::Event`]s at any
//! time.

use serde::{Deserialize, Serialize};

use crate::hosts::{KnownHost, Software};
use crate::{
    Configured, DeviceId, DeviceInfo, DeviceSelector, Digest, Epoch, Exchange, Holder, Lease,
    OnMigrate, OwnController, Persistence, VmUuid,
};

/// What the backend sends on a control connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FromBackend {
    /// The answer has it, too. No two requests without an answer have the same.
    pub number: u64,
    /// What is asked.
    pub request: Request,
}

/// What a backend asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The devices that this host may see under the policy. Answer: [`Reply::Devices`].
    Devices,
    /// The leases of one VM, or of all that this host may see. Answer: [`Reply::Leases`].
    Leases {
        /// Only this VM's.
        vm: Option<VmUuid>,
    },
    /// Lends a free device to a VM. Answer: [`Reply::Lease`], phase `Disconnected`, epoch raised. Without
    /// [`Acquire::returns`] it ends with this connection, unless it was claimed or confirmed before.
    Acquire(Acquire),
    /// The caller goes on with what it acquired: the lease stays when the connection ends. Answer:
    /// [`Reply::Done`].
    Confirm {
        /// The device.
        device: DeviceId,
        /// Whose it is.
        vm: VmUuid,
    },
    /// Gives a device back; it is reset and free again. Answer: [`Reply::Done`].
    Release {
        /// The device.
        device: DeviceId,
        /// Whose it was.
        vm: VmUuid,
        /// The epoch that the caller knows: refused when a newer one exists.
        epoch: Epoch,
        /// Also where another host holds it that is not connected, and has not said that its domain is
        /// gone. A host that is connected keeps it in any case.
        force: bool,
    },
    /// A domain with this uuid is being built at the caller (an incoming migration, a restore, a
    /// boot). Answer: [`Reply::Leases`] of the VM.
    Expect {
        /// The VM.
        vm: VmUuid,
        /// Its domid at the caller.
        domid: u16,
        /// Its name, for rules that name it so, at most 256 bytes; empty where it has none of that length.
        #[serde(default, deserialize_with = "crate::text::required")]
        name: String,
    },
    /// A domain of the caller is gone. Persistent leases that it held without ever having claimed them, or
    /// whose device is pulled out, are the VM's that is off. All others learn it over their device
    /// connections, which also say whether the guest was saved. Answer: [`Reply::Done`].
    Ended {
        /// The VM.
        vm: VmUuid,
        /// The domid that it had at the caller.
        domid: u16,
    },
    /// A domain that is arriving at the caller from another host (or another domid) is being built
    /// for this VM, or is not (any more). Subscribers learn it as [`Event::Arriving`]. It holds until
    /// it is taken back, or the connection ends. Answer: [`Reply::Done`].
    Arriving {
        /// The VM.
        vm: VmUuid,
        /// Its domid at the caller.
        domid: u16,
        /// Whether it is.
        arriving: bool,
    },
    /// Something for people to read in the lease, for example why a migration was refused.
    /// Answer: [`Reply::Done`].
    Note {
        /// The device.
        device: DeviceId,
        /// Whose it is.
        vm: VmUuid,
        /// The text, at most 1,000 bytes.
        #[serde(deserialize_with = "crate::text::required")]
        text: String,
    },
    /// From now on, tell about changes. Answer: [`Reply::Done`].
    Subscribe,
    /// What the caller's `vusbd` is, for the forecasts of other hosts. Answer: [`Reply::Done`].
    Introduce(Software),
    /// The hosts that are or were connected to this exporter. Answer: [`Reply::Hosts`].
    Hosts {
        /// For the devices of this VM, as far as the caller may see them, the answer says which the policy
        /// does not allow to the VM on each host.
        vm: Option<VmUuid>,
    },
    /// A host is out of the pool: it is not in [`Reply::Hosts`] any more, until it connects again. Refused
    /// while it is connected. Answer: [`Reply::Done`].
    ForgetHost {
        /// Its name.
        #[serde(deserialize_with = "crate::text::required")]
        host: String,
    },
}

/// The arguments of [`Request::Acquire`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acquire {
    /// Which device. It must match exactly one.
    pub device: DeviceSelector,
    /// For which VM.
    pub vm: VmUuid,
    /// Its name, for people, at most 256 bytes.
    #[serde(deserialize_with = "crate::text::required")]
    pub vm_name: String,
    /// Its domid at the caller.
    pub domid: u16,
    /// PV USB controller.
    pub controller: u16,
    /// Port of the controller, 1 to 31.
    pub port: u8,
    /// What to do at a migration if the frontend cannot resume; none for the device's default.
    pub on_migrate: Option<OnMigrate>,
    /// How the lease follows the device. [`OnExchange::Pause`](crate::OnExchange::Pause) is refused where the
    /// device has no serial number.
    pub exchange: Option<Exchange>,
    /// How to make the controller on another host, where `vusbd` made it.
    #[serde(default)]
    pub own_controller: Option<OwnController>,
    /// Whether the lease outlasts the VM's domain. Such a lease waits for its device, too: refused without
    /// [`Acquire::exchange`], whose time does not count then.
    #[serde(default)]
    pub persistence: Persistence,
    /// The device comes back to this port: what is waiting there may be, here or elsewhere. Named by its
    /// place, it must be what was there, unless the lease is [one of the place](Exchange::at_place).
    pub returns: Option<Returns>,
}

/// How a device comes back to its port, where it was pulled out of another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Returns {
    /// What to set before anything else is carried out; nothing for a guest that begins anew.
    pub configured: Configured,
    /// The cookie of the lease of before; empty for a guest that begins anew.
    pub cookie: Vec<u8>,
    /// The descriptors that the guest knows. Where the device has others, or none are known, all this
    /// is ignored, and the lease begins anew.
    pub descriptors: Option<Digest>,
    /// Whether the guest's frontend resumes, as far as is known before the lease is claimed.
    pub frontend_resumes: bool,
}

/// What an exporter answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Devices.
    Devices(Vec<DeviceInfo>),
    /// Leases.
    Leases(Vec<Lease>),
    /// The lease that came to be.
    Lease(Box<Lease>),
    /// Hosts, by name; at most [`MAX_HOSTS`](crate::hosts::MAX_HOSTS).
    Hosts(Vec<KnownHost>),
    /// Done.
    Done,
    /// Not done, and why.
    Refused(Refusal),
}

/// Why an exporter does not do what it was asked. The texts are for the administrator.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Nothing here matches.
    #[error("no device {0} here; `xl-vusb devices` lists what there is")]
    UnknownDevice(String),
    /// More than one matches.
    #[error("{selector} matches {count} devices; name one by BUS-PORT or add its serial number")]
    Ambiguous {
        /// What was asked for.
        selector: String,
        /// How many match.
        count: usize,
    },
    /// Another VM has it.
    #[error("device {device} is in use by VM {vm_name} ({vm}); detach it there first")]
    Busy {
        /// The device.
        device: DeviceId,
        /// Who has it.
        vm: VmUuid,
        /// Its name.
        vm_name: String,
    },
    /// The exporter's policy does not allow it.
    #[error(
        "policy refuses device {device} to VM {vm} on host {host}; add an [[allow]] to the \
         exporter's /etc/xen-vusb/exporter.toml"
    )]
    Policy {
        /// The device.
        device: DeviceId,
        /// The VM.
        vm: VmUuid,
        /// The caller's host name, from its certificate.
        host: String,
    },
    /// The device cannot be lent.
    #[error("device {device} cannot be lent: {reason}")]
    Unavailable {
        /// The device.
        device: DeviceId,
        /// Why.
        reason: String,
    },
    /// The VM does not hold this device.
    #[error("VM {vm} holds no lease on device {device}")]
    NoLease {
        /// The device.
        device: DeviceId,
        /// The VM.
        vm: VmUuid,
    },
    /// Somebody with a newer epoch holds it.
    #[error("fenced: epoch {yours} is older than the current epoch {current}")]
    Fenced {
        /// The caller's.
        yours: Epoch,
        /// The current one.
        current: Epoch,
    },
    /// Another domain with the VM's uuid holds it, and may be running.
    #[error(
        "device {device} is in use by another domain with the same uuid: VM {vm} runs at {holder}{}. It is \
         free when that domain is gone. Shut one of the two down, or give it a uuid of its own",
        silence(*silent_seconds)
    )]
    HeldElsewhere {
        /// The device.
        device: DeviceId,
        /// The VM.
        vm: VmUuid,
        /// Who holds it.
        holder: Holder,
        /// The lease's epoch.
        epoch: Epoch,
        /// For how long the holder has not been connected, in seconds, where it is not.
        silent_seconds: Option<u64>,
    },
    /// The VM is suspended at its holder, and nothing says yet whether the claimant's domain is the VM, moved
    /// there, or a copy of it: the VM may go on where it was (`xl save -c`). Asked again, the exporter says yes
    /// when the holder's domain is gone, and [`Refusal::HeldElsewhere`] when its guest goes on.
    #[error(
        "device {device} waits: VM {vm} is suspended at {holder}, and has left it when that domain is gone"
    )]
    SuspendedElsewhere {
        /// The device.
        device: DeviceId,
        /// The VM.
        vm: VmUuid,
        /// Who holds it.
        holder: Holder,
    },
    /// A limit of the exporter, or an argument out of range.
    #[error("{0}")]
    Limit(String),
    /// Not now: the device is not there yet, or could not be opened this time. Asked again, it may be.
    #[error("device {device} is not ready: {reason}")]
    NotReady {
        /// The device.
        device: DeviceId,
        /// Why, for people.
        reason: String,
        /// For how much longer the exporter itself waits for the device, in seconds; 0 where it
        /// waits for nothing.
        seconds: u32,
    },
    /// The lease is there, its device is not ([`crate::LeasePhase::Absent`]).
    #[error("device {device} is not plugged in here any more")]
    Absent {
        /// The device.
        device: DeviceId,
    },
}

/// How a text goes on about a holder that is not connected.
fn silence(seconds: Option<u64>) -> String {
    seconds.map_or_else(String::new, |s| format!(", not connected for {s} s"))
}

/// What the exporter sends on a control connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToBackend {
    /// An answer.
    Reply {
        /// Of the request.
        number: u64,
        /// What is answered.
        reply: Reply,
    },
    /// Something happened.
    Event(Event),
}

/// What subscribers learn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A device came, went, or changed its state.
    Devices,
    /// A lease came to be or changed.
    Lease(Box<Lease>),
    /// A lease ended.
    Released {
        /// The device, free now or gone.
        device: DeviceId,
        /// Whose it was.
        vm: VmUuid,
        /// Why, for people.
        reason: String,
    },
    /// Some backend announced that a domain of this VM is arriving, or took it back
    /// ([`Request::Arriving`]).
    Arriving {
        /// The VM.
        vm: VmUuid,
        /// Which host.
        host: String,
        /// Its domid there.
        domid: u16,
        /// Whether it is.
        arriving: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_reads_as_one_line() {
        let refused = Refusal::Policy {
            device: DeviceId("1-2".into()),
            vm: VmUuid(uuid::Uuid::nil()),
            host: "host-a".into(),
        };
        let text = refused.to_string();
        assert!(!text.contains("  ") && !text.contains('\n'), "{text}");
    }
}
