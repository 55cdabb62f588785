// SPDX-License-Identifier: GPL-3.0-or-later
//! The direction of dependencies: programs -> adapters -> pure machines -> wire types. Whoever adds
//! a package or a dependency says here what it is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Layers, the lowest first. A package depends on lower layers, and on [`SIBLINGS`] in its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Layer {
    /// Formats: no state, no I/O.
    Wire,
    /// State machines: no I/O, no clock, no threads, no `unsafe`.
    Pure,
    /// Ways to the outside: Xen, TLS, sockets.
    Adapter,
    /// Stand-ins and libraries for guests and tests, on top of adapters.
    Harness,
    /// Daemons and commands.
    Program,
    /// What starts programs: scenarios, the lab, xtask. Nothing depends on these.
    Driver,
}

use Layer::*;

const LAYERS: [(&str, Layer); 25] = [
    ("usbif", Wire),
    ("vusb-core", Pure),
    ("session", Pure),
    ("handoff", Pure),
    ("journal", Pure),
    ("usb-sim", Pure),
    ("usb-present", Pure),
    ("transport", Adapter),
    ("control", Adapter),
    ("logging", Adapter),
    ("service", Adapter),
    ("xen", Adapter),
    ("xengnttab", Adapter),
    ("usbfs", Adapter),
    ("xen-sim", Harness),
    ("frontend-shim", Harness),
    ("backend", Program),
    ("exporter", Program),
    ("xl-hooks", Program),
    ("usbip", Program),
    ("sim-scenarios", Driver),
    ("xen-vusb-lab", Driver),
    ("fuzz", Driver),
    ("model", Driver),
    ("xtask", Driver),
];

/// Dependencies within a layer, from the left to the right.
const SIBLINGS: [(&str, &str); 5] = [
    ("vusb-core", "session"),
    ("handoff", "session"),
    ("journal", "vusb-core"),
    ("usb-sim", "session"),
    ("xen", "xengnttab"),
];

/// What a pure package may use of others' crates: data structures and formats.
const EXTERNAL_OF_PURE: [&str; 5] = ["arrayvec", "postcard", "serde", "thiserror", "uuid"];

/// What has no business in the sources of a pure package.
const IMPURE: [&str; 10] = [
    "std::net",
    "std::fs",
    "std::io",
    "std::thread",
    "std::process",
    "std::os",
    "std::env",
    "Instant::now",
    "SystemTime",
    "unsafe {",
];

fn layer(package: &str) -> Option<Layer> {
    let found = LAYERS.iter().find(|(name, _)| *name == package);
    found.map(|(_, layer)| *layer)
}

struct Package {
    name: String,
    dir: PathBuf,
    /// Normal and build dependencies, with whether they are of this workspace.
    dependencies: Vec<(String, bool)>,
}

fn packages() -> Vec<Package> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(root)
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let list = metadata["packages"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    list.iter()
        .map(|package| Package {
            name: text(&package["name"]),
            dir: Path::new(&text(&package["manifest_path"]))
                .parent()
                .unwrap()
                .to_owned(),
            dependencies: package["dependencies"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|dependency| dependency["kind"] != "dev")
                .map(|d| (text(&d["name"]), !d["path"].is_null()))
                .collect(),
        })
        .collect()
}

/// What is wrong with these packages.
fn wrong(packages: &[Package]) -> Vec<String> {
    let mut wrong = Vec::new();
    for package in packages {
        let Some(own) = layer(&package.name) else {
            wrong.push(format!(
                "{} has no layer: add it to the table",
                package.name
            ));
            continue;
        };
        for (dependency, ours) in &package.dependencies {
            let edge = (package.name.as_str(), dependency.as_str());
            if !ours {
                if own <= Pure && !EXTERNAL_OF_PURE.contains(&edge.1) {
                    wrong.push(format!("pure {} uses {}", edge.0, edge.1));
                }
                continue;
            }
            let allowed = match layer(dependency) {
                // The drivers start programs; a program knows no other program.
                Some(other) => other < own || SIBLINGS.contains(&edge),
                None => false,
            };
            if !allowed {
                wrong.push(format!("{} depends on {}", edge.0, edge.1));
            }
        }
    }
    wrong
}

#[test]
fn every_dependency_points_down() {
    let packages = packages();
    assert!(packages.len() > 10);
    assert_eq!(wrong(&packages), Vec::<String>::new());
}

/// The test itself: each of these must be found.
#[test]
fn a_dependency_that_points_up_is_found() {
    for (name, dependency, ours) in [
        ("usbif", "vusb-core", true),
        ("session", "transport", true),
        ("handoff", "tokio", false),
        ("vusb-core", "libc", false),
        ("backend", "exporter", true),
        ("exporter", "xl-hooks", true),
        ("xen", "backend", true),
        ("backend", "sim-scenarios", true),
        ("session", "something-new", true),
        ("something-new", "session", true),
    ] {
        let package = Package {
            name: name.into(),
            dir: PathBuf::new(),
            dependencies: vec![(dependency.into(), ours)],
        };
        assert_eq!(wrong(&[package]).len(), 1, "{name} -> {dependency}");
    }
}

#[test]
fn pure_packages_do_no_io_and_read_no_clock() {
    let mut found = BTreeMap::new();
    for package in packages() {
        if layer(&package.name).is_some_and(|layer| layer <= Pure) {
            look(&package.dir.join("src"), &mut found);
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

fn look(dir: &Path, found: &mut BTreeMap<String, &'static str>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let is_test = path.file_stem().is_some_and(|stem| stem == "tests");
        if is_test {
            continue;
        }
        if path.is_dir() {
            look(&path, found);
            continue;
        }
        let source = std::fs::read_to_string(&path).unwrap();
        let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for (number, line) in (1..).zip(code.lines()) {
            let line = line.split("//").next().unwrap_or_default();
            if let Some(word) = IMPURE.iter().find(|word| line.contains(**word)) {
                found.insert(format!("{}:{number}", path.display()), word);
            }
        }
    }
}

/// A `main` that returns an error has Rust print it, with `Debug`: a backtrace where those are on, or the
/// fields of a struct. Programs print what is wrong and its causes themselves.
#[test]
fn no_main_returns_an_error() {
    let mut found = Vec::new();
    for package in packages() {
        for dir in ["src", "benches", "examples"] {
            mains(&package.dir.join(dir), &mut found);
        }
    }
    let returns_an_error = |(_, line): &&(PathBuf, String)| line.contains("Result");
    let wrong: Vec<_> = found.iter().filter(returns_an_error).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(found.len() >= 10, "where are the programs? {found:#?}");
}

/// The files with a `main` and the line it begins with.
fn mains(dir: &Path, found: &mut Vec<(PathBuf, String)>) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            mains(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let source = std::fs::read_to_string(&path).unwrap();
            let main = source
                .lines()
                .find(|line| line.starts_with("fn main(") || line.starts_with("async fn main("));
            found.extend(main.map(|line| (path, line.to_owned())));
        }
    }
}

/// `docs/architecture.md` shows the same layers. Its last row names directories, not packages.
#[test]
fn the_layers_are_as_the_documentation_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/architecture.md");
    let text = std::fs::read_to_string(path).unwrap();
    let rows = [
        (Wire, "wire"),
        (Pure, "pure"),
        (Adapter, "adapters"),
        (Harness, "harness"),
        (Program, "programs"),
    ];
    for (layer, name) in rows {
        let begin = format!("| {name} |");
        let row = text.lines().find(|line| line.starts_with(&begin));
        let row = row.unwrap_or_else(|| panic!("no row {name}"));
        for (package, _) in LAYERS.iter().filter(|(_, of)| *of == layer) {
            let names = [format!("`{package}`"), format!("`{package}::")];
            let is_named = names.iter().any(|n| row.contains(n));
            assert!(is_named, "{package} is not in the row of {name}: {row}");
        }
    }
}
