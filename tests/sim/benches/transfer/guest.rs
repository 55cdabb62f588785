// SPDX-License-Identifier: GPL-3.0-or-later
//! A guest in this process, with a source and sink at its port: a device that takes no time.

use std::time::Duration;

use anyhow::{Context, Result};
use frontend_shim::{
    BufferId, Frontend, FrontendOptions, HostOptions, Target, TransferError, Urb, UsbHost,
};
use sim_scenarios::rig::Rig;
use usbif::{PortNumber, UrbKind};
use xen::xenstore::Endpoint;
use xen_sim::SimGuest;
use xen_sim::toolstack::DomainConfig;

const URB_BYTES: usize = 64 * 1024;
/// The exporter's configuration of the device.
pub const DEVICE: &str =
    "[[simulated]]\nkind = \"source-sink\"\npattern = \"none\"\nserial = \"BENCH\"\n";
const PATIENCE: Duration = Duration::from_secs(20);

/// The guest and its device.
pub struct BenchGuest {
    frontend: Frontend<SimGuest>,
    target: Target,
    bulk_in: u8,
    bulk_out: u8,
    data: Vec<BufferId>,
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
        rig.xl_vusb_json(0, &["attach", "bench", "exporter/0-2"])?;
        let port = PortNumber::new(1).context("port 1")?;
        let usb = frontend.host();
        usb.wait_for_device(port, PATIENCE)?;
        let device = usb.enumerate(port)?;
        let endpoints = device.interfaces.iter().flat_map(|i| &i.endpoints);
        let bulk = |is_in| {
            let mut all = endpoints.clone();
            all.find(|e| e.is_bulk() && e.is_in() == is_in)
                .map(|e| e.address)
        };
        let (bulk_in, bulk_out) = bulk(true).zip(bulk(false)).context("no bulk endpoints")?;
        let data = (0..16)
            .map(|_| usb.alloc_buffer(URB_BYTES))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            frontend,
            target: device.target,
            bulk_in,
            bulk_out,
            data,
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

    /// So many bytes from the source.
    pub fn bulk_in(&mut self, len: usize, in_flight: usize) {
        let (usb, data) = (self.frontend.host(), &self.data[..in_flight]);
        stream(usb, self.target, self.bulk_in, data, len);
    }

    /// So many bytes to the sink.
    pub fn bulk_out(&mut self, len: usize, in_flight: usize) {
        let (usb, data) = (self.frontend.host(), &self.data[..in_flight]);
        stream(usb, self.target, self.bulk_out, data, len);
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
