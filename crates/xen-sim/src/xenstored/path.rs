// SPDX-License-Identifier: GPL-3.0-or-later
//! Names of nodes, as clients give them.

use xen::DomId;

use super::wire::{Errno, REL_PATH_MAX};

/// The directory that a domain's relative paths start from.
pub(super) fn domain_path(domid: DomId) -> String {
    format!("/local/domain/{domid}")
}

/// Makes a path absolute, and refuses what xenstored refuses.
pub(super) fn canonicalize(
    domid: DomId,
    path: &[u8],
    allow_special: bool,
) -> Result<String, Errno> {
    let path = std::str::from_utf8(path).map_err(|_| Errno::Inval)?;
    let valid = |c: char| c.is_ascii_alphanumeric() || "-/_@".contains(c);
    if path.is_empty() || !path.chars().all(valid) || (path.starts_with('@') && !allow_special) {
        return Err(Errno::Inval);
    }
    let absolute = if path.starts_with(['/', '@']) {
        path.to_owned()
    } else {
        format!("{}/{path}", domain_path(domid))
    };
    let too_long = unprefixed_len(&absolute) > REL_PATH_MAX;
    if (absolute.len() > 1 && absolute.ends_with('/')) || absolute.contains("//") || too_long {
        return Err(Errno::Inval);
    }
    Ok(absolute)
}

/// Length without a leading `/local/domain/<n>/`, which the limit does not count.
fn unprefixed_len(path: &str) -> usize {
    let Some(rest) = path.strip_prefix("/local/domain/") else {
        return path.len();
    };
    match rest.split_once('/') {
        Some((number, below)) if number.bytes().all(|b| b.is_ascii_digit()) => below.len(),
        _ => path.len(),
    }
}

/// Whether `path` is `dir` or below it.
pub(super) fn is_within(path: &str, dir: &str) -> bool {
    dir == "/" && path.starts_with('/')
        || path
            .strip_prefix(dir)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
