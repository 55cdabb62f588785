// SPDX-License-Identifier: GPL-3.0-or-later
//! The hypervisor: Debian's Xen, rebuilt with shadow paging.
//!
//! Debian's builds leave `CONFIG_SHADOW_PAGING` off, and live migration of a PV guest tracks
//! dirty pages with it: `xl migrate` fails with "Failed to enable logdirty: 95" without.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use crate::cache::{Cache, Key};
use crate::host_tools::{nice, run};
use crate::packages::Apt;
use crate::progress::Step;

const EXTRA_CONFIG: &str = "CONFIG_SHADOW_PAGING=y\n";

/// The multiboot image, built if it is not in the cache.
pub fn build(cache: &Cache, apt: &Apt) -> Result<PathBuf> {
    let key = Key::new().with("xen").with(EXTRA_CONFIG);
    let directory = cache.artefact("hypervisor", key, |out| {
        let mut step = Step::start("hypervisor with shadow paging (a few minutes)");
        let log = out.join("log");
        apt.source("xen", out, &log)?;
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
    })?;
    Ok(directory.join("xen"))
}
