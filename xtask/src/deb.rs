// SPDX-License-Identifier: GPL-3.0-or-later
//! `cargo xtask deb`: Debian packages.
//!
//! The guest module's has only its sources in it: DKMS builds it in each guest for each kernel.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cargo::root;

/// Name of the module, of its DKMS package and, with `-dkms`, of its Debian package.
const MODULE: &str = "xen-vusb-hcd";
/// Its sources, from the repository's root.
const SOURCE: &str = "frontend-shim/linux/hcd";

/// Makes the packages, prints their paths.
///
/// # Errors
/// When a source is missing, when versions differ, when `dpkg-deb` is missing or fails.
pub fn run(out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("creating {}", out.display()))?;
    println!("{}", dkms(out)?.display());
    Ok(())
}

fn dkms(out: &Path) -> Result<PathBuf> {
    let source = root().join(SOURCE);
    let version = version(&fs::read_to_string(source.join("dkms.conf"))?)?;
    let package = format!("{MODULE}-dkms");
    let staging = out.join(format!("{package}.staging"));
    let _ = fs::remove_dir_all(&staging);
    let stage = |path: &str, mode: u32, contents: &[u8]| put(&staging, path, mode, contents);

    let mut files: Vec<PathBuf> = fs::read_dir(&source)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| is_source(path))
        .collect();
    files.sort();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let to = format!("usr/src/{MODULE}-{version}/{name}");
        stage(&to, 0o644, &fs::read(&file)?)?;
    }
    let read = |name: &str| {
        let path = source.join(name);
        fs::read(&path).with_context(|| format!("reading {}", path.display()))
    };
    let conf = format!("{MODULE}.conf");
    stage(&format!("usr/lib/modprobe.d/{conf}"), 0o644, &read(&conf)?)?;
    let doc = format!("usr/share/doc/{package}");
    stage(&format!("{doc}/README.md"), 0o644, &read("README.md")?)?;
    stage(
        &format!("{doc}/copyright"),
        0o644,
        &read("debian/copyright")?,
    )?;
    for (name, mode) in [
        ("control", 0o644),
        ("postinst", 0o755),
        ("prerm", 0o755),
        ("postrm", 0o755),
    ] {
        let text = String::from_utf8(read(&format!("debian/{name}"))?)?;
        let text = text.replace("@VERSION@", &version);
        stage(&format!("DEBIAN/{name}"), mode, text.as_bytes())?;
    }

    let deb = out.join(format!("{package}_{version}_all.deb"));
    let status = Command::new("dpkg-deb")
        .args(["--root-owner-group", "-Zxz", "--build"])
        .args([&staging, &deb])
        .stdout(Stdio::null())
        .status()
        .context("dpkg-deb (Debian's package dpkg) cannot be run")?;
    if !status.success() {
        bail!("dpkg-deb failed: {status}");
    }
    fs::remove_dir_all(&staging)?;
    Ok(deb)
}

/// What DKMS needs for the build.
fn is_source(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    path.extension().is_some_and(|end| end == "c" || end == "h")
        || name == "Makefile"
        || name == "dkms.conf"
}

/// The version in a `dkms.conf`, which is the workspace's.
fn version(conf: &str) -> Result<String> {
    let version = conf
        .lines()
        .find_map(|line| line.strip_prefix("PACKAGE_VERSION="))
        .context("dkms.conf has no PACKAGE_VERSION")?
        .trim_matches('"');
    let ours = env!("CARGO_PKG_VERSION");
    if version != ours {
        bail!("dkms.conf says version {version}, the workspace {ours}");
    }
    Ok(version.to_owned())
}

/// Writes a file of the package and the directories above it, with the modes that they will have
/// whatever the umask.
fn put(staging: &Path, path: &str, mode: u32, contents: &[u8]) -> Result<()> {
    let file = staging.join(path);
    let mut directory = staging.to_owned();
    for part in Path::new(path).parent().into_iter().flatten() {
        fs::create_dir_all(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        directory.push(part);
    }
    fs::create_dir_all(&directory)?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
    fs::write(&file, contents)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(mode))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_has_the_workspace_s_version() {
        let conf = fs::read_to_string(root().join(SOURCE).join("dkms.conf")).unwrap();
        assert_eq!(version(&conf).unwrap(), env!("CARGO_PKG_VERSION"));
        assert!(version("PACKAGE_VERSION=\"99.0\"\n").is_err());
        assert!(version("").is_err());
    }

    #[test]
    fn the_package_has_what_dkms_needs() {
        let out = std::env::temp_dir().join(format!("xen-vusb-deb-test-{}", std::process::id()));
        fs::create_dir_all(&out).unwrap();
        let deb = dkms(&out).unwrap();
        let listing = Command::new("dpkg-deb")
            .arg("-c")
            .arg(&deb)
            .output()
            .unwrap();
        let listing = String::from_utf8(listing.stdout).unwrap();
        fs::remove_dir_all(&out).unwrap();
        let source = format!("./usr/src/{MODULE}-{}", env!("CARGO_PKG_VERSION"));
        for file in ["dkms.conf", "Makefile", "front.c", "vusb.h"] {
            assert!(listing.contains(&format!("{source}/{file}\n")), "{listing}");
        }
        assert!(listing.contains("./usr/lib/modprobe.d/xen-vusb-hcd.conf\n"));
        assert!(listing.lines().all(|line| line.contains(" root/root ")));
    }
}
