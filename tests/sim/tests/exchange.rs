// SPDX-License-Identifier: GPL-3.0-or-later
//! Devices that are pulled out of one exporter and plugged into another, and attachments that follow.

#[path = "exchange/disk.rs"]
mod disk;
#[path = "exchange/place.rs"]
mod place;
#[path = "exchange/refused.rs"]
mod refused;
#[path = "exchange/small.rs"]
mod small;

use std::time::{Duration, Instant};

use control::{Attachment, Response};
use session::LeasePhase;
use sim_scenarios::rig::{Rig, RigOptions, SECOND_EXPORTER};

/// What is plugged into neither exporter when they start.
fn unplugged(sections: &str) -> String {
    sections.replace("[[simulated]]\n", "[[simulated]]\nplugged = false\n")
}

/// A device at 0-2 of the first exporter, and the same, unplugged, at 0-1 of the second.
fn options(device: &str) -> RigOptions {
    RigOptions {
        devices: device.to_owned(),
        second_exporter: Some(unplugged(device)),
        ..RigOptions::default()
    }
}

/// Pulls a plug out of one exporter, or puts one in.
fn tell(rig: &Rig, exporter: &str, device: &str, command: &str) {
    let exporter = match exporter {
        SECOND_EXPORTER => rig.second.as_ref().unwrap(),
        _ => &rig.exporter,
    };
    exporter.devices().unwrap().tell(device, command).unwrap();
}

fn attachments(rig: &Rig, host: usize) -> Vec<Attachment> {
    match rig.xl_vusb_json(host, &["list"]).unwrap() {
        Response::Attachments(attachments) => attachments,
        other => panic!("{other:?}"),
    }
}

/// Waits until the only attachment of a host is so.
fn wait_for(rig: &Rig, host: usize, what: &str, is_so: impl Fn(&Attachment) -> bool) -> Attachment {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let all = attachments(rig, host);
        if let [one] = &all[..]
            && is_so(one)
        {
            return one.clone();
        }
        assert!(
            Instant::now() < deadline,
            "never {what}: {all:?}\n{}",
            rig.log_tails()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until a host's vusbd waits for the device. Its exporter calls the lease absent a moment before
/// that, and what the guest submits in between is in flight at the device that is gone.
fn wait_until_waiting(rig: &Rig, host: usize) -> Attachment {
    let waits = || {
        let log = rig.hosts[host].vusbd_log();
        let last = |texts: [&str; 2]| texts.iter().filter_map(|text| log.rfind(text)).max();
        let waiting = last([
            "device pulled out; waiting for it",
            "waiting for a device that was pulled out",
        ]);
        waiting > last(["lease claimed", "taking over from an earlier vusbd"])
    };
    wait_for(rig, host, "waits", |a| {
        a.phase == LeasePhase::Absent && waits()
    })
}

/// Waits until the attachment serves from there.
fn wait_until_at(rig: &Rig, host: usize, exporter: &str, device: &str) -> Attachment {
    wait_for(rig, host, "is back", |a| {
        a.phase == LeasePhase::Serving && a.exporter == exporter && a.device.id.0 == device
    })
}

/// The state of a device as `xl-vusb devices` shows it: whether nobody has it.
fn is_free(rig: &Rig, exporter: &str, device: &str) -> bool {
    let Response::Devices { devices, .. } = rig.xl_vusb_json(0, &["devices"]).unwrap() else {
        panic!("no devices");
    };
    devices.iter().any(|d| {
        d.exporter == exporter
            && d.device.id.0 == device
            && d.device.state == session::DeviceState::Free
    })
}
