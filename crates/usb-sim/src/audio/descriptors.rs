// SPDX-License-Identifier: GPL-3.0-or-later
//! The headset's descriptors (UAC2 §4, and Data Formats 2.0 §2.3.1.6).

use crate::descriptor::{self, Device, endpoint_type};
use crate::function::Descriptors;

pub(super) const CONTROL_INTERFACE: u8 = 0;
pub(super) const PLAYBACK_INTERFACE: u8 = 1;
pub(super) const RECORD_INTERFACE: u8 = 2;
pub(super) const PLAYBACK_OUT: u8 = 0x01;
pub(super) const RECORD_IN: u8 = 0x82;

/// Ids of the entities.
const PLAYBACK_INPUT: u8 = 1;
const SPEAKER: u8 = 2;
const MICROPHONE: u8 = 3;
const RECORD_OUTPUT: u8 = 4;
pub(super) const CLOCK_SOURCE: u8 = 5;

/// 48 audio frames of a millisecond, and one more: an adaptive endpoint follows the host.
const MAX_PACKET: u16 = 49 * 4;
/// bInterval: 2³ microframes are a millisecond.
const INTERVAL: u8 = 4;

/// Audio, version 2.0, with subclass.
const AUDIO_CONTROL: [u8; 3] = [1, 1, 0x20];
const AUDIO_STREAMING: [u8; 3] = [1, 2, 0x20];

/// The three interfaces are one function (USB 2.0 ECN: interface association).
const ASSOCIATION: &[u8] = &[8, 0x0b, CONTROL_INTERFACE, 3, 1, 0, 0x20, 0];

const CONTROL_LEN: u8 = 9 + 8 + 17 + 12 + 17 + 12;

/// Clock source, two terminals for each direction; nothing to control but the clock.
#[rustfmt::skip]
const CONTROL: &[u8] = &[
    // Header: UAC 2.00, category I/O box
    9, 0x24, 0x01, 0x00, 0x02, 0x08, CONTROL_LEN, 0, 0x00,
    // Clock source: internal and fixed; frequency and validity can be read
    8, 0x24, 0x0a, CLOCK_SOURCE, 0x01, 0x05, 0, 0,
    // Input terminal: USB streaming, two channels, front left and right
    17, 0x24, 0x02, PLAYBACK_INPUT, 0x01, 0x01, 0, CLOCK_SOURCE, 2, 3, 0, 0, 0, 0, 0, 0, 0,
    // Output terminal: speaker
    12, 0x24, 0x03, SPEAKER, 0x01, 0x03, 0, PLAYBACK_INPUT, CLOCK_SOURCE, 0, 0, 0,
    // Input terminal: microphone
    17, 0x24, 0x02, MICROPHONE, 0x01, 0x02, 0, CLOCK_SOURCE, 2, 3, 0, 0, 0, 0, 0, 0, 0,
    // Output terminal: USB streaming
    12, 0x24, 0x03, RECORD_OUTPUT, 0x01, 0x01, 0, MICROPHONE, CLOCK_SOURCE, 0, 0, 0,
];

/// Class descriptors of a streaming interface's setting 1.
#[rustfmt::skip]
const fn streaming(terminal: u8) -> [u8; 22] {
    [
        // General: type I, PCM, two channels
        16, 0x24, 0x01, terminal, 0, 1, 1, 0, 0, 0, 2, 3, 0, 0, 0, 0,
        // Format type I: two bytes, 16 bits
        6, 0x24, 0x02, 1, 2, 16,
    ]
}

/// Class descriptor of a data endpoint: no controls, no lock delay.
const DATA_ENDPOINT: &[u8] = &[8, 0x25, 0x01, 0, 0, 0, 0, 0];

pub(super) fn of_audio(serial: &str) -> Descriptors {
    // Composite with associations
    let device = Device {
        usb: 0x0200,
        class: [0xef, 2, 1],
        max_packet_size0: 64,
        vendor: 0x1209,
        product: 0x0004,
        configurations: 1,
    };
    let playback = descriptor::endpoint(
        PLAYBACK_OUT,
        endpoint_type::ISOCHRONOUS_ADAPTIVE,
        MAX_PACKET,
        INTERVAL,
    );
    let record = descriptor::endpoint(
        RECORD_IN,
        endpoint_type::ISOCHRONOUS_ASYNCHRONOUS,
        MAX_PACKET,
        INTERVAL,
    );
    Descriptors {
        device: device.descriptor(),
        qualifier: device.qualifier(),
        configurations: vec![descriptor::configuration(
            1,
            100,
            &[
                ASSOCIATION,
                &descriptor::interface(CONTROL_INTERFACE, 0, 0, AUDIO_CONTROL),
                CONTROL,
                &descriptor::interface(PLAYBACK_INTERFACE, 0, 0, AUDIO_STREAMING),
                &descriptor::interface(PLAYBACK_INTERFACE, 1, 1, AUDIO_STREAMING),
                &streaming(PLAYBACK_INPUT),
                &playback,
                DATA_ENDPOINT,
                &descriptor::interface(RECORD_INTERFACE, 0, 0, AUDIO_STREAMING),
                &descriptor::interface(RECORD_INTERFACE, 1, 1, AUDIO_STREAMING),
                &streaming(RECORD_OUTPUT),
                &record,
                DATA_ENDPOINT,
            ],
        )],
        other_speed: Vec::new(),
        bos: Vec::new(),
        strings: descriptor::strings("Simulated headset", serial),
    }
}
