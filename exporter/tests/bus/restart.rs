// SPDX-License-Identifier: GPL-3.0-or-later
//! The exporter is started again.

use session::{Exchange, OnExchange};

use super::*;

/// Defect 5. The kernel puts every alternate setting back when the process ends that has claimed the interface.
#[test]
#[ignore = "needs root, vhci_hcd and usbip-sim"]
fn what_a_guest_has_set_is_set_again() {
    run(async {
        let mut simulator = Simulator::start(&["source-sink"]);
        let place = simulator.attach(1);
        let pool = Pool::new();
        let exporter = pool.start_with_usb(ALLOW_ALL);
        let identity = pool.identity("host-a");
        let mut control = exporter.control(&identity).await;
        let mut wanted = wanted(&place, vm(1), 1);
        wanted.exchange = Some(Exchange {
            on: OnExchange::Replug,
            seconds: 60,
            at_place: false,
        });
        let lease = control.acquire(wanted).await;
        let mut device = exporter.claim(&identity, &lease).await;
        for setup in [set_configuration(3), set_interface(0, 2)] {
            let (done, _) = device.transfer(&control_transfer(setup), &[]).await;
            assert_eq!(done.status, TransferStatus::Completed);
        }
        // The answer comes when all is on the disk.
        let lease = control.lease().await;
        drop(exporter);
        let exporter = pool.start_with_usb(ALLOW_ALL);
        let mut device = exporter.claim(&identity, &lease).await;
        for (get, expected) in [(GET_CONFIGURATION, 3), (GET_INTERFACE, 2)] {
            let (_, value) = device.transfer(&control_transfer(get), &[]).await;
            assert_eq!(value, [expected]);
        }
    });
}
