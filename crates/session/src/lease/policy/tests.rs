// SPDX-License-Identifier: GPL-3.0-or-later
use super::super::tests::{device, vm};
use super::*;

fn allow(device: DeviceMatch, vm: VmMatch) -> Policy {
    Policy {
        allow: vec![Allow {
            device,
            vm,
            host: Match::Any,
        }],
    }
}

#[test]
fn a_class_is_that_of_any_interface() {
    let storage = allow(DeviceMatch::Class(8), VmMatch::Any);
    assert!(storage.allows(&device(1), vm(1), "web", "a"));
    let mut printer = device(1);
    printer.classes = vec![0xff, 7];
    assert!(!storage.allows(&printer, vm(1), "web", "a"));
    assert!(allow(DeviceMatch::Class(7), VmMatch::Any).may_see(&printer, "a"));
    // The only keyboard of a machine is lent where it is named, and a class names none.
    let keyboards = allow(DeviceMatch::Class(3), VmMatch::Any);
    let mut keyboard = device(1);
    keyboard.classes = vec![3];
    assert!(keyboards.allows(&keyboard, vm(1), "web", "a"));
    assert!(!keyboards.names(&keyboard));
    let place = DeviceSelector::Place(keyboard.id.clone());
    assert!(allow(DeviceMatch::Device(place), VmMatch::Any).names(&keyboard));
}

#[test]
fn a_name_is_that_of_the_attachment() {
    let web = allow(DeviceMatch::Any, VmMatch::Name("web".into()));
    assert!(web.allows(&device(1), vm(1), "web", "a"));
    assert!(web.allows(&device(1), vm(2), "web", "a"), "another uuid");
    assert!(!web.allows(&device(1), vm(1), "web2", "a"));
    // Whose name is not known yet.
    assert!(web.may_expect(vm(1), "a"));
    let one = allow(DeviceMatch::Any, VmMatch::Uuid(vm(1)));
    assert!(one.may_expect(vm(1), "a") && !one.may_expect(vm(2), "a"));
}

#[test]
fn classes_have_words_and_numbers() {
    assert_eq!(class("printer"), Ok(7));
    assert_eq!(class("0b"), Ok(0x0b));
    for wrong in ["", "printers", "7", "0x07", "zz", "+7"] {
        let text = class(wrong).unwrap_err();
        assert!(text.contains("mass-storage"), "{text}");
    }
}

#[test]
fn every_rule_says_one_thing_of_each() {
    fn written() -> Written {
        Written {
            device: None,
            class: None,
            port: None,
            vm: Some(Match::Any),
            vm_name: None,
            host: Match::Any,
        }
    }
    let by_port = Written {
        port: Some("1-1.2".into()),
        ..written()
    };
    let by_port = Allow::try_from(by_port).unwrap();
    assert_eq!(by_port.device, "1-1.2".parse().unwrap());
    let wrong = [
        written(),
        Written {
            class: Some("hid".into()),
            port: Some("1-1".into()),
            ..written()
        },
        Written {
            port: Some("0951:1666".into()),
            ..written()
        },
        Written {
            class: Some("hid".into()),
            vm_name: Some("web".into()),
            ..written()
        },
        Written {
            class: Some("hid".into()),
            vm: None,
            ..written()
        },
        Written {
            class: Some("hid".into()),
            vm: None,
            vm_name: Some(String::new()),
            ..written()
        },
    ];
    for (number, wrong) in wrong.into_iter().enumerate() {
        assert!(Allow::try_from(wrong).is_err(), "{number}");
    }
}
