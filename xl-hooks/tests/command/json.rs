// SPDX-License-Identifier: GPL-3.0-or-later
//! What scripts read.

use crate::*;

#[test]
fn json_is_the_control_types_as_they_are() {
    let host = Host::new();
    let _daemon = host.daemon(Response::Attachments(vec![attachment()]));
    let output = host.xl_vusb(&["list", "--json"]);
    assert_eq!(status(&output), 0);
    // Scripts read this: a change here is a change of the interface (docs/xl-vusb.md).
    assert_eq!(
        stdout(&output),
        r#"{
  "attachments": [
    {
      "exporter": "pi4",
      "device": {
        "id": "1-1.2",
        "vendor": 2385,
        "product": 5734,
        "serial": null,
        "name": "Kingston DataTraveler",
        "speed": "high",
        "classes": [
          8
        ],
        "state": {
          "leased": {
            "vm": "6f7d3c1e-8b0a-4f0e-9d6e-2a1b3c4d5e6f",
            "vm_name": "web"
          }
        }
      },
      "vm": "6f7d3c1e-8b0a-4f0e-9d6e-2a1b3c4d5e6f",
      "domid": 5,
      "vm_name": "web",
      "controller": 0,
      "port": 1,
      "toolstack": "xl",
      "frontend_resumes": false,
      "on_migrate": "refuse",
      "phase": "serving",
      "exchange": null,
      "persistence": "temporary",
      "host": "host-a",
      "note": null,
      "elsewhere": false,
      "stash": {
        "kept": 0,
        "delivered": 0,
        "discarded": 0,
        "overflowed": 0
      },
      "counters": {
        "urbs": 0,
        "answered": 0,
        "errors": 0,
        "unlinked": 0,
        "bytes_out": 0,
        "bytes_in": 0,
        "reconnects": 0
      }
    }
  ]
}
"#
    );
}

#[test]
fn every_answer_has_its_documented_key() {
    let attachment = || Box::new(attachment());
    let everything = control::Status {
        version: "0.1.0".into(),
        host: "xen1".into(),
        exporters: vec![],
        controllers: vec![],
        attachments: vec![],
        totals: control::Counters::default(),
    };
    let answers = [
        (vec!["exporters"], Response::Exporters(vec![]), "exporters"),
        (
            vec!["devices"],
            Response::Devices {
                devices: vec![],
                unreachable: vec![],
            },
            "devices",
        ),
        (
            vec!["attach", "web", "pi4/1-1"],
            Response::Attached(attachment()),
            "attached",
        ),
        (
            vec!["detach", "web", "1"],
            Response::Detached(attachment()),
            "detached",
        ),
        (
            vec!["status"],
            Response::Status(Box::new(everything)),
            "status",
        ),
        (vec!["check", "web"], check(Outcome::Replug), "check"),
        (
            vec!["hosts"],
            Response::Hosts {
                hosts: vec![],
                unreachable: vec![],
            },
            "hosts",
        ),
        (
            vec!["hosts", "forget", "xen9"],
            Response::Forgotten {
                host: "xen9".into(),
                exporters: vec!["pi4".into()],
            },
            "forgotten",
        ),
    ];
    for (mut arguments, answer, key) in answers {
        let host = Host::new();
        let _daemon = host.daemon(answer.clone());
        arguments.push("--json");
        let output = host.xl_vusb(&arguments);
        assert_eq!(status(&output), 0, "{}", stderr(&output));
        let json: serde_json::Value = serde_json::from_str(stdout(&output)).unwrap();
        let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
        assert_eq!(keys, [key]);
        assert_eq!(serde_json::from_value::<Response>(json).unwrap(), answer);
    }
}

#[test]
fn errors_in_json_have_one_shape_whoever_found_them() {
    let host = Host::new();
    let missing = host.xl_vusb(&["list", "--json"]);
    assert_eq!(status(&missing), 2);
    let _daemon = host.daemon(Response::Error("no domain 'web'".into()));
    let refused = host.xl_vusb(&["check", "web", "--json"]);
    assert_eq!(status(&refused), 1);
    assert_eq!(stdout(&refused), "{\n  \"error\": \"no domain 'web'\"\n}\n");
    let missing: Response = serde_json::from_str(stdout(&missing)).unwrap();
    assert!(matches!(missing, Response::Error(text) if text.starts_with("vusbd is not running")));
}
