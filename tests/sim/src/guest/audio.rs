// SPDX-License-Identifier: GPL-3.0-or-later
//! Drivers of the two streams of a simulated headset, with several URBs queued on each so that
//! there are no gaps. Its audio frames are numbered, so that each of them is accounted for.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use frontend_shim::{
    BufferSlice, Completion, ControlData, Device, Endpoint, IsochronousUrb, Target, TransferError,
    UrbHandle, UsbHost,
};
use usb_sim::{FRAME_LEN, StreamCheck, StreamCounts};
use usbif::{ISOC_PACKET_BYTES, IsocPacket, Setup};
use xen::PAGE_SIZE;
use xen_sim::SimGuest;

use super::workload::Driver;

/// URBs queued.
const URBS: usize = 4;
/// Packets of an URB, each of a millisecond.
pub const PACKETS: usize = 16;
const MAX_PACKET_BYTES: usize = 49 * FRAME_LEN;
/// Audio frames of a packet at 48 kHz.
const FRAMES: usize = 48;
/// Microframes between packets.
const INTERVAL: u16 = 8;
/// Frame numbers have 11 bits (USB 2.0 §8.4.3).
const FRAME_NUMBERS: u16 = 0x7ff;
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where a URB's data is, and after it on a page of its own its frame descriptors.
#[derive(Clone, Copy, Debug)]
struct Place {
    data: BufferSlice,
    descriptors: BufferSlice,
}

/// A stream's endpoint, and the places that are free.
#[derive(Debug)]
struct Stream {
    target: Target,
    endpoint: u8,
    idle: Vec<Place>,
}

impl Stream {
    /// Chooses the setting of the interface that has an endpoint of this direction.
    fn open(host: &mut UsbHost<SimGuest>, device: &Device, is_in: bool) -> Result<Self> {
        let wanted = |e: &&Endpoint| e.attributes & 3 == 1 && e.is_in() == is_in;
        let settings = device.interfaces.iter();
        let mut found = settings.filter_map(|i| Some((i, i.endpoints.iter().find(wanted)?)));
        let (interface, endpoint) = found.next().context("a headset without a stream")?;
        let set_interface = Setup::new(
            0x01,
            Setup::SET_INTERFACE,
            interface.alternate.into(),
            interface.number.into(),
            0,
        );
        host.control(device.target, set_interface, ControlData::None, TIMEOUT)?;
        let mut idle = Vec::new();
        for _ in 0..URBS {
            let buffer = host.alloc_buffer(2 * PAGE_SIZE)?;
            idle.push(Place {
                data: buffer.slice(0, PACKETS * MAX_PACKET_BYTES),
                descriptors: buffer.slice(PAGE_SIZE, PACKETS * ISOC_PACKET_BYTES),
            });
        }
        Ok(Self {
            target: device.target,
            endpoint: endpoint.address,
            idle,
        })
    }

    fn submit(
        &self,
        host: &mut UsbHost<SimGuest>,
        place: Place,
        packet_bytes: usize,
    ) -> Result<UrbHandle> {
        let packets: [_; PACKETS] = std::array::from_fn(|n| IsocPacket {
            offset: (n * packet_bytes) as u32,
            length: packet_bytes as u32,
            ..IsocPacket::default()
        });
        host.write_packets(place.descriptors, &packets)?;
        let data = place.data;
        Ok(host.submit_isochronous(&IsochronousUrb {
            target: self.target,
            endpoint: self.endpoint,
            interval: INTERVAL,
            start_frame: 0,
            packets: PACKETS as u16,
            data: data.buffer.slice(data.offset, PACKETS * packet_bytes),
            descriptors: place.descriptors,
            tag: 0,
        })?)
    }
}

fn packets_of(host: &UsbHost<SimGuest>, place: Place) -> Result<[IsocPacket; PACKETS]> {
    let mut packets = [IsocPacket::default(); PACKETS];
    host.read_packets(place.descriptors, &mut packets)?;
    Ok(packets)
}

/// Where a URB begins on the bus, and where the next one has to.
#[derive(Clone, Copy, Debug, Default)]
struct Follows(Option<u16>);

impl Follows {
    /// Whether this one follows the one before.
    fn check(&mut self, start_frame: u16) -> bool {
        let next = (start_frame + PACKETS as u16) & FRAME_NUMBERS;
        let expected = self.0.replace(next);
        expected.is_none_or(|expected| expected == start_frame)
    }
}

/// What was recorded.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// URBs that completed.
    pub urbs: u64,
    /// All audio frames.
    pub frames: StreamCounts,
    /// Of those dropped, how many were so because the guest was on its way through a suspend.
    pub dropped_in_blackouts: u64,
    /// URBs that did not begin where the one before ended, other than after a suspend.
    pub gaps: u64,
    /// Packets that failed.
    pub failed_packets: u64,
}

/// Records.
#[derive(Debug)]
pub struct Recorder {
    stream: Stream,
    in_flight: VecDeque<(UrbHandle, Place)>,
    check: StreamCheck,
    follows: Follows,
    /// Some were unlinked since the last that completed.
    interrupted: bool,
    recorded: Arc<Mutex<Recorded>>,
}

impl Recorder {
    /// Opens the microphone of an enumerated headset.
    ///
    /// # Errors
    /// When it has none, or does not answer.
    pub fn open(host: &mut UsbHost<SimGuest>, device: &Device) -> Result<Self> {
        Ok(Self {
            stream: Stream::open(host, device, true)?,
            in_flight: VecDeque::new(),
            check: StreamCheck::default(),
            follows: Follows::default(),
            interrupted: false,
            recorded: Arc::default(),
        })
    }

    /// What it heard, while it goes on.
    pub fn recorded(&self) -> Arc<Mutex<Recorded>> {
        self.recorded.clone()
    }

    fn take(
        &mut self,
        host: &UsbHost<SimGuest>,
        place: Place,
        completion: &Completion,
    ) -> Result<()> {
        let interrupted = std::mem::take(&mut self.interrupted);
        let mut recorded = self.recorded.lock().expect("no holder panics");
        let mut actual_length = 0;
        let mut failed = 0;
        for packet in packets_of(host, place)? {
            if packet.status != 0 {
                failed += 1;
                continue;
            }
            let mut bytes = vec![0; packet.actual_length as usize];
            let at = place.data.offset + packet.offset as usize;
            host.read_buffer(place.data.buffer, at, &mut bytes)?;
            let before = self.check.counts().dropped;
            self.check.feed_packet(&bytes);
            if interrupted && actual_length == 0 {
                recorded.dropped_in_blackouts += self.check.counts().dropped - before;
            }
            actual_length += bytes.len();
        }
        if actual_length != completion.actual_length || failed != completion.error_count {
            bail!("packets of {actual_length} bytes, {failed} failed: {completion:?}");
        }
        recorded.urbs += 1;
        recorded.frames = self.check.counts();
        recorded.failed_packets += u64::from(failed);
        let follows = self.follows.check(completion.start_frame);
        recorded.gaps += u64::from(!follows && !interrupted);
        Ok(())
    }
}

impl Driver for Recorder {
    fn submit(&mut self, host: &mut UsbHost<SimGuest>, busy: bool) -> Result<()> {
        while busy && let Some(place) = self.stream.idle.pop() {
            let urb = self.stream.submit(host, place, MAX_PACKET_BYTES)?;
            self.in_flight.push_back((urb, place));
        }
        Ok(())
    }

    fn unlink(&mut self, host: &mut UsbHost<SimGuest>) {
        for (urb, _) in self.in_flight.iter().rev() {
            host.unlink(*urb);
        }
    }

    fn suspended(&mut self) {
        self.interrupted = true;
    }

    fn completed(&mut self, host: &mut UsbHost<SimGuest>, completion: &Completion) -> Result<bool> {
        let mut urbs = self.in_flight.iter();
        let Some(at) = urbs.position(|(urb, _)| *urb == completion.urb) else {
            return Ok(false);
        };
        let Some((_, place)) = self.in_flight.remove(at) else {
            return Ok(false);
        };
        match completion.result {
            Ok(()) if at == 0 => self.take(host, place, completion)?,
            Ok(()) => bail!("recorded out of order"),
            Err(TransferError::Unlinked) => self.interrupted = true,
            Err(e) => bail!("recording: {e}"),
        }
        self.stream.idle.push(place);
        Ok(true)
    }
}

/// What was played.
#[derive(Clone, Debug, Default)]
pub struct Played {
    /// URBs that completed.
    pub urbs: u64,
    /// Audio frames that the headset took.
    pub frames: u64,
    /// URBs that did not begin where the one before ended, other than after a suspend.
    pub gaps: u64,
}

#[derive(Debug)]
struct Playing {
    urb: UrbHandle,
    place: Place,
    /// The number of its first audio frame.
    first: u32,
    /// Audio frames taken, once it is over.
    done: Option<usize>,
}

/// Plays.
#[derive(Debug)]
pub struct Player {
    stream: Stream,
    in_flight: VecDeque<Playing>,
    next: u32,
    follows: Follows,
    interrupted: bool,
    played: Arc<Mutex<Played>>,
}

impl Player {
    /// Opens the ears of an enumerated headset.
    ///
    /// # Errors
    /// When it has none, or does not answer.
    pub fn open(host: &mut UsbHost<SimGuest>, device: &Device) -> Result<Self> {
        Ok(Self {
            stream: Stream::open(host, device, false)?,
            in_flight: VecDeque::new(),
            next: 1,
            follows: Follows::default(),
            interrupted: false,
            played: Arc::default(),
        })
    }

    /// What it played, while it goes on.
    pub fn played(&self) -> Arc<Mutex<Played>> {
        self.played.clone()
    }

    /// Takes off what is over, in order. After what was unlinked it goes on with the first audio
    /// frame that was not played.
    fn settle(&mut self) -> Result<()> {
        const ALL: usize = PACKETS * FRAMES;
        while let Some(Playing {
            done: Some(done),
            place,
            first,
            ..
        }) = self.in_flight.front()
        {
            let (done, place, first) = (*done, *place, *first);
            if done < ALL {
                let later = self.in_flight.iter().skip(1);
                if later.clone().any(|p| p.done.is_none()) {
                    return Ok(());
                }
                if later.clone().any(|p| p.done != Some(0)) {
                    bail!("played after something that was not: {:?}", self.in_flight);
                }
                self.stream.idle.extend(later.map(|p| p.place));
                self.in_flight.truncate(1);
                self.next = first + done as u32;
            }
            self.in_flight.pop_front();
            self.stream.idle.push(place);
            self.played.lock().expect("no holder panics").frames += done as u64;
        }
        Ok(())
    }
}

impl Driver for Player {
    fn submit(&mut self, host: &mut UsbHost<SimGuest>, busy: bool) -> Result<()> {
        if self.in_flight.iter().any(|p| p.done.is_some()) {
            return Ok(());
        }
        while busy && let Some(place) = self.stream.idle.pop() {
            let numbers = (self.next..).take(PACKETS * FRAMES);
            let bytes: Vec<u8> = numbers.flat_map(u32::to_le_bytes).collect();
            host.write_buffer(place.data.buffer, place.data.offset, &bytes)?;
            let urb = self.stream.submit(host, place, FRAMES * FRAME_LEN)?;
            self.in_flight.push_back(Playing {
                urb,
                place,
                first: self.next,
                done: None,
            });
            self.next += (PACKETS * FRAMES) as u32;
        }
        Ok(())
    }

    fn unlink(&mut self, host: &mut UsbHost<SimGuest>) {
        for playing in self.in_flight.iter().rev() {
            host.unlink(playing.urb);
        }
    }

    fn suspended(&mut self) {
        self.interrupted = true;
    }

    fn completed(&mut self, host: &mut UsbHost<SimGuest>, completion: &Completion) -> Result<bool> {
        let mut playing = self.in_flight.iter_mut();
        let Some(playing) = playing.find(|p| p.urb == completion.urb) else {
            return Ok(false);
        };
        playing.done = Some(completion.actual_length / FRAME_LEN);
        match completion.result {
            Ok(()) => {
                let packets = packets_of(host, playing.place)?;
                let whole = |p: &IsocPacket| p.status == 0 && p.actual_length == p.length;
                if completion.error_count != 0 || !packets.iter().all(whole) {
                    bail!("playing: {completion:?} {packets:?}");
                }
                let follows = self.follows.check(completion.start_frame);
                let mut played = self.played.lock().expect("no holder panics");
                played.urbs += 1;
                played.gaps += u64::from(!follows && !std::mem::take(&mut self.interrupted));
            }
            Err(TransferError::Unlinked) => self.interrupted = true,
            Err(e) => bail!("playing: {e}"),
        }
        self.settle()?;
        Ok(true)
    }
}
