// SPDX-License-Identifier: GPL-3.0-or-later
//! What outlives the daemon: a directory with two files for each controller, and one that says which VM each
//! domain is.
//!
//! `vusb-DOMID-DEVID.journal` is mapped memory: it survives the process and costs no call per
//! request. `vusb-DOMID-DEVID.json` says which devices are plugged in, and changes with them. Both
//! mean something only as long as the guest lives, so they belong where a reboot forgets them.

mod memory;

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use journal::{Journal, Session, Words};
use serde::{Deserialize, Serialize};
use session::{Lease, VmUuid};
use slog::{Logger, error, warn};
use usbif::PortNumber;
use xen::DomId;

use self::memory::Memory;
use crate::domain::Identity;
use crate::xenbus::Key;

/// A controller's journal, wherever it lies.
pub type ControllerJournal = Journal<Box<dyn Words + Send>>;

/// A journal that keeps nothing.
pub fn no_journal() -> ControllerJournal {
    Journal::unkept(Box::new(memory::Nowhere))
}

/// A device of a controller.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SavedDevice {
    /// The exporter's name.
    pub exporter: String,
    /// The lease as it was when it was plugged in.
    pub lease: Lease,
    /// Whether it was leased for this controller and never claimed.
    pub fresh: bool,
    /// Whether it was pulled out, and is waited for.
    #[serde(default)]
    pub away: bool,
    /// Whether another domain with the VM's uuid has it, and the guest is not shown it.
    #[serde(default)]
    pub elsewhere: bool,
}

/// The devices of a controller.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Saved {
    /// Whose controller.
    pub vm: VmUuid,
    /// The domain's number.
    pub domid: u16,
    /// The controller's number.
    pub devid: u16,
    /// Its devices.
    pub devices: Vec<SavedDevice>,
    /// Whether the toolstack said that the VM arrives in this domain from another one.
    #[serde(default)]
    pub arrives: bool,
    /// Whether the frontend has not connected yet, to nobody.
    #[serde(default)]
    pub first_connect: bool,
}

impl Saved {
    /// Which controller.
    pub fn key(&self) -> Key {
        Key {
            domid: DomId(self.domid),
            devid: self.devid,
        }
    }
}

/// The directory.
#[derive(Clone, Debug)]
pub struct StateDir {
    dir: Rc<Path>,
    /// Locked as long as this daemon runs.
    _lock: Rc<File>,
}

/// The two files of one controller.
#[derive(Clone, Debug)]
pub struct ControllerFiles {
    journal: PathBuf,
    devices: PathBuf,
    /// Of the journal that was made or opened: a later controller of the same number has another.
    inode: Option<u64>,
}

impl StateDir {
    /// Opens the directory, makes it where there is none, and locks it.
    ///
    /// # Errors
    /// When it cannot be written, or another vusbd has it.
    pub fn open(dir: &Path) -> Result<Self> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.with_context(|| format!("cannot make {}", dir.display()))?;
        let path = dir.join("lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        if lock.try_lock().is_err() {
            bail!("another vusbd is running: it has locked {}", path.display());
        }
        Ok(Self {
            dir: dir.into(),
            _lock: Rc::new(lock),
        })
    }

    /// The files of a controller.
    pub fn files(&self, key: Key) -> ControllerFiles {
        ControllerFiles {
            journal: self.dir.join(format!("{key}.journal")),
            devices: self.dir.join(format!("{key}.json")),
            inode: None,
        }
    }

    /// The file that says which VM each domain is.
    pub fn known_domains(&self) -> KnownDomains {
        KnownDomains {
            path: self.dir.join("domains.json"),
        }
    }

    /// Every controller that the directory knows.
    pub fn saved(&self, log: &Logger) -> Vec<Saved> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) => {
                error!(log, "cannot read {}: {}", self.dir.display(), e);
                return Vec::new();
            }
        };
        let paths = entries.flatten().map(|e| e.path());
        paths
            .filter(|p| is_of_controller(p))
            .filter_map(|path| match read(&path) {
                Ok(saved) => Some(saved),
                Err(e) => {
                    warn!(log, "{} ignored: {}", path.display(), e);
                    None
                }
            })
            .collect()
    }
}

/// Whether a file's name is `vusb-DOMID-DEVID.json`.
fn is_of_controller(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with("vusb-") && name.ends_with(".json"))
}

/// The file that says which VM each domain is. It outlives the daemon, since for a moment of a migration by
/// XAPI nothing in xenstore says it.
#[derive(Clone, Debug)]
pub struct KnownDomains {
    path: PathBuf,
}

impl KnownDomains {
    /// What an earlier process has kept; nothing where it cannot be read.
    pub fn read(&self, log: &Logger) -> BTreeMap<DomId, Identity> {
        let known = match fs::read(&self.path) {
            Ok(bytes) => serde_json::from_slice::<BTreeMap<u16, Identity>>(&bytes),
            Err(_) => return BTreeMap::new(),
        };
        match known {
            Ok(known) => known.into_iter().map(|(n, i)| (DomId(n), i)).collect(),
            Err(e) => {
                warn!(log, "{} ignored: {}", self.path.display(), e);
                BTreeMap::new()
            }
        }
    }

    /// Writes the whole of it, or nothing.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn save(&self, known: &BTreeMap<DomId, Identity>) -> io::Result<()> {
        let known: BTreeMap<u16, &Identity> = known.iter().map(|(n, i)| (n.0, i)).collect();
        let new = self.path.with_extension("new");
        fs::write(&new, serde_json::to_vec_pretty(&known)?)?;
        fs::rename(new, &self.path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A number that nothing else has: that is what the standard library makes its hashers with.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn read(path: &Path) -> io::Result<Saved> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

impl ControllerFiles {
    /// A journal for a controller that was just made. Where there can be no file, nothing is kept: better
    /// than a guest without its devices.
    pub fn create(&mut self, log: &Logger) -> ControllerJournal {
        self.remove();
        let journal = match Memory::create(&self.journal) {
            Ok(memory) => Journal::create(Box::new(memory) as Box<dyn Words + Send>, random()),
            Err(e) => {
                error!(
                    log,
                    "a restart of vusbd will cost the guest its devices: cannot write {}: {}",
                    self.journal.display(),
                    e
                );
                no_journal()
            }
        };
        self.inode = self.current_inode();
        journal
    }

    /// What an earlier daemon kept of `vm`'s controller.
    pub fn open(&mut self, vm: VmUuid) -> Option<(ControllerJournal, Saved)> {
        let saved = read(&self.devices).ok().filter(|s| s.vm == vm)?;
        let memory: Box<dyn Words + Send> = Box::new(Memory::open(&self.journal).ok()?);
        let journal = Journal::open(memory).ok()?;
        self.inode = self.current_inode();
        Some((journal, saved))
    }

    /// The list of devices, where there is one.
    pub fn saved(&self) -> Option<Saved> {
        read(&self.devices).ok()
    }

    /// Where the session of each port had come to, by the journal, and whether the guest was being
    /// suspended.
    pub fn left(&self) -> (Vec<(u8, Session)>, bool) {
        let memory = Memory::open(&self.journal).ok();
        let Some(journal) = memory.and_then(|m| Journal::open(m).ok()) else {
            return (Vec::new(), false);
        };
        let sessions = PortNumber::first(PortNumber::MAX)
            .filter_map(|port| Some((port.get(), journal.session(port)?)));
        (sessions.collect(), journal.is_quiescing())
    }

    /// Writes the list of devices, the whole of it or not at all.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn save(&self, saved: &Saved) -> io::Result<()> {
        let new = self.devices.with_extension("json.new");
        fs::write(&new, serde_json::to_vec_pretty(saved)?)?;
        fs::rename(new, &self.devices)
    }

    /// Removes the files when a controller ends, unless they are those of a later controller of the same number.
    pub fn remove_own(&self) {
        if self.inode == self.current_inode() {
            self.remove();
        }
    }

    fn current_inode(&self) -> Option<u64> {
        fs::metadata(&self.journal).ok().map(|m| m.ino())
    }

    /// Nothing is left to come back to.
    pub fn remove(&self) {
        // Not there, or left over: it names a uuid that will not come again.
        let _ = fs::remove_file(&self.devices);
        let _ = fs::remove_file(&self.journal);
    }
}
