// SPDX-License-Identifier: GPL-3.0-or-later
//! vusbd tells systemd that it is ready and alive, also while it waits for xenstored.

use std::os::unix::net::UnixDatagram;
use std::process::Child;
use std::time::Duration;

use sim_scenarios::programs;
use sim_scenarios::rig::{Rig, RigOptions};

/// Ends the program with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn vusbd_feeds_the_watchdog_also_while_xenstored_hangs() {
    programs::build().unwrap();
    let rig = Rig::start(&RigOptions::default()).unwrap();
    let host = &rig.hosts[0];
    host.terminate_vusbd().unwrap();
    let socket = rig.dir().join("notify");
    let systemd = UnixDatagram::bind(&socket).unwrap();
    let limit = Some(Duration::from_secs(30));
    systemd.set_read_timeout(limit).unwrap();
    let mut command = host.vusbd_command().unwrap();
    command.env("NOTIFY_SOCKET", &socket);
    command.env_remove("WATCHDOG_PID");
    command.env("WATCHDOG_USEC", "200000");
    let running = Running(command.spawn().unwrap());
    let hear = || {
        let mut text = [0; 100];
        let len = systemd.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..len]).into_owned()
    };
    assert_eq!(hear(), "READY=1\n", "before it is said to be alive");
    assert_eq!(hear(), "WATCHDOG=1\n");
    // What changes there now is asked about, and not answered.
    host.xl.store().unwrap().write("/vm/odd", "").unwrap();
    host.pause_xen(true);
    while systemd.set_nonblocking(true).is_ok() && systemd.recv(&mut [0; 100]).is_ok() {}
    systemd.set_nonblocking(false).unwrap();
    let heard: Vec<_> = (0..6).map(|_| hear()).collect();
    host.pause_xen(false);
    assert!(heard.iter().all(|h| h == "WATCHDOG=1\n"), "{heard:?}");
    drop(running);
    host.start_vusbd().unwrap();
    assert_eq!(rig.stop().unwrap(), Vec::<String>::new());
}
