// SPDX-License-Identifier: GPL-3.0-or-later
//! Messages of the control connection and of the opening: length-prefixed postcard.
//!
//! A message is a little-endian 32-bit length of what follows, at most [`MAX_MESSAGE_LEN`], then
//! the value in postcard's encoding.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest encoded message, in bytes, without its length prefix.
pub const MAX_MESSAGE_LEN: usize = 256 * 1024;

/// First message of every connection, from the backend. The exporter answers with its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::PROTOCOL_VERSION`].
    pub version: u16,
    /// What the connection is for.
    pub purpose: Purpose,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// Devices and leases: [`crate::control`].
    Control,
    /// One device's transfers: [`crate::open`], then [`crate::frame`]s.
    Device,
}

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The length prefix is beyond [`MAX_MESSAGE_LEN`].
    #[error("message of {0} bytes is longer than allowed")]
    TooLong(usize),
    /// Not the expected type, or trailing bytes.
    #[error("malformed message")]
    Malformed(#[from] postcard::Error),
}

/// Appends `message` with its length prefix to `out`.
pub fn encode<T: Serialize>(message: &T, out: &mut Vec<u8>) -> Result<(), MessageError> {
    let body = postcard::to_stdvec(message)?;
    if body.len() > MAX_MESSAGE_LEN {
        return Err(MessageError::TooLong(body.len()));
    }
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&body);
    Ok(())
}

/// Decodes the first message in `input`: the message and how many bytes it took, or `None` when
/// it is not all there yet.
pub fn decode<T: DeserializeOwned>(input: &[u8]) -> Result<Option<(T, usize)>, MessageError> {
    let Some((prefix, rest)) = input.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let len = u32::from_le_bytes(*prefix) as usize;
    if len > MAX_MESSAGE_LEN {
        return Err(MessageError::TooLong(len));
    }
    let Some(body) = rest.get(..len) else {
        return Ok(None);
    };
    Ok(Some((postcard::from_bytes(body)?, 4 + len)))
}
