// SPDX-License-Identifier: GPL-3.0-or-later
use super::*;

fn parse(text: &str) -> Result<Config, String> {
    // As the program prints it.
    let parsed = Config::parse(text, Path::new("exporter.toml"));
    parsed.map_err(|e| format!("{:#}", anyhow::Error::new(e)))
}

#[test]
fn an_empty_file_is_a_configuration_that_allows_nothing() {
    let config = parse("").unwrap();
    assert_eq!(config.listen.port(), 7210);
    assert_eq!(config.hold_seconds, 60);
    assert_eq!(config.saved_hold_seconds, HoldTime::Seconds(604_800));
    assert_eq!(config.disconnected_hold_seconds, HoldTime::Forever);
    assert_eq!(config.takeover_seconds, 30);
    assert!(config.usb.enabled);
    assert!(config.policy().allow.is_empty());
}

/// A VM that is started elsewhere after its host has died must find its lease.
#[test]
fn a_lease_waits_longer_for_its_holder_than_others_do() {
    let config = parse("disconnected_hold_seconds = 31").unwrap();
    let hold = config.hold_times();
    assert_eq!(
        (hold.disconnected_ms, hold.takeover_ms),
        (Some(31_000), 30_000)
    );
    let config = parse("takeover_seconds = 5\ndisconnected_hold_seconds = 6").unwrap();
    assert_eq!(config.hold_times().takeover_ms, 5_000);
    for text in [
        "disconnected_hold_seconds = 30",
        "takeover_seconds = 60\ndisconnected_hold_seconds = 60",
    ] {
        let refused = parse(text).unwrap_err();
        assert!(refused.contains("more than takeover_seconds"), "{refused}");
    }
}

#[test]
fn everything_can_be_said() {
    let config = parse(
        r#"
        name = "desk"
        listen = "127.0.0.1:0"
        state_dir = "/tmp/x"
        hold_seconds = 5
        saved_hold_seconds = "forever"
        simulated_control = "/run/sim.sock"
        [tls]
        ca = "/ca"
        cert = "/cert"
        key = "/key"
        [[allow]]
        device = "0951:1666:0123"
        vm = "7b1f4a9e-2c37-4d0a-8a53-6f0e3a1b2c4d"
        host = "*"
        [[allow]]
        device = "1-2.3"
        vm = "*"
        host = "host-a"
        [[simulated]]
        kind = "disk"
        file = "/disk"
        size_mib = 8
        serial = "0123456789AB"
        sync = true
        [[simulated]]
        kind = "source-sink"
        pattern = "mod63"
        clock = "manual"
        plugged = false
        [usb]
        enabled = false
        "#,
    )
    .unwrap();
    assert_eq!(config.allow.len(), 2);
    assert_eq!(config.simulated.len(), 2);
    assert_eq!(config.simulated[1].clock, SimulatedClock::Manual);
    assert!(config.simulated[0].plugged && !config.simulated[1].plugged);
    assert!(!config.usb.enabled);
}

#[test]
fn errors_name_the_line_and_the_key() {
    for (text, line, key) in [
        ("name = 'x'\nlisten_on = '1.2.3.4:5'", "line 2", "listen_on"),
        ("listen = 'everywhere'", "line 1", "socket address"),
        ("[tls]\nca = 1", "line 2", "ca = 1"),
        (
            "[[allow]]\ndevice = 'stick'\nvm = '*'\nhost = '*'",
            "line 2",
            "'stick' names no device",
        ),
        ("[[allow]]\ndevice = '*'\nvm = '*'", "line 1", "host"),
        ("[[simulated]]\nkind = 'toaster'", "line 2", "toaster"),
        (
            "[[simulated]]\nkind = 'disk'\nfile = '/d'\nsize = 4",
            "line 4",
            "size",
        ),
        ("[usb]\nenable = true", "line 2", "enable"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(
            error.contains(line) && error.contains(key),
            "{text:?}: {error}"
        );
    }
    let error = parse("[[simulated]]\nkind = 'disk'\nfile = '/d'\nsize_mib = 0").unwrap_err();
    assert!(error.contains("simulated.size_mib"), "{error}");
    for text in [
        "[[simulated]]\nkind = 'super-disk'",
        "[[simulated]]\nkind = 'keyboard'\nfile = '/d'",
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains("simulated.file"), "{error}");
    }
}

#[test]
fn a_rule_is_also_by_class_port_and_name() {
    let config = parse(
        "[[allow]]\nclass = \"printer\"\nvm_name = \"web\"\nhost = \"*\"\n\
         [[allow]]\nport = \"1-1.2\"\nvm = \"*\"\nhost = \"a\"\n",
    );
    assert_eq!(config.unwrap().policy().allow.len(), 2);
    for (rule, error) in [
        ("class = \"printers\"\nvm = \"*\"", "is no USB class"),
        ("port = \"0951:1666\"\nvm = \"*\"", "is no BUS-PORT"),
        (
            "port = \"1-1\"\nclass = \"hid\"\nvm = \"*\"",
            "one of device, class and port",
        ),
        ("vm = \"*\"", "one of device, class and port"),
        ("device = \"*\"", "one of vm and vm_name"),
        ("device = \"*\"\nvms = \"*\"", "unknown field"),
    ] {
        let refused = parse(&format!("[[allow]]\n{rule}\nhost = \"*\"\n")).unwrap_err();
        assert!(refused.contains(error), "{rule}: {refused}");
    }
}

#[test]
fn rules_attach_what_an_allow_allows() {
    let allow = "[[allow]]\nclass = 'hid'\nvm_name = 'web'\nhost = '*'\n";
    let rule = |device: &str, vm: &str| format!("[[attach]]\n{device}\n{vm}\n");
    let good = format!(
        "{allow}{}",
        rule("class = 'hid'", "vm_name = 'web'\nport = 2")
    );
    let config = parse(&good).unwrap();
    assert_eq!(config.attach[0].port, Some(2));
    assert!(config.warnings().is_empty());

    let config = parse(&format!(
        "{allow}{}",
        rule("class = 'video'", "vm_name = 'web'")
    ))
    .unwrap();
    let warnings = config.warnings();
    assert!(
        warnings[0].contains("class = \"video\" to vm_name = \"web\""),
        "{warnings:?}"
    );

    let of_both = rule("device = '1-1'\nclass = 'hid'", "vm_name = 'web'");
    let twice =
        rule("device = '1-1'", "vm_name = 'web'") + &rule("device = '1-1'", "vm_name = 'db'");
    let port = rule("device = '1-1'", "vm_name = 'web'\nport = 32");
    for (text, part) in [
        (of_both, "only one"),
        (twice, "want one device"),
        (port, "no port 32"),
        (rule("device = '1-1'", "vm = 'web'"), "vm: 'web'"),
    ] {
        let text = parse(&text).unwrap_err();
        assert!(text.contains(part), "{text}");
    }
}
