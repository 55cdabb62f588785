// SPDX-License-Identifier: GPL-3.0-or-later
//! The machines' root file systems: a Xen host, a guest (carried inside the host), an exporter.
//!
//! Only what changes rarely is in them. The daemons under test, their certificates and their
//! configuration are put into running machines through the agent.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::cache::{Cache, Key};
use crate::cpio::Root;
use crate::kernel::{Choice, Kernel};
use crate::programs;
use crate::progress::Step;
use crate::tree::Tree;

const HOST_RC: &str = include_str!("../init/host.rc");
const GUEST_RC: &str = include_str!("../init/guest.rc");
const EXPORTER_RC: &str = include_str!("../init/exporter.rc");
const INITTAB: &str = include_str!("../init/inittab");
const VIF_SCRIPT: &str = include_str!("../init/vif-lab");
const RECEIVE_SCRIPT: &str = include_str!("../init/migrate-receive");

const HOST_MODULES: &[&str] = &[
    "virtio_net",
    "xen_evtchn",
    "xen_gntdev",
    "xen_gntalloc",
    "xen_privcmd",
    "xenfs",
    "xen_netback",
    "bridge",
];
const GUEST_MODULES: &[&str] = &[
    "xen_netfront",
    "xen_hcd",
    "usb_storage",
    "uas",
    "sd_mod",
    "ext4",
    "usbhid",
    "hid_generic",
    "evdev",
    "cdc_acm",
    "usblp",
    "ftdi_sio",
    "snd_usb_audio",
    "usbtest",
    "usbmon",
];
const EXPORTER_MODULES: &[&str] = &[
    "virtio_net",
    "usbcore",
    "ehci_pci",
    "uhci_hcd",
    "xhci_pci",
    "usbmon",
    // Gadgets on a bus of their own, and devices served with USB/IP.
    "dummy_hcd",
    "usb_f_ss_lb",
    "usb_f_acm",
    "usb_f_hid",
    "usb_f_mass_storage",
    "usb_f_printer",
    "vhci_hcd",
    // The drivers that take hold of devices until they are lent.
    "usb_storage",
    "uas",
    "sd_mod",
    "usbhid",
    "hid_generic",
    "evdev",
    "cdc_acm",
    "usblp",
    "ftdi_sio",
    "snd_usb_audio",
    "usbtest",
];

/// Programs of Xen in the host, beside `xl`.
const XEN_PROGRAMS: &[&str] = &[
    "xl",
    "xenstored",
    "xenconsoled",
    "xenconsole",
    "xen-init-dom0",
    "libxl-save-helper",
    "xenctx",
];

/// The images on disk.
pub struct Images {
    /// Initial ramdisk of a Xen host; has the guest's kernel and ramdisk in `/boot`.
    pub host: PathBuf,
    /// Initial ramdisk of the exporter machine.
    pub exporter: PathBuf,
}

/// What a guest boots, for `xl`'s `kernel` and `ramdisk`.
pub struct GuestImages {
    /// `uname -r` of the kernel.
    pub version: String,
    /// The kernel's ELF image.
    pub vmlinux: PathBuf,
    /// The image that unpacks itself, of a packaged kernel.
    pub vmlinuz: Option<PathBuf>,
    /// Initial ramdisk.
    pub ramdisk: PathBuf,
}

/// Build the ramdisk of a guest whose kernel is not the hosts'.
pub fn guest(
    cache: &Cache,
    tree: &Tree,
    kernel: &Kernel,
    choice: Choice,
    programs_dir: &Path,
) -> Result<GuestImages> {
    let agent = programs::stripped(&programs_dir.join("lab-agent"))?;
    let disk = programs::stripped(&programs_dir.join("lab-disk"))?;
    let mut modules: Vec<&str> = GUEST_MODULES
        .iter()
        .copied()
        .filter(|&name| name != "xen_hcd" || choice.has_stock_driver())
        // What is built here has no sound and no USB monitor.
        .filter(|&name| !["snd_usb_audio", "usbmon"].contains(&name) || choice != Choice::Debug)
        .collect();
    if choice != Choice::Backports {
        // ext4 asks the crypto API for it, where a newer one has it built in.
        modules.push("crc32c_generic");
    }
    let key = Key::new()
        .with_artefact(&tree.path)
        .with(&kernel.version)
        .with(&agent)
        .with(&disk)
        .with(GUEST_RC)
        .with(INITTAB)
        .with(modules.join(" "));
    let directory = cache.artefact(&format!("guest-{}", choice.name()), key, |out| {
        let step = Step::start(format!(
            "root file system of a guest with {}",
            kernel.version
        ));
        let root = guest_root(tree, kernel, programs_dir, &agent, &disk, &modules)?;
        root.write(&out.join("guest.cpio"))?;
        step.done();
        Ok(())
    })?;
    Ok(GuestImages {
        version: kernel.version.clone(),
        vmlinux: kernel.vmlinux.clone(),
        vmlinuz: kernel.vmlinuz.clone(),
        ramdisk: directory.join("guest.cpio"),
    })
}

fn guest_root(
    tree: &Tree,
    kernel: &Kernel,
    programs_dir: &Path,
    agent: &[u8],
    disk: &[u8],
    modules: &[&str],
) -> Result<Root> {
    let mut root = base(tree, kernel, programs_dir, agent, GUEST_RC, modules)?;
    root.file("usr/bin/lab-disk", 0o755, disk);
    for program in ["usr/sbin/mke2fs", "usr/sbin/e2fsck"] {
        tree.install(&mut root, program)?;
    }
    root.symlink("usr/sbin/mkfs.ext4", "mke2fs");
    root.copy("etc/mke2fs.conf", &tree.path.join("etc/mke2fs.conf"))?;
    Ok(root)
}

/// Build what is missing.
pub fn build(cache: &Cache, tree: &Tree, kernel: &Kernel, programs_dir: &Path) -> Result<Images> {
    let agent = programs::stripped(&programs_dir.join("lab-agent"))?;
    let disk = programs::stripped(&programs_dir.join("lab-disk"))?;
    let mut key = Key::new()
        .with_artefact(&tree.path)
        .with(&kernel.version)
        .with(&agent)
        .with(&disk);
    for text in [
        HOST_RC,
        GUEST_RC,
        EXPORTER_RC,
        INITTAB,
        VIF_SCRIPT,
        RECEIVE_SCRIPT,
    ] {
        key = key.with(text);
    }
    for list in [HOST_MODULES, GUEST_MODULES, EXPORTER_MODULES, XEN_PROGRAMS] {
        key = key.with(list.join(" "));
    }
    let directory = cache.artefact("images", key, |out| {
        let mut step = Step::start("root file systems");
        let guest = out.join("guest.cpio");
        guest_root(tree, kernel, programs_dir, &agent, &disk, GUEST_MODULES)?.write(&guest)?;

        step.note("host");
        let mut root = base(tree, kernel, programs_dir, &agent, HOST_RC, HOST_MODULES)?;
        xen(tree, &mut root)?;
        root.copy("boot/vmlinux", &kernel.vmlinux)?;
        root.copy("boot/guest.cpio", &guest)?;
        root.write(&out.join("host.cpio"))?;

        step.note("exporter");
        let mut root = base(
            tree,
            kernel,
            programs_dir,
            &agent,
            EXPORTER_RC,
            EXPORTER_MODULES,
        )?;
        tree.install(&mut root, "usr/bin/strace")?;
        tree.install(&mut root, "usr/bin/lsusb")?;
        root.write(&out.join("exporter.cpio"))?;
        step.done();
        Ok(())
    })?;
    Ok(Images {
        host: directory.join("host.cpio"),
        exporter: directory.join("exporter.cpio"),
    })
}

fn base(
    tree: &Tree,
    kernel: &Kernel,
    programs_dir: &Path,
    agent: &[u8],
    rc: &str,
    modules: &[&str],
) -> Result<Root> {
    let mut root = Root::new();
    tree.install_busybox(&mut root)?;
    root.file("usr/bin/lab-agent", 0o755, agent);
    // libgcc_s and libm beside libc: every Rust program of ours needs one of them.
    tree.install_libraries(&mut root, &programs_dir.join("lab-agent"))?;
    for library in ["libgcc_s.so.1", "libm.so.6"] {
        root.copy(
            &format!("usr/lib/x86_64-linux-gnu/{library}"),
            &tree.path.join("usr/lib/x86_64-linux-gnu").join(library),
        )?;
    }
    root.file("etc/rc", 0o755, rc);
    root.file("etc/inittab", 0o644, INITTAB);
    root.file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n");
    root.file("etc/group", 0o644, "root:x:0:\n");
    kernel.install_modules(tree, &mut root, modules)?;
    Ok(root)
}

fn xen(tree: &Tree, root: &mut Root) -> Result<()> {
    for program in XEN_PROGRAMS {
        tree.install(root, &format!("usr/lib/xen-4.20/bin/{program}"))?;
    }
    root.symlink("usr/sbin/xl", "../lib/xen-4.20/bin/xl");
    tree.install(root, "usr/bin/xenstore")?;
    for name in [
        "chmod", "exists", "list", "ls", "read", "rm", "watch", "write",
    ] {
        root.symlink(&format!("usr/bin/xenstore-{name}"), "xenstore");
    }
    tree.install(root, "usr/bin/socat1")?;
    root.symlink("usr/bin/socat", "socat1");
    tree.install(root, "usr/bin/strace")?;
    root.file("etc/xen/scripts/vif-lab", 0o755, VIF_SCRIPT);
    root.file("usr/sbin/migrate-receive", 0o755, RECEIVE_SCRIPT);
    root.file("etc/xen/xl.conf", 0o644, "autoballoon=\"off\"\n");
    root.directory("var/lib/xen");
    Ok(())
}
