// SPDX-License-Identifier: GPL-3.0-or-later
//! What the lab cannot do without and what this machine or Debian's archive does not have.

use std::fmt;

/// The exit status of a command that could not be tried. Its last line of output then is `RESULT
/// skipped` and the reason; in JSON it has them as `result` and `reason`.
pub const EXIT_STATUS: u8 = 77;

/// Something that is missing: no fault of what is tested, which could not be tried without it. The text
/// is one line: what is missing, and what to do.
#[derive(Debug)]
pub struct Missing(String);

impl Missing {
    /// With this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether that is what an error comes from.
    pub fn is_cause_of(error: &anyhow::Error) -> bool {
        error.downcast_ref::<Self>().is_some()
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn a_missing_thing_is_seen_through_what_was_wanted_of_it() {
        let error: anyhow::Result<()> = Err(Missing::new("no apt-get").into());
        let error = error.context("making the lab's kernel").context("starting");
        assert!(Missing::is_cause_of(&error.unwrap_err()));
        assert!(!Missing::is_cause_of(&anyhow!("no apt-get")));
    }
}
