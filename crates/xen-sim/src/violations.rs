// SPDX-License-Identifier: GPL-3.0-or-later
//! What was observed that a well-mannered guest or backend never does.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Mutex;

/// The violations of one host. Each goes to standard error and to the file `violations` at once,
/// so that it is known even when the run is cut short.
#[derive(Debug)]
pub(crate) struct Violations {
    host: String,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    list: Vec<String>,
    file: File,
}

/// A process out of control must not fill the disk.
const MOST: usize = 10_000;

impl Violations {
    pub(crate) fn open(dir: &Path, host: &str) -> io::Result<Violations> {
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .open(dir.join("violations"))?;
        Ok(Violations {
            host: host.to_owned(),
            inner: Mutex::new(Inner {
                list: Vec::new(),
                file,
            }),
        })
    }

    pub(crate) fn report(&self, text: String) {
        let mut inner = self.inner.lock().expect("no holder panics");
        if inner.list.len() >= MOST {
            return;
        }
        eprintln!("xen-sim {}: violation: {text}", self.host);
        // The list is what counts; a full disk must not hide it.
        let _ = writeln!(inner.file, "{text}");
        inner.list.push(text);
    }

    pub(crate) fn list(&self) -> Vec<String> {
        self.inner.lock().expect("no holder panics").list.clone()
    }
}
