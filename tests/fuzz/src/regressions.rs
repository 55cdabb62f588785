// SPDX-License-Identifier: GPL-3.0-or-later
//! Inputs that failed once: one per line in hexadecimal, with comments after `#`.

use anyhow::{Context, Result};

/// The inputs in a file's text.
///
/// # Errors
/// With the line that is none.
pub fn parse(text: &str) -> Result<Vec<Vec<u8>>> {
    let mut inputs = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let input = line.split('#').next().unwrap_or_default().trim();
        if !input.is_empty() || line.trim() == "-" {
            inputs.push(from_hex(input).with_context(|| format!("line {number}"))?);
        }
    }
    Ok(inputs)
}

/// To hexadecimal.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// From hexadecimal.
///
/// # Errors
/// When it is none.
pub fn from_hex(text: &str) -> Result<Vec<u8>> {
    anyhow::ensure!(text.len().is_multiple_of(2), "half a byte at the end");
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| {
            let pair = std::str::from_utf8(pair).context("not hexadecimal")?;
            u8::from_str_radix(pair, 16).with_context(|| format!("'{pair}' is not hexadecimal"))
        })
        .collect()
}
