// SPDX-License-Identifier: GPL-3.0-or-later
//! Devices, controllers and the module come and go, also in use; the guest sleeps by itself.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Subject;
use crate::guest;
use crate::guest_module::Module;
use crate::progress::patience;
use crate::stack::{self, STICK};

const TIMES: u32 = 5;

pub fn run(subject: &mut Subject) -> Result<()> {
    subject.run("sleep", sleep)?;
    for _ in 0..TIMES {
        subject.run("detach and attach", |subject| {
            detach(subject)?;
            attach(subject)?;
            subject.use_disk()
        })?;
    }
    for _ in 0..TIMES {
        subject.run("resets against transfers", resets)?;
    }
    subject.run("detach in use", |subject| {
        keep_busy(subject)?;
        detach(subject)?;
        attach(subject)?;
        subject.use_disk()
    })?;
    for _ in 0..TIMES {
        subject.run("unbind and unload in use", unload)?;
    }
    Ok(())
}

fn detach(subject: &Subject) -> Result<()> {
    let command = format!("detach {} 1", guest::NAME);
    stack::xl_vusb(subject.lab, subject.host, &command)?;
    Ok(())
}

fn attach(subject: &Subject) -> Result<()> {
    let command = format!("attach {} {STICK}", guest::NAME);
    stack::xl_vusb(subject.lab, subject.host, &command)?;
    subject.disk().map(drop)
}

/// Reads the disk and its descriptor without pause, until it is gone.
fn keep_busy(subject: &Subject) -> Result<()> {
    let (disk, node) = (subject.disk()?, subject.node()?);
    subject.guest.must(&format!(
        "setsid sh -c 'while dd if={disk} of=/dev/null bs=65536 count=64; do echo 1 > /proc/sys/vm/drop_caches; done' </dev/null >/dev/null 2>&1 & \
         setsid lab-usb descriptors {node} 5000 </dev/null >/dev/null 2>&1 & sleep 2"
    ))?;
    Ok(())
}

/// Transfers to a device that is being reset. Each URB is late between two looks at its endpoint, which a
/// reset disables and enables.
fn resets(subject: &mut Subject) -> Result<()> {
    let node = subject.node()?;
    subject.set("xen-vusb-hcd/enqueue_delay_us", "20000")?;
    let done = subject.guest.exec_for(
        &format!(
            "lab-usb descriptors {node} 12000 > /run/a & lab-usb descriptors {node} 12000 > /run/b & \
             lab-usb reset {node} 6; status=$?; wait; cat /run/a /run/b; exit $status"
        ),
        patience(240),
    );
    subject.set("xen-vusb-hcd/enqueue_delay_us", "0")?;
    let text = done?.ok("resets")?;
    if text.lines().any(|line| line == "0") {
        bail!("no descriptor was read beside the resets: {text}");
    }
    subject.use_disk()
}

fn unload(subject: &mut Subject) -> Result<()> {
    keep_busy(subject)?;
    subject
        .guest
        .exec_for(
            "echo vusb-0 > /sys/bus/xen/drivers/xen-vusb-hcd/unbind && rmmod xen_vusb_hcd",
            patience(120),
        )?
        .ok("unbind and unload")?;
    let file = format!("/root/{}.ko", Module::Hcd.name());
    subject.guest.must(&format!("insmod {file}"))?;
    subject.faults_off()?;
    subject.use_disk()
}

/// Suspend to idle. What would wake the guest is left out (`pm_test`): it goes on by itself after five seconds.
/// Its network card does not outlive that: Linux connects it again, and netback does not notice. So the
/// driver lets go of it meanwhile, and nobody can ask the guest anything.
fn sleep(subject: &mut Subject) -> Result<()> {
    let disk = subject.disk()?;
    let [a, b, c, d] = guest::IP;
    let script = format!(
        "sleep 1\n\
         ip link set eth0 down\n\
         echo vif-0 > /sys/bus/xen/drivers/vif/unbind\n\
         echo platform > /sys/power/pm_test\n\
         echo freeze > /sys/power/state && echo slept > /run/sleep\n\
         lab-usb blocks {disk} 60 7 >> /run/sleep 2>&1 &\n\
         sleep 20\n\
         echo vif-0 > /sys/bus/xen/drivers/vif/bind\n\
         sleep 3\n\
         ip link set eth0 up\n\
         ip addr add {a}.{b}.{c}.{d}/24 dev eth0\n"
    );
    subject
        .guest
        .put("/run/sleep.sh", 0o755, script.as_bytes())?;
    subject
        .guest
        .must("rm -f /run/sleep; setsid sh /run/sleep.sh </dev/null >/run/sleep.log 2>&1 &")?;
    std::thread::sleep(Duration::from_secs(30));
    subject
        .guest
        .wait_ready(patience(120))
        .context("after its sleep")?;
    let text = subject.guest.must("cat /run/sleep /run/sleep.log")?;
    if !text.starts_with("slept") || !text.contains("\"received\":60") {
        bail!("after its sleep: {text:?}");
    }
    subject.use_disk()
}
