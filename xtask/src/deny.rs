// SPDX-License-Identifier: GPL-3.0-or-later
//! cargo-deny: the licences and sources of what is linked (`deny.toml`).

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo::cargo;

/// A newer one may find other things, and a build should not fail because of that.
const VERSION: &str = "0.20.2";

/// The check, with the program installed into the cache if it is not there.
///
/// # Errors
/// When it cannot be installed; cargo has said why.
pub fn command() -> Result<Command> {
    let program = install()?;
    let mut command = Command::new(program);
    command
        .current_dir(crate::cargo::root())
        // The advisories need the network; deny.toml says more.
        .args(["check", "--hide-inclusion-graph"])
        .args(["bans", "licenses", "sources"]);
    Ok(command)
}

fn install() -> Result<PathBuf> {
    let root = cache()?.join(format!("cargo-deny-{VERSION}"));
    let program = root.join("bin/cargo-deny");
    if program.exists() {
        return Ok(program);
    }
    println!(
        "==> installing cargo-deny {VERSION} into {}",
        root.display()
    );
    let status = cargo(&["install", "--locked", "--quiet", "cargo-deny", "--version"])
        .arg(VERSION)
        .arg("--root")
        .arg(&root)
        // Its own profile takes minutes to save milliseconds.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
        // Not among our own: it would be rebuilt with every other set of features.
        .env_remove("CARGO_TARGET_DIR")
        .status()?;
    if !status.success() {
        bail!("cargo install cargo-deny failed");
    }
    Ok(program)
}

/// Where tools are kept, beside the lab's machines.
fn cache() -> Result<PathBuf> {
    if let Some(cache) = std::env::var_os("XEN_VUSB_CACHE") {
        return Ok(PathBuf::from(cache).join("tools"));
    }
    let home = std::env::var_os("HOME").context("HOME is not set")?;
    Ok(PathBuf::from(home).join(".cache/xen-vusb/tools"))
}
