// SPDX-License-Identifier: GPL-3.0-or-later
//! A hub with nothing in its ports: what an exporter must not lend.

use session::Speed;

use crate::descriptor::{self, Device, endpoint_type};
use crate::function::{Answer, Descriptors, Function, Setup};

/// Class, subclass and protocol of a full-speed hub (USB 2.0 §11.23.1).
const CLASS: [u8; 3] = [9, 0, 0];
const STATUS_CHANGE: u8 = 0x81;

/// The hub. It has descriptors and no more.
#[derive(Debug)]
pub struct Hub {
    descriptors: Descriptors,
}

impl Hub {
    /// A hub with this serial number string.
    pub fn new(serial: &str) -> Self {
        let device = Device {
            usb: 0x0200,
            class: CLASS,
            max_packet_size0: 64,
            vendor: 0x1209,
            product: 0x0005,
            configurations: 1,
        };
        let parts: [&[u8]; 2] = [
            &descriptor::interface(0, 0, 1, CLASS),
            &descriptor::endpoint(STATUS_CHANGE, endpoint_type::INTERRUPT, 1, 255),
        ];
        Self {
            descriptors: Descriptors {
                device: device.descriptor(),
                qualifier: Vec::new(),
                configurations: vec![descriptor::configuration(1, 100, &parts)],
                other_speed: Vec::new(),
                bos: Vec::new(),
                strings: descriptor::strings("Simulated hub", serial),
            },
        }
    }
}

impl Function for Hub {
    fn speed(&self) -> Speed {
        Speed::Full
    }

    fn descriptors(&self) -> &Descriptors {
        &self.descriptors
    }

    fn control(&mut self, _setup: &Setup, _data: &[u8], _out: &mut Vec<u8>) -> Answer {
        Answer::Stall(0)
    }

    fn transfer_out(&mut self, _endpoint: u8, _data: &[u8]) -> Answer {
        Answer::Stall(0)
    }

    fn transfer_in(&mut self, _endpoint: u8, _length: usize, _out: &mut Vec<u8>) -> Answer {
        Answer::Nak
    }

    fn configured(&mut self, _configuration: u8) {}
}
