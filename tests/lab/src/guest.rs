// SPDX-License-Identifier: GPL-3.0-or-later
//! The guest under test: its configuration, its life under `xl`, the way to its agent.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::agent::{AGENT_PORT, Agent, Output};
use crate::device_model;
use crate::guest_module::Module;
use crate::hypervisor::Hypervisor;
use crate::kernel::Choice;
use crate::lab::Lab;
use crate::machine::{MACHINES, Machine, Role};
use crate::progress::patience;

/// The guest's name.
pub const NAME: &str = "lab";
/// Its uuid, the same in every life: leases are by uuid, and a new guest must not find the
/// stick held for the old one.
pub const UUID: &str = "1ab00000-0000-4000-8000-00000000000a";
/// Its address on the lab network, on whichever host it runs.
pub const IP: [u8; 4] = [10, 9, 0, 10];

/// A domain of the lab.
#[derive(Debug, Clone, Copy)]
pub struct Domain {
    /// Its name.
    pub name: &'static str,
    uuid: &'static str,
    /// Its address on the lab network.
    ip: [u8; 4],
}

/// The guest under test.
pub const GUEST: Domain = Domain {
    name: NAME,
    uuid: UUID,
    ip: IP,
};

/// Other guests, for scenarios in which one must not disturb another. They stay on their host.
pub const NEIGHBOURS: [Domain; 2] = [
    Domain {
        name: "neighbour-1",
        uuid: "1ab00000-0000-4000-8000-00000000000b",
        ip: [10, 9, 0, 11],
    },
    Domain {
        name: "neighbour-2",
        uuid: "1ab00000-0000-4000-8000-00000000000c",
        ip: [10, 9, 0, 12],
    },
];

/// A way to the guest's agent, through whichever host is up.
pub fn agent(lab: &Lab) -> Result<Agent> {
    let machine = MACHINES
        .iter()
        .find(|machine| machine.role == Role::Host && machine.pid(lab.run_directory()).is_some())
        .context("no host is running; `cargo xtask lab up` starts them")?;
    agent_through(lab, machine.name)
}

/// A way to the guest's agent through one host.
pub fn agent_through(lab: &Lab, host: &str) -> Result<Agent> {
    agent_of(lab, host, &GUEST)
}

fn agent_of(lab: &Lab, host: &str, domain: &Domain) -> Result<Agent> {
    let name = match domain.name {
        NAME => "guest",
        name => name,
    };
    Ok(Agent {
        name: name.to_owned(),
        address: lab.agent(host)?.address,
        relay: Some(SocketAddr::from((domain.ip, AGENT_PORT))),
    })
}

/// How a guest is virtualized.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum Kind {
    /// Hardware virtualization without an emulated machine.
    #[default]
    Pvh,
    /// Paravirtualized. A live migration of it needs a rebuilt hypervisor.
    Pv,
    /// Hardware virtualization with an emulated machine: QEMU runs in dom0.
    Hvm,
}

impl Kind {
    /// The file of its kernel in the directory that it boots from: firmware starts a kernel that unpacks
    /// itself, the others take the ELF image.
    fn kernel(self) -> &'static str {
        match self {
            Self::Hvm => "vmlinuz",
            Self::Pv | Self::Pvh => "vmlinux",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Pv => "pv",
            Self::Pvh => "pvh",
            Self::Hvm => "hvm",
        }
    }
}

/// Which guest a scenario runs.
#[derive(Debug, Clone, Copy, Default, Args, Serialize)]
pub struct Setup {
    /// Its kernel.
    #[arg(long, value_enum, default_value_t)]
    pub kernel: Choice,
    /// How it is virtualized.
    #[arg(long = "type", value_enum, default_value_t)]
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Our module that it has, in scenarios where it has one.
    #[arg(long, value_enum, default_value_t)]
    pub module: Module,
}

impl Setup {
    /// The hypervisor that this guest needs, in a scenario that migrates it while it runs or one that
    /// does not.
    pub fn hypervisor(&self, migrates: bool) -> Hypervisor {
        match self.kind {
            Kind::Pv if migrates => Hypervisor::ShadowPaging,
            Kind::Pv | Kind::Pvh | Kind::Hvm => Hypervisor::Debian,
        }
    }

    /// Fail unless its kernel has the stock frontend.
    pub fn must_have_stock_driver(&self) -> Result<()> {
        if !self.kernel.has_stock_driver() {
            bail!(
                "the kernel of {} has no xen-hcd, which this scenario's guest has: use --kernel {}",
                self.kernel.name(),
                Choice::default().name()
            );
        }
        Ok(())
    }
}

/// A guest's `xl` configuration. `boot` is the directory of its kernel and ramdisk in dom0.
fn config(domain: &Domain, uuid: &str, setup: Setup, boot: &str, controllers: usize) -> String {
    let Domain { name, ip, .. } = domain;
    let [a, b, c, d] = ip;
    let kind = setup.kind;
    let memory = match (setup.kernel, kind) {
        // The checks keep an eighth of the memory for themselves, and what has been freed for a while.
        (Choice::Debug, _) => 448,
        // The firmware, and the kernel that unpacks itself beside its ramdisk, need more than the others.
        (_, Kind::Hvm) => 256,
        _ => 160,
    };
    let mut text = format!(
        "name = \"{name}\"\nuuid = \"{uuid}\"\ntype = \"{}\"\n\
         kernel = \"{boot}/{}\"\nramdisk = \"{boot}/guest.cpio\"\n\
         memory = {memory}\nvcpus = 1\nextra = \"console=hvc0 sysrq_always_enabled lab.name=guest lab.ip={a}.{b}.{c}.{d}\"\n\
         vif = ['mac=00:16:3e:00:09:{d:02x},script=vif-lab{}']\n\
         # Kept for a look when it dies.\non_crash = \"preserve\"\n",
        kind.name(),
        kind.kernel(),
        // Without an emulated card beside it.
        if kind == Kind::Hvm { ",type=vif" } else { "" },
    );
    if kind != Kind::Pv {
        // The emulator's CPU has no RDTSCP, which the other modes make Xen emulate.
        text.push_str("tsc_mode = \"native\"\n");
    }
    if kind == Kind::Hvm {
        text.push_str(&format!(
            "device_model_override = \"/{}\"\nvga = \"none\"\nnographic = 1\nvnc = 0\nserial = \"pty\"\n",
            device_model::PROGRAM
        ));
    }
    if controllers > 0 {
        let one = "'type=pv,version=2,ports=16'";
        text.push_str(&format!(
            "usbctrl = [{}]\n",
            vec![one; controllers].join(", ")
        ));
    }
    text
}

/// The configuration of the guest under test with another uuid, and without USB: for the target of a
/// migration. It names the files that the guest was created from.
pub fn config_without_usb(setup: Setup, uuid: &str) -> String {
    config(&GUEST, uuid, setup, &boot_directory(setup.kernel), 0)
}

/// The guest under test is shut down from inside, as its own administrator would; until its domain is gone.
pub fn shut_down(lab: &Lab, host: &str) -> Result<()> {
    let dom0 = lab.agent(host)?;
    // The answer may not come: the guest is gone.
    let _ = agent_through(lab, host)?.exec_for("sync; poweroff -f", Duration::from_secs(5));
    let start = Instant::now();
    while dom0.exec(&format!("xl domid {NAME}"))?.status == 0 {
        if start.elapsed() > patience(60) {
            bail!("the guest on {host} does not shut down");
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

/// A copy of the guest, from a file of `xl save`, on a host where it does not run: with the guest's uuid and
/// controllers, and without its network card, whose address is the guest's. Its name is [`NAME`] there, too.
pub fn restore_copy(lab: &Lab, host: &str, setup: Setup, file: &str) -> Result<()> {
    const CONFIG: &str = "/etc/xen/copy.cfg";
    let dom0 = lab.agent(host)?;
    let text = config(&GUEST, UUID, setup, &boot_directory(setup.kernel), 1);
    let lines = text.lines().filter(|line| !line.starts_with("vif"));
    let text: String = lines.flat_map(|line| [line, "\n"]).collect();
    dom0.put(CONFIG, 0o644, text.as_bytes())?;
    dom0.exec_for(
        &format!("xl restore {CONFIG} {file} 2>&1"),
        Duration::from_secs(600),
    )?
    .ok("xl restore")?;
    Ok(())
}

/// Create a guest on `host` and wait until its agent answers.
pub fn create_as(lab: &Lab, host: &str, usb: bool, setup: Setup) -> Result<Agent> {
    create_with(lab, host, usize::from(usb), setup)
}

/// The same with so many USB controllers.
pub fn create_with(lab: &Lab, host: &str, controllers: usize, setup: Setup) -> Result<Agent> {
    create_domain(lab, host, &GUEST, controllers, setup)
}

/// The same with any domain.
pub fn create_domain(
    lab: &Lab,
    host: &str,
    domain: &Domain,
    controllers: usize,
    setup: Setup,
) -> Result<Agent> {
    let dom0 = lab.agent(host)?;
    let (boot, version) = put_images(lab, &dom0, setup)?;
    if setup.kind == Kind::Hvm {
        // A migration can take it to any of them, and the device model there opens the kernel again.
        for machine in MACHINES.iter().filter(|machine| machine.role == Role::Host) {
            if machine.pid(lab.run_directory()).is_some() {
                let dom0 = lab.agent(machine.name)?;
                device_model::put(lab, &dom0)?;
                put_images(lab, &dom0, setup)?;
            }
        }
    }
    let config = config(domain, domain.uuid, setup, &boot, controllers);
    let name = domain.name;
    let file = format!("/etc/xen/{name}.cfg");
    dom0.put(&file, 0o644, config.as_bytes())?;
    dom0.exec_for(&format!("xl create {file}"), Duration::from_secs(180))?
        .ok("xl create")?;
    let guest = agent_of(lab, host, domain)?;
    if let Err(error) = guest.wait_ready(patience(600)) {
        let console = dom0.exec(&format!("tail -n 15 /var/log/xen/console/guest-{name}.log"))?;
        return Err(error.context(format!("the end of its console:\n{}", console.stdout)));
    }
    let runs = guest.must("uname -r; cat /sys/hypervisor/guest_type")?;
    let mut runs = runs.lines();
    if let Some(version) = version
        && runs.next() != Some(&version)
    {
        bail!("the guest does not run {version}");
    }
    if !runs.any(|line| line.eq_ignore_ascii_case(setup.kind.name())) {
        bail!("the guest is not of type {}", setup.kind.name());
    }
    Ok(guest)
}

/// Where a guest's kernel and ramdisk are in dom0.
fn boot_directory(kernel: Choice) -> String {
    if kernel == Choice::default() {
        "/boot".to_owned()
    } else {
        format!("/boot/{}", kernel.name())
    }
}

/// Kernel and ramdisk of a guest in dom0: the directory they are in, and the kernel's version
/// where it is not the hosts' own, which is in their ramdisk.
fn put_images(lab: &Lab, dom0: &Agent, setup: Setup) -> Result<(String, Option<String>)> {
    let Setup { kernel, kind, .. } = setup;
    let is_hosts = kernel == Choice::default();
    if is_hosts && kind != Kind::Hvm {
        return Ok((boot_directory(kernel), None));
    }
    let images = lab.guest_images(kernel)?;
    let boot = boot_directory(kernel);
    let image = match kind {
        Kind::Hvm => images.vmlinuz.with_context(|| {
            format!(
                "an HVM guest boots a packaged kernel, and that of --kernel {} is built here: use --type pvh",
                kernel.name()
            )
        })?,
        Kind::Pv | Kind::Pvh => images.vmlinux,
    };
    let mut files = vec![(image, kind.kernel())];
    if !is_hosts {
        files.push((images.ramdisk, "guest.cpio"));
    }
    for (file, to) in files {
        // A file that is put is there whole or not at all.
        let to = format!("{boot}/{to}");
        if dom0.exec(&format!("test -e {to}"))?.status != 0 {
            dom0.put(&to, 0o644, &std::fs::read(file)?)?;
        }
    }
    Ok((boot, (!is_hosts).then_some(images.version)))
}

/// Destroy the neighbours on a host.
pub fn destroy_neighbours(lab: &Lab, host: &str) -> Result<()> {
    let dom0 = lab.agent(host)?;
    for domain in NEIGHBOURS {
        dom0.exec(&format!("xl destroy {}", domain.name))?;
    }
    Ok(())
}

/// Destroy the guest wherever it is, under any of the names that a migration gives it.
pub fn destroy(lab: &Lab) -> Result<()> {
    for machine in MACHINES.iter().filter(|machine| machine.role == Role::Host) {
        if machine.pid(lab.run_directory()).is_some() {
            let dom0 = lab.agent(machine.name)?;
            for suffix in ["", "--incoming", "--migratedaway"] {
                dom0.exec(&format!("xl destroy {NAME}{suffix}"))?;
            }
        }
    }
    Ok(())
}

/// Plain `xl migrate`; what it printed and how long it took.
pub fn migrate(lab: &Lab, from: &str, to: &str) -> Result<(Output, Duration)> {
    let target = Machine::named(to)?.ip();
    let start = Instant::now();
    // -t: when the receiving end has closed, the sending one must hear of it soon, as it would from
    // ssh. With a long time a refused guest stays suspended for as long.
    let output = lab.agent(from)?.exec_for(
        &format!("xl migrate -s '' {NAME} 'socat -b 262144 -t 5 - TCP:{target}:8002' 2>&1"),
        patience(900),
    )?;
    Ok((output, start.elapsed()))
}

/// `xl save`, which ends the domain; what it printed and how long it took.
pub fn save(lab: &Lab, host: &str, file: &str) -> Result<Duration> {
    let start = Instant::now();
    lab.agent(host)?
        .exec_for(&format!("xl save {NAME} {file} 2>&1"), patience(600))?
        .ok("xl save")?;
    Ok(start.elapsed())
}

/// `xl restore`, until the guest's agent answers.
pub fn restore(lab: &Lab, host: &str, file: &str) -> Result<(Agent, Duration)> {
    let start = Instant::now();
    lab.agent(host)?
        .exec_for(&format!("xl restore {file} 2>&1"), Duration::from_secs(600))?
        .ok("xl restore")?;
    let took = start.elapsed();
    let guest = agent_through(lab, host)?;
    guest.wait_ready(patience(120))?;
    Ok((guest, took))
}

/// The guest's domain id on a host.
pub fn domid(lab: &Lab, host: &str) -> Result<u32> {
    let text = lab.agent(host)?.must(&format!("xl domid {NAME}"))?;
    text.trim()
        .parse()
        .with_context(|| format!("domain id {text:?}"))
}

/// Fail unless the guest's kernel log is free of the marks of a sick kernel.
pub fn healthy(guest: &Agent) -> Result<()> {
    let log = guest.must("dmesg")?;
    for mark in [
        "Oops",
        "BUG:",
        "[ cut here ]",
        "INFO: task",
        "UBSAN",
        "general protection",
        "segfault",
        "protocol error",
        "Call Trace",
    ] {
        if let Some(line) = log.lines().find(|line| line.contains(mark)) {
            bail!("the guest's kernel says: {line}");
        }
    }
    Ok(())
}
