// SPDX-License-Identifier: GPL-3.0-or-later
//! Persistent attachments: VMs that are shut down, hosts and exporters that are rebooted, devices that are
//! plugged in later.

use std::time::{Duration, Instant};

use control::{Attachment, Response};
use session::{LeasePhase, Persistence};
use sim_scenarios::programs;
use sim_scenarios::rig::{EXPORTER, Guest, GuestOptions, Rig, RigOptions};
use xen_sim::toolstack::Dialect;

/// How long what is not persistent waits for its VM.
const HOLD: Duration = Duration::from_secs(1);

fn options() -> RigOptions {
    programs::build().unwrap();
    RigOptions {
        hold_seconds: Some(HOLD.as_secs()),
        saved_hold_seconds: Some(HOLD.as_secs().to_string()),
        takeover_seconds: Some(2),
        ..RigOptions::default()
    }
}

fn tell(rig: &Rig, device: &str, command: &str) {
    let mut devices = rig.exporter.devices().unwrap();
    devices.tell(device, command).unwrap();
}

fn attach(rig: &Rig, guest: &Guest) {
    let disk = format!("{EXPORTER}/0-1");
    let arguments = ["attach", guest.name(), &disk, "--persistent"];
    match rig.xl_vusb_json(guest.host, &arguments).unwrap() {
        Response::Attached(attached) => {
            assert_eq!(attached.persistence, Persistence::Persistent);
        }
        other => panic!("{other:?}"),
    }
}

fn all(rig: &Rig, host: usize) -> Vec<Attachment> {
    match rig.xl_vusb_json(host, &["list", "--all"]).unwrap() {
        Response::Attachments(attachments) => attachments,
        other => panic!("{other:?}"),
    }
}

/// Waits until what a host lists of all VMs is so.
fn wait_for(rig: &Rig, host: usize, what: &str, is_so: impl Fn(&[Attachment]) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let listed = all(rig, host);
        if is_so(&listed) {
            return;
        }
        let logs = || rig.log_tails();
        assert!(
            Instant::now() < deadline,
            "never {what}: {listed:?}\n{}",
            logs()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One attachment, of a VM that is off.
fn wait_until_off(rig: &Rig, host: usize) {
    wait_for(
        rig,
        host,
        "off",
        |listed| matches!(listed, [one] if one.host.is_none() && one.phase == LeasePhase::Orphaned),
    );
}

/// The VM, started again: its disk is there without anybody's doing.
fn start(rig: &Rig, host: usize, options: &GuestOptions) -> Guest {
    let mut guest =
        Guest::start(rig, host, options).unwrap_or_else(|e| panic!("{e:?}\n{}", rig.log_tails()));
    let works = guest.wait_working();
    works.unwrap_or_else(|e| panic!("{e}\n{}", rig.log_tails()));
    guest
}

fn shut_down(rig: &Rig, guest: Guest) {
    let report = guest.stop(rig).unwrap();
    assert_eq!(
        (report.lost, report.duplicated, report.mismatches),
        (0, 0, 0),
        "{report:?}"
    );
    assert_eq!(report.errors, 0, "{report:?}");
}

/// Off for longer than any hold time, and started on the other host; the exporter is rebooted while the VM is
/// off; the device is pulled out while it is off, and plugged in before or after the start; and it is detached
/// from another host while the VM is off.
#[test]
fn a_vm_that_is_shut_down_finds_its_device_wherever_it_starts() {
    let mut rig = Rig::start(&options()).unwrap();
    let vm = GuestOptions::new("guest");
    let mut guest = Guest::start(&rig, 0, &vm).unwrap();
    attach(&rig, &guest);
    guest.wait_working().unwrap();
    shut_down(&rig, guest);
    wait_until_off(&rig, 1);
    std::thread::sleep(HOLD * 2);
    let other = Guest::start(&rig, 1, &GuestOptions::new("other")).unwrap();
    let refused = rig.attach_disk(&other).unwrap_err().to_string();
    assert!(refused.contains("in use by VM guest"), "{refused}");
    let text = rig.xl_vusb(1, &["list", "--all"]).unwrap().stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("off") && text.contains("guest"), "{text}");
    other.stop(&rig).unwrap();

    shut_down(&rig, start(&rig, 1, &vm));
    wait_until_off(&rig, 0);
    rig.exporter.reboot().unwrap();
    rig.wait_for_exporter().unwrap();
    wait_until_off(&rig, 0);
    // Its machine was rebooted, and the VM's own device is there before the VM runs.
    shut_down(&rig, start(&rig, 0, &vm));

    wait_until_off(&rig, 0);
    tell(&rig, "0-1", "unplug");
    wait_for(
        &rig,
        1,
        "absent",
        |l| matches!(l, [one] if one.phase == LeasePhase::Absent),
    );
    tell(&rig, "0-1", "plug");
    wait_until_off(&rig, 1);
    shut_down(&rig, start(&rig, 1, &vm));

    wait_until_off(&rig, 0);
    tell(&rig, "0-1", "unplug");
    let mut guest = Guest::start(&rig, 0, &vm).unwrap();
    std::thread::sleep(HOLD);
    tell(&rig, "0-1", "plug");
    let works = guest.wait_working();
    works.unwrap_or_else(|e| panic!("{e}\n{}", rig.log_tails()));

    // It runs there, and is not another host's to detach.
    let there = rig.xl_vusb(1, &["detach", "guest", "1"]).unwrap();
    let text = String::from_utf8_lossy(&there.stderr).into_owned();
    assert!(!there.status.success() && text.contains("host-a"), "{text}");
    shut_down(&rig, guest);
    wait_until_off(&rig, 1);
    let detached = rig.xl_vusb(1, &["detach", "guest", "1"]).unwrap();
    assert!(detached.status.success(), "{detached:?}");
    rig.wait_until_free().unwrap();
    assert!(all(&rig, 0).is_empty());
    assert_eq!(rig.stop().unwrap(), Vec::<String>::new());
}

/// Both hosts and the exporter are without power, and nobody has said that the VM is gone. It starts on the
/// other host. Then that host alone is rebooted, and starts the VM again, under the domid that it had.
#[test]
fn a_power_cut_ends_no_attachment() {
    let mut rig = Rig::start(&RigOptions {
        disconnected_hold_seconds: Some(3),
        ..options()
    })
    .unwrap();
    let vm = GuestOptions::new("guest");
    let mut guest = Guest::start(&rig, 0, &vm).unwrap();
    attach(&rig, &guest);
    guest.wait_working().unwrap();
    for host in &mut rig.hosts {
        host.lose_power().unwrap();
    }
    drop(guest);
    // Longer than what is not persistent waits for its host.
    std::thread::sleep(Duration::from_secs(4));
    rig.exporter.reboot().unwrap();
    for host in &mut rig.hosts {
        host.power_on().unwrap();
    }
    rig.wait_for_exporter().unwrap();
    let guest = start(&rig, 1, &vm);

    let domid = guest.domid;
    rig.hosts[1].lose_power().unwrap();
    drop(guest);
    rig.hosts[1].power_on().unwrap();
    rig.wait_for_exporter().unwrap();
    let guest = start(&rig, 1, &vm);
    assert_eq!(guest.domid, domid);
    rig.end_unnoticed(guest);
}

/// Toolstacks that make no controllers: `vusbd` makes the VM's again on the host that it starts on, before its
/// kernel looks for it. Nobody tells it to but the lease.
#[test]
fn a_controller_of_our_own_is_made_again_where_the_vm_starts() {
    for dialect in [Dialect::Xenopsd, Dialect::Libvirt] {
        let rig = Rig::start(&RigOptions {
            dialect,
            ..options()
        });
        let rig = rig.unwrap();
        let vm = GuestOptions::new("guest");
        let mut guest = Guest::start(&rig, 0, &vm).unwrap();
        attach(&rig, &guest);
        guest.wait_working().unwrap();
        shut_down(&rig, guest);
        wait_until_off(&rig, 1);
        std::thread::sleep(HOLD * 2);
        let domid = rig.hosts[1].xl.create(&vm.config).unwrap();
        // A kernel takes longer to boot than this; the guest here looks at once.
        rig.hosts[1].wait_for_controllers(domid, &[64]);
        let mut guest = Guest::boot(&rig, 1, domid, &vm)
            .unwrap_or_else(|e| panic!("{dialect:?}: {e:?}\n{}", rig.log_tails()));
        let works = guest.wait_working();
        works.unwrap_or_else(|e| panic!("{dialect:?}: {e}\n{}", rig.log_tails()));
        rig.end_unnoticed(guest);
    }
}
