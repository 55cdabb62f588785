// SPDX-License-Identifier: GPL-3.0-or-later
//! The exporter is started again.

use std::fs;
use std::time::Instant;

use super::*;

/// Waits until the leases on the disk have this configuration, and this interface with this setting: nobody is told.
async fn until_saved(pool: &Pool, configuration: u8, alternate: [u8; 2]) {
    let start = Instant::now();
    loop {
        let saved = fs::read_to_string(pool.dir.join("state/leases.json")).unwrap();
        let saved = saved.replace([' ', '\n'], "");
        let [interface, setting] = alternate;
        let expected =
            format!("\"configuration\":{configuration},\"alternates\":[[{interface},{setting}]]");
        if saved.contains(&expected) {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{saved}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

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
        let lease = control.acquire(wanted(&place, vm(1), 1)).await;
        let mut device = exporter.claim(&identity, &lease).await;
        for setup in [set_configuration(3), set_interface(0, 2)] {
            let (done, _) = device.transfer(&control_transfer(setup), &[]).await;
            assert_eq!(done.status, TransferStatus::Completed);
        }
        let lease = control.lease().await;
        until_saved(&pool, 3, [0, 2]).await;
        drop(exporter);
        let exporter = pool.start_with_usb(ALLOW_ALL);
        let mut device = exporter.claim(&identity, &lease).await;
        for (get, expected) in [(GET_CONFIGURATION, 3), (GET_INTERFACE, 2)] {
            let (_, value) = device.transfer(&control_transfer(get), &[]).await;
            assert_eq!(value, [expected]);
        }
    });
}
