// SPDX-License-Identifier: GPL-3.0-or-later
//! Paths of xenstore.

use std::borrow::Borrow;
use std::fmt::{self, Write};
use std::ops::Deref;

use super::Error;
use super::wire::{ABSOLUTE_PATH_MAX, RELATIVE_PATH_MAX};

/// A path under construction. One buffer grows and shrinks as components are pushed and popped:
/// walking a directory needs no new string per node.
///
/// It is a `str` to whoever reads it. Whether it is a valid path is checked when it is used.
///
/// ```
/// use xen::xenstore::XsPath;
///
/// let mut path = XsPath::new("/local/domain").with(3).with("device/vusb").with(0);
/// assert_eq!(&*path, "/local/domain/3/device/vusb/0");
/// path.push("state");
/// assert_eq!(&*path, "/local/domain/3/device/vusb/0/state");
/// path.pop();
/// assert_eq!(path.last(), "0");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct XsPath(String);

impl XsPath {
    /// Starts with `base`, absolute (`/local/domain`) or relative (`device/vusb`); empty for a
    /// relative path whose first component is still to come. A slash at its end is dropped.
    pub fn new(base: &str) -> XsPath {
        let base = match base {
            "/" => base,
            _ => base.strip_suffix('/').unwrap_or(base),
        };
        let mut path = String::with_capacity(base.len() + 32);
        path.push_str(base);
        XsPath(path)
    }

    /// Appends a component, or several with slashes between them.
    pub fn push(&mut self, component: impl fmt::Display) {
        if !self.0.is_empty() && !self.0.ends_with('/') {
            self.0.push('/');
        }
        // Writing to a string fails only if the component's own formatting does; the component is
        // then missing, and the path ends in a slash, which is refused when it is used.
        let _ = write!(self.0, "{component}");
    }

    /// Drops the last component.
    pub fn pop(&mut self) {
        let keep = match self.0.rfind('/') {
            Some(0) => 1,
            Some(at) => at,
            None => 0,
        };
        self.0.truncate(keep);
    }

    /// This path with a component appended.
    #[must_use]
    pub fn with(mut self, component: impl fmt::Display) -> XsPath {
        self.push(component);
        self
    }

    /// A copy of this path with a component appended.
    #[must_use]
    pub fn join(&self, component: impl fmt::Display) -> XsPath {
        let mut path = XsPath::new(&self.0);
        path.push(component);
        path
    }

    /// The last component.
    pub fn last(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or("")
    }
}

impl Deref for XsPath {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for XsPath {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for XsPath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for XsPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<XsPath> for String {
    fn from(path: XsPath) -> String {
        path.0
    }
}

/// Refuses what xenstored would refuse, or what would break the framing. The set of characters is
/// left to the daemon: implementations differ.
pub(super) fn check(path: &str) -> Result<(), Error> {
    let special = path.starts_with('@');
    let absolute = path.starts_with('/');
    let reason = if path.is_empty() {
        "it is empty"
    } else if path.as_bytes().contains(&0) {
        "it holds a nul byte"
    } else if absolute && path.len() > ABSOLUTE_PATH_MAX {
        "it is longer than 3072 bytes"
    } else if !absolute && path.len() > RELATIVE_PATH_MAX {
        "it is relative and longer than 2048 bytes"
    } else if !special && path.contains("//") {
        "it holds a doubled slash"
    } else if !special && path.len() > 1 && path.ends_with('/') {
        "it ends in a slash"
    } else {
        return Ok(());
    };
    let mut end = path.len().min(64);
    while !path.is_char_boundary(end) {
        end -= 1;
    }
    Err(Error::BadPath {
        path: path[..end].to_owned(),
        reason,
    })
}

/// Whether `path` is `parent` or below it, in the sense of the protocol's `<child>`.
pub(super) fn is_at_or_below(path: &str, parent: &str) -> bool {
    match path.strip_prefix(parent) {
        Some(rest) => rest.is_empty() || rest.starts_with('/') || parent == "/",
        None => false,
    }
}
