// SPDX-License-Identifier: GPL-3.0-or-later
//! The exporter machine's USB devices: QEMU's, gadgets of its own kernel, and simulated ones that
//! it attaches with USB/IP; and what each is good for.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::agent::Agent;
use crate::lab::Lab;
use crate::machine::Machine;
use crate::programs;
use crate::progress::patience;
use crate::stack;
use typist::Input;

pub use kind::Kind;
pub use typist::Typist;
pub use user::User;

mod audio;
mod emulated;
mod gadget;
pub mod hops;
pub mod job;
mod kind;
mod peer;
mod score;
mod served;
mod typist;
mod user;

/// Size of every emulated disk but the stick, and of the storage gadget's.
const DISK_BYTES: u64 = 32 << 20;

/// Milliseconds that one of the headset's bus takes. Linux's audio driver has 12 to 18 ms of audio in
/// flight, and a round trip through the emulators takes 75 ms, ten times that on a busy computer: with
/// this clock it is to a frame of the bus what it is on real machines, and what is lost is lost by somebody's
/// fault.
const HEADSET_SLOWNESS: u32 = 50;

/// Numbers of the simulated devices that [`Bench::hold`] is for.
const SLOW: u16 = 4;
const SILENT: u16 = 5;

/// A device in its place.
#[derive(Debug, Clone)]
pub struct Plugged {
    /// What it is.
    pub kind: Kind,
    /// Where: `2-1`, as sysfs and `xl-vusb` name it.
    pub place: String,
    /// The machine that it is plugged into, and so the exporter's name.
    exporter: &'static str,
}

impl Plugged {
    /// The same, whatever port it is in: `exporter/0627:0001:LAB0004`.
    pub fn identity(&self, bench: &Bench) -> Result<String> {
        let ids = bench.agent.must(&format!(
            "cd /sys/bus/usb/devices/{} && echo $(cat idVendor):$(cat idProduct):$(cat serial)",
            self.place
        ))?;
        Ok(format!("{}/{}", self.exporter, ids.trim()))
    }

    /// Its name for `xl-vusb attach`.
    pub fn device(&self) -> String {
        format!("{}/{}", self.exporter, self.place)
    }
}

/// An exporter machine as a bench with devices on it.
pub struct Bench {
    /// Its agent.
    pub agent: Agent,
    machine: Machine,
    run: PathBuf,
    headset_slowness: u32,
}

impl Bench {
    /// Prepare the usual machine: our test program on it, drivers loaded.
    pub fn open(lab: &Lab) -> Result<Self> {
        Self::open_on(lab, Machine::named("exporter")?)
    }

    /// The same on any machine that is an exporter.
    pub fn open_on(lab: &Lab, machine: Machine) -> Result<Self> {
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

    /// Of the headset's streams, on the clock of its slow bus: it is played to its end.
    pub fn headset_buffer_ms(&self) -> u32 {
        (5_000 / self.headset_slowness).max(40)
    }

    /// Plug a device in; the same one twice is an error.
    pub fn plug(&self, lab: &Lab, kind: Kind) -> Result<Plugged> {
        self.appears(kind, || match kind {
            Kind::Stick => stack::plug_stick(lab),
            Kind::AcmGadget
            | Kind::HidGadget
            | Kind::StorageGadget
            | Kind::PrinterGadget
            | Kind::SourceSinkGadget => gadget::plug(&self.agent, kind),
            Kind::Headset => {
                let device = format!("--slow {} audio", self.headset_slowness);
                served::attach(lab, &self.agent, &device, 1)
            }
            Kind::SimulatedSourceSink => served::attach(lab, &self.agent, "source-sink", 2),
            Kind::SlowSourceSink => served::attach(lab, &self.agent, "source-sink", SLOW),
            Kind::SilentSourceSink => served::attach(lab, &self.agent, "source-sink", SILENT),
            Kind::SuperUasStick => served::attach(lab, &self.agent, "super-disk:32", 3),
            _ => {
                self.behind(kind)?;
                self.add(kind, kind.port().1)
            }
        })
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
                    exporter: self.machine.name,
                });
            }
            if start.elapsed() > patience(20) {
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

    /// What the speaker has played so far: the samples of its recording.
    fn played(&self) -> Result<Vec<u8>> {
        /// Of a RIFF file with one format and one data chunk.
        const HEADER_BYTES: usize = 44;
        let path = self.machine.recording(&self.run);
        let mut bytes =
            std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(bytes.split_off(HEADER_BYTES.min(bytes.len())))
    }

    /// Makes a device slow to answer: the words of `usbip-sim`'s command `hold`.
    pub fn hold(&self, kind: Kind, what: &str, delay: &str) -> Result<()> {
        let number = match kind {
            Kind::SlowSourceSink => SLOW,
            Kind::SilentSourceSink => SILENT,
            _ => bail!("{} answers as it does", kind.name()),
        };
        let answer = served::tell(&self.agent, number, &format!("hold 1-1 {what} {delay}"))?;
        if answer != "ok" {
            bail!("usbip-sim, told to hold {what} {delay}: {answer}");
        }
        Ok(())
    }

    /// A typist at the machine's keyboard.
    pub fn typist(&self, interval: Duration) -> Typist {
        let qmp = self.machine.monitor(self.run_directory());
        Typist::start(&qmp, Input::Letters, interval, u64::MAX)
    }

    /// The machine itself as a device's user.
    pub fn user(&self, device: &str) -> User {
        User {
            agent: self.agent.clone(),
            device: device.to_owned(),
            plug: (0, 0),
        }
    }

    fn run_directory(&self) -> &Path {
        &self.run
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
        "modprobe -a usbhid hid-generic evdev ftdi_sio cdc-acm usblp usb-storage uas sd_mod usbtest",
    )?;
    // The kernel with checks has no sound.
    agent.must(
        "if find /lib/modules/ -name 'snd-usb-audio.ko' | grep -q .; then modprobe snd-usb-audio; fi",
    )?;
    Ok(())
}

/// Attach a device to the guest on `host`; the guest as its user, once it has enumerated it.
pub fn attach(lab: &Lab, host: &str, guest: &Agent, plugged: &Plugged) -> Result<User> {
    attach_to(lab, host, guest, plugged, 0)
}

/// The same at one of several controllers.
pub fn attach_to(
    lab: &Lab,
    host: &str,
    guest: &Agent,
    plugged: &Plugged,
    controller: usize,
) -> Result<User> {
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
) -> Result<User> {
    let domain = crate::guest::NAME;
    attach_domain(lab, host, domain, guest, device, controller, options)
}

/// The same to any domain.
pub fn attach_domain(
    lab: &Lab,
    host: &str,
    domain: &str,
    guest: &Agent,
    device: &str,
    controller: usize,
    options: &str,
) -> Result<User> {
    let start = Instant::now();
    let command = format!("attach {domain} {device} --controller {controller} {options}");
    let answer = loop {
        // The exporter hears of a new device a moment after the machine's kernel does.
        match stack::xl_vusb(lab, host, &command) {
            Ok(answer) => break answer,
            Err(error) if start.elapsed() > patience(15) => return Err(error),
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
    let user = User {
        agent: guest.clone(),
        device: format!("{bus}-{port}"),
        plug: (controller, port),
    };
    user.wait_configured()?;
    Ok(user)
}

/// Detach what a guest uses.
pub fn detach(lab: &Lab, host: &str, user: &User) -> Result<()> {
    let (controller, port) = user.plug;
    let name = crate::guest::NAME;
    stack::xl_vusb(
        lab,
        host,
        &format!("detach {name} {port} --controller {controller}"),
    )?;
    Ok(())
}
