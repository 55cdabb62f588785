// SPDX-License-Identifier: GPL-3.0-or-later
//! Programs of this machine that the lab needs, and how they are started.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::missing::Missing;

/// Program and the Debian package that has it.
const NEEDED: &[(&str, &str)] = &[
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    ("strip", "binutils"),
    ("dpkg-deb", "dpkg"),
    ("qemu-img", "qemu-utils"),
    ("unshare", "util-linux"),
];

fn present(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
    })
}

/// Install by package name whatever every part of the lab needs and is missing; say exactly what
/// could not be had.
pub fn ensure() -> Result<()> {
    ensure_programs(NEEDED)
}

/// The same for programs, each with its package, that one part needs.
pub fn ensure_programs(needed: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> = needed
        .iter()
        .filter(|(program, _)| !present(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let step = crate::progress::Step::start(format!("installing {}", missing.join(" ")));
    // A machine whose lists are missing or old cannot find packages; refreshing is cheap.
    let _ = Command::new("apt-get")
        .args(["-qq", "update"])
        .stdout(Stdio::null())
        .status();
    let installed = Command::new("apt-get")
        .args(["-qq", "install", "-y", "--no-install-recommends"])
        .args(&missing)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output();
    let absent: Vec<&str> = needed
        .iter()
        .filter(|(program, _)| !present(program))
        .map(|(_, package)| *package)
        .collect();
    if !absent.is_empty() {
        let why = match installed {
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        let why: Vec<&str> = why.lines().map(str::trim).collect();
        let names = absent.join(" ");
        return Err(Missing::new(format!(
            "the lab needs the Debian packages {names} and could not install them: run apt-get install {names} \
             as root ({})",
            why.join(" ")
        ))
        .into());
    }
    step.done();
    Ok(())
}

/// Keeps what this process has inherited from programs that it starts: the machines go on when the command
/// has ended, and would hold a lock or a pipe of its caller as long as they run.
pub fn keep_inherited_files() {
    // SAFETY: no file is closed in this process, and no memory is touched.
    unsafe {
        libc::close_range(
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC as libc::c_int,
        )
    };
}

/// Run a program to its end at low priority; its output goes to `log` and into the error.
pub fn run(command: &mut Command, log: &Path) -> Result<()> {
    let name = format!("{:?}", command.get_program());
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)?;
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| format!("starting {name}"))?;
    if !status.success() {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(20)..].join("\n");
        bail!(
            "{name} failed with {status}; the end of {}:\n{tail}",
            log.display()
        );
    }
    Ok(())
}

/// Standard output of a program that must succeed.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output.stdout)
}

/// `nice program`: the machine's two cores are shared with compilers and emulators.
pub fn nice(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("nice");
    command.arg(program);
    command
}
