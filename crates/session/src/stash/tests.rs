// SPDX-License-Identifier: GPL-3.0-or-later

use proptest::prelude::*;

use super::*;

const IN: u8 = 0x81;

fn brought(arrival: u64, data: &[u8], ended: bool) -> Brought<'_> {
    Brought {
        place: Place { arrival, offset: 0 },
        data,
        ended,
        packet_len: Some(8),
    }
}

fn take(stash: &mut Stash, length: usize) -> (Taken, Vec<u8>) {
    let mut out = Vec::new();
    let taken = stash.take(IN, length, &mut out);
    (taken, out)
}

#[test]
fn reports_stay_reports() {
    let mut stash = Stash::default();
    stash.keep(IN, brought(1, &[1, 2, 3], true));
    stash.keep(IN, brought(2, &[], true));
    stash.keep(IN, brought(3, &[4; 8], false));
    assert_eq!(take(&mut stash, 8), (Taken::Whole, vec![1, 2, 3]));
    assert_eq!(take(&mut stash, 8), (Taken::Whole, vec![]));
    assert_eq!(take(&mut stash, 8), (Taken::Whole, vec![4; 8]));
    assert_eq!(take(&mut stash, 8), (Taken::Nothing, vec![]));
}

#[test]
fn what_came_first_is_given_first_whenever_it_is_learnt() {
    let mut stash = Stash::default();
    for arrival in [8, 7, 5, 6] {
        stash.keep(IN, brought(arrival, &[arrival as u8], true));
    }
    let order: Vec<u8> = (0..4).map(|_| take(&mut stash, 8).1[0]).collect();
    assert_eq!(order, [5, 6, 7, 8]);
}

#[test]
fn what_was_given_and_comes_back_goes_before_the_rest() {
    let data: Vec<u8> = (0..24).collect();
    for order in [[0, 1], [1, 0]] {
        let mut stash = Stash::default();
        stash.keep(IN, brought(1, &data, false));
        stash.keep(IN, brought(2, &[99], true));
        let mut given = Vec::new();
        for _ in 0..2 {
            let place = stash.next(IN).unwrap();
            given.push((place, take(&mut stash, 8).1));
        }
        for at in order {
            let (place, data) = &given[at];
            let again = Brought {
                place: *place,
                ..brought(0, data, false)
            };
            stash.keep(IN, again);
        }
        assert_eq!(
            take(&mut stash, 64),
            (Taken::Whole, [&data[..], &[99]].concat())
        );
    }
}

#[test]
fn whole_packets_go_on_at_the_device() {
    let mut stash = Stash::default();
    stash.keep(IN, brought(1, &[1; 16], false));
    assert_eq!(take(&mut stash, 64), (Taken::Beginning, vec![1; 16]));
    assert!(stash.is_empty(IN));
}

#[test]
fn a_packet_that_does_not_fit_is_babble() {
    let mut stash = Stash::default();
    let data: Vec<u8> = (0..24).collect();
    stash.keep(IN, brought(1, &data, false));
    assert_eq!(take(&mut stash, 8), (Taken::Whole, data[..8].to_vec()));
    assert_eq!(take(&mut stash, 4), (Taken::Babble, data[8..12].to_vec()));
    assert_eq!(take(&mut stash, 8), (Taken::Whole, data[16..].to_vec()));
}

#[test]
fn the_oldest_are_kept_and_the_rest_is_counted() {
    let mut stash = Stash::default();
    let last = MAX_TRANSFERS + 10;
    for number in 0..last as u32 {
        let fits = stash.keep(IN, brought(number.into(), &number.to_le_bytes(), true));
        assert_eq!(fits, number < MAX_TRANSFERS as u32);
    }
    for number in 0..MAX_TRANSFERS as u32 {
        assert_eq!(take(&mut stash, 8).1, number.to_le_bytes());
    }
    assert!(stash.is_empty(IN));
    assert_eq!(
        stash.counters(),
        StashCounters {
            kept: MAX_TRANSFERS as u64,
            delivered: MAX_TRANSFERS as u64,
            discarded: 0,
            overflowed: 10
        }
    );
}

#[test]
fn one_endpoint_is_forgotten_and_another_is_not() {
    let mut stash = Stash::default();
    stash.keep(IN, brought(1, &[1], true));
    stash.keep(0x82, brought(2, &[2], true));
    stash.forget(|e| e == IN);
    assert_eq!(take(&mut stash, 8).0, Taken::Nothing);
    assert!(!stash.is_empty(0x82));
    assert_eq!(stash.counters().discarded, 1);
}

proptest! {
    /// A device sends messages, each in packets with a short one at its end; transfers of any
    /// number of whole packets take them. They see the same messages.
    #[test]
    fn messages_arrive_as_they_were_sent(
        messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20),
        came_in in prop::collection::vec(1_usize..4, 1..10),
        taken_with in prop::collection::vec(1_usize..6, 1..10),
    ) {
        const PACKET: usize = 8;
        let mut stash = Stash::default();
        // What a device does with transfers of these lengths (in packets).
        let mut lengths = came_in.iter().cycle().map(|n| n * PACKET);
        for message in &messages {
            let mut left = &message[..];
            loop {
                let length = lengths.next().unwrap();
                let actual = length.min(left.len());
                let ended = Brought::is_ended(actual, length, Some(PACKET as u16));
                let place = stash.arrived();
                let data = &left[..actual];
                stash.keep(IN, Brought { place, ..brought(0, data, ended) });
                left = &left[actual..];
                if ended {
                    break;
                }
            }
        }
        let mut lengths = taken_with.iter().cycle().map(|n| n * PACKET);
        let (mut seen, mut message) = (Vec::new(), Vec::new());
        while !stash.is_empty(IN) {
            let length = lengths.next().unwrap();
            let (taken, data) = take(&mut stash, length);
            prop_assert_eq!(taken, Taken::Whole);
            let short = data.len() < length;
            message.extend(data);
            if short {
                seen.push(std::mem::take(&mut message));
            }
        }
        prop_assert_eq!(seen, messages);
    }
}
