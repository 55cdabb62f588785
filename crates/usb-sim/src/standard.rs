// SPDX-License-Identifier: GPL-3.0-or-later
//! Standard requests (USB 2.0 §9.4) that need nothing but the descriptors.

use crate::function::{Answer, Descriptors, Setup};

pub(crate) const GET_STATUS: u8 = 0;
pub(crate) const CLEAR_FEATURE: u8 = 1;
pub(crate) const SET_FEATURE: u8 = 3;
pub(crate) const SET_ADDRESS: u8 = 5;
pub(crate) const GET_DESCRIPTOR: u8 = 6;
pub(crate) const GET_CONFIGURATION: u8 = 8;
pub(crate) const SET_CONFIGURATION: u8 = 9;
pub(crate) const GET_INTERFACE: u8 = 10;
pub(crate) const SET_INTERFACE: u8 = 11;
pub(crate) const SET_SEL: u8 = 48;
pub(crate) const SET_ISOCH_DELAY: u8 = 49;

/// Feature selector.
pub(crate) const ENDPOINT_HALT: u16 = 0;
/// U1_ENABLE, U2_ENABLE, LTM_ENABLE (USB 3.2 table 9-7).
pub(crate) const LINK_FEATURES: std::ops::RangeInclusive<u16> = 48..=50;

const DEVICE: u8 = 1;
const CONFIGURATION: u8 = 2;
const STRING: u8 = 3;
const DEVICE_QUALIFIER: u8 = 6;
const OTHER_SPEED_CONFIGURATION: u8 = 7;
const BOS: u8 = 15;
const ENGLISH: u16 = 0x0409;

/// GET_DESCRIPTOR (§9.4.3).
pub(crate) fn get_descriptor(from: &Descriptors, setup: &Setup, out: &mut Vec<u8>) -> Answer {
    let [index, kind] = setup.value.to_le_bytes();
    let at = usize::from(index);
    match kind {
        DEVICE => give(out, setup, &from.device),
        CONFIGURATION => match from.configurations.get(at) {
            Some(descriptor) => give(out, setup, descriptor),
            None => Answer::Stall(0),
        },
        OTHER_SPEED_CONFIGURATION => match from.other_speed.get(at) {
            Some(descriptor) => give(out, setup, descriptor),
            None => Answer::Stall(0),
        },
        BOS if !from.bos.is_empty() => give(out, setup, &from.bos),
        DEVICE_QUALIFIER if !from.qualifier.is_empty() => give(out, setup, &from.qualifier),
        STRING if at == 0 => {
            let [low, high] = ENGLISH.to_le_bytes();
            give(out, setup, &[4, STRING, low, high])
        }
        STRING => match from.strings.get(at - 1) {
            Some(text) => give(out, setup, &string(text)),
            None => Answer::Stall(0),
        },
        _ => Answer::Stall(0),
    }
}

/// Gives as much of `data` as the host asks for.
pub(crate) fn give(out: &mut Vec<u8>, setup: &Setup, data: &[u8]) -> Answer {
    let len = data.len().min(setup.length.into());
    out.extend_from_slice(&data[..len]);
    Answer::Done(len)
}

/// A string descriptor (§9.6.7): at most 126 UTF-16 units.
fn string(text: &str) -> Vec<u8> {
    let mut descriptor = vec![0, STRING];
    for unit in text.encode_utf16().take(126) {
        descriptor.extend_from_slice(&unit.to_le_bytes());
    }
    descriptor[0] = descriptor.len() as u8;
    descriptor
}

/// bConfigurationValue of a configuration descriptor.
pub(crate) fn configuration_value(configuration: &[u8]) -> Option<u8> {
    configuration.get(5).copied()
}

/// The descriptors within a configuration: type and bytes.
pub(crate) fn parts(mut configuration: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(*configuration.first()?).max(2);
        let (part, rest) = configuration.split_at_checked(len)?;
        configuration = rest;
        Some((part[1], part))
    })
}

/// Descriptor types for [`parts`].
pub(crate) const INTERFACE: u8 = 4;
pub(crate) const ENDPOINT: u8 = 5;
