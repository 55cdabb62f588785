// SPDX-License-Identifier: GPL-3.0-or-later
//! What was found: runs that failed, complaints of the kernel, memory that is not freed.

use anyhow::{Context, Result};

use crate::agent::Agent;
use crate::progress::patience;

/// The beginnings of complaints. One complaint may have several of them, in lines that follow each other.
const MARKS: &[&str] = &[
    "BUG:",
    "WARNING:",
    "KASAN:",
    "UBSAN:",
    "ODEBUG:",
    "Oops",
    "general protection",
    "kernel BUG at",
    "list_add corruption",
    "list_del corruption",
    "INFO: task",
    "INFO: rcu",
    "soft lockup",
    "possible circular locking",
    "possible recursive locking",
    "inconsistent lock state",
    "suspicious RCU usage",
    "held lock freed",
    "DMA-API:",
];

/// All of the scenario.
#[derive(Debug, Default)]
pub struct Findings {
    /// How much was tried.
    pub runs: u32,
    /// What did not work.
    pub failures: Vec<String>,
    /// What kernels complained of.
    pub splats: Vec<String>,
    /// What kmemleak found.
    pub leaks: Vec<String>,
}

impl Findings {
    /// Nothing was found.
    pub fn good(&self) -> bool {
        self.runs > 0 && self.failures.is_empty() && self.splats.is_empty() && self.leaks.is_empty()
    }

    /// One run.
    pub fn ran(&mut self, name: &str, result: Result<()>) {
        self.runs += 1;
        if let Err(error) = result {
            let failure = format!("{name}: {error:#}");
            eprintln!("lab: {failure}");
            self.failures.push(failure);
        }
    }

    /// What a guest's kernel has said since it was looked at last.
    pub fn look_at_log(&mut self, guest: &Agent, after: &str) -> Result<()> {
        // -c: each line once.
        let log = guest.must("dmesg -c").context("the guest's kernel log")?;
        // Kept for a look when something is wrong.
        guest.put("/run/dmesg.part", 0o644, log.as_bytes())?;
        guest.must("cat /run/dmesg.part >> /run/dmesg.all")?;
        for line in splats(&log) {
            // At once: it may be the last thing that is heard of this guest.
            eprintln!("lab: the kernel complains after {after}: {line}");
            self.splats.push(format!("after {after}: {line}"));
        }
        Ok(())
    }

    /// What a guest's kernel has not freed, and nothing points to any more.
    pub fn look_for_leaks(&mut self, guest: &Agent, after: &str) -> Result<()> {
        guest.must("grep -q debugfs /proc/mounts || mount -t debugfs debugfs /sys/kernel/debug")?;
        if guest.exec("test -e /sys/kernel/debug/kmemleak")?.status != 0 {
            return Ok(());
        }
        // A block is taken for lost when two scans have not found it: its address may be in a register,
        // or moved, during one.
        let scan = "echo scan > /sys/kernel/debug/kmemleak";
        guest
            .exec_for(&format!("{scan}; sleep 6; {scan}"), patience(300))?
            .ok("scanning for leaks")?;
        let text = guest
            .must("cat /sys/kernel/debug/kmemleak; echo clear > /sys/kernel/debug/kmemleak")?;
        self.leaks.extend(
            leaks(&text)
                .into_iter()
                .map(|leak| format!("after {after}: {leak}")),
        );
        Ok(())
    }
}

/// The first line of each complaint.
fn splats(log: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut last = None;
    for (number, line) in log.lines().enumerate() {
        // A page that a backend keeps is freed when it lets go, which the kernel says so.
        let kept = line.contains("g.e. ") && line.contains("still in use");
        if kept || !MARKS.iter().any(|mark| line.contains(mark)) {
            continue;
        }
        // "BUG: KASAN:", and above it a line that is cut here.
        if last.is_none_or(|last| number > last + 3) {
            found.push(line.to_owned());
        }
        last = Some(number);
    }
    found
}

/// Each block that is not freed, in one line: its size, and where it was allocated.
fn leaks(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut in_stack = false;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("unreferenced object ") {
            found.push(rest.to_owned());
            in_stack = false;
        } else if line.trim_start().starts_with("backtrace") {
            in_stack = true;
        } else if let Some(leak) = found.last_mut()
            && in_stack
            && leak.matches(" < ").count() < 7
        {
            let place = line.split_whitespace().last().unwrap_or_default();
            leak.push_str(" < ");
            leak.push_str(place);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_complaint_is_counted_once() {
        let log = "[1] usb 1-1: new device\n\
                   [2] ==========\n\
                   [2] BUG: KASAN: slab-use-after-free in vusb_interrupt+0x1/0x2\n\
                   [2] Read of size 8\n\
                   [2] xen:grant_table: WARNING: g.e. 0x30c still in use!\n\
                   [3] a\n[3] b\n[3] c\n[3] d\n\
                   [4] ------------[ cut here ]------------\n\
                   [4] WARNING: CPU: 0 PID: 1 at drivers/usb/core/hcd.c:1\n";
        let found = splats(log);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("KASAN") && found[1].contains("WARNING"));
    }

    #[test]
    fn each_lost_block_is_one_line() {
        let text = "unreferenced object 0xffff888005 (size 96):\n\
                    \x20 comm \"insmod\", pid 1, jiffies 2\n\
                    \x20 hex dump (first 32 bytes):\n\
                    \x20   00 00 00 00\n\
                    \x20 backtrace (crc 1):\n\
                    \x20   [<ffff>] __kmalloc+0x1/0x2\n\
                    \x20   [<ffff>] vusb_urb_enqueue+0x3/0x4\n\
                    unreferenced object 0xffff888006 (size 8):\n";
        assert_eq!(
            leaks(text),
            [
                "0xffff888005 (size 96): < __kmalloc+0x1/0x2 < vusb_urb_enqueue+0x3/0x4",
                "0xffff888006 (size 8):"
            ]
        );
    }
}
