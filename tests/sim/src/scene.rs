// SPDX-License-Identifier: GPL-3.0-or-later
//! A rig with a guest in this process, whose devices are handled URB by URB.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use frontend_shim::{
    BufferId, BufferSlice, Completion, ControlData, Device, HostError, IsochronousUrb, ResumeMode,
    Target, TransferError, Urb, UrbHandle,
};
use usbif::{ISOC_PACKET_BYTES, IsocPacket, PortNumber, Setup, UrbKind};
use xen::PAGE_SIZE;

use crate::guest::Kernel;
use crate::programs;
use crate::rig::{Devices, Domain, Rig, RigOptions};

/// Long enough for the slowest machine; only what has failed waits for it.
pub const LIMIT: Duration = Duration::from_secs(20);

/// How a transfer ended, and its bytes.
pub type Transferred<T> = std::result::Result<T, TransferError>;

/// See the module's documentation.
pub struct Scene {
    /// The system. The guest is on its first host.
    pub rig: Rig,
    /// The guest's domain.
    pub domain: Domain,
    /// The guest's kernel.
    pub kernel: Kernel,
    /// The devices, from outside.
    pub devices: Devices,
    /// For one transfer at a time: 17 pages.
    io: BufferId,
}

impl Scene {
    /// Starts a rig with these `[[simulated]]` sections, from 0-2 on, and a guest with our frontend.
    ///
    /// # Errors
    /// What did not start.
    pub fn start(devices: &str) -> Result<Self> {
        Self::start_as(devices, ResumeMode::default())
    }

    /// The same with a guest whose frontend does this on resume.
    ///
    /// # Errors
    /// What did not start.
    pub fn start_as(devices: &str, mode: ResumeMode) -> Result<Self> {
        let options = RigOptions {
            devices: devices.to_owned(),
            ..RigOptions::default()
        };
        Self::begin(&options, mode)
    }

    /// Starts such a rig, and a guest.
    ///
    /// # Errors
    /// What did not start.
    pub fn with(options: &RigOptions) -> Result<Self> {
        Self::begin(options, ResumeMode::default())
    }

    fn begin(options: &RigOptions, mode: ResumeMode) -> Result<Self> {
        programs::build()?;
        let rig = Rig::start(options)?;
        let (domain, mut kernel) = Domain::create(&rig, 0, "guest", mode)?;
        let devices = rig.exporter.devices()?;
        let io = kernel.host().alloc_buffer(17 * PAGE_SIZE)?;
        Ok(Self {
            rig,
            domain,
            kernel,
            devices,
            io,
        })
    }

    /// Attaches a device and has the guest enumerate it: its first configuration is set.
    ///
    /// # Errors
    /// The message of `xl-vusb`, or what the device answered wrongly.
    pub fn plug(&mut self, device: &str, port: u8) -> Result<Device> {
        self.domain.attach(&self.rig, device, port)?;
        self.enumerate(port)
    }

    /// Has the guest enumerate what is attached to a port.
    ///
    /// # Errors
    /// What the device answered wrongly.
    pub fn enumerate(&mut self, port: u8) -> Result<Device> {
        let port = PortNumber::new(port).context("ports are 1 to 31")?;
        let host = self.kernel.host();
        host.wait_for_device(port, LIMIT)?;
        while host.next_port_change().is_some() {}
        Ok(host.enumerate(port)?)
    }

    /// Ends it all. Neither the backend nor anybody else may have done anything wrong.
    ///
    /// # Errors
    /// When something was.
    pub fn end(mut self) -> Result<()> {
        self.kernel.host().free_buffer(self.io);
        self.domain.end(&self.rig, self.kernel)?;
        let violations = self.rig.stop()?;
        if !violations.is_empty() {
            bail!("{violations:?}");
        }
        Ok(())
    }

    /// A control transfer without a data stage.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn control(&mut self, target: Target, setup: Setup) -> Result<Transferred<usize>> {
        let host = self.kernel.host();
        answered(host.control(target, setup, ControlData::None, LIMIT))
    }

    /// A control transfer with data to the device.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn control_out(
        &mut self,
        target: Target,
        setup: Setup,
        data: &[u8],
    ) -> Result<Transferred<usize>> {
        let host = self.kernel.host();
        answered(host.control(target, setup, ControlData::Out(data), LIMIT))
    }

    /// A control transfer with at most `len` bytes from the device.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn control_in(
        &mut self,
        target: Target,
        setup: Setup,
        len: usize,
    ) -> Result<Transferred<Vec<u8>>> {
        let mut data = vec![0; len];
        let host = self.kernel.host();
        let got = answered(host.control(target, setup, ControlData::In(&mut data), LIMIT))?;
        Ok(got.map(|got| {
            data.truncate(got);
            data
        }))
    }

    /// Submits a bulk or interrupt URB.
    ///
    /// # Errors
    /// When it is not taken.
    pub fn submit(
        &mut self,
        target: Target,
        endpoint: u8,
        kind: UrbKind,
        data: BufferSlice,
    ) -> Result<UrbHandle> {
        let urb = Urb {
            target,
            endpoint,
            kind,
            data: Some(data),
            short_not_ok: false,
            tag: 0,
        };
        Ok(self.kernel.host().submit(&urb)?)
    }

    /// A bulk or interrupt transfer to the device; nothing else is in flight.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn write(
        &mut self,
        target: Target,
        endpoint: u8,
        kind: UrbKind,
        data: &[u8],
    ) -> Result<Transferred<usize>> {
        self.kernel.host().write_buffer(self.io, 0, data)?;
        self.submit(target, endpoint, kind, self.io.slice(0, data.len()))?;
        let done = self.kernel.completion(LIMIT)?;
        Ok(done.result.map(|()| done.actual_length))
    }

    /// A bulk or interrupt transfer of at most `len` bytes from the device; nothing else is in
    /// flight.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn read(
        &mut self,
        target: Target,
        endpoint: u8,
        kind: UrbKind,
        len: usize,
    ) -> Result<Transferred<Vec<u8>>> {
        self.submit(target, endpoint, kind, self.io.slice(0, len))?;
        let done = self.kernel.completion(LIMIT)?;
        let mut data = vec![0; done.actual_length];
        self.kernel.host().read_buffer(self.io, 0, &mut data)?;
        Ok(done.result.map(|()| data))
    }

    /// Waits until so many transfers of an endpoint wait at the device.
    ///
    /// # Errors
    /// When they never do.
    pub fn wait_for_waiting(&mut self, device: &str, endpoint: u8, count: usize) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            self.kernel.host().step()?;
            let waiting = self.devices.waiting(device, endpoint)?;
            if waiting == count {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{waiting} transfers of endpoint {endpoint:02x} wait, not {count}");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Allocates room for an isochronous URB of packets of these lengths, one after the other.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn stream(&mut self, target: Target, endpoint: u8, lengths: &[usize]) -> Result<StreamUrb> {
        let total: usize = lengths.iter().sum();
        let data = self.kernel.host().alloc_buffer(total)?;
        let table_bytes = lengths.len() * ISOC_PACKET_BYTES;
        let descriptors = self.kernel.host().alloc_buffer(table_bytes)?;
        let mut offset = 0;
        let packets = lengths.iter().map(|len| {
            offset += len;
            IsocPacket {
                offset: (offset - len) as u32,
                length: *len as u32,
                // What the backend must not take over.
                actual_length: 0xdead,
                status: -1,
            }
        });
        Ok(StreamUrb {
            packets: packets.collect(),
            urb: IsochronousUrb {
                target,
                endpoint,
                interval: 8,
                start_frame: 0,
                packets: lengths.len() as u16,
                data: data.slice(0, total),
                descriptors: descriptors.slice(0, table_bytes),
                tag: 0,
            },
        })
    }
}

fn answered<T>(result: Result<T, HostError>) -> Result<Transferred<T>> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(HostError::Transfer(error)) => Ok(Err(error)),
        Err(error) => Err(error.into()),
    }
}

/// An isochronous URB with its buffers.
#[derive(Clone, Debug)]
pub struct StreamUrb {
    /// The URB.
    pub urb: IsochronousUrb,
    /// Its packets as they are submitted.
    pub packets: Vec<IsocPacket>,
}

impl StreamUrb {
    /// Writes the data of an OUT URB.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn fill(&self, kernel: &mut Kernel, data: &[u8]) -> Result<()> {
        Ok(kernel.host().write_buffer(self.urb.data.buffer, 0, data)?)
    }

    /// Submits it.
    ///
    /// # Errors
    /// When it is not taken.
    pub fn submit(&self, kernel: &mut Kernel) -> Result<UrbHandle> {
        let host = kernel.host();
        host.write_packets(self.urb.descriptors, &self.packets)?;
        Ok(host.submit_isochronous(&self.urb)?)
    }

    /// Its packets as they are now, and each one's data.
    ///
    /// # Errors
    /// When a packet's data is not within its buffer.
    pub fn take(&self, kernel: &mut Kernel) -> Result<Vec<(IsocPacket, Vec<u8>)>> {
        let mut packets = self.packets.clone();
        let host = kernel.host();
        host.read_packets(self.urb.descriptors, &mut packets)?;
        let with_data = packets.into_iter().map(|packet| {
            let mut data = vec![0; packet.actual_length as usize];
            host.read_buffer(self.urb.data.buffer, packet.offset as usize, &mut data)?;
            Ok((packet, data))
        });
        with_data.collect()
    }
}

/// Whether a URB went as it should.
///
/// # Errors
/// How it did not.
pub fn succeeded(completion: &Completion) -> Result<()> {
    completion.result.with_context(|| format!("{completion:?}"))
}
