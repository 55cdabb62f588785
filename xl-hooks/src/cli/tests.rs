// SPDX-License-Identifier: GPL-3.0-or-later
use std::path::Path;

use clap::CommandFactory;
use session::DeviceId;

use super::*;

fn parse(line: &str) -> Result<Cli, String> {
    Cli::try_parse_from(line.split_whitespace()).map_err(|e| {
        assert_eq!(e.exit_code(), 2, "{e}");
        e.to_string()
    })
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn attach_with_everything() {
    let cli = parse(
        "xl-vusb attach web pi4/0951:1666:E0D5 --controller 1 --port 31 --on-migrate replug --json \
         --on-exchange pause --exchange-seconds 20",
    )
    .unwrap();
    assert!(cli.json);
    assert_eq!(cli.socket, Path::new("/run/xen-vusb/vusbd.sock"));
    let Command::Attach(attach) = cli.command else {
        panic!("{:?}", cli.command)
    };
    assert_eq!(attach.domain, "web");
    assert_eq!(attach.device.exporter.as_str(), "pi4");
    assert_eq!(
        attach.device.device,
        DeviceSelector::Kind {
            vendor: 0x0951,
            product: 0x1666,
            serial: Some("E0D5".into())
        }
    );
    assert_eq!(attach.controller, Some(1));
    assert_eq!(attach.port, Some(31));
    assert_eq!(attach.on_migrate, Some(OnMigrate::Replug));
    assert_eq!(attach.on_exchange, Some(WhenExchanged::Pause));
    assert_eq!(attach.exchange_seconds, Some(20));
}

#[test]
fn attach_with_the_least() {
    let cli = parse("xl-vusb --socket /tmp/s attach 5 pi4.example.org/1-1.2").unwrap();
    assert_eq!(cli.socket, Path::new("/tmp/s"));
    let Command::Attach(attach) = cli.command else {
        panic!("{:?}", cli.command)
    };
    assert_eq!(
        attach.device.device,
        DeviceSelector::Place(DeviceId("1-1.2".into()))
    );
    assert_eq!(
        (attach.controller, attach.port, attach.on_migrate),
        (None, None, None)
    );
    assert_eq!((attach.on_exchange, attach.exchange_seconds), (None, None));
    for wrong in ["--on-exchange stay", "--exchange-seconds 0"] {
        assert!(parse(&format!("xl-vusb attach 5 pi4/1-1.2 {wrong}")).is_err());
    }
}

#[test]
fn a_serial_number_may_contain_a_slash() {
    let name: DeviceName = "pi4/0951:1666:A/B:C".parse().unwrap();
    assert!(matches!(name.device, DeviceSelector::Kind { serial: Some(s), .. } if s == "A/B:C"));
}

#[test]
fn migrate_hands_its_rest_to_xl() {
    let cli = parse("xl-vusb migrate web xen2 -- --debug -s ssh").unwrap();
    let Command::Migrate(migrate) = cli.command else {
        panic!("{:?}", cli.command)
    };
    assert_eq!((&*migrate.domain, &*migrate.host), ("web", "xen2"));
    assert_eq!(migrate.xl_options, ["--debug", "-s", "ssh"]);
    // Without `--`, xl's options are not ours.
    assert!(parse("xl-vusb migrate web xen2 --debug").is_err());
}

#[test]
fn wrong_arguments_say_what_is_right() {
    let wrong = [
        (
            "xl-vusb attach web 1-1.2",
            "'1-1.2' names no exporter: write EXPORTER/1-1.2",
        ),
        (
            "xl-vusb attach web pi4/",
            "'' names no device: write BUS-PORT",
        ),
        (
            "xl-vusb attach web pi4/stick",
            "'stick' names no device: write BUS-PORT",
        ),
        ("xl-vusb attach web pi4/09511:1666", "names no device"),
        (
            "xl-vusb attach web pi_4/1-1",
            "exporter: 'pi_4' is no host name",
        ),
        (
            "xl-vusb attach web /1-1",
            "exporter: a host name has 1 to 253",
        ),
        ("xl-vusb attach web pi4/1-1 --port 0", "0 is not in 1..=31"),
        (
            "xl-vusb attach web pi4/1-1 --port 32",
            "32 is not in 1..=31",
        ),
        ("xl-vusb attach web pi4/1-1 --port x", "invalid digit"),
        (
            "xl-vusb attach web pi4/1-1 --controller 70000",
            "70000 is not in 0..=65535",
        ),
        (
            "xl-vusb attach web pi4/1-1 --on-migrate hope",
            "it is refuse, replug or risk",
        ),
        ("xl-vusb attach web", "<DEVICE>"),
        ("xl-vusb detach web", "<PORT>"),
        ("xl-vusb detach web 200", "200 is not in 1..=31"),
        ("xl-vusb pool issue 10.0.0.1", "is an address, not a name"),
        ("xl-vusb frobnicate", "unrecognized subcommand 'frobnicate'"),
    ];
    for (line, expected) in wrong {
        let error = parse(line).expect_err(line);
        assert!(error.contains(expected), "{line}: {error}");
    }
}

#[test]
fn pool_commands_have_their_usual_place() {
    let cli = parse("xl-vusb pool init").unwrap();
    let Command::Pool(PoolCommand::Init { dir, name }) = cli.command else {
        panic!("{:?}", cli.command)
    };
    assert_eq!(dir, Path::new("/etc/xen-vusb/pool"));
    assert_eq!(name, "default");
    let cli = parse("xl-vusb pool issue xen1 --dir /tmp/p --out /tmp/o").unwrap();
    let Command::Pool(PoolCommand::Issue { host, dir, out }) = cli.command else {
        panic!("{:?}", cli.command)
    };
    assert_eq!(host.as_str(), "xen1");
    assert_eq!(dir, Path::new("/tmp/p"));
    assert_eq!(out.as_deref(), Some(Path::new("/tmp/o")));
}
