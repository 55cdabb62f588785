// SPDX-License-Identifier: GPL-3.0-or-later
//! Simulated devices in the exporter machine: `usbip-sim` serves them, the stock `usbip attach`
//! puts them on a bus of the stock `vhci_hcd`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::agent::Agent;
use crate::lab::Lab;
use crate::packages::Apt;
use crate::programs;
use crate::progress::patience;
use crate::tree::Tree;

/// TCP port of the first server; each device has a server of its own.
const FIRST_PORT: u16 = 3240;

/// Start a server for one device (with options of `usbip-sim` before it), and attach it.
pub fn attach(lab: &Lab, agent: &Agent, device: &str, number: u16) -> Result<()> {
    install(lab, agent)?;
    let port = FIRST_PORT + number;
    // Its standard input stays open for commands.
    agent.must(&format!(
        "modprobe vhci-hcd && mkdir -p /var/run /usr/share/misc && touch /usr/share/misc/usb.ids && mkfifo /run/sim{number}.in && \
         (exec 3<>/run/sim{number}.in; setsid usbip-sim --listen 127.0.0.1:{port} {device} <&3 >/run/sim{number}.out 2>/var/log/usbip-sim{number}.log &)"
    ))?;
    let start = Instant::now();
    loop {
        let output = agent.exec(&format!(
            "usbip --tcp-port {port} attach -r 127.0.0.1 -b 1-1"
        ))?;
        if output.status == 0 {
            return Ok(());
        }
        if start.elapsed() > patience(10) {
            bail!(
                "usbip attach: {}{}\n{}",
                output.stdout,
                output.stderr,
                agent.must(&format!(
                    "cat /var/log/usbip-sim{number}.log /run/sim{number}.out"
                ))?
            );
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// Gives a device's server a command; its answer, a line.
pub fn tell(agent: &Agent, number: u16, command: &str) -> Result<String> {
    let answer = agent.must(&format!(
        "n=$(wc -l < /run/sim{number}.out); echo '{command}' > /run/sim{number}.in; \
         for i in 1 2 3 4 5 6 7 8 9 10; do test $(wc -l < /run/sim{number}.out) -gt $n && break; usleep 100000; done; \
         tail -n 1 /run/sim{number}.out"
    ))?;
    Ok(answer.trim().to_owned())
}

/// What a device has counted.
pub fn stats(agent: &Agent, number: u16) -> Result<BTreeMap<String, u64>> {
    let text = tell(agent, number, "stats 1-1")?;
    text.split_whitespace()
        .map(|pair| {
            let (name, value) = pair
                .split_once('=')
                .with_context(|| format!("usbip-sim answered {text:?}"))?;
            Ok((name.to_owned(), value.parse()?))
        })
        .collect()
}

fn install(lab: &Lab, agent: &Agent) -> Result<()> {
    if agent.exec("test -e /usr/sbin/usbip-sim")?.status == 0 {
        return Ok(());
    }
    let apt = Apt::open(lab.cache());
    let names = ["base-files", "usbip"].map(str::to_owned);
    let tree = Tree {
        path: apt.tree(lab.cache(), "usbip", &names, true)?,
    };
    for (name, file) in tree.with_libraries("usr/sbin/usbip")? {
        if agent.exec(&format!("test -e /{name}"))?.status != 0 {
            agent.put(&format!("/{name}"), 0o755, &std::fs::read(file)?)?;
        }
    }
    let directory = programs::build(&["usbip"])?;
    agent.put(
        "/usr/sbin/usbip-sim",
        0o755,
        &programs::stripped(&directory.join("usbip-sim"))?,
    )
}
