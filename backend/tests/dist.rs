// SPDX-License-Identifier: GPL-3.0-or-later
//! The example configuration is one that the daemon takes, as it is and with every setting in it.

use std::path::{Path, PathBuf};

use backend::config::{Config, HandOff};
use transport::TLS_DIR;

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/vusbd.toml")
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
    let path = std::env::temp_dir().join(format!("vusbd-example-{}.toml", std::process::id()));
    std::fs::write(&path, text).unwrap();
    let config = Config::load(&path);
    std::fs::remove_file(&path).unwrap();
    config.unwrap()
}

#[test]
fn the_example_is_right_and_shows_the_defaults() {
    let plain = Config::load(&example()).unwrap();
    assert!(plain.exporters.is_empty());
    let full = with_every_setting();
    assert_eq!(full.exporters.len(), 1);
    assert_eq!(full.exporters[0].name, "pi4");
    assert_eq!(full.socket, plain.socket);
    assert_eq!(full.hand_off.quiesce_ms, HandOff::default().quiesce_ms);
    let dir = Path::new(TLS_DIR);
    assert_eq!(full.tls.files(dir), plain.tls.files(dir));
    assert_ne!(full.tls, plain.tls, "the example names the files");
}
