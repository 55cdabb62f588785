// SPDX-License-Identifier: GPL-3.0-or-later
//! The example configuration is one that the exporter takes, as it is and with every setting in it.

use std::path::{Path, PathBuf};

use exporter::config::Config;
use transport::TLS_DIR;

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/exporter.toml")
}

/// The example with its settings, the lines of `#` without a blank, made real.
fn with_every_setting() -> Config {
    let text: String = std::fs::read_to_string(example())
        .unwrap()
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if setting.starts_with(|c: char| c != ' ') => format!("{setting}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let path = std::env::temp_dir().join(format!("exporter-example-{}.toml", std::process::id()));
    std::fs::write(&path, text).unwrap();
    let config = Config::load(&path);
    std::fs::remove_file(&path).unwrap();
    config.unwrap()
}

#[test]
fn the_example_allows_nobody_as_it_is() {
    let plain = Config::load(&example()).unwrap();
    assert!(plain.policy().allow.is_empty());
    assert!(plain.simulated.is_empty());
    assert!(plain.name.is_none());
}

#[test]
fn the_example_shows_the_defaults() {
    let plain = Config::load(&example()).unwrap();
    let full = with_every_setting();
    assert_eq!(full.policy().allow.len(), 4);
    assert_eq!(full.simulated.len(), 2);
    assert_eq!(full.listen, plain.listen);
    assert_eq!(full.state_dir, plain.state_dir);
    assert_eq!(full.hold_seconds, plain.hold_seconds);
    assert_eq!(full.startup_hold_seconds, plain.startup_hold_seconds);
    assert_eq!(full.usb.enabled, plain.usb.enabled);
    let dir = Path::new(TLS_DIR);
    assert_eq!(full.tls.files(dir), plain.tls.files(dir));
    assert_ne!(full.tls, plain.tls, "the example names the files");
}
