// SPDX-License-Identifier: GPL-3.0-or-later
//! What a host needs to run HVM guests: Debian's QEMU for Xen with its libraries, and the firmware. It is
//! put into running machines, so that the others' roots stay small.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::agent::Agent;
use crate::cache::{Cache, Key};
use crate::host_tools::{nice, run};
use crate::lab::Lab;
use crate::packages::Apt;
use crate::progress::Step;
use crate::tree::Tree;

const PACKAGE: &str = "qemu-system-xen";
/// QEMU, below the root.
pub const PROGRAM: &str = "usr/libexec/xen-qemu-system-i386";
/// Of QEMU's data: the option ROMs that boot a kernel directly, and what it reads at its start.
const QEMU_DATA: &[&str] = &[
    "linuxboot.bin",
    "linuxboot_dma.bin",
    "kvmvapic.bin",
    "pvh.bin",
    "keymaps",
];
const QEMU_DIRECTORY: &str = "usr/share/qemu";
const FIRMWARE: &[&str] = &["usr/lib/xen-4.20/boot/hvmloader", "usr/share/seabios"];
/// The archive in dom0, while it is unpacked.
const ARCHIVE: &str = "/root/device-model.tar";

/// A tar archive of it, made if it is not in the cache. `programs` is the tree that dom0's root is made of.
pub fn archive(cache: &Cache, apt: &Apt, programs: &Tree) -> Result<PathBuf> {
    let packages = apt.tree(cache, "device-model-packages", &[PACKAGE.to_owned()], true)?;
    let tree = Tree { path: packages };
    let key = Key::new()
        .with_artefact(&tree.path)
        .with_artefact(&programs.path)
        .with(include_str!("device_model.rs"));
    let directory = cache.artefact("device-model", key, |out| {
        let step = Step::start("what a host needs to run HVM guests");
        let root = out.join("root");
        for (name, file) in tree.with_libraries(PROGRAM)? {
            copy(&file, &root.join(name))?;
        }
        for name in QEMU_DATA {
            let name = format!("{QEMU_DIRECTORY}/{name}");
            if tree.path.join(&name).exists() {
                copy(&tree.path.join(&name), &root.join(name))?;
            }
        }
        for name in FIRMWARE {
            copy(&programs.path.join(name), &root.join(name))?;
        }
        let log = out.join("log");
        let mut tar = nice("tar");
        tar.arg("-C")
            .arg(&root)
            .args(["--owner=0", "--group=0", "-cf"]);
        run(tar.arg(out.join("device-model.tar")).arg("usr"), &log)?;
        std::fs::remove_dir_all(&root)?;
        step.done();
        Ok(())
    })?;
    Ok(directory.join("device-model.tar"))
}

/// Copies a file, or a directory with all that is in it. Links become what they name.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    if let Some(directory) = to.parent() {
        std::fs::create_dir_all(directory)?;
    }
    if let Err(error) = std::fs::copy(from, to) {
        bail!("copying {}: {error}", from.display());
    }
    Ok(())
}

/// Puts it into a running host that does not have it.
pub fn put(lab: &Lab, dom0: &Agent) -> Result<()> {
    if dom0.exec("test -e /run/device-model")?.status == 0 {
        return Ok(());
    }
    let archive = lab.device_model()?;
    let step = Step::start(format!("{}: QEMU for HVM guests", dom0.name));
    dom0.put(ARCHIVE, 0o644, &std::fs::read(archive)?)?;
    dom0.exec_for(
        &format!("tar -C / -xf {ARCHIVE} && rm {ARCHIVE} && touch /run/device-model"),
        Duration::from_secs(300),
    )?
    .ok("unpacking QEMU")?;
    step.done();
    Ok(())
}
