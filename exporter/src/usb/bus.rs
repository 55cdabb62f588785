// SPDX-License-Identifier: GPL-3.0-or-later
//! libusb's context, its event thread, and what comes and goes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rusb::{Context, Device, UsbContext};
use session::{DeviceId, DeviceInfo};
use slog::{Logger, error};
use tokio::sync::mpsc::UnboundedSender;

use super::list::{describe, place};

/// How often it is looked what is plugged in. libusb learns it from the kernel; this only compares
/// two lists.
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
}

impl Bus {
    /// Starts. The devices that are there now are sent before this returns.
    pub(crate) fn start(
        log: &Logger,
        changes: UnboundedSender<Change>,
    ) -> Result<Self, rusb::Error> {
        let context = Context::new()?;
        let mut known = BTreeMap::new();
        look(&context, &mut known, &changes)?;
        let mut bus = Self {
            end: Arc::default(),
            threads: Vec::new(),
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
        let (end, look_log) = (bus.end.clone(), log.clone());
        bus.spawn("usb-devices", move || {
            while !end.load(Ordering::Relaxed) {
                thread::sleep(LOOK_INTERVAL);
                if let Err(e) = look(&context, &mut known, &changes) {
                    error!(look_log, "libusb cannot list devices: {}", e);
                    thread::sleep(EVENT_INTERVAL);
                }
            }
        });
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
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Compares what is plugged in with what is known: places and addresses.
fn look(
    context: &Context,
    known: &mut BTreeMap<DeviceId, u8>,
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
    known.retain(|id, address| {
        let stays = present.get(id).is_some_and(|d| d.address() == *address);
        if !stays {
            send(Change::Removed(id.clone()));
        }
        stays
    });
    for (id, device) in present {
        if !known.contains_key(&id)
            && let Some(info) = describe(&device, &id)
        {
            known.insert(id, device.address());
            send(Change::Added(device, info));
        }
    }
    Ok(())
}
