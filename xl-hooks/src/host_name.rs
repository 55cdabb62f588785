// SPDX-License-Identifier: GPL-3.0-or-later
//! The name of a machine in the pool.

use std::fmt;
use std::str::FromStr;

/// A DNS host name in lower case (RFC 1123 §2.1), the one that stands in the machine's certificate,
/// in `vusbd.toml` and in an exporter's policy.
///
/// Upper case is refused, not folded: TLS compares names without case, a policy file compares them
/// with it, and a pool in which these two disagree is hard to debug.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub struct HostName(String);

/// Why a text is no [`HostName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostNameError {
    /// Nothing, or more than 253 characters.
    #[error("a host name has 1 to 253 characters, this one has {0}")]
    Length(usize),
    /// A label (what stands between dots) of the wrong length.
    #[error("'{0}' is no host name: each part between dots has 1 to 63 characters")]
    LabelLength(String),
    /// A label with another character than letters, digits and hyphens, or with a hyphen at an end.
    #[error(
        "'{0}' is no host name: use letters, digits and '-' (not first or last), parts joined by dots"
    )]
    Character(String),
    /// Upper case.
    #[error("'{given}' has capital letters: write '{lower}'", lower = given.to_ascii_lowercase())]
    UpperCase {
        /// What was given.
        given: String,
    },
    /// The last label is a number, as in an IPv4 address.
    #[error("'{0}' is an address, not a name: give the machine's host name (hostname -f)")]
    Address(String),
}

impl HostName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for HostName {
    type Err = HostNameError;

    fn from_str(s: &str) -> Result<Self, HostNameError> {
        if s.is_empty() || s.len() > 253 {
            return Err(HostNameError::Length(s.len()));
        }
        for label in s.split('.') {
            if label.is_empty() || label.len() > 63 {
                return Err(HostNameError::LabelLength(s.to_owned()));
            }
            let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
            if !label.bytes().all(inner) || label.starts_with('-') || label.ends_with('-') {
                return Err(HostNameError::Character(s.to_owned()));
            }
        }
        let last = s.rsplit('.').next().unwrap_or(s);
        if last.bytes().all(|b| b.is_ascii_digit()) {
            return Err(HostNameError::Address(s.to_owned()));
        }
        if s.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(HostNameError::UpperCase {
                given: s.to_owned(),
            });
        }
        Ok(Self(s.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_certificate_can_carry() {
        for name in ["a", "xen1", "xen-1.example.org", "1a", "thin-client-07"] {
            assert_eq!(name.parse::<HostName>().unwrap().as_str(), name);
        }
        let longest = [
            "a".repeat(63),
            "b".repeat(63),
            "c".repeat(63),
            "d".repeat(61),
        ]
        .join(".");
        assert_eq!(longest.len(), 253);
        assert!(longest.parse::<HostName>().is_ok());
        assert!(format!("{longest}e").parse::<HostName>().is_err());
    }

    #[test]
    fn everything_else_is_refused_with_its_reason() {
        let refused = [
            ("", "1 to 253"),
            ("a..b", "1 to 63"),
            ("host.", "1 to 63"),
            ("-a", "not first or last"),
            ("a-", "not first or last"),
            ("a_b", "letters, digits"),
            ("../etc", "1 to 63"),
            ("a/b", "letters, digits"),
            ("a b", "letters, digits"),
            ("häst", "letters, digits"),
            ("*.example.org", "letters, digits"),
            ("10.0.0.1", "is an address"),
            ("Xen1", "write 'xen1'"),
        ];
        for (name, reason) in refused {
            let error = name.parse::<HostName>().unwrap_err().to_string();
            assert!(error.contains(reason), "{name}: {error}");
            assert!(!error.contains('\n'));
        }
    }
}
