// SPDX-License-Identifier: GPL-3.0-or-later
//! What the build and the tests need of the machine. The lab looks after itself.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// What is needed: the file that shows that it is there, and Debian's package with it.
const NEEDED: [(&str, &str); 3] = [
    ("/usr/bin/cc", "gcc"),
    ("/usr/include/stdio.h", "libc6-dev"),
    // The ring's structs are compared with Xen's own headers.
    ("/usr/include/xen/io/usbif.h", "libxen-dev"),
];

/// Installs what is missing, as root with apt.
///
/// # Errors
/// With the names of what is missing and how to install it, where we cannot.
pub fn install() -> Result<()> {
    install_these(&NEEDED)
}

/// The same for what `memcheck` runs tests with.
///
/// # Errors
/// The same.
pub fn install_valgrind() -> Result<()> {
    install_these(&[
        ("/usr/bin/valgrind", "valgrind"),
        // Its own functions stand in for the loader's, which it finds by their symbols.
        ("/usr/share/doc/libc6-dbg", "libc6-dbg"),
    ])
}

fn install_these(needed: &[(&str, &'static str)]) -> Result<()> {
    let missing: Vec<&str> = needed
        .iter()
        .filter(|(file, _)| !Path::new(file).exists())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    let advice = format!("missing packages: run apt-get install {names} as root");
    if !is_root() {
        bail!("{advice}");
    }
    println!("==> installing {names}");
    apt_get(&["update"]).with_context(|| advice.clone())?;
    let install = ["install", "--yes", "--no-install-recommends"];
    apt_get(&[&install[..], &missing].concat()).context(advice)
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let status = Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .status()
        .context("cannot run apt-get")?;
    if !status.success() {
        bail!("apt-get {}: {status}", arguments.join(" "));
    }
    Ok(())
}

/// Whether this process is root's, without a library for it.
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}
