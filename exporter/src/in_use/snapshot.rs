// SPDX-License-Identifier: GPL-3.0-or-later
//! What /sys and /proc say about who uses devices here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The mounts as this machine's init sees them. A service sees fewer.
const INIT_MOUNTS: &str = "/proc/1/mountinfo";
const SWAPS: &str = "/proc/swaps";
/// The directories in it are the ZFS pools that are imported.
const POOLS: &str = "/proc/spl/kstat/zfs";

/// A block device: a disk, a partition, or what is stacked on others.
#[derive(Clone, Debug, Default)]
pub(super) struct Block {
    /// As in /sys/class/block.
    pub(super) name: String,
    /// `MAJOR:MINOR`.
    pub(super) number: String,
    /// Its directory in /sys/devices.
    pub(super) path: PathBuf,
    /// Block devices that have it open for themselves, by name.
    pub(super) holders: Vec<String>,
    /// Name and uuid of a device mapper's device; the uuid tells what made it.
    pub(super) mapped: Option<(String, String)>,
    /// What a loop device makes a block device of.
    pub(super) backing_file: Option<String>,
    /// It is registered with bcache.
    pub(super) bcache: bool,
    /// It was recognized as part of a ZFS pool.
    pub(super) zfs: bool,
}

/// A mounted file system.
#[derive(Clone, Debug)]
pub(super) struct Mount {
    /// `MAJOR:MINOR`, 0 for the major number where the file system has no block device of its own.
    pub(super) number: String,
    /// Nodes that it was mounted from: the source, and options that name a device.
    pub(super) sources: Vec<String>,
    pub(super) point: String,
}

/// A file system over several block devices that is in use, by their names.
#[derive(Clone, Debug)]
pub(super) struct Spread {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) blocks: BTreeSet<String>,
}

/// A network adapter, or what is stacked on some.
#[derive(Clone, Debug, Default)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// Interfaces stacked on it: VLANs, bridges and so on.
    pub(super) uppers: Vec<String>,
    /// A route goes through it, or a neighbour was found on it.
    pub(super) has_route: bool,
}

/// Whose mounts are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mounts {
    /// Those of this machine's init, and ours.
    OfInit,
    /// Those of every process: containers and services have mounts of their own.
    OfAll,
}

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    /// USB devices by their names in sysfs, each with its directory in /sys/devices.
    pub(super) devices: BTreeMap<String, PathBuf>,
    pub(super) blocks: Vec<Block>,
    pub(super) mounts: Vec<Mount>,
    pub(super) swaps: Vec<String>,
    pub(super) spread: Vec<Spread>,
    /// ZFS pools that are imported.
    pub(super) pools: Vec<String>,
    pub(super) interfaces: Vec<Interface>,
    /// Directories of the keyboards with letters.
    pub(super) keyboards: Vec<PathBuf>,
    pub(super) has_screen: bool,
    /// Serial ports that are consoles: their names and directories.
    pub(super) consoles: Vec<(String, PathBuf)>,
    /// What could not be read, and so is not known of block devices.
    pub(super) unknown: Vec<String>,
}

impl Snapshot {
    /// Reads what is below `root`, which is `/` but for tests. Blocks for some milliseconds.
    pub(crate) fn read(root: &Path, whose: Mounts) -> Self {
        // As the links of sysfs are resolved.
        let root = &fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
        let mut reader = Reader {
            root,
            unknown: Vec::new(),
        };
        let devices = reader.links("/sys/bus/usb/devices").into_iter().collect();
        let blocks = reader.blocks();
        let mounts = reader.mounts(whose);
        let swaps = reader.swaps();
        Self {
            devices,
            blocks,
            mounts,
            swaps,
            spread: reader.spread(),
            pools: reader.pools(),
            interfaces: reader.interfaces(),
            keyboards: reader.keyboards(),
            has_screen: reader.has_screen(),
            consoles: reader.consoles(),
            unknown: reader.unknown,
        }
    }
}

struct Reader<'a> {
    root: &'a Path,
    unknown: Vec<String>,
}

impl Reader<'_> {
    /// Where a path of the machine is.
    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The names in a directory; none where there is no such directory.
    fn names(&mut self, dir: &str) -> Vec<String> {
        let entries = match fs::read_dir(self.at(dir)) {
            Ok(entries) => entries,
            Err(e) => {
                let absent = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory];
                if !absent.contains(&e.kind()) {
                    self.unknown.push(format!("cannot read {dir}: {e}"));
                }
                return Vec::new();
            }
        };
        let names = entries.flatten().map(|e| e.file_name());
        let mut names: Vec<_> = names.filter_map(|n| n.into_string().ok()).collect();
        names.sort();
        names
    }

    /// The links in a directory of sysfs, and what each is a link to.
    fn links(&mut self, dir: &str) -> Vec<(String, PathBuf)> {
        let names = self.names(dir).into_iter();
        let target = |name: &String| fs::canonicalize(self.at(dir).join(name)).ok();
        // What has gone meanwhile is not there.
        names
            .filter_map(|name| Some((name.clone(), target(&name)?)))
            .collect()
    }

    /// A file of one line.
    fn line(&self, path: &Path) -> Option<String> {
        let text = fs::read_to_string(path).ok()?;
        Some(text.trim_end().to_owned())
    }

    /// The node that a path below /dev is a link to.
    fn node(&self, path: &str) -> String {
        let real = fs::canonicalize(self.at(path)).ok();
        let real = real.and_then(|r| Some(r.strip_prefix(self.root).ok()?.to_str()?.to_owned()));
        real.map_or_else(|| path.to_owned(), |real| format!("/{real}"))
    }

    fn blocks(&mut self) -> Vec<Block> {
        let links = self.links("/sys/class/block");
        let block = |(name, path): (String, PathBuf)| {
            let number = self.line(&path.join("dev"))?;
            let holders = fs::read_dir(path.join("holders")).into_iter().flatten();
            let holders = holders.flatten().map(|e| e.file_name());
            let mapped = self.line(&path.join("dm/name")).map(|name| {
                let uuid = self.line(&path.join("dm/uuid")).unwrap_or_default();
                (name, uuid)
            });
            let udev = self.at(&format!("/run/udev/data/b{number}"));
            let udev = fs::read_to_string(udev).unwrap_or_default();
            Some(Block {
                holders: holders.filter_map(|h| h.into_string().ok()).collect(),
                mapped,
                backing_file: self
                    .line(&path.join("loop/backing_file"))
                    .map(|file| self.node(&file)),
                bcache: path.join("bcache").exists(),
                zfs: udev.lines().any(|l| l == "E:ID_FS_TYPE=zfs_member"),
                name,
                number,
                path,
            })
        };
        links.into_iter().filter_map(block).collect()
    }

    fn mounts(&mut self, whose: Mounts) -> Vec<Mount> {
        let mut of = vec![INIT_MOUNTS.to_owned(), "/proc/self/mountinfo".to_owned()];
        if whose == Mounts::OfAll {
            let is_process = |name: &String| name.bytes().all(|b| b.is_ascii_digit());
            let processes = self.names("/proc").into_iter().filter(is_process);
            of.extend(processes.map(|p| format!("/proc/{p}/mountinfo")));
        }
        let mut seen = BTreeSet::new();
        let mut all = Vec::new();
        for path in of {
            match fs::read_to_string(self.at(&path)) {
                Ok(text) => {
                    for mut mount in text.lines().filter_map(mount) {
                        if seen.insert((mount.number.clone(), mount.point.clone())) {
                            for source in &mut mount.sources {
                                *source = self.node(source);
                            }
                            all.push(mount);
                        }
                    }
                }
                // Of a service's own namespace we would see less: systemd takes out what is below /home
                // for ProtectHome=.
                Err(e) if path == INIT_MOUNTS => self.unknown.push(format!(
                    "cannot read {INIT_MOUNTS}, which has this machine's mounts: {e}; the service must not have \
                     ProtectProc=invisible"
                )),
                // It has ended.
                Err(_) => (),
            }
        }
        all
    }

    fn swaps(&mut self) -> Vec<String> {
        match fs::read_to_string(self.at(SWAPS)) {
            Ok(text) => {
                let lines = text.lines().skip(1);
                let paths = lines.filter_map(|line| line.split_whitespace().next());
                paths.map(|path| self.node(&unescape(path))).collect()
            }
            // A kernel without swap has no such file; a part of /proc does not have others either.
            Err(e)
                if e.kind() == io::ErrorKind::NotFound && self.at("/proc/filesystems").exists() =>
            {
                Vec::new()
            }
            Err(e) => {
                self.unknown.push(format!(
                    "cannot read {SWAPS}: {e}; the service must not have ProcSubset=pid"
                ));
                Vec::new()
            }
        }
    }

    /// btrfs and bcachefs: mountinfo has one device at most, and another number.
    fn spread(&mut self) -> Vec<Spread> {
        let mut all = Vec::new();
        for name in self.names("/sys/fs/btrfs") {
            let blocks = self.names(&format!("/sys/fs/btrfs/{name}/devices"));
            all.push(Spread {
                kind: "btrfs",
                name,
                blocks: blocks.into_iter().collect(),
            });
        }
        for name in self.names("/sys/fs/bcachefs") {
            let of = format!("/sys/fs/bcachefs/{name}");
            let members = self.names(&of).into_iter();
            let members = members.filter(|m| m.starts_with("dev-"));
            let block = |member: String| {
                let link = self.at(&of).join(member).join("block");
                let path = fs::canonicalize(link).ok()?;
                Some(path.file_name()?.to_str()?.to_owned())
            };
            all.push(Spread {
                kind: "bcachefs",
                blocks: members.filter_map(block).collect(),
                name,
            });
        }
        all
    }

    fn pools(&mut self) -> Vec<String> {
        let names = self.names(POOLS).into_iter();
        let dir = self.at(POOLS);
        names.filter(|name| dir.join(name).is_dir()).collect()
    }

    fn interfaces(&mut self) -> Vec<Interface> {
        let mut routed = BTreeSet::new();
        // Only "self" is there for every service. Each line has the name where it is taken from.
        let mut add = |file: &str, name: fn(&[&str]) -> Option<String>| {
            let text = fs::read_to_string(self.at(file)).unwrap_or_default();
            let lines = text
                .lines()
                .map(|l| l.split_whitespace().collect::<Vec<_>>());
            routed.extend(lines.filter_map(|fields| name(&fields)));
        };
        add("/proc/self/net/route", ipv4_route);
        add("/proc/self/net/ipv6_route", ipv6_route);
        add("/proc/self/net/arp", neighbour);
        let links = self.links("/sys/class/net").into_iter();
        let interface = |(name, path): (String, PathBuf)| {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            let entries = entries.filter_map(|e| e.file_name().into_string().ok());
            let uppers = entries.filter_map(|e| e.strip_prefix("upper_").map(str::to_owned));
            Interface {
                uppers: uppers.collect(),
                has_route: routed.contains(&name),
                name,
                path,
            }
        };
        links.map(interface).collect()
    }

    fn keyboards(&mut self) -> Vec<PathBuf> {
        let links = self.links("/sys/class/input").into_iter();
        let inputs = links.filter(|(name, _)| name.starts_with("input"));
        // Programs make these.
        let made_up = self.at("/sys/devices/virtual/input");
        let real = inputs.filter(|(_, path)| !path.starts_with(&made_up));
        let keyboards = real.filter(|(_, path)| {
            let keys = self.line(&path.join("capabilities/key"));
            keys.is_some_and(|keys| has_letters(&keys))
        });
        keyboards.map(|(_, path)| path).collect()
    }

    /// Whether somebody may sit here.
    fn has_screen(&mut self) -> bool {
        let connectors = self.links("/sys/class/drm");
        let mut connectors = connectors.iter();
        connectors.any(|(_, path)| self.line(&path.join("status")).as_deref() == Some("connected"))
    }

    fn consoles(&mut self) -> Vec<(String, PathBuf)> {
        let active = self.line(&self.at("/sys/class/tty/console/active"));
        let active = active.unwrap_or_default();
        let names = active.split_whitespace().map(str::to_owned);
        let path = |name: &str| fs::canonicalize(self.at("/sys/class/tty").join(name)).ok();
        names
            .filter_map(|name| Some((name.clone(), path(&name)?)))
            .collect()
    }
}

/// A line of mountinfo (proc(5)); `None` for file systems that no device is behind.
fn mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ');
    let (number, point) = (left.nth(2)?, left.nth(1)?);
    let mut right = right.split(' ');
    let source = right.nth(1)?;
    let options = right.next().unwrap_or_default().split(',');
    let named = options.filter_map(|o| o.split_once('=').map(|(_, value)| value));
    let sources = std::iter::once(source).chain(named).map(unescape);
    let sources: Vec<_> = sources.filter(|s| s.starts_with("/dev/")).collect();
    if number.starts_with("0:") && sources.is_empty() {
        return None;
    }
    Some(Mount {
        number: number.to_owned(),
        sources,
        point: unescape(point),
    })
}

/// The kernel writes blanks and the like as `\` and three octal digits.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let digits = bytes.get(at + 1..at + 4).filter(|_| byte == b'\\');
        let code = digits
            .and_then(|d| std::str::from_utf8(d).ok())
            .and_then(|d| u8::from_str_radix(d, 8).ok());
        out.push(code.unwrap_or(byte));
        at += if code.is_some() { 4 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// /proc/net/route: interface, destination, gateway, flags (1: up).
fn ipv4_route(fields: &[&str]) -> Option<String> {
    let flags = u32::from_str_radix(fields.get(3)?, 16).ok()?;
    (flags & 1 != 0).then(|| fields[0].to_owned())
}

/// /proc/net/ipv6_route: destination, …, interface. Every interface that is up has the routes of
/// link-local (fe80::/10) and multicast (ff00::/8) addresses.
fn ipv6_route(fields: &[&str]) -> Option<String> {
    let high = u8::from_str_radix(fields.first()?.get(..2)?, 16).ok()?;
    let next = u8::from_str_radix(fields.first()?.get(2..4)?, 16).ok()?;
    let on_every_one = high == 0xff || (high == 0xfe && next & 0xc0 == 0x80);
    match on_every_one {
        true => None,
        false => fields.last().map(|name| (*name).to_owned()),
    }
}

/// /proc/net/arp: address, type, flags (2: it has answered), hardware address, mask, interface.
fn neighbour(fields: &[&str]) -> Option<String> {
    let flags = fields.get(2)?.strip_prefix("0x")?;
    let flags = u32::from_str_radix(flags, 16).ok()?;
    (flags & 2 != 0).then(|| fields.last().map(|n| (*n).to_owned()))?
}

/// Whether a bitmap of keys (words, the lowest last) has those from Escape to S, as udev tells
/// keyboards from power buttons and remote controls.
fn has_letters(keys: &str) -> bool {
    const ESCAPE_TO_S: u64 = 0xffff_fffe;
    let lowest = keys.split_whitespace().next_back();
    let lowest = lowest.and_then(|word| u64::from_str_radix(word, 16).ok());
    lowest.is_some_and(|word| word & ESCAPE_TO_S == ESCAPE_TO_S)
}
