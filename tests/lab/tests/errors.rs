// SPDX-License-Identifier: GPL-3.0-or-later
//! What the lab says when it cannot do what it was asked for.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A directory that is removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("lab-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn lab(cache: &Path, path: &str, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(arguments)
        .env("XEN_VUSB_CACHE", cache)
        .env("RUST_BACKTRACE", "1")
        .env("PATH", path)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn an_error_is_one_line_also_where_backtraces_are_on() {
    let cache = Scratch::new("error");
    let output = lab(&cache.0, "/usr/bin:/bin", &["run", "no-such-scenario"]);
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(
        error.starts_with("lab: no scenario \"no-such-scenario\""),
        "{error}"
    );
    assert_eq!(error.lines().count(), 1, "{error}");
}

/// Without any program of this machine the lab cannot install what it lacks.
#[test]
fn a_machine_without_what_is_needed_skips_and_says_what() {
    let cache = Scratch::new("missing");
    let empty = cache.0.join("bin");
    std::fs::create_dir(&empty).unwrap();
    let path = empty.to_str().unwrap();

    let output = lab(&cache.0, path, &["run", "stock-refuse"]);
    let last = text(&output.stdout);
    assert_eq!(output.status.code(), Some(77), "{}", text(&output.stderr));
    let last = last.lines().last().unwrap();
    assert!(
        last.starts_with("RESULT skipped the lab needs the Debian packages"),
        "{last}"
    );
    assert!(
        last.contains("qemu-utils") && last.contains("as root"),
        "{last}"
    );

    let output = lab(&cache.0, path, &["run", "stock-refuse", "--json"]);
    assert_eq!(output.status.code(), Some(77));
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["scenario"], "stock-refuse");
    assert_eq!(result["result"], "skipped");
    assert!(result["reason"].as_str().unwrap().contains("qemu-utils"));

    // A command that is no test fails.
    let output = lab(&cache.0, path, &["up"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("qemu-utils"));
}

fn program(directory: &Path, name: &str, script: &str) {
    use std::os::unix::fs::PermissionsExt;
    let path = directory.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// An archive that does not serve a package is asked again with new lists, unless they are new, and then
/// is one line.
#[test]
fn what_the_archive_does_not_serve_is_one_line() {
    let cache = Scratch::new("archive");
    let bin = cache.0.join("bin");
    std::fs::create_dir(&bin).unwrap();
    for tool in ["xz", "zstd", "strip", "dpkg-deb", "qemu-img", "unshare"] {
        program(&bin, tool, "exit 1");
    }
    program(&bin, "nice", "exec \"$@\"");
    let calls = cache.0.join("calls");
    let log = calls.display();
    let refuses = "E: Failed to fetch http://mirror.test/debian/pool/q/qemu-system-x86_10.0_amd64.deb  404  Not Found [IP: 192.0.2.1 80]";
    program(
        &bin,
        "apt-get",
        &format!(
            "case \"$*\" in\n*update*) echo update >> {log} ;;\n\
             *) echo get >> {log}; echo \"{refuses}\" >&2; exit 100 ;;\nesac"
        ),
    );
    let asked = || {
        let text = std::fs::read_to_string(&calls).unwrap_or_default();
        let _ = std::fs::remove_file(&calls);
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let path = bin.to_str().unwrap();
    let run = || lab(&cache.0, path, &["run", "disk-migrate"]);

    let output = run();
    let stdout = text(&output.stdout);
    assert_eq!(output.status.code(), Some(77), "{}", text(&output.stderr));
    if stdout.contains("no Debian") {
        // Not Debian: it has said so, and there is no more to see.
        assert!(stdout.starts_with("RESULT skipped "), "{stdout}");
        return;
    }
    assert_eq!(
        stdout.trim_end(),
        "RESULT skipped making the lab's programs: the archive does not serve qemu-system-x86_10.0_amd64.deb \
         (404 Not Found); try again later, or with another Debian mirror in /etc/apt"
    );
    assert_eq!(asked(), ["update", "get"]);

    // Its lists are old.
    let updated = cache.0.join("lab/apt/updated");
    let file = std::fs::File::options().write(true).open(updated).unwrap();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    file.set_modified(old).unwrap();
    assert_eq!(run().status.code(), Some(77));
    assert_eq!(asked(), ["get", "update", "get"]);
}
