// SPDX-License-Identifier: GPL-3.0-or-later
//! Writing root file systems as uncompressed "newc" cpio archives.
//!
//! Uncompressed because the emulated machine would spend longer unpacking than this one
//! saves in disk space.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};

enum Entry {
    Directory,
    File { mode: u32, contents: Vec<u8> },
    Symlink(String),
}

/// A root file system being put together. Paths are relative, without a leading slash.
#[derive(Default)]
pub struct Root {
    entries: BTreeMap<String, Entry>,
}

impl Root {
    /// An empty root with Debian's merged `/usr` and the mount points that every machine uses.
    pub fn new() -> Self {
        let mut root = Self::default();
        for directory in [
            "dev",
            "proc",
            "sys",
            "run",
            "tmp",
            "root",
            "mnt",
            "var/log",
            "usr/bin",
            "usr/sbin",
            "usr/lib",
            "usr/lib64",
        ] {
            root.directory(directory);
        }
        for (link, target) in [
            ("bin", "usr/bin"),
            ("sbin", "usr/sbin"),
            ("lib", "usr/lib"),
            ("lib64", "usr/lib64"),
        ] {
            root.symlink(link, target);
        }
        root
    }

    /// A directory and those above it.
    pub fn directory(&mut self, path: &str) {
        let mut current = String::new();
        for part in path.split('/') {
            if !current.is_empty() {
                current.push('/');
            }
            current.push_str(part);
            self.entries
                .entry(current.clone())
                .or_insert(Entry::Directory);
        }
    }

    fn parent(&mut self, path: &str) {
        if let Some((directory, _)) = path.rsplit_once('/') {
            self.directory(directory);
        }
    }

    /// A regular file.
    pub fn file(&mut self, path: &str, mode: u32, contents: impl Into<Vec<u8>>) {
        self.parent(path);
        self.entries.insert(
            path.to_owned(),
            Entry::File {
                mode,
                contents: contents.into(),
            },
        );
    }

    /// A regular file copied from this machine, executable if it is so here.
    pub fn copy(&mut self, path: &str, from: &Path) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let contents = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        let mode = fs::metadata(from)?.permissions().mode() & 0o777;
        self.file(path, mode, contents);
        Ok(())
    }

    /// A symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.parent(path);
        self.entries
            .insert(path.to_owned(), Entry::Symlink(target.to_owned()));
    }

    /// Write the archive.
    pub fn write(&self, to: &Path) -> Result<()> {
        let temporary = to.with_extension("part");
        let mut out = BufWriter::new(fs::File::create(&temporary)?);
        let mut inode = 1;
        for (path, entry) in &self.entries {
            let (mode, data): (u32, &[u8]) = match entry {
                Entry::Directory => (0o040_755, &[]),
                Entry::File { mode, contents } => (0o100_000 | mode, contents),
                Entry::Symlink(target) => (0o120_777, target.as_bytes()),
            };
            record(&mut out, inode, mode, path, data)?;
            inode += 1;
        }
        // The kernel opens /dev/console before anything is mounted.
        header(&mut out, inode, 0o020_600, "dev/console", 0, (5, 1))?;
        record(&mut out, 0, 0, "TRAILER!!!", &[])?;
        out.into_inner()
            .map_err(io::IntoInnerError::into_error)?
            .sync_all()?;
        fs::rename(&temporary, to)?;
        Ok(())
    }
}

fn record(out: &mut impl Write, inode: u32, mode: u32, path: &str, data: &[u8]) -> io::Result<()> {
    let len = u32::try_from(data.len()).map_err(io::Error::other)?;
    header(out, inode, mode, path, len, (0, 0))?;
    out.write_all(data)?;
    pad(out, data.len())
}

fn header(
    out: &mut impl Write,
    inode: u32,
    mode: u32,
    path: &str,
    len: u32,
    device: (u32, u32),
) -> io::Result<()> {
    let fields = [
        inode,
        mode,
        0,
        0,
        1,
        0,
        len,
        0,
        0,
        device.0,
        device.1,
        path.len() as u32 + 1,
        0,
    ];
    let mut text = String::from("070701");
    for field in fields {
        text.push_str(&format!("{field:08x}"));
    }
    text.push_str(path);
    text.push('\0');
    out.write_all(text.as_bytes())?;
    pad(out, text.len())
}

fn pad(out: &mut impl Write, len: usize) -> io::Result<()> {
    out.write_all(&[0; 3][..len.wrapping_neg() % 4])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_aligned_and_named() {
        let mut bytes = Vec::new();
        record(&mut bytes, 1, 0o100_644, "etc/rc", b"hello").unwrap();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[110..117], b"etc/rc\0");
        assert_eq!(&bytes[120..125], b"hello");
    }
}
