// SPDX-License-Identifier: GPL-3.0-or-later
//! Messages as `io/xs_wire.h` lays them out: a header of four native-endian 32-bit words, then
//! the payload. No I/O here; the simulator's daemon uses it too.

/// Bytes of a header.
pub const HEADER_LEN: usize = 16;
/// Bytes of payload in one message at most (`XENSTORE_PAYLOAD_MAX`), in either direction.
/// xenstored kills a connection that exceeds it.
pub const PAYLOAD_MAX: usize = 4096;
/// Bytes of an absolute path at most (`XENSTORE_ABS_PATH_MAX`).
pub const ABSOLUTE_PATH_MAX: usize = 3072;
/// Bytes of a relative path at most (`XENSTORE_REL_PATH_MAX`).
pub const RELATIVE_PATH_MAX: usize = 2048;

macro_rules! message_types {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// What a message asks or answers (`enum xsd_sockmsg_type`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum MessageType {
            $($(#[$doc])* $name = $number,)*
        }

        impl MessageType {
            /// The type with this number, if there is one.
            pub fn from_number(number: u32) -> Option<MessageType> {
                match number {
                    $($number => Some(MessageType::$name),)*
                    _ => None,
                }
            }
        }
    };
}

message_types! {
    /// `XS_CONTROL`, once `XS_DEBUG`.
    Control = 0,
    /// `XS_DIRECTORY`
    Directory = 1,
    /// `XS_READ`
    Read = 2,
    /// `XS_GET_PERMS`
    GetPerms = 3,
    /// `XS_WATCH`
    Watch = 4,
    /// `XS_UNWATCH`
    Unwatch = 5,
    /// `XS_TRANSACTION_START`
    TransactionStart = 6,
    /// `XS_TRANSACTION_END`
    TransactionEnd = 7,
    /// `XS_INTRODUCE`
    Introduce = 8,
    /// `XS_RELEASE`
    Release = 9,
    /// `XS_GET_DOMAIN_PATH`
    GetDomainPath = 10,
    /// `XS_WRITE`
    Write = 11,
    /// `XS_MKDIR`
    Mkdir = 12,
    /// `XS_RM`
    Rm = 13,
    /// `XS_SET_PERMS`
    SetPerms = 14,
    /// `XS_WATCH_EVENT`, only from the daemon.
    WatchEvent = 15,
    /// `XS_ERROR`, only from the daemon.
    Error = 16,
    /// `XS_IS_DOMAIN_INTRODUCED`
    IsDomainIntroduced = 17,
    /// `XS_RESUME`
    Resume = 18,
    /// `XS_SET_TARGET`
    SetTarget = 19,
    /// `XS_RESET_WATCHES`. Number 20 was `XS_RESTRICT`, which is gone.
    ResetWatches = 21,
    /// `XS_DIRECTORY_PART`
    DirectoryPart = 22,
}

/// The header of a message (`struct xsd_sockmsg`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// A [`MessageType`] by number; a peer may send any.
    pub kind: u32,
    /// Chosen by the client, echoed in the answer. Of no meaning in a watch event.
    pub request_id: u32,
    /// The transaction, 0 for none.
    pub transaction_id: u32,
    /// Bytes of payload that follow.
    pub len_bytes: u32,
}

impl Header {
    /// The header as it goes over the wire.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let words = [
            self.kind,
            self.request_id,
            self.transaction_id,
            self.len_bytes,
        ];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// The header that these bytes hold. Every pattern is a header.
    pub fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Header {
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Header {
            kind: word(0),
            request_id: word(4),
            transaction_id: word(8),
            len_bytes: word(12),
        }
    }
}

/// A whole message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its header; `len_bytes` is the length of `payload`.
    pub header: Header,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl Message {
    /// A message of this type. The caller has checked that `payload` is at most [`PAYLOAD_MAX`]
    /// bytes long.
    pub fn new(
        kind: MessageType,
        request_id: u32,
        transaction_id: u32,
        payload: Vec<u8>,
    ) -> Message {
        debug_assert!(payload.len() <= PAYLOAD_MAX);
        Message {
            header: Header {
                kind: kind as u32,
                request_id,
                transaction_id,
                len_bytes: payload.len() as u32,
            },
            payload,
        }
    }

    /// The type, if it is a known one.
    pub fn kind(&self) -> Option<MessageType> {
        MessageType::from_number(self.header.kind)
    }

    /// Header and payload in one piece.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_LEN + self.payload.len());
        bytes.extend_from_slice(&self.header.to_bytes());
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

/// The peer announced a payload longer than [`PAYLOAD_MAX`]: the stream cannot be trusted any
/// more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of {len_bytes} bytes of payload, more than the {PAYLOAD_MAX} that are allowed")]
pub struct Oversized {
    /// The length that the header announced.
    pub len_bytes: u32,
}

/// Cuts a stream of bytes into messages. Holds at most one incomplete message and what one read
/// brought.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that are consumed already.
    start: usize,
}

impl Decoder {
    /// A decoder at the start of a stream.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Takes in what was read.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, `None` when more bytes are needed.
    ///
    /// # Errors
    /// [`Oversized`], after which the stream must be given up.
    pub fn next_message(&mut self) -> Result<Option<Message>, Oversized> {
        let rest = &self.buffer[self.start..];
        let Some((header, rest)) = rest.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let header = Header::from_bytes(header);
        let len = header.len_bytes as usize;
        if len > PAYLOAD_MAX {
            return Err(Oversized {
                len_bytes: header.len_bytes,
            });
        }
        let Some(payload) = rest.get(..len) else {
            return Ok(None);
        };
        let payload = payload.to_vec();
        self.start += HEADER_LEN + len;
        Ok(Some(Message { header, payload }))
    }
}

/// The strings of a payload in which each one ends with a nul. A last one without its nul is
/// given too, as xenstored leaves it out in some answers.
pub fn strings(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    let end = payload.strip_suffix(&[0]).unwrap_or(payload);
    let empty = payload.is_empty();
    end.split(|byte| *byte == 0).filter(move |_| !empty)
}
