// SPDX-License-Identifier: GPL-3.0-or-later
//! USB controllers (`libxl_usb.c`, `libxl_device.c`).

use std::time::Instant;

use xen::DomId;

use super::domain::{domain_path, make_node};
use super::{Doing, Store, Toolstack, ToolstackError, UsbController};

const INITIALISING: u32 = 1;
const INIT_WAIT: u32 = 2;
const CLOSING: u32 = 5;
const CLOSED: u32 = 6;

fn backend_path(domid: DomId, devid: u32) -> String {
    format!("{}/backend/vusb/{domid}/{devid}", domain_path(DomId(0)))
}

fn frontend_path(domid: DomId, devid: u32) -> String {
    format!("{}/device/vusb/{devid}", domain_path(domid))
}

fn libxl_path(domid: DomId, devid: u32) -> String {
    format!("/libxl/{domid}/device/vusb/{devid}")
}

/// A backend's state that is waited for.
struct StateWait {
    path: String,
    deadline: Instant,
}

impl Toolstack {
    /// Adds all of a new domain's controllers, then waits for each of their backends.
    pub(super) fn attach_controllers(
        &self,
        domid: DomId,
        controllers: &[UsbController],
    ) -> Result<(), ToolstackError> {
        let mut waits = Vec::new();
        if !self.dialect.makes_controllers() {
            return Ok(());
        }
        for (devid, controller) in (0..).zip(controllers) {
            waits.push(self.add_controller(domid, devid, *controller)?);
        }
        for wait in waits {
            self.wait_backend(&wait, INIT_WAIT)?;
        }
        Ok(())
    }

    /// `xl usbctrl-attach`. Gives the device id.
    pub fn usbctrl_attach(
        &self,
        domid: DomId,
        controller: UsbController,
    ) -> Result<u32, ToolstackError> {
        let devices = self
            .store()?
            .directory(&format!("/libxl/{domid}/device/vusb"))?;
        let devid = (0..)
            .find(|devid: &u32| !devices.contains(&devid.to_string()))
            .expect("fewer devices than numbers");
        let wait = self.add_controller(domid, devid, controller)?;
        match self.wait_backend(&wait, INIT_WAIT) {
            Ok(()) => Ok(devid),
            Err(err) => {
                // The first failure is the one to report.
                let _ = self.remove_controller(domid, devid, false);
                Err(err)
            }
        }
    }

    /// `xl usbctrl-detach`.
    pub fn usbctrl_detach(&self, domid: DomId, devid: u32) -> Result<(), ToolstackError> {
        self.remove_controller(domid, devid, false)
    }

    /// `libxl__device_usbctrl_add_xenstore` and `libxl__device_generic_add`.
    fn add_controller(
        &self,
        domid: DomId,
        devid: u32,
        controller: UsbController,
    ) -> Result<StateWait, ToolstackError> {
        let libxl = libxl_path(domid, devid);
        self.store()?.transaction(|t| {
            let entries = write_controller(t, domid, devid, controller)?;
            t.rm(&libxl)?;
            t.write(&format!("{libxl}/frontend"), &frontend_path(domid, devid))?;
            t.write(&format!("{libxl}/backend"), &backend_path(domid, devid))?;
            for (key, value) in &entries {
                t.write(&format!("{libxl}/{key}"), value)?;
            }
            Ok::<_, ToolstackError>(())
        })?;
        Ok(StateWait {
            path: format!("{}/state", backend_path(domid, devid)),
            deadline: Instant::now() + self.timeouts.backend,
        })
    }

    /// Waits for exactly this state, as libxl does: one that is passed over is not seen. Fails at
    /// once when the node is removed.
    fn wait_backend(&self, wait: &StateWait, wanted: u32) -> Result<(), ToolstackError> {
        let mut store = self.store()?;
        store
            .watch(&wait.path, "state")
            .doing(|| format!("watching {}", wait.path))?;
        loop {
            if store.next_event(wait.deadline)?.is_none() {
                return Err(ToolstackError::BackendTimeout {
                    path: wait.path.clone(),
                    wanted,
                });
            }
            match store.read(&wait.path)? {
                None => {
                    return Err(ToolstackError::BackendRemoved {
                        path: wait.path.clone(),
                    });
                }
                Some(state) if state.parse() == Ok(wanted) => return Ok(()),
                Some(_) => {}
            }
        }
    }

    /// Removes all devices of a domain that ends, even where a backend does not answer.
    pub(super) fn destroy_devices(&self, domid: DomId) -> Result<(), ToolstackError> {
        let devices = self
            .store()?
            .directory(&format!("/libxl/{domid}/device/vusb"))?;
        let mut result = Ok(());
        for devid in devices.iter().filter_map(|devid| devid.parse().ok()) {
            let removed = self.remove_controller(domid, devid, true);
            result = result.and(removed);
        }
        result
    }

    /// `libxl__initiate_device_generic_remove` and `libxl__device_destroy`. With `force`, the
    /// frontend's nodes go first.
    fn remove_controller(
        &self,
        domid: DomId,
        devid: u32,
        force: bool,
    ) -> Result<(), ToolstackError> {
        let front = frontend_path(domid, devid);
        let back = backend_path(domid, devid);
        let state_path = format!("{back}/state");
        let mut store = self.store()?;
        let there = store.transaction(|t| {
            if force {
                clean_path(t, &front)?;
            }
            let Some(state) = t.read(&state_path)? else {
                return Ok(false);
            };
            t.write(&format!("{back}/online"), "0")?;
            if state.parse() != Ok(CLOSED) {
                t.write(&state_path, &CLOSING.to_string())?;
            }
            Ok::<_, std::io::Error>(true)
        })?;
        let wait = StateWait {
            path: state_path,
            deadline: Instant::now() + self.timeouts.backend,
        };
        let closed = if there {
            self.wait_backend(&wait, CLOSED)
        } else {
            Ok(())
        };
        store.transaction(|t| {
            clean_path(t, &front)?;
            clean_path(t, &libxl_path(domid, devid))?;
            clean_path(t, &back)
        })?;
        match closed {
            // The backend has removed it all by itself.
            Err(ToolstackError::BackendRemoved { .. }) => Ok(()),
            other => other,
        }
    }
}

/// A controller's two directories, and what libxl keeps of it.
fn write_controller(
    t: &mut Store,
    domid: DomId,
    devid: u32,
    controller: UsbController,
) -> Result<Vec<(String, String)>, ToolstackError> {
    let front = frontend_path(domid, devid);
    let back = backend_path(domid, devid);
    let front_perms = [format!("n{domid}"), "r0".to_owned()];
    let back_perms = ["n0".to_owned(), format!("r{domid}")];
    let initialising = INITIALISING.to_string();
    let mut entries = vec![
        ("frontend-id".to_owned(), domid.to_string()),
        ("online".to_owned(), "1".to_owned()),
        ("state".to_owned(), initialising.clone()),
        ("type".to_owned(), "pv".to_owned()),
        ("usb-ver".to_owned(), controller.version.to_string()),
        ("num-ports".to_owned(), controller.ports.to_string()),
        ("port".to_owned(), String::new()),
    ];
    for port in 1..=controller.ports {
        entries.push((format!("port/{port}"), String::new()));
    }
    if t.read(&format!("{back}/state"))?.is_some() {
        return Err(ToolstackError::DeviceExists(devid));
    }
    t.rm(&front)?;
    make_node(t, &front, &front_perms)?;
    t.write(&format!("{front}/backend"), &back)?;
    for (key, value) in [("backend-id", "0"), ("state", initialising.as_str())] {
        let path = format!("{front}/{key}");
        t.write(&path, value)?;
        t.set_perms(&path, &front_perms)?;
    }
    t.rm(&back)?;
    make_node(t, &back, &back_perms)?;
    t.write(&format!("{back}/frontend"), &front)?;
    for (key, value) in &entries {
        t.write(&format!("{back}/{key}"), value)?;
    }
    Ok(entries)
}

/// Removes a node, and the directories above it that are empty then (`libxl__xs_path_cleanup`).
fn clean_path(store: &mut Store, path: &str) -> std::io::Result<()> {
    store.rm(path)?;
    let mut path = path;
    while let Some((dir, _)) = path.rsplit_once('/')
        && !dir.is_empty()
    {
        if !store.directory(dir)?.is_empty() {
            break;
        }
        store.rm(dir)?;
        path = dir;
    }
    Ok(())
}
