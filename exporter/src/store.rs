// SPDX-License-Identifier: GPL-3.0-or-later
//! The leases on disk: `leases.json` in the state directory, replaced as a whole; and the hosts beside them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use session::hosts::SavedHost;
use session::lease::Saved;

const FILE: &str = "leases.json";
/// The hosts that were ever connected. It is for forecasts only.
const HOSTS: &str = "hosts.json";
/// The boot under which the leases were served last.
const BOOT: &str = "boot";
/// This boot of this machine, random (proc(5)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The state directory, which only one exporter may use.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    /// [`BOOT_ID`].
    boot_id: PathBuf,
}

impl Store {
    /// Makes the directory where there is none.
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self {
            dir: dir.to_owned(),
            boot_id: BOOT_ID.into(),
        })
    }

    /// What was saved last; nothing where nothing was.
    pub(crate) fn load(&self) -> anyhow::Result<Saved> {
        let path = self.dir.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Saved::default()),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        serde_json::from_slice(&text).with_context(|| {
            let path = path.display();
            format!("{path} holds no leases; repair it, or remove it and lose them")
        })
    }

    /// Saves so that either this or what was there before survives a crash.
    pub(crate) fn save(&self, saved: &Saved) -> io::Result<()> {
        self.replace(FILE, &serde_json::to_vec_pretty(saved)?)
    }

    /// The hosts that were saved last; none where none were.
    ///
    /// # Errors
    /// When the file cannot be read, or holds something else. The exporter can do without.
    pub(crate) fn load_hosts(&self) -> anyhow::Result<Vec<SavedHost>> {
        let path = self.dir.join(HOSTS);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        serde_json::from_slice(&text).with_context(|| format!("{} holds no hosts", path.display()))
    }

    /// Saves the hosts, as [`Store::save`] does leases.
    pub(crate) fn save_hosts(&self, hosts: &[SavedHost]) -> io::Result<()> {
        self.replace(HOSTS, &serde_json::to_vec_pretty(hosts)?)
    }

    fn replace(&self, file: &str, text: &[u8]) -> io::Result<()> {
        let new = self.dir.join(format!("{file}.new"));
        let mut written = File::create(&new)?;
        written.write_all(text)?;
        written.sync_all()?;
        fs::rename(&new, self.dir.join(file))?;
        File::open(&self.dir)?.sync_all()
    }

    /// Whether the machine was restarted since [`Store::note_boot`]; not where that was never called.
    ///
    /// # Errors
    /// When it cannot be known: [`BOOT_ID`], or what was noted, cannot be read.
    pub(crate) fn was_rebooted(&self) -> anyhow::Result<bool> {
        let noted = self.dir.join(BOOT);
        let before = match fs::read_to_string(&noted) {
            Ok(before) => before,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", noted.display())),
        };
        Ok(before.trim() != self.boot()?.trim())
    }

    /// What is saved from now on is of this boot.
    ///
    /// # Errors
    /// When it cannot be noted, as for [`Store::was_rebooted`].
    pub(crate) fn note_boot(&self) -> anyhow::Result<()> {
        let noted = self.dir.join(BOOT);
        fs::write(&noted, self.boot()?)
            .with_context(|| format!("cannot write to {}", noted.display()))
    }

    fn boot(&self) -> anyhow::Result<String> {
        let path = &self.boot_id;
        let cannot = || format!("cannot read {}", path.display());
        fs::read_to_string(path).with_context(cannot)
    }

    /// Notes the port that we listen on, for who started us with port 0.
    pub(crate) fn save_port(&self, port: u16) -> io::Result<()> {
        fs::write(self.dir.join("port"), format!("{port}\n"))
    }
}

#[cfg(test)]
mod tests {
    use session::Epoch;

    use super::*;

    #[test]
    fn a_reboot_is_noticed_or_it_is_an_error() {
        let name = format!("exporter-boot-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        let mut store = Store::open(&dir).unwrap();
        // This machine's own.
        assert!(!store.was_rebooted().unwrap());
        store.note_boot().unwrap();
        assert!(!store.was_rebooted().unwrap());
        store.boot_id = dir.join("boot_id");
        let unknown = store.was_rebooted().unwrap_err().to_string();
        assert!(
            unknown.contains("cannot read") && unknown.contains("boot_id"),
            "{unknown}"
        );
        assert!(store.note_boot().is_err());
        fs::write(&store.boot_id, "another\n").unwrap();
        assert!(store.was_rebooted().unwrap());
        store.note_boot().unwrap();
        assert!(!store.was_rebooted().unwrap());
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_was_saved_last_is_loaded_and_nonsense_is_not_taken_for_nothing() {
        let name = format!("exporter-store-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        let store = Store::open(&dir).unwrap();
        assert_eq!(store.load().unwrap(), Saved::default());
        for epoch in [3, 4] {
            let saved = Saved {
                epoch: Epoch(epoch),
                leases: vec![],
                absent: Vec::new(),
            };
            store.save(&saved).unwrap();
            assert_eq!(store.load().unwrap(), saved);
        }
        // A crash while saving leaves the new file half written, and the old one whole.
        fs::write(dir.join("leases.json.new"), "{").unwrap();
        assert_eq!(store.load().unwrap().epoch, Epoch(4));
        fs::write(dir.join(FILE), "{").unwrap();
        let error = store.load().unwrap_err();
        assert!(error.to_string().contains("holds no leases"), "{error}");
        fs::remove_dir_all(&dir).unwrap();
    }
}
