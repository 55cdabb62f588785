// SPDX-License-Identifier: GPL-3.0-or-later
//! Our own programs as they go into the machines: built, stripped, with what they need.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::host_tools::output;

/// The workspace's root directory.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// Environment variable with a directory of programs that were built before: these are used, and none are
/// built. A run of hours is not to have others because somebody works on the sources.
pub const PROGRAMS_VARIABLE: &str = "XEN_VUSB_PROGRAMS";

/// Build release binaries of packages of this workspace; the directory they are in.
pub fn build(packages: &[&str]) -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os(PROGRAMS_VARIABLE) {
        return Ok(PathBuf::from(directory));
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new("nice");
    command
        .arg(cargo)
        .args(["build", "--release", "--quiet", "--bins"])
        .current_dir(workspace());
    for package in packages {
        command.args(["--package", package]);
    }
    let status = command.status().context("starting cargo")?;
    if !status.success() {
        bail!("cargo build --release of {} failed", packages.join(", "));
    }
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace().join("target"), PathBuf::from);
    Ok(target.join("release"))
}

/// A program's bytes without debug information: they cross an emulated network card.
pub fn stripped(program: &Path) -> Result<Vec<u8>> {
    let copy = std::env::temp_dir().join(format!("xen-vusb-lab-strip-{}", std::process::id()));
    output(Command::new("strip").arg("-o").arg(&copy).arg(program))?;
    let bytes = std::fs::read(&copy)?;
    std::fs::remove_file(&copy)?;
    Ok(bytes)
}
