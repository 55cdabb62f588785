// SPDX-License-Identifier: GPL-3.0-or-later
//! What a simulated device has to provide.

use std::time::Duration;

use session::Speed;

/// A SETUP packet (USB 2.0 table 9-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// bmRequestType.
    pub request_type: u8,
    /// bRequest.
    pub request: u8,
    /// wValue.
    pub value: u16,
    /// wIndex.
    pub index: u16,
    /// wLength.
    pub length: u16,
}

impl Setup {
    /// From the wire.
    pub fn new(bytes: [u8; 8]) -> Self {
        let [request_type, request, v0, v1, i0, i1, l0, l1] = bytes;
        Self {
            request_type,
            request,
            value: u16::from_le_bytes([v0, v1]),
            index: u16::from_le_bytes([i0, i1]),
            length: u16::from_le_bytes([l0, l1]),
        }
    }

    /// To the wire.
    pub fn to_bytes(self) -> [u8; 8] {
        let [v0, v1] = self.value.to_le_bytes();
        let [i0, i1] = self.index.to_le_bytes();
        let [l0, l1] = self.length.to_le_bytes();
        [self.request_type, self.request, v0, v1, i0, i1, l0, l1]
    }

    /// Whether the data stage, if any, is from the device to the host.
    pub fn is_in(&self) -> bool {
        self.request_type & 0x80 != 0
    }
}

/// How a device answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// So many bytes were taken or given. Fewer than asked for is a short packet.
    Done(usize),
    /// Not now: the transfer waits and is offered again.
    Nak,
    /// STALL, in the middle of a transfer after so many bytes. The endpoint is halted (endpoint 0
    /// never is).
    Stall(usize),
    /// More data than was asked for.
    Babble,
}

/// A packet of an isochronous transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IsoPacket {
    /// Where its data is in the transfer's buffer.
    pub offset: usize,
    /// Bytes asked for.
    pub len: usize,
    /// Bytes that the device gave or took.
    pub actual_len: usize,
}

/// A device's descriptors (USB 2.0 §9.6), as on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// The device descriptor.
    pub device: Vec<u8>,
    /// The device qualifier of a high-speed device; empty for none.
    pub qualifier: Vec<u8>,
    /// Configurations with all that belongs to them.
    pub configurations: Vec<Vec<u8>>,
    /// What they would be at the other speed (USB 2.0 §9.6.4), with bDescriptorType 7; empty for
    /// none.
    pub other_speed: Vec<Vec<u8>>,
    /// The binary device object store with all that belongs to it (USB 3.2 §9.6.2); empty for none.
    pub bos: Vec<u8>,
    /// Strings 1, 2, 3 …, all in English (0409h).
    pub strings: Vec<String>,
}

/// A simulated device. It need not care about standard requests nor about halted endpoints: a
/// [`crate::Port`] does.
pub trait Function {
    /// Its speed.
    fn speed(&self) -> Speed;

    /// Its descriptors; they do not change.
    fn descriptors(&self) -> &Descriptors;

    /// A class or vendor request. `data` is that of an OUT data stage; that of an IN data stage
    /// goes to `out`, at most `setup.length` bytes.
    fn control(&mut self, setup: &Setup, data: &[u8], out: &mut Vec<u8>) -> Answer;

    /// A bulk or interrupt OUT transfer.
    fn transfer_out(&mut self, endpoint: u8, data: &[u8]) -> Answer;

    /// A bulk or interrupt IN transfer of at most `length` bytes, appended to `out`.
    fn transfer_in(&mut self, endpoint: u8, length: usize, out: &mut Vec<u8>) -> Answer;

    /// A descriptor of an interface's class, for example a HID report descriptor (22h), as asked for
    /// by GET_DESCRIPTOR to the interface.
    fn class_descriptor(&self, interface: u8, kind: u8, index: u8) -> Option<&[u8]> {
        let _ = (interface, kind, index);
        None
    }

    /// An isochronous transfer. The data of all packets is `data`; the device sets their actual
    /// lengths. Devices without such endpoints refuse.
    fn isochronous(&mut self, endpoint: u8, packets: &mut [IsoPacket], data: &mut [u8]) -> Answer {
        let _ = (endpoint, packets, data);
        Answer::Stall(0)
    }

    /// So many intervals of a running isochronous stream passed with no packet in them. Only told
    /// where the [`crate::Port`] has a clock.
    fn isochronous_missed(&mut self, endpoint: u8, intervals: u64) {
        let _ = (endpoint, intervals);
    }

    /// An endpoint, as bEndpointAddress, that the last transfer halted besides its own.
    fn take_halt(&mut self) -> Option<u8> {
        None
    }

    /// The host clears a halt. Whether the device lets it.
    fn clear_halt(&mut self, endpoint: u8) -> bool {
        let _ = endpoint;
        true
    }

    /// The host set a configuration, or reset the device (0).
    fn configured(&mut self, configuration: u8);

    /// The host chose an alternate setting of an interface. Not called for setting 0 of all
    /// interfaces that comes with a configuration.
    fn interface_set(&mut self, interface: u8, setting: u8) {
        let _ = (interface, setting);
    }

    /// It is `now`, counted from any fixed moment. It never goes back.
    fn advance(&mut self, now: Duration) {
        let _ = now;
    }

    /// When the device wants [`Function::advance`] at the latest.
    fn next_event(&self) -> Option<Duration> {
        None
    }
}
