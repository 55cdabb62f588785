// SPDX-License-Identifier: GPL-3.0-or-later
//! Cargo, and the programs that it builds.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

/// The packages whose programs the demo starts.
pub const DEMO_PACKAGES: [&str; 4] = ["sim-scenarios", "xen-sim", "exporter", "xl-hooks"];

/// The repository's root.
pub fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// A cargo command in the repository's root.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    forget_package(&mut command);
    command
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

/// Builds the programs of these packages with optimisation; cargo shows its progress.
///
/// # Errors
/// When cargo fails; it has said why.
pub fn build_release(packages: &[&str]) -> Result<()> {
    let mut command = cargo(&["build", "--release", "--bins"]);
    for package in packages {
        command.args(["-p", package]);
    }
    let status = command.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo build failed");
    }
    Ok(())
}

/// Builds a program with all checks of debug builds, and goes on as it.
///
/// # Errors
/// When cargo fails, or the program cannot be started.
pub fn become_checked(package: &str, name: &str, arguments: &[String]) -> Result<ExitCode> {
    let build = ["build", "-p", package, "--bin", name];
    if !cargo(&build)
        .status()
        .context("cannot run cargo")?
        .success()
    {
        bail!("cargo build failed");
    }
    become_path(&built("debug", name), arguments)
}

/// Where a program is that was built with [`build_release`].
pub fn program(name: &str) -> PathBuf {
    built("release", name)
}

fn built(profile: &str, name: &str) -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    root().join(target).join(profile).join(name)
}

/// Goes on as this program. There is no process in between that Ctrl-C could end too early.
///
/// # Errors
/// When it cannot be started.
pub fn become_program(name: &str, arguments: &[String]) -> Result<ExitCode> {
    become_path(&program(name), arguments)
}

fn become_path(path: &Path, arguments: &[String]) -> Result<ExitCode> {
    let mut command = Command::new(path);
    // It may run cargo, too.
    forget_package(&mut command);
    let error = command.args(arguments).exec();
    Err(error).with_context(|| format!("cannot start {}", path.display()))
}
