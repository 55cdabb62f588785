// SPDX-License-Identifier: GPL-3.0-or-later
use control::Counters;
use session::{DeviceId, DeviceInfo, DeviceState, LeasePhase, Speed, StashCounters};

use super::*;
use Outcome::*;

fn attachment(controller: u16, frontend_resumes: bool, on_migrate: OnMigrate) -> Attachment {
    Attachment {
        exporter: "pi4".into(),
        device: DeviceInfo {
            id: DeviceId("1-2".into()),
            vendor: 1,
            product: 2,
            serial: None,
            name: String::new(),
            speed: Speed::High,
            classes: vec![],
            state: DeviceState::Free,
        },
        vm: session::VmUuid(Default::default()),
        domid: 5,
        vm_name: "web".into(),
        controller,
        port: 3,
        toolstack: Toolstack::Xl,
        frontend_resumes,
        on_migrate,
        phase: LeasePhase::Serving,
        exchange: None,
        note: None,
        elsewhere: false,
        persistence: Default::default(),
        host: None,
        stash: StashCounters::default(),
        counters: Counters::default(),
    }
}

fn host(name: &str, makes_controllers: bool) -> KnownHost {
    KnownHost {
        name: name.into(),
        connected: true,
        seen_seconds: 0,
        software: Some(Software {
            version: "7".into(),
            makes_controllers,
        }),
        refused: Vec::new(),
    }
}

fn forecast(by: Toolstack, attachment: Attachment, hosts: &[(&str, Seen<'_>)]) -> Forecast {
    let question = Question { here: "a", by };
    of(&question, attachment, hosts.iter().copied())
}

/// On a host where everything is as it should be.
#[test]
fn what_happens_depends_on_the_guest_and_on_who_makes_the_controller() {
    const RESUMES: [bool; 2] = [true, false];
    const ON: [OnMigrate; 3] = [OnMigrate::Refuse, OnMigrate::Replug, OnMigrate::Risk];
    let table = |by, controller, expected: [Outcome; 6]| {
        let cases = RESUMES.into_iter().flat_map(|r| ON.map(|on| (r, on)));
        for ((resumes, on), expected) in cases.zip(expected) {
            let known = host("b", true);
            let attachment = attachment(controller, resumes, on);
            let got = forecast(by, attachment, &[("b", Seen::Known(&known))]);
            assert_eq!(got.outcome, expected, "{by} {controller} {resumes} {on}");
            assert_eq!(got.hosts[0].outcome, expected);
        }
    };
    //                              resumes: refuse replug risk; cannot: refuse replug risk
    table(
        Toolstack::Xl,
        0,
        [Seamless, Seamless, Seamless, Refused, Replug, Seamless],
    );
    for by in [
        Toolstack::Xl,
        Toolstack::Xapi,
        Toolstack::Libvirt,
        Toolstack::Unknown,
    ] {
        table(
            by,
            64,
            [Seamless, Seamless, Seamless, Lost, Replug, Seamless],
        );
    }
    for by in [Toolstack::Xapi, Toolstack::Libvirt, Toolstack::Unknown] {
        table(by, 0, [Lost; 6]);
    }
}

#[test]
fn a_host_that_cannot_get_the_device_is_named_with_the_remedy() {
    let good = host("b", true);
    let old = host("b", false);
    let mut gone = host("b", true);
    gone.connected = false;
    gone.seen_seconds = 3 * 3600;
    let mut refused = host("b", true);
    refused.refused = vec![DeviceId("1-2".into())];
    let cases = [
        (Seen::Known(&good), Seamless, Seamless, "reconnects"),
        (Seen::Known(&old), Seamless, Lost, "vusbd 7 of b makes none"),
        (Seen::Known(&gone), Refused, Lost, "last seen 3 h ago"),
        (Seen::Known(&refused), Lost, Lost, "[[allow]]"),
        (
            Seen::Never,
            Lost,
            Lost,
            "b has never been connected to exporter pi4",
        ),
        (Seen::Silent("no route"), Refused, Lost, "no route"),
    ];
    for (seen, by_xl, by_xapi, part) in cases {
        let of = |by, controller| {
            let attachment = attachment(controller, true, OnMigrate::Refuse);
            forecast(by, attachment, &[("b", seen)])
        };
        let xl = of(Toolstack::Xl, 0);
        assert_eq!(xl.outcome, by_xl, "{}", xl.reason);
        let xapi = of(Toolstack::Xapi, 64);
        assert_eq!(xapi.outcome, by_xapi, "{}", xapi.reason);
        assert!(xapi.reason.contains(part), "{part}: {}", xapi.reason);
        assert!(!xapi.reason.contains("  "), "{}", xapi.reason);
    }
}

#[test]
fn the_worst_host_counts_and_each_has_a_line() {
    let (good, mut gone) = (host("b", true), host("c", true));
    gone.connected = false;
    let hosts = [("b", Seen::Known(&good)), ("c", Seen::Known(&gone))];
    let got = forecast(
        Toolstack::Xl,
        attachment(0, true, OnMigrate::Refuse),
        &hosts,
    );
    assert_eq!(got.outcome, Refused);
    assert!(got.reason.contains("vusbd of c"), "{}", got.reason);
    let outcomes: Vec<_> = got
        .hosts
        .iter()
        .map(|h| (h.host.as_str(), h.outcome))
        .collect();
    assert_eq!(outcomes, [("b", Seamless), ("c", Refused)]);
    assert_eq!(got.hosts[0].version.as_deref(), Some("7"));
}

/// It must not be let through to a host on which vusbd has never run.
#[test]
fn where_no_other_host_is_known_nothing_is_promised() {
    for (by, devid, expected) in [
        (Toolstack::Xl, 0, Refused),
        (Toolstack::Xl, 64, Lost),
        (Toolstack::Xapi, 64, Lost),
        (Toolstack::Libvirt, 64, Lost),
    ] {
        let got = forecast(by, attachment(devid, true, OnMigrate::Refuse), &[]);
        assert_eq!(got.outcome, expected);
        assert!(got.reason.contains("no other host"), "{}", got.reason);
    }
}

#[test]
fn a_domain_that_waits_for_a_device_of_another_one_loses_nothing() {
    let mut copy = attachment(0, true, OnMigrate::Refuse);
    copy.elsewhere = true;
    copy.note = Some("the VM runs at host-a (domain 5)".into());
    let known = host("b", true);
    let got = forecast(Toolstack::Xl, copy, &[("b", Seen::Known(&known))]);
    assert_eq!((got.outcome, got.hosts.len()), (Elsewhere, 0));
    assert!(!got.outcome.forbids());
    assert!(
        got.reason
            .contains("does not have the device: the VM runs at host-a")
    );
}
