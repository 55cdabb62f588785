// SPDX-License-Identifier: GPL-3.0-or-later
//! Isochronous URBs.

use usbif::{
    Direction, ISOC_PACKET_BYTES, IsocPacket, MAX_SEGMENTS, Pipe, Segment, TransferType, UrbKind,
    UrbRequest,
};
use xen::Guest;

use super::{BufferSlice, Target, UsbHost};
use crate::{HostError, Submission, UrbHandle};

/// An isochronous URB for [`UsbHost::submit_isochronous`].
///
/// To keep a stream going several of them are submitted ahead; each begins where the one before it
/// ends.
#[derive(Clone, Copy, Debug)]
pub struct IsochronousUrb {
    /// The device.
    pub target: Target,
    /// The endpoint's address, bit 7 set for IN.
    pub endpoint: u8,
    /// Time between two packets, in frames or, at high speed, microframes.
    pub interval: u16,
    /// The frame to start in, where the backend heeds it.
    pub start_frame: u16,
    /// Packets, each with a frame descriptor.
    pub packets: u16,
    /// The data of all packets.
    pub data: BufferSlice,
    /// The frame descriptors, [`ISOC_PACKET_BYTES`] for each packet; see
    /// [`UsbHost::write_packets`]. As `xen-hcd` does it they are in segments of their own, after
    /// those of the data, and the backend writes lengths and statuses into them.
    pub descriptors: BufferSlice,
    /// Comes back in the completion.
    pub tag: u64,
}

impl<G: Guest> UsbHost<G> {
    /// Hands an isochronous URB over, like [`submit`](Self::submit).
    ///
    /// # Errors
    /// [`HostError::Submit`], [`HostError::OutsideBuffer`], [`HostError::Request`] when data and
    /// descriptors touch more than 16 pages, or the descriptors are too few.
    pub fn submit_isochronous(&mut self, urb: &IsochronousUrb) -> Result<UrbHandle, HostError> {
        let mut data = [Segment::default(); MAX_SEGMENTS + 1];
        let count = self.buffers.segments(urb.data, &mut data)?;
        let mut descriptors = [Segment::default(); MAX_SEGMENTS + 1];
        let descriptor_count = self.buffers.segments(urb.descriptors, &mut descriptors)?;
        let direction = match urb.endpoint & 0x80 {
            0 => Direction::Out,
            _ => Direction::In,
        };
        let Target { port, address } = urb.target;
        let request = UrbRequest::with_descriptors(
            0,
            Pipe::new(
                port.get(),
                address,
                urb.endpoint,
                direction,
                TransferType::Isochronous,
            ),
            0,
            UrbKind::Isochronous {
                interval: urb.interval,
                start_frame: urb.start_frame,
                packets: urb.packets,
            },
            &data[..count],
            &descriptors[..descriptor_count],
        )?;
        let handle = self.front.submit(Submission {
            root_port: port,
            request,
            tag: urb.tag,
        })?;
        for slice in [urb.data, urb.descriptors] {
            self.buffers.use_by(slice.buffer, handle);
        }
        Ok(handle)
    }

    /// Writes frame descriptors to the front of `into`.
    ///
    /// # Errors
    /// [`HostError::OutsideBuffer`].
    pub fn write_packets(
        &self,
        into: BufferSlice,
        packets: &[IsocPacket],
    ) -> Result<(), HostError> {
        for (n, packet) in packets.iter().enumerate() {
            let at = into.offset + n * ISOC_PACKET_BYTES;
            self.buffers.write(into.buffer, at, &packet.encode())?;
        }
        Ok(())
    }

    /// Reads frame descriptors from the front of `from`.
    ///
    /// # Errors
    /// [`HostError::OutsideBuffer`].
    pub fn read_packets(
        &self,
        from: BufferSlice,
        packets: &mut [IsocPacket],
    ) -> Result<(), HostError> {
        for (n, packet) in packets.iter_mut().enumerate() {
            let mut bytes = [0; ISOC_PACKET_BYTES];
            let at = from.offset + n * ISOC_PACKET_BYTES;
            self.buffers.read(from.buffer, at, &mut bytes)?;
            *packet = IsocPacket::decode(&bytes);
        }
        Ok(())
    }
}
