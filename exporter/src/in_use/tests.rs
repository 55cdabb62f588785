// SPDX-License-Identifier: GPL-3.0-or-later
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use session::Speed;
use session::lease::{Allow, Match, VmMatch};

use super::*;

const STICK: &str = "sys/devices/pci0000:00/usb1/1-2";

/// A tree like that of a machine, with a USB stick of two partitions, `sdb`, at 1-2.
struct Machine(PathBuf);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Machine {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("exporter-in-use-{}-{unique}", std::process::id());
        let machine = Self(std::env::temp_dir().join(name));
        machine.write("proc/filesystems", "\text4\n");
        machine.write("proc/swaps", "Filename Type Size Used Priority\n");
        machine.mountinfo("22 1 8:2 / / rw shared:1 - ext4 /dev/sda2 rw\n");
        machine.link("sys/bus/usb/devices/1-2", STICK);
        machine.link("sys/bus/usb/devices/1-3", "sys/devices/pci0000:00/usb1/1-3");
        machine.block("sda2", "8:2", "sys/devices/pci0000:00/ata1/block/sda/sda2");
        let disk = format!("{STICK}/1-2:1.0/host6/block/sdb");
        machine.block("sdb", "8:16", &disk);
        machine.block("sdb1", "8:17", &format!("{disk}/sdb1"));
        machine.block("sdb2", "8:18", &format!("{disk}/sdb2"));
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.path(path), text).unwrap();
    }

    /// A link to a directory, which is made.
    fn link(&self, path: &str, directory: &str) {
        let to = self.0.join(directory);
        fs::create_dir_all(&to).unwrap();
        symlink(to, self.path(path)).unwrap();
    }

    fn mountinfo(&self, text: &str) {
        self.write("proc/1/mountinfo", text);
    }

    /// A block device, of the root file system's disk or any other.
    fn block(&self, name: &str, number: &str, directory: &str) {
        self.link(&format!("sys/class/block/{name}"), directory);
        self.write(&format!("{directory}/dev"), &format!("{number}\n"));
        self.write(&format!("dev/{name}"), "");
    }

    /// A device mapper's device that is made of a partition of the stick.
    fn mapped(&self, number: u32, of: &str, name: &str, uuid: &str) {
        let dm = format!("dm-{number}");
        let directory = format!("sys/devices/virtual/block/{dm}");
        self.block(&dm, &format!("254:{number}"), &directory);
        self.write(&format!("{directory}/dm/name"), &format!("{name}\n"));
        self.write(&format!("{directory}/dm/uuid"), &format!("{uuid}\n"));
        let node = self.path(&format!("dev/mapper/{name}"));
        symlink(format!("../{dm}"), node).unwrap();
        self.holder(of, &dm);
    }

    fn holder(&self, of: &str, holder: &str) {
        self.write(&format!("sys/class/block/{of}/holders/{holder}"), "");
    }

    fn interface(&self, name: &str, directory: &str) {
        self.link(&format!("sys/class/net/{name}"), directory);
    }

    fn keyboard(&self, number: u32, below: &str, keys: &str) {
        let directory = format!("{below}/input/input{number}");
        self.link(&format!("sys/class/input/input{number}"), &directory);
        self.write(&format!("{directory}/capabilities/key"), keys);
    }

    fn user(&self) -> Option<Use> {
        self.user_of("1-2")
    }

    fn user_of(&self, device: &str) -> Option<Use> {
        Snapshot::read(&self.0, Mounts::OfInit).user(&DeviceId(device.to_owned()))
    }

    /// Says how the stick is in use; panics when it is not.
    fn needed(&self) -> String {
        match self.user() {
            Some(Use::Needed(by)) => by,
            other => panic!("{other:?}"),
        }
    }
}

/// Asserts that all these words are in a text.
fn assert_says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "'{word}' is not in: {text}");
    }
}

#[test]
fn a_stick_that_nobody_uses_is_free() {
    let machine = Machine::new();
    assert_eq!(machine.user(), None);
    assert_eq!(machine.user_of("1-3"), None);
    assert_eq!(machine.user_of("9-9"), None);
}

#[test]
fn a_mounted_partition() {
    let machine = Machine::new();
    machine.mountinfo("40 22 8:17 / /media/my\\040stick rw shared:9 - vfat /dev/sdb1 rw\n");
    assert_says(&machine.needed(), &["sdb1", "/media/my stick", "unmount"]);
    assert_eq!(machine.user_of("1-3"), None);
}

#[test]
fn a_file_system_whose_number_is_not_the_disks() {
    let machine = Machine::new();
    machine.mountinfo("40 22 0:55 / /home/u/data rw - btrfs /dev/sdb2 rw,subvol=/\n");
    assert_says(&machine.needed(), &["sdb2", "/home/u/data"]);
}

#[test]
fn a_source_that_is_a_link() {
    let machine = Machine::new();
    let link = machine.path("dev/disk/by-uuid/1234");
    symlink("../../sdb1", link).unwrap();
    machine.mountinfo("40 22 0:55 / /srv rw - btrfs /dev/disk/by-uuid/1234 rw\n");
    assert_says(&machine.needed(), &["sdb1", "/srv"]);
}

#[test]
fn the_second_device_of_a_file_system() {
    let machine = Machine::new();
    machine.block("sdc", "8:32", "sys/devices/pci0000:00/ata2/block/sdc");
    for member in ["sdc", "sdb1"] {
        machine.write(&format!("sys/fs/btrfs/6f7d/devices/{member}"), "");
    }
    machine.mountinfo("40 22 0:55 / /srv rw - btrfs /dev/sdc rw\n");
    assert_says(&machine.needed(), &["sdb1", "btrfs", "/srv"]);
    // Of a mount that nobody sees here.
    machine.mountinfo("");
    assert_says(&machine.needed(), &["sdb1", "btrfs", "6f7d"]);
}

#[test]
fn the_log_of_a_file_system() {
    let machine = Machine::new();
    machine.mountinfo("40 22 8:2 / /srv rw - xfs /dev/sda2 rw,logdev=/dev/sdb1,noquota\n");
    assert_says(&machine.needed(), &["sdb1", "/srv"]);
}

#[test]
fn swap() {
    let machine = Machine::new();
    machine.write(
        "proc/swaps",
        "Filename Type Size Used Priority\n/dev/sdb2 partition 1048572 0 -2\n",
    );
    assert_says(&machine.needed(), &["sdb2", "swapoff /dev/sdb2"]);
}

#[test]
fn a_file_system_in_a_volume_in_an_encrypted_partition() {
    let machine = Machine::new();
    machine.mapped(0, "sdb2", "vault", "CRYPT-LUKS2-11-vault");
    assert_says(
        &machine.needed(),
        &["vault", "sdb2", "cryptsetup close vault"],
    );
    machine.mapped(1, "dm-0", "vg-home", "LVM-22");
    assert_says(
        &machine.needed(),
        &["vg-home", "vgchange", "cryptsetup close vault"],
    );
    machine.mountinfo("40 22 254:1 / /home rw - ext4 /dev/mapper/vg-home rw\n");
    assert_says(
        &machine.needed(),
        &["/home", "unmount", "vgchange", "cryptsetup close vault"],
    );
}

#[test]
fn swap_in_a_volume() {
    let machine = Machine::new();
    machine.mapped(0, "sdb2", "vg-swap", "LVM-22");
    machine.write(
        "proc/swaps",
        "Filename Type Size Used Priority\n/dev/dm-0 partition 1048572 0 -2\n",
    );
    assert_says(&machine.needed(), &["swapoff", "vgchange"]);
}

#[test]
fn raid_bcache_loop_devices_and_whatever_holds_a_disk() {
    let machine = Machine::new();
    machine.block("md0", "9:0", "sys/devices/virtual/block/md0");
    machine.holder("sdb1", "md0");
    assert_says(&machine.needed(), &["mdadm --stop /dev/md0", "sdb1"]);

    let machine = Machine::new();
    machine.write("sys/class/block/sdb2/bcache/state", "");
    assert_says(&machine.needed(), &["bcache", "sdb2"]);

    let machine = Machine::new();
    let directory = "sys/devices/virtual/block/loop3";
    machine.block("loop3", "7:3", directory);
    machine.write(&format!("{directory}/loop/backing_file"), "/dev/sdb1\n");
    assert_says(&machine.needed(), &["losetup --detach /dev/loop3", "sdb1"]);

    let machine = Machine::new();
    machine.holder("sdb", "something");
    assert_says(&machine.needed(), &["something", "sdb"]);
}

#[test]
fn holders_that_hold_each_other_end() {
    let machine = Machine::new();
    machine.mapped(0, "sdb1", "a", "");
    machine.mapped(1, "dm-0", "b", "");
    machine.holder("dm-1", "dm-0");
    assert_says(&machine.needed(), &["sdb1"]);
}

#[test]
fn a_member_of_a_zfs_pool_where_pools_are_imported() {
    let machine = Machine::new();
    machine.write(
        "run/udev/data/b8:17",
        "S:disk/by-id/x\nE:ID_FS_TYPE=zfs_member\n",
    );
    assert_eq!(machine.user(), None);
    machine.write("proc/spl/kstat/zfs/tank/state", "ONLINE\n");
    assert_says(&machine.needed(), &["tank", "zpool export"]);
}

#[test]
fn what_cannot_be_read_is_not_taken_for_nothing() {
    let machine = Machine::new();
    fs::remove_file(machine.path("proc/swaps")).unwrap();
    // A kernel without swap.
    assert_eq!(machine.user(), None);
    // ProcSubset=pid.
    fs::remove_file(machine.path("proc/filesystems")).unwrap();
    assert_says(&machine.needed(), &["/proc/swaps", "ProcSubset"]);
    assert_eq!(machine.user_of("1-3"), None, "it is no disk");

    // ProtectProc=invisible: systemd has taken the mounts below /home out of ours.
    let machine = Machine::new();
    fs::remove_file(machine.path("proc/1/mountinfo")).unwrap();
    machine.write("proc/self/mountinfo", "");
    assert_says(&machine.needed(), &["/proc/1/mountinfo", "ProtectProc"]);
}

#[test]
fn mounts_of_other_processes_count_at_the_last_moment() {
    let machine = Machine::new();
    machine.write(
        "proc/77/mountinfo",
        "40 22 8:17 / /data rw - ext4 /dev/sdb1 rw\n",
    );
    assert_eq!(machine.user(), None);
    let all = Snapshot::read(&machine.0, Mounts::OfAll);
    let used = all.user(&DeviceId("1-2".to_owned()));
    assert!(matches!(used, Some(Use::Needed(by)) if by.contains("/data")));
}

#[test]
fn a_network_adapter_with_a_route() {
    let directory = format!("{STICK}/1-2:1.0/net/eth1");
    let route = "Iface\tDestination\tGateway \tFlags\n\
                 eth1\t00000000\t0101A8C0\t0003\n";
    let machine = Machine::new();
    machine.interface("eth1", &directory);
    machine.interface("eth0", "sys/devices/pci0000:00/net/eth0");
    assert_eq!(machine.user(), None);
    machine.write("proc/self/net/route", &route.replace("eth1", "eth0"));
    assert_eq!(machine.user(), None);
    machine.write("proc/self/net/route", route);
    assert_says(
        &machine.needed(),
        &["eth1", "route", "ip link set eth1 down"],
    );

    // Every interface that is up has these.
    let zero = "0".repeat(32);
    let line = |to: &str| format!("{to} 40 {zero} 00 {zero} 00000100 1 0 00000001     eth1\n");
    let local = format!("fe80{}", "0".repeat(28));
    let multicast = format!("ff00{}", "0".repeat(28));
    let global = format!("20010db8{}", "0".repeat(24));
    machine.write("proc/self/net/route", "");
    let usual = line(&local) + &line(&multicast);
    machine.write("proc/self/net/ipv6_route", &usual);
    assert_eq!(machine.user(), None);
    machine.write("proc/self/net/ipv6_route", &(usual + &line(&global)));
    assert_says(&machine.needed(), &["eth1"]);
}

#[test]
fn a_network_adapter_in_a_bridge_with_a_route() {
    let machine = Machine::new();
    let directory = format!("{STICK}/1-2:1.0/net/eth1");
    machine.interface("eth1", &directory);
    machine.interface("br0", "sys/devices/virtual/net/br0");
    machine.link(
        &format!("{directory}/upper_br0"),
        "sys/devices/virtual/net/br0",
    );
    assert_eq!(machine.user(), None);
    machine.write(
        "proc/self/net/route",
        "Iface\tDestination\tGateway \tFlags\nbr0\t0001A8C0\t00000000\t0001\n",
    );
    assert_says(&machine.needed(), &["eth1", "br0"]);
}

#[test]
fn a_neighbour_without_a_route() {
    let machine = Machine::new();
    machine.interface("eth1", &format!("{STICK}/1-2:1.0/net/eth1"));
    let arp = |flags| {
        format!(
            "IP address       HW type     Flags       HW address            Mask     Device\n\
             192.168.1.2      0x1         {flags}         00:16:3e:00:00:01     *        eth1\n"
        )
    };
    machine.write("proc/self/net/arp", &arp("0x0"));
    assert_eq!(machine.user(), None);
    machine.write("proc/self/net/arp", &arp("0x2"));
    assert_says(&machine.needed(), &["eth1"]);
}

#[test]
fn the_only_keyboard_at_a_screen() {
    const KEYS: &str = "1000000000007 ff9f207ac14057ff febeffdfffefffff fffffffffffffffe\n";
    let machine = Machine::new();
    machine.keyboard(4, &format!("{STICK}/1-2:1.0/0003:046D:C31C.0001"), KEYS);
    machine.keyboard(
        1,
        "sys/devices/LNXSYSTM:00/LNXPWRBN:00",
        "10000000000000 0\n",
    );
    // Made by a program.
    machine.keyboard(7, "sys/devices/virtual", KEYS);
    assert_eq!(machine.user(), None, "without a screen nobody types");
    let connector = "sys/devices/pci0000:00/drm/card0/card0-HDMI-A-1";
    machine.link("sys/class/drm/card0-HDMI-A-1", connector);
    machine.write(&format!("{connector}/status"), "disconnected\n");
    assert_eq!(machine.user(), None);
    machine.write(&format!("{connector}/status"), "connected\n");
    assert_eq!(machine.user(), Some(Use::OnlyKeyboard));
    assert_eq!(machine.user_of("1-3"), None);
    // A second one.
    machine.keyboard(9, "sys/devices/platform/i8042/serio0", KEYS);
    assert_eq!(machine.user(), None);
}

#[test]
fn a_serial_console() {
    let machine = Machine::new();
    let port = format!("{STICK}/1-2:1.0/ttyUSB0/tty/ttyUSB0");
    machine.link("sys/class/tty/ttyUSB0", &port);
    machine.link("sys/class/tty/tty0", "sys/devices/virtual/tty/tty0");
    machine.write("sys/class/tty/console/active", "tty0\n");
    assert_eq!(machine.user(), None);
    machine.write("sys/class/tty/console/active", "tty0 ttyUSB0\n");
    assert_says(&machine.needed(), &["ttyUSB0", "console"]);
}

#[test]
fn what_is_in_use_is_listed_with_the_reason_and_can_be_named() {
    let machine = Machine::new();
    let keys = "fffffffffffffffe\n";
    machine.keyboard(4, "sys/devices/pci0000:00/usb1/1-3/1-3:1.0", keys);
    let connector = "sys/devices/pci0000:00/drm/card0/card0-HDMI-A-1";
    machine.link("sys/class/drm/card0-HDMI-A-1", connector);
    machine.write(&format!("{connector}/status"), "connected\n");
    machine.mountinfo("40 22 8:17 / /mnt rw - ext4 /dev/sdb1 rw\n");
    let now = Snapshot::read(&machine.0, Mounts::OfInit);
    let states = |rules: &[&str]| {
        let rule = |device: &&str| Allow {
            device: device.parse().unwrap(),
            vm: VmMatch::Any,
            host: Match::Any,
        };
        let allow = rules.iter().map(rule).collect();
        let mut devices = ["1-2", "1-3", "1-4"].map(|id| DeviceInfo {
            id: DeviceId(id.to_owned()),
            vendor: 0x1209,
            product: 1,
            serial: None,
            name: String::new(),
            speed: Speed::High,
            classes: Vec::new(),
            state: DeviceState::Free,
        });
        mark(&mut devices, &now, &Policy { allow });
        devices.map(|d| match d.state {
            DeviceState::Unavailable { reason } => Some(reason),
            _ => None,
        })
    };
    let [stick, keyboard, other] = states(&["*"]);
    assert_says(&stick.unwrap(), &["this machine uses it", "/mnt"]);
    assert_says(&keyboard.unwrap(), &["only keyboard", "[[allow]]"]);
    assert_eq!(other, None);
    // A rule that names a device changes nothing for a disk.
    let [stick, keyboard, _] = states(&["*", "1-2", "1-3"]);
    assert!(stick.is_some());
    assert_eq!(keyboard, None);
}

/// Whatever this machine is: nothing panics, and no device is made up.
#[test]
fn this_machine_is_read() {
    let now = Snapshot::read(Path::new("/"), Mounts::OfAll);
    assert!(now.mounts.iter().all(|m| !m.point.is_empty()));
    assert_eq!(now.user(&DeviceId("999-9".to_owned())), None);
}
