// SPDX-License-Identifier: GPL-3.0-or-later
use proptest::prelude::*;
use session::frame::TransferStatus;

use super::*;
use crate::testing::{Bus, ms};

const A: u8 = 0x04;
const LEFT_SHIFT: u8 = 0xe1;

fn keyboard() -> Bus<Keyboard> {
    Bus::configured(Keyboard::new("1"), 1)
}

#[test]
fn a_transfer_waits_for_a_key() {
    let mut bus = keyboard();
    let transfer = bus.stream(REPORTS_IN, 8);
    let first = bus.submit(transfer, &[]);
    let second = bus.submit(transfer, &[]);
    assert_eq!(bus.take(first), None);
    bus.update(|k| k.press(A)).unwrap();
    let (outcome, report) = bus.take(first).unwrap();
    assert_eq!(outcome.status, TransferStatus::Completed);
    assert_eq!(report, [0, 0, A, 0, 0, 0, 0, 0]);
    assert_eq!(bus.take(second), None);
    bus.cancel(second);
    assert_eq!(
        bus.take(second).unwrap().0.status,
        TransferStatus::Cancelled
    );
}

#[test]
fn modifiers_and_roll_over() {
    let mut bus = keyboard();
    bus.update(|k| {
        k.press(LEFT_SHIFT).unwrap();
        for key in A..A + 7 {
            k.press(key).unwrap();
        }
        k.release(A).unwrap();
    });
    let mut reports: Vec<_> = (0..9).map(|_| bus.read(REPORTS_IN, 8).unwrap()).collect();
    assert_eq!(reports.remove(0), [2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(reports[5], [2, 0, 4, 5, 6, 7, 8, 9]);
    assert_eq!(reports[6], [2, 0, 1, 1, 1, 1, 1, 1]);
    assert_eq!(reports[7], [2, 0, 5, 6, 7, 8, 9, 10]);
}

#[test]
fn a_key_that_is_down_is_not_pressed_again() {
    let mut bus = keyboard();
    bus.update(|k| {
        k.press(A).unwrap();
        k.press(A).unwrap();
        k.release(0x05).unwrap();
    });
    assert_eq!(bus.port.function().waiting(), 1);
}

#[test]
fn class_requests() {
    let mut bus = keyboard();
    assert_eq!(bus.control_out(0x21, 0x09, 0x0200, 0, &[0x02]), Ok(()));
    assert_eq!(bus.port.function().leds(), 2);
    assert_eq!(bus.control_in(0xa1, 1, 0x0200, 0, 1), Ok(vec![2]));
    bus.update(|k| k.press(A)).unwrap();
    let report = bus.control_in(0xa1, 1, 0x0100, 0, 8).unwrap();
    assert_eq!(report, [0, 0, A, 0, 0, 0, 0, 0]);
    assert_eq!(bus.control_in(0xa1, 3, 0, 0, 1), Ok(vec![1]));
    assert_eq!(bus.control_out(0x21, 0x0b, 0, 0, &[]), Ok(()));
    assert_eq!(bus.control_in(0xa1, 3, 0, 0, 1), Ok(vec![0]));
    // No feature reports, no second interface, no longer LED report.
    let stall = TransferStatus::Stall;
    assert_eq!(bus.control_in(0xa1, 1, 0x0300, 0, 8), Err(stall));
    assert_eq!(bus.control_in(0xa1, 2, 0, 1, 1), Err(stall));
    assert_eq!(bus.control_out(0x21, 0x09, 0x0200, 0, &[1, 2]), Err(stall));
}

#[test]
fn report_descriptor() {
    let mut bus = keyboard();
    let hid = bus.control_in(0x81, 6, 0x2100, 0, 255).unwrap();
    let report = bus.control_in(0x81, 6, 0x2200, 0, 255).unwrap();
    assert_eq!(usize::from(hid[7]), report.len());
    assert_eq!(report.len(), 63);
    assert_eq!(bus.control_in(0x81, 6, 0x2200, 0, 5).unwrap(), report[..5]);
    assert_eq!(
        bus.control_in(0x81, 6, 0x2201, 0, 255),
        Err(TransferStatus::Stall)
    );
}

#[test]
fn idle_rate() {
    let mut bus = keyboard();
    bus.advance(ms(1000));
    assert_eq!(bus.control_out(0x21, 0x0a, 25 << 8, 0, &[]), Ok(()));
    assert_eq!(bus.control_in(0xa1, 2, 0, 0, 1), Ok(vec![25]));
    bus.update(|k| k.press(A)).unwrap();
    let report = bus.read(REPORTS_IN, 8).unwrap();
    let transfer = bus.stream(REPORTS_IN, 8);
    let repeat = bus.submit(transfer, &[]);
    assert_eq!(bus.port.next_event(), Some(ms(1100)));
    bus.advance(ms(1099));
    assert_eq!(bus.take(repeat), None);
    bus.advance(ms(1100));
    assert_eq!(bus.take(repeat).unwrap().1, report);
    // Rate 0 is for ever.
    assert_eq!(bus.control_out(0x21, 0x0a, 0, 0, &[]), Ok(()));
    let repeat = bus.submit(transfer, &[]);
    assert_eq!(bus.port.next_event(), None);
    bus.advance(ms(9999));
    assert_eq!(bus.take(repeat), None);
}

#[test]
fn a_host_that_does_not_fetch() {
    let mut bus = keyboard();
    let taken = (0..MAX_REPORTS).filter(|_| bus.update(|k| k.stroke(A)).is_ok());
    assert_eq!(taken.count(), MAX_REPORTS / 2);
    assert_eq!(bus.update(|k| k.press(A)), Err(KeysFull));
    bus.reset();
    assert_eq!(bus.port.function().waiting(), 0);
}

#[test]
fn a_short_buffer_babbles() {
    let mut bus = keyboard();
    bus.update(|k| k.press(A)).unwrap();
    assert_eq!(bus.read(REPORTS_IN, 7), Err(TransferStatus::Overflow));
}

proptest! {
    /// What the host learns from the reports is the state of the keys after each change.
    #[test]
    fn every_change_arrives_in_order(
        changes in prop::collection::vec((0x04_u8..0x0a, any::<bool>(), any::<bool>()), 0..200)
    ) {
        let mut bus = keyboard();
        let mut down = std::collections::BTreeSet::new();
        let mut expected = Vec::new();
        let mut seen = Vec::new();
        for (key, press, fetch) in changes {
            let changed = match press {
                true => down.insert(key),
                false => down.remove(&key),
            };
            bus.update(|k| if press { k.press(key) } else { k.release(key) }).unwrap();
            if changed {
                expected.push(down.clone());
            }
            if fetch && bus.port.function().waiting() > 0 {
                seen.push(bus.read(REPORTS_IN, 8).unwrap());
            }
        }
        while bus.port.function().waiting() > 0 {
            seen.push(bus.read(REPORTS_IN, 8).unwrap());
        }
        let seen: Vec<std::collections::BTreeSet<u8>> = seen
            .iter()
            .map(|r| r[2..].iter().copied().filter(|k| *k != 0).collect())
            .collect();
        prop_assert_eq!(seen, expected);
    }
}
