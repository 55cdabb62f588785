// SPDX-License-Identifier: GPL-3.0-or-later
#![allow(dead_code, reason = "each test file is a program of its own")]
//! Simulated devices on this machine's bus: `usbip-sim` serves them, `vhci_hcd` attaches them.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

const VHCI: &str = "/sys/devices/platform/vhci_hcd.0";
/// A port's state when nothing is attached, and when a device is in use (tools/usb/usbip).
const FREE: &str = "004";
const USED: &str = "006";

/// A running `usbip-sim`. Its devices are unplugged when it is dropped.
pub struct Simulator {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    address: String,
    ports: Vec<u32>,
}

impl Simulator {
    /// With these devices, see its help.
    pub fn start(devices: &[&str]) -> Self {
        let program = std::env::var("XEN_VUSB_USBIP_SIM").expect("XEN_VUSB_USBIP_SIM is not set");
        let mut child = Command::new(program)
            .args(["--listen", "127.0.0.1:0"])
            .args(devices)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("usbip-sim does not start");
        let commands = child.stdin.take().unwrap();
        let mut answers = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap();
        let address = address.to_owned();
        for _ in devices {
            answers.read_line(&mut line).unwrap();
        }
        Self {
            child,
            commands,
            answers,
            address,
            ports: Vec::new(),
        }
    }

    /// Runs a command; its answer, of one line.
    pub fn command(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// One of the numbers that `stats` tells of the device `1-number`.
    pub fn stat(&mut self, number: u32, name: &str) -> u64 {
        let stats = self.command(&format!("stats 1-{number}"));
        let value = stats
            .split_whitespace()
            .filter_map(|pair| pair.split_once('='))
            .find(|(key, _)| *key == name);
        let (_, value) = value.unwrap_or_else(|| panic!("no {name} in {stats}"));
        value.parse().unwrap()
    }

    /// Stops it: its devices answer nothing any more.
    pub fn stop(&self) {
        self.signal("STOP");
    }

    /// It goes on.
    pub fn go_on(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let kill = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(kill.expect("no kill").success());
    }

    /// Attaches the device `1-number`; its place on this machine's bus.
    pub fn attach(&mut self, number: u32) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_nodelay(true).unwrap();
        // OP_REQ_IMPORT of USB/IP 1.1.1
        let mut request = vec![0x01, 0x11, 0x80, 0x03, 0, 0, 0, 0];
        request.extend_from_slice(format!("1-{number}").as_bytes());
        request.resize(8 + 32, 0);
        stream.write_all(&request).unwrap();
        let mut reply = [0; 8 + 312];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..8], [1, 0x11, 0, 3, 0, 0, 0, 0], "not imported");
        let field = |at: usize| u32::from_be_bytes(reply[at..at + 4].try_into().unwrap());
        let at = 8 + 256 + 32;
        let (id, speed) = (field(at) << 16 | field(at + 4), field(at + 8));
        let hub = if speed >= 5 { "ss" } else { "hs" };
        let port = ports()
            .into_iter()
            .find(|p| p.hub == hub && p.state == FREE)
            .expect("no free port")
            .number;
        let attach = format!("{port} {} {id} {speed}", stream.as_raw_fd());
        // The kernel keeps the socket.
        fs::write(format!("{VHCI}/attach"), attach).expect("vhci_hcd does not attach");
        self.ports.push(port);
        loop {
            let used = ports().into_iter().find(|p| p.number == port).unwrap();
            let configured = |place: &str| {
                let value = format!("/sys/bus/usb/devices/{place}/bConfigurationValue");
                fs::read_to_string(value).is_ok_and(|v| !v.trim().is_empty())
            };
            if used.state == USED && configured(&used.place) {
                // Its drivers bind now.
                thread::sleep(Duration::from_millis(300));
                return used.place;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        for port in &self.ports {
            // Fails for one that was unplugged.
            let _ = fs::write(format!("{VHCI}/detach"), port.to_string());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Port {
    hub: String,
    number: u32,
    state: String,
    place: String,
}

fn ports() -> Vec<Port> {
    let status = fs::read_to_string(format!("{VHCI}/status")).expect("no vhci_hcd");
    let port = |line: &str| {
        let mut words = line.split_whitespace().map(str::to_owned);
        Some(Port {
            hub: words.next()?,
            number: words.next()?.parse().ok()?,
            state: words.next()?,
            place: words.nth(3)?,
        })
    };
    status.lines().skip(1).filter_map(port).collect()
}

/// The kernel driver of a device's interface.
pub fn driver(device: &str, interface: u8) -> Option<String> {
    let devices = "/sys/bus/usb/devices";
    let value = fs::read_to_string(format!("{devices}/{device}/bConfigurationValue")).ok()?;
    let link = format!("{devices}/{device}:{}.{interface}/driver", value.trim());
    let target = fs::read_link(link).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}
