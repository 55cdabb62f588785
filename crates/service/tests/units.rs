// SPDX-License-Identifier: GPL-3.0-or-later
//! The systemd units that are shipped: each daemon reaches, in its unit's sandbox, every path that
//! its sources name; and systemd watches whether it is alive.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A daemon of this workspace.
struct Daemon {
    package: &'static str,
    unit: &'static str,
    /// What libraries of others read for it: libusb, getaddrinfo.
    others: &'static [&'static str],
}

const EXPORTER: Daemon = Daemon {
    package: "exporter",
    unit: "exporter/dist/vusb-exporter.service",
    others: &["/dev/bus/usb", "/sys/bus/usb/devices", "/etc/resolv.conf"],
};
const VUSBD: Daemon = Daemon {
    package: "backend",
    unit: "backend/dist/vusbd.service",
    others: &["/etc/hosts", "/etc/resolv.conf"],
};

/// Paths of files begin with these. Others are xenstore's.
const ROOTS: [&str; 11] = [
    "/boot/", "/dev/", "/etc/", "/home/", "/proc/", "/root/", "/run/", "/sys/", "/tmp/", "/usr/",
    "/var/",
];
/// Named in a crate that a daemon shares with a frontend, and opened only there.
const NOT_OPENED: [&str; 1] = ["/dev/xen/gntalloc"];
/// `DevicePolicy=closed` allows these by itself (systemd.resource-control(5)).
const DEVICES_OF_ALL: [&str; 6] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/log",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

impl Daemon {
    fn unit(&self) -> Unit {
        Unit(fs::read_to_string(root().join(self.unit)).unwrap())
    }

    /// Every absolute path that it may read.
    fn paths(&self) -> BTreeSet<String> {
        let mut packages = BTreeSet::new();
        add_package(&root().join(self.package), &mut packages);
        assert!(packages.len() > 3, "{packages:?}");
        let mut found: BTreeSet<_> = self.others.iter().map(|p| (*p).to_owned()).collect();
        for package in packages {
            literals(&package.join("src"), &mut found);
        }
        found.retain(|path| !NOT_OPENED.contains(&path.as_str()));
        found
    }
}

/// A package, and those of this workspace that it uses.
fn add_package(dir: &Path, packages: &mut BTreeSet<PathBuf>) {
    if !packages.insert(dir.to_owned()) {
        return;
    }
    let manifest = fs::read_to_string(dir.join("Cargo.toml")).unwrap();
    let dependencies = manifest.split("[dependencies]").nth(1).unwrap_or_default();
    let dependencies = dependencies.split("\n[").next().unwrap_or_default();
    for line in dependencies.lines() {
        let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
        let other = root().join("crates").join(name);
        if !name.is_empty() && other.join("Cargo.toml").exists() {
            add_package(&other, packages);
        }
    }
}

/// Adds the absolute paths in the string literals of sources, but for those of tests.
fn literals(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.file_stem().is_some_and(|stem| stem == "tests") {
            continue;
        }
        if path.is_dir() {
            literals(&path, found);
            continue;
        }
        let source = fs::read_to_string(&path).unwrap();
        let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for line in code.lines().filter(|l| !l.trim_start().starts_with("//")) {
            for (at, _) in line.match_indices("\"/") {
                let literal = line[at + 1..].split('"').next().unwrap_or_default();
                // Up to what is filled in at run time.
                let literal = literal.split('{').next().unwrap_or_default();
                // What names of nodes begin with; one that is opened has more.
                if literal != "/dev/" && ROOTS.iter().any(|root| literal.starts_with(root)) {
                    found.insert(literal.to_owned());
                }
            }
        }
    }
}

/// The text of a unit.
struct Unit(String);

impl Unit {
    /// The values of a directive.
    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let lines = self.0.lines().map(str::trim);
        lines.filter_map(move |line| line.strip_prefix(name)?.strip_prefix('='))
    }

    /// The value that holds.
    fn get<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.all(name).last()
    }

    fn is_on(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|v| ["yes", "true", "on", "1"].contains(&v))
    }

    /// The directive that hides a path from the service, or does not let it read what is there.
    fn hides(&self, path: &str) -> Option<String> {
        let below = |dir: &str| {
            let rest = path.strip_prefix(dir.trim_end_matches('/'));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        for name in ["InaccessiblePaths", "TemporaryFileSystem"] {
            let dirs = self.all(name).flat_map(str::split_whitespace);
            for dir in dirs {
                let dir = dir.trim_start_matches(['-', '+']);
                if below(dir.split(':').next().unwrap_or_default()) {
                    return Some(format!("{name}={dir}"));
                }
            }
        }
        let of_processes = || {
            let first = path.trim_start_matches("/proc/").split('/').next();
            first.is_some_and(|f| f.starts_with("self") || f.bytes().all(|b| b.is_ascii_digit()))
        };
        if below("/proc") && !of_processes() && self.get("ProcSubset") == Some("pid") {
            return Some("ProcSubset=pid".to_owned());
        }
        let of_others = below("/proc")
            && path
                .split('/')
                .nth(2)
                .is_some_and(|f| f.parse::<u32>().is_ok());
        if let Some(protect) = self.get("ProtectProc")
            && of_others
            && protect != "default"
        {
            return Some(format!("ProtectProc={protect}"));
        }
        let homes = ["/home", "/root", "/run/user"];
        if homes.iter().any(|h| below(h))
            && self
                .get("ProtectHome")
                .is_some_and(|v| v != "no" && v != "read-only")
        {
            return Some("ProtectHome=".to_owned());
        }
        if (below("/tmp") || below("/var/tmp")) && self.is_on("PrivateTmp") {
            return Some("PrivateTmp=".to_owned());
        }
        let is_everybodys = DEVICES_OF_ALL.iter().any(|d| below(d));
        if below("/dev") && !is_everybodys {
            if self.is_on("PrivateDevices") {
                return Some("PrivateDevices=".to_owned());
            }
            let allowed = self.all("DeviceAllow").any(|allow| {
                let device = allow.split_whitespace().next().unwrap_or_default();
                match device {
                    "char-usb_device" => below("/dev/bus/usb"),
                    device => below(device),
                }
            });
            if !allowed && self.get("DevicePolicy").is_some_and(|p| p != "auto") {
                return Some("DevicePolicy= without a DeviceAllow=".to_owned());
            }
        }
        None
    }
}

#[test]
fn every_path_that_the_sources_name_is_there_in_the_sandbox() {
    for (daemon, must) in [
        (&EXPORTER, "/proc/sys/kernel/random/boot_id"),
        (&EXPORTER, "/proc/1/mountinfo"),
        (&VUSBD, "/dev/xen/gntdev"),
    ] {
        let paths = daemon.paths();
        assert!(paths.contains(must), "the sources were not read: {paths:?}");
        let unit = daemon.unit();
        let hidden: Vec<_> = paths
            .iter()
            .filter_map(|path| Some(format!("{path}: {}", unit.hides(path)?)))
            .collect();
        assert!(hidden.is_empty(), "{} hides {hidden:#?}", daemon.unit);
    }
}

#[test]
fn a_directive_that_hides_a_path_is_found() {
    for (directive, path) in [
        ("ProcSubset=pid", "/proc/sys/kernel/random/boot_id"),
        ("ProcSubset=pid", "/proc/swaps"),
        ("ProtectProc=invisible", "/proc/1/mountinfo"),
        ("PrivateDevices=yes", "/dev/bus/usb/001/002"),
        ("DevicePolicy=closed", "/dev/xen/evtchn"),
        ("ProtectHome=yes", "/home/user/disk.img"),
        ("PrivateTmp=yes", "/tmp/socket"),
        ("InaccessiblePaths=-/sys /boot", "/sys/bus/usb/devices"),
        ("TemporaryFileSystem=/var:ro", "/var/lib/xen-vusb"),
    ] {
        let unit = Unit(format!("[Service]\n{directive}\n"));
        assert!(unit.hides(path).is_some(), "{directive} {path}");
        assert_eq!(Unit("[Service]\n".to_owned()).hides(path), None);
    }
    let unit = Unit("ProcSubset=pid\nDevicePolicy=closed\nDeviceAllow=char-usb_device rw".into());
    for path in [
        "/proc/self/mountinfo",
        "/dev/bus/usb",
        "/dev/null",
        "/system",
    ] {
        assert_eq!(unit.hides(path), None, "{path}");
    }
}

/// What the unit says about /proc, mounted so: with the kernel's own idea of what that hides.
#[test]
fn what_is_read_in_proc_can_be_read_there() {
    for daemon in [&EXPORTER, &VUSBD] {
        let unit = daemon.unit();
        let mut options = vec!["rw"];
        if unit.get("ProcSubset") == Some("pid") {
            options.push("subset=pid");
        }
        if let Some(protect) = unit.get("ProtectProc") {
            assert_eq!(protect, "invisible");
            options.push("hidepid=invisible");
        }
        let paths = daemon.paths();
        let paths = paths.iter().filter(|p| p.starts_with("/proc/"));
        let paths: Vec<_> = paths.filter(|p| Path::new(p).exists()).collect();
        let script = format!(
            "mount -t proc -o {} proc /proc && echo mounted && for path in \"$@\"; do \
             test -e \"$path\" || echo \"$path\"; done",
            options.join(",")
        );
        let output = Command::new("unshare")
            .args([
                "--user",
                "--pid",
                "--mount",
                "--fork",
                "--map-root-user",
                "--mount-proc",
            ])
            .args(["sh", "-c", &script, "sh"])
            .args(paths)
            .output();
        let said = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
        match said
            .as_deref()
            .unwrap_or_default()
            .strip_prefix("mounted\n")
        {
            Some(hidden) => assert_eq!(hidden, "", "hidden by {}", daemon.unit),
            // The table above holds all the same.
            None => eprintln!("{}: not tried, /proc cannot be mounted here", daemon.unit),
        }
    }
}

#[test]
fn systemd_watches_both_daemons() {
    for daemon in [EXPORTER, VUSBD] {
        let unit = daemon.unit();
        assert_eq!(unit.get("Type"), Some("notify"), "{}", daemon.unit);
        assert_eq!(unit.get("Restart"), Some("always"), "{}", daemon.unit);
        let watchdog = unit.get("WatchdogSec").and_then(|s| s.strip_suffix('s'));
        let watchdog = watchdog.unwrap_or_else(|| panic!("{} has no WatchdogSec=", daemon.unit));
        let seconds: u32 = watchdog.parse().unwrap();
        // Longer than a computer under load takes, shorter than the patience of guests (30 s for a disk).
        assert!((10..30).contains(&seconds), "{}: {seconds}", daemon.unit);
    }
}
