// SPDX-License-Identifier: GPL-3.0-or-later
//! Building the guest's kernel module against Debian's headers.
//!
//! The kernel's build refuses this machine's older compiler, so the build runs in an extracted
//! tree of the kernel's own release.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::cache::{Cache, Key};
use crate::host_tools::{nice, run};
use crate::packages::Apt;
use crate::programs::workspace;
use crate::progress::Step;

/// File name of the built module.
pub const MODULE: &str = "xen-vusb-resume.ko";

/// The built module, for `uname -r` = `version`.
pub fn build(cache: &Cache, apt: &Apt, version: &str) -> Result<PathBuf> {
    let headers = format!("linux-headers-{version}");
    let packages: Vec<String> = [
        "base-files",
        "bash",
        "coreutils",
        "gcc-14",
        "grep",
        "make",
        "mawk",
        "sed",
    ]
    .iter()
    .map(|&name| name.to_owned())
    .chain([headers])
    .collect();
    let builder = apt.tree(cache, "module-builder", &packages, true)?;
    let source = workspace().join("frontend-shim/linux");
    let mut key = Key::new().with_artefact(&builder).with(version);
    let mut files: Vec<PathBuf> = fs::read_dir(&source)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect();
    files.retain(|path| {
        path.file_name().is_some_and(|name| name == "Makefile")
            || path.extension().is_some_and(|extension| extension == "c")
    });
    files.sort();
    for file in &files {
        key = key.with_file(file)?;
    }
    let directory = cache.artefact("module", key, |out| {
        let step = Step::start("guest kernel module");
        let work = builder.join("build");
        let _ = fs::remove_dir_all(&work);
        fs::create_dir_all(&work)?;
        for file in &files {
            fs::copy(file, work.join(file.file_name().unwrap_or_default()))?;
        }
        // The packages were extracted, not installed: the links that their scripts would make.
        let _ = std::os::unix::fs::symlink("mawk", builder.join("usr/bin/awk"));
        let _ = std::os::unix::fs::symlink("bash", builder.join("usr/bin/sh"));
        let log = out.join("log");
        // objtool reads /proc; the mount lives and dies with the namespace.
        let script = format!(
            "mount -t proc proc proc && mount -t devtmpfs dev dev && exec chroot . /usr/bin/make -C /lib/modules/{version}/build M=/build CC=gcc-14 HOSTCC=gcc-14 W=1 modules"
        );
        run(
            nice("unshare").args(["--mount", "--pid", "--fork", "sh", "-c", &script]).current_dir(&builder).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env_remove("MAKEFLAGS").env_remove("CFLAGS"),
            &log,
        )?;
        let text = fs::read_to_string(&log)?;
        if let Some(warning) = text.lines().find(|line| line.contains("warning:")) {
            bail!("the module builds with warnings: {warning}");
        }
        fs::copy(work.join(MODULE), out.join(MODULE))?;
        step.done();
        Ok(())
    })?;
    Ok(directory.join(MODULE))
}
