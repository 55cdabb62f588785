// SPDX-License-Identifier: GPL-3.0-or-later
use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use session::Speed;
use usb_sim::{Audio, Device, Keyboard, Pattern, SourceSink};

use super::*;
use crate::urb::{HEADER_LEN, ISO_PACKET_LEN, MAX_LENGTH};

const IN: u8 = 0x80;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Submit {
        status: i32,
        actual_length: u32,
        start_frame: u32,
        raw_packets: u32,
        error_count: u32,
        data: Vec<u8>,
        packets: Vec<IsoPacket>,
    },
    Unlink(i32),
}

impl Answer {
    fn status(&self) -> i32 {
        match self {
            Self::Submit { status, .. } | Self::Unlink(status) => *status,
        }
    }
}

/// A client: it encodes commands and decodes replies.
struct Client {
    port: Port<Device>,
    attachment: Attachment,
    sequence: u32,
    /// OUT transfers: their replies have no data.
    out: HashSet<u32>,
}

impl Client {
    fn new(device: Device) -> Self {
        let mut port = Port::new(device);
        let attachment = Attachment::new(&mut port, Duration::ZERO);
        let mut client = Self {
            port,
            attachment,
            sequence: 0,
            out: HashSet::new(),
        };
        let value = client.port.function().descriptors().configurations[0][5];
        let answer = client.control([0, 9, value, 0, 0, 0, 0, 0]);
        assert_eq!(answer.status(), 0);
        client
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), ProtocolError> {
        self.attachment.handle_input(&mut self.port, bytes)
    }

    fn command(&mut self, command: TestCommand) -> u32 {
        self.sequence += 1;
        if command.endpoint & IN == 0 {
            self.out.insert(self.sequence);
        }
        let message = command.encode(self.sequence);
        self.send(&message).unwrap();
        self.sequence
    }

    fn read(&mut self, endpoint: u8, length: u32) -> u32 {
        self.command(TestCommand {
            endpoint: endpoint | IN,
            length,
            ..TestCommand::default()
        })
    }

    /// A control request that is over at once.
    fn control(&mut self, setup: [u8; 8]) -> Answer {
        let sequence = self.command(TestCommand {
            endpoint: setup[0] & IN,
            length: u16::from_le_bytes([setup[6], setup[7]]).into(),
            raw_packets: 0xffff_ffff,
            setup,
            ..TestCommand::default()
        });
        let (answered, answer) = self.answers().pop().unwrap();
        assert_eq!(answered, sequence);
        answer
    }

    fn unlink(&mut self, victim: u32) -> u32 {
        self.sequence += 1;
        self.send(&encode_unlink(self.sequence, victim)).unwrap();
        self.sequence
    }

    fn advance(&mut self, ms: u64) {
        let now = Duration::from_millis(ms);
        self.attachment.advance(&mut self.port, now).unwrap();
    }

    /// All answers since the last time.
    fn answers(&mut self) -> Vec<(u32, Answer)> {
        let bytes = self.attachment.output().to_vec();
        self.attachment.sent(bytes.len());
        decode_answers(&bytes, &self.out)
    }

    /// The only answer since the last time.
    fn answer(&mut self, sequence: u32) -> Answer {
        let answers = self.answers();
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].0, sequence);
        answers[0].1.clone()
    }
}

#[derive(Clone, Debug, Default)]
struct TestCommand {
    /// With bit 7 for IN.
    endpoint: u8,
    flags: u32,
    length: u32,
    raw_packets: u32,
    setup: [u8; 8],
    data: Vec<u8>,
    /// Offset and length.
    packets: Vec<[u32; 2]>,
}

impl TestCommand {
    fn isochronous(endpoint: u8, data: &[u8], packets: &[[u32; 2]]) -> Self {
        Self {
            endpoint,
            flags: 2,
            length: data.len() as u32,
            raw_packets: packets.len() as u32,
            data: if endpoint & IN == 0 {
                data.to_vec()
            } else {
                Vec::new()
            },
            packets: packets.to_vec(),
            ..Self::default()
        }
    }

    fn encode(&self, sequence: u32) -> Vec<u8> {
        let mut message = Vec::new();
        for field in [
            1,
            sequence,
            0x0001_0002,
            u32::from(self.endpoint & IN != 0),
            u32::from(self.endpoint & 0x7f),
            self.flags,
            self.length,
            0,
            self.raw_packets,
            1,
        ] {
            message.extend_from_slice(&field.to_be_bytes());
        }
        message.extend_from_slice(&self.setup);
        message.extend_from_slice(&self.data);
        for [offset, length] in &self.packets {
            for field in [*offset, *length, 0, 0xffff_ffee] {
                message.extend_from_slice(&field.to_be_bytes());
            }
        }
        message
    }
}

fn encode_unlink(sequence: u32, victim: u32) -> Vec<u8> {
    let mut message = Vec::new();
    for field in [2, sequence, 0x0001_0002, 0, 0, victim] {
        message.extend_from_slice(&field.to_be_bytes());
    }
    message.resize(HEADER_LEN, 0);
    message
}

fn decode_answers(mut rest: &[u8], out: &HashSet<u32>) -> Vec<(u32, Answer)> {
    let mut answers = Vec::new();
    while !rest.is_empty() {
        let word = |at: usize| u32::from_be_bytes(rest[at..at + 4].try_into().unwrap());
        let sequence = word(4);
        if word(0) == 4 {
            answers.push((sequence, Answer::Unlink(word(0x14) as i32)));
            rest = &rest[HEADER_LEN..];
            continue;
        }
        assert_eq!(word(0), 3);
        let raw_packets = word(0x20);
        let count = match raw_packets {
            0xffff_ffff => 0,
            count => count as usize,
        };
        let data_len = match out.contains(&sequence) {
            true => 0,
            false => word(0x18) as usize,
        };
        let table = HEADER_LEN + data_len;
        let packets = (0..count).map(|i| {
            let at = table + i * ISO_PACKET_LEN;
            IsoPacket {
                offset: word(at),
                length: word(at + 4),
                actual_length: word(at + 8),
                status: word(at + 12) as i32,
            }
        });
        let answer = Answer::Submit {
            status: word(0x14) as i32,
            actual_length: word(0x18),
            start_frame: word(0x1c),
            raw_packets,
            error_count: word(0x24),
            data: rest[HEADER_LEN..table].to_vec(),
            packets: packets.collect(),
        };
        answers.push((sequence, answer));
        rest = &rest[table + count * ISO_PACKET_LEN..];
    }
    answers
}

fn keyboard() -> Client {
    Client::new(Device::Keyboard(Keyboard::new("1")))
}

fn press(client: &mut Client, usage: u8) {
    let Client {
        port, attachment, ..
    } = client;
    attachment.update(port, |device| match device {
        Device::Keyboard(keyboard) => keyboard.press(usage).unwrap(),
        other => panic!("{other:?}"),
    });
}

fn source_sink(setting: u8) -> Client {
    let device = SourceSink::new(Pattern::Mod63, Speed::High, "1");
    let mut client = Client::new(Device::SourceSink(device));
    let answer = client.control([1, 11, setting, 0, 0, 0, 0, 0]);
    assert_eq!(answer.status(), 0);
    client
}

#[test]
fn a_key_arrives() {
    let mut client = keyboard();
    let read = client.read(1, 8);
    assert_eq!(client.answers(), []);
    press(&mut client, 0x04);
    let expected = Answer::Submit {
        status: 0,
        actual_length: 8,
        start_frame: 0,
        raw_packets: 0,
        error_count: 0,
        data: vec![0, 0, 4, 0, 0, 0, 0, 0],
        packets: Vec::new(),
    };
    assert_eq!(client.answer(read), expected);
    // Unlinked too late: the reply was sent.
    let unlink = client.unlink(read);
    assert_eq!(client.answer(unlink), Answer::Unlink(0));
}

#[test]
fn a_slow_request_is_answered_when_it_is_due_and_holds_up_nothing_else() {
    const SET_INTERFACE: [u8; 8] = [1, 11, 2, 0, 0, 0, 0, 0];
    let mut client = source_sink(0);
    client.advance(100);
    let five = Duration::from_secs(5);
    client.attachment.hold(Slow::SetInterface, Some(Some(five)));
    let slow = client.command(TestCommand {
        raw_packets: 0xffff_ffff,
        setup: SET_INTERFACE,
        ..TestCommand::default()
    });
    assert_eq!(
        client.attachment.next_event(),
        Some(Duration::from_millis(5_100))
    );
    let read = client.read(1, 512);
    assert_eq!(client.answer(read).status(), 0);
    client.advance(5_099);
    assert_eq!(client.answers(), []);
    client.advance(5_100);
    assert_eq!(client.answer(slow).status(), 0);
    assert_eq!(client.attachment.next_event(), None);
    // At once again.
    client.attachment.hold(Slow::SetInterface, None);
    assert_eq!(client.control(SET_INTERFACE).status(), 0);
}

#[test]
fn what_is_never_answered_is_taken_back() {
    let mut client = source_sink(0);
    client.attachment.hold(Slow::Everything, Some(None));
    let transfers = [client.read(1, 512), client.read(0, 18)];
    client.advance(1_000_000);
    assert_eq!(
        (client.answers(), client.attachment.next_event()),
        (vec![], None)
    );
    for transfer in transfers {
        let unlink = client.unlink(transfer);
        assert_eq!(client.answer(unlink), Answer::Unlink(ECONNRESET));
        // It is gone: a second time there is nothing to take back.
        let unlink = client.unlink(transfer);
        assert_eq!(client.answer(unlink), Answer::Unlink(0));
    }
    client.attachment.hold(Slow::Everything, None);
    let read = client.read(1, 512);
    assert_eq!(client.answer(read).status(), 0);
}

#[test]
fn what_is_held_is_bounded() {
    let mut client = source_sink(0);
    client.attachment.hold(Slow::Everything, Some(None));
    for _ in 0..MAX_TRANSFERS {
        client.read(1, 512);
    }
    let one_more = TestCommand {
        endpoint: 0x81,
        ..TestCommand::default()
    };
    let refused = client.send(&one_more.encode(1_000_000));
    assert!(
        matches!(refused, Err(ProtocolError::TooMuch { .. })),
        "{refused:?}"
    );
}

#[test]
fn an_unlinked_transfer_has_no_reply() {
    let mut client = keyboard();
    let first = client.read(1, 8);
    let second = client.read(1, 8);
    let unlink = client.unlink(first);
    assert_eq!(client.answer(unlink), Answer::Unlink(ECONNRESET));
    press(&mut client, 0x04);
    assert_eq!(client.answer(second).status(), 0);
}

#[test]
fn number_of_packets_comes_back() {
    let mut client = keyboard();
    // As the protocol has it; Linux sends 0, see above.
    let answer = client.control([0x80, 6, 0, 1, 0, 0, 18, 0]);
    let Answer::Submit {
        raw_packets, data, ..
    } = answer
    else {
        panic!("{answer:?}");
    };
    assert_eq!(raw_packets, 0xffff_ffff);
    assert_eq!(data.len(), 18);
}

#[test]
fn errors_are_linux_numbers() {
    let mut client = source_sink(0);
    // A string that is not there
    assert_eq!(
        client.control([0x80, 6, 9, 3, 0, 0, 255, 0]).status(),
        EPIPE
    );
    // An endpoint that is not there
    let read = client.read(9, 8);
    assert_eq!(client.answer(read).status(), EPROTO);
    // A short packet that is an error
    let read = client.command(TestCommand {
        endpoint: IN,
        flags: flag::SHORT_NOT_OK,
        length: 255,
        setup: [0x80, 6, 0, 1, 0, 0, 255, 0],
        ..TestCommand::default()
    });
    let answer = client.answer(read);
    assert_eq!(answer.status(), EREMOTEIO);
    assert!(matches!(
        answer,
        Answer::Submit {
            actual_length: 18,
            ..
        }
    ));
    // Babble
    let mut client = keyboard();
    press(&mut client, 0x04);
    let read = client.read(1, 3);
    assert_eq!(client.answer(read).status(), EOVERFLOW);
}

#[test]
fn isochronous_out() {
    let mut client = source_sink(1);
    let mut data: Vec<u8> = Vec::new();
    for _ in 0..2 {
        data.extend((0..100).map(|i| i % 63));
    }
    let command = TestCommand::isochronous(2, &data, &[[0, 100], [100, 100]]);
    let write = client.command(command);
    assert_eq!(client.answers(), []);
    assert_eq!(client.port.next_event(), Some(Duration::from_millis(2)));
    client.advance(2);
    let packet = |offset| IsoPacket {
        offset,
        length: 100,
        actual_length: 100,
        status: 0,
    };
    let expected = Answer::Submit {
        status: 0,
        actual_length: 200,
        start_frame: 0,
        raw_packets: 2,
        error_count: 0,
        data: Vec::new(),
        packets: vec![packet(0), packet(100)],
    };
    assert_eq!(client.answer(write), expected);
    let Device::SourceSink(device) = client.port.function() else {
        panic!("{:?}", client.port.function());
    };
    assert_eq!(
        (device.traffic().taken, device.traffic().wrong_packets),
        (200, 0)
    );
}

/// The gaps of short packets are not transmitted.
#[test]
fn isochronous_in() {
    let mut client = Client::new(Device::Audio(Audio::new("1")));
    assert_eq!(client.control([1, 11, 1, 0, 2, 0, 0, 0]).status(), 0);
    client.advance(40);
    let packets = [[0, 196], [196, 196], [400, 196]];
    let read = client.command(TestCommand::isochronous(2 | IN, &[0; 600], &packets));
    client.advance(43);
    let answer = client.answer(read);
    let Answer::Submit {
        actual_length,
        start_frame,
        data,
        packets,
        ..
    } = answer
    else {
        panic!("{answer:?}");
    };
    assert_eq!((actual_length, start_frame), (3 * 192, 40));
    let numbers: Vec<u32> = data
        .chunks_exact(4)
        .map(|c| u32::from_le_bytes(c.try_into().unwrap()))
        .collect();
    assert_eq!(numbers, (1..=144).collect::<Vec<u32>>());
    let offsets: Vec<_> = packets
        .iter()
        .map(|p| (p.offset, p.actual_length))
        .collect();
    assert_eq!(offsets, [(0, 192), (196, 192), (400, 192)]);
}

/// Linux reads as many packet descriptors as it asked for, whatever the status.
#[test]
fn failed_isochronous_transfers_have_their_packets() {
    let mut client = source_sink(0);
    let command = TestCommand::isochronous(2 | IN, &[0; 20], &[[0, 10], [10, 10]]);
    let read = client.command(command);
    let answer = client.answer(read);
    let Answer::Submit {
        status,
        actual_length,
        error_count,
        packets,
        ..
    } = answer
    else {
        panic!("{answer:?}");
    };
    assert_eq!((status, actual_length, error_count), (EPROTO, 0, 2));
    assert!(
        packets
            .iter()
            .all(|p| p.status == EXDEV && p.actual_length == 0)
    );
}

#[test]
fn attaching_again_starts_anew() {
    let mut client = keyboard();
    client.read(1, 8);
    let Client {
        mut port,
        attachment,
        ..
    } = client;
    attachment.end(&mut port);
    assert_eq!(port.configuration(), 1);
    let attachment = Attachment::new(&mut port, Duration::from_secs(9));
    assert_eq!(port.configuration(), 0);
    assert_eq!(attachment.output(), []);
}

#[test]
fn what_is_too_much_is_refused() {
    let too_much = |field: &'static str, command: TestCommand| {
        let error = keyboard().send(&command.encode(99)).unwrap_err();
        let ProtocolError::TooMuch { field: found, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!(found, field);
    };
    let command = TestCommand::default;
    too_much(
        "transfer_buffer_length",
        TestCommand {
            length: MAX_LENGTH + 1,
            ..command()
        },
    );
    too_much(
        "endpoint",
        TestCommand {
            endpoint: 16,
            ..command()
        },
    );
    too_much(
        "number_of_packets",
        TestCommand {
            endpoint: 1,
            raw_packets: 1025,
            ..command()
        },
    );
    too_much(
        "number_of_packets of endpoint 0",
        TestCommand {
            raw_packets: 1,
            ..command()
        },
    );
    // Buffers of transfers that wait
    let mut client = keyboard();
    for _ in 0..16 {
        client.read(1, MAX_LENGTH);
    }
    let one_more = TestCommand {
        endpoint: 1 | IN,
        length: 1,
        ..command()
    };
    assert!(client.send(&one_more.encode(99)).is_err());
    // A number that is in use
    let mut client = keyboard();
    let read = client.read(1, 8);
    let error = client.send(&one_more.encode(read)).unwrap_err();
    assert_eq!(error, ProtocolError::SequenceNumber(read));
}

#[derive(Clone, Debug)]
enum Step {
    Submit(TestCommand),
    Unlink(usize),
    Advance(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let endpoint = (0_u8..4, any::<bool>()).prop_map(|(n, is_in)| n | u8::from(is_in) << 7);
    let setup = prop_oneof![
        Just([0x80, 6, 0, 1, 0, 0, 18, 0]),
        (0_u8..4).prop_map(|s| [1, 11, s, 0, 0, 0, 0, 0]),
        any::<[u8; 8]>(),
    ];
    let packets = prop::collection::vec((0_u32..300, 0_u32..300), 0..4);
    let submit = (endpoint, 0_u32..0x80, 0_u32..400, setup, packets).prop_map(
        |(endpoint, flags, length, setup, packets)| {
            let mut command = TestCommand {
                endpoint,
                flags,
                length,
                setup,
                ..TestCommand::default()
            };
            if endpoint & IN == 0 {
                command.data = vec![0; length as usize];
            }
            if endpoint & 0x7f != 0 {
                command.packets = packets.into_iter().map(|(o, l)| [o, l]).collect();
                command.raw_packets = command.packets.len() as u32;
            }
            Step::Submit(command)
        },
    );
    let step = prop_oneof![
        6 => submit,
        2 => (0_usize..40).prop_map(Step::Unlink),
        1 => (0_u64..5).prop_map(Step::Advance),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    /// Every submit is answered once, by a reply or by its unlinking; every unlink is answered.
    #[test]
    fn every_command_is_answered_once(steps in steps(), setting in 0_u8..4) {
        let mut client = source_sink(setting);
        let base = client.sequence;
        let mut now = 0;
        let mut submitted = Vec::new();
        let mut victims = HashMap::new();
        for step in steps {
            match step {
                Step::Submit(command) => submitted.push(client.command(command)),
                Step::Unlink(at) => {
                    let victim = submitted.get(at).copied().unwrap_or(base);
                    victims.insert(client.unlink(victim), victim);
                }
                Step::Advance(more) => {
                    now += more;
                    client.advance(now);
                }
            }
        }
        client.advance(now + 10_000);
        // The source and the sink never NAK: all is over.
        let answers = client.answers();
        let mut ended: Vec<u32> = Vec::new();
        let mut unlinks = 0;
        for (sequence, answer) in answers {
            match answer {
                Answer::Submit { .. } => ended.push(sequence),
                Answer::Unlink(status) => {
                    unlinks += 1;
                    if status == ECONNRESET {
                        ended.push(victims[&sequence]);
                    } else {
                        // Its reply came before.
                        let victim = victims[&sequence];
                        prop_assert!(victim == base || ended.contains(&victim));
                    }
                }
            }
        }
        ended.sort_unstable();
        prop_assert_eq!(ended, submitted);
        prop_assert_eq!(unlinks, victims.len());
    }

    /// How the bytes are cut into pieces makes no difference.
    #[test]
    fn pieces(steps in steps(), cuts in prop::collection::vec(1_usize..100, 1..50)) {
        let mut bytes = Vec::new();
        for (at, step) in steps.iter().enumerate() {
            let sequence = at as u32 + 1000;
            match step {
                Step::Submit(command) => bytes.extend(command.encode(sequence)),
                Step::Unlink(victim) => {
                    bytes.extend(encode_unlink(sequence, *victim as u32 + 1000));
                }
                Step::Advance(_) => (),
            }
        }
        let mut whole = source_sink(3);
        whole.send(&bytes).unwrap();
        let mut cut = source_sink(3);
        let mut rest = bytes.as_slice();
        for len in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at((*len).min(rest.len()));
            cut.send(piece).unwrap();
            rest = after;
        }
        prop_assert_eq!(cut.attachment.output(), whole.attachment.output());
    }

    #[test]
    fn any_bytes(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        sane in any::<bool>(),
    ) {
        let mut client = keyboard();
        let mut bytes = bytes;
        if sane && bytes.len() > 0x24 {
            // A submit with small numbers
            bytes[..4].copy_from_slice(&[0, 0, 0, 1]);
            for at in [0x0c, 0x10, 0x18, 0x20] {
                bytes[at..at + 3].fill(0);
            }
        }
        let _ = client.send(&bytes);
        let _ = crate::op::decode(&bytes);
    }
}
