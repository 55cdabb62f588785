// SPDX-License-Identifier: GPL-3.0-or-later
//! The connection ring: what is plugged into which port.

use crate::wire::{get_u16, put_u16};
use crate::{PortNumber, RingKind, RingMemory, Speed};

/// The kind of the connection ring.
///
/// The frontend fills it with requests that mean nothing; each is used up by one event of the
/// backend, and the frontend then puts in another.
#[derive(Clone, Copy, Debug)]
pub enum Conn {}

/// An empty form for one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnRequest {
    /// Chosen by the frontend, need not be unique. Echoed in the event.
    pub id: u16,
}

/// An event: this port now has a device of this speed, or none.
///
/// Linux's frontend ignores an event whose speed is the one it already knows for the port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnResponse {
    /// The request that this event uses up.
    pub id: u16,
    /// The port.
    pub port: PortNumber,
    /// What is plugged in now. [`Speed::None`]: nothing.
    pub speed: Speed,
}

/// An event with a port outside 1 to 31 or an undefined speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("connection event for port {portnum} with speed {speed} is invalid")]
pub struct BadConnResponse {
    /// The request that it used up.
    pub id: u16,
    /// As received.
    pub portnum: u8,
    /// As received.
    pub speed: u8,
}

impl RingKind for Conn {
    type Request = ConnRequest;
    type ReadRequest = ConnRequest;
    type Response = ConnResponse;
    type ReadResponse = Result<ConnResponse, BadConnResponse>;

    const REQUEST_BYTES: usize = 2;
    const RESPONSE_BYTES: usize = 4;
    // The union of 2 and 4 bytes, both of 16-bit alignment.
    const SLOT_BYTES: usize = 4;

    fn read_request<M: RingMemory + ?Sized>(memory: &M, offset: usize) -> ConnRequest {
        let mut bytes = [0; 2];
        memory.read(offset, &mut bytes);
        ConnRequest {
            id: u16::from_le_bytes(bytes),
        }
    }

    fn write_request<M: RingMemory + ?Sized>(memory: &M, offset: usize, request: &ConnRequest) {
        memory.write(offset, &request.id.to_le_bytes());
    }

    fn read_response<M: RingMemory + ?Sized>(memory: &M, offset: usize) -> Self::ReadResponse {
        let mut bytes = [0; 4];
        memory.read(offset, &mut bytes);
        let (id, portnum, speed) = (get_u16(&bytes, 0), bytes[2], bytes[3]);
        match (PortNumber::new(portnum), Speed::from_wire(speed)) {
            (Some(port), Some(speed)) => Ok(ConnResponse { id, port, speed }),
            _ => Err(BadConnResponse { id, portnum, speed }),
        }
    }

    fn write_response<M: RingMemory + ?Sized>(memory: &M, offset: usize, response: &ConnResponse) {
        let mut bytes = [0, 0, response.port.get(), response.speed.to_wire()];
        put_u16(&mut bytes, 0, response.id);
        memory.write(offset, &bytes);
    }
}
