// SPDX-License-Identifier: GPL-3.0-or-later
//! A keyboard whose guest is suspended, and nobody is connected for it.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use common::*;
use session::control::{Event, Reply};
use session::frame::{Kind, Transfer, TransferStatus, TransferType};
use session::{DeviceId, LeasePhase, StashCounters};

fn report() -> Transfer {
    Transfer {
        transfer_type: TransferType::Interrupt,
        length: 8,
        interval: 8,
        ..bulk_in(8)
    }
}

fn keyboard(dir: &Path) -> String {
    let control = dir.join("devices.sock");
    format!(
        "simulated_control = '{}'\n{ALLOW_ALL}[[simulated]]\nkind = 'keyboard'\n",
        control.display()
    )
}

fn press(dir: &Path, keys: &str) {
    let mut stream = UnixStream::connect(dir.join("devices.sock")).unwrap();
    stream
        .write_all(format!("0-1 stroke {keys}\n").as_bytes())
        .unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    assert_eq!(answer, "ok\n");
}

/// The next key that goes down.
async fn key(device: &mut Device) -> u8 {
    loop {
        let (completion, body) = device.transfer(&report(), &[]).await;
        assert_eq!(completion.status, TransferStatus::Completed);
        if body[2] != 0 {
            return body[2];
        }
    }
}

#[test]
fn keys_pressed_while_nobody_is_connected_are_kept_for_the_guest() {
    let pool = Pool::new();
    let exporter = pool.start(&keyboard(&pool.dir));
    let (a, b) = (pool.identity("host-a"), pool.identity("host-b"));
    run(async {
        let (mut control, _, mut source) = exporter.lend(&a).await;
        press(&pool.dir, "04");
        assert_eq!(key(&mut source).await, 4);

        let request = source.submit(&report(), &[]);
        source.flush().await;
        source.client.keep(request);
        loop {
            // The key of before goes up.
            let (completion, _) = source.completion().await;
            if completion.request == request {
                assert_eq!(completion.status, TransferStatus::Cancelled);
                break;
            }
        }
        source.client.say(Kind::Freeze);
        source.flush().await;
        press(&pool.dir, "05 06");
        drop(source);
        let lost = |e: &Event| matches!(e, Event::Lease(l) if l.phase == LeasePhase::Disconnected);
        control.wait(lost).await;
        press(&pool.dir, "07 08");
        // All of them were fetched, though nobody asks.
        while control.lease().await.stash.kept < 8 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }

        let lease = control.lease().await;
        let mut target = exporter.claim_for(&b, &lease, 7).await;
        for pressed in [5, 6, 7, 8] {
            assert_eq!(key(&mut target).await, pressed);
        }
        press(&pool.dir, "09");
        assert_eq!(key(&mut target).await, 9);
        let stash = control.lease().await.stash;
        assert_eq!((stash.overflowed, stash.discarded), (0, 0));

        // Another VM has nothing of it.
        let request = target.submit(&report(), &[]);
        target.client.keep(request);
        press(&pool.dir, "0a");
        target.flush().await;
        let lease = control.lease().await;
        let device = DeviceId("0-1".to_owned());
        // Whose it is.
        let mut holder = exporter.control(&b).await;
        assert_eq!(
            holder.release(device, vm(1), lease.epoch).await,
            Reply::Done
        );
        let lease = control.acquire(wanted("0-1", vm(2), 1)).await;
        let mut other = exporter.claim(&a, &lease).await;
        other.configure().await;
        assert_eq!(control.lease().await.stash, StashCounters::default());
    });
}

#[test]
fn what_is_kept_is_bounded_and_the_rest_is_counted() {
    let pool = Pool::new();
    let exporter = pool.start(&keyboard(&pool.dir));
    let a = pool.identity("host-a");
    run(async {
        let (mut control, _, mut source) = exporter.lend(&a).await;
        let request = source.submit(&report(), &[]);
        source.client.keep(request);
        let (completion, _) = source.completion().await;
        assert_eq!(completion.status, TransferStatus::Cancelled);
        let most = session::stash::MAX_TRANSFERS as u64;
        let strokes = most / 2 + 50;
        for stroke in 0..strokes {
            press(&pool.dir, if stroke % 2 == 0 { "04" } else { "05" });
        }
        while control.lease().await.stash.overflowed < 100 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        let stash = control.lease().await.stash;
        assert_eq!((stash.kept, stash.overflowed), (most, 100));
        // The oldest.
        assert_eq!(key(&mut source).await, 4);
        assert_eq!(key(&mut source).await, 5);
    });
}
