// SPDX-License-Identifier: GPL-3.0-or-later
//! What a device does to others: nothing, whether it does not answer or wants all memory there is.

use std::fs;
use std::time::{Duration, Instant};

use session::DeviceId;
use session::frame::Kind;
use tokio::time::timeout;

use super::*;

/// Longer than a healthy device needs in this test, however busy the machine is.
const LONG: Duration = Duration::from_secs(20);
/// Longest round trip of a neighbour. A device that does not answer holds the kernel up for 5 s and longer.
const NEIGHBOUR: Duration = Duration::from_secs(4);
const MEMORY: &str = "/sys/module/usbcore/parameters/usbfs_memory_mb";

/// A device that gives back what it is sent, with a process of its own behind it.
struct Loop {
    simulator: Simulator,
    lease: Lease,
    device: Device,
}

impl Loop {
    async fn lend(
        simulator: Simulator,
        place: &str,
        number: u8,
        exporter: &Exporter,
        identity: &Identity,
    ) -> Self {
        let mut control = exporter.control(identity).await;
        let lease = control.acquire(wanted(place, vm(number), 1)).await;
        let mut device = exporter.claim(identity, &lease).await;
        let configure = control_transfer(set_configuration(2));
        let (done, _) = device.transfer(&configure, &[]).await;
        assert_eq!(done.status, TransferStatus::Completed);
        Self {
            simulator,
            lease,
            device,
        }
    }

    /// Sends so many bytes and reads them back. How long that takes.
    async fn round_trip(&mut self, len: u32) -> Duration {
        let start = Instant::now();
        let body: Vec<u8> = (0..len).map(|i| (i * 7 + i / 256) as u8).collect();
        let out = Transfer {
            endpoint: 0x01,
            ..bulk_in(len)
        };
        let there_and_back = async {
            let (written, _) = self.device.transfer(&out, &body).await;
            assert_eq!(written.status, TransferStatus::Completed);
            let (read, came) = self.device.transfer(&bulk_in(len), &[]).await;
            assert_eq!(read.status, TransferStatus::Completed);
            assert!(came == body, "other data");
        };
        let result = timeout(LONG, there_and_back).await;
        result.expect("the neighbour stands still");
        start.elapsed()
    }
}

/// Two such devices of two VMs.
async fn pair(
    exporter: &Exporter,
    identity: &Identity,
    sims: [(Simulator, String); 2],
) -> [Loop; 2] {
    let [(first, at), (second, other)] = sims;
    [
        Loop::lend(first, &at, 1, exporter, identity).await,
        Loop::lend(second, &other, 2, exporter, identity).await,
    ]
}

fn simulators() -> [(Simulator, String); 2] {
    [(); 2].map(|()| {
        let mut simulator = Simulator::start(&["source-sink"]);
        let place = simulator.attach(1);
        (simulator, place)
    })
}

/// Defect 1. The process behind the first device is stopped: SET_INTERFACE, and whatever else is asked of the device,
/// does not end.
#[test]
#[ignore = "needs root, vhci_hcd and usbip-sim"]
fn a_device_that_does_not_answer_holds_no_other_up() {
    run(async {
        let sims = simulators();
        let pool = Pool::new();
        let exporter = pool.start_with_usb(ALLOW_ALL);
        let identity = pool.identity("host-a");
        let [mut stuck, mut neighbour] = pair(&exporter, &identity, sims).await;
        // They wait for data.
        let waiting: Vec<_> = (0..4)
            .map(|_| stuck.device.submit(&bulk_in(512), &[]))
            .collect();
        let get = control_transfer(GET_CONFIGURATION);
        assert_eq!(stuck.device.transfer(&get, &[]).await.1, [2]);
        let healthy = neighbour.round_trip(512).await;

        stuck.simulator.stop();
        // It ends what waits, which the kernel does not give back before the device's computer says so.
        let set = control_transfer(set_interface(0, 0));
        let request = stuck.device.submit(&set, &[]);
        stuck.device.client.cancel(waiting[0]);
        let late = stuck.device.submit(&bulk_in(512), &[]);
        stuck.device.flush().await;
        let mut worst = Duration::ZERO;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(7) {
            worst = worst.max(neighbour.round_trip(512).await);
            // Its backend is not silent meanwhile, or its connection would count as lost.
            stuck.device.client.say(Kind::Ping);
            stuck.device.flush().await;
        }
        println!("round trip {healthy:?}, at worst {worst:?} beside a device that does not answer");
        assert!(worst < NEIGHBOUR, "{worst:?}");
        // Nobody waits for it either to be given away.
        let mut control = exporter.control(&identity).await;
        assert!(matches!(
            control.ask(Request::Devices).await,
            Reply::Devices(_)
        ));

        stuck.simulator.go_on();
        let mut ended = Vec::new();
        for _ in 0..5 {
            let next = timeout(LONG, stuck.device.completion()).await;
            ended.push(next.expect("it does not come back").0.request);
        }
        ended.sort_unstable();
        assert_eq!(ended, [&waiting[..], &[request]].concat());
        let last = stuck.device.submit(
            &Transfer {
                endpoint: 0x01,
                ..bulk_in(4)
            },
            &[1, 2, 3, 4],
        );
        for _ in 0..2 {
            let (completion, _) = stuck.device.completion().await;
            assert_eq!(completion.status, TransferStatus::Completed);
            assert!([late, last].contains(&completion.request));
        }
    });
}

/// A device that does not answer is taken away: its lease ends at once, and the others live on.
#[test]
#[ignore = "needs root, vhci_hcd and usbip-sim"]
fn a_device_that_does_not_answer_is_released_without_waiting() {
    run(async {
        let sims = simulators();
        let pool = Pool::new();
        let exporter = pool.start_with_usb(ALLOW_ALL);
        let identity = pool.identity("host-a");
        let [mut stuck, mut neighbour] = pair(&exporter, &identity, sims).await;
        for _ in 0..4 {
            stuck.device.submit(&bulk_in(512), &[]);
        }
        let get = control_transfer(GET_CONFIGURATION);
        assert_eq!(stuck.device.transfer(&get, &[]).await.1, [2]);
        stuck.simulator.stop();
        let id: DeviceId = stuck.lease.device.id.clone();
        let mut control = exporter.control(&identity).await;
        let epoch = stuck.device.client.epoch();
        let released = timeout(NEIGHBOUR, control.release(id, vm(1), epoch)).await;
        assert_eq!(released.expect("releasing waits for it"), Reply::Done);
        for _ in 0..20 {
            assert!(neighbour.round_trip(512).await < NEIGHBOUR);
        }
        // Lent again it can be when it was given back.
        stuck.simulator.go_on();
        control
            .acquire(wanted(&stuck.lease.device.id.0, vm(3), 1))
            .await;
        neighbour.round_trip(65_536).await;
    });
}

/// Puts the kernel's limit back.
struct Limit(String);

impl Limit {
    fn set(megabytes: &str) -> Self {
        let before = fs::read_to_string(MEMORY).unwrap();
        fs::write(MEMORY, megabytes).unwrap();
        Self(before)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let _ = fs::write(MEMORY, self.0.trim());
    }
}

/// Defect 6. One device wants more memory than all may have, and nothing comes for it.
#[test]
#[ignore = "needs root, vhci_hcd and usbip-sim"]
fn memory_that_the_kernel_has_not_is_waited_for() {
    run(async {
        // Known to the exporter, or not: as if other programs had taken it.
        for is_known in [true, false] {
            let sims = simulators();
            let limit = is_known.then(|| Limit::set("1"));
            let pool = Pool::new();
            let exporter = pool.start_with_usb(ALLOW_ALL);
            let _limit = limit.unwrap_or_else(|| Limit::set("1"));
            let identity = pool.identity("host-a");
            let [mut greedy, mut neighbour] = pair(&exporter, &identity, sims).await;
            let waiting: Vec<_> = (0..20)
                .map(|_| greedy.device.submit(&bulk_in(65_536), &[]))
                .collect();
            greedy.device.flush().await;
            if is_known {
                for _ in 0..10 {
                    neighbour.round_trip(65_536).await;
                }
            }
            // Nobody has heard of it.
            let get = control_transfer(GET_CONFIGURATION);
            let (answer, body) = greedy.device.transfer(&get, &[]).await;
            assert_eq!((answer.status, body), (TransferStatus::Completed, vec![2]));
            for request in waiting.iter().rev() {
                greedy.device.client.cancel(*request);
            }
            for _ in &waiting {
                let (completion, _) = greedy.device.completion().await;
                assert_eq!(completion.status, TransferStatus::Cancelled);
            }
            // There is room again.
            greedy.round_trip(65_536).await;
            neighbour.round_trip(65_536).await;
        }
    });
}
