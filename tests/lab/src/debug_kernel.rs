// SPDX-License-Identifier: GPL-3.0-or-later
//! A guest kernel made for finding faults: Debian's source of Linux 6.12, which is a binary package,
//! built with the kernel's own checks and little else.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, Key};
use crate::host_tools::{nice, run};
use crate::packages::Apt;
use crate::progress::Step;

const CONFIG: &str = include_str!("../config/debug-kernel.config");
const SOURCE: &str = "linux-source-6.12";
/// The compiler of the release that the source is from.
const COMPILER: &str = "gcc-14";
/// What is built with: in an extracted tree, as the modules are.
const BUILDER: &[&str] = &[
    "base-files",
    "bash",
    "bc",
    "bison",
    "coreutils",
    "diffutils",
    "findutils",
    "flex",
    COMPILER,
    "grep",
    "gzip",
    "kmod",
    "libelf-dev",
    "make",
    "mawk",
    "perl-base",
    "sed",
    "tar",
    "xz-utils",
    "zlib1g-dev",
];

/// What runs in a PVH guest before KASAN has its shadow memory, and must not look there: Linux leaves it out
/// for other kinds of guest only.
const BEFORE_KASAN: &str = "KASAN_SANITIZE_string.o=n KASAN_SANITIZE_enlighten_pvh.o=n";

/// The built kernel.
pub struct DebugKernel {
    /// `uname -r` of it.
    pub version: String,
    /// Its ELF image.
    pub vmlinux: PathBuf,
    /// `lib/modules/VERSION` of it.
    pub modules: PathBuf,
    /// The artefact: [`DebugKernel::make`] runs with its build tree.
    pub artefact: PathBuf,
    builder: PathBuf,
}

impl DebugKernel {
    /// Download and build it if it is not in the cache: half an hour to an hour on two cores.
    pub fn build(cache: &Cache, apt: &Apt) -> Result<Self> {
        let names: Vec<String> = BUILDER.iter().map(|name| (*name).to_owned()).collect();
        let builder = apt.tree(cache, "kernel-builder", &names, true)?;
        for (link, to) in [("awk", "mawk"), ("sh", "bash")] {
            let _ = std::os::unix::fs::symlink(to, builder.join("usr/bin").join(link));
        }
        let source = apt.tree(cache, "kernel-source", &[SOURCE.to_owned()], false)?;
        let key = Key::new()
            .with_artefact(&builder)
            .with_artefact(&source)
            .with(CONFIG)
            .with(BEFORE_KASAN);
        let artefact = cache.artefact("debug-kernel", key, |out| {
            let mut step = Step::start("kernel with checks (half an hour or more)");
            let log = out.join("log");
            let tree = out.join("build");
            fs::create_dir_all(&tree)?;
            step.note("unpacking");
            run(
                nice("tar")
                    .arg("-C")
                    .arg(&tree)
                    .args(["--strip-components=1", "-xf"])
                    .arg(source.join(format!("usr/src/{SOURCE}.tar.xz"))),
                &log,
            )?;
            fs::write(tree.join("debug.config"), CONFIG)?;
            let make = |arguments: &str| make(&builder, &tree, None, arguments, &log);
            step.note("configuring");
            make("KCONFIG_ALLCONFIG=/build/debug.config allnoconfig")?;
            check_config(&fs::read_to_string(tree.join(".config"))?)?;
            step.note("compiling");
            make(&format!("-j2 {BEFORE_KASAN} vmlinux modules"))?;
            // DEPMOD: the index is made where the modules are chosen.
            make(
                "INSTALL_MOD_PATH=/build/installed INSTALL_MOD_STRIP=1 DEPMOD=true modules_install",
            )?;
            fs::rename(tree.join("installed/lib/modules"), out.join("modules"))?;
            let version = fs::read_to_string(tree.join("include/config/kernel.release"))?;
            fs::write(out.join("version"), version.trim())?;
            run(
                nice("strip")
                    .arg("--strip-all")
                    .arg("-o")
                    .arg(out.join("vmlinux"))
                    .arg(tree.join("vmlinux")),
                &log,
            )?;
            step.note("tidying up");
            prune(&tree, &log)?;
            step.done();
            Ok(())
        })?;
        let version = fs::read_to_string(artefact.join("version"))?;
        Ok(Self {
            vmlinux: artefact.join("vmlinux"),
            modules: artefact.join("modules").join(&version),
            version,
            artefact,
            builder,
        })
    }

    /// Build the module in `work` for it. `arguments` go to make.
    pub fn make_module(&self, work: &Path, arguments: &str, log: &Path) -> Result<()> {
        let arguments = format!("M=/module {arguments} modules");
        let tree = self.artefact.join("build");
        make(&self.builder, &tree, Some(work), &arguments, log)
    }
}

/// Run make with the kernel's tree as /build, and a module's as /module. objtool reads /proc; the mounts
/// live and die with the namespace.
fn make(
    builder: &Path,
    tree: &Path,
    module: Option<&Path>,
    arguments: &str,
    log: &Path,
) -> Result<()> {
    let mut script = String::from(
        "mkdir -p proc dev build module tmp && mount -t proc proc proc && mount -t devtmpfs dev dev",
    );
    let module = module.map(|module| (module, "module"));
    for (from, to) in [(tree, "build")].into_iter().chain(module) {
        script.push_str(&format!(" && mount --bind '{}' {to}", from.display()));
    }
    script.push_str(&format!(
        " && exec chroot . /usr/bin/make -C /build CC={COMPILER} HOSTCC={COMPILER} {arguments}"
    ));
    run(
        nice("unshare")
            .args(["--mount", "--pid", "--fork", "sh", "-c", &script])
            .current_dir(builder)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/tmp"),
        log,
    )
}

/// A setting whose conditions are not met is dropped without a word.
fn check_config(made: &str) -> Result<()> {
    let wanted = CONFIG.lines().filter(|line| line.starts_with("CONFIG_"));
    let dropped: Vec<&str> = wanted
        .filter(|line| !made.lines().any(|other| other == *line))
        .collect();
    if !dropped.is_empty() {
        bail!(
            "the kernel's configuration lacks {}: what do they depend on?",
            dropped.join(", ")
        );
    }
    Ok(())
}

/// Keep what modules are built with: headers, makefiles, scripts, programs.
fn prune(tree: &Path, log: &Path) -> Result<()> {
    run(
        nice("find")
            .args([
                ".", "-type", "f", "(", "-name", "*.o", "-o", "-name", "*.[cS]",
            ])
            .args([
                "-o", "-name", "*.a", "-o", "-name", ".*.cmd", "-o", "-name", "*.ko",
            ])
            .args(["-o", "-name", "vmlinux*", "-o", "-name", "*.rst", ")"])
            .args([
                "-not",
                "-path",
                "./scripts/*",
                "-not",
                "-name",
                "vmlinux.lds*",
                "-delete",
            ])
            .current_dir(tree),
        log,
    )
    .context("removing what modules do not need")
}
