// SPDX-License-Identifier: GPL-3.0-or-later
//! Making and ending domains (`libxl_create.c`, `libxl_domain.c`).

use std::time::{Duration, Instant};

use xen::DomId;

use super::{Dialect, Doing, DomainConfig, Store, Toolstack, ToolstackError, UsbController};
use crate::wire::{Request, Response, ShutdownReason, unexpected};

pub(super) fn domain_path(domid: DomId) -> String {
    format!("/local/domain/{domid}")
}

/// Makes a node with these permissions (`libxl__xs_mknod`).
pub(super) fn make_node(store: &mut Store, path: &str, perms: &[String]) -> std::io::Result<()> {
    store.write(path, "")?;
    store.set_perms(path, perms)
}

impl Toolstack {
    /// `xl create -p`, `virsh start --paused`, or `VM.start` of xenopsd with `paused`: makes a domain with its devices, paused. Every device's backend must have
    /// answered; otherwise the domain is destroyed again.
    pub fn create(&self, config: &DomainConfig) -> Result<DomId, ToolstackError> {
        let domid = self.make_new_domain(config)?;
        let finished = self
            .finish_build(domid, config.pages)
            .and_then(|()| self.attach_controllers(domid, &config.usbctrl));
        self.or_destroy(domid, finished)
    }

    /// Gives `domid`, or destroys the domain because making it failed.
    pub(super) fn or_destroy(
        &self,
        domid: DomId,
        made: Result<(), ToolstackError>,
    ) -> Result<DomId, ToolstackError> {
        match made {
            Ok(()) => Ok(domid),
            Err(err) => {
                // The first failure is the one to report.
                let _ = self.destroy(domid);
                Err(err)
            }
        }
    }

    /// A domain of a VM that starts, or is restored from a file.
    pub(super) fn make_new_domain(&self, config: &DomainConfig) -> Result<DomId, ToolstackError> {
        match self.dialect {
            Dialect::Xl | Dialect::Libvirt => self.make_domain(config, &config.name),
            Dialect::Xenopsd => self.make_xenopsd_domain(config),
        }
    }

    /// `libxl__domain_make`: the domain exists and its uuid is in xenstore, but it is not
    /// introduced yet.
    pub(super) fn make_domain(
        &self,
        config: &DomainConfig,
        name: &str,
    ) -> Result<DomId, ToolstackError> {
        if self.domain_named(name)?.is_some() {
            return Err(ToolstackError::NameTaken(name.to_owned()));
        }
        self.make_domain_with(config, |t, domid| {
            write_domain_nodes(t, domid, config, name)
        })
    }

    /// Makes a domain, and its nodes in one transaction.
    pub(super) fn make_domain_with(
        &self,
        config: &DomainConfig,
        mut write_nodes: impl FnMut(&mut Store, DomId) -> std::io::Result<()>,
    ) -> Result<DomId, ToolstackError> {
        let create = Request::CreateDomain {
            uuid: config.uuid.to_string(),
            pages: config.pages,
        };
        let domid = match self.call(&create, &[])?.0 {
            Response::Domid(domid) => DomId(domid),
            other => return Err(unexpected(&other).into()),
        };
        let made = self
            .store()
            .and_then(|mut store| store.transaction(|t| write_nodes(t, domid)))
            .doing(|| format!("making the nodes of domain {domid}"));
        self.or_destroy(domid, made)
    }

    /// `libxl__build_post`: the domain is introduced to xenstored.
    pub(super) fn finish_build(&self, domid: DomId, pages: usize) -> Result<(), ToolstackError> {
        let dom = domain_path(domid);
        let kib = (pages * xen::PAGE_SIZE / 1024).to_string();
        let mut store = self.store()?;
        store.transaction(|t| {
            for (path, value) in [
                ("memory/static-max", kib.as_str()),
                ("memory/target", &kib),
                ("domid", &domid.to_string()),
                ("store/port", "1"),
                ("store/ring-ref", "1"),
                ("cpu/0/availability", "online"),
            ] {
                t.write(&format!("{dom}/{path}"), value)?;
            }
            Ok::<_, std::io::Error>(())
        })?;
        store
            .introduce(domid.0)
            .doing(|| format!("introducing domain {domid}"))
    }

    /// `xl unpause`.
    pub fn unpause(&self, domid: DomId) -> Result<(), ToolstackError> {
        self.call(&Request::UnpauseDomain { domid: domid.0 }, &[])
            .map(drop)
    }

    /// `xl pause`: the guest's next hypercall waits. Its process cannot be stopped from here.
    pub fn pause(&self, domid: DomId) -> Result<(), ToolstackError> {
        self.call(&Request::PauseDomain { domid: domid.0 }, &[])
            .map(drop)
    }

    /// The number of the domain with this name.
    pub fn domain_named(&self, name: &str) -> Result<Option<DomId>, ToolstackError> {
        let mut store = self.store()?;
        for info in self.list()? {
            let domid = DomId(info.domid);
            if store
                .read(&format!("{}/name", domain_path(domid)))?
                .as_deref()
                == Some(name)
            {
                return Ok(Some(domid));
            }
        }
        Ok(None)
    }

    /// `libxl_domain_rename`.
    pub(super) fn rename(&self, domid: DomId, name: &str) -> Result<(), ToolstackError> {
        if self.domain_named(name)?.is_some_and(|other| other != domid) {
            return Err(ToolstackError::NameTaken(name.to_owned()));
        }
        let dom = domain_path(domid);
        self.store()?.transaction(|t| {
            t.write(&format!("{dom}/name"), name)?;
            if let Some(vm) = t.read(&format!("{dom}/vm"))? {
                t.write(&format!("{vm}/name"), name)?;
            }
            Ok(())
        })
    }

    /// The configuration of a domain that runs.
    pub fn config(&self, domid: DomId) -> Result<DomainConfig, ToolstackError> {
        let info = self.info(domid)?;
        let mut store = self.store()?;
        let name = store.read(&format!("{}/name", domain_path(domid)))?;
        let mut usbctrl = Vec::new();
        let devices = format!("/libxl/{domid}/device/vusb");
        let mut devids: Vec<u32> = store
            .directory(&devices)?
            .iter()
            .filter_map(|devid| devid.parse().ok())
            .collect();
        devids.sort_unstable();
        for devid in devids {
            let mut number = |key: &str| -> Result<u8, ToolstackError> {
                let value = store.read(&format!("{devices}/{devid}/{key}"))?;
                Ok(value
                    .and_then(|value| value.parse().ok())
                    .unwrap_or_default())
            };
            usbctrl.push(UsbController {
                version: number("usb-ver")?,
                ports: number("num-ports")?,
            });
        }
        let vm = store.read(&format!("{}/vm", domain_path(domid)))?;
        let uuid = vm.as_deref().and_then(|vm| vm.strip_prefix("/vm/"));
        Ok(DomainConfig {
            name: name.unwrap_or_default(),
            uuid: uuid.and_then(|uuid| uuid.parse().ok()).unwrap_or_default(),
            pages: info.pages,
            usbctrl,
        })
    }

    /// `xl destroy` (`libxl__destroy_domid`): devices first, then the nodes, then the domain. A
    /// backend that does not close its device in time is reported, after the domain is gone.
    pub fn destroy(&self, domid: DomId) -> Result<(), ToolstackError> {
        if self.dialect == Dialect::Xenopsd {
            return self.destroy_xenopsd_domain(domid);
        }
        self.pause(domid)?;
        let devices = self.destroy_devices(domid);
        let dom = domain_path(domid);
        let mut store = self.store()?;
        // libxl does not know controllers that others have made.
        let backends = format!("{}/backend/vusb/{domid}", domain_path(DomId(0)));
        let closed = store.directory(&backends)?.is_empty();
        if let Some(vm) = store.read(&format!("{dom}/vm"))? {
            store.rm(&vm)?;
        }
        store.rm(&dom)?;
        store.rm(&format!("/libxl/{domid}"))?;
        self.call(
            &Request::DestroyDomain {
                domid: domid.0,
                closed,
            },
            &[],
        )?;
        devices
    }

    /// Waits until the domain has shut down, and gives the reason (`@releaseDomain`). `None` at
    /// the timeout.
    pub fn wait_shutdown(
        &self,
        domid: DomId,
        timeout: Duration,
    ) -> Result<Option<ShutdownReason>, ToolstackError> {
        let deadline = Instant::now() + timeout;
        let mut store = self.store()?;
        store.watch("@releaseDomain", "shutdown")?;
        loop {
            if let Some(reason) = self.info(domid)?.shutdown {
                return Ok(Some(reason));
            }
            if store.next_event(deadline)?.is_none() {
                return Ok(None);
            }
        }
    }

    /// Writes `control/shutdown` and waits until the guest has taken it and has shut down.
    pub(super) fn request_shutdown(
        &self,
        domid: DomId,
        request: &str,
        reason: ShutdownReason,
    ) -> Result<(), ToolstackError> {
        let path = format!("{}/control/shutdown", domain_path(domid));
        let mut store = self.store()?;
        store.write(&path, request)?;
        store.watch(&path, "ack")?;
        let deadline = Instant::now() + self.timeouts.guest;
        while store.read(&path)?.as_deref() == Some(request) {
            if store.next_event(deadline)?.is_none() {
                // The guest may answer at this very moment: only a request that is still there
                // can be taken back.
                let taken_back = store.transaction(|t| {
                    let unanswered = t.read(&path)?.as_deref() == Some(request);
                    if unanswered {
                        t.write(&path, "")?;
                    }
                    Ok::<_, std::io::Error>(unanswered)
                })?;
                if taken_back {
                    return Err(ToolstackError::GuestUnresponsive(domid));
                }
            }
        }
        match self.wait_shutdown(domid, self.timeouts.guest)? {
            Some(actual) if actual == reason => Ok(()),
            Some(reason) => Err(ToolstackError::UnexpectedShutdown { domid, reason }),
            None => Err(ToolstackError::GuestUnresponsive(domid)),
        }
    }

    /// `xl reboot`: asks the guest, destroys the domain once it has shut down and makes it anew,
    /// running. The new domain waits for a new guest process.
    pub fn reboot(&self, domid: DomId) -> Result<DomId, ToolstackError> {
        let config = self.config(domid)?;
        self.request_shutdown(domid, "reboot", ShutdownReason::Reboot)?;
        self.destroy(domid)?;
        let domid = self.create(&config)?;
        self.unpause(domid)?;
        Ok(domid)
    }
}

/// The nodes that libxl makes for a domain.
fn write_domain_nodes(
    t: &mut Store,
    domid: DomId,
    config: &DomainConfig,
    name: &str,
) -> std::io::Result<()> {
    let dom = domain_path(domid);
    let vm = format!("/vm/{}", config.uuid);
    let libxl = format!("/libxl/{domid}");
    let none = ["n0".to_owned()];
    let ro = ["n0".to_owned(), format!("r{domid}")];
    let rw = [format!("n{domid}")];
    t.rm(&dom)?;
    make_node(t, &dom, &ro)?;
    // With a migration on one host this also takes the older domain's node away.
    t.rm(&vm)?;
    make_node(t, &vm, &ro)?;
    t.rm(&libxl)?;
    make_node(t, &libxl, &none)?;
    make_node(t, &format!("{libxl}/device"), &none)?;
    t.write(&format!("{dom}/vm"), &vm)?;
    t.write(&format!("{dom}/name"), name)?;
    for path in ["cpu", "memory", "device"] {
        make_node(t, &format!("{dom}/{path}"), &ro)?;
    }
    make_node(t, &format!("{dom}/device/suspend/event-channel"), &rw)?;
    make_node(t, &format!("{dom}/control"), &ro)?;
    for path in [
        "shutdown",
        "feature-poweroff",
        "feature-reboot",
        "feature-suspend",
        "sysrq",
    ] {
        make_node(t, &format!("{dom}/control/{path}"), &rw)?;
    }
    for path in ["data", "drivers", "feature", "attr", "error"] {
        make_node(t, &format!("{dom}/{path}"), &rw)?;
    }
    t.write(&format!("{vm}/uuid"), &config.uuid.to_string())?;
    t.write(&format!("{vm}/name"), name)?;
    for feature in ["multiprocessor-suspend", "xs_reset_watches"] {
        t.write(&format!("{dom}/control/platform-feature-{feature}"), "1")?;
    }
    t.write(&format!("{libxl}/type"), "pvh")
}
