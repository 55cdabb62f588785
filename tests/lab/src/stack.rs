// SPDX-License-Identifier: GPL-3.0-or-later
//! Our daemons in the lab: built here, put into running machines, started there.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::lab::Lab;
use crate::machine::{MACHINES, Machine, Role};
use crate::missing::Missing;
use crate::programs;
use crate::progress::{Step, patience};

/// Who may have an exporter's devices.
const ALLOWED: &str = include_str!("../config/exporter.toml");

/// The stick's name for `xl-vusb attach`.
pub const STICK: &str = "exporter/1-1";
/// Its size.
pub const STICK_BYTES: u64 = 64 << 20;

/// A daemon and the role of the machines that it runs on.
struct Daemon {
    name: &'static str,
    config: &'static str,
    role: Role,
}

const DAEMONS: &[Daemon] = &[
    Daemon {
        name: "vusbd",
        config: "/etc/xen-vusb/vusbd.toml",
        role: Role::Host,
    },
    Daemon {
        name: "vusb-exporter",
        config: "/etc/xen-vusb/exporter.toml",
        role: Role::Exporter,
    },
];

/// What a machine's daemon is told, where these are the machines.
fn config(machine: &Machine, machines: &[Machine]) -> String {
    match machine.role {
        Role::Host => {
            let exporters = machines.iter().filter(|one| one.role == Role::Exporter);
            let exporters = exporters.map(|one| {
                let (name, ip) = (one.name, one.ip());
                format!("[[exporter]]\nname = \"{name}\"\naddress = \"{ip}:7210\"\n")
            });
            exporters.collect()
        }
        Role::Exporter => format!("name = \"{}\"\n{ALLOWED}", machine.name),
    }
}

/// Build the daemons, put them and their certificates into the machines, and start them.
pub fn deploy(lab: &Lab) -> Result<()> {
    deploy_to(lab, MACHINES, MACHINES)
}

/// The same for some of `machines`, or for other machines than the usual ones.
pub fn deploy_to(lab: &Lab, some: &[Machine], machines: &[Machine]) -> Result<()> {
    let step = Step::start("building vusbd, vusb-exporter, xl-vusb");
    let directory = programs::build(&["backend", "exporter", "xl-hooks"])?;
    step.done();
    let mut step = Step::start("daemons into the machines");
    let xl_vusb = programs::stripped(&directory.join("xl-vusb"))?;
    for machine in some {
        let agent = lab.agent(machine.name)?;
        step.note(machine.name);
        for daemon in DAEMONS.iter().filter(|daemon| daemon.role == machine.role) {
            stop(&agent, daemon.name)?;
            agent.put(
                &format!("/usr/sbin/{}", daemon.name),
                0o755,
                &programs::stripped(&directory.join(daemon.name))?,
            )?;
            agent.put(daemon.config, 0o644, config(machine, machines).as_bytes())?;
        }
        if machine.role == Role::Host {
            agent.put("/usr/sbin/xl-vusb", 0o755, &xl_vusb)?;
        }
    }
    step.note("certificates");
    certificates(lab, some)?;
    // The exporter first: a daemon that finds its exporter at once says so in fewer lines.
    for machine in some.iter().rev() {
        start(lab, machine)?;
    }
    step.done();
    Ok(())
}

/// Start a machine's daemon and make sure that it stays.
pub fn start(lab: &Lab, machine: &Machine) -> Result<()> {
    let agent = lab.agent(machine.name)?;
    for daemon in DAEMONS.iter().filter(|daemon| daemon.role == machine.role) {
        let (name, config) = (daemon.name, daemon.config);
        stop(&agent, name)?;
        agent.must(&format!("RUST_BACKTRACE=1 setsid {name} --config {config} </dev/null >>/var/log/{name}.log 2>&1 &"))?;
        std::thread::sleep(Duration::from_millis(700));
        if agent.exec(&format!("pidof {name}"))?.status != 0 {
            bail!(
                "{name} on {} has ended:\n{}",
                machine.name,
                agent.must(&format!("tail -n 20 /var/log/{name}.log"))?
            );
        }
    }
    Ok(())
}

/// End a machine's daemon as systemd would.
pub fn stop(agent: &Agent, name: &str) -> Result<()> {
    agent.must(&format!(
        "for signal in TERM TERM TERM TERM KILL; do pidof {name} >/dev/null || exit 0; kill -$signal $(pidof {name}); sleep 1; done"
    ))?;
    Ok(())
}

fn certificates(lab: &Lab, machines: &[Machine]) -> Result<()> {
    let first = lab.agent("host-a")?;
    first.must("test -e /etc/xen-vusb/pool/ca.crt || xl-vusb pool init --name lab")?;
    for machine in machines {
        let name = machine.name;
        first.must(&format!(
            "test -e /etc/xen-vusb/pool/{name}/host.crt || xl-vusb pool issue {name}"
        ))?;
        let agent = lab.agent(name)?;
        for file in ["ca.crt", "host.crt", "host.key"] {
            let contents = first.get(&format!("/etc/xen-vusb/pool/{name}/{file}"))?;
            agent.put(&format!("/etc/xen-vusb/tls/{file}"), 0o600, &contents)?;
        }
    }
    Ok(())
}

/// Where an exporter has its leases.
const STATE: &str = "/var/lib/xen-vusb";

/// The exporter machine is switched off as if by a power cut, and comes back with its leases as they were on its
/// disk, and with no device plugged in: it has no disk here, so they are carried over.
pub fn reboot_exporter(lab: &Lab, machines: &[Machine]) -> Result<()> {
    const CARRIED: &str = "/tmp/state.tar";
    let exporter = Machine::named("exporter")?;
    let agent = lab.agent(exporter.name)?;
    agent.must(&format!("tar -cf {CARRIED} {STATE}"))?;
    let state = agent.get(CARRIED)?;
    exporter.stop(lab.run_directory())?;
    lab.up(&[exporter.name], None)?;
    let agent = lab.agent(exporter.name)?;
    agent.put(CARRIED, 0o600, &state)?;
    agent.must(&format!("tar -xf {CARRIED} -C /"))?;
    deploy_to(lab, &[exporter], machines)
}

/// Plug an empty stick into the exporter machine: bus 1, port 1, high speed.
///
/// Plugged after the snapshot is loaded, because a machine with a raw disk cannot be
/// snapshotted, and so that every run starts with the same empty stick.
pub fn plug_stick(lab: &Lab) -> Result<()> {
    if has_stick(lab)? {
        return Ok(());
    }
    let file = stick_file(lab);
    let _ = std::fs::remove_file(&file);
    std::fs::File::create(&file)?.set_len(STICK_BYTES)?;
    plug_stick_again(lab)
}

/// Plug the stick in with what is on it.
pub fn plug_stick_again(lab: &Lab) -> Result<()> {
    let exporter = Machine::named("exporter")?;
    let mut qmp = exporter.qmp(lab.run_directory())?;
    let nodes = qmp.execute("query-named-block-nodes", json!({ "flat": true }))?;
    let is_open = |node: &Value| node["node-name"] == "stick";
    if !nodes.as_array().into_iter().flatten().any(is_open) {
        qmp.execute(
            "blockdev-add",
            json!({ "driver": "raw", "node-name": "stick", "file": { "driver": "file", "filename": stick_file(lab).to_string_lossy() } }),
        )?;
    }
    qmp.execute(
        "device_add",
        json!({ "driver": "usb-storage", "id": "stick", "bus": "ehci.0", "port": "1", "drive": "stick", "serial": "LAB0001", "removable": true }),
    )?;
    wait_for_stick(lab, true)
}

/// Pull the stick out.
pub fn pull_stick(lab: &Lab) -> Result<()> {
    let exporter = Machine::named("exporter")?;
    let mut qmp = exporter.qmp(lab.run_directory())?;
    qmp.execute("device_del", json!({ "id": "stick" }))?;
    wait_for_stick(lab, false)
}

fn stick_file(lab: &Lab) -> std::path::PathBuf {
    lab.run_directory().join("stick.raw")
}

fn has_stick(lab: &Lab) -> Result<bool> {
    let found = lab
        .agent("exporter")?
        .exec("test -e /sys/bus/usb/devices/1-1/idVendor")?;
    Ok(found.status == 0)
}

fn wait_for_stick(lab: &Lab, wanted: bool) -> Result<()> {
    for _ in 0..100 {
        if has_stick(lab)? == wanted {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    bail!(
        "the exporter machine does not see that the stick is {}: {}",
        if wanted { "plugged in" } else { "pulled out" },
        lab.agent("exporter")?.must("dmesg | tail -n 5")?
    )
}

/// The output of `xl-vusb --json …` on a host.
pub fn xl_vusb(lab: &Lab, host: &str, arguments: &str) -> Result<Value> {
    let output = lab
        .agent(host)?
        .exec(&format!("xl-vusb --json {arguments}"))?;
    if output.status != 0 {
        bail!(
            "{host}: xl-vusb {arguments}: exit status {}: {}",
            output.status,
            output.stderr.trim()
        );
    }
    serde_json::from_str(&output.stdout)
        .with_context(|| format!("{host}: xl-vusb {arguments}: {}", output.stdout))
}

/// Requests that a host's `vusbd` has taken since it was started.
pub fn totals(lab: &Lab, host: &str) -> Result<u64> {
    let status = xl_vusb(lab, host, "status")?;
    Ok(status
        .pointer("/totals/urbs")
        .and_then(Value::as_u64)
        .unwrap_or(0))
}

/// Shows the ends of all daemons' logs, so many lines of each, where a scenario failed.
pub fn with_logs<T>(lab: &Lab, lines: usize, result: Result<T>) -> Result<T> {
    if result
        .as_ref()
        .is_err_and(|error| !Missing::is_cause_of(error))
    {
        eprintln!("lab: the daemons' logs end in\n{}", logs(lab, lines));
    }
    result
}

/// Everything that is known of the machines, their daemons and their guests: what is to be looked at when a
/// guest did not come up. Asks the guests' kernels which of their tasks wait.
pub fn state(lab: &Lab) -> String {
    let mut text = logs(lab, 400);
    for machine in MACHINES.iter().filter(|machine| machine.role == Role::Host) {
        let ask = |command: &str| {
            let agent = lab.agent(machine.name);
            let answer = agent.and_then(|a| a.exec_for(command, patience(120)));
            answer.map_or_else(|error| format!("{error:#}\n"), |output| output.stdout)
        };
        for command in [
            "xl list -l",
            "xenstore-ls -fp",
            "xl-vusb --json status",
            "xl dmesg | tail -n 200",
            "dmesg | tail -n 200",
            "tail -n 100 /var/log/migrate-receive.log",
            "for log in /var/log/xen/console/guest-*.log; do echo \"$log\"; cat \"$log\"; done",
        ] {
            text.push_str(&format!(
                "--- {}: {command}\n{}",
                machine.name,
                ask(command)
            ));
        }
    }
    text
}

fn logs(lab: &Lab, lines: usize) -> String {
    let mut text = String::new();
    for machine in Machine::all().filter(|machine| machine.pid(lab.run_directory()).is_some()) {
        for daemon in DAEMONS.iter().filter(|daemon| daemon.role == machine.role) {
            let tail = lab
                .agent(machine.name)
                .and_then(|agent| {
                    agent.exec(&format!("tail -n {lines} /var/log/{}.log", daemon.name))
                })
                .map_or_else(|error| format!("{error:#}\n"), |output| output.stdout);
            text.push_str(&format!("--- {} on {}\n{tail}", daemon.name, machine.name));
        }
        if machine.role == Role::Host {
            let domains = lab
                .agent(machine.name)
                .and_then(|agent| agent.exec(DOMAINS))
                .map_or_else(|error| format!("{error:#}\n"), |output| output.stdout);
            text.push_str(&format!("--- domains on {}\n{domains}", machine.name));
            let toolstack = lab
                .agent(machine.name)
                .and_then(|agent| agent.exec(TOOLSTACK))
                .map_or_else(|error| format!("{error:#}\n"), |output| output.stdout);
            text.push_str(&format!("--- toolstack on {}\n{toolstack}", machine.name));
        }
    }
    text
}

/// What the receiving end of a migration said, and the device models of HVM guests.
const TOOLSTACK: &str = "tail -n 30 /var/log/migrate-receive.log; \
    for log in /var/log/xen/qemu-dm-*.log; do test -e \"$log\" && echo \"$log\" && tail -n 15 \"$log\"; done";

/// Where a guest is that does not answer: what runs, where its processor is, what its kernel said. Its
/// console takes ^O and w for a SysRq, after which the kernel says which tasks wait, and where.
const DOMAINS: &str = "xl vcpu-list; \
    for id in $(xl list | awk 'NR > 2 { print $2 }'); do \
        printf '\\017w' > \"$(xenstore-read /local/domain/$id/console/tty)\"; done; sleep 3; \
    for log in /var/log/xen/console/guest-*.log; do echo \"$log\"; tail -n 150 \"$log\"; done; \
    for id in $(xl list | awk 'NR > 2 { print $2 }'); do \
        echo \"domain $id\"; /usr/lib/xen-4.20/bin/xenctx \"$id\" 2>&1 | head -n 60; done";
