// SPDX-License-Identifier: GPL-3.0-or-later
//! A device's own thread: it opens the device, works for its holder, and gives it back.
//!
//! The kernel does one thing at a time with a device, however long that takes. So all that concerns an open device happens on
//! its thread, which nobody waits for: who opens a device anew gives up after a while, and the thread that does not come back
//! costs itself only.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use session::control::Returns;
use session::frame::TransferStatus;
use session::{Configured, DeviceInfo, Digest, Speed};
use tokio::sync::oneshot;
use usbfs::{Device, Handle, Memory, Status, Worker};

use super::configurations::Configurations;
use super::interfaces::Interfaces;
use super::list;
use super::request::{Operation, Request, classify};
use super::shared::Shared;
use crate::{descriptors, in_use};

/// Longest wait for the BOS, which the kernel has read when the device was plugged in.
const BOS_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest BOS that is looked at, in bytes.
const MAX_BOS: usize = 4096;

/// What all real devices share: the kernel's memory, and who is still at work.
#[derive(Debug)]
pub(crate) struct Usb {
    pub(super) memory: Memory,
    threads: Arc<Threads>,
}

impl Usb {
    pub(crate) fn new() -> Self {
        Self {
            memory: Memory::new(usbfs::kernel_limit()),
            threads: Arc::default(),
        }
    }

    /// Waits until all devices are closed, but not longer than `limit`: one that does not answer keeps nobody from
    /// ending.
    pub(crate) fn wait_until_closed(&self, limit: Duration) {
        self.threads.wait_until(0, limit);
    }
}

/// Counts threads.
#[derive(Debug, Default)]
struct Threads {
    running: Mutex<usize>,
    ended: Condvar,
}

impl Threads {
    /// Waits until at most `count` are left, but not longer than `limit`. Answers whether it is so.
    fn wait_until(&self, count: usize, limit: Duration) -> bool {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self
            .ended
            .wait_timeout_while(running, limit, |running| *running > count);
        waited.is_ok_and(|(running, _)| *running <= count)
    }

    fn add(&self, more: isize) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        *running = running.saturating_add_signed(more);
        self.ended.notify_all();
    }
}

/// A thread that is at work with a device.
struct AtWork(Vec<Arc<Threads>>);

impl AtWork {
    fn new(threads: [Arc<Threads>; 2]) -> Self {
        threads.iter().for_each(|t| t.add(1));
        Self(threads.into())
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.iter().for_each(|t| t.add(-1));
    }
}

/// How a device is to begin.
#[derive(Clone, Debug)]
pub(super) enum Begin {
    /// As if it were plugged in now; and if it is what its guest knows, as that has set it.
    Anew(Returns),
    /// Where it was: its holder has it already. What the guest has set is set again where it was lost.
    GoOn(Configured),
}

/// An open device, for the sessions.
pub(super) struct Opened {
    pub(super) handle: Handle<Operation>,
    pub(super) shared: Arc<Shared>,
    pub(super) configurations: Arc<Configurations>,
    /// bConfigurationValue of the active one; 0 for none.
    pub(super) configuration: u8,
    pub(super) descriptors: Option<Digest>,
    /// At SuperSpeed: bit = number, OUT endpoints of bulk-only mass storage.
    pub(super) bulk_only: Option<u16>,
    /// Something that did not go as it should, for the log.
    pub(super) note: Option<String>,
}

/// The thread of the moment; a later one waits for those before it.
#[derive(Debug, Default)]
pub(super) struct Thread {
    /// Of this device.
    before: Arc<Threads>,
}

impl Thread {
    /// Starts one. What is received is an open device, or why there is none, for people.
    pub(super) fn start(
        &self,
        usb: &Arc<Usb>,
        address: (u8, u8),
        info: DeviceInfo,
        begin: Begin,
    ) -> Result<oneshot::Receiver<Result<Opened, String>>, String> {
        let (send, receive) = oneshot::channel();
        let at_work = AtWork::new([usb.threads.clone(), self.before.clone()]);
        let (before, memory) = (self.before.clone(), usb.memory.clone());
        let builder = thread::Builder::new().name(format!("usb-{}", info.id));
        let spawned = builder.spawn(move || {
            let _at_work = at_work;
            // The one before us may be giving the device back.
            while !send.is_closed() {
                if before.wait_until(1, Duration::from_secs(1)) {
                    return run(send, &memory, address, &info, &begin);
                }
            }
        });
        match spawned {
            Ok(_) => Ok(receive),
            Err(e) => Err(format!("no thread for it: {e}")),
        }
    }
}

/// Opens, works, and closes.
fn run(
    send: oneshot::Sender<Result<Opened, String>>,
    memory: &Memory,
    (bus, address): (u8, u8),
    info: &DeviceInfo,
    begin: &Begin,
) {
    let taken = match take((bus, address), info, begin) {
        Ok(taken) => taken,
        Err(reason) => {
            let _ = send.send(Err(reason));
            return;
        }
    };
    let Taken {
        device,
        interfaces,
        configurations,
        descriptors,
        note,
    } = taken;
    let configuration = interfaces.configuration();
    let shared = Arc::new(Shared::default());
    let (handle, worker) = match Worker::new(device, interfaces, memory, shared.sink()) {
        Ok(made) => made,
        Err(e) => {
            let _ = send.send(Err(format!("no descriptor for it: {e}")));
            return;
        }
    };
    let is_super = info.speed == Speed::Super;
    let opened = Opened {
        handle,
        shared: shared.clone(),
        bulk_only: is_super.then(|| configurations.bulk_only()),
        configurations,
        configuration,
        descriptors,
        note,
    };
    // Where nobody waits any more, its handle is dropped, which ends the worker.
    if send.send(Ok(opened)).is_err() && matches!(begin, Begin::Anew(_)) {
        shared.set_give_back();
    }
    let (device, mut interfaces) = worker.run();
    if shared.is_to_be_given_back() {
        interfaces.give_back(&device);
    }
}

struct Taken {
    device: Device,
    interfaces: Interfaces,
    configurations: Arc<Configurations>,
    descriptors: Option<Digest>,
    note: Option<String>,
}

fn take((bus, address): (u8, u8), info: &DeviceInfo, begin: &Begin) -> Result<Taken, String> {
    if let Some(reason) = in_use::needed_by(&info.id) {
        return Err(reason);
    }
    let not_given = |e: &dyn std::fmt::Display| format!("this machine does not give it away: {e}");
    let path = Device::path(bus, address);
    let device = Device::open(&path).map_err(|e| not_given(&format!("{}: {e}", path.display())))?;
    let raw = list::descriptors(&info.id).unwrap_or_default();
    let configurations = Arc::new(Configurations::new(&raw));
    let mut interfaces = Interfaces::new(info.id.clone(), configurations.clone());
    let is_new = matches!(begin, Begin::Anew(_));
    let taken = interfaces.claim(&device).map_err(|e| not_given(&e));
    let taken = taken.and_then(|()| match is_new {
        true => interfaces.reset(&device).map_err(|e| not_given(&e)),
        false => Ok(()),
    });
    if let Err(reason) = taken {
        interfaces.connect(&device);
        return Err(reason);
    }
    let descriptors = digest(&device, info, &raw);
    let mut note = None;
    match begin {
        Begin::Anew(returns) => {
            let is_known = descriptors.is_some() && returns.descriptors == descriptors;
            let set = is_known.then_some(&returns.configured);
            if set.is_some_and(|set| configure(&device, &mut interfaces, set, 0).is_err()) {
                interfaces.give_back(&device);
                return Err(crate::sim::NOT_CONFIGURED.to_owned());
            }
        }
        Begin::GoOn(set) => {
            let active = interfaces.configuration();
            // Its guest is better off with what can be had than without the device.
            note = configure(&device, &mut interfaces, set, active)
                .err()
                .map(|setup| format!("cannot be set as its guest has it: SETUP {setup:02x?}"));
        }
    }
    Ok(Taken {
        device,
        interfaces,
        configurations,
        descriptors,
        note,
    })
}

/// Sets what a guest has set, but for the configuration where it is `active`. An error is the first SETUP packet that failed; those
/// after it are tried all the same.
fn configure(
    device: &Device,
    interfaces: &mut Interfaces,
    set: &Configured,
    active: u8,
) -> Result<(), [u8; 8]> {
    let mut result = Ok(());
    for setup in set.requests() {
        let done = match classify(setup) {
            Request::Operation(Operation::SetConfiguration(value)) if value == active => true,
            Request::Operation(operation) => {
                interfaces.carry_out(device, operation) == TransferStatus::Completed
            }
            _ => false,
        };
        if !done {
            result = result.and(Err(setup));
        }
    }
    result
}

/// Of all descriptors; `None` where they cannot be read.
fn digest(device: &Device, info: &DeviceInfo, raw: &[u8]) -> Option<Digest> {
    let (descriptor, configurations) = descriptors::split(raw)?;
    // bcdUSB: older devices have none, and some do not take being asked well.
    let bos = match u16::from_le_bytes([descriptor[2], descriptor[3]]) > 0x0200 {
        true => bos(device)?,
        false => Vec::new(),
    };
    Some(descriptors::digest(info, descriptor, configurations, &bos))
}

/// The BOS (USB 3.2 §9.6.2); empty where it has none.
fn bos(device: &Device) -> Option<Vec<u8>> {
    const GET_BOS: [u8; 6] = [0x80, 6, 0, 0x0f, 0, 0];
    let mut bos = vec![0; MAX_BOS];
    match device.control(GET_BOS, &mut bos, BOS_TIMEOUT) {
        Ok(len) => {
            bos.truncate(len);
            Some(bos)
        }
        Err(e) => {
            let status = Status::of_operation(e.raw_os_error().unwrap_or(0));
            (status == Status::Stall).then(Vec::new)
        }
    }
}

#[cfg(test)]
mod tests {
    use session::{DeviceId, DeviceState};

    use super::*;

    #[test]
    fn who_waits_for_threads_waits_for_those_before_and_not_for_ever() {
        let threads = Arc::new(Threads::default());
        let all = Arc::new(Threads::default());
        let at_work = AtWork::new([all.clone(), threads.clone()]);
        assert!(threads.wait_until(1, Duration::ZERO));
        assert!(!all.wait_until(0, Duration::from_millis(1)));
        let waiting = {
            let all = all.clone();
            thread::spawn(move || all.wait_until(0, Duration::from_secs(60)))
        };
        drop(at_work);
        assert!(waiting.join().unwrap());
    }

    #[test]
    fn a_device_without_a_node_is_not_opened() {
        let usb = Arc::new(Usb::new());
        let info = DeviceInfo {
            id: DeviceId("999-9".into()),
            vendor: 1,
            product: 2,
            serial: None,
            name: "nothing".into(),
            speed: Speed::High,
            classes: vec![],
            state: DeviceState::Free,
        };
        let thread = Thread::default();
        let begin = Begin::GoOn(Configured::default());
        let opened = thread.start(&usb, (0, 0), info, begin).unwrap();
        let Ok(Err(reason)) = opened.blocking_recv() else {
            panic!("opened");
        };
        let expected = "this machine does not give it away: /dev/bus/usb/000/000: ";
        assert!(reason.starts_with(expected), "{reason}");
        usb.wait_until_closed(Duration::from_secs(60));
        assert!(usb.threads.wait_until(0, Duration::ZERO));
    }
}
