// SPDX-License-Identifier: GPL-3.0-or-later
use super::*;

fn attached(exporter: &str, id: &str, serial: Option<&str>, port: u64) -> Attached {
    Attached {
        exporter: exporter.into(),
        device: Device {
            id: id.into(),
            vendor: 0x0951,
            product: 0x1666,
            serial: serial.map(str::to_owned),
        },
        controller: 64,
        port,
    }
}

fn names(value: &str) -> Vec<DeviceName> {
    parse(value).unwrap()
}

#[test]
fn a_value_is_a_list_of_devices_and_says_what_is_wrong_with_it() {
    assert_eq!(names(""), []);
    assert_eq!(names("  "), []);
    assert_eq!(names("pi4/0951:1666:E0, desk/1-2").len(), 2);
    for (value, part) in [
        ("0951:1666", "names no exporter"),
        ("pi4/0951:1666:E0,", "names no exporter"),
        ("pi4/stick", "'stick' names no device"),
        ("pi4/1-2,pi4/1-2", "twice"),
    ] {
        let error = parse(value).unwrap_err();
        assert!(error.contains(part), "{error}");
        assert!(error.contains("other-config:xen-vusb"), "{error}");
        assert!(error.contains("nothing was changed"), "{error}");
    }
}

#[test]
fn what_is_declared_and_attached_is_left_alone() {
    let there = [
        attached("pi4", "1-1", Some("E0"), 1),
        attached("pi4", "1-2", None, 2),
        // It was plugged in elsewhere.
        attached("desk", "3-1", Some("E1"), 3),
    ];
    let declared = names("pi4/1-2,pi4/0951:1666:E0,pi4/0951:1666:E1");
    assert_eq!(changes(&declared, &there), Changes::default());
}

#[test]
fn the_rest_is_detached_and_attached() {
    let there = [
        attached("pi4", "1-1", Some("E0"), 1),
        attached("pi4", "1-2", None, 2),
    ];
    let declared = names("desk/1-2,pi4/0951:1666:E0");
    let changes = changes(&declared, &there);
    assert_eq!(changes.detach, [&there[1]]);
    assert_eq!(changes.attach, [&declared[0]]);
}

/// Two alike want two attachments.
#[test]
fn one_attachment_fulfils_one_declaration() {
    let there = [attached("pi4", "1-1", None, 1)];
    let declared = names("pi4/0951:1666,pi4/1-1");
    assert_eq!(changes(&declared, &there).attach, [&declared[1]]);
}
