// SPDX-License-Identifier: GPL-3.0-or-later
//! The hypervisor that the hosts boot.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, Key};
use crate::host_tools::{self, nice, output, run};
use crate::packages::Apt;
use crate::progress::Step;

/// Debian's package.
const PACKAGE: &str = "xen-hypervisor-4.20-amd64";
/// Its file.
const FILE: &str = "boot/xen-4.20-amd64.gz";
/// What the other one has beside Debian's configuration.
const EXTRA_CONFIG: &str = "CONFIG_SHADOW_PAGING=y\n";
/// What its build needs, and Debian's packages with it.
const BUILD_TOOLS: &[(&str, &str)] = &[
    ("gcc", "gcc"),
    ("make", "make"),
    ("bison", "bison"),
    ("flex", "flex"),
    ("patch", "patch"),
    ("python3", "python3"),
];

/// Which hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hypervisor {
    /// Debian's package, unmodified: for every guest but a PV one that is migrated while it runs.
    Debian,
    /// Debian's source, rebuilt with shadow paging. A live migration of a PV guest tracks dirty pages
    /// with it; Debian leaves it off, and `xl migrate` ends in "Failed to enable logdirty: 95".
    ShadowPaging,
}

impl Hypervisor {
    /// The name of its artefact in the cache.
    fn artefact(self) -> &'static str {
        match self {
            Self::Debian => "hypervisor",
            Self::ShadowPaging => "hypervisor-shadow",
        }
    }

    /// The multiboot image, made if it is not in the cache.
    ///
    /// # Errors
    /// When the archive does not have the package or its source, or the build fails.
    pub fn image(self, cache: &Cache) -> Result<PathBuf> {
        let directory = match self {
            Self::Debian => package(self.artefact(), cache)?,
            Self::ShadowPaging => rebuilt(self.artefact(), cache)?,
        };
        Ok(directory.join("xen"))
    }

    /// Whether an image, by its path, is this hypervisor's.
    pub fn is_at(self, image: &Path) -> bool {
        let directory = image.parent().and_then(Path::file_name);
        let name = directory.unwrap_or_default().to_string_lossy();
        let kind = name.rsplit_once('-').map_or("", |(kind, _)| kind);
        kind == self.artefact()
    }
}

fn package(kind: &str, cache: &Cache) -> Result<PathBuf> {
    let apt = Apt::open(cache);
    let packages = apt.tree(cache, "hypervisor-package", &[PACKAGE.to_owned()], false)?;
    cache.artefact(kind, Key::new().with_artefact(&packages), |out| {
        let image = output(nice("gzip").arg("-dc").arg(packages.join(FILE)))?;
        if !image.starts_with(b"\x7fELF") {
            bail!("{FILE} of {PACKAGE} is not a compressed ELF image");
        }
        Ok(fs::write(out.join("xen"), image)?)
    })
}

fn rebuilt(kind: &str, cache: &Cache) -> Result<PathBuf> {
    let key = Key::new().with("xen").with(EXTRA_CONFIG);
    cache.artefact(kind, key, |out| {
        host_tools::ensure_programs(BUILD_TOOLS)?;
        let mut step = Step::start("hypervisor with shadow paging (a few minutes)");
        let log = out.join("log");
        Apt::of_sources(cache).source("xen", out, &log).context(
            "a PV guest can be migrated on a rebuilt hypervisor only, and its source cannot be had; \
             --type pvh needs none",
        )?;
        step.note("compiling");
        let source = out.join("src");
        let config = fs::read_to_string(source.join("debian/xen-kconfig"))? + EXTRA_CONFIG;
        fs::write(source.join("xen/.config"), config)?;
        for arguments in [&["olddefconfig"][..], &["-j2", "build"][..]] {
            let mut make = nice("make");
            // Flags of the caller's own build must not reach the hypervisor's.
            make.env_remove("CFLAGS")
                .env_remove("MAKEFLAGS")
                .env_remove("LDFLAGS");
            run(make.arg("-C").arg(source.join("xen")).args(arguments), &log)?;
        }
        fs::copy(source.join("xen/xen"), out.join("xen"))?;
        fs::remove_dir_all(&source)?;
        step.done();
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_tells_by_its_path_whose_it_is() {
        let debian = Path::new("/cache/lab/hypervisor-0123456789abcdef/xen");
        let rebuilt = Path::new("/cache/lab/hypervisor-shadow-0123456789abcdef/xen");
        assert!(Hypervisor::Debian.is_at(debian));
        assert!(!Hypervisor::Debian.is_at(rebuilt));
        assert!(Hypervisor::ShadowPaging.is_at(rebuilt));
        assert!(!Hypervisor::ShadowPaging.is_at(debian));
    }
}
