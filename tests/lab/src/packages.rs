// SPDX-License-Identifier: GPL-3.0-or-later
//! Debian packages, downloaded by name with the lab's own apt lists. The machine's apt sources
//! and its installed packages stay as they are; its mirror and its keyring are used.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::cache::{Cache, Key};
use crate::host_tools::{nice, output, run};
use crate::missing::Missing;
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
        let mut suites = vec![self.name().to_owned()];
        if self == Self::Trixie {
            suites.push(format!("{}-backports", self.name()));
        }
        sources("deb", &suites)
    }
}

/// Lines of a `sources.list`.
fn sources(kind: &str, suites: &[String]) -> Result<Vec<String>> {
    let Source { uri, keyring } = debian_source()?;
    let line = |suite| format!("{kind} [signed-by={keyring}] {uri} {suite} main");
    Ok(suites.iter().map(line).collect())
}

/// After so long the archive may have other versions than its lists say.
const LISTS_ARE_NEW: Duration = Duration::from_secs(5 * 60);

/// apt with lists and a package database of its own (an empty one, so that a package's whole
/// closure is downloaded). It asks the archive for nothing before something must be downloaded.
pub struct Apt {
    directory: PathBuf,
    release: Release,
    /// Its lists are those of source packages.
    of_sources: bool,
}

impl Apt {
    /// That of the release that the lab is made of.
    pub fn open(cache: &Cache) -> Self {
        Self::of_release(cache, Release::Trixie)
    }

    /// That of any release.
    pub fn of_release(cache: &Cache, release: Release) -> Self {
        Self {
            directory: cache.path(release.directory()),
            release,
            of_sources: false,
        }
    }

    /// That of the source packages of the release that the lab is made of.
    pub fn of_sources(cache: &Cache) -> Self {
        Self {
            directory: cache.path("apt-sources"),
            release: Release::Trixie,
            of_sources: true,
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = nice(program);
        command
            .env("APT_CONFIG", self.directory.join("apt.conf"))
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// Writes the configuration, and downloads the lists if they are not there yet.
    fn prepare(&self) -> Result<()> {
        for name in ["lists/partial", "archives/partial", "preferences.d"] {
            fs::create_dir_all(self.directory.join(name))?;
        }
        fs::write(self.directory.join("status"), "")?;
        let mut sources = if self.of_sources {
            sources("deb-src", &[self.release.name().to_owned()])?.join("\n")
        } else {
            self.release.sources()?.join("\n")
        };
        sources.push('\n');
        fs::write(self.directory.join("sources.list"), sources)?;
        let place = self.directory.display();
        fs::write(
            self.directory.join("apt.conf"),
            format!(
                "Dir::Etc::sourcelist \"{place}/sources.list\";\nDir::Etc::sourceparts \"-\";\n\
                 Dir::Etc::main \"-\";\nDir::Etc::preferencesparts \"{place}/preferences.d\";\n\
                 Dir::State::lists \"{place}/lists\";\nDir::State::status \"{place}/status\";\n\
                 Dir::Cache \"{place}\";\nDir::Cache::archives \"{place}/archives\";\n\
                 APT::Architecture \"amd64\";\nAPT::Install-Recommends \"false\";\n\
                 APT::Sandbox::User \"root\";\nDebug::NoLocking \"1\";\nAcquire::Languages \"none\";\n\
                 APT::Update::Error-Mode \"any\";\n\
                 Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\nAPT::Update::Post-Invoke-Success {{ }};\n"
            ),
        )?;
        if self.directory.join("updated").exists() {
            return Ok(());
        }
        self.update()
    }

    fn update(&self) -> Result<()> {
        let kind = if self.of_sources { "source " } else { "" };
        let step = Step::start(format!("{kind}package lists of {}", self.release.name()));
        let log = self.directory.join("update.log");
        self.ask(self.command("apt-get").args(["-q", "update"]), &log)?;
        fs::write(self.directory.join("updated"), "")?;
        step.done();
        Ok(())
    }

    /// Downloads lists that are not new again. True: it has.
    fn refresh(&self) -> bool {
        let age = fs::metadata(self.directory.join("updated"))
            .and_then(|updated| updated.modified())
            .map(|updated| updated.elapsed().unwrap_or_default());
        // What is missing is the better message, where this fails too.
        age.is_ok_and(|age| age > LISTS_ARE_NEW) && self.update().is_ok()
    }

    /// Runs apt, which asks the archive; what it prints goes to `log`.
    ///
    /// # Errors
    /// With one line about what it did not get.
    fn ask(&self, command: &mut Command, log: &Path) -> Result<()> {
        let output = command.stdin(Stdio::null()).output();
        let output = output.map_err(|error| {
            Missing::new(format!(
                "apt-get cannot be started ({error}), and the lab is made of Debian packages"
            ))
        })?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        fs::write(log, &text)?;
        if output.status.success() {
            return Ok(());
        }
        let reasons = reasons(&text);
        if reasons.is_empty() {
            bail!(
                "apt-get failed with {}; see {}",
                output.status,
                log.display()
            );
        }
        Err(Missing::new(format!(
            "{}; try again later, or with another Debian mirror in /etc/apt",
            reasons.join(", ")
        ))
        .into())
    }

    /// Downloads something by a command that `make` makes: with new lists where it cannot be had by
    /// old ones, which name versions that the archive may have replaced.
    fn download(&self, make: impl Fn() -> Command, log: &Path) -> Result<()> {
        self.prepare()?;
        match self.ask(&mut make(), log) {
            Err(error) if Missing::is_cause_of(&error) && self.refresh() => {
                self.ask(&mut make(), log)
            }
            result => result,
        }
    }

    /// `6.12.107+deb13-amd64`: the kernel that a suite's metapackage means. apt is asked once.
    pub fn kernel_version(&self, suite: &str) -> Result<String> {
        if let Ok(version) = fs::read_to_string(self.remembered_version(suite)) {
            return Ok(version);
        }
        self.prepare()?;
        let package = format!("linux-image-amd64/{suite}");
        let text = output(self.command("apt-cache").args(["show", &package])).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let version = text
            .lines()
            .filter(|line| line.starts_with("Depends:"))
            .flat_map(|line| line.split([' ', ',']))
            .find_map(|word| word.strip_prefix("linux-image-"))
            .ok_or_else(|| {
                Missing::new(format!(
                    "the archive's lists have no linux-image-amd64 in {suite}, which names the kernel; \
                     try again later, or with another Debian mirror in /etc/apt"
                ))
            })?
            .to_owned();
        fs::write(self.remembered_version(suite), &version)?;
        Ok(version)
    }

    fn remembered_version(&self, suite: &str) -> PathBuf {
        self.directory.join(format!("kernel-version-{suite}"))
    }

    /// Does something with the kernel that a suite's metapackage means. Where packages of the one that
    /// was remembered cannot be had, and the archive has another by now: with that.
    pub fn with_kernel<T>(&self, suite: &str, with: impl Fn(&str) -> Result<T>) -> Result<T> {
        let version = self.kernel_version(suite)?;
        let result = with(&version);
        if !result.as_ref().is_err_and(Missing::is_cause_of) {
            return result;
        }
        match self.replaced_kernel(suite, &version)? {
            Some(newer) => with(&newer),
            None => result,
        }
    }

    /// The version of the kernel that the lists have instead of this one, which then is remembered.
    pub fn replaced_kernel(&self, suite: &str, version: &str) -> Result<Option<String>> {
        let _ = fs::remove_file(self.remembered_version(suite));
        let newer = self.kernel_version(suite)?;
        Ok((newer != version).then_some(newer))
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
            let download = || {
                let mut command = self.command("apt-get");
                if closure {
                    command.args(["-q", "-y", "-d", "--no-install-recommends", "-o"]);
                    command.arg(format!("Dir::Cache::archives={}", debs.display()));
                    command.arg("install");
                } else {
                    command.args(["-q", "download"]).current_dir(&debs);
                }
                command.args(packages);
                command
            };
            self.download(download, &log)?;
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
            let download = || {
                let mut command = self.command("apt-get");
                command.args(["-q", "source", "--download-only", part, package]);
                command.current_dir(into);
                command
            };
            self.download(download, log)?;
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

/// What apt did not get and why, out of what it printed.
fn reasons(text: &str) -> Vec<String> {
    let mut reasons: Vec<String> = Vec::new();
    let errors = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("E: "));
    for error in errors {
        let absent = [
            "Unable to locate package ",
            "Unable to find a source package for ",
        ];
        let absent = absent.iter().find_map(|start| error.strip_prefix(start));
        let reason = if let Some(package) = absent {
            format!("the archive's lists do not have {package}")
        } else if let Some(failed) = error.strip_prefix("Failed to fetch ") {
            let (uri, why) = failed.split_once(' ').unwrap_or((failed, ""));
            let file = uri.rsplit('/').next().unwrap_or(uri);
            let why = why.split(" [IP").next().unwrap_or(why);
            let why: Vec<&str> = why.split_whitespace().collect();
            format!("the archive does not serve {file} ({})", why.join(" "))
        } else {
            error.to_owned()
        };
        // A summary of the lines above it.
        let summary = [
            "Failed to fetch some",
            "Unable to fetch some",
            "Some index files",
        ];
        if !summary.iter().any(|start| error.starts_with(start)) {
            reasons.push(reason);
        }
    }
    reasons
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
        .ok_or_else(|| {
            Missing::new(
                "no Debian mirror in this machine's /etc/apt (looked for a URI that ends in /debian)",
            )
        })?;
    let keyring = [
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "/usr/share/keyrings/debian-archive-keyring.pgp",
    ]
    .into_iter()
    .find(|path| Path::new(path).exists())
    .ok_or_else(|| {
        Missing::new("no Debian archive keyring: install the package debian-archive-keyring")
    })?;
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
    fn what_apt_did_not_get_is_told_in_one_line() {
        let not_served = "Reading package lists...\n\
            Err:1 http://mirror.test/debian trixie/main xen 4.20.4 (tar)\n  404  Not Found [IP: 192.0.2.1 80]\n\
            E: Failed to fetch http://mirror.test/debian/pool/main/x/xen/xen_4.20.4.orig.tar.xz  404  Not Found [IP: 192.0.2.1 80]\n\
            E: Failed to fetch some archives.\n";
        assert_eq!(
            reasons(not_served),
            ["the archive does not serve xen_4.20.4.orig.tar.xz (404 Not Found)"]
        );
        let not_listed = "E: Unable to locate package one\nE: Unable to locate package two\n";
        assert_eq!(
            reasons(not_listed),
            [
                "the archive's lists do not have one",
                "the archive's lists do not have two"
            ]
        );
        assert!(reasons("Fetched 1 B\n").is_empty());
    }

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
