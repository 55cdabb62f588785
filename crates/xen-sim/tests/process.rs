// SPDX-License-Identifier: GPL-3.0-or-later
//! The program itself: ready when it says so, and its exit status.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use common::{temporary_dir, without_devices};
use xen_sim::toolstack::Toolstack;
use xen_sim::{SimGuest, SimXen};

fn start(dir: &std::path::Path) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_xen-sim"))
        .args(["--name", "host-a", "--spurious", "0", "--dir"])
        .arg(dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(line.starts_with("ready "), "{line}");
    child
}

#[test]
fn ends_well_or_with_status_three() {
    for broken in [false, true] {
        let dir = temporary_dir();
        let mut child = start(&dir);
        let xl = Toolstack::connect(&dir).unwrap();
        let domid = xl.create(&without_devices("vm")).unwrap();
        xl.unpause(domid).unwrap();
        let guest = SimGuest::boot(&dir, domid).unwrap();
        let xen = SimXen::connect(&dir).unwrap();
        if broken {
            xen.report_violation("broken on purpose");
        }
        if broken {
            xl.stop_host().unwrap();
        } else {
            // SAFETY: the process is our child and not yet reaped.
            unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
        }
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(if broken { 3 } else { 0 }));
        drop(guest);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
