// SPDX-License-Identifier: GPL-3.0-or-later
//! Isochronous transfers.

use crate::*;

/// A transfer of these packets, with their offsets and lengths, and its descriptors.
fn isochronous(address: u8, length: u32, packets: &[(u32, u32)]) -> (Transfer, Vec<u8>) {
    let mut transfer = endpoint(address, TransferType::Isochronous, length);
    transfer.setup[..2].copy_from_slice(&(packets.len() as u16).to_le_bytes());
    let fields = packets
        .iter()
        .flat_map(|&(offset, len)| [offset, len, 0, 0]);
    (transfer, fields.flat_map(u32::to_le_bytes).collect())
}

/// (offset, length, actual length, status) of each packet.
fn results(body: &[u8], packets: usize) -> Vec<[u32; 4]> {
    let (rows, _) = body[..packets * ISO_PACKET_LEN].as_chunks::<ISO_PACKET_LEN>();
    let field = |row: &[u8], at: usize| u32::from_le_bytes(row[at..at + 4].try_into().unwrap());
    rows.iter()
        .map(|row| [0, 4, 8, 12].map(|at| field(row, at)))
        .collect()
}

/// A headset records and plays, both at once, through queues that never run dry; every sample is
/// numbered.
#[test]
#[ignore = "needs root, vhci_hcd and usbip-sim"]
fn isochronous_streams_lose_and_double_nothing() {
    run(async {
        let drivers = [Some("snd-usb-audio"); 3];
        let mut bench = Bench::with_drivers("audio", &drivers).await;
        check_drivers(&bench.place, &[Some("usbfs"); 3]);
        bench.done(set_configuration(1)).await;
        bench.done(set_interface(2, 1)).await;
        bench.done(set_interface(1, 1)).await;

        // Packets with gaps between them, the last one at the front.
        let gap = 200;
        let mut layout: Vec<_> = (1..PACKETS as u32).map(|i| (i * gap, PACKET_LEN)).collect();
        layout.push((0, PACKET_LEN));
        let length = gap * PACKETS as u32;
        let (record, record_body) = isochronous(0x82, length, &layout);
        let (play, play_head) = isochronous(0x01, length, &layout);
        let mut next_sample = 1_u32;
        let mut play_body = || {
            let mut body = play_head.clone();
            let start = body.len();
            body.resize(start + length as usize, 0xee);
            for (offset, len) in &layout {
                let packet = &mut body[start + *offset as usize..][..*len as usize];
                for frame in packet.chunks_exact_mut(4) {
                    frame.copy_from_slice(&next_sample.to_le_bytes());
                    next_sample += 1;
                }
            }
            body
        };
        let device = &mut bench.device;
        let mut recording: Vec<_> = (0..QUEUED)
            .map(|_| device.submit(&record, &record_body))
            .collect();
        let mut playing: Vec<_> = (0..QUEUED)
            .map(|_| device.submit(&play, &play_body()))
            .collect();
        let (mut recorded, mut played) = (0, 0);
        let (mut samples, mut last, mut skipped) = (0_u64, 0_u32, 0_u64);
        while recorded < TRANSFERS || played < TRANSFERS {
            let (completion, body) = device.completion().await;
            assert_eq!(completion.status, TransferStatus::Completed);
            assert_eq!(
                (completion.error_count, completion.actual_length),
                (0, PACKETS as u32 * PACKET_LEN)
            );
            let is_record = recording.first() == Some(&completion.request);
            for ([offset, len, actual, status], expected) in
                results(&body, PACKETS).into_iter().zip(&layout)
            {
                assert_eq!(((offset, len), actual, status), (*expected, PACKET_LEN, 0));
                if !is_record {
                    continue;
                }
                let buffer = &body[PACKETS * ISO_PACKET_LEN..];
                assert_eq!(buffer.len(), length as usize);
                for frame in buffer[offset as usize..][..actual as usize].chunks_exact(4) {
                    let number = u32::from_le_bytes(frame.try_into().unwrap());
                    assert!(number > last, "{number} after {last}");
                    skipped += u64::from(number - last - 1);
                    samples += 1;
                    last = number;
                }
            }
            if is_record {
                recording.remove(0);
                recorded += 1;
                recording.push(device.submit(&record, &record_body));
            } else {
                assert_eq!(
                    playing.remove(0),
                    completion.request,
                    "in the order of submission"
                );
                assert_eq!(body.len(), PACKETS * ISO_PACKET_LEN);
                played += 1;
                playing.push(device.submit(&play, &play_body()));
            }
        }
        // What runs is cancelled, each exactly once; a packet is over or not.
        for request in recording.iter().chain(&playing) {
            device.client.cancel(*request);
        }
        let mut left: Vec<_> = [recording, playing].concat();
        while !left.is_empty() {
            let (completion, body) = device.completion().await;
            assert!(matches!(
                completion.status,
                TransferStatus::Completed | TransferStatus::Cancelled
            ));
            let packets = results(&body, PACKETS);
            let moved: u32 = packets.iter().map(|p| p[2]).sum();
            let failed = packets.iter().filter(|p| p[3] != 0).count() as u32;
            assert_eq!(
                (completion.actual_length, completion.error_count),
                (moved, failed)
            );
            let at = left.iter().position(|r| *r == completion.request);
            left.remove(at.expect("twice"));
        }
        // What the device recorded while nothing was queued it counts itself.
        let missed = bench.simulator.stat(1, "record-missed-packets");
        println!("{samples} samples recorded, {skipped} skipped, {missed} packets missed");
        assert!(
            skipped <= missed * FRAMES as u64,
            "samples got lost on the way"
        );
        let name = |n| ["good", "dropped", "doubled", "malformed", "silent"][n];
        let heard = std::array::from_fn::<_, 5, _>(|n| bench.simulator.stat(1, name(n)));
        println!(
            "heard {heard:?}, playback missed {}",
            bench.simulator.stat(1, "playback-missed-packets")
        );
        assert!(heard[0] >= (TRANSFERS * PACKETS * FRAMES) as u64);
        assert_eq!(heard[1..], [0; 4]);

        bench.release().await;
        drop(bench.exporter);
        check_drivers(&bench.place, &drivers);
    });
}

#[test]
#[ignore = "needs root, vhci_hcd and usbip-sim"]
fn isochronous_mistakes_are_answered() {
    run(async {
        let mut bench = Bench::new("source-sink:mod63").await;
        bench.done(set_configuration(3)).await;
        let (good, body) = isochronous(0x82, 2048, &[(0, 1024), (1024, 1024)]);
        // Setting 0 has no such endpoint.
        assert_eq!(bench.status(&good, &body).await, TransferStatus::Invalid);
        bench.done(set_interface(0, 1)).await;
        let (completion, data) = bench.device.transfer(&good, &body).await;
        assert_eq!(completion.status, TransferStatus::Completed);
        assert_eq!(
            (completion.actual_length, completion.error_count),
            (2048, 0)
        );
        let expected = (0..2048).map(|i| (i % 1024 % 63) as u8);
        assert!(data[2 * ISO_PACKET_LEN..].iter().copied().eq(expected));
        // More than a packet may be, more than the buffer, none at all, no isochronous endpoint.
        for (address, length, packets) in [
            (0x82, 4096, &[(0, 3073)][..]),
            (0x82, 1024, &[(1, 1024)]),
            (0x82, 1024, &[(u32::MAX, 2)]),
            (0x82, 1024, &[]),
            (0x81, 512, &[(0, 512)]),
            (0x8f, 512, &[(0, 512)]),
        ] {
            let (bad, body) = isochronous(address, length, packets);
            let status = bench.status(&bad, &body).await;
            assert_eq!(status, TransferStatus::Invalid, "{address:x} {packets:?}");
        }
        // Short packets are wished for, too; 128 is the most.
        let packets: Vec<_> = (0..128).map(|i| (i * 8, 8)).collect();
        let (many, body) = isochronous(0x82, 1024, &packets);
        let (completion, data) = bench.device.transfer(&many, &body).await;
        assert_eq!(
            (completion.status, completion.actual_length),
            (TransferStatus::Completed, 1024)
        );
        assert_eq!(data.len(), 128 * ISO_PACKET_LEN + 1024);
        // OUT data is checked by the sink.
        let (out, mut body) = isochronous(0x02, 1500, &[(500, 1000), (0, 100)]);
        body.resize(body.len() + 1500, 0xee);
        for (offset, len) in [(500, 1000), (0, 100)] {
            for i in 0..len {
                body[2 * ISO_PACKET_LEN + offset + i] = (i % 63) as u8;
            }
        }
        let (completion, data) = bench.device.transfer(&out, &body).await;
        assert_eq!(
            (completion.status, completion.actual_length),
            (TransferStatus::Completed, 1100)
        );
        assert_eq!(data.len(), 2 * ISO_PACKET_LEN);
        assert_eq!(bench.simulator.stat(1, "wrong-packets"), 0);
        assert_eq!(bench.simulator.stat(1, "taken"), 1100);
    });
}
