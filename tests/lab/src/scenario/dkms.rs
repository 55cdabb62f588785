// SPDX-License-Identifier: GPL-3.0-or-later
//! The module's Debian package in roots of Debian 12, Debian 13 and its backports, with the headers
//! of their kernels: it is installed, DKMS builds it without warnings, modprobe prefers it to the
//! stock driver where both are, and it is purged without a trace. No machines are needed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::Options;
use crate::cache::Key;
use crate::guest_module::Module;
use crate::host_tools::{self, nice, output, run as run_logged};
use crate::kernel::{Choice, Kernel};
use crate::lab::Lab;
use crate::packages::Apt;
use crate::programs;
use crate::progress::Step;
use crate::tree::Tree;

#[derive(Serialize)]
struct Installed {
    system: &'static str,
    kernel: String,
    /// Version of DKMS.
    dkms: String,
    /// Lines of the build's log with a warning.
    warnings: usize,
    /// What loading the alias of a controller would load.
    loads: String,
}

/// Run the scenario.
pub fn run(lab: &Lab, options: &Options) -> Result<()> {
    host_tools::ensure()?;
    host_tools::ensure_programs(&[("mmdebstrap", "mmdebstrap")])?;
    let package = package(lab)?;
    let mut all = Vec::new();
    for kernel in Choice::DEBIAN {
        let step = Step::start(format!("package in {}", kernel.name()));
        let root = root(lab, kernel)?;
        all.push(install(lab, kernel, &root, &package)?);
        step.done();
    }
    let warnings: usize = all.iter().map(|one| one.warnings).sum();
    let ours = all.iter().all(|one| one.loads == Module::Hcd.name());
    let result = if warnings == 0 && ours {
        "ok"
    } else {
        "failed"
    };
    if options.json {
        println!(
            "{}",
            serde_json::json!({ "scenario": "dkms", "result": result, "installed": all })
        );
    } else {
        for one in &all {
            println!(
                "{:<10} {:<24} dkms {:<12} {} warnings, a controller loads {}",
                one.system, one.kernel, one.dkms, one.warnings, one.loads
            );
        }
        println!("RESULT {result} kernels={} warnings={warnings}", all.len());
    }
    if result != "ok" {
        bail!("not everything was right");
    }
    Ok(())
}

/// The package, freshly built.
fn package(lab: &Lab) -> Result<PathBuf> {
    let directory = lab.run_directory().join("deb");
    let _ = fs::remove_dir_all(&directory);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    output(
        nice(cargo)
            .args(["xtask", "deb", "--out"])
            .arg(&directory)
            .current_dir(programs::workspace()),
    )?;
    let prefix = format!("{}-dkms_", Module::Hcd.name());
    fs::read_dir(&directory)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
        })
        .context("`cargo xtask deb` made no package of the module")
}

/// An installed system with DKMS and a kernel's headers, kept in the cache.
fn root(lab: &Lab, kernel: Choice) -> Result<PathBuf> {
    let release = kernel.release();
    let version = Apt::of_release(lab.cache(), release).kernel_version(kernel.suite())?;
    let kind = format!("dkms-root-{}", kernel.name());
    lab.cache()
        .artefact(&kind, Key::new().with(&version), |out| {
            let step = Step::start(format!("root of {} with DKMS", kernel.name()));
            let mut command = nice("mmdebstrap");
            command.args([
                "--mode=root",
                "--variant=minbase",
                "--aptopt=Acquire::Languages \"none\"",
                "--aptopt=APT::Install-Recommends \"false\"",
            ]);
            command.arg(format!(
                "--include=dkms,gcc,kmod,make,linux-headers-{version}"
            ));
            command.arg(release.name()).arg(out.join("root"));
            command.args(release.sources()?);
            run_logged(&mut command, &out.join("log"))?;
            step.done();
            Ok(())
        })
        .map(|directory| directory.join("root"))
}

/// Install and purge the package in a copy of a root.
fn install(lab: &Lab, kernel: Choice, root: &Path, package: &Path) -> Result<Installed> {
    let version = Apt::of_release(lab.cache(), kernel.release()).kernel_version(kernel.suite())?;
    let work = lab.run_directory().join("dkms");
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work)?;
    let log = work.join("log");
    let copy = work.join("root");
    run_logged(nice("cp").arg("-a").arg(root).arg(&copy), &log)?;
    fs::copy(package, copy.join("package.deb"))?;
    if kernel.has_stock_driver() {
        stock_driver(lab, kernel, &copy, &version)?;
    }
    let inside = |script: &str| -> Result<String> {
        let script = format!(
            "mount -t proc proc proc && mount -t devtmpfs dev dev && exec chroot . /bin/sh -ec '{script}'"
        );
        let text = output(
            nice("unshare")
                .args(["--mount", "--pid", "--fork", "sh", "-c", &script])
                .current_dir(&copy)
                .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
                .env("DEBIAN_FRONTEND", "noninteractive")
                .env_remove("MAKEFLAGS")
                .env_remove("CFLAGS"),
        )?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    inside("dpkg -i /package.deb")?;
    // DKMS does not index modules where only the kernel's headers are installed.
    inside(&format!("depmod {version}"))?;

    let name = Module::Hcd.name();
    let status = inside(&format!("dkms status -m {name}"))?;
    if !status
        .lines()
        .any(|line| line.contains(&version) && line.contains("installed"))
    {
        bail!("DKMS has not installed {name} for {version}: {status:?}");
    }
    let build = inside(&format!(
        "cat /var/lib/dkms/{name}/*/{version}/*/log/make.log"
    ))?;
    let modinfo = inside(&format!("modinfo -k {version} {name}"))?;
    for wanted in [
        format!("vermagic:       {version} "),
        "alias:          xen:vusb".to_owned(),
    ] {
        if !modinfo.contains(&wanted) {
            bail!("{name} has no {wanted:?}:\n{modinfo}");
        }
    }
    let dkms = inside("dkms --version")?;
    // -b: as udev does. What it would insert last is the driver; the others it depends on.
    let plan = inside(&format!("modprobe -b -n -v -S {version} xen:vusb"))?;
    let loads = plan
        .lines()
        .filter_map(|line| line.strip_prefix("insmod "))
        .filter_map(|path| path.trim().rsplit('/').next()?.split(".ko").next())
        .filter(|name| *name == "xen-vusb-hcd" || *name == "xen-hcd")
        .collect::<Vec<_>>()
        .join(" ");

    inside(&format!("dpkg -P {name}-dkms"))?;
    let left = inside(&format!(
        "find / -xdev -name \"*{name}*\" -not -path \"/proc/*\" -not -path \"/var/lib/dpkg/*\"; dkms status -m {name}"
    ))?;
    if !left.trim().is_empty() {
        bail!("the purged package leaves\n{left}");
    }
    fs::remove_dir_all(&work)?;
    Ok(Installed {
        system: kernel.name(),
        kernel: version,
        dkms: dkms.trim().trim_start_matches("dkms-").to_owned(),
        warnings: build
            .lines()
            .filter(|line| line.contains("warning:"))
            .count(),
        loads,
    })
}

/// Puts `xen-hcd`, which is not in the headers' package, where the kernel's package has it.
fn stock_driver(lab: &Lab, choice: Choice, root: &Path, version: &str) -> Result<()> {
    let apt = Apt::open(lab.cache());
    let tree = Tree::open(lab.cache(), &apt)?;
    let kernel = Kernel::open(lab.cache(), &apt, &tree, choice)?;
    let (path, file) = kernel.module_file("xen_hcd")?;
    let to = root.join("usr/lib/modules").join(version).join(path);
    fs::create_dir_all(to.parent().context("module path")?)?;
    fs::copy(file, &to)?;
    Ok(())
}
