// SPDX-License-Identifier: GPL-3.0-or-later
//! Texts for people that come from a peer: of bounded length, and one line each.

use serde::{Deserialize, Deserializer, de::Error};

/// Longest text of a message, in bytes. What it is for may have a lower limit.
pub const MAX_TEXT_LEN: usize = 4096;

/// Why a text is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// Longer than [`MAX_TEXT_LEN`].
    #[error("has {0} bytes, more than {MAX_TEXT_LEN}")]
    TooLong(usize),
    /// A control character, for example a new line.
    #[error("has a control character ({0:?})")]
    Control(char),
}

/// Whether a peer takes this text. One that does not closes the connection, so ask before sending.
///
/// # Errors
/// What is wrong with it.
pub fn check(text: &str) -> Result<(), TextError> {
    if text.len() > MAX_TEXT_LEN {
        return Err(TextError::TooLong(text.len()));
    }
    match text.chars().find(|c| c.is_control()) {
        Some(c) => Err(TextError::Control(c)),
        None => Ok(()),
    }
}

pub(crate) fn required<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    check(&text).map_err(D::Error::custom)?;
    Ok(text)
}

pub(crate) fn optional<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    if let Some(text) = &text {
        check(text).map_err(D::Error::custom)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{FromBackend, Request};
    use crate::message::{decode, encode};
    use crate::{DeviceId, DeviceSelector, VmUuid};

    /// Whether the other end takes it.
    fn is_taken(request: Request) -> bool {
        let mut bytes = Vec::new();
        encode(&FromBackend { number: 1, request }, &mut bytes).unwrap();
        decode::<FromBackend>(&bytes).is_ok()
    }

    fn note(device: &str, text: &str) -> Request {
        Request::Note {
            device: DeviceId(device.to_owned()),
            vm: VmUuid(uuid::Uuid::nil()),
            text: text.to_owned(),
        }
    }

    #[test]
    fn places_and_texts_of_a_peer_are_what_they_should_be() {
        assert!(is_taken(note("1-1.2.3.4.5.6.7", "Grüße, \"world\"")));
        for device in [
            "",
            "1",
            "x\nfake",
            "1-1\n",
            "1-1/..",
            "1-1.2.3.4.5.6.7.8",
            "1-1234",
            "1-",
        ] {
            assert!(!is_taken(note(device, "")), "{device:?}");
        }
        for text in [
            "two\nlines",
            "\u{1b}[2J",
            "\0",
            &"x".repeat(MAX_TEXT_LEN + 1),
        ] {
            assert!(!is_taken(note("1-1", text)), "{text:?}");
        }
    }

    #[test]
    fn serial_numbers_and_names_of_a_peer_are_one_line() {
        for (serial, name, taken) in [
            ("E0D55E", "web", true),
            ("E0D55E\n", "web", false),
            ("E0D55E", "web\r", false),
        ] {
            let acquire = crate::control::Acquire {
                device: DeviceSelector::Kind {
                    vendor: 1,
                    product: 2,
                    serial: Some(serial.to_owned()),
                },
                vm: VmUuid(uuid::Uuid::nil()),
                vm_name: name.to_owned(),
                domid: 1,
                controller: 0,
                port: 1,
                on_migrate: None,
                exchange: None,
                own_controller: None,
                persistence: Default::default(),
                returns: None,
            };
            assert_eq!(
                is_taken(Request::Acquire(acquire)),
                taken,
                "{serial:?} {name:?}"
            );
        }
    }
}
