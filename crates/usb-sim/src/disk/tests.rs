// SPDX-License-Identifier: GPL-3.0-or-later
//! The disk behind a port, driven as a host's mass-storage driver would.

use std::collections::BTreeMap;

use proptest::prelude::*;
use session::frame::{FLAG_SHORT_NOT_OK, Transfer, TransferStatus, TransferType};
use session::server::Outcome;

use super::*;
use crate::{Host, MemoryStorage, Port, StorageError};

const SERIAL: &str = "0123456789AB";
const BLOCKS: u32 = 64;

/// Keeps what was completed.
#[derive(Default)]
struct Answers(BTreeMap<u64, (Outcome, Vec<u8>)>);

impl Host for Answers {
    fn complete(
        &mut self,
        request: u64,
        fill: &mut dyn FnMut(&mut Vec<u8>) -> Option<Outcome>,
    ) -> bool {
        let mut body = Vec::new();
        let outcome = fill(&mut body);
        if let Some(outcome) = outcome {
            assert!(self.0.insert(request, (outcome, body)).is_none());
        }
        outcome.is_some()
    }
}

struct Bench<S> {
    port: Port<Disk<S>>,
    answers: Answers,
    next: u64,
}

fn bench() -> Bench<MemoryStorage> {
    let mut bench = Bench::new(MemoryStorage::new(BLOCKS as usize * 512));
    bench.configure();
    bench
}

impl<S: Storage> Bench<S> {
    fn new(storage: S) -> Self {
        Self {
            port: Port::new(Disk::new(storage, SERIAL)),
            answers: Answers::default(),
            next: 0,
        }
    }

    fn submit(&mut self, transfer: &Transfer, body: &[u8]) -> u64 {
        self.next += 1;
        self.port
            .submit(self.next, transfer, body, &mut self.answers);
        self.next
    }

    fn answer(&mut self, request: u64) -> (TransferStatus, Vec<u8>) {
        let (outcome, body) = self.answers.0.remove(&request).expect("it waits");
        if !body.is_empty() {
            assert_eq!(outcome.actual_length as usize, body.len());
        }
        (outcome.status, body)
    }

    fn transfer(&mut self, transfer: &Transfer, body: &[u8]) -> (TransferStatus, Vec<u8>) {
        let request = self.submit(transfer, body);
        self.answer(request)
    }

    fn control(&mut self, setup: [u8; 8]) -> (TransferStatus, Vec<u8>) {
        let transfer = Transfer {
            transfer_type: TransferType::Control,
            endpoint: setup[0] & 0x80,
            flags: 0,
            length: u16::from_le_bytes([setup[6], setup[7]]).into(),
            interval: 0,
            setup,
        };
        self.transfer(&transfer, &[])
    }

    fn configure(&mut self) {
        let done = self.control([0, 9, 1, 0, 0, 0, 0, 0]);
        assert_eq!(done, (TransferStatus::Completed, vec![]));
    }

    fn descriptor(&mut self, kind: u8, index: u8, length: u8) -> (TransferStatus, Vec<u8>) {
        self.control([0x80, 6, index, kind, 0, 0, length, 0])
    }

    fn clear_halt(&mut self, endpoint: u8) {
        let done = self.control([2, 1, 0, 0, endpoint, 0, 0, 0]);
        assert_eq!(done.0, TransferStatus::Completed);
    }

    fn is_halted(&mut self, endpoint: u8) -> bool {
        self.control([0x82, 0, 0, 0, endpoint, 0, 2, 0]).1 == [1, 0]
    }

    /// Sends a command and reads its status, with reset recovery where the class says so.
    fn send(&mut self, cdb: &[u8], is_in: bool, length: u32) -> (TransferStatus, Vec<u8>) {
        self.transfer(&bulk_out(31), &cbw(cdb, is_in, length))
    }

    /// dCSWDataResidue and bCSWStatus.
    fn status(&mut self) -> (u32, u8) {
        let (mut status, mut csw) = self.transfer(&bulk_in(13), &[]);
        if status == TransferStatus::Stall {
            self.clear_halt(BULK_IN);
            (status, csw) = self.transfer(&bulk_in(13), &[]);
        }
        assert_eq!(status, TransferStatus::Completed);
        assert_eq!(&csw[..8], b"USBS\x07\0\0\0");
        (
            u32::from_le_bytes([csw[8], csw[9], csw[10], csw[11]]),
            csw[12],
        )
    }

    /// A command that reads, as a driver does it: data, residue, status.
    fn read(&mut self, cdb: &[u8], length: u32) -> (Vec<u8>, u32, u8) {
        assert_eq!(self.send(cdb, true, length).0, TransferStatus::Completed);
        let mut data = Vec::new();
        if length > 0 {
            let (status, body) = self.transfer(&bulk_in(length), &[]);
            data = body;
            if status == TransferStatus::Stall {
                self.clear_halt(BULK_IN);
            }
        }
        let (residue, status) = self.status();
        (data, residue, status)
    }

    fn write(&mut self, cdb: &[u8], data: &[u8]) -> (u32, u8) {
        let length = data.len() as u32;
        assert_eq!(self.send(cdb, false, length).0, TransferStatus::Completed);
        if length > 0 {
            let (status, _) = self.transfer(&bulk_out(length), data);
            if status == TransferStatus::Stall {
                self.clear_halt(BULK_OUT);
            }
        }
        self.status()
    }

    /// Key, code and qualifier.
    fn sense(&mut self) -> (u8, u8, u8) {
        let (sense, _, status) = self.read(&[0x03, 0, 0, 0, 18, 0], 18);
        assert_eq!((status, sense.len(), sense[0]), (0, 18, 0x70));
        (sense[2], sense[12], sense[13])
    }
}

fn bulk_in(length: u32) -> Transfer {
    Transfer {
        transfer_type: TransferType::Bulk,
        endpoint: BULK_IN,
        flags: 0,
        length,
        interval: 0,
        setup: [0; 8],
    }
}

fn bulk_out(length: u32) -> Transfer {
    Transfer {
        endpoint: BULK_OUT,
        ..bulk_in(length)
    }
}

fn cbw(cdb: &[u8], is_in: bool, length: u32) -> Vec<u8> {
    let mut cbw = b"USBC\x07\0\0\0".to_vec();
    cbw.extend_from_slice(&length.to_le_bytes());
    cbw.extend_from_slice(&[if is_in { 0x80 } else { 0 }, 0, cdb.len() as u8]);
    cbw.extend_from_slice(cdb);
    cbw.resize(31, 0);
    cbw
}

fn rw10(op: u8, lba: u32, blocks: u16) -> [u8; 10] {
    let [a, b, c, d] = lba.to_be_bytes();
    let [e, f] = blocks.to_be_bytes();
    [op, 0, a, b, c, d, 0, e, f, 0]
}

fn rw16(op: u8, lba: u64, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = op;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 512) as u8).collect()
}

#[test]
fn it_enumerates_as_a_high_speed_disk() {
    let mut bench = Bench::new(MemoryStorage::new(512));
    let (_, device) = bench.descriptor(1, 0, 64);
    assert_eq!(
        (device.len(), &device[..8]),
        (18, &[18, 1, 0, 2, 0, 0, 0, 64][..])
    );
    // A host asks for the head first, then for all of it.
    let (_, head) = bench.descriptor(2, 0, 9);
    let (_, all) = bench.descriptor(2, 0, 255);
    assert_eq!((head.len(), all.len()), (9, usize::from(head[2])));
    assert_eq!(bench.descriptor(2, 1, 9).0, TransferStatus::Stall);
    assert_eq!(bench.descriptor(6, 0, 10).1.len(), 10, "device qualifier");
    assert_eq!(bench.descriptor(3, 0, 255).1, [4, 3, 9, 4]);
    let (_, serial) = bench.descriptor(3, device[16], 255);
    let units = serial[2..]
        .chunks(2)
        .map(|u| u16::from_le_bytes([u[0], u[1]]));
    assert_eq!(
        String::from_utf16(&units.collect::<Vec<_>>()).unwrap(),
        SERIAL
    );
    assert_eq!(bench.descriptor(3, 9, 255).0, TransferStatus::Stall);

    assert_eq!(
        bench.control([0, 5, 3, 0, 0, 0, 0, 0]).0,
        TransferStatus::Completed
    );
    assert_eq!(bench.control([0x80, 8, 0, 0, 0, 0, 1, 0]).1, [0]);
    // Bulk endpoints exist only when it is configured.
    assert_eq!(bench.transfer(&bulk_in(13), &[]).0, TransferStatus::Invalid);
    assert_eq!(
        bench.control([0, 9, 2, 0, 0, 0, 0, 0]).0,
        TransferStatus::Stall
    );
    bench.configure();
    assert_eq!(bench.control([0x80, 8, 0, 0, 0, 0, 1, 0]).1, [1]);
    assert_eq!(
        bench.control([0xa1, 0xfe, 0, 0, 0, 0, 1, 0]).1,
        [0],
        "max LUN"
    );
    let interrupt = Transfer {
        transfer_type: TransferType::Interrupt,
        ..bulk_in(8)
    };
    assert_eq!(bench.transfer(&interrupt, &[]).0, TransferStatus::Invalid);

    let info = bench.port.info(session::DeviceId("0-1".to_owned()));
    assert_eq!((info.vendor, info.product), (0x1209, 1));
    assert_eq!(info.serial.as_deref(), Some(SERIAL));
    assert_eq!(
        (info.classes, info.name.as_str()),
        (vec![8], "xen-vusb Simulated disk")
    );
}

#[test]
fn a_descriptor_shorter_than_asked_for_is_an_error_only_if_the_guest_says_so() {
    let mut bench = bench();
    let strict = Transfer {
        transfer_type: TransferType::Control,
        endpoint: 0x80,
        flags: FLAG_SHORT_NOT_OK,
        length: 64,
        interval: 0,
        setup: [0x80, 6, 0, 1, 0, 0, 64, 0],
    };
    assert_eq!(bench.transfer(&strict, &[]).0, TransferStatus::ShortPacket);
    let lax = Transfer { flags: 0, ..strict };
    assert_eq!(bench.transfer(&lax, &[]).0, TransferStatus::Completed);
}

#[test]
fn what_a_host_asks_at_first() {
    let mut bench = bench();
    let (inquiry, _, _) = bench.read(&[0x12, 0, 0, 0, 36, 0], 36);
    assert_eq!((inquiry[0], &inquiry[8..16]), (0, &b"xen-vusb"[..]));
    assert_eq!(inquiry.len(), 36);
    for (page, expected) in [(0x00, &[0, 0x80, 0x83][..]), (0x80, SERIAL.as_bytes())] {
        let (vpd, residue, status) = bench.read(&[0x12, 1, page, 0, 255, 0], 255);
        assert_eq!((&vpd[4..], status), (expected, 0));
        assert_eq!(residue as usize, 255 - vpd.len());
    }
    let (id, _, _) = bench.read(&[0x12, 1, 0x83, 0, 255, 0], 255);
    assert!(id.ends_with(SERIAL.as_bytes()));
    assert_eq!(bench.read(&[0x00, 0, 0, 0, 0, 0], 0), (vec![], 0, 0));
    let (capacity, _, _) = bench.read(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8);
    assert_eq!(capacity, [0, 0, 0, 63, 0, 0, 2, 0]);
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[13]) = (0x9e, 0x10, 32);
    let (capacity, _, _) = bench.read(&cdb, 32);
    assert_eq!(
        (capacity.len(), &capacity[..12]),
        (32, &[0, 0, 0, 0, 0, 0, 0, 63, 0, 0, 2, 0][..])
    );
    // Linux: mode page 3Fh, then the caching page.
    let (mode, _, _) = bench.read(&[0x1a, 0, 0x3f, 0, 192, 0], 192);
    assert_eq!((usize::from(mode[0]) + 1, mode[2]), (mode.len(), 0));
    assert_eq!((mode[4], mode[6] & 4), (8, 4), "write cache");
    let (mode, _, _) = bench.read(&[0x5a, 0, 8, 0, 0, 0, 0, 0, 255, 0], 255);
    assert_eq!(usize::from(mode[1]) + 2, mode.len());
    for cdb in [[0x1e, 0, 0, 0, 1, 0], [0x1b, 0, 0, 0, 1, 0]] {
        assert_eq!(bench.read(&cdb, 0).2, 0);
    }
    assert_eq!(bench.read(&rw10(0x35, 0, 0), 0).2, 0);
}

#[test]
fn what_is_written_is_read() {
    let mut bench = bench();
    let data = pattern(16 * 512);
    assert_eq!(bench.write(&rw10(0x2a, 3, 16), &data), (0, 0));
    assert_eq!(
        bench.read(&rw10(0x28, 3, 16), 16 * 512),
        (data.clone(), 0, 0)
    );
    assert_eq!(bench.write(&rw16(0x8a, 40, 16), &data), (0, 0));
    assert_eq!(
        bench.read(&rw16(0x88, 40, 16), 16 * 512),
        (data.clone(), 0, 0)
    );
    let bytes = bench.port.function().storage().bytes();
    assert!(bytes[3 * 512..19 * 512] == data && bytes[40 * 512..56 * 512] == data);
    assert!(bytes[..3 * 512].iter().all(|b| *b == 0));
}

#[test]
fn a_data_phase_may_be_cut_into_transfers() {
    let mut bench = bench();
    let data = pattern(8 * 512);
    bench.send(&rw10(0x2a, 0, 8), false, 8 * 512);
    for part in data.chunks(3 * 512) {
        let (status, _) = bench.transfer(&bulk_out(part.len() as u32), part);
        assert_eq!(status, TransferStatus::Completed);
    }
    assert_eq!(bench.status(), (0, 0));
    bench.send(&rw10(0x28, 0, 8), true, 8 * 512);
    let mut read = Vec::new();
    for length in [512, 2048, 1536] {
        read.extend(bench.transfer(&bulk_in(length), &[]).1);
    }
    assert_eq!(bench.status(), (0, 0));
    assert!(read == data);
}

#[test]
fn transfers_wait_until_the_disk_has_something() {
    let mut bench = bench();
    // Data and status are asked for before the command is there, as a driver with a queue does.
    let data = bench.submit(&bulk_in(512), &[]);
    let status = bench.submit(&bulk_in(13), &[]);
    assert!(bench.answers.0.is_empty());
    assert_eq!(
        bench.send(&rw10(0x28, 0, 1), true, 512).0,
        TransferStatus::Completed
    );
    assert_eq!(bench.answer(data).1.len(), 512);
    assert_eq!(bench.answer(status).1[12], 0);

    // A cancelled one takes nothing.
    let cancelled = bench.submit(&bulk_in(512), &[]);
    let next = bench.submit(&bulk_in(512), &[]);
    bench.port.cancel(cancelled, &mut bench.answers);
    assert_eq!(bench.answer(cancelled).0, TransferStatus::Cancelled);
    bench.send(&rw10(0x28, 0, 1), true, 512);
    assert_eq!(bench.answer(next).1.len(), 512);
    assert_eq!(bench.status(), (0, 0));
}

#[test]
fn bad_addresses_and_commands_fail_with_the_right_sense() {
    let mut bench = bench();
    for (cdb, sense) in [
        (rw10(0x28, BLOCKS, 1).to_vec(), (5, 0x21, 0)),
        (rw10(0x28, BLOCKS - 1, 2).to_vec(), (5, 0x21, 0)),
        (rw10(0x28, u32::MAX, u16::MAX).to_vec(), (5, 0x21, 0)),
        (rw16(0x88, u64::MAX, u32::MAX).to_vec(), (5, 0x21, 0)),
        (rw16(0x88, u64::MAX - 1, 1).to_vec(), (5, 0x21, 0)),
        (vec![0xc0, 0, 0, 0, 0, 0], (5, 0x20, 0)),
        (vec![0x12, 1, 0x99, 0, 255, 0], (5, 0x24, 0)),
        (vec![0x1a, 0, 0x2a, 0, 255, 0], (5, 0x24, 0)),
    ] {
        let (data, residue, status) = bench.read(&cdb, 512);
        assert_eq!((data.len(), residue, status), (0, 512, 1), "{cdb:x?}");
        assert_eq!(bench.sense(), sense, "{cdb:x?}");
        assert_eq!(bench.sense(), (0, 0, 0), "told once");
    }
    let before = bench.port.function().storage().bytes().to_vec();
    let (residue, status) = bench.write(&rw10(0x2a, BLOCKS, 1), &pattern(512));
    assert_eq!((residue, status), (512, 1));
    assert_eq!(bench.sense(), (5, 0x21, 0));
    assert!(bench.port.function().storage().bytes() == before);
}

#[test]
fn an_ejected_medium_is_not_there() {
    let mut bench = bench();
    assert_eq!(bench.read(&[0x1b, 0, 0, 0, 2, 0], 0).2, 0);
    assert_eq!(bench.read(&[0; 6], 0).2, 1);
    assert_eq!(bench.sense(), (2, 0x3a, 0));
    assert_eq!(bench.read(&rw10(0x28, 0, 1), 512).2, 1);
    assert_eq!(bench.read(&[0x1b, 0, 0, 0, 3, 0], 0).2, 0);
    assert_eq!(bench.read(&[0; 6], 0).2, 0);
}

#[test]
fn hosts_that_expect_something_else_are_told() {
    let mut bench = bench();
    // More than there is: a short packet, and the residue (BOT §6.7.2, Hi > Di).
    let (data, residue, status) = bench.read(&[0x12, 0, 0, 0, 36, 0], 64);
    assert_eq!((data.len(), residue, status), (36, 28, 0));
    // ... even where it ends with a full packet.
    bench.send(&rw10(0x28, 0, 1), true, 1024);
    assert_eq!(bench.transfer(&bulk_in(512), &[]).1.len(), 512);
    assert_eq!(
        bench.transfer(&bulk_in(512), &[]),
        (TransferStatus::Completed, vec![])
    );
    assert_eq!(bench.status(), (512, 0));
    // Less than there is: a phase error (Hi < Di, Hn < Di).
    let (data, _, status) = bench.read(&rw10(0x28, 0, 2), 512);
    assert_eq!((data.len(), status), (512, 2));
    assert_eq!(bench.read(&rw10(0x28, 0, 1), 0).2, 2);
    // The other direction (Hi <> Do, Ho <> Di): nothing moves.
    let (data, residue, status) = bench.read(&rw10(0x2a, 0, 1), 512);
    assert_eq!((data.len(), residue, status), (0, 512, 2));
    assert_eq!(bench.write(&rw10(0x28, 0, 1), &pattern(512)), (512, 2));
    // More than the disk wants (Ho > Do): taken, and not used.
    assert_eq!(bench.write(&rw10(0x2a, 0, 1), &pattern(1024)), (512, 0));
    assert!(
        bench.port.function().storage().bytes()[512..1024]
            .iter()
            .all(|b| *b == 0)
    );
}

#[test]
fn after_an_invalid_command_only_reset_recovery_helps() {
    let mut bench = bench();
    for bad in [
        vec![0; 31],
        cbw(&[0; 6], true, 0)[..30].to_vec(),
        vec![0x55; 512],
        vec![],
    ] {
        let (status, _) = bench.transfer(&bulk_out(bad.len() as u32), &bad);
        assert_eq!(status, TransferStatus::Stall);
        // Both endpoints, and clearing alone does not help (BOT §5.3.4).
        for endpoint in [BULK_IN, BULK_OUT] {
            bench.clear_halt(endpoint);
            assert!(bench.is_halted(endpoint));
        }
        assert_eq!(bench.transfer(&bulk_in(13), &[]).0, TransferStatus::Stall);
        assert_eq!(
            bench.control([0x21, 0xff, 0, 0, 0, 0, 0, 0]).0,
            TransferStatus::Completed
        );
        for endpoint in [BULK_IN, BULK_OUT] {
            assert!(bench.is_halted(endpoint));
            bench.clear_halt(endpoint);
            assert!(!bench.is_halted(endpoint));
        }
        assert_eq!(bench.read(&[0; 6], 0).2, 0);
    }
}

#[test]
fn a_reset_starts_anew() {
    let mut bench = bench();
    bench.send(&rw10(0x28, 0, 1), true, 512);
    bench.transfer(&bulk_in(512), &[]);
    bench.transfer(&bulk_in(13), &[]);
    let waiting = bench.submit(&bulk_in(512), &[]);
    bench.port.reset(&mut bench.answers);
    assert_eq!(bench.answer(waiting).0, TransferStatus::Cancelled);
    assert_eq!(bench.transfer(&bulk_in(13), &[]).0, TransferStatus::Invalid);
    bench.configure();
    assert_eq!(bench.read(&[0; 6], 0).2, 0);
}

/// A medium with a bad second block, or one that must not be written.
#[derive(Debug)]
struct Faulty {
    read_only: bool,
}

impl Storage for Faulty {
    fn len_bytes(&self) -> u64 {
        4 * 512
    }
    fn is_read_only(&self) -> bool {
        self.read_only
    }
    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        match offset + into.len() as u64 > 512 {
            true => Err(StorageError("bad block".to_owned())),
            false => Ok(()),
        }
    }
    fn write(&mut self, _offset: u64, _data: &[u8]) -> Result<(), StorageError> {
        Err(StorageError("bad block".to_owned()))
    }
    fn flush(&mut self) -> Result<(), StorageError> {
        Err(StorageError("bad block".to_owned()))
    }
}

#[test]
fn a_failing_medium_is_an_error_of_the_medium() {
    let mut bench = Bench::new(Faulty { read_only: false });
    bench.configure();
    assert_eq!(bench.read(&rw10(0x28, 0, 1), 512).2, 0);
    assert_eq!(bench.read(&rw10(0x28, 1, 1), 512), (vec![], 512, 1));
    assert_eq!(bench.sense(), (3, 0x11, 0));
    assert_eq!(bench.write(&rw10(0x2a, 0, 1), &pattern(512)).1, 1);
    assert_eq!(bench.sense(), (3, 0x0c, 0));
    assert_eq!(bench.read(&rw10(0x35, 0, 0), 0).2, 1);
    assert_eq!(bench.sense(), (3, 0x0c, 0));
}

#[test]
fn a_read_only_medium_says_so() {
    let mut bench = Bench::new(Faulty { read_only: true });
    bench.configure();
    assert_eq!(bench.read(&[0x1a, 0, 0x3f, 0, 192, 0], 192).0[2], 0x80);
    assert_eq!(bench.write(&rw10(0x2a, 0, 1), &pattern(512)), (512, 1));
    assert_eq!(bench.sense(), (7, 0x27, 0));
}

fn any_transfer() -> impl Strategy<Value = (Transfer, Vec<u8>)> {
    let kind = prop_oneof![
        Just(TransferType::Control),
        Just(TransferType::Bulk),
        Just(TransferType::Bulk),
        Just(TransferType::Interrupt),
        Just(TransferType::Isochronous),
    ];
    let endpoint = prop_oneof![
        Just(0_u8),
        Just(0x80),
        Just(BULK_IN),
        Just(BULK_OUT),
        Just(0x83)
    ];
    let cbw = (any::<[u8; 16]>(), any::<bool>(), 0..3000_u32, 1..17_usize)
        .prop_map(|(cdb, is_in, length, len)| cbw(&cdb[..len], is_in, length));
    let op = prop::sample::select(vec![
        0x28_u8, 0x2a, 0x12, 0x1a, 0x25, 0x03, 0x88, 0x8a, 0x5a,
    ]);
    let known = (op, 0..70_u32, 0..8_u16, any::<bool>(), 0..3000_u32)
        .prop_map(|(op, lba, blocks, is_in, length)| cbw_of(op, lba, blocks, is_in, length));
    let body = prop_oneof![prop::collection::vec(any::<u8>(), 0..1100), cbw, known];
    (
        kind,
        endpoint,
        any::<u8>(),
        0..1200_u32,
        any::<[u8; 8]>(),
        body,
    )
        .prop_map(
            |(transfer_type, endpoint, flags, length, setup, mut body)| {
                let mut transfer = Transfer {
                    transfer_type,
                    endpoint,
                    flags,
                    length,
                    interval: 0,
                    setup,
                };
                if transfer_type == TransferType::Isochronous {
                    transfer.setup[..2].copy_from_slice(&[setup[0] % 5, 0]);
                } else if !transfer.is_in() {
                    transfer.length = body.len() as u32;
                }
                // As the frame's decoder guarantees.
                body.resize(transfer.submit_body_len(), 0);
                (transfer, body)
            },
        )
}

fn cbw_of(op: u8, lba: u32, blocks: u16, is_in: bool, length: u32) -> Vec<u8> {
    cbw(&rw10(op, lba, blocks), is_in, length)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a guest sends: no panic, no transfer answered twice, no more data than asked for,
    /// and after a reset the disk works.
    #[test]
    fn nothing_breaks_it(transfers in prop::collection::vec(any_transfer(), 0..60)) {
        let mut bench = bench();
        for (transfer, body) in &transfers {
            let request = bench.submit(transfer, body);
            if let Some((outcome, data)) = bench.answers.0.get(&request) {
                prop_assert!(outcome.actual_length <= transfer.length);
                let table = transfer.iso_packets() * session::frame::ISO_PACKET_LEN;
                prop_assert!(data.len() <= table + transfer.length as usize);
            }
        }
        bench.port.reset(&mut bench.answers);
        prop_assert_eq!(bench.answers.0.len(), transfers.len(), "not all were answered");
        bench.configure();
        prop_assert_eq!(bench.read(&[0; 6], 0).2, 0);
    }
}
