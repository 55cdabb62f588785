// SPDX-License-Identifier: GPL-3.0-or-later
//! The configuration descriptor and all that belongs to it.

use crate::endpoint::{self, Companion};

/// bDescriptorType.
const INTERFACE: u8 = 4;
const ENDPOINT: u8 = 5;
const SUPERSPEED_COMPANION: u8 = 0x30;
const SUPERSPEEDPLUS_COMPANION: u8 = 0x31;

/// Bytes of the configuration descriptor itself.
const HEADER_LEN: usize = 9;

/// Mass storage, SCSI, USB attached SCSI. Over SuperSpeed it uses streams, which PV USB has not.
const UAS: [u8; 3] = [8, 6, 0x62];

/// bMaxPower's unit is 8 mA at SuperSpeed (USB3 table 9-22), 2 mA at high speed, where 500 mA is
/// the most (USB2 §7.2.1).
const POWER_UNITS: u8 = 4;
const MAX_POWER: u8 = 250;

/// Changes a SuperSpeed configuration descriptor, with all that follows it, into that of a
/// high-speed device, in place: companions go, endpoints get packet sizes of high speed, alternate
/// settings for UAS go. Returns its length.
///
/// `bytes` should be all of it. What is malformed, or beyond wTotalLength, goes with all that
/// follows; wTotalLength tells what remained. Less than nine bytes stay as they are.
pub fn configuration(bytes: &mut [u8]) -> usize {
    let Some(&[header_len, _, low, high, interfaces, _, _, _, power]) =
        bytes.first_chunk::<HEADER_LEN>()
    else {
        return bytes.len();
    };
    let (header_len, end) = bounds(header_len, [low, high], bytes.len());
    let (mut read, mut write) = (header_len, header_len);
    let mut hidden = false;
    let mut present = Numbers::default();
    let mut remaining = Numbers::default();
    while let Some(part) = part(&bytes[read..end]) {
        let (len, kind) = (part.len(), part[1]);
        let keep = match kind {
            INTERFACE => {
                hidden = is_uas(part);
                let number = part.get(2).copied().unwrap_or(0);
                present.insert(number);
                if !hidden {
                    remaining.insert(number);
                }
                !hidden
            }
            SUPERSPEED_COMPANION | SUPERSPEEDPLUS_COMPANION => false,
            _ => !hidden,
        };
        if keep {
            let companion = match kind {
                ENDPOINT => companion(&bytes[read + len..end]),
                _ => None,
            };
            bytes.copy_within(read..read + len, write);
            if kind == ENDPOINT {
                let descriptor = &mut bytes[write..write + len];
                endpoint::to_high_speed(descriptor, companion.unwrap_or_default());
            }
            write += len;
        }
        read += len;
    }
    let lost = present.count().saturating_sub(remaining.count());
    // Not longer than before, so it fits.
    bytes[2..4].copy_from_slice(&(write as u16).to_le_bytes());
    bytes[4] = interfaces.saturating_sub(lost);
    bytes[8] = power.saturating_mul(POWER_UNITS).min(MAX_POWER);
    write
}

/// The number of an interface of this SuperSpeed configuration that has no setting but for UAS, and
/// is therefore not presented.
pub fn uas_only_interface(bytes: &[u8]) -> Option<u8> {
    let mut other = Numbers::default();
    for (number, is_uas) in interfaces(bytes) {
        if !is_uas {
            other.insert(number);
        }
    }
    interfaces(bytes)
        .map(|(number, _)| number)
        .find(|number| !other.contains(*number))
}

/// Where the descriptors that follow the configuration's own begin and end, out of its bLength and
/// wTotalLength, which may be anything, and the length of what there is.
fn bounds(header_len: u8, total: [u8; 2], len: usize) -> (usize, usize) {
    let start = usize::from(header_len).clamp(HEADER_LEN, len);
    let end = usize::from(u16::from_le_bytes(total)).clamp(start, len);
    (start, end)
}

/// Every setting of every interface: its number, and whether it is for UAS.
fn interfaces(bytes: &[u8]) -> impl Iterator<Item = (u8, bool)> {
    let mut rest = match bytes.first_chunk::<HEADER_LEN>() {
        Some(&[header_len, _, low, high, ..]) => {
            let (start, end) = bounds(header_len, [low, high], bytes.len());
            &bytes[start..end]
        }
        None => &[],
    };
    core::iter::from_fn(move || {
        loop {
            let part = part(rest)?;
            rest = &rest[part.len()..];
            if let [_, INTERFACE, number, ..] = part {
                return Some((*number, is_uas(part)));
            }
        }
    })
}

/// The first descriptor in `bytes`, of at least two bytes, if it is whole.
fn part(bytes: &[u8]) -> Option<&[u8]> {
    let len = usize::from(*bytes.first()?);
    bytes.get(..len).filter(|part| part.len() >= 2)
}

fn is_uas(interface: &[u8]) -> bool {
    interface.get(5..8) == Some(&UAS)
}

/// The companion of the endpoint that ends where `bytes` begins.
fn companion(mut bytes: &[u8]) -> Option<Companion> {
    loop {
        let part = part(bytes)?;
        match part[1] {
            SUPERSPEED_COMPANION => return Companion::parse(part),
            INTERFACE | ENDPOINT => return None,
            _ => bytes = &bytes[part.len()..],
        }
    }
}

/// A set of interface numbers.
#[derive(Default)]
struct Numbers([u64; 4]);

impl Numbers {
    fn insert(&mut self, number: u8) {
        self.0[usize::from(number >> 6)] |= 1 << (number & 63);
    }

    fn contains(&self, number: u8) -> bool {
        self.0[usize::from(number >> 6)] & 1 << (number & 63) != 0
    }

    /// At most 255 where it matters: bNumInterfaces has one byte.
    fn count(&self) -> u8 {
        let count: u32 = self.0.iter().map(|word| word.count_ones()).sum();
        count.min(255) as u8
    }
}
