// SPDX-License-Identifier: GPL-3.0-or-later
//! Control transfers, and the standard requests (USB 2.0 §9.4).

use session::Speed;
use session::frame::{Transfer, TransferStatus, TransferType};
use session::server::Outcome;

use super::{Port, Settings, endpoint_bit, endpoints, short};
use crate::function::{Answer, Function, Setup};
use crate::standard::{
    self, CLEAR_FEATURE, ENDPOINT_HALT, GET_CONFIGURATION, GET_DESCRIPTOR, GET_INTERFACE,
    GET_STATUS, LINK_FEATURES, SET_ADDRESS, SET_CONFIGURATION, SET_FEATURE, SET_INTERFACE,
    SET_ISOCH_DELAY, SET_SEL,
};

impl<F: Function> Port<F> {
    pub(super) fn control(
        &mut self,
        transfer: &Transfer,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Option<Outcome> {
        let mut setup = Setup::new(transfer.setup);
        if transfer.endpoint & 0x0f != 0 || (setup.length > 0 && setup.is_in() != transfer.is_in())
        {
            return Some(Outcome::new(TransferStatus::Invalid, 0));
        }
        // The buffer may be shorter than the data stage that the SETUP packet announces.
        setup.length = setup
            .length
            .min(transfer.length.try_into().unwrap_or(u16::MAX));
        let start = out.len();
        let answer = match setup.request_type & 0x60 {
            0 => self.standard(&setup, out),
            _ => self.function.control(&setup, body, out),
        };
        let outcome = match answer {
            // A control endpoint's STALL ends with the transfer (§8.5.3.4).
            Answer::Stall(_) => Outcome::new(TransferStatus::Stall, 0),
            Answer::Done(_) if !setup.is_in() => {
                Outcome::new(TransferStatus::Completed, setup.length.into())
            }
            Answer::Done(len) => short(transfer, len),
            Answer::Babble => Outcome::new(TransferStatus::Overflow, 0),
            Answer::Nak => return None,
        };
        if outcome.status == TransferStatus::Stall {
            out.truncate(start);
        }
        Some(outcome)
    }

    fn standard(&mut self, setup: &Setup, out: &mut Vec<u8>) -> Answer {
        let index = setup.index as u8;
        match (setup.request_type, setup.request) {
            (0x80, GET_DESCRIPTOR) => {
                standard::get_descriptor(self.function.descriptors(), setup, out)
            }
            (0x81, GET_DESCRIPTOR) => {
                let [at, kind] = setup.value.to_le_bytes();
                match self.function.class_descriptor(index, kind, at) {
                    Some(descriptor) => standard::give(out, setup, descriptor),
                    None => Answer::Stall(0),
                }
            }
            // The address is the business of whoever routes transfers.
            (0x00, SET_ADDRESS) => Answer::Done(0),
            (0x80, GET_CONFIGURATION) => standard::give(out, setup, &[self.configuration]),
            (0x00, SET_CONFIGURATION) => self.set_configuration(setup.value as u8),
            (0x80 | 0x81, GET_STATUS) => standard::give(out, setup, &[0, 0]),
            (0x82, GET_STATUS) if self.can_halt(index) || index & 0x7f == 0 => {
                let halted = self.halted & endpoint_bit(index) != 0;
                standard::give(out, setup, &[halted.into(), 0])
            }
            // Endpoint 0 never is halted.
            (0x02, CLEAR_FEATURE) if setup.value == ENDPOINT_HALT && index & 0x7f == 0 => {
                Answer::Done(0)
            }
            (0x02, CLEAR_FEATURE) if setup.value == ENDPOINT_HALT && self.can_halt(index) => {
                if self.function.clear_halt(index) {
                    self.halted &= !endpoint_bit(index);
                }
                Answer::Done(0)
            }
            (0x02, SET_FEATURE) if setup.value == ENDPOINT_HALT && self.can_halt(index) => {
                self.halted |= endpoint_bit(index);
                Answer::Done(0)
            }
            (0x81, GET_INTERFACE) => match self.active_configuration() {
                Some(active) if endpoints::has_interface(active, index) => {
                    standard::give(out, setup, &[self.settings.of(index)])
                }
                _ => Answer::Stall(0),
            },
            (0x01, SET_INTERFACE) => self.set_interface(index, setup.value),
            // A SuperSpeed host tells the device about the link (USB 3.2 §9.4.9 to §9.4.12).
            (0x00, SET_SEL | SET_ISOCH_DELAY) if self.is_super_speed() => Answer::Done(0),
            (0x00, SET_FEATURE | CLEAR_FEATURE)
                if self.is_super_speed() && LINK_FEATURES.contains(&setup.value) =>
            {
                Answer::Done(0)
            }
            _ => Answer::Stall(0),
        }
    }

    fn set_configuration(&mut self, value: u8) -> Answer {
        let configurations = &self.function.descriptors().configurations;
        let known = |c: &Vec<u8>| standard::configuration_value(c) == Some(value);
        if value != 0 && !configurations.iter().any(known) {
            return Answer::Stall(0);
        }
        self.configure(value);
        Answer::Done(0)
    }

    pub(super) fn configure(&mut self, value: u8) {
        self.configuration = value;
        self.settings = Settings::default();
        self.halted = 0;
        self.end_streams(|_| true);
        self.function.configured(value);
    }

    /// Transfers of these endpoints that wait for their time wait no more.
    fn end_streams(&mut self, of: impl Fn(u8) -> bool) {
        if let Some(schedule) = &mut self.schedule {
            schedule.forget(&of);
        }
        for waiting in &mut self.waiting {
            if of(waiting.transfer.endpoint) {
                waiting.slot = None;
            }
        }
    }

    /// SET_INTERFACE (§9.4.10), which also clears the halts of the interface's endpoints (§9.1.1.5)
    /// and ends its streams.
    fn set_interface(&mut self, interface: u8, setting: u16) -> Answer {
        let Ok(setting) = u8::try_from(setting) else {
            return Answer::Stall(0);
        };
        let Some(active) = self.active_configuration() else {
            return Answer::Stall(0);
        };
        if !endpoints::has_setting(active, interface, setting) {
            return Answer::Stall(0);
        }
        let of_interface: Vec<u8> = endpoints::of_interface(active, interface).collect();
        for endpoint in of_interface {
            self.halted &= !endpoint_bit(endpoint);
            self.end_streams(|e| e == endpoint);
        }
        self.settings.set(interface, setting);
        self.function.interface_set(interface, setting);
        Answer::Done(0)
    }

    pub(super) fn active_configuration(&self) -> Option<&[u8]> {
        let value = Some(self.configuration).filter(|c| *c != 0)?;
        let configurations = &self.function.descriptors().configurations;
        let active = |c: &&Vec<u8>| standard::configuration_value(c) == Some(value);
        configurations.iter().find(active).map(Vec::as_slice)
    }

    /// Whether there is such an endpoint, and it may be halted: isochronous ones may not
    /// (§5.6.5).
    fn can_halt(&self, endpoint: u8) -> bool {
        let found = self.endpoint(endpoint);
        found.is_some_and(|e| e.transfer_type() != TransferType::Isochronous)
    }

    fn is_super_speed(&self) -> bool {
        self.function.speed() == Speed::Super
    }
}
