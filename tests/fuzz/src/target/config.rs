// SPDX-License-Identifier: GPL-3.0-or-later
//! `vusbd.toml` and `exporter.toml`.

use std::path::Path;

use crate::{Input, Target};

/// See the module's documentation.
pub const TARGET: Target = Target {
    name: "config",
    seeds,
    run,
};

const VUSBD: &str = include_str!("../../../../backend/dist/vusbd.toml");
const EXPORTER: &str = include_str!("../../../../exporter/dist/exporter.toml");

/// Pieces that a text is made of, besides its own bytes.
const WORDS: [&str; 40] = [
    "\n",
    "=",
    "[",
    "]",
    "[[",
    "]]",
    "\"",
    "'",
    ".",
    ",",
    "{",
    "}",
    "#",
    "-",
    "0",
    "1",
    "1000",
    "1001",
    "-1",
    "1e400",
    "18446744073709551616",
    "true",
    "\"*\"",
    "\"a\"",
    "\"a:1\"",
    "\"1-2.3\"",
    "\"0951:1666\"",
    "name",
    "address",
    "[[exporter]]",
    "[hand-off]",
    "quiesce-ms",
    "[[allow]]",
    "device",
    "vm",
    "host",
    "[[simulated]]",
    "kind = \"disk\"",
    "size_mib",
    "[usb]",
];

fn seeds() -> Vec<Vec<u8>> {
    let text = |which: u8, text: &str| [&[which][..], text.as_bytes()].concat();
    // The examples with all their comments made real.
    let real = |text: &str| text.replace("\n#", "\n");
    vec![
        text(0, VUSBD),
        text(1, EXPORTER),
        text(0, &real(VUSBD)),
        text(1, &real(EXPORTER)),
        text(
            0,
            "[[exporter]]\nname='a'\naddress='a:1'\n[hand-off]\nquiesce-ms=7\n",
        ),
        text(
            1,
            "[[allow]]\ndevice='0951:1666'\nvm='*'\nhost='*'\n[[simulated]]\nkind='disk'\nfile='f'\n",
        ),
        vec![2, 29, 0, 27, 1, 23, 0, 28, 1, 24],
    ]
}

fn run(input: &mut Input<'_>) {
    let kind = input.below(4);
    let text = match kind {
        0 | 1 => String::from_utf8_lossy(input.rest()).into_owned(),
        _ => {
            let mut text = String::new();
            while !input.is_empty() {
                match input.byte() {
                    byte @ 0..200 => text.push_str(WORDS[usize::from(byte) % WORDS.len()]),
                    byte => text.push(char::from(byte & 0x7f)),
                }
            }
            text
        }
    };
    let path = Path::new("a.toml");
    match kind & 1 {
        0 => match backend::config::Config::parse(&text, path) {
            Ok(config) => {
                assert!(config.hand_off.quiesce_ms <= 1000);
                for exporter in &config.exporters {
                    let same = config.exporters.iter().filter(|e| e.name == exporter.name);
                    assert_eq!(same.count(), 1);
                    assert!(exporter.address.contains(':') && !exporter.name.contains('/'));
                }
                input.did(("vusbd", config.exporters.len().min(3)));
            }
            Err(e) => {
                assert!(e.to_string().contains("a.toml"), "says which file");
                input.did(("no vusbd", std::mem::discriminant(&e)));
            }
        },
        _ => match exporter::Config::parse(&text, path) {
            Ok(config) => {
                let policy = config.policy();
                assert_eq!(policy.allow.is_empty(), config.allow.is_empty());
                for disk in &config.simulated {
                    // It is shifted to bytes.
                    assert!(disk.size_mib.checked_mul(1 << 20).is_some());
                }
                input.did((
                    "exporter",
                    config.allow.len().min(3),
                    config.simulated.len().min(3),
                ));
            }
            Err(e) => {
                assert!(e.to_string().contains("a.toml"), "says which file");
                input.did(("no exporter", std::mem::discriminant(&e)));
            }
        },
    }
}
