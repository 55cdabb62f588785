// SPDX-License-Identifier: GPL-3.0-or-later
//! A device is attached: where, how it is to follow its device, and the lease of it.

use std::rc::Rc;
use std::time::Duration;

use control::{Attachment, Toolstack, WhenExchanged};
use session::control::{Acquire, Reply, Request as Ask};
use session::{DeviceInfo, DeviceSelector, Exchange, OnMigrate, OwnController, Persistence};
use slog::info;
use tokio::sync::oneshot;
use tokio::time::timeout;
use usbif::{PortNumber, Speed};

use super::{Admin, Entry, Refused, stuck, toolstack};
use crate::controller::{self, Command, Device};
use crate::domain::Domain;
use crate::exporter::Exporter;
use crate::own_controller::is_own;
use crate::xenbus::Key;

/// Longest wait for a claim when a device is attached.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(10);

/// What is to be attached, and how.
#[derive(Clone)]
pub(super) struct Wanted {
    pub device: DeviceSelector,
    pub controller: Option<u16>,
    pub port: Option<u8>,
    pub on_migrate: Option<OnMigrate>,
    pub on_exchange: Option<WhenExchanged>,
    pub exchange_seconds: Option<u32>,
    pub persistent: bool,
}

/// Whether the device is named by its serial number, by which it is known again anywhere.
fn is_named(wanted: &Wanted) -> bool {
    let kind = &wanted.device;
    matches!(
        kind,
        DeviceSelector::Kind {
            serial: Some(_),
            ..
        }
    )
}

impl Admin {
    /// Attaches a device to a domain.
    pub(super) async fn attach(
        &self,
        domain: &str,
        exporter: &str,
        wanted: Wanted,
    ) -> Result<Attachment, Refused> {
        let domain = self.domain(domain).await?;
        let exporter = self.exporters.find(exporter)?;
        session::text::check(&domain.name)
            .map_err(|e| format!("the name of domain {} {e}: rename it", domain.domid))?;
        if wanted.persistent && wanted.on_exchange == Some(WhenExchanged::None) {
            return Err(
                "a persistent attachment waits for its device; --on-exchange is replug or pause"
                    .to_owned(),
            );
        }
        let exchange = self.exchange(&wanted);
        if exchange.is_some() && is_named(&wanted) {
            self.refuse_twins(&wanted.device).await?;
        }
        let (key, entry, port) = match self.place(&domain, exporter, &wanted).await {
            Ok(place) => place,
            Err(e) if wanted.controller.is_some() => return Err(e),
            // Its controllers are full, too slow, or not there.
            Err(e) => match self.controller_for_attachment(&domain).await? {
                Some(devid) => {
                    let controller = Some(devid);
                    let wanted = Wanted {
                        controller,
                        ..wanted.clone()
                    };
                    self.place(&domain, exporter, &wanted).await?
                }
                None => return Err(e),
            },
        };
        let acquire = Acquire {
            device: wanted.device,
            vm: domain.vm,
            vm_name: domain.vm_name().to_owned(),
            domid: domain.domid.0,
            controller: key.devid,
            port: port.get(),
            on_migrate: wanted.on_migrate,
            exchange,
            own_controller: is_own(key).then(|| OwnController {
                ports: entry.handle.port_count,
                usb_version: entry.handle.usb_version.number(),
            }),
            persistence: match wanted.persistent {
                true => Persistence::Persistent,
                false => Persistence::Temporary,
            },
            returns: None,
        };
        let reply = exporter
            .ask(Ask::Acquire(acquire))
            .await
            .map_err(|e| e.to_string())?;
        let Reply::Lease(lease) = reply else {
            return Err(exporter.nonsense().to_string());
        };
        let refusable = self
            .refuse_unrefusable(&domain, key, &entry, lease.on_migrate)
            .await;
        if let Err(e) = refusable {
            self.exporters.give_back(exporter.name(), *lease).await;
            return Err(e);
        }
        let (answer, attached) = oneshot::channel();
        entry.handle.tell(Command::Attach(
            exporter.config().clone(),
            lease.clone(),
            answer,
        ));
        let result = match timeout(CLAIM_TIMEOUT, attached).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(format!("domain {} went away meanwhile", domain.name)),
            Err(_) => Err(format!(
                "exporter {} did not hand the device over",
                exporter.name()
            )),
        };
        // Until then the exporter ends the lease with our connection: nobody has a device that was not
        // attached.
        let confirm = Ask::Confirm {
            device: lease.device.id.clone(),
            vm: lease.vm,
        };
        let result = match result {
            Ok(()) => exporter.ask(confirm).await.map_err(|e| e.to_string()),
            Err(e) => Err(e),
        };
        if let Err(e) = result {
            let (answer, _) = oneshot::channel();
            entry.handle.tell(Command::Detach(port, answer));
            self.exporters.give_back(exporter.name(), *lease).await;
            return Err(e);
        }
        info!(self.log, "device attached"; "controller" => %key, "port" => port.get(),
            "device" => format!("{}/{}", exporter.name(), lease.device.id));
        let attachments = self.attachments_of(key, &entry).await;
        let found = attachments.into_iter().find(|a| a.port == port.get());
        found.ok_or_else(|| "the device was lost again at once; see vusbd's log".into())
    }

    /// How an attachment follows its device: what is asked for, or the configuration's default.
    fn exchange(&self, wanted: &Wanted) -> Option<Exchange> {
        let when = match wanted.on_exchange {
            Some(when) => when,
            // Only what is known again by its serial number can go on as if nothing had happened.
            None if self.exchange.on_exchange == WhenExchanged::Pause && !is_named(wanted) => {
                WhenExchanged::Replug
            }
            None if self.exchange.on_exchange == WhenExchanged::None && wanted.persistent => {
                WhenExchanged::Replug
            }
            None => self.exchange.on_exchange,
        };
        Some(Exchange {
            on: when.on()?,
            seconds: wanted
                .exchange_seconds
                .unwrap_or(self.exchange.exchange_seconds),
            at_place: matches!(wanted.device, DeviceSelector::Place(_)),
        })
    }

    /// Of two devices that say the same nobody knows which one comes back.
    async fn refuse_twins(&self, device: &DeviceSelector) -> Result<(), Refused> {
        let (devices, _) = self.exporters.devices().await;
        let found: Vec<_> = devices
            .iter()
            .filter(|d| device.matches(&d.device))
            .map(|d| format!("{}/{}", d.exporter, d.device.id))
            .collect();
        match found.len() {
            0 | 1 => Ok(()),
            count => Err(format!(
                "{device} is ambiguous: {count} devices say that they are it, {}. Unplug all but one, or \
                 attach it with --on-exchange none",
                found.join(", ")
            )),
        }
    }

    /// Whether the exporter shows exactly such a device, and the guest would see it at high speed. Who is
    /// wrong here is refused by the controller.
    async fn is_high_speed(&self, exporter: &Exporter, device: &DeviceSelector) -> bool {
        let Ok(Reply::Devices(devices)) = exporter.ask(Ask::Devices).await else {
            return false;
        };
        let mut found = devices.iter().filter(|d| device.matches(d)).peekable();
        let is_high = |d: &DeviceInfo| controller::speed_told(d.speed) == Speed::High;
        found.peek().is_some() && found.all(is_high)
    }

    /// Controller and port for a new device.
    async fn place(
        &self,
        domain: &Domain,
        exporter: &Exporter,
        wanted: &Wanted,
    ) -> Result<(Key, Rc<Entry>, PortNumber), Refused> {
        let Wanted {
            device,
            controller,
            port,
            ..
        } = wanted;
        // XAPI and libvirt would leave behind what `xl usbctrl-attach` made.
        let own_only = controller.is_none()
            && toolstack::of_domain(&self.store, domain.domid, domain.vm).await != Toolstack::Xl;
        let (mut full, mut slow) = (Vec::new(), Vec::new());
        let mut is_high_speed = None;
        for (key, entry) in self.controllers.find(domain, *controller)? {
            if own_only && !is_own(key) {
                full.push(key.devid.to_string());
                continue;
            }
            // Asked for once, and hardly ever.
            if !entry.handle.usb_version.takes(Speed::High) {
                let is_high = match is_high_speed {
                    Some(known) => known,
                    None => self.is_high_speed(exporter, device).await,
                };
                is_high_speed = Some(is_high);
                if is_high {
                    slow.push(key.devid);
                    continue;
                }
            }
            let Some(report) = entry.handle.describe().await else {
                if entry.handle.is_running() {
                    return Err(stuck(key, &domain.name));
                }
                continue;
            };
            let count = entry.handle.port_count;
            let wanted = match *port {
                Some(port) if !(1..=count).contains(&port) => {
                    return Err(format!(
                        "controller {} of domain {} has ports 1 to {count}, not {port}",
                        key.devid, domain.name
                    ));
                }
                Some(port) => port,
                None => match (1..=count).find(|&p| report.at(p).is_none()) {
                    Some(port) => port,
                    None => {
                        full.push(key.devid.to_string());
                        continue;
                    }
                },
            };
            if let Some(Device {
                exporter, lease, ..
            }) = report.at(wanted)
            {
                return Err(format!(
                    "port {wanted} of controller {} of domain {} is taken by {exporter}/{}; leave \
                     --port out for the first free one",
                    key.devid, domain.name, lease.device.id
                ));
            }
            if let Some(port) = PortNumber::new(wanted) {
                return Ok((key, entry, port));
            }
        }
        if let (true, [devid, ..]) = (full.is_empty(), &slow[..]) {
            let device = format!("{}/{device}", exporter.name());
            return Err(controller::too_fast(&device, *devid, &domain.name));
        }
        Err(format!(
            "every port of controller {} of domain {} is taken; detach a device, or add a \
             controller with `xl usbctrl-attach {} type=pv version=2 ports=4` or `xl-vusb controller add {}`",
            full.join(", "),
            domain.name,
            domain.name,
            domain.name
        ))
    }
}
