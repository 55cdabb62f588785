// SPDX-License-Identifier: GPL-3.0-or-later
//! Where the programs are that a rig starts.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

/// The packages whose programs a rig starts.
pub const PACKAGES: [&str; 4] = ["sim-scenarios", "xen-sim", "exporter", "xl-hooks"];

/// The directory that this very program was built into: `target/debug` or `target/release`.
fn build_dir() -> Result<PathBuf> {
    let this = std::env::current_exe().context("cannot find this program's own file")?;
    let mut dir = this.parent().unwrap_or(&this).to_owned();
    // Tests and benchmarks are one directory deeper.
    if dir.ends_with("deps") {
        dir.pop();
    }
    Ok(dir)
}

/// The path of a program that stands beside this one.
///
/// # Errors
/// When it was not built.
pub fn path(name: &str) -> Result<PathBuf> {
    let path = build_dir()?.join(name);
    if !path.exists() {
        bail!(
            "{} is missing; build it with cargo build{} {}",
            path.display(),
            if build_dir()?.ends_with("release") {
                " --release"
            } else {
                ""
            },
            PACKAGES.map(|p| format!("-p {p}")).join(" ")
        );
    }
    Ok(path)
}

/// Builds what a rig starts, once per process. `cargo test` builds the programs of one package only.
///
/// # Errors
/// When cargo fails; it has said why.
pub fn build() -> Result<()> {
    static BUILT: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| cargo_build().map_err(|e| format!("{e:#}")));
    built.clone().map_err(anyhow::Error::msg)
}

fn cargo_build() -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--bins"]);
    for package in PACKAGES {
        command.args(["-p", package]);
    }
    if build_dir()?.ends_with("release") {
        command.arg("--release");
    }
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    forget_package(&mut command);
    let status = command.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo build: {status}");
    }
    Ok(())
}

/// Takes out of a command's environment what cargo told this program of its own package. A cargo that
/// inherits it would take build scripts that look at it (ring's does) for outdated, and build all that
/// is above them anew every time.
fn forget_package(command: &mut Command) {
    let told = |name: &str| {
        let of_package = ["CARGO_PKG_", "CARGO_MANIFEST_"];
        of_package.iter().any(|start| name.starts_with(start))
    };
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(told) {
            command.env_remove(name);
        }
    }
}
