// SPDX-License-Identifier: GPL-3.0-or-later
//! A second controller of the guest, whose backend breaks the protocol.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::Subject;
use crate::guest;
use crate::machine::Machine;
use crate::programs;
use crate::progress::patience;
use crate::stack;

/// What `lab-bad-backend` knows to do, and whether the frontend must stop by itself.
const FAULTS: &[(&str, bool)] = &[
    ("twice", true),
    ("wrong-id", true),
    ("far-id", true),
    ("index-ahead", true),
    ("index-back", true),
    ("conn-index-ahead", true),
    ("wrong-port", true),
    ("wrong-speed", true),
    ("keeps-pages", true),
    ("too-much", false),
    ("scribbles", true),
    ("silent", false),
    ("dies", false),
];
const DEVID: u32 = 1;

pub fn run(subject: &mut Subject) -> Result<()> {
    let dom0 = subject.lab.agent(subject.host)?;
    let directory = programs::build(&["xen-vusb-lab"])?;
    dom0.put(
        "/usr/sbin/lab-bad-backend",
        0o755,
        &programs::stripped(&directory.join("lab-bad-backend"))?,
    )?;
    // It would serve that controller, too. The guest's other one waits meanwhile.
    stack::stop(&dom0, "vusbd")?;
    for (fault, stops) in FAULTS {
        for after in [0, 3] {
            let name = format!("backend: {fault} after {after} requests");
            subject.run(&name, |subject| one(subject, fault, after, *stops))?;
        }
    }
    stack::start(subject.lab, &Machine::named(subject.host)?)?;
    subject.run("the first controller after all that", |subject| {
        subject.use_disk()
    })
}

fn one(subject: &mut Subject, fault: &str, after: u32, stops: bool) -> Result<()> {
    let dom0 = subject.lab.agent(subject.host)?;
    let domid = guest::domid(subject.lab, subject.host)?;
    dom0.must(&format!(
        "rm -f /run/bad.*; setsid sh -c 'lab-bad-backend {domid} {DEVID} {fault} --after {after} > /run/bad.log 2>&1; touch /run/bad.done' </dev/null >/dev/null 2>&1 &"
    ))?;
    let name = guest::NAME;
    dom0.must(&format!(
        "xl usbctrl-attach {name} type=pv version=2 ports=4"
    ))?;
    let start = Instant::now();
    while dom0.exec("test -e /run/bad.done")?.status != 0 {
        if start.elapsed() > patience(240) {
            break;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    let said = dom0.must("cat /run/bad.log")?;
    // Of one that has died, libxl waits for the backend for ten seconds.
    let detached = dom0.exec_for(&format!("xl usbctrl-detach {name} {DEVID}"), patience(60))?;
    // Where libxl gave up, too: the next one has the same number.
    dom0.must(&format!(
        "xenstore-rm /local/domain/0/backend/vusb/{domid}/{DEVID}; xenstore-rm /local/domain/{domid}/device/vusb/{DEVID}; \
         xenstore-rm /libxl/{domid}/device/vusb/{DEVID}; true"
    ))?;
    wait_unplugged(subject)?;
    if !said.contains("misbehaved: ") || said.contains("lab-bad-backend: ") {
        bail!("{said}{}", detached.stderr);
    }
    if stops && !said.contains("frontend: closes") {
        bail!("the frontend did not stop: {said}");
    }
    Ok(())
}

/// The guest has let go of the controller.
fn wait_unplugged(subject: &Subject) -> Result<()> {
    let start = Instant::now();
    let there = format!("test -e /sys/bus/xen/devices/vusb-{DEVID}");
    while subject.guest.exec(&there)?.status == 0 {
        if start.elapsed() > patience(60) {
            bail!(
                "the guest does not let go of its controller {DEVID}; the end of its log:\n{}",
                subject.guest.must("dmesg | tail -n 12")?
            );
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    Ok(())
}
