// SPDX-License-Identifier: GPL-3.0-or-later
//! Controllers that an administrator has vusbd make and remove.

use std::rc::Rc;
use std::time::Duration;

use control::{Controller, Toolstack};
use session::{OnMigrate, OwnController};
use tokio::time::{Instant, sleep};

use super::{Admin, Entry, Refused, stuck, toolstack};
use crate::domain::Domain;
use crate::own_controller::{self, is_own};
use crate::xenbus::{Key, XenbusState};

/// Longest wait until a controller is served, or removed.
const WAIT: Duration = Duration::from_secs(10);
/// For how long it is waited for a frontend to connect, before it is said that it cannot resume.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// Ports of a controller that an attachment makes.
const PORTS: u8 = 8;

/// Whether `done` came true in time.
async fn wait(longest: Duration, mut done: impl AsyncFnMut() -> bool) -> bool {
    let until = Instant::now() + longest;
    loop {
        if done().await {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        sleep(LOOK).await;
    }
}

impl Admin {
    /// Makes a controller for a domain, and waits until it is served.
    pub(super) async fn add_controller(
        &self,
        domain: &str,
        devid: Option<u16>,
        controller: OwnController,
    ) -> Result<Controller, Refused> {
        if matches!(domain, "0" | "Domain-0") {
            return Err(
                "domain 0 has no PV USB: a device that it is to use is plugged into it".into(),
            );
        }
        let OwnController { ports, usb_version } = controller;
        if !controller.is_valid(devid.unwrap_or(OwnController::FIRST_DEVID)) {
            return Err(format!(
                "a controller has 1 to 31 ports, USB version 1 or 2, and a number from {}, since lower ones \
                 are the toolstack's; not {ports} ports, version {usb_version}{}",
                OwnController::FIRST_DEVID,
                devid.map_or_else(String::new, |devid| format!(", number {devid}"))
            ));
        }
        let domain = self.domain(domain).await?;
        let (key, entry) = self.make_controller(&domain, devid, controller).await?;
        let made = self.controller(key, &entry).await;
        made.ok_or_else(|| gone(&domain))
    }

    async fn make_controller(
        &self,
        domain: &Domain,
        devid: Option<u16>,
        controller: OwnController,
    ) -> Result<(Key, Rc<Entry>), Refused> {
        let made = own_controller::make(&self.store, domain.domid, devid, controller).await;
        let key = made.map_err(|e| e.to_string())?;
        // Until then a device that is attached could be taken for one that has been there before.
        let served = async || {
            let entry = self.controllers.get(key);
            entry.is_some_and(|entry| entry.decided.get())
        };
        wait(WAIT, served).await;
        let entry = self.controllers.get(key);
        let entry = entry.ok_or_else(|| {
            format!(
                "controller {} of domain {} was made and is not served; see vusbd's log",
                key.devid, domain.name
            )
        })?;
        Ok((key, entry))
    }

    /// Makes a controller for an attachment that has no port; none where the domain is one of `xl`, whose own
    /// command is the better one: its controller is kept by every later version of `xl`.
    pub(super) async fn controller_for_attachment(
        &self,
        domain: &Domain,
    ) -> Result<Option<u16>, Refused> {
        if toolstack::of_domain(&self.store, domain.domid, domain.vm).await == Toolstack::Xl {
            return Ok(None);
        }
        let controller = OwnController {
            ports: PORTS,
            usb_version: 2,
        };
        let (key, _) = self.make_controller(domain, None, controller).await?;
        Ok(Some(key.devid))
    }

    /// Removes a controller, and waits until its nodes are gone.
    pub(super) async fn remove_controller(
        &self,
        domain: &str,
        devid: u16,
    ) -> Result<Controller, Refused> {
        let domain = self.domain(domain).await?;
        let key = Key {
            domid: domain.domid,
            devid,
        };
        let Some(entry) = self.controllers.get(key) else {
            return Err(format!(
                "domain {} has no PV USB controller {devid}; `xl-vusb controller list {}` shows them",
                domain.name, domain.domid
            ));
        };
        if !is_own(key) {
            return Err(format!(
                "the toolstack made controller {devid} of domain {}; remove it with `xl usbctrl-detach {} {devid}`",
                domain.name, domain.name
            ));
        }
        let Some(report) = entry.handle.describe().await else {
            return Err(stuck(key, &domain.name));
        };
        if let Some(device) = report.devices.first() {
            return Err(format!(
                "{}/{} is attached to controller {devid} of domain {}; `xl-vusb detach --controller {devid} {} {}` \
                 first",
                device.exporter,
                device.lease.device.id,
                domain.name,
                domain.name,
                device.lease.port
            ));
        }
        let controller = self.controller(key, &entry).await;
        let store = |e| format!("xenstore does not answer: {e}");
        own_controller::close(&self.store, key)
            .await
            .map_err(store)?;
        let state = format!("{}/state", key.backend());
        let closed = async || {
            let state = self.store.read_optional(&state).await;
            let state = state.ok().flatten();
            self.controllers.get(key).is_none()
                && state.is_none_or(|s| XenbusState::parse(&s) == XenbusState::Closed)
        };
        if !wait(WAIT, closed).await {
            return Err(stuck(key, &domain.name));
        }
        own_controller::remove(&self.store, key)
            .await
            .map_err(store)?;
        controller.ok_or_else(|| gone(&domain))
    }

    /// The controllers of a domain, or of all.
    pub(super) async fn list_controllers(
        &self,
        domain: Option<&str>,
    ) -> Result<Vec<Controller>, Refused> {
        let domid = match domain {
            Some(domain) => Some(self.domain(domain).await?.domid),
            None => None,
        };
        Ok(self.controllers_of(domid).await)
    }

    /// libxl does not wait for a controller of our own, so a migration cannot be refused by it: a device that
    /// asks for that needs a guest that resumes. Other toolstacks ask `check` before.
    pub(super) async fn refuse_unrefusable(
        &self,
        domain: &Domain,
        key: Key,
        entry: &Entry,
        on_migrate: OnMigrate,
    ) -> Result<(), Refused> {
        if on_migrate != OnMigrate::Refuse
            || !is_own(key)
            || toolstack::of_domain(&self.store, domain.domid, domain.vm).await != Toolstack::Xl
        {
            return Ok(());
        }
        let resumes = async || {
            let report = entry.handle.describe().await;
            report.is_some_and(|report| report.frontend_resumes)
        };
        let connected = async || entry.frontend.get() == XenbusState::Connected || resumes().await;
        wait(CONNECT_WAIT, connected).await;
        match resumes().await {
            true => Ok(()),
            false => Err(format!(
                "controller {} of domain {} was made by vusbd, and `xl migrate` does not wait for it: a device \
                 that is to refuse a migration needs a guest that resumes. Load the xen-vusb-hcd module in the \
                 guest, or attach it with --on-migrate replug, or to a controller of \
                 `xl usbctrl-attach {} type=pv version=2 ports=4`",
                key.devid, domain.name, domain.name
            )),
        }
    }
}

fn gone(domain: &Domain) -> Refused {
    format!("domain {} went away meanwhile", domain.name)
}
