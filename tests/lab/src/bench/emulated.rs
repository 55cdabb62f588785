// SPDX-License-Identifier: GPL-3.0-or-later
//! QEMU's devices: plugged in, pulled out, plugged in elsewhere.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{Bench, DISK_BYTES, Kind, Plugged};
use crate::progress::patience;

impl Bench {
    /// Plug one of QEMU's devices in that was pulled out of another machine, or out of this one before
    /// it was started again: a disk with what is written on it.
    pub fn plug_moved(&self, kind: Kind, contents: Option<&[u8]>) -> Result<Plugged> {
        self.appears(kind, || {
            self.behind(kind)?;
            self.write(kind, contents)?;
            self.add(kind, kind.port().1)
        })
    }

    /// What is written on it, if it is one of QEMU's disks.
    pub fn contents(&self, kind: Kind) -> Result<Option<Vec<u8>>> {
        kind.is_disk()
            .then(|| std::fs::read(self.socket(kind.name())))
            .transpose()
            .with_context(|| format!("reading the {}", kind.name()))
    }

    /// Write that on it, where QEMU already has it open.
    fn write(&self, kind: Kind, contents: Option<&[u8]>) -> Result<()> {
        if let Some(contents) = contents {
            let mut file = OpenOptions::new()
                .write(true)
                .open(self.socket(kind.name()))?;
            file.write_all(contents)?;
        }
        Ok(())
    }

    /// Pull one of QEMU's devices out. What is behind it stays: a disk's bytes, a line's far end.
    pub fn pull(&self, plugged: &Plugged) -> Result<()> {
        self.qmp("device_del", json!({ "id": plugged.kind.name() }))?;
        let start = Instant::now();
        while self.places()?.contains(&plugged.place) {
            if start.elapsed() > patience(20) {
                bail!(
                    "the exporter machine still sees its {}",
                    plugged.kind.name()
                );
            }
            std::thread::sleep(Duration::from_millis(300));
        }
        Ok(())
    }

    /// Plug one that was pulled out into another port of its controller. A disk that was elsewhere
    /// meanwhile has those contents now.
    pub fn plug_again(&self, kind: Kind, port: &str, contents: Option<&[u8]>) -> Result<Plugged> {
        self.appears(kind, || {
            self.write(kind, contents)?;
            self.add(kind, port)
        })
    }

    /// A Unix socket that QEMU listens on, as a character device of the same name.
    fn socket_device(&self, name: &str) -> Result<()> {
        let path = self.socket(name);
        let _ = std::fs::remove_file(&path);
        let address = json!({ "type": "unix", "data": { "path": path.to_string_lossy() } });
        let backend =
            json!({ "type": "socket", "data": { "addr": address, "server": true, "wait": false } });
        self.qmp("chardev-add", json!({ "id": name, "backend": backend }))
    }

    fn disk(&self, name: &str) -> Result<()> {
        let file = self.socket(name);
        let _ = std::fs::remove_file(&file);
        std::fs::File::create(&file)?.set_len(DISK_BYTES)?;
        let storage = json!({ "driver": "file", "filename": file.to_string_lossy() });
        self.qmp(
            "blockdev-add",
            json!({ "driver": "raw", "node-name": name, "file": storage }),
        )
    }

    /// What is behind one of QEMU's devices.
    pub(super) fn behind(&self, kind: Kind) -> Result<()> {
        match kind {
            Kind::Serial | Kind::Reader => self.socket_device(kind.name()),
            Kind::SuperStick | Kind::UasStick | Kind::UasOnlyStick => self.disk(kind.name()),
            _ => Ok(()),
        }
    }

    /// One of QEMU's devices, with its parts. Of itself QEMU makes a serial number from the port, which says
    /// of a device in another port that it is another device: those that are plugged in again have theirs.
    pub(super) fn add(&self, kind: Kind, port: &str) -> Result<()> {
        let name = kind.name();
        self.add_device(kind, port)?;
        match kind {
            Kind::Reader => self.qmp(
                "device_add",
                json!({ "driver": "ccid-card-passthru", "id": "card", "bus": format!("{name}.0"), "chardev": name }),
            ),
            Kind::UasStick | Kind::UasOnlyStick => {
                self.qmp(
                    "device_add",
                    json!({ "driver": "scsi-hd", "id": format!("{name}-disk"), "bus": format!("{name}.0"), "drive": name }),
                )?;
                // One that is plugged into a running machine waits until it has its disks.
                self.qmp(
                    "qom-set",
                    json!({ "path": format!("/machine/peripheral/{name}"), "property": "attached", "value": true }),
                )
            }
            _ => Ok(()),
        }
    }

    fn add_device(&self, kind: Kind, port: &str) -> Result<()> {
        let name = kind.name();
        let (driver, more) = match kind {
            Kind::Keyboard => ("usb-kbd", json!({})),
            Kind::Tablet => ("usb-tablet", json!({})),
            Kind::Serial => (
                "usb-serial",
                json!({ "chardev": name, "always-plugged": true }),
            ),
            Kind::Reader => ("usb-ccid", json!({})),
            // A second's worth of buffer: an emulator runs in bursts.
            Kind::Speaker => (
                "usb-audio",
                json!({ "audiodev": "sound", "buffer": 192_000 }),
            ),
            Kind::SuperStick => ("usb-storage", json!({ "drive": name, "removable": true })),
            Kind::UasStick | Kind::UasOnlyStick => ("usb-uas", json!({})),
            _ => bail!("{name} is no device of QEMU's"),
        };
        let mut device =
            json!({ "driver": driver, "id": name, "bus": kind.port().0, "port": port });
        if let Some(serial) = kind.serial() {
            merge(&mut device, json!({ "serial": serial }));
        }
        merge(&mut device, more);
        self.qmp("device_add", device)
    }
}

fn merge(into: &mut Value, more: Value) {
    if let (Value::Object(into), Value::Object(more)) = (into, more) {
        into.extend(more);
    }
}
