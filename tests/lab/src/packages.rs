// SPDX-License-Identifier: GPL-3.0-or-later
//! Debian packages, downloaded by name with the lab's own apt lists. The machine's apt sources
//! and its installed packages stay as they are; its mirror and its keyring are used.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, Key};
use crate::host_tools::{nice, output, run};
use crate::progress::Step;

/// A Debian release whose packages are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Debian 13, which everything but older guests comes from: its backports have the only Debian
    /// kernel with `xen-hcd`, its Xen is 4.20, its QEMU 10.0.
    Trixie,
    /// Debian 12, for guests.
    Bookworm,
}

impl Release {
    /// Its name in the archive.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trixie => "trixie",
            Self::Bookworm => "bookworm",
        }
    }

    /// Where its lists lie in the cache.
    fn directory(self) -> &'static str {
        match self {
            Self::Trixie => "apt",
            Self::Bookworm => "apt-bookworm",
        }
    }

    /// Its lines of a `sources.list`, with the machine's mirror and keyring.
    ///
    /// # Errors
    /// When the machine has none.
    pub fn sources(self) -> Result<Vec<String>> {
        let Source { uri, keyring } = debian_source()?;
        let options = format!("[signed-by={keyring}]");
        let name = self.name();
        let mut lines = vec![format!("deb {options} {uri} {name} main")];
        if self == Self::Trixie {
            lines.push(format!("deb {options} {uri} {name}-backports main"));
        }
        lines.push(format!("deb-src {options} {uri} {name} main"));
        Ok(lines)
    }
}

/// apt with lists and a package database of its own (an empty one, so that a package's whole
/// closure is downloaded).
pub struct Apt {
    release: Release,
    directory: PathBuf,
}

impl Apt {
    /// Prepare the private configuration, and the lists if they are not there yet.
    pub fn open(cache: &Cache) -> Result<Self> {
        Self::of_release(cache, Release::Trixie)
    }

    /// The same for any release.
    pub fn of_release(cache: &Cache, release: Release) -> Result<Self> {
        let directory = cache.path(release.directory());
        for name in ["lists/partial", "archives/partial", "preferences.d"] {
            fs::create_dir_all(directory.join(name))?;
        }
        fs::write(directory.join("status"), "")?;
        let mut sources = release.sources()?.join("\n");
        sources.push('\n');
        fs::write(directory.join("sources.list"), sources)?;
        let place = directory.display();
        fs::write(
            directory.join("apt.conf"),
            format!(
                "Dir::Etc::sourcelist \"{place}/sources.list\";\nDir::Etc::sourceparts \"-\";\n\
                 Dir::Etc::main \"-\";\nDir::Etc::preferencesparts \"{place}/preferences.d\";\n\
                 Dir::State::lists \"{place}/lists\";\nDir::State::status \"{place}/status\";\n\
                 Dir::Cache \"{place}\";\nDir::Cache::archives \"{place}/archives\";\n\
                 APT::Architecture \"amd64\";\nAPT::Install-Recommends \"false\";\n\
                 APT::Sandbox::User \"root\";\nDebug::NoLocking \"1\";\nAcquire::Languages \"none\";\n\
                 Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\nAPT::Update::Post-Invoke-Success {{ }};\n"
            ),
        )?;
        let apt = Self { release, directory };
        if !apt.directory.join("updated").exists() {
            let step = Step::start(format!("package lists of {}", release.name()));
            run(
                apt.command("apt-get").args(["-q", "update"]),
                &apt.directory.join("update.log"),
            )?;
            fs::write(apt.directory.join("updated"), "")?;
            step.done();
        }
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = nice(program);
        command
            .env("APT_CONFIG", self.directory.join("apt.conf"))
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// `6.12.107+deb13-amd64`: the kernel that a suite's metapackage means. apt is asked once per
    /// set of lists.
    pub fn kernel_version(&self, suite: &str) -> Result<String> {
        let remembered = self.directory.join(format!("kernel-version-{suite}"));
        if let Ok(version) = fs::read_to_string(&remembered) {
            return Ok(version);
        }
        let package = format!("linux-image-amd64/{suite}");
        let text = output(self.command("apt-cache").args(["show", &package]))?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let version = text
            .lines()
            .filter(|line| line.starts_with("Depends:"))
            .flat_map(|line| line.split([' ', ',']))
            .find_map(|word| word.strip_prefix("linux-image-"))
            .with_context(|| format!("linux-image-amd64 of {suite} names no kernel"))?
            .to_owned();
        fs::write(&remembered, &version)?;
        Ok(version)
    }

    /// Download packages, with all that they depend on if `closure`, and extract them.
    pub fn tree(
        &self,
        cache: &Cache,
        kind: &str,
        packages: &[String],
        closure: bool,
    ) -> Result<PathBuf> {
        let mut key = Key::new()
            .with(self.release.name())
            .with([u8::from(closure)]);
        for package in packages {
            key = key.with(package);
        }
        cache.artefact(kind, key, |directory| {
            let mut step = Step::start(format!("packages for the {kind}"));
            let debs = directory.join("debs");
            fs::create_dir_all(debs.join("partial"))?;
            let log = directory.join("log");
            let mut download = self.command("apt-get");
            if closure {
                download.args(["-q", "-y", "-d", "--no-install-recommends", "-o"]);
                download.arg(format!("Dir::Cache::archives={}", debs.display()));
                download.arg("install");
            } else {
                download.args(["-q", "download"]).current_dir(&debs);
            }
            run(download.args(packages), &log)?;
            step.note("extracting");
            extract(&debs, directory, &log)?;
            fs::remove_dir_all(&debs)?;
            step.done();
            Ok(())
        })
    }

    /// Download and unpack Debian's source of `package` with its patches applied.
    pub fn source(&self, package: &str, into: &Path, log: &Path) -> Result<()> {
        // Tarball and Debian's part by themselves: apt checks both against the signed index,
        // so the .dsc, which would only repeat their checksums, is not needed.
        for part in ["--tar-only", "--diff-only"] {
            run(
                self.command("apt-get")
                    .args(["-q", "source", "--download-only", part, package])
                    .current_dir(into),
                log,
            )?;
        }
        let mut tarballs: Vec<PathBuf> = fs::read_dir(into)?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.to_string_lossy().contains(".tar."))
            .collect();
        // "….orig.tar.xz" after "….debian.tar.xz" would lose Debian's directory.
        tarballs.sort_by_key(|path| path.to_string_lossy().contains(".debian.tar"));
        let source = into.join("src");
        fs::create_dir_all(&source)?;
        for tarball in tarballs {
            let debian = tarball.to_string_lossy().contains(".debian.tar");
            let mut tar = nice("tar");
            tar.arg("-C").arg(&source).arg("-xf").arg(&tarball);
            if !debian {
                tar.arg("--strip-components=1");
            }
            run(&mut tar, log)?;
        }
        let series = fs::read_to_string(source.join("debian/patches/series"))?;
        for patch in series
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            let file = source.join("debian/patches").join(patch);
            run(
                nice("patch")
                    .args(["-s", "-p1", "-i"])
                    .arg(file)
                    .current_dir(&source),
                log,
            )?;
        }
        Ok(())
    }
}

fn extract(debs: &Path, into: &Path, log: &Path) -> Result<()> {
    let mut files: Vec<PathBuf> = fs::read_dir(debs)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    if files.is_empty() {
        bail!("apt downloaded nothing");
    }
    // base-files has the links of the merged /usr, which must be there before anything that
    // still names /lib.
    files.sort_by_key(|path| {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        (!name.starts_with("base-files_"), name)
    });
    for file in files {
        run(nice("dpkg-deb").arg("-x").arg(file).arg(into), log)?;
    }
    merge_usr(into, log)
}

/// Debian 12's packages name /bin and /lib, and its base-files has no links there.
fn merge_usr(root: &Path, log: &Path) -> Result<()> {
    for name in ["bin", "sbin", "lib", "lib64"] {
        let directory = root.join(name);
        if !fs::symlink_metadata(&directory).is_ok_and(|found| found.is_dir()) {
            continue;
        }
        let merged = root.join("usr").join(name);
        fs::create_dir_all(&merged)?;
        run(
            nice("cp").arg("-a").arg(directory.join(".")).arg(&merged),
            log,
        )?;
        fs::remove_dir_all(&directory)?;
        std::os::unix::fs::symlink(format!("usr/{name}"), &directory)?;
    }
    Ok(())
}

struct Source {
    uri: String,
    keyring: String,
}

/// The machine's own Debian mirror and keyring, from its apt configuration.
fn debian_source() -> Result<Source> {
    let mut texts = Vec::new();
    if let Ok(text) = fs::read_to_string("/etc/apt/sources.list") {
        texts.push(text);
    }
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        let mut paths: Vec<PathBuf> = entries
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .collect();
        paths.sort();
        texts.extend(
            paths
                .iter()
                .filter_map(|path| fs::read_to_string(path).ok()),
        );
    }
    let uri = texts
        .iter()
        .flat_map(|text| text.lines())
        .filter_map(mirror_of_line)
        .next()
        .context(
            "no Debian mirror in this machine's /etc/apt (looked for a URI that ends in /debian)",
        )?;
    let keyring = [
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "/usr/share/keyrings/debian-archive-keyring.pgp",
    ]
    .into_iter()
    .find(|path| Path::new(path).exists())
    .context("no Debian archive keyring: install the package debian-archive-keyring")?;
    Ok(Source {
        uri,
        keyring: keyring.to_owned(),
    })
}

/// The URI of a line `URIs: …` (deb822) or `deb … URI suite …`, if it is a Debian archive's.
fn mirror_of_line(line: &str) -> Option<String> {
    let line = line.trim();
    let rest = line
        .strip_prefix("URIs:")
        .or_else(|| line.strip_prefix("deb "))?;
    rest.split_whitespace()
        .find(|word| word.contains("://") && word.trim_end_matches('/').ends_with("/debian"))
        .map(|word| word.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_found_in_both_formats() {
        assert_eq!(
            mirror_of_line("URIs: http://mirror.test/debian"),
            Some("http://mirror.test/debian".into())
        );
        assert_eq!(
            mirror_of_line("deb [signed-by=/k.gpg] http://mirror.test/debian/ bookworm main"),
            Some("http://mirror.test/debian".into())
        );
        assert_eq!(
            mirror_of_line("URIs: http://mirror.test/debian-security"),
            None
        );
        assert_eq!(
            mirror_of_line("# deb http://mirror.test/debian bookworm main"),
            None
        );
    }
}
