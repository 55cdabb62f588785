// SPDX-License-Identifier: GPL-3.0-or-later
//! The program itself: ready when it says so, and its exit status.

mod common;

use common::{start_process, temporary_dir, without_devices};
use xen_sim::toolstack::Toolstack;
use xen_sim::{SimGuest, SimXen};

#[test]
fn ends_well_or_with_status_three() {
    for broken in [false, true] {
        let dir = temporary_dir();
        let mut child = start_process(&dir);
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
