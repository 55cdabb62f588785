// SPDX-License-Identifier: GPL-3.0-or-later
//! The program tells systemd that it is ready and alive.

mod common;

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command};
use std::time::Duration;

use common::Pool;

/// Ends the program with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_program_feeds_the_watchdog_once_it_is_ready() {
    let pool = Pool::new();
    let config = pool.configure("", false);
    let socket = pool.dir.join("notify");
    let systemd = UnixDatagram::bind(&socket).unwrap();
    systemd
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let start = |watchdog: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vusb-exporter"));
        command
            .arg("--config")
            .arg(&config)
            .env("NOTIFY_SOCKET", &socket);
        command
            .env_remove("WATCHDOG_PID")
            .env_remove("WATCHDOG_USEC");
        if let Some(limit) = watchdog {
            command.env("WATCHDOG_USEC", limit);
        }
        Running(command.spawn().unwrap())
    };
    let hear = || {
        let mut text = [0; 100];
        let len = systemd.recv(&mut text)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&text[..len]).into_owned())
    };

    let running = start(Some("200000"));
    // Nobody may be told that it is alive before it serves.
    let mut heard = Vec::new();
    while heard.len() < 6 {
        heard.push(hear().unwrap());
    }
    assert_eq!(heard[0], "READY=1\n");
    assert!(heard[1..].iter().all(|h| h == "WATCHDOG=1\n"), "{heard:?}");
    drop(running);

    // A unit without WatchdogSec=.
    while systemd.set_nonblocking(true).is_ok() && hear().is_ok() {}
    systemd.set_nonblocking(false).unwrap();
    let _running = start(None);
    assert_eq!(hear().unwrap(), "READY=1\n");
    systemd
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let silence = hear().unwrap_err();
    assert_eq!(silence.kind(), ErrorKind::WouldBlock);
}
