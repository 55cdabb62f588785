// SPDX-License-Identifier: GPL-3.0-or-later
//! A SuperSpeed device that is presented at high speed.

use crate::*;

#[test]
#[ignore = "needs root, vhci_hcd and usbip-sim"]
fn a_super_speed_disk_is_one_of_high_speed() {
    run(async {
        let mut bench = Bench::new("super-disk:8").await;
        assert_eq!(bench.info.speed, Speed::Super);
        assert_eq!(bench.info.state, DeviceState::Free);
        let get = |kind, length| [0x80, 6, 0, kind, 0, 0, length, 0];
        let (_, device) = bench.request(get(1, 18)).await;
        assert_eq!(
            (device.len(), device[2..4].to_vec(), device[7]),
            (18, vec![0, 2], 64)
        );
        // Bulk only, 500 mA, no companions
        #[rustfmt::skip]
        let configuration = [
            9, 2, 32, 0, 1, 1, 0, 0xc0, 250,
            9, 4, 0, 0, 2, 8, 6, 0x50, 0,
            7, 5, 0x81, 2, 0, 2, 0,
            7, 5, 0x02, 2, 0, 2, 0,
        ];
        let (_, mut presented) = bench.request(get(2, 255)).await;
        // Self-powered or not
        presented[7] |= 0x40;
        assert_eq!(presented, configuration);
        assert_eq!(bench.request(get(2, 9)).await.1[2..4], [32, 0]);
        let (_, qualifier) = bench.request(get(6, 10)).await;
        assert_eq!(qualifier, [10, 6, 0, 2, 0, 0, 0, 64, 0, 0]);
        let strict = Transfer {
            flags: FLAG_SHORT_NOT_OK,
            ..control_transfer(get(2, 255))
        };
        assert_eq!(
            bench.status(&strict, &[]).await,
            TransferStatus::ShortPacket
        );
        for refused in [get(15, 5), get(7, 9), [0, 49, 40, 0, 0, 0, 0, 0]] {
            assert_eq!(bench.request(refused).await.0, TransferStatus::Stall);
        }
        bench.done(set_configuration(1)).await;
        let data: Vec<u8> = (0..16_384).map(|i| (i * 13 + i / 256) as u8).collect();
        // However the guest divides it.
        for (tag, pieces) in (1..).zip([vec![16_384], vec![512; 32], vec![3584, 512, 8192, 4096]]) {
            phases(
                &mut bench.device,
                &cbw(tag, false, 8 * tag, 32),
                Some(&data),
                &pieces,
            )
            .await;
            let read = phases(
                &mut bench.device,
                &cbw(tag, true, 8 * tag, 32),
                None,
                &pieces,
            )
            .await;
            assert!(read == data, "{pieces:?}");
        }
    });
}

/// A command whose data phase is divided so, all of it queued at once.
async fn phases(device: &mut Device, cbw: &[u8], data: Option<&[u8]>, pieces: &[u32]) -> Vec<u8> {
    let mut expected = vec![(device.submit(&bulk_out(31), cbw), 31)];
    let mut at = 0;
    for piece in pieces {
        let request = match data {
            Some(data) => device.submit(&bulk_out(*piece), &data[at..at + *piece as usize]),
            None => device.submit(&bulk_in(*piece), &[]),
        };
        at += *piece as usize;
        expected.push((request, *piece));
    }
    let csw = device.submit(&bulk_in(13), &[]);
    expected.push((csw, 13));
    let mut all = vec![Vec::new(); expected.len()];
    for _ in 0..all.len() {
        let (completion, body) = device.completion().await;
        let which = expected
            .iter()
            .position(|(r, _)| *r == completion.request)
            .unwrap();
        let ended = (completion.status, completion.actual_length);
        assert_eq!(
            ended,
            (TransferStatus::Completed, expected[which].1),
            "{which}"
        );
        all[which] = body;
    }
    let status = all.pop().unwrap();
    assert_eq!(
        (&status[..8], status[12]),
        ([b"USBS", &cbw[4..8]].concat().as_slice(), 0)
    );
    all.concat()
}
