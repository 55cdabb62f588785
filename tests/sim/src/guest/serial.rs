// SPDX-License-Identifier: GPL-3.0-or-later
//! A driver of a CDC-ACM adapter whose lines are looped. It sends a stream of bytes that each have
//! their place, and expects them back. What an unlinked OUT URB says to have sent it does not send
//! again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use frontend_shim::{
    BufferId, BufferSlice, Completion, ControlData, Device, Target, TransferError, Urb, UrbHandle,
    UsbHost,
};
use usbif::{Setup, UrbKind};
use xen_sim::SimGuest;

use super::workload::{Driver, UnlinkedData};
use crate::random::Random;

const IN_URBS: usize = 3;
const OUT_URBS: usize = 2;
const IN_BYTES: usize = 512;
const OUT_BYTES: usize = 300;
const MIN_OUT_BYTES: usize = 16;
/// Bytes that may be on their way.
const WINDOW: u64 = 16 * 1024;
const NOTIFICATION_BYTES: usize = 16;
const TIMEOUT: Duration = Duration::from_secs(10);

/// What went through.
#[derive(Clone, Debug, Default)]
pub struct Streamed {
    /// Bytes that the adapter took.
    pub sent: u64,
    /// Bytes that came back, each the right one, or are known to be lost.
    pub received: u64,
    /// Bytes that never came back, though later ones did.
    pub lost: u64,
    /// Bytes that came with an unlinked URB, and so were not seen.
    pub dropped: u64,
    /// Changes of the lines' state that were notified.
    pub notifications: u64,
}

/// The byte at a place of the stream.
fn byte_at(place: u64) -> u8 {
    Random::new(place).next_u64() as u8
}

#[derive(Debug)]
struct Out {
    urb: UrbHandle,
    slot: usize,
    start: u64,
    len: usize,
    /// Bytes taken, once it is over.
    done: Option<usize>,
}

/// The driver.
#[derive(Debug)]
pub struct Serial {
    target: Target,
    bulk_in: u8,
    bulk_out: u8,
    notifications: u8,
    ins: VecDeque<(UrbHandle, BufferSlice)>,
    idle_ins: Vec<BufferSlice>,
    outs: VecDeque<Out>,
    out_buffer: BufferId,
    idle_outs: Vec<usize>,
    notification: (BufferSlice, Option<UrbHandle>),
    next: u64,
    random: Random,
    unlinked: UnlinkedData,
    streamed: Arc<Mutex<Streamed>>,
}

impl Serial {
    /// Opens an enumerated adapter: 115200 8N1, DTR and RTS raised.
    ///
    /// # Errors
    /// When it is none, or does not answer.
    pub fn open(
        host: &mut UsbHost<SimGuest>,
        device: &Device,
        seed: u64,
        unlinked: UnlinkedData,
    ) -> Result<Self> {
        let endpoints = device.interfaces.iter().flat_map(|i| &i.endpoints);
        let find = |is_bulk: bool, is_in: bool| {
            let mut all = endpoints.clone();
            all.find(|e| e.is_bulk() == is_bulk && e.is_in() == is_in)
                .map(|e| e.address)
                .context("a serial adapter without its endpoints")
        };
        let coding = [0x00, 0xc2, 0x01, 0x00, 0, 0, 8];
        let set_coding = Setup::new(0x21, 0x20, 0, 0, 0);
        host.control(
            device.target,
            set_coding,
            ControlData::Out(&coding),
            TIMEOUT,
        )?;
        let set_lines = Setup::new(0x21, 0x22, 3, 0, 0);
        host.control(device.target, set_lines, ControlData::None, TIMEOUT)?;
        let ins = host.alloc_buffer(IN_URBS * IN_BYTES)?;
        Ok(Self {
            target: device.target,
            bulk_in: find(true, true)?,
            bulk_out: find(true, false)?,
            notifications: find(false, true)?,
            ins: VecDeque::new(),
            idle_ins: (0..IN_URBS)
                .map(|n| ins.slice(n * IN_BYTES, IN_BYTES))
                .collect(),
            outs: VecDeque::new(),
            out_buffer: host.alloc_buffer(OUT_URBS * OUT_BYTES)?,
            idle_outs: (0..OUT_URBS).collect(),
            notification: (
                host.alloc_buffer(NOTIFICATION_BYTES)?
                    .slice(0, NOTIFICATION_BYTES),
                None,
            ),
            next: 0,
            random: Random::new(seed),
            unlinked,
            streamed: Arc::default(),
        })
    }

    /// What it saw, while it goes on.
    pub fn streamed(&self) -> Arc<Mutex<Streamed>> {
        self.streamed.clone()
    }

    fn urb(&self, endpoint: u8, kind: UrbKind, data: BufferSlice) -> Urb {
        Urb {
            target: self.target,
            endpoint,
            kind,
            data: Some(data),
            short_not_ok: false,
            tag: 0,
        }
    }

    fn send(&mut self, host: &mut UsbHost<SimGuest>) -> Result<()> {
        let received = self.streamed.lock().expect("no holder panics").received;
        while self.next - received < WINDOW {
            // After an interruption it is clear where to go on only when all are over.
            if self.outs.iter().any(|out| out.done.is_some()) {
                break;
            }
            let Some(slot) = self.idle_outs.pop() else {
                break;
            };
            let more = self.random.below((OUT_BYTES - MIN_OUT_BYTES) as u64) as usize;
            let len = MIN_OUT_BYTES + more;
            let bytes: Vec<u8> = (self.next..).map(byte_at).take(len).collect();
            host.write_buffer(self.out_buffer, slot * OUT_BYTES, &bytes)?;
            let data = self.out_buffer.slice(slot * OUT_BYTES, len);
            let urb = host.submit(&self.urb(self.bulk_out, UrbKind::Bulk, data))?;
            self.outs.push_back(Out {
                urb,
                slot,
                start: self.next,
                len,
                done: None,
            });
            self.next += len as u64;
        }
        Ok(())
    }

    /// Takes off what is over, in the order in which it was sent.
    fn settle(&mut self) -> Result<()> {
        while let Some(Out {
            done: Some(done),
            slot,
            start,
            len,
            ..
        }) = self.outs.front()
        {
            let (done, slot, start, len) = (*done, *slot, *start, *len);
            if done < len {
                // Cut short, so that nothing after it may have been sent.
                let later = self.outs.iter().skip(1);
                if later.clone().any(|out| out.done.is_none()) {
                    return Ok(());
                }
                if later.clone().any(|out| out.done != Some(0)) {
                    bail!("sent after something that was not: {:?}", self.outs);
                }
                self.idle_outs.extend(later.map(|out| out.slot));
                self.outs.truncate(1);
                self.next = start + done as u64;
            }
            self.outs.pop_front();
            self.idle_outs.push(slot);
            self.streamed.lock().expect("no holder panics").sent += done as u64;
        }
        Ok(())
    }

    fn received(
        &mut self,
        host: &UsbHost<SimGuest>,
        slice: BufferSlice,
        completion: &Completion,
    ) -> Result<()> {
        let mut streamed = self.streamed.lock().expect("no holder panics");
        match completion.result {
            Ok(()) => (),
            Err(TransferError::Unlinked) if self.unlinked == UnlinkedData::Taken => (),
            Err(TransferError::Unlinked) => {
                streamed.dropped += completion.actual_length as u64;
                return Ok(());
            }
            Err(e) => bail!("receiving: {e}"),
        }
        let mut bytes = vec![0; completion.actual_length];
        host.read_buffer(slice.buffer, slice.offset, &mut bytes)?;
        let at = streamed.received;
        let is_there = |from: &u64| (*from..).map(byte_at).zip(&bytes).all(|(a, b)| a == *b);
        let Some(place) = (at..=self.next).find(is_there) else {
            bail!(
                "{} bytes at {at} are none that are expected; {} came with unlinked URBs",
                bytes.len(),
                streamed.dropped
            );
        };
        streamed.lost += place - at;
        streamed.received = place;
        streamed.received += bytes.len() as u64;
        Ok(())
    }
}

impl Driver for Serial {
    fn submit(&mut self, host: &mut UsbHost<SimGuest>, busy: bool) -> Result<()> {
        while let Some(slice) = self.idle_ins.pop() {
            let urb = host.submit(&self.urb(self.bulk_in, UrbKind::Bulk, slice))?;
            self.ins.push_back((urb, slice));
        }
        if let (slice, None) = self.notification {
            let kind = UrbKind::Interrupt { interval: 16 };
            let urb = host.submit(&self.urb(self.notifications, kind, slice))?;
            self.notification.1 = Some(urb);
        }
        if busy {
            self.send(host)?;
        }
        Ok(())
    }

    fn unlink(&mut self, host: &mut UsbHost<SimGuest>) {
        let ins = self.ins.iter().map(|(urb, _)| *urb);
        let outs = self.outs.iter().map(|out| out.urb);
        for urb in ins.rev().chain(outs.rev()).chain(self.notification.1) {
            host.unlink(urb);
        }
    }

    fn completed(&mut self, host: &mut UsbHost<SimGuest>, completion: &Completion) -> Result<bool> {
        if self.notification.1 == Some(completion.urb) {
            self.notification.1 = None;
            if completion.result.is_ok() {
                self.streamed
                    .lock()
                    .expect("no holder panics")
                    .notifications += 1;
            }
            return Ok(true);
        }
        if let Some(at) = self.ins.iter().position(|(urb, _)| *urb == completion.urb) {
            if at != 0 && completion.result.is_ok() {
                bail!("received out of order");
            }
            if let Some((_, slice)) = self.ins.remove(at) {
                self.received(host, slice, completion)?;
                self.idle_ins.push(slice);
            }
            return Ok(true);
        }
        let Some(out) = self.outs.iter_mut().find(|o| o.urb == completion.urb) else {
            return Ok(false);
        };
        match completion.result {
            Ok(()) | Err(TransferError::Unlinked) => {
                out.done = Some(completion.actual_length);
            }
            Err(e) => bail!("sending: {e}"),
        }
        self.settle()?;
        Ok(true)
    }
}
