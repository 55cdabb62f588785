// SPDX-License-Identifier: GPL-3.0-or-later
use proptest::prelude::*;
use session::frame::TransferStatus;

use super::*;
use crate::testing::Bus;

fn serial() -> Bus<SerialLoop> {
    Bus::configured(SerialLoop::new("1"), 1)
}

#[test]
fn line_coding() {
    let mut bus = serial();
    let coding = [0x00, 0xc2, 0x01, 0x00, 2, 1, 7];
    assert_eq!(bus.control_out(0x21, 0x20, 0, 0, &coding), Ok(()));
    assert_eq!(bus.control_in(0xa1, 0x21, 0, 0, 7), Ok(coding.to_vec()));
    let set = bus.port.function().line_coding();
    assert_eq!((set.rate, set.stop_bits), (115_200, 2));
    assert_eq!((set.parity, set.data_bits), (1, 7));
    // Unknown parity, too short, another interface
    let stall = Err(TransferStatus::Stall);
    let bad = [0x00, 0xc2, 0x01, 0x00, 2, 5, 7];
    assert_eq!(bus.control_out(0x21, 0x20, 0, 0, &bad), stall);
    assert_eq!(bus.control_out(0x21, 0x20, 0, 0, &coding[..6]), stall);
    assert_eq!(bus.control_out(0x21, 0x20, 0, 1, &coding), stall);
    assert_eq!(bus.control_in(0xa1, 0x21, 0, 0, 7), Ok(coding.to_vec()));
}

#[test]
fn lines_come_back() {
    let mut bus = serial();
    let transfer = bus.stream(NOTIFICATIONS, 16);
    let waiting = bus.submit(transfer, &[]);
    assert_eq!(bus.take(waiting), None);
    assert_eq!(bus.control_out(0x21, 0x22, 3, 0, &[]), Ok(()));
    assert!(bus.port.function().is_ready());
    let (_, body) = bus.take(waiting).unwrap();
    assert_eq!(body, [0xa1, 0x20, 0, 0, 0, 0, 2, 0, 3, 0]);
    // RTS alone changes nothing that comes back.
    let waiting = bus.submit(transfer, &[]);
    assert_eq!(bus.control_out(0x21, 0x22, 1, 0, &[]), Ok(()));
    assert_eq!(bus.take(waiting), None);
    assert_eq!(bus.control_out(0x21, 0x23, 100, 0, &[]), Ok(()));
    assert_eq!(bus.take(waiting).unwrap().1[8], 7);
}

#[test]
fn a_full_loop_waits() {
    let mut bus = serial();
    let transfer = bus.stream(DATA_OUT, 40_000);
    let first = bus.submit(transfer, &[1; 40_000]);
    let second = bus.submit(transfer, &[2; 40_000]);
    assert!(bus.take(first).is_some());
    assert_eq!(bus.take(second), None);
    assert_eq!(bus.read(DATA_IN, 20_000).unwrap(), vec![1; 20_000]);
    assert!(bus.take(second).is_some());
    assert_eq!(bus.read(DATA_IN, 65_536).unwrap().len(), 60_000);
    assert_eq!(bus.port.function().sent(), 80_000);
}

proptest! {
    /// Bytes come back once and in order, whatever the sizes, and whoever waits for whom.
    #[test]
    fn bytes_come_back(
        steps in prop::collection::vec((any::<bool>(), 0_u32..5000), 1..60)
    ) {
        let mut bus = serial();
        let (mut sent, mut received) = (Vec::new(), Vec::new());
        let mut reads = Vec::new();
        let mut counter = 0_u32;
        for (write, len) in steps {
            if write {
                let data: Vec<u8> = (0..len).map(|i| ((counter + i) % 251) as u8).collect();
                counter += len;
                bus.submit(bus.stream(DATA_OUT, len), &data);
                sent.extend(data);
            } else {
                reads.push(bus.submit(bus.stream(DATA_IN, len.max(1)), &[]));
            }
        }
        while received.len() < sent.len() {
            if reads.is_empty() {
                reads.push(bus.submit(bus.stream(DATA_IN, 4096), &[]));
            }
            let (outcome, body) = bus.take(reads.remove(0)).unwrap();
            prop_assert_eq!(outcome.status, TransferStatus::Completed);
            received.extend(body);
        }
        prop_assert!(received == sent);
    }
}
