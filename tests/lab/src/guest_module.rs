// SPDX-License-Identifier: GPL-3.0-or-later
//! Building the guest's kernel modules against Debian's headers.
//!
//! The kernel's build refuses this machine's compiler where that is older, so the build runs in an
//! extracted tree of the kernel's own release.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde::Serialize;

use crate::cache::{Cache, Key};
use crate::debug_kernel::DebugKernel;
use crate::host_tools::{nice, run};
use crate::kernel::Choice;
use crate::missing::Missing;
use crate::packages::Apt;
use crate::programs::workspace;
use crate::progress::Step;

/// Our kernel modules, of which a guest has one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum Module {
    /// The whole frontend, for every kernel.
    #[default]
    Hcd,
    /// The short way: a resume callback for the stock driver.
    Resume,
}

impl Module {
    /// Its name without `.ko`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hcd => "xen-vusb-hcd",
            Self::Resume => "xen-vusb-resume",
        }
    }

    /// The name of the driver that then drives a controller.
    pub fn driver(self) -> &'static str {
        match self {
            Self::Hcd => "xen-vusb-hcd",
            Self::Resume => STOCK_DRIVER,
        }
    }

    /// Its sources, from the repository's root.
    fn source(self) -> &'static str {
        match self {
            Self::Hcd => "frontend-shim/linux/hcd",
            Self::Resume => "frontend-shim/linux",
        }
    }

    /// Build it for a kernel, without warnings; the built module, stripped.
    pub fn build(self, cache: &Cache, apt: &Apt, kernel: Choice) -> Result<PathBuf> {
        if self == Self::Resume && !kernel.has_stock_driver() {
            bail!(
                "{} needs the stock driver, which the kernel of {} does not have",
                self.name(),
                kernel.name()
            );
        }
        if kernel == Choice::Debug {
            return self.build_checked(cache, apt);
        }
        let version = apt.kernel_version(kernel.suite())?;
        let compiler = kernel.compiler();
        let mut packages: Vec<String> = [
            "base-files",
            "bash",
            "coreutils",
            compiler,
            "grep",
            "make",
            "mawk",
            "sed",
        ]
        .map(str::to_owned)
        .into();
        packages.push(format!("linux-headers-{version}"));
        let builder = apt.tree(cache, &kernel.artefact("module-builder"), &packages, true);
        if builder.as_ref().is_err_and(Missing::is_cause_of)
            && let Some(newer) = apt.replaced_kernel(kernel.suite(), &version)?
        {
            // The guest has booted the old one.
            bail!(
                "the archive has replaced the kernel {version} by {newer}, and has no headers of {version} any \
                 more, which {} is built with; run the same again, it will be with {newer}",
                self.name()
            );
        }
        let builder = builder?;
        let key = Key::new().with_artefact(&builder).with(&version);
        self.artefact(cache, kernel, key, &version, |files, log| {
            let work = builder.join("build");
            copy_into(files, &work)?;
            // The packages were extracted, not installed: the links that their scripts would make.
            let _ = std::os::unix::fs::symlink("mawk", builder.join("usr/bin/awk"));
            let _ = std::os::unix::fs::symlink("bash", builder.join("usr/bin/sh"));
            // objtool reads /proc; the mount lives and dies with the namespace. W=1 would also have the
            // kernel-doc comments checked, of which there are none, by a script for which older kernels
            // need all of Perl.
            let script = format!(
                "mkdir -p proc dev && mount -t proc proc proc && mount -t devtmpfs dev dev && exec chroot . /usr/bin/make -C /lib/modules/{version}/build M=/build CC={compiler} HOSTCC={compiler} W=1 cmd_checkdoc= modules"
            );
            run(
                nice("unshare")
                    .args(["--mount", "--pid", "--fork", "sh", "-c", &script])
                    .current_dir(&builder)
                    .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
                    .env_remove("MAKEFLAGS")
                    .env_remove("CFLAGS"),
                log,
            )?;
            Ok(work)
        })
    }

    /// Build it for the kernel with checks, with the faults that tests switch on.
    fn build_checked(self, cache: &Cache, apt: &Apt) -> Result<PathBuf> {
        let kernel = DebugKernel::build(cache, apt)?;
        let key = Key::new().with_artefact(&kernel.artefact).with("faults");
        let work = cache.path("module-debug");
        self.artefact(cache, Choice::Debug, key, &kernel.version, |files, log| {
            copy_into(files, &work)?;
            kernel.make_module(&work, "VUSB_FAULTS=1 W=1 cmd_checkdoc=", log)?;
            Ok(work)
        })
    }

    /// The module, stripped, which `make` has built from its sources in the directory that it returns.
    fn artefact(
        self,
        cache: &Cache,
        kernel: Choice,
        mut key: Key,
        version: &str,
        make: impl FnOnce(&[PathBuf], &Path) -> Result<PathBuf>,
    ) -> Result<PathBuf> {
        let files = self.files()?;
        for file in &files {
            key = key.with_file(file)?;
        }
        let file = format!("{}.ko", self.name());
        let directory = cache.artefact(&kernel.artefact(self.name()), key, |out| {
            let step = Step::start(format!("{} for {version}", self.name()));
            let log = out.join("log");
            let work = make(&files, &log)?;
            let text = fs::read_to_string(&log)?;
            if let Some(warning) = text.lines().find(|line| line.contains("warning:")) {
                bail!("{} builds with warnings: {warning}", self.name());
            }
            // Debug information would cross an emulated network card.
            run(
                nice("strip")
                    .args(["--strip-debug", "-o"])
                    .arg(out.join(&file))
                    .arg(work.join(&file)),
                &log,
            )?;
            step.done();
            Ok(())
        })?;
        Ok(directory.join(file))
    }

    fn files(self) -> Result<Vec<PathBuf>> {
        let mut files: Vec<PathBuf> = fs::read_dir(workspace().join(self.source()))?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| {
                path.file_name().is_some_and(|name| name == "Makefile")
                    || path
                        .extension()
                        .is_some_and(|extension| extension == "c" || extension == "h")
            })
            .collect();
        files.sort();
        Ok(files)
    }
}

/// The files, in a directory that has nothing else.
fn copy_into(files: &[PathBuf], work: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(work);
    fs::create_dir_all(work)?;
    for file in files {
        fs::copy(file, work.join(file.file_name().unwrap_or_default()))?;
    }
    Ok(())
}

/// The name that the stock driver, `xen-hcd`, is registered with.
pub const STOCK_DRIVER: &str = "vusb";
