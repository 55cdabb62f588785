// SPDX-License-Identifier: GPL-3.0-or-later
//! What administrators get wrong: the text that they read, and the exit status.

use std::process::{Command, Output};

use sim_scenarios::programs;
use sim_scenarios::rig::{Rig, RigOptions};
use xen_sim::toolstack::DomainConfig;

fn rig(options: &RigOptions) -> Rig {
    programs::build().unwrap();
    Rig::start(options).unwrap()
}

/// A domain that nobody boots: what is attached to it waits.
fn domain(rig: &Rig, name: &str) -> DomainConfig {
    let config = DomainConfig::new(name);
    rig.hosts[0].xl.create(&config).unwrap();
    config
}

fn refused(output: &Output, status: i32, parts: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{text}");
    for part in parts {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
}

#[test]
fn attach() {
    let rig = rig(&RigOptions::default());
    domain(&rig, "one");
    domain(&rig, "two");
    let bare = DomainConfig {
        usbctrl: Vec::new(),
        ..DomainConfig::new("bare")
    };
    rig.hosts[0].xl.create(&bare).unwrap();
    let attach = |arguments: &[&str], status, parts: &[&str]| {
        let output = rig.xl_vusb(0, &[&["attach"], arguments].concat()).unwrap();
        refused(&output, status, parts);
    };
    attach(&["nobody", "exporter/0-1"], 1, &["nobody", "xl list"]);
    attach(&["one", "exporter/9-9"], 1, &["9-9", "xl-vusb devices"]);
    attach(&["one", "exporter/dead:beef"], 1, &["dead:beef"]);
    attach(&["one", "elsewhere/0-1"], 1, &["elsewhere", "exporter"]);
    attach(&["one", "0-1"], 2, &["EXPORTER/0-1"]);
    attach(&["one", "exporter/nonsense"], 2, &["nonsense", "BUS-PORT"]);
    attach(
        &["one", "exporter/0-1", "--port", "9"],
        1,
        &["ports 1 to 4, not 9"],
    );
    attach(&["one", "exporter/0-1", "--port", "99"], 2, &["99"]);
    attach(
        &["one", "exporter/0-1", "--controller", "3"],
        1,
        &["controller 3", "it has 0"],
    );
    attach(
        &["bare", "exporter/0-1"],
        1,
        &[
            "no PV USB controller",
            "usbctrl=['type=pv,version=2,ports=4']",
        ],
    );
    rig.xl_vusb_json(0, &["attach", "one", "exporter/0-1", "--port", "2"])
        .unwrap();
    attach(&["two", "exporter/0-1"], 1, &["in use by VM one"]);
    attach(
        &["one", "exporter/0-1", "--port", "2"],
        1,
        &["port 2", "taken by exporter/0-1"],
    );
    let detach = rig.xl_vusb(0, &["detach", "one", "3"]).unwrap();
    refused(&detach, 1, &["nothing is attached at port 3"]);
    assert_eq!(rig.stop().unwrap(), Vec::<String>::new());
}

#[test]
fn an_exporter_that_does_not_answer() {
    let rig = rig(&RigOptions::default());
    domain(&rig, "one");
    rig.exporter.pause(true);
    let output = rig.xl_vusb(0, &["attach", "one", "exporter/0-1"]).unwrap();
    rig.exporter.pause(false);
    refused(&output, 1, &["exporter exporter does not answer"]);
    rig.wait_for_exporter().unwrap();
}

#[test]
fn an_exporter_of_another_pool() {
    let rig = rig(&RigOptions {
        foreign_exporter: true,
        ..RigOptions::default()
    });
    domain(&rig, "one");
    // Until the first attempt has failed it is just not connected.
    let mut text = String::new();
    for _ in 0..200 {
        let output = rig.xl_vusb(0, &["attach", "one", "exporter/0-1"]).unwrap();
        assert_eq!(output.status.code(), Some(1));
        text = String::from_utf8_lossy(&output.stderr).into_owned();
        if !text.contains("not connected yet") {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(text.contains("is not of our pool's CA"), "{text}");
    let exporters = rig.xl_vusb(0, &["exporters"]).unwrap();
    let text = String::from_utf8_lossy(&exporters.stdout);
    assert!(text.contains("is not of our pool's CA"), "{text}");
}

#[test]
fn a_policy_that_refuses() {
    let allowed = uuid_text(&DomainConfig::new("x"));
    let rig = rig(&RigOptions {
        policy: format!("[[allow]]\ndevice = \"*\"\nvm = \"{allowed}\"\nhost = \"*\"\n"),
        ..RigOptions::default()
    });
    let config = domain(&rig, "one");
    let output = rig.xl_vusb(0, &["attach", "one", "exporter/0-1"]).unwrap();
    let uuid = uuid_text(&config);
    refused(
        &output,
        1,
        &["policy refuses", "0-1", &uuid, "host-a", "exporter.toml"],
    );
}

#[test]
fn without_a_policy_nobody_sees_anything() {
    let rig = rig(&RigOptions {
        policy: String::new(),
        ..RigOptions::default()
    });
    domain(&rig, "one");
    let output = rig.xl_vusb(0, &["attach", "one", "exporter/0-1"]).unwrap();
    assert_eq!(output.status.code(), Some(1));
    let devices = rig.xl_vusb(0, &["devices"]).unwrap();
    let text = String::from_utf8_lossy(&devices.stdout);
    assert!(!text.contains("0-1"), "{text}");
}

fn uuid_text(config: &DomainConfig) -> String {
    config.uuid.to_string()
}

#[test]
fn a_configuration_with_an_unknown_key() {
    let rig = rig(&RigOptions::default());
    let config = rig.dir().join("wrong.toml");
    std::fs::write(&config, "[hand-off]\nquiese-ms = 3\n").unwrap();
    let output = Command::new(programs::path("vusbd-sim").unwrap())
        .arg("--host-dir")
        .arg(rig.hosts[0].dir())
        .arg("--config")
        .arg(&config)
        .output()
        .unwrap();
    refused(&output, 1, &["wrong.toml", "line 2", "quiese-ms"]);
    std::fs::write(&config, "lisen = \"127.0.0.1:1\"\n").unwrap();
    let output = Command::new(programs::path("vusb-exporter").unwrap())
        .arg("--config")
        .arg(&config)
        .output()
        .unwrap();
    refused(&output, 1, &["wrong.toml", "line 1", "lisen"]);
    assert!(rig.hosts[0].vusbd_runs());
}

#[test]
fn a_daemon_that_is_not_running() {
    let rig = rig(&RigOptions::default());
    let socket = rig.dir().join("nothing.sock");
    let output = Command::new(programs::path("xl-vusb").unwrap())
        .arg("--socket")
        .arg(&socket)
        .arg("list")
        .output()
        .unwrap();
    refused(&output, 2, &["vusbd is not running", "nothing.sock"]);
}
