// SPDX-License-Identifier: GPL-3.0-or-later
//! libusb's context, its event thread, and what comes and goes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use rusb::{Context, Device, Hotplug, HotplugBuilder, Registration, UsbContext};
use session::{DeviceId, DeviceInfo};
use slog::{Logger, error};
use tokio::sync::mpsc::UnboundedSender;

use super::list::{describe, is_configured, place};

/// How often it is looked what is plugged in. libusb learns it from the kernel; this only compares
/// two lists. (It is looked at once when something was unplugged.)
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// How often the event thread looks whether it is to end.
const EVENT_INTERVAL: Duration = Duration::from_secs(1);

/// What happened to a device.
pub(crate) enum Change {
    Added(Device<Context>, DeviceInfo),
    Removed(DeviceId),
}

/// See the module's documentation. Its threads end with it.
pub(crate) struct Bus {
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    unplugged: Option<Registration<Context>>,
}

/// Has the thread that looks look.
struct Look(Thread);

impl Hotplug<Context> for Look {
    /// It is not configured yet; what it is and does is looked at when that is over.
    fn device_arrived(&mut self, _device: Device<Context>) {}

    fn device_left(&mut self, _device: Device<Context>) {
        self.0.unpark();
    }
}

/// What is plugged in.
#[derive(Default)]
struct Known {
    /// Address of each device.
    devices: BTreeMap<DeviceId, u8>,
    /// Seen once, not configured yet.
    new: BTreeSet<DeviceId>,
}

impl Bus {
    /// Starts. The devices that are there now are sent before this returns.
    pub(crate) fn start(
        log: &Logger,
        changes: UnboundedSender<Change>,
    ) -> Result<Self, rusb::Error> {
        let context = Context::new()?;
        let mut known = Known::default();
        // The second time for those that are not configured.
        for _ in 0..2 {
            look(&context, &mut known, &changes)?;
        }
        let mut bus = Self {
            end: Arc::default(),
            threads: Vec::new(),
            unplugged: None,
        };
        let (events, end, event_log) = (context.clone(), bus.end.clone(), log.clone());
        bus.spawn("usb-events", move || {
            while !end.load(Ordering::Relaxed) {
                if let Err(e) = events.handle_events(Some(EVENT_INTERVAL)) {
                    error!(event_log, "libusb cannot handle events: {}", e);
                    thread::sleep(EVENT_INTERVAL);
                }
            }
        });
        let (end, look_log, looked) = (bus.end.clone(), log.clone(), context.clone());
        bus.spawn("usb-devices", move || {
            while !end.load(Ordering::Relaxed) {
                thread::park_timeout(LOOK_INTERVAL);
                if let Err(e) = look(&looked, &mut known, &changes) {
                    error!(look_log, "libusb cannot list devices: {}", e);
                    thread::sleep(EVENT_INTERVAL);
                }
            }
        });
        if let Some(looks) = bus.threads.last() {
            let look = Box::new(Look(looks.thread().clone()));
            // Where libusb cannot tell, it takes an interval.
            bus.unplugged = HotplugBuilder::new().register(context, look).ok();
        }
        Ok(bus)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) {
        let builder = thread::Builder::new().name(name.to_owned());
        // Without threads this machine has other troubles.
        self.threads.extend(builder.spawn(run).ok());
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        // While somebody handles events: it is told there.
        drop(self.unplugged.take());
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// Compares what is plugged in with what is known: places and addresses.
fn look(
    context: &Context,
    known: &mut Known,
    changes: &UnboundedSender<Change>,
) -> Result<(), rusb::Error> {
    // Nobody listens at the end only.
    let send = |change| {
        let _ = changes.send(change);
    };
    let devices = context.devices()?;
    let present: BTreeMap<DeviceId, Device<Context>> = devices
        .iter()
        .filter_map(|device| Some((place(&device)?, device)))
        .collect();
    // A device has another address when it was unplugged and plugged in again.
    known.devices.retain(|id, address| {
        let stays = present.get(id).is_some_and(|d| d.address() == *address);
        if !stays {
            send(Change::Removed(id.clone()));
        }
        stays
    });
    known.new.retain(|id| present.contains_key(id));
    for (id, device) in present {
        if known.devices.contains_key(&id) {
            continue;
        }
        // The kernel configures a device right after libusb has heard of it, and its drivers bind
        // then. Whoever claims it in between fights with both.
        if !is_configured(&id) && known.new.insert(id.clone()) {
            continue;
        }
        if let Some(info) = describe(&device, &id) {
            known.new.remove(&id);
            known.devices.insert(id, device.address());
            send(Change::Added(device, info));
        }
    }
    Ok(())
}
