// SPDX-License-Identifier: GPL-3.0-or-later
//! What comes out of xenstore: the bytes of its protocol, in pieces of any size, and the values
//! and paths that a guest may have written.

use backend::xenbus::{Key, XenbusState};
use xen::xenstore::wire::{
    Decoder, HEADER_LEN, Header, Message, MessageType, PAYLOAD_MAX, strings,
};

use crate::{Input, Target};

/// See the module's documentation.
pub const TARGET: Target = Target {
    name: "xenstore",
    seeds,
    run,
};

fn seeds() -> Vec<Vec<u8>> {
    let event = b"/local/domain/0/backend/vusb/7/0/state\0backend\0".to_vec();
    let event = Message::new(MessageType::WatchEvent, 0, 0, event).to_bytes();
    let answer = Message::new(MessageType::Read, 3, 0, b"4".to_vec()).to_bytes();
    vec![
        [&[0, 7][..], &event, &answer].concat(),
        [&[0, 255][..], &answer].concat(),
        [&[1][..], b"/local/domain/0/backend/vusb/7/0/state"].concat(),
        [&[2][..], b"4"].concat(),
    ]
}

fn run(input: &mut Input<'_>) {
    match input.below(3) {
        0 => decode(input),
        1 => path(input),
        _ => {
            let text = String::from_utf8_lossy(input.rest());
            let state = XenbusState::parse(&text);
            input.did(("state", state as u8));
            if state != XenbusState::Unknown {
                assert_eq!(state.as_str(), text.trim());
            }
        }
    }
}

fn decode(input: &mut Input<'_>) {
    let piece = 1 + input.below(255);
    let bytes = input.rest();
    let mut decoder = Decoder::new();
    let (mut taken, mut broken) = (0, false);
    for piece in bytes.chunks(piece) {
        decoder.feed(piece);
        loop {
            match decoder.next_message() {
                Ok(Some(message)) => {
                    assert!(message.payload.len() <= PAYLOAD_MAX);
                    let as_it_came = &bytes[taken..taken + HEADER_LEN + message.payload.len()];
                    assert_eq!(message.to_bytes(), as_it_came);
                    taken += as_it_came.len();
                    let count = strings(&message.payload).count();
                    assert!(count <= message.payload.len());
                    input.did((message.kind().map(|k| k as u32), count.min(4)));
                }
                Ok(None) => break,
                Err(_) => {
                    broken = true;
                    break;
                }
            }
        }
        if broken {
            input.did("oversized");
            break;
        }
    }
    if !broken && let Some(header) = bytes[taken..].first_chunk() {
        let left = bytes.len() - taken - HEADER_LEN;
        assert!(
            left < Header::from_bytes(header).len_bytes as usize,
            "not given"
        );
    }
}

fn path(input: &mut Input<'_>) {
    let path = String::from_utf8_lossy(input.rest());
    let key = Key::of_backend_path(&path);
    input.did(("key", key.is_some()));
    if let Some(key) = key {
        assert_eq!(Key::of_backend_path(&key.backend()), Some(key));
    }
}
