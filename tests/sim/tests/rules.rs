// SPDX-License-Identifier: GPL-3.0-or-later
//! `[[attach]]` rules of an exporter: nobody attaches anything by hand.

use std::time::Duration;

use control::Response;
use session::Persistence;
use sim_scenarios::programs;
use sim_scenarios::rig::{Guest, GuestOptions, Rig, RigOptions};
use xen_sim::toolstack::Dialect;

const ALLOW: &str = "[[allow]]\ndevice = \"*\"\nvm = \"*\"\nhost = \"*\"\n";

fn rig(rules: &str) -> Rig {
    rig_of(Dialect::Xl, rules)
}

fn rig_of(dialect: Dialect, rules: &str) -> Rig {
    programs::build().unwrap();
    let options = RigOptions {
        policy: format!("{ALLOW}{rules}"),
        dialect,
        ..RigOptions::default()
    };
    Rig::start(&options).unwrap()
}

fn tell(rig: &Rig, command: &str) {
    let mut devices = rig.exporter.devices().unwrap();
    devices.tell("0-1", command).unwrap();
}

fn works(rig: &Rig, guest: &mut Guest) {
    let works = guest.wait_working();
    works.unwrap_or_else(|e| panic!("{e:#}\n{}", rig.log_tails()));
}

fn shut_down(rig: &Rig, guest: Guest) {
    let report = guest.stop(rig).unwrap();
    assert_eq!((report.lost, report.errors), (0, 0), "{report:?}");
}

/// By name and class: also under another uuid, as `xl create` gives one, and plugged in after the start.
#[test]
fn a_rule_by_name_and_class_attaches_wherever_its_vm_starts() {
    let rig = rig("[[attach]]\nclass = \"mass-storage\"\nvm_name = \"guest\"\nport = 1\n");
    let other = Guest::start(&rig, 1, &GuestOptions::new("other")).unwrap();
    let mut guest = Guest::start(&rig, 0, &GuestOptions::new("guest")).unwrap();
    works(&rig, &mut guest);
    match rig.xl_vusb_json(0, &["list"]).unwrap() {
        Response::Attachments(all) => {
            assert_eq!(all.len(), 1);
            assert_eq!((all[0].persistence, all[0].port), (Persistence::Rule, 1));
        }
        unexpected => panic!("{unexpected:?}"),
    }
    shut_down(&rig, guest);
    shut_down(&rig, other);

    tell(&rig, "unplug");
    let mut guest = Guest::start(&rig, 1, &GuestOptions::new("guest")).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    tell(&rig, "plug");
    works(&rig, &mut guest);
    shut_down(&rig, guest);
    assert_eq!(rig.stop().unwrap(), Vec::<String>::new());
}

/// By uuid and place, at a controller that nobody has made.
#[test]
fn a_rule_can_have_its_controller_made() {
    let vm = GuestOptions::new("guest");
    let rule = format!(
        "[[attach]]\ndevice = \"0-1\"\nvm = \"{}\"\ncontroller = 64\nport = 1\n",
        vm.config.uuid
    );
    let rig = rig_of(Dialect::Xenopsd, &rule);
    let domid = rig.hosts[0].xl.create(&vm.config).unwrap();
    rig.hosts[0].wait_for_controllers(domid, &[64]);
    let mut guest = Guest::boot(&rig, 0, domid, &vm).unwrap();
    works(&rig, &mut guest);
    shut_down(&rig, guest);
}

/// A name that two running VMs have, and a rule that no `[[allow]]` allows.
#[test]
fn what_a_rule_cannot_mean_is_in_the_log() {
    let rig = rig("[[attach]]\ndevice = \"0-1\"\nvm_name = \"guest\"\n");
    tell(&rig, "unplug");
    let first = Guest::start(&rig, 0, &GuestOptions::new("guest")).unwrap();
    let second = Guest::start(&rig, 1, &GuestOptions::new("guest")).unwrap();
    tell(&rig, "plug");
    std::thread::sleep(Duration::from_millis(500));
    let log = rig.exporter.log();
    assert!(log.contains("runs with the same name"), "{log}");
    for (host, guest) in [(0, first), (1, second)] {
        match rig.xl_vusb_json(host, &["list"]).unwrap() {
            Response::Attachments(all) => assert!(all.is_empty(), "{all:?}"),
            unexpected => panic!("{unexpected:?}"),
        }
        guest.stop(&rig).unwrap();
    }
}
