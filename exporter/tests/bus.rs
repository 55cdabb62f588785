// SPDX-License-Identifier: GPL-3.0-or-later
//! Simulated devices on a real kernel's bus, lent through usbfs.
//!
//! Not run by default: it needs root, a kernel with `vhci_hcd` (`modprobe vhci-hcd`), and the program
//! `usbip-sim` of this workspace:
//! `XEN_VUSB_USBIP_SIM=target/debug/usbip-sim cargo test -p exporter --test bus -- --ignored
//! --test-threads 1`

mod common;
#[path = "bus/held.rs"]
mod held;
#[path = "bus/isochronous.rs"]
mod isochronous;
#[path = "bus/neighbours.rs"]
mod neighbours;
#[path = "bus/restart.rs"]
mod restart;
#[path = "bus/super_speed.rs"]
mod super_speed;
#[path = "common/vhci.rs"]
mod vhci;

use std::time::Duration;

use common::*;
use session::control::{Event, Reply, Request};
use session::frame::{FLAG_SHORT_NOT_OK, ISO_PACKET_LEN, Transfer, TransferStatus, TransferType};
use session::{DeviceInfo, DeviceState, Lease, Speed};
use transport::Identity;
use vhci::{Simulator, driver};

/// An exporter with one simulated device, which is lent.
struct Bench {
    simulator: Simulator,
    exporter: Exporter,
    identity: Identity,
    control: Control,
    info: DeviceInfo,
    place: String,
    lease: Lease,
    device: Device,
    _pool: Pool,
}

impl Bench {
    async fn new(kind: &str) -> Self {
        Self::with_drivers(kind, &[]).await
    }

    /// These are the kernel's drivers of its interfaces.
    async fn with_drivers(kind: &str, drivers: &[Option<&str>]) -> Self {
        let mut simulator = Simulator::start(&[kind]);
        let place = simulator.attach(1);
        check_drivers(&place, drivers);
        let pool = Pool::new();
        let exporter = pool.start_with_usb(ALLOW_ALL);
        let identity = pool.identity("host-a");
        let mut control = exporter.control(&identity).await;
        assert_eq!(control.ask(Request::Subscribe).await, Reply::Done);
        let info = listed(&mut control, &place).await.expect("not listed");
        println!("{info:?}");
        let lease = control.acquire(wanted(&place, vm(1), 1)).await;
        let device = exporter.claim(&identity, &lease).await;
        Self {
            simulator,
            exporter,
            identity,
            control,
            info,
            place,
            lease,
            device,
            _pool: pool,
        }
    }

    async fn status(&mut self, transfer: &Transfer, body: &[u8]) -> TransferStatus {
        self.device.transfer(transfer, body).await.0.status
    }

    /// A control request without data, or with IN data.
    async fn request(&mut self, setup: [u8; 8]) -> (TransferStatus, Vec<u8>) {
        let (completion, body) = self.device.transfer(&control_transfer(setup), &[]).await;
        assert_eq!(completion.actual_length as usize, body.len());
        (completion.status, body)
    }

    async fn done(&mut self, setup: [u8; 8]) {
        let (status, _) = self.request(setup).await;
        assert_eq!(status, TransferStatus::Completed, "{setup:02x?}");
    }

    async fn release(&mut self) {
        let epoch = self.device.client.epoch();
        let id = self.lease.device.id.clone();
        assert_eq!(self.control.release(id, vm(1), epoch).await, Reply::Done);
        assert_eq!(self.device.next().await, Said::Gone);
    }
}

async fn listed(control: &mut Control, place: &str) -> Option<DeviceInfo> {
    let Reply::Devices(devices) = control.ask(Request::Devices).await else {
        panic!("no devices");
    };
    devices.into_iter().find(|d| d.id.0 == place)
}

fn check_drivers(place: &str, drivers: &[Option<&str>]) {
    for (expected, interface) in drivers.iter().zip(0..) {
        assert_eq!(
            driver(place, interface).as_deref(),
            *expected,
            "{interface}"
        );
    }
}

fn set_configuration(value: u8) -> [u8; 8] {
    [0, 9, value, 0, 0, 0, 0, 0]
}

fn set_interface(interface: u8, setting: u8) -> [u8; 8] {
    [1, 11, setting, 0, interface, 0, 0, 0]
}

const GET_CONFIGURATION: [u8; 8] = [0x80, 8, 0, 0, 0, 0, 1, 0];
const GET_INTERFACE: [u8; 8] = [0x81, 10, 0, 0, 0, 0, 1, 0];

fn endpoint(address: u8, transfer_type: TransferType, length: u32) -> Transfer {
    Transfer {
        transfer_type,
        endpoint: address,
        interval: 8,
        ..bulk_in(length)
    }
}

// Isochronous

const PACKETS: usize = 64;
const FRAMES: usize = 48;
const PACKET_LEN: u32 = FRAMES as u32 * 4;
/// In flight at a time: enough for a machine that is busy otherwise.
const QUEUED: usize = 16;
const TRANSFERS: usize = 40;

#[test]
#[ignore = "needs root, vhci_hcd and usbip-sim"]
fn an_unplugged_device_is_gone_at_once() {
    run(async {
        let mut bench = Bench::new("source-sink").await;
        bench.done(set_configuration(2)).await;
        // The loop has nothing to give: these wait.
        let mut waiting: Vec<_> = (0..4)
            .map(|_| bench.device.submit(&bulk_in(512), &[]))
            .collect();
        bench.done(GET_CONFIGURATION).await;
        assert_eq!(bench.simulator.command("unplug 1-1"), "ok");
        loop {
            match bench.device.next().await {
                Said::Completed(completion, _) => {
                    assert_eq!(completion.status, TransferStatus::NoDevice);
                    let at = waiting.iter().position(|r| *r == completion.request);
                    waiting.remove(at.expect("twice"));
                }
                Said::Gone => break,
                other => panic!("{other:?}"),
            }
        }
        assert!(waiting.is_empty());
        bench
            .control
            .wait(|e| matches!(e, Event::Released { .. }))
            .await;
        assert_eq!(listed(&mut bench.control, &bench.place).await, None);
    });
}

// Standard requests

#[test]
#[ignore = "needs root, vhci_hcd and usbip-sim"]
fn requests_reach_the_device_and_their_results_are_true() {
    run(async {
        let mut bench = Bench::with_drivers("source-sink", &[None]).await;
        for value in [2, 3, 3] {
            bench.done(set_configuration(value)).await;
            assert_eq!(bench.request(GET_CONFIGURATION).await.1, [value]);
        }
        let stalled = (TransferStatus::Stall, vec![]);
        assert_eq!(bench.request(set_configuration(7)).await, stalled);
        assert_eq!(bench.request(GET_CONFIGURATION).await.1, [3]);
        assert_eq!(bench.request(set_interface(0, 9)).await, stalled);
        assert_eq!(bench.request(set_interface(5, 0)).await, stalled);
        // A class request to an interface that does not exist, an unknown request
        assert_eq!(bench.request([0xa1, 1, 0, 0, 5, 0, 1, 0]).await, stalled);
        assert_eq!(bench.request([0xc0, 0x77, 0, 0, 0, 0, 1, 0]).await, stalled);

        // Those of endpoint 0 are carried out in their order, by whatever call.
        let mut expected = Vec::new();
        for setting in [1, 2, 3, 0, 2] {
            let set = control_transfer(set_interface(0, setting));
            expected.push((bench.device.submit(&set, &[]), vec![]));
            let get = control_transfer(GET_INTERFACE);
            expected.push((bench.device.submit(&get, &[]), vec![setting]));
        }
        let mut ended = Vec::new();
        for _ in &expected {
            let (completion, body) = bench.device.completion().await;
            assert_eq!(completion.status, TransferStatus::Completed);
            ended.push((completion.request, body));
        }
        ended.sort();
        assert_eq!(ended, expected);
        // A configuration starts with the first settings, also if it was active.
        bench.done(set_configuration(3)).await;
        assert_eq!(bench.request(GET_INTERFACE).await.1, [0]);

        // Not configured, for the guest.
        bench.done(set_configuration(0)).await;
        assert_eq!(bench.request(GET_CONFIGURATION).await.1, [0]);
        assert_eq!(
            bench.status(&bulk_in(512), &[]).await,
            TransferStatus::Invalid
        );
        bench.done(set_configuration(3)).await;
        assert_eq!(
            bench.status(&bulk_in(512), &[]).await,
            TransferStatus::Completed
        );

        // Halts
        let halt = |request, address| [2, request, 0, 0, address, 0, 0, 0];
        let halted = |address| [0x82, 0, 0, 0, address, 0, 2, 0];
        bench.done(halt(3, 0x81)).await;
        assert_eq!(bench.request(halted(0x81)).await.1, [1, 0]);
        assert_eq!(
            bench.status(&bulk_in(512), &[]).await,
            TransferStatus::Stall
        );
        bench.done(halt(1, 0x81)).await;
        assert_eq!(bench.request(halted(0x81)).await.1, [0, 0]);
        assert_eq!(
            bench.status(&bulk_in(512), &[]).await,
            TransferStatus::Completed
        );
        assert_eq!(bench.request(halt(1, 0x8e)).await, stalled);

        // A reset takes what waits behind it, and what comes after it waits for it.
        let reset = bench.device.client.reset();
        let get = bench
            .device
            .submit(&control_transfer(GET_CONFIGURATION), &[]);
        let read = bench.device.submit(&bulk_in(512), &[]);
        let mut ended = Vec::new();
        for _ in 0..3 {
            let (completion, _) = bench.device.completion().await;
            assert_eq!(completion.status, TransferStatus::Completed);
            ended.push(completion.request);
        }
        assert_eq!(ended[0], reset);
        ended.sort_unstable();
        assert_eq!(ended, [reset, get, read]);
        bench.release().await;
        drop(bench.exporter);
        check_drivers(&bench.place, &[None]);
    });
}

#[test]
#[ignore = "needs root, vhci_hcd and usbip-sim"]
fn short_and_empty_transfers() {
    run(async {
        let mut bench = Bench::new("source-sink").await;
        bench.done(set_configuration(2)).await;
        let out = |length| Transfer {
            endpoint: 0x01,
            ..bulk_in(length)
        };
        let strict = |length| Transfer {
            flags: FLAG_SHORT_NOT_OK,
            ..bulk_in(length)
        };
        let data: Vec<u8> = (0..65_536).map(|i| (i * 3 + i / 256) as u8).collect();
        for (len, read, status) in [
            (100, bulk_in(512), TransferStatus::Completed),
            (100, strict(512), TransferStatus::ShortPacket),
            (512, strict(512), TransferStatus::Completed),
            (0, bulk_in(512), TransferStatus::Completed),
            (0, strict(1), TransferStatus::ShortPacket),
            (0, strict(0), TransferStatus::Completed),
            (65_536, bulk_in(65_536), TransferStatus::Completed),
        ] {
            let body = &data[..len as usize];
            let (written, _) = bench.device.transfer(&out(len), body).await;
            assert_eq!(
                (written.status, written.actual_length),
                (TransferStatus::Completed, len)
            );
            let (completion, came) = bench.device.transfer(&read, &[]).await;
            assert_eq!(
                (completion.status, completion.actual_length),
                (status, len),
                "{len}"
            );
            assert!(came == body, "{len}");
        }
        // Control: the device has less than asked for, or more.
        let get = |length: u16| {
            let [low, high] = length.to_le_bytes();
            control_transfer([0x80, 6, 0, 1, 0, 0, low, high])
        };
        for (length, actual) in [(255, 18), (18, 18), (8, 8), (0, 0), (65_535, 18)] {
            let (completion, body) = bench.device.transfer(&get(length), &[]).await;
            assert_eq!(completion.status, TransferStatus::Completed, "{length}");
            assert_eq!(
                (completion.actual_length as usize, body.len()),
                (actual, actual)
            );
        }
        let strict = Transfer {
            flags: FLAG_SHORT_NOT_OK,
            ..get(255)
        };
        assert_eq!(
            bench.status(&strict, &[]).await,
            TransferStatus::ShortPacket
        );
    });
}

/// A key is pressed while its transfer is cancelled: whatever wins, the report comes once.
#[test]
#[ignore = "needs root, vhci_hcd and usbip-sim"]
fn a_transfer_that_is_cancelled_while_it_completes_is_one_or_the_other() {
    run(async {
        let drivers = [Some("usbhid")];
        let mut bench = Bench::with_drivers("keyboard", &drivers).await;
        bench.done(set_configuration(1)).await;
        let read = endpoint(0x81, TransferType::Interrupt, 8);
        let mut reports = 0;
        let (mut completed, mut cancelled) = (0, 0);
        let mut seed = 12_345_u32;
        for _ in 0..150 {
            let request = bench.device.submit(&read, &[]);
            bench.device.flush().await;
            assert_eq!(bench.simulator.command("stroke 1-1 04"), "ok");
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            tokio::time::sleep(Duration::from_micros((seed >> 16).into()) / 16).await;
            bench.device.client.cancel(request);
            let (completion, body) = bench.device.completion().await;
            assert_eq!(completion.request, request);
            assert_eq!(completion.actual_length as usize, body.len());
            match completion.status {
                TransferStatus::Completed => completed += 1,
                TransferStatus::Cancelled => cancelled += 1,
                other => panic!("{other:?}"),
            }
            reports += body.len() / 8;
        }
        println!("{completed} completed, {cancelled} cancelled, {reports} reports");
        assert_eq!(bench.simulator.stat(1, "fetched"), reports as u64);
        bench.release().await;
        drop(bench.exporter);
        check_drivers(&bench.place, &drivers);
    });
}

/// Two interfaces with one driver.
#[test]
#[ignore = "needs root, vhci_hcd and usbip-sim"]
fn a_serial_adapter_is_given_back() {
    run(async {
        let drivers = [Some("cdc_acm"); 2];
        let mut bench = Bench::with_drivers("serial", &drivers).await;
        check_drivers(&bench.place, &[Some("usbfs"); 2]);
        assert!(!bench.info.is_storage());
        bench.done(set_configuration(1)).await;
        // Claimed by another connection of the same holder, it is still the same device.
        let lease = bench.control.lease().await;
        bench.device = bench.exporter.claim(&bench.identity, &lease).await;
        assert_eq!(bench.request(GET_CONFIGURATION).await.1, [1]);
        bench.release().await;
        drop(bench.exporter);
        check_drivers(&bench.place, &drivers);
    });
}

// SuperSpeed
