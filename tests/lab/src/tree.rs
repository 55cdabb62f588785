// SPDX-License-Identifier: GPL-3.0-or-later
//! The extracted package tree: its programs run here with their own loader and libraries, and
//! are copied into the machines' roots with the libraries they need.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::cpio::Root;
use crate::host_tools::output;
use crate::packages::Apt;

/// Everything that QEMU and the machines' roots are made of.
const PACKAGES: &[&str] = &[
    "base-files",
    "busybox-static",
    "e2fsprogs",
    "iproute2",
    "kmod",
    "libgcc-s1",
    "qemu-system-x86",
    "socat",
    "strace",
    "usbutils",
    "xen-utils-4.20",
    "xenstore-utils",
];

/// The extracted tree.
pub struct Tree {
    /// Its root directory.
    pub path: PathBuf,
}

impl Tree {
    /// Download and extract if it is not in the cache.
    pub fn open(cache: &Cache, apt: &Apt) -> Result<Self> {
        let packages: Vec<String> = PACKAGES.iter().map(|&name| name.to_owned()).collect();
        Ok(Self {
            path: apt.tree(cache, "programs", &packages, true)?,
        })
    }

    fn loader(&self) -> PathBuf {
        self.path
            .join("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
    }

    fn libraries(&self) -> String {
        format!("{}", self.path.join("usr/lib/x86_64-linux-gnu").display())
    }

    /// A command that runs a program of the tree on this machine.
    pub fn command(&self, program: &str) -> Command {
        self.command_as(
            program,
            Path::new(program)
                .file_name()
                .map_or(program.into(), |name| name.to_string_lossy())
                .as_ref(),
        )
    }

    /// The same for a program that looks at the name it was called by.
    pub fn command_as(&self, program: &str, name: &str) -> Command {
        let mut command = Command::new(self.loader());
        command.arg("--library-path").arg(self.libraries());
        command.arg("--argv0").arg(name);
        command.arg(self.path.join(program));
        command
    }

    /// Copy a program of the tree into a root with every library that it needs.
    pub fn install(&self, root: &mut Root, program: &str) -> Result<()> {
        root.copy(program, &self.path.join(program))?;
        self.install_libraries(root, &self.path.join(program))
    }

    /// Copy the libraries that a program (of the tree or of ours) needs.
    pub fn install_libraries(&self, root: &mut Root, program: &Path) -> Result<()> {
        for library in self.needed(program)? {
            root.copy(
                &format!("usr/lib/x86_64-linux-gnu/{library}"),
                &self.path.join("usr/lib/x86_64-linux-gnu").join(&library),
            )?;
        }
        root.symlink(
            "usr/lib64/ld-linux-x86-64.so.2",
            "../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
        );
        Ok(())
    }

    /// A program and the libraries that it needs: the path in a root, and the file here.
    pub fn with_libraries(&self, program: &str) -> Result<Vec<(String, PathBuf)>> {
        let libraries = "usr/lib/x86_64-linux-gnu";
        let mut files = vec![program.to_owned()];
        for name in self.needed(&self.path.join(program))? {
            files.push(format!("{libraries}/{name}"));
        }
        Ok(files
            .into_iter()
            .map(|name| {
                let file = self.path.join(&name);
                (name, file)
            })
            .collect())
    }

    fn needed(&self, program: &Path) -> Result<BTreeSet<String>> {
        let listing = output(
            Command::new(self.loader())
                .arg("--library-path")
                .arg(self.libraries())
                .arg("--list")
                .arg(program),
        )
        .with_context(|| format!("libraries of {}", program.display()))?;
        let mut names = BTreeSet::from(["ld-linux-x86-64.so.2".to_owned()]);
        for line in String::from_utf8_lossy(&listing).lines() {
            let Some((name, place)) = line.split_once("=>") else {
                continue;
            };
            if place.contains("not found") {
                bail!(
                    "{} needs {}, which the lab's packages do not have",
                    program.display(),
                    name.trim()
                );
            }
            let name = name.trim();
            names.insert(name.rsplit('/').next().unwrap_or(name).to_owned());
        }
        Ok(names)
    }

    /// Busybox and its commands.
    pub fn install_busybox(&self, root: &mut Root) -> Result<()> {
        root.copy("usr/bin/busybox", &self.path.join("usr/bin/busybox"))?;
        let list = output(Command::new(self.path.join("usr/bin/busybox")).arg("--list-full"))?;
        for applet in String::from_utf8_lossy(&list).lines() {
            let name = applet.rsplit('/').next().unwrap_or(applet);
            // xl and the kernel want the real ones of these; they are installed apart.
            if !matches!(
                name,
                "modprobe" | "insmod" | "rmmod" | "lsmod" | "depmod" | "ip" | "busybox"
            ) {
                root.symlink(&format!("usr/bin/{name}"), "busybox");
            }
        }
        self.install(root, "usr/bin/kmod")?;
        for name in ["modprobe", "insmod", "rmmod", "lsmod", "depmod"] {
            root.symlink(&format!("usr/sbin/{name}"), "../bin/kmod");
        }
        self.install(root, "usr/bin/ip")?;
        root.symlink("usr/sbin/ip", "../bin/ip");
        root.symlink("init", "usr/bin/init");
        Ok(())
    }
}
