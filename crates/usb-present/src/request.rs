// SPDX-License-Identifier: GPL-3.0-or-later
//! Which control requests are not simply passed on.

use crate::{configuration, device, device_qualifier};

/// Longest answer that is asked of a device: Linux takes no longer control transfers from user
/// space. What a longer configuration has beyond it is not presented.
pub const MAX_ASKED: u16 = 4096;

/// bDescriptorType (USB2 table 9-5, USB3 table 9-6).
const DEVICE: u8 = 1;
const CONFIGURATION: u8 = 2;
const DEVICE_QUALIFIER: u8 = 6;
const OTHER_SPEED_CONFIGURATION: u8 = 7;
const BOS: u8 = 15;

const DEVICE_LEN: u16 = 18;

/// bmRequestType and bRequest.
const GET_STATUS_OF_DEVICE: (u8, u8) = (0x80, 0);
const GET_STATUS_OF_INTERFACE: (u8, u8) = (0x81, 0);
const SET_FEATURE_OF_DEVICE: (u8, u8) = (0x00, 3);
const CLEAR_FEATURE_OF_DEVICE: (u8, u8) = (0x00, 1);
const SET_FEATURE_OF_INTERFACE: (u8, u8) = (0x01, 3);
const CLEAR_FEATURE_OF_INTERFACE: (u8, u8) = (0x01, 1);
const GET_DESCRIPTOR: (u8, u8) = (0x80, 6);
const SET_SEL: (u8, u8) = (0x00, 48);
const SET_ISOCH_DELAY: (u8, u8) = (0x00, 49);

/// U1_ENABLE, U2_ENABLE and LTM_ENABLE (USB3 table 9-7). They belong to the SuperSpeed link, which
/// is the exporter's.
const LINK_FEATURES: core::ops::RangeInclusive<u16> = 48..=50;

/// Bits of a device's status at high speed: self-powered, remote wakeup (USB2 figure 9-4).
const STATUS_BITS: u8 = 0b11;

/// What to do with a control request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intercept {
    /// Send it as it is.
    Pass,
    /// Send this SETUP packet instead, always with an IN data stage, and [`present`] the answer.
    Ask([u8; 8]),
    /// Answer with STALL.
    Stall,
}

/// What to do with a control request of the guest, given its SETUP packet (USB2 §9.3).
pub fn intercept(setup: [u8; 8]) -> Intercept {
    let Setup {
        request,
        value,
        kind,
        ..
    } = Setup::new(setup);
    match request {
        GET_DESCRIPTOR => match kind {
            DEVICE | DEVICE_QUALIFIER => Intercept::Ask(get_descriptor(DEVICE, 0, DEVICE_LEN)),
            CONFIGURATION => Intercept::Ask(get_descriptor(CONFIGURATION, setup[2], MAX_ASKED)),
            // A device of USB 2.00 has no BOS; and ours has no configuration for full speed.
            OTHER_SPEED_CONFIGURATION | BOS => Intercept::Stall,
            _ => Intercept::Pass,
        },
        GET_STATUS_OF_DEVICE | GET_STATUS_OF_INTERFACE => Intercept::Ask(setup),
        SET_FEATURE_OF_DEVICE | CLEAR_FEATURE_OF_DEVICE if LINK_FEATURES.contains(&value) => {
            Intercept::Stall
        }
        // FUNCTION_SUSPEND; interfaces have no features at high speed.
        SET_FEATURE_OF_INTERFACE | CLEAR_FEATURE_OF_INTERFACE => Intercept::Stall,
        SET_SEL | SET_ISOCH_DELAY => Intercept::Stall,
        _ => Intercept::Pass,
    }
}

/// Makes the answer to the guest's SETUP packet, in place, from what the device answered to the
/// one of [`Intercept::Ask`]. Returns the answer's length: at most the guest's wLength. For
/// requests that pass it only cuts.
pub fn present(setup: [u8; 8], answer: &mut [u8]) -> usize {
    let Setup {
        request,
        kind,
        length,
        ..
    } = Setup::new(setup);
    let len = match (request, kind) {
        (GET_DESCRIPTOR, DEVICE) => device(answer),
        (GET_DESCRIPTOR, DEVICE_QUALIFIER) => device_qualifier(answer),
        (GET_DESCRIPTOR, CONFIGURATION) => configuration(answer),
        (GET_STATUS_OF_DEVICE | GET_STATUS_OF_INTERFACE, _) => {
            let is_device = request == GET_STATUS_OF_DEVICE;
            for (at, byte) in answer.iter_mut().enumerate() {
                *byte &= if is_device && at == 0 { STATUS_BITS } else { 0 };
            }
            answer.len()
        }
        _ => answer.len(),
    };
    len.min(length.into())
}

struct Setup {
    /// bmRequestType and bRequest.
    request: (u8, u8),
    value: u16,
    /// The type of a descriptor: the high byte of wValue.
    kind: u8,
    length: u16,
}

impl Setup {
    fn new(bytes: [u8; 8]) -> Self {
        let [
            request_type,
            request,
            value_low,
            value_high,
            _,
            _,
            length_low,
            length_high,
        ] = bytes;
        Self {
            request: (request_type, request),
            value: u16::from_le_bytes([value_low, value_high]),
            kind: value_high,
            length: u16::from_le_bytes([length_low, length_high]),
        }
    }
}

fn get_descriptor(kind: u8, index: u8, length: u16) -> [u8; 8] {
    let (request_type, request) = GET_DESCRIPTOR;
    let [low, high] = length.to_le_bytes();
    [request_type, request, index, kind, 0, 0, low, high]
}
