// SPDX-License-Identifier: GPL-3.0-or-later
//! The program itself, against a socket that speaks the daemon's types.

#[path = "command/json.rs"]
mod json;
#[path = "command/libvirt.rs"]
mod libvirt;
#[path = "command/migrate.rs"]
mod migrate;
#[path = "command/other_config.rs"]
mod other_config;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use control::{
    Attachment, Counters, Forecast, HostForecast, Outcome, Request, Response, Toolstack,
    WhenExchanged,
};
use session::control::Refusal;
use session::{
    DeviceId, DeviceInfo, DeviceSelector, DeviceState, LeasePhase, OnMigrate, Speed, StashCounters,
    VmUuid,
};

const REASON: &str = "its driver cannot resume: load xen-vusb-hcd in web";
const VM: &str = "6f7d3c1e-8b0a-4f0e-9d6e-2a1b3c4d5e6f";

/// A directory with a fake daemon's socket and, for `migrate` and the hooks, fake programs.
struct Host(PathBuf);

impl Host {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "xl-vusb-command-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("bin")).unwrap();
        Self(dir)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("vusbd.sock")
    }

    /// Answers one caller with `response` and returns what it asked.
    fn daemon(&self, response: Response) -> JoinHandle<Request> {
        self.daemon_that_says(&serde_json::to_string(&response).unwrap())
    }

    /// The same with any text.
    fn daemon_that_says(&self, answer: &str) -> JoinHandle<Request> {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let answer = format!("{answer}\n");
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut asked = String::new();
            BufReader::new(&stream).read_line(&mut asked).unwrap();
            (&stream).write_all(answer.as_bytes()).unwrap();
            serde_json::from_str(&asked).unwrap()
        })
    }

    /// A program of this name on the path, a shell script. A child writes it: were it open for
    /// writing here while another test forks, running it could fail with ETXTBSY.
    fn program(&self, name: &str, script: &str) {
        let path = self.0.join("bin").join(name);
        let written = Command::new("sh")
            .args(["-c", r#"printf '%s\n' "$1" >"$0" && chmod 755 "$0""#])
            .arg(&path)
            .arg(format!("#!/bin/sh\n{script}"))
            .status()
            .unwrap();
        assert!(written.success());
    }

    fn run(&self, program: impl AsRef<Path>, arguments: &[&str]) -> Output {
        let path = std::env::var("PATH").unwrap_or_default();
        Command::new(program.as_ref())
            .args(arguments)
            .env("PATH", format!("{}:{path}", self.0.join("bin").display()))
            .output()
            .unwrap()
    }

    fn xl_vusb(&self, arguments: &[&str]) -> Output {
        let socket = self.socket();
        let mut all = vec!["--socket", socket.to_str().unwrap()];
        all.extend(arguments);
        self.run(env!("CARGO_BIN_EXE_xl-vusb"), &all)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn status(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn vm() -> VmUuid {
    VM.parse().unwrap()
}

fn attachment() -> Attachment {
    Attachment {
        exporter: "pi4".into(),
        device: DeviceInfo {
            id: DeviceId("1-1.2".into()),
            vendor: 0x0951,
            product: 0x1666,
            serial: None,
            name: "Kingston DataTraveler".into(),
            speed: Speed::High,
            classes: vec![8],
            state: DeviceState::Leased {
                vm: vm(),
                vm_name: "web".into(),
            },
        },
        vm: vm(),
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
        counters: Counters::default(),
    }
}

fn on_host(host: &str, outcome: Outcome) -> HostForecast {
    HostForecast {
        host: host.into(),
        connected: true,
        seen_seconds: Some(0),
        version: Some("0.1.0".into()),
        outcome,
        reason: REASON.into(),
    }
}

fn check(outcome: Outcome) -> Response {
    Response::Check(vec![Forecast {
        attachment: attachment(),
        outcome,
        reason: REASON.into(),
        hosts: vec![on_host("xen2", outcome)],
    }])
}

#[test]
fn every_option_of_attach_reaches_the_daemon() {
    let host = Host::new();
    let daemon = host.daemon(Response::Attached(Box::new(attachment())));
    let output = host.xl_vusb(&[
        "attach",
        "web",
        "pi4/0951:1666",
        "--controller",
        "0",
        "--port",
        "1",
        "--on-migrate",
        "risk",
        "--on-exchange",
        "none",
        "--exchange-seconds",
        "7",
    ]);
    assert_eq!(status(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).starts_with("attached pi4/1-1.2 (Kingston DataTraveler) to web"));
    assert_eq!(
        daemon.join().unwrap(),
        Request::Attach {
            domain: "web".into(),
            exporter: "pi4".into(),
            device: DeviceSelector::Kind {
                vendor: 0x0951,
                product: 0x1666,
                serial: None
            },
            controller: Some(0),
            port: Some(1),
            on_migrate: Some(OnMigrate::Risk),
            on_exchange: Some(WhenExchanged::None),
            exchange_seconds: Some(7),
            persistent: false,
        }
    );
}

#[test]
fn every_other_command_asks_its_question() {
    let questions = [
        (
            vec!["exporters"],
            Response::Exporters(vec![]),
            Request::Exporters,
        ),
        (
            vec!["devices"],
            Response::Devices {
                devices: vec![],
                unreachable: vec![],
            },
            Request::Devices,
        ),
        (vec!["list"], Response::Attachments(vec![]), Request::List),
        (
            vec!["detach", "web", "3", "--controller", "2"],
            Response::Detached(Box::new(attachment())),
            Request::Detach {
                domain: "web".into(),
                controller: Some(2),
                port: 3,
            },
        ),
        (
            vec!["release", "pi4/1-1.2", "--force", "42"],
            Response::Released {
                exporter: "pi4".into(),
                device: Box::new(attachment().device),
                vm_name: "web".into(),
            },
            Request::Release {
                exporter: "pi4".into(),
                device: "1-1.2".parse().unwrap(),
                force: Some(session::Epoch(42)),
            },
        ),
        (
            vec!["check", VM],
            Response::Check(vec![]),
            Request::Check {
                domain: VM.into(),
                toolstack: None,
                to: vec![],
            },
        ),
        (
            vec!["check", VM, "--to", "xen2", "--to", "xen3"],
            Response::Check(vec![]),
            Request::Check {
                domain: VM.into(),
                toolstack: None,
                to: vec!["xen2".into(), "xen3".into()],
            },
        ),
        (
            vec!["hosts", "forget", "xen9"],
            Response::Forgotten {
                host: "xen9".into(),
                exporters: vec!["pi4".into()],
            },
            Request::ForgetHost {
                host: "xen9".into(),
            },
        ),
        (
            vec!["check", VM, "--toolstack", "libvirt"],
            Response::Check(vec![]),
            Request::Check {
                domain: VM.into(),
                toolstack: Some(Toolstack::Libvirt),
                to: vec![],
            },
        ),
    ];
    for (arguments, answer, question) in questions {
        let host = Host::new();
        let daemon = host.daemon(answer);
        let output = host.xl_vusb(&arguments);
        assert_eq!(status(&output), 0, "{arguments:?}: {}", stderr(&output));
        assert_eq!(daemon.join().unwrap(), question);
    }
}

#[test]
fn a_refusal_is_one_line_and_status_1() {
    let refusals = [
        Refusal::UnknownDevice("1-9".into()).to_string(),
        Refusal::Busy {
            device: DeviceId("1-1.2".into()),
            vm: vm(),
            vm_name: "mail".into(),
        }
        .to_string(),
        Refusal::Policy {
            device: DeviceId("1-1.2".into()),
            vm: vm(),
            host: "xen1".into(),
        }
        .to_string(),
        "domain web has no USB controller; add usbctrl=['type=pv,version=2,ports=4'] to its \
         config, or run: xl usbctrl-attach web type=pv version=2 ports=4"
            .to_owned(),
        "port 1 of controller 0 is taken by pi4/1-3".to_owned(),
    ];
    for refusal in refusals {
        let host = Host::new();
        let _daemon = host.daemon(Response::Error(refusal.clone()));
        let output = host.xl_vusb(&["attach", "web", "pi4/1-1.2"]);
        assert_eq!(status(&output), 1);
        assert_eq!(stderr(&output), format!("xl-vusb: {refusal}\n"));
        assert_eq!(stdout(&output), "");
    }
}

#[test]
fn a_daemon_cannot_drive_the_terminal() {
    let host = Host::new();
    let _daemon = host.daemon(Response::Error("no\x1b]0;x\x07\nsecond line".into()));
    let output = host.xl_vusb(&["list"]);
    assert_eq!(stderr(&output), "xl-vusb: no?]0;x??second line\n");
}

#[test]
fn without_a_daemon_the_remedy_is_named() {
    let host = Host::new();
    for arguments in [&["list"][..], &["migrate", "web", "xen2"]] {
        let output = host.xl_vusb(arguments);
        assert_eq!(status(&output), 2);
        assert!(
            stderr(&output).starts_with("xl-vusb: vusbd is not running: systemctl start vusbd"),
            "{}",
            stderr(&output)
        );
        assert_eq!(stderr(&output).lines().count(), 1);
    }
}

#[test]
fn an_answer_to_another_question_is_refused() {
    let host = Host::new();
    let _daemon = host.daemon(Response::Attachments(vec![]));
    let output = host.xl_vusb(&["check", "web"]);
    assert_eq!(status(&output), 2);
    assert!(stderr(&output).contains("must be of one version"));
}

#[test]
fn check_ends_with_1_only_when_something_forbids_a_migration() {
    for (outcome, expected) in [
        (Outcome::Seamless, 0),
        (Outcome::Replug, 0),
        (Outcome::Refused, 1),
        (Outcome::Lost, 1),
    ] {
        for json in [false, true] {
            let host = Host::new();
            let _daemon = host.daemon(check(outcome));
            let mut arguments = vec!["check", "web"];
            arguments.extend(json.then_some("--json"));
            let output = host.xl_vusb(&arguments);
            assert_eq!(status(&output), expected, "{outcome:?}");
            assert!(stdout(&output).contains("load xen-vusb-hcd in web"));
        }
    }
}

#[test]
fn a_quiet_check_prints_refusals_only() {
    let host = Host::new();
    let _daemon = host.daemon(check(Outcome::Refused));
    let output = host.xl_vusb(&["check", "web", "--quiet"]);
    assert_eq!(
        stdout(&output),
        "to xen2: pi4/1-1.2 (Kingston DataTraveler), controller 0 port 1: \
         its driver cannot resume: load xen-vusb-hcd in web\n"
    );
    let host = Host::new();
    let _daemon = host.daemon(check(Outcome::Seamless));
    assert_eq!(stdout(&host.xl_vusb(&["check", "-q", "web"])), "");
}

#[test]
fn pool_commands_print_what_to_do_next() {
    let host = Host::new();
    let dir = host.0.join("pool");
    let dir = dir.to_str().unwrap();
    let output = host.xl_vusb(&["pool", "init", "--dir", dir, "--name", "lab"]);
    assert_eq!(status(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).contains(&format!("next: xl-vusb pool issue HOST --dir {dir}")));
    assert_eq!(stderr(&output), "");

    let output = host.xl_vusb(&["pool", "issue", "xen1", "--dir", dir]);
    assert_eq!(status(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).contains("copy them to /etc/xen-vusb/tls/ on xen1:"));
    assert!(stdout(&output).contains(&format!("{dir}/xen1/host.key root@xen1:")));

    let output = host.xl_vusb(&["pool", "init", "--dir", dir]);
    assert_eq!(status(&output), 1);
    assert_eq!(stderr(&output).lines().count(), 1);

    let out = host.0.join("out");
    let out = out.to_str().unwrap();
    let output = host.xl_vusb(&[
        "pool", "issue", "xen2", "--dir", dir, "--out", out, "--json",
    ]);
    let json: serde_json::Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!(json["issued"]["host"], "xen2");
    assert_eq!(json["issued"]["dir"], out);
    assert_eq!(json["issued"]["warnings"], serde_json::json!([]));
}
