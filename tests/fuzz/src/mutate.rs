// SPDX-License-Identifier: GPL-3.0-or-later
//! New inputs out of old ones.

use crate::Random;

/// Longest input, in bytes.
pub(crate) const MAX_LEN: usize = 4096;

/// Values at which things change.
const INTERESTING: [u32; 14] = [
    0,
    1,
    15,
    16,
    17,
    31,
    127,
    128,
    255,
    4096,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fff0,
    u32::MAX,
];

/// A changed `base`, with pieces of `other`.
pub(crate) fn mutate(base: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = base.to_vec();
    for _ in 0..=random.below(6) {
        once(&mut bytes, other, random);
    }
    bytes.truncate(MAX_LEN);
    bytes
}

/// An input of its own.
pub(crate) fn invent(random: &mut Random) -> Vec<u8> {
    let len = match random.below(4) {
        0 => random.below(16),
        1 => random.below(128),
        2 => random.below(512),
        _ => random.below(MAX_LEN),
    };
    (0..len).map(|_| random.byte()).collect()
}

fn once(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.below(bytes.len());
    let len = 1 + random.below(8);
    match random.below(9) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
        1 if !bytes.is_empty() => bytes[at] = random.byte(),
        2 => {
            let value = INTERESTING[random.below(INTERESTING.len())].to_le_bytes();
            let width = [1, 2, 4][random.below(3)];
            for (byte, new) in bytes.iter_mut().skip(at).zip(&value[..width]) {
                *byte = *new;
            }
        }
        3 => drop(bytes.splice(at..at, (0..len).map(|_| random.byte()))),
        4 => drop(bytes.drain(at..(at + len).min(bytes.len()))),
        5 => {
            let from = random.below(bytes.len());
            let piece = bytes[from..(from + 4 * len).min(bytes.len())].to_vec();
            bytes.splice(at..at, piece);
        }
        6 => {
            let from = random.below(other.len());
            let piece = &other[from..(from + 16 * len).min(other.len())];
            bytes.splice(at..at, piece.iter().copied());
        }
        7 => {
            bytes.truncate(at);
            bytes.extend_from_slice(&other[random.below(other.len())..]);
        }
        _ => bytes.extend((0..len).map(|_| random.byte())),
    }
}
