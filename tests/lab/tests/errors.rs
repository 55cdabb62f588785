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
