// SPDX-License-Identifier: GPL-3.0-or-later
//! Requests for the list of devices, and for a device.

use crate::record::{BUS_ID_LEN, DeviceRecord};
use crate::{ProtocolError, VERSION};

const REQ_DEVLIST: u16 = 0x8005;
const REP_DEVLIST: u16 = 0x0005;
const REQ_IMPORT: u16 = 0x8003;
const REP_IMPORT: u16 = 0x0003;

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// OP_REQ_DEVLIST: the list of devices. The connection ends after it.
    DeviceList,
    /// OP_REQ_IMPORT: this device. If it gets it, commands follow.
    Import(String),
}

/// Status of a reply, as Linux's tools know it (tools/usb/usbip/libsrc/usbip_common.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Somebody else has the device.
    DeviceBusy = 2,
    /// There is no such device.
    NoDevice = 4,
}

/// Takes a request off the front of `input`, with its length. `None` when it is not all there yet.
pub fn decode(input: &[u8]) -> Result<Option<(Request, usize)>, ProtocolError> {
    let Some((&[v0, v1, c0, c1, ..], rest)) = input.split_first_chunk::<8>() else {
        return Ok(None);
    };
    let version = u16::from_be_bytes([v0, v1]);
    if version != VERSION {
        return Err(ProtocolError::Version(version));
    }
    match u16::from_be_bytes([c0, c1]) {
        REQ_DEVLIST => Ok(Some((Request::DeviceList, 8))),
        REQ_IMPORT => Ok(rest.first_chunk::<BUS_ID_LEN>().map(|bus_id| {
            let end = bus_id.iter().position(|b| *b == 0).unwrap_or(BUS_ID_LEN);
            let bus_id = String::from_utf8_lossy(&bus_id[..end]).into_owned();
            (Request::Import(bus_id), 8 + BUS_ID_LEN)
        })),
        other => Err(ProtocolError::Command(other.into())),
    }
}

/// OP_REP_DEVLIST.
pub fn device_list(devices: &[DeviceRecord]) -> Vec<u8> {
    let mut out = header(REP_DEVLIST, Status::Ok);
    out.extend_from_slice(&(devices.len() as u32).to_be_bytes());
    for device in devices {
        device.encode(&mut out);
        device.encode_interfaces(&mut out);
    }
    out
}

/// OP_REP_IMPORT of this device.
pub fn imported(device: &DeviceRecord) -> Vec<u8> {
    let mut out = header(REP_IMPORT, Status::Ok);
    device.encode(&mut out);
    out
}

/// OP_REP_IMPORT that there is nothing.
pub fn refused(status: Status) -> Vec<u8> {
    header(REP_IMPORT, status)
}

fn header(code: u16, status: Status) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&VERSION.to_be_bytes());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(&(status as u32).to_be_bytes());
    out
}
