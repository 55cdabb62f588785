// SPDX-License-Identifier: GPL-3.0-or-later
//! The PV guest under test: its configuration, its life under `xl`, the way to its agent.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::agent::{AGENT_PORT, Agent, Output};
use crate::lab::Lab;
use crate::machine::{MACHINES, Machine, Role};

/// The guest's name.
pub const NAME: &str = "lab";
/// Its uuid, the same in every life: leases are by uuid, and a new guest must not find the
/// stick held for the old one.
pub const UUID: &str = "1ab00000-0000-4000-8000-00000000000a";
/// Its address on the lab network, on whichever host it runs.
pub const IP: [u8; 4] = [10, 9, 0, 10];

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
    let host = lab.agent(host)?;
    Ok(Agent {
        name: "guest".to_owned(),
        address: host.address,
        relay: Some(SocketAddr::from((IP, AGENT_PORT))),
    })
}

/// The guest's `xl` configuration.
pub fn config(usb: bool) -> String {
    let [a, b, c, d] = IP;
    let mut text = format!(
        "name = \"{NAME}\"\nuuid = \"{UUID}\"\ntype = \"pv\"\nkernel = \"/boot/vmlinux\"\nramdisk = \"/boot/guest.cpio\"\n\
         memory = 160\nvcpus = 1\nextra = \"console=hvc0 lab.name=guest lab.ip={a}.{b}.{c}.{d}\"\n\
         vif = ['mac=00:16:3e:00:09:0a,script=vif-lab']\n\
         # Kept for a look when it dies.\non_crash = \"preserve\"\n"
    );
    if usb {
        text.push_str("usbctrl = ['type=pv,version=2,ports=4']\n");
    }
    text
}

/// Create the guest on `host` and wait until its agent answers.
pub fn create(lab: &Lab, host: &str, usb: bool) -> Result<Agent> {
    let dom0 = lab.agent(host)?;
    dom0.put("/etc/xen/lab.cfg", 0o644, config(usb).as_bytes())?;
    dom0.exec_for("xl create /etc/xen/lab.cfg", Duration::from_secs(180))?
        .ok("xl create")?;
    let guest = agent_through(lab, host)?;
    if let Err(error) = guest.wait_ready(Duration::from_secs(300)) {
        let console = dom0.exec(&format!("tail -n 15 /var/log/xen/console/guest-{NAME}.log"))?;
        return Err(error.context(format!("the end of its console:\n{}", console.stdout)));
    }
    Ok(guest)
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
        Duration::from_secs(900),
    )?;
    Ok((output, start.elapsed()))
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
