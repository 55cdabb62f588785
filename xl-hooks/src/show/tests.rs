// SPDX-License-Identifier: GPL-3.0-or-later
use control::{Counters, Outcome};
use session::{DeviceId, StashCounters, VmUuid};

use super::*;

const VM: &str = "6f7d3c1e-8b0a-4f0e-9d6e-2a1b3c4d5e6f";

fn stick() -> DeviceInfo {
    DeviceInfo {
        id: DeviceId("1-1.2".into()),
        vendor: 0x0951,
        product: 0x1666,
        serial: Some("E0D55E".into()),
        name: "Kingston DataTraveler".into(),
        speed: Speed::High,
        classes: vec![8],
        state: DeviceState::Leased {
            vm: VM.parse::<VmUuid>().unwrap(),
            vm_name: "web".into(),
        },
    }
}

fn attachment() -> Attachment {
    Attachment {
        exporter: "pi4".into(),
        device: stick(),
        vm: VM.parse().unwrap(),
        domid: 5,
        vm_name: "web".into(),
        controller: 0,
        port: 1,
        toolstack: Toolstack::Xl,
        frontend_resumes: false,
        on_migrate: OnMigrate::Refuse,
        phase: LeasePhase::Serving,
        exchange: None,
        note: None,
        elsewhere: false,
        persistence: Default::default(),
        host: Some("host-a".into()),
        stash: StashCounters::default(),
        counters: Counters {
            urbs: 1200,
            answered: 1199,
            errors: 1,
            unlinked: 2,
            bytes_out: 4096,
            bytes_in: 65536,
            reconnects: 0,
        },
    }
}

fn forecast(outcome: Outcome, reason: &str) -> Forecast {
    Forecast {
        attachment: attachment(),
        outcome,
        reason: reason.into(),
        hosts: Vec::new(),
    }
}

fn on_host(host: &str, seen: Option<u64>, outcome: Outcome, reason: &str) -> HostForecast {
    HostForecast {
        host: host.into(),
        connected: seen == Some(0),
        seen_seconds: seen,
        version: Some("0.1.0".into()),
        outcome,
        reason: reason.into(),
    }
}

#[test]
fn devices_show_who_has_them_and_who_is_silent() {
    let mut scanner = stick();
    scanner.id = DeviceId("1-3".into());
    scanner.serial = None;
    scanner.state = DeviceState::Free;
    scanner.name = "Canon\u{1b}[31m LiDE".into();
    let exported = |device| ExportedDevice {
        exporter: "pi4".into(),
        device,
    };
    let response = Response::Devices {
        devices: vec![exported(stick()), exported(scanner)],
        unreachable: vec![ExporterStatus {
            name: "desk".into(),
            address: "10.9.0.7:7420".into(),
            error: Some("its certificate is not the pool's".into()),
        }],
    };
    assert_eq!(
        text(&response),
        "\
DEVICE     ID         SERIAL  SPEED  STATE          NAME
pi4/1-1.2  0951:1666  E0D55E  high   in use by web  Kingston DataTraveler
pi4/1-3    0951:1666  -       high   free           Canon?[31m LiDE
exporter desk (10.9.0.7:7420) does not answer: its certificate is not the pool's
"
    );
}

#[test]
fn a_list_shows_ports_as_detach_wants_them() {
    let mut noted = attachment();
    noted.note = Some("migration to xen2 refused: web has no resume callback".into());
    noted.port = 12;
    assert_eq!(
        text(&Response::Attachments(vec![attachment(), noted])),
        "\
DOMAIN  DOMID  CTRL  PORT  DEVICE     ID         MIGRATION  PHASE    NAME
web     5      0     1     pi4/1-1.2  0951:1666  refuse     serving  Kingston DataTraveler
web     5      0     12    pi4/1-1.2  0951:1666  refuse     serving  Kingston DataTraveler
pi4/1-1.2 (Kingston DataTraveler): migration to xen2 refused: web has no resume callback
"
    );
}

#[test]
fn an_attachment_says_what_a_migration_will_do() {
    assert_eq!(
        text(&Response::Attached(Box::new(attachment()))),
        "attached pi4/1-1.2 (Kingston DataTraveler) to web (domain 5), controller 0 port 1; \
         on migration: refuse\n"
    );
    let mut resuming = attachment();
    resuming.frontend_resumes = true;
    assert!(
        text(&Response::Attached(Box::new(resuming.clone()))).ends_with("on migration: seamless\n")
    );
    for toolstack in [Toolstack::Libvirt, Toolstack::Xapi, Toolstack::Unknown] {
        resuming.toolstack = toolstack;
        let attached = Response::Attached(Box::new(resuming.clone()));
        assert!(text(&attached).ends_with("on migration: lost\n"));
    }
    // A controller of vusbd is made again under every toolstack, and none waits for it.
    resuming.controller = 64;
    for (resumes, on_migrate, expected) in [
        (true, OnMigrate::Refuse, "seamless"),
        (false, OnMigrate::Refuse, "lost"),
        (false, OnMigrate::Replug, "replug"),
        (false, OnMigrate::Risk, "risk"),
    ] {
        resuming.frontend_resumes = resumes;
        resuming.on_migrate = on_migrate;
        for toolstack in [Toolstack::Xl, Toolstack::Libvirt, Toolstack::Xapi] {
            resuming.toolstack = toolstack;
            let attached = text(&Response::Attached(Box::new(resuming.clone())));
            let line = attached.lines().next().unwrap();
            assert!(
                line.ends_with(&format!("on migration: {expected}")),
                "{line}"
            );
        }
    }
    assert_eq!(
        text(&Response::Detached(Box::new(attachment()))),
        "detached pi4/1-1.2 (Kingston DataTraveler) from web (domain 5), controller 0 port 1\n"
    );
}

#[test]
fn a_check_names_device_outcome_and_remedy() {
    let remedy = "the guest's driver cannot resume; load xen-vusb-hcd in it, or detach";
    let forecasts = vec![
        forecast(Outcome::Refused, remedy),
        forecast(Outcome::Seamless, "the frontend resumes"),
        forecast(Outcome::Lost, "detach it"),
    ];
    assert_eq!(
        refusals(&forecasts),
        [
            format!("pi4/1-1.2 (Kingston DataTraveler), controller 0 port 1: {remedy}"),
            "pi4/1-1.2 (Kingston DataTraveler), controller 0 port 1: detach it".into(),
        ]
    );
    assert_eq!(
        text(&Response::Check(forecasts)),
        format!(
            "\
HOST  STATE  DEVICE                             CTRL  PORT  OUTCOME   WHY
-     -      pi4/1-1.2 (Kingston DataTraveler)  0     1     refused   {remedy}
-     -      pi4/1-1.2 (Kingston DataTraveler)  0     1     seamless  the frontend resumes
-     -      pi4/1-1.2 (Kingston DataTraveler)  0     1     lost      detach it
"
        )
    );
}

#[test]
fn a_check_has_a_line_for_each_host_and_device() {
    let mut stick = forecast(Outcome::Lost, "the worst of it");
    stick.hosts = vec![
        on_host("xen3", None, Outcome::Lost, "start vusbd there"),
        on_host("xen2", Some(0), Outcome::Seamless, "it resumes"),
    ];
    let mut scanner = forecast(Outcome::Refused, "the worst of it");
    scanner.attachment.port = 2;
    scanner.hosts = vec![
        on_host("xen2", Some(0), Outcome::Seamless, "it resumes"),
        on_host(
            "xen3",
            Some(7300),
            Outcome::Refused,
            "vusbd is not connected",
        ),
    ];
    let forecasts = vec![stick, scanner];
    assert_eq!(
        refusals(&forecasts),
        [
            "to xen3: pi4/1-1.2 (Kingston DataTraveler), controller 0 port 1: start vusbd there",
            "to xen3: pi4/1-1.2 (Kingston DataTraveler), controller 0 port 2: vusbd is not connected",
        ]
    );
    assert_eq!(
        text(&Response::Check(forecasts)),
        "\
HOST  STATE              DEVICE                             CTRL  PORT  OUTCOME   WHY
xen2  connected          pi4/1-1.2 (Kingston DataTraveler)  0     1     seamless  it resumes
xen2  connected          pi4/1-1.2 (Kingston DataTraveler)  0     2     seamless  it resumes
xen3  never seen         pi4/1-1.2 (Kingston DataTraveler)  0     1     lost      start vusbd there
xen3  last seen 2 h ago  pi4/1-1.2 (Kingston DataTraveler)  0     2     refused   vusbd is not connected
"
    );
}

#[test]
fn hosts_show_who_has_seen_them_when() {
    let seen = |exporter: &str, connected, seen_seconds, version: Option<&str>| SeenHost {
        exporter: exporter.into(),
        connected,
        seen_seconds,
        version: version.map(str::to_owned),
        makes_controllers: true,
    };
    let hosts = vec![
        PoolHost {
            name: "xen1".into(),
            seen: vec![
                seen("desk", true, 0, Some("0.1.0")),
                seen("pi4", false, 90, None),
            ],
        },
        PoolHost {
            name: "xen2".into(),
            seen: vec![seen("pi4", false, 400_000, Some("0.1.0"))],
        },
    ];
    let response = Response::Hosts {
        hosts,
        unreachable: vec![],
    };
    assert_eq!(
        text(&response),
        "\
HOST  EXPORTER  STATE                 VUSBD
xen1  desk      connected             0.1.0
xen1  pi4       last seen 90 s ago    -
xen2  pi4       last seen 4 days ago  0.1.0
"
    );
    let forgotten = Response::Forgotten {
        host: "xen2".into(),
        exporters: vec!["desk".into(), "pi4".into()],
    };
    assert_eq!(text(&forgotten), "forgot host xen2 at desk, pi4\n");
}

#[test]
fn a_status_has_all_four_parts() {
    let status = Status {
        version: "0.1.0".into(),
        host: "xen1".into(),
        exporters: vec![ExporterStatus {
            name: "pi4".into(),
            address: "10.9.0.7:7420".into(),
            error: None,
        }],
        controllers: vec![Controller {
            vm: VM.parse().unwrap(),
            domid: 5,
            vm_name: "web".into(),
            controller: 0,
            ports: 4,
            usb_version: 2,
            frontend: "Connected".into(),
            backend: "Connected".into(),
            hand_off: "Serving".into(),
            frontend_resumes: true,
        }],
        attachments: vec![attachment()],
        totals: Counters {
            urbs: 5000,
            answered: 4999,
            ..Counters::default()
        },
    };
    assert_eq!(
        text(&Response::Status(Box::new(status))),
        "\
vusbd 0.1.0 on xen1

EXPORTER  ADDRESS        STATE
pi4       10.9.0.7:7420  ok

DOMAIN  DOMID  CTRL  PORTS  FRONTEND   BACKEND    HAND-OFF  RESUMES
web     5      0     4      Connected  Connected  Serving   yes

DOMAIN  DOMID  CTRL  PORT  DEVICE     ID         MIGRATION  PHASE    NAME
web     5      0     1     pi4/1-1.2  0951:1666  refuse     serving  Kingston DataTraveler

DEVICE       URBS  ANSWERED  ERRORS  UNLINKED  BYTES OUT  BYTES IN  RECONNECTS
pi4/1-1.2    1200  1199      1       2         4096       65536     0
since start  5000  4999      0       0         0          0         0
"
    );
}

#[test]
fn nothing_is_said_in_words() {
    let empty = [
        (Response::Exporters(vec![]), "[[exporter]]"),
        (Response::Attachments(vec![]), "nothing attached"),
        (Response::Check(vec![]), "nothing stands in the way"),
    ];
    for (response, expected) in empty {
        let text = text(&response);
        assert!(text.contains(expected), "{text}");
        assert_eq!(text.lines().count(), 1);
    }
}

#[test]
fn a_persistent_attachment_says_what_it_means() {
    let mut attached = attachment();
    attached.persistence = session::Persistence::Persistent;
    attached.exchange = Some(session::Exchange {
        on: session::OnExchange::Replug,
        seconds: 60,
        at_place: false,
    });
    let text = |attached: &Attachment| text(&Response::Attached(Box::new(attached.clone())));
    let named = text(&attached);
    assert!(named.contains("waits without a limit"), "{named}");
    assert!(
        named.contains("reserved for web also while it is off"),
        "{named}"
    );
    // Only xl makes a new uuid.
    assert!(named.contains(&format!("uuid = \"{VM}\"")), "{named}");
    assert!(!named.contains("serial number"), "{named}");
    attached.toolstack = Toolstack::Xapi;
    attached.device.serial = None;
    let nameless = text(&attached);
    assert!(!nameless.contains("uuid ="), "{nameless}");
    assert!(nameless.contains("no serial number") && nameless.contains("only at pi4/1-1.2"));
    attached.exchange.as_mut().unwrap().at_place = true;
    let place = text(&attached);
    assert!(
        place.contains("whatever is plugged in at pi4/1-1.2"),
        "{place}"
    );
}

#[test]
fn vms_that_are_off_and_those_of_other_hosts_have_columns_of_their_own() {
    let here = attachment();
    let mut off = attachment();
    off.persistence = session::Persistence::Persistent;
    (off.host, off.phase) = (None, LeasePhase::Orphaned);
    let only_here = text(&Response::Attachments(vec![here.clone()]));
    assert!(!only_here.contains("HOST"), "{only_here}");
    let all = text(&Response::Attachments(vec![here, off.clone()]));
    let lines: Vec<_> = all.lines().collect();
    assert!(
        lines[0].contains("UUID") && lines[0].contains("HOST"),
        "{all}"
    );
    assert!(
        lines[1].contains("host-a") && lines[1].contains("serving"),
        "{all}"
    );
    let words: Vec<_> = lines[2].split_whitespace().collect();
    assert_eq!((words[2], words[3], words[8]), ("-", "-", "off"), "{all}");
    let detached = text(&Response::Detached(Box::new(off)));
    assert!(
        detached.contains("web, which is off") && detached.contains(VM),
        "{detached}"
    );
}
