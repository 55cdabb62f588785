// SPDX-License-Identifier: GPL-3.0-or-later
//! The exporter machine's USB devices: QEMU's, gadgets of its own kernel, and simulated ones that
//! it attaches with USB/IP; and what each is good for.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::lab::Lab;
use crate::machine::Machine;
use crate::programs;
use crate::stack;

mod audio;
mod gadget;
pub mod job;
mod peer;
mod score;
mod served;
mod typist;

/// Size of every emulated disk but the stick, and of the storage gadget's.
const DISK_BYTES: u64 = 32 << 20;

/// Milliseconds that one of the headset's bus takes. Linux's audio driver has 12 to 18 ms of audio in
/// flight, and a round trip through the emulators takes 75 ms, ten times that on a busy computer: with
/// this clock it is to a frame of the bus what it is on real machines, and what is lost is lost by somebody's
/// fault.
const HEADSET_SLOWNESS: u32 = 50;

/// A device that the exporter machine can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Kind {
    /// QEMU's keyboard, at full speed.
    Keyboard,
    /// QEMU's tablet.
    Tablet,
    /// QEMU's FTDI serial adapter.
    Serial,
    /// QEMU's CCID reader with a card.
    Reader,
    /// QEMU's loudspeaker (UAC1).
    Speaker,
    /// QEMU's mass storage on EHCI, at high speed.
    Stick,
    /// QEMU's mass storage on xHCI, at SuperSpeed.
    SuperStick,
    /// QEMU's UAS storage on EHCI: without streams, and without a bulk-only setting.
    UasStick,
    /// The same on xHCI: at SuperSpeed UAS is streams, which PV USB has not, so it is refused.
    UasOnlyStick,
    /// A simulated disk at SuperSpeed with a bulk-only setting and one for UAS, which is not shown.
    SuperUasStick,
    /// A CDC-ACM gadget.
    AcmGadget,
    /// A HID gadget that is a boot keyboard.
    HidGadget,
    /// A mass-storage gadget.
    StorageGadget,
    /// The source and sink gadget, for `usbtest`.
    SourceSinkGadget,
    /// The simulated headset (UAC2).
    Headset,
    /// The simulated source and sink, for `usbtest`.
    SimulatedSourceSink,
}

impl Kind {
    /// All that have a job besides being tested.
    pub const USEFUL: [Self; 13] = [
        Self::Keyboard,
        Self::Tablet,
        Self::Serial,
        Self::Reader,
        Self::Speaker,
        Self::Stick,
        Self::SuperStick,
        Self::UasStick,
        Self::SuperUasStick,
        Self::AcmGadget,
        Self::HidGadget,
        Self::StorageGadget,
        Self::Headset,
    ];

    /// A word for tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Keyboard => "keyboard",
            Self::Tablet => "tablet",
            Self::Serial => "serial",
            Self::Reader => "reader",
            Self::Speaker => "speaker",
            Self::Stick => "stick",
            Self::SuperStick => "super-stick",
            Self::UasStick => "uas-stick",
            Self::UasOnlyStick => "uas-only-stick",
            Self::SuperUasStick => "super-uas-stick",
            Self::AcmGadget => "acm-gadget",
            Self::HidGadget => "hid-gadget",
            Self::StorageGadget => "storage-gadget",
            Self::SourceSinkGadget => "source-sink-gadget",
            Self::Headset => "headset",
            Self::SimulatedSourceSink => "simulated-source-sink",
        }
    }

    /// Whether it is a disk.
    pub fn is_disk(self) -> bool {
        matches!(
            self,
            Self::Stick
                | Self::SuperStick
                | Self::UasStick
                | Self::UasOnlyStick
                | Self::SuperUasStick
                | Self::StorageGadget
        )
    }

    /// The serial numbers of those that are given one.
    pub fn serial(self) -> Option<&'static str> {
        match self {
            Self::SuperStick => Some("LAB0002"),
            Self::UasStick | Self::UasOnlyStick => Some("LAB0003"),
            Self::Keyboard => Some("LAB0004"),
            Self::Serial => Some("LAB0005"),
            _ => None,
        }
    }

    /// Bus and port of the machine's controllers, which every device has for itself.
    fn port(self) -> (&'static str, &'static str) {
        match self {
            Self::Keyboard => ("xhci.0", "1"),
            Self::Tablet => ("xhci.0", "2"),
            Self::Serial => ("uhci.0", "1"),
            Self::Reader => ("xhci.0", "4"),
            Self::Speaker => ("xhci.0", "5"),
            Self::SuperStick => ("xhci.0", "6"),
            Self::UasOnlyStick => ("xhci.0", "7"),
            Self::UasStick => ("ehci.0", "2"),
            _ => ("xhci.0", "8"),
        }
    }
}

/// A device in its place.
#[derive(Debug, Clone)]
pub struct Plugged {
    /// What it is.
    pub kind: Kind,
    /// Where: `2-1`, as sysfs and `xl-vusb` name it.
    pub place: String,
}

impl Plugged {
    /// The same, whatever port it is in: `exporter/0627:0001:LAB0004`.
    pub fn identity(&self, bench: &Bench) -> Result<String> {
        let ids = bench.agent.must(&format!(
            "cd /sys/bus/usb/devices/{} && echo $(cat idVendor):$(cat idProduct):$(cat serial)",
            self.place
        ))?;
        Ok(format!("exporter/{}", ids.trim()))
    }

    /// Its name for `xl-vusb attach`.
    pub fn device(&self) -> String {
        format!("exporter/{}", self.place)
    }
}

/// The exporter machine as a bench with devices on it.
pub struct Bench {
    /// Its agent.
    pub agent: Agent,
    machine: Machine,
    run: PathBuf,
    headset_slowness: u32,
}

impl Bench {
    /// Prepare the machine: our test program on it, drivers loaded.
    pub fn open(lab: &Lab) -> Result<Self> {
        let machine = Machine::named("exporter")?;
        let bench = Self {
            agent: lab.agent(machine.name)?,
            machine,
            run: lab.run_directory().to_owned(),
            headset_slowness: HEADSET_SLOWNESS,
        };
        install(&bench.agent)?;
        Ok(bench)
    }

    /// A headset whose bus is so many times slower still: where much else is going on.
    pub fn with_slower_headset(mut self, times: u32) -> Self {
        self.headset_slowness *= times;
        self
    }

    /// Plug a device in; the same one twice is an error.
    pub fn plug(&self, lab: &Lab, kind: Kind) -> Result<Plugged> {
        self.appears(kind, || match kind {
            Kind::Stick => stack::plug_stick(lab),
            Kind::AcmGadget | Kind::HidGadget | Kind::StorageGadget | Kind::SourceSinkGadget => {
                gadget::plug(&self.agent, kind)
            }
            Kind::Headset => {
                let device = format!("--slow {} audio", self.headset_slowness);
                served::attach(lab, &self.agent, &device, 1)
            }
            Kind::SimulatedSourceSink => served::attach(lab, &self.agent, "source-sink", 2),
            Kind::SuperUasStick => served::attach(lab, &self.agent, "super-disk:32", 3),
            _ => self.plug_emulated(kind),
        })
    }

    /// Pull one of QEMU's devices out. What is behind it stays: a disk's bytes, a line's far end.
    pub fn pull(&self, plugged: &Plugged) -> Result<()> {
        self.qmp("device_del", json!({ "id": plugged.kind.name() }))?;
        let start = Instant::now();
        while self.places()?.contains(&plugged.place) {
            if start.elapsed() > Duration::from_secs(20) {
                bail!(
                    "the exporter machine still sees its {}",
                    plugged.kind.name()
                );
            }
            std::thread::sleep(Duration::from_millis(300));
        }
        Ok(())
    }

    /// Plug one that was pulled out into another port of its controller.
    pub fn plug_again(&self, kind: Kind, port: &str) -> Result<Plugged> {
        self.appears(kind, || self.add(kind, port))
    }

    /// Make a device appear, and wait until the machine sees it.
    fn appears(&self, kind: Kind, how: impl FnOnce() -> Result<()>) -> Result<Plugged> {
        let before = self.places()?;
        how()?;
        let start = Instant::now();
        loop {
            if let Some(place) = self.places()?.difference(&before).next() {
                return Ok(Plugged {
                    kind,
                    place: place.clone(),
                });
            }
            if start.elapsed() > Duration::from_secs(20) {
                bail!(
                    "the exporter machine does not see its {}: {}",
                    kind.name(),
                    self.agent.must("dmesg | tail -n 8")?
                );
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Devices that are no hubs.
    fn places(&self) -> Result<BTreeSet<String>> {
        let listing = self.agent.must(
            "cd /sys/bus/usb/devices && for d in [0-9]*-*; do case $d in *:*) ;; *) test -s $d/idProduct && echo $d ;; esac; done; true",
        )?;
        Ok(listing.split_whitespace().map(str::to_owned).collect())
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.run.join(format!("{}.{name}", self.machine.name))
    }

    fn qmp(&self, command: &str, arguments: Value) -> Result<()> {
        // One at a time: QEMU's monitor serves one client, and typists are waiting for it.
        self.machine.qmp(&self.run)?.execute(command, arguments)?;
        Ok(())
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

    /// What is behind one of QEMU's devices, and the device.
    fn plug_emulated(&self, kind: Kind) -> Result<()> {
        let name = kind.name();
        match kind {
            Kind::Serial | Kind::Reader => self.socket_device(name)?,
            Kind::SuperStick | Kind::UasStick | Kind::UasOnlyStick => self.disk(name)?,
            _ => (),
        }
        self.add(kind, kind.port().1)?;
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

    /// One of QEMU's devices alone. Of itself QEMU makes a serial number from the port, which says
    /// of a device in another port that it is another device: those that are plugged in again have theirs.
    fn add(&self, kind: Kind, port: &str) -> Result<()> {
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

    /// What the speaker has played so far: the samples of its recording.
    fn played(&self) -> Result<Vec<u8>> {
        /// Of a RIFF file with one format and one data chunk.
        const HEADER_BYTES: usize = 44;
        let path = self.machine.recording(&self.run);
        let mut bytes =
            std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(bytes.split_off(HEADER_BYTES.min(bytes.len())))
    }

    /// The machine itself as a device's user.
    pub fn user(&self, device: &str) -> job::User {
        job::User {
            agent: self.agent.clone(),
            device: device.to_owned(),
            plug: (0, 0),
        }
    }

    fn run_directory(&self) -> &Path {
        &self.run
    }
}

fn merge(into: &mut Value, more: Value) {
    if let (Value::Object(into), Value::Object(more)) = (into, more) {
        into.extend(more);
    }
}

/// Our test program and the drivers, on a machine where devices are used.
pub fn install(agent: &Agent) -> Result<()> {
    let directory = programs::build(&["xen-vusb-lab"])?;
    agent.put(
        "/usr/bin/lab-usb",
        0o755,
        &programs::stripped(&directory.join("lab-usb"))?,
    )?;
    agent.must(
        "modprobe -a usbhid hid-generic evdev ftdi_sio cdc-acm snd-usb-audio usb-storage uas sd_mod usbtest",
    )?;
    Ok(())
}

/// Attach a device to the guest on `host`; the guest as its user, once it has enumerated it.
pub fn attach(lab: &Lab, host: &str, guest: &Agent, plugged: &Plugged) -> Result<job::User> {
    attach_to(lab, host, guest, plugged, 0)
}

/// The same at one of several controllers.
pub fn attach_to(
    lab: &Lab,
    host: &str,
    guest: &Agent,
    plugged: &Plugged,
    controller: usize,
) -> Result<job::User> {
    attach_as(lab, host, guest, &plugged.device(), controller, "")
}

/// The same by any of its names, with other options of `xl-vusb attach`.
pub fn attach_as(
    lab: &Lab,
    host: &str,
    guest: &Agent,
    device: &str,
    controller: usize,
    options: &str,
) -> Result<job::User> {
    let start = Instant::now();
    let command = format!(
        "attach {} {device} --controller {controller} {options}",
        crate::guest::NAME,
    );
    let answer = loop {
        // The exporter hears of a new device a moment after the machine's kernel does.
        match stack::xl_vusb(lab, host, &command) {
            Ok(answer) => break answer,
            Err(error) if start.elapsed() > Duration::from_secs(15) => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_secs(1)),
        }
    };
    let port = answer["attached"]["port"]
        .as_u64()
        .with_context(|| format!("xl-vusb {command} says no port: {answer}"))?;
    let root_hub = guest.must(&format!(
        "basename /sys/bus/xen/devices/vusb-{controller}/usb*"
    ))?;
    let bus = root_hub.trim().trim_start_matches("usb");
    let user = job::User {
        agent: guest.clone(),
        device: format!("{bus}-{port}"),
        plug: (controller, port),
    };
    user.wait_configured()?;
    Ok(user)
}

/// Detach what a guest uses.
pub fn detach(lab: &Lab, host: &str, user: &job::User) -> Result<()> {
    let (controller, port) = user.plug;
    let name = crate::guest::NAME;
    stack::xl_vusb(
        lab,
        host,
        &format!("detach {name} {port} --controller {controller}"),
    )?;
    Ok(())
}
