// SPDX-License-Identifier: GPL-3.0-or-later
//! Directories that are gone afterwards.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory of this process's own, removed when dropped. Its path is short: sockets in it must
/// stay below 108 bytes.
#[derive(Debug)]
pub struct ScratchDir(PathBuf);

static NEXT: AtomicU32 = AtomicU32::new(0);
static ALL: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

impl ScratchDir {
    /// Makes one, for this user only.
    pub fn new() -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("xen-vusb-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        if let Ok(mut all) = ALL.lock() {
            all.push(path.clone());
        }
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Removes every directory that this process has made: for a signal, after which nothing is
    /// dropped.
    pub fn remove_all() {
        if let Ok(mut all) = ALL.lock() {
            for path in all.drain(..) {
                let _ = fs::remove_dir_all(path);
            }
        }
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
