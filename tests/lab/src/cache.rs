// SPDX-License-Identifier: GPL-3.0-or-later
//! The lab's cache outside the repository: every artefact lies in a directory named after a
//! hash of what it was made from, so that nothing is stale and a second run makes nothing.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Environment variable that moves the cache.
pub const CACHE_VARIABLE: &str = "XEN_VUSB_CACHE";

/// The cache directory, and the run directory in it.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `$XEN_VUSB_CACHE/lab`, or `~/.cache/xen-vusb/lab`.
    pub fn open() -> Result<Self> {
        let base = match std::env::var_os(CACHE_VARIABLE) {
            Some(path) => PathBuf::from(path),
            None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?)
                .join(".cache/xen-vusb"),
        };
        let root = base.join("lab");
        fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
        Ok(Self {
            root: root.canonicalize()?,
        })
    }

    /// A fixed place in the cache.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// The artefact `kind` made from what `key` hashed: made by `make` in a fresh directory
    /// when it is not there yet. An interrupted `make` leaves nothing that looks finished.
    pub fn artefact(
        &self,
        kind: &str,
        key: Key,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let done = self.root.join(format!("{kind}-{}", key.finish()));
        if done.exists() {
            return Ok(done);
        }
        let partial = self.root.join(format!("{kind}.partial"));
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        fs::create_dir_all(&partial)?;
        make(&partial).with_context(|| format!("making the lab's {kind}"))?;
        fs::rename(&partial, &done)?;
        self.prune(kind, &done)?;
        Ok(done)
    }

    /// Remove artefacts of a kind that newer ones have replaced. One old one is kept: going back
    /// and forth between two states of the sources is usual, and the machines may be running it.
    fn prune(&self, kind: &str, newest: &Path) -> Result<()> {
        let mut old = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_key =
                |rest: &str| rest.len() == 16 && rest.bytes().all(|b| b.is_ascii_hexdigit());
            let of_kind = name
                .strip_prefix(kind)
                .and_then(|rest| rest.strip_prefix('-'))
                .is_some_and(is_key);
            if of_kind && entry.path() != newest {
                old.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        old.sort();
        old.pop();
        for (_, path) in old {
            fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
        }
        Ok(())
    }
}

/// Collects what an artefact depends on.
#[derive(Default, Clone)]
pub struct Key(Sha256);

impl Key {
    /// An empty key.
    pub fn new() -> Self {
        Self::default()
    }

    /// Add one input.
    pub fn with(mut self, input: impl AsRef<[u8]>) -> Self {
        let input = input.as_ref();
        self.0.update((input.len() as u64).to_le_bytes());
        self.0.update(input);
        self
    }

    /// Add a file's contents.
    pub fn with_file(self, path: &Path) -> Result<Self> {
        let contents = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(self.with(contents))
    }

    /// Add an artefact by its name, which already is a hash.
    pub fn with_artefact(self, path: &Path) -> Self {
        self.with(
            path.file_name()
                .map(|name| name.as_encoded_bytes())
                .unwrap_or_default(),
        )
    }

    fn finish(self) -> String {
        self.0
            .finalize()
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_kept_apart() {
        assert_ne!(
            Key::new().with("ab").with("c").finish(),
            Key::new().with("a").with("bc").finish()
        );
    }
}
