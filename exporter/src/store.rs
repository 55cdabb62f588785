// SPDX-License-Identifier: GPL-3.0-or-later
//! The leases on disk: `leases.json` in the state directory, replaced as a whole.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use session::lease::Saved;

const FILE: &str = "leases.json";
/// The boot under which the leases were served last.
const BOOT: &str = "boot";
/// This boot of this machine, random (proc(5)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The state directory, which only one exporter may use.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    dir: PathBuf,
}

impl Store {
    /// Makes the directory where there is none.
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self {
            dir: dir.to_owned(),
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
        let text = serde_json::to_vec_pretty(saved)?;
        let new = self.dir.join("leases.json.new");
        let mut file = File::create(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, self.dir.join(FILE))?;
        File::open(&self.dir)?.sync_all()
    }

    /// Whether the machine was restarted since [`Store::note_boot`]. Not where that is unknown.
    pub(crate) fn was_rebooted(&self) -> bool {
        let before = fs::read_to_string(self.dir.join(BOOT));
        let now = fs::read_to_string(BOOT_ID);
        matches!((before, now), (Ok(before), Ok(now)) if before.trim() != now.trim())
    }

    /// What is saved from now on is of this boot.
    pub(crate) fn note_boot(&self) -> io::Result<()> {
        match fs::read(BOOT_ID) {
            Ok(now) => fs::write(self.dir.join(BOOT), now),
            // Then it is never known.
            Err(_) => Ok(()),
        }
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
