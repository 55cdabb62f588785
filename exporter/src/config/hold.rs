// SPDX-License-Identifier: GPL-3.0-or-later
//! How long a device is kept: so many seconds, or for ever.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};

/// A number of seconds, or `"forever"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldTime {
    /// So many seconds.
    Seconds(u64),
    /// Until somebody claims it.
    Forever,
}

impl HoldTime {
    /// In milliseconds; `None` for ever.
    pub fn ms(self) -> Option<u64> {
        match self {
            Self::Seconds(seconds) => Some(seconds.saturating_mul(1000)),
            Self::Forever => None,
        }
    }
}

impl<'de> Deserialize<'de> for HoldTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = HoldTime;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of seconds, or \"forever\"")
            }

            fn visit_i64<E: Error>(self, seconds: i64) -> Result<HoldTime, E> {
                let negative = |_| E::custom("it is not negative");
                let seconds = u64::try_from(seconds).map_err(negative)?;
                Ok(HoldTime::Seconds(seconds))
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<HoldTime, E> {
                match word {
                    "forever" => Ok(HoldTime::Forever),
                    _ => Err(E::custom("it is a number of seconds, or \"forever\"")),
                }
            }
        }
        deserializer.deserialize_any(Either)
    }
}
