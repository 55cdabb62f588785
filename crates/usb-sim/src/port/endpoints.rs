// SPDX-License-Identifier: GPL-3.0-or-later
//! The endpoints that a configuration has, and which of them exist now.

use std::time::Duration;

use session::Speed;
use session::frame::TransferType;

use crate::standard::{self, ENDPOINT, INTERFACE};

/// An endpoint descriptor (USB 2.0 §9.6.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// bEndpointAddress.
    pub address: u8,
    /// bmAttributes.
    pub attributes: u8,
    /// wMaxPacketSize, with the bits of high-bandwidth endpoints.
    pub max_packet_size: u16,
    /// bInterval.
    pub raw_interval: u8,
}

impl Endpoint {
    fn parse(part: &[u8]) -> Option<Self> {
        let fields: &[u8; 7] = part.first_chunk()?;
        Some(Self {
            address: fields[2],
            attributes: fields[3],
            max_packet_size: u16::from_le_bytes([fields[4], fields[5]]),
            raw_interval: fields[6],
        })
    }

    /// Its type.
    pub fn transfer_type(&self) -> TransferType {
        match self.attributes & 3 {
            0 => TransferType::Control,
            1 => TransferType::Isochronous,
            2 => TransferType::Bulk,
            _ => TransferType::Interrupt,
        }
    }

    /// Time between two packets of an isochronous endpoint (table 9-13): 2^(bInterval-1) frames of
    /// 1 ms, at high speed microframes of 125 µs. `None` where bInterval is not 1 to 16.
    pub fn interval(&self, speed: Speed) -> Option<Duration> {
        let unit = match speed {
            Speed::Low | Speed::Full => Duration::from_millis(1),
            Speed::High | Speed::Super => Duration::from_micros(125),
        };
        match self.raw_interval {
            exponent @ 1..=16 => Some(unit * (1 << (exponent - 1))),
            _ => None,
        }
    }
}

/// The alternate settings that are not 0.
#[derive(Debug, Default)]
pub(super) struct Settings(Vec<(u8, u8)>);

impl Settings {
    pub(super) fn of(&self, interface: u8) -> u8 {
        let chosen = self.0.iter().find(|(i, _)| *i == interface);
        chosen.map_or(0, |(_, setting)| *setting)
    }

    pub(super) fn set(&mut self, interface: u8, setting: u8) {
        self.0.retain(|(i, _)| *i != interface);
        if setting != 0 {
            self.0.push((interface, setting));
        }
    }
}

/// Every interface descriptor's number and setting, each followed by those of its endpoints.
fn walk(configuration: &[u8]) -> impl Iterator<Item = ((u8, u8), Option<Endpoint>)> {
    let mut at = None;
    standard::parts(configuration).filter_map(move |(kind, part)| match kind {
        INTERFACE => {
            at = part.get(2).copied().zip(part.get(3).copied());
            at.map(|at| (at, None))
        }
        ENDPOINT => Some((at?, Some(Endpoint::parse(part)?))),
        _ => None,
    })
}

/// The endpoints of the current settings.
pub(super) fn active<'a>(
    configuration: &'a [u8],
    settings: &'a Settings,
) -> impl Iterator<Item = Endpoint> + 'a {
    walk(configuration).filter_map(|((interface, setting), endpoint)| {
        endpoint.filter(|_| settings.of(interface) == setting)
    })
}

/// The addresses of an interface's endpoints, of all settings.
pub(super) fn of_interface(configuration: &[u8], interface: u8) -> impl Iterator<Item = u8> {
    walk(configuration)
        .filter(move |((i, _), _)| *i == interface)
        .filter_map(|(_, endpoint)| endpoint.map(|e| e.address))
}

pub(super) fn has_interface(configuration: &[u8], interface: u8) -> bool {
    walk(configuration).any(|((i, _), _)| i == interface)
}

pub(super) fn has_setting(configuration: &[u8], interface: u8, setting: u8) -> bool {
    walk(configuration).any(|(at, _)| at == (interface, setting))
}
