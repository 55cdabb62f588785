// SPDX-License-Identifier: GPL-3.0-or-later
//! A guest in this process, with the simulated disk at its port.

use std::time::Duration;

use anyhow::{Context, Result};
use frontend_shim::storage::Disk;
use frontend_shim::{
    BufferId, Frontend, FrontendOptions, HostOptions, Target, TransferError, Urb, UsbHost,
};
use sim_scenarios::rig::Rig;
use usbif::{PortNumber, UrbKind};
use xen::xenstore::Endpoint;
use xen_sim::SimGuest;
use xen_sim::toolstack::DomainConfig;

const URB_BYTES: usize = 64 * 1024;
const CBW_BYTES: usize = 31;
const CSW_BYTES: usize = 13;
const CSW_OFFSET: usize = 2048;
const PATIENCE: Duration = Duration::from_secs(20);

/// The guest and its disk.
pub struct BenchGuest {
    frontend: Frontend<SimGuest>,
    target: Target,
    bulk_in: u8,
    bulk_out: u8,
    wrappers: BufferId,
    data: Vec<BufferId>,
    tag: u32,
}

impl BenchGuest {
    pub fn start(rig: &Rig) -> Result<Self> {
        let host = &rig.hosts[0];
        let domid = host.xl.create(&DomainConfig::new("bench"))?;
        host.xl.unpause(domid)?;
        let guest = SimGuest::boot(host.dir(), domid)?;
        let options = FrontendOptions {
            host: HostOptions {
                on_violation: Some(Box::new(|violation| panic!("{violation}"))),
                check_grants: false,
            },
            ..FrontendOptions::default()
        };
        let store = Endpoint::Socket(guest.xenstore_path());
        let mut frontend = Frontend::connect(guest, &store, options)?;
        rig.xl_vusb_json(0, &["attach", "bench", "exporter/0-1"])?;
        let port = PortNumber::new(1).context("port 1")?;
        let usb = frontend.host();
        usb.wait_for_device(port, PATIENCE)?;
        let device = usb.enumerate(port)?;
        // Waits until the disk is ready, and takes its unit attention.
        Disk::open(usb, &device)?.close(usb);
        let endpoints = device.interfaces.iter().flat_map(|i| &i.endpoints);
        let bulk = |is_in| {
            let mut all = endpoints.clone();
            all.find(|e| e.is_bulk() && e.is_in() == is_in)
                .map(|e| e.address)
        };
        let (bulk_in, bulk_out) = bulk(true).zip(bulk(false)).context("no bulk endpoints")?;
        let wrappers = usb.alloc_buffer(xen::PAGE_SIZE)?;
        let data = (0..16)
            .map(|_| usb.alloc_buffer(URB_BYTES))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            frontend,
            target: device.target,
            bulk_in,
            bulk_out,
            wrappers,
            data,
            tag: 0,
        })
    }

    /// GET_DESCRIPTOR of the device: 18 bytes.
    pub fn control(&mut self) {
        let mut bytes = [0; 18];
        let got = self
            .frontend
            .host()
            .get_descriptor(self.target, 0x0100, &mut bytes);
        assert_eq!(got.expect("a descriptor"), 18);
    }

    /// READ (10) of so many bytes.
    pub fn bulk_in(&mut self, len: usize, in_flight: usize) {
        self.command(0x28, 0x80, len, self.bulk_in, in_flight);
    }

    /// WRITE (10) of so many bytes.
    pub fn bulk_out(&mut self, len: usize, in_flight: usize) {
        self.command(0x2a, 0, len, self.bulk_out, in_flight);
    }

    fn command(&mut self, operation: u8, flags: u8, len: usize, endpoint: u8, in_flight: usize) {
        self.tag += 1;
        let mut wrapper = [0; CBW_BYTES];
        wrapper[..4].copy_from_slice(b"USBC");
        wrapper[4..8].copy_from_slice(&self.tag.to_le_bytes());
        wrapper[8..12].copy_from_slice(&(len as u32).to_le_bytes());
        wrapper[12] = flags;
        wrapper[14] = 10;
        wrapper[15] = operation;
        wrapper[22..24].copy_from_slice(&((len / 512) as u16).to_be_bytes());
        let Self {
            target,
            bulk_in,
            bulk_out,
            wrappers,
            ..
        } = *self;
        let usb = self.frontend.host();
        usb.write_buffer(wrappers, 0, &wrapper).expect("a buffer");
        let first = usb.bulk(target, bulk_out, wrappers.slice(0, CBW_BYTES), PATIENCE);
        assert_eq!(first.expect("the command"), CBW_BYTES);
        stream(usb, target, endpoint, &self.data[..in_flight], len);
        let last = wrappers.slice(CSW_OFFSET, CSW_BYTES);
        let got = usb.bulk(target, bulk_in, last, PATIENCE);
        assert_eq!(got.expect("the status"), CSW_BYTES);
        let mut status = [0; CSW_BYTES];
        usb.read_buffer(wrappers, CSW_OFFSET, &mut status)
            .expect("a buffer");
        assert_eq!(status[12], 0, "the command failed");
    }
}

/// Moves `len` bytes in URBs of 64 KiB, one in flight for each buffer.
fn stream(
    usb: &mut UsbHost<SimGuest>,
    target: Target,
    endpoint: u8,
    buffers: &[BufferId],
    len: usize,
) {
    let count = len / URB_BYTES;
    let mut submitted = 0;
    let mut done = 0;
    let mut submit = |usb: &mut UsbHost<SimGuest>, buffer: usize| {
        if submitted == count {
            return;
        }
        submitted += 1;
        let urb = Urb {
            target,
            endpoint,
            kind: UrbKind::Bulk,
            data: Some(buffers[buffer].slice(0, URB_BYTES)),
            short_not_ok: false,
            tag: buffer as u64,
        };
        usb.submit(&urb).expect("a URB is taken");
    };
    for buffer in 0..buffers.len() {
        submit(usb, buffer);
    }
    while done < count {
        usb.wait(PATIENCE).expect("the controller works");
        while let Some(completion) = usb.next_completion() {
            assert_eq!(completion.result, Ok::<(), TransferError>(()));
            assert_eq!(completion.actual_length, URB_BYTES);
            done += 1;
            submit(usb, completion.tag as usize);
        }
    }
}
