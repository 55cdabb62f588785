// SPDX-License-Identifier: GPL-3.0-or-later
//! Transfers of any kind to the simulated disk that an exporter lends: each is over once, with no
//! more data than was asked for.

use std::collections::BTreeSet;

use session::frame::{Transfer, TransferType};
use session::server::Outcome;
use usb_sim::{Disk, Function, Host, MemoryStorage, Port};

use crate::{Input, Target};

/// See the module's documentation.
pub const TARGET: Target = Target {
    name: "disk",
    seeds,
    run,
};

const DISK_LEN: usize = 1 << 20;

/// Checks and forgets what completes.
#[derive(Default)]
struct Transfers {
    open: BTreeSet<u64>,
    bytes: Vec<u8>,
    status: u32,
}

impl Host for Transfers {
    fn complete(
        &mut self,
        request: u64,
        fill: &mut dyn FnMut(&mut Vec<u8>) -> Option<Outcome>,
    ) -> bool {
        let mut bytes = Vec::new();
        let Some(outcome) = fill(&mut bytes) else {
            return false;
        };
        assert!(self.open.remove(&request), "over twice, or never submitted");
        assert!(bytes.len() <= 65_536);
        self.bytes = bytes;
        self.status = outcome.status as u32;
        true
    }
}

fn control(setup: [u8; 8]) -> Transfer {
    Transfer {
        transfer_type: TransferType::Control,
        endpoint: setup[0] & 0x80,
        flags: 0,
        length: u16::from_le_bytes([setup[6], setup[7]]).into(),
        interval: 0,
        setup,
    }
}

/// A device's configuration descriptor with all that belongs to it.
pub(super) fn configuration_of<F: Function>(port: &mut Port<F>) -> Vec<u8> {
    let mut host = Transfers::default();
    host.open.insert(1);
    let get = control([0x80, 6, 0, 2, 0, 0, 0xff, 0xff]);
    port.submit(1, &get, &[], &mut host);
    host.bytes
}

fn seeds() -> Vec<Vec<u8>> {
    let mut read = vec![1];
    // A READ(10) of one block, its data, its status.
    read.extend(command(512, 0x80, &[0x28, 0, 0, 0, 0, 3, 0, 0, 1, 0]));
    read.extend([2, 2, 2, 2]);
    let mut write = vec![1];
    write.extend(command(512, 0, &[0x2a, 0, 0, 0, 0, 3, 0, 0, 1, 0]));
    write.extend([3, 2, 2, 2]);
    let mut inquiry = vec![1];
    inquiry.extend(command(36, 0x80, &[0x12, 0, 0, 0, 36, 0]));
    inquiry.extend([2, 1, 2, 2]);
    vec![read, write, inquiry, vec![0, 0x80, 6, 0, 1, 0, 0, 18, 0]]
}

/// The fields of a command block wrapper that vary (bulk-only transport, 5.1).
fn command(len: u32, flags: u8, command: &[u8]) -> Vec<u8> {
    let mut bytes = len.to_le_bytes().to_vec();
    bytes.extend([flags, 0, command.len() as u8]);
    bytes.extend(command);
    bytes.resize(4 + 3 + 16, 0);
    bytes
}

fn run(input: &mut Input<'_>) {
    let mut port = Port::new(Disk::new(MemoryStorage::new(DISK_LEN), "0123"));
    let mut host = Transfers::default();
    let mut request = 1;
    host.open.insert(0);
    port.submit(0, &control([0, 9, 1, 0, 0, 0, 0, 0]), &[], &mut host);
    let bulk = |endpoint: u8, length: u32| Transfer {
        transfer_type: TransferType::Bulk,
        endpoint,
        flags: 0,
        length,
        interval: 0,
        setup: [0; 8],
    };
    while !input.is_empty() {
        let what = input.below(7);
        let (transfer, body) = match what {
            0 => {
                let transfer = control(input.array());
                let len = transfer.submit_body_len();
                (transfer, vec![input.byte(); len])
            }
            1 => {
                let mut wrapper = b"USBC\x01\0\0\0".to_vec();
                wrapper.extend(input.array::<23>());
                (bulk(2, wrapper.len() as u32), wrapper)
            }
            2 => (
                bulk(0x81, [13, 512, 36, 0, 65_536, 4][input.below(6)]),
                Vec::new(),
            ),
            3 => {
                let len = [512, 31, 0, 1, 1024][input.below(5)];
                (bulk(2, len), vec![input.byte(); len as usize])
            }
            4 => {
                port.cancel(u64::from(input.byte()), &mut host);
                continue;
            }
            5 => {
                port.reset(&mut host);
                assert!(host.open.is_empty(), "a reset ends everything");
                continue;
            }
            _ => {
                let len = input.below(64);
                let body = input.take(len).to_vec();
                (bulk(input.byte() & 0x8f, body.len() as u32), body)
            }
        };
        if host.open.len() >= 16 {
            port.reset(&mut host);
        }
        let body = if transfer.is_in() { Vec::new() } else { body };
        host.open.insert(request);
        port.submit(request, &transfer, &body, &mut host);
        let over = !host.open.contains(&request);
        input.did((what, over, host.status, host.bytes.first().copied()));
        request += 1;
    }
    port.reset(&mut host);
    assert!(host.open.is_empty());
}
