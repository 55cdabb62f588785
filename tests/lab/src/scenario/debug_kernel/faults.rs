// SPDX-License-Identifier: GPL-3.0-or-later
//! Memory and grant references that cannot be had.

use std::time::Duration;

use anyhow::Result;

use super::Subject;
use crate::guest;
use crate::progress::patience;
use crate::stack::{self, STICK};

pub fn run(subject: &mut Subject) -> Result<()> {
    // The disk goes on with what is reserved for it.
    subject.run("no memory for bounce pages", |subject| {
        inject(subject, "xen-vusb-hcd/fail_pages", 100, |one| {
            one.use_disk()
        })
    })?;
    subject.run("grant references are rare", |subject| {
        inject(subject, "xen-vusb-hcd/fail_grants", 30, |one| {
            one.use_disk()
        })
    })?;
    // More than the controller has reserved, many times over.
    subject.run("grant references are lost", |subject| {
        inject(subject, "xen-vusb-hcd/lose_grants", 100, |subject| {
            (0..5).try_for_each(|_| subject.use_disk())
        })
    })?;
    subject.run("a suspend that a device refuses", refused_suspend)?;
    // Drivers may give up then; the kernel must not be harmed, and all works afterwards.
    subject.run("allocations of the module fail", |subject| {
        only_in_module(subject)?;
        let mut used = None;
        let again = inject(subject, "failslab", 20, |subject| {
            let disk = subject.disk()?;
            used = Some(subject.guest.exec_for(
                &format!("for n in 1 2 3; do lab-usb blocks {disk} 60 $n; done"),
                patience(240),
            ));
            // Enumeration, too.
            let detach = format!("detach {} 1", guest::NAME);
            stack::xl_vusb(subject.lab, subject.host, &detach)?;
            let attach = format!("attach {} {STICK}", guest::NAME);
            stack::xl_vusb(subject.lab, subject.host, &attach)?;
            std::thread::sleep(Duration::from_secs(10));
            Ok(())
        });
        used.transpose()?;
        again?;
        stack::xl_vusb(
            subject.lab,
            subject.host,
            &format!("detach {} 1", guest::NAME),
        )?;
        let attach = format!("attach {} {STICK}", guest::NAME);
        stack::xl_vusb(subject.lab, subject.host, &attach)?;
        subject.use_disk()
    })
}

/// Does something while `fault` comes with this probability, in percent. That it never came is a failure, too: then
/// nothing was tried.
fn inject(
    subject: &Subject,
    fault: &str,
    percent: u32,
    act: impl FnOnce(&Subject) -> Result<()>,
) -> Result<()> {
    const TIMES: i64 = 1_000_000;
    subject.set(&format!("{fault}/times"), &TIMES.to_string())?;
    subject.set(&format!("{fault}/probability"), &percent.to_string())?;
    let done = act(subject);
    subject.set(&format!("{fault}/probability"), "0")?;
    let left = subject
        .guest
        .must(&format!("cat /sys/kernel/debug/{fault}/times"))?;
    done?;
    // The kernel counts it down.
    let came = TIMES - left.trim().parse::<i64>()?;
    anyhow::ensure!(came > 0, "{fault} never came");
    eprintln!("lab: {fault} came {came} times");
    Ok(())
}

/// The guest is asked to suspend, and one of its devices cannot be, when the controllers have been. The disk
/// is used all the time.
fn refused_suspend(subject: &mut Subject) -> Result<()> {
    let domid = guest::domid(subject.lab, subject.host)?;
    let dom0 = subject.lab.agent(subject.host)?;
    subject.set("xen-vusb-hcd/refuse_suspend", "1")?;
    let asked = (|| {
        for _ in 0..3 {
            dom0.must(&format!(
                "xenstore-write /local/domain/{domid}/control/shutdown suspend"
            ))?;
            subject.use_disk()?;
        }
        let log = subject.guest.must("dmesg")?;
        anyhow::ensure!(
            log.contains("dpm_suspend_start"),
            "the guest's devices were not asked to suspend"
        );
        Ok(())
    })();
    subject.set("xen-vusb-hcd/refuse_suspend", "0")?;
    asked?;
    subject.use_disk()
}

/// Only allocations that the module's code has asked for.
fn only_in_module(subject: &Subject) -> Result<()> {
    let text = subject
        .guest
        .must("cat /sys/module/xen_vusb_hcd/sections/.text; grep -w ^xen_vusb_hcd /proc/modules")?;
    let mut words = text.split_whitespace();
    let start = words
        .next()
        .and_then(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok())
        .unwrap_or(0);
    // "xen_vusb_hcd 90112 1 - Live …"
    let size: u64 = words.nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    for (file, value) in [
        ("require-start", format!("{start:#x}")),
        ("require-end", format!("{:#x}", start + size)),
        ("stacktrace-depth", "32".to_owned()),
        ("ignore-gfp-wait", "N".to_owned()),
    ] {
        subject.set(&format!("failslab/{file}"), &value)?;
    }
    Ok(())
}
