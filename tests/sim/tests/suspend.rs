// SPDX-License-Identifier: GPL-3.0-or-later
//! Bulk and interrupt transfers without a pause, in both directions, through suspends that their
//! driver does not notice: each byte that the device gave or took is one that the driver got or sent.

use std::sync::{Arc, Mutex};

use anyhow::{Result, bail};
use frontend_shim::{BufferSlice, Completion, Device, Target, Urb, UrbHandle, UsbHost};
use sim_scenarios::guest::{Driver, Workload};
use sim_scenarios::random::Seed;
use sim_scenarios::scene::Scene;
use usbif::{Setup, UrbKind};
use xen_sim::SimGuest;

const PLACE: &str = "0-2";
const BULK_OUT: u8 = 0x01;
const BULK_IN: u8 = 0x81;
const INTERRUPT_OUT: u8 = 0x03;
/// URBs of each endpoint.
const URBS: usize = 3;
/// Bytes of a bulk URB.
const MOST: usize = 65_536;
const INTERRUPT_BYTES: usize = 64;

/// What went through, in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Moved {
    urbs: u64,
    received: u64,
    sent: u64,
    in_flight: usize,
}

struct Lane {
    endpoint: u8,
    kind: UrbKind,
    data: BufferSlice,
    in_flight: Option<UrbHandle>,
}

struct Pump {
    target: Target,
    lanes: Vec<Lane>,
    moved: Arc<Mutex<Moved>>,
}

impl Pump {
    fn open(host: &mut UsbHost<SimGuest>, device: &Device) -> Result<Self> {
        let interrupt = UrbKind::Interrupt { interval: 8 };
        let mut lanes = Vec::new();
        for (endpoint, kind, len, max_packet) in [
            (BULK_OUT, UrbKind::Bulk, MOST, 512),
            (BULK_IN, UrbKind::Bulk, MOST, 512),
            (INTERRUPT_OUT, interrupt, INTERRUPT_BYTES, 64),
        ] {
            let pattern: Vec<u8> = (0..len).map(|at| (at % max_packet % 63) as u8).collect();
            for _ in 0..URBS {
                let data = host.alloc_buffer(len)?.slice(0, len);
                if endpoint & 0x80 == 0 {
                    host.write_buffer(data.buffer, 0, &pattern)?;
                }
                lanes.push(Lane {
                    endpoint,
                    kind,
                    data,
                    in_flight: None,
                });
            }
        }
        Ok(Self {
            target: device.target,
            lanes,
            moved: Arc::default(),
        })
    }
}

impl Driver for Pump {
    fn submit(&mut self, host: &mut UsbHost<SimGuest>, busy: bool) -> Result<()> {
        let idle = |l: &&mut Lane| l.in_flight.is_none();
        for lane in self.lanes.iter_mut().filter(|_| busy).filter(idle) {
            lane.in_flight = Some(host.submit(&Urb {
                target: self.target,
                endpoint: lane.endpoint,
                kind: lane.kind,
                data: Some(lane.data),
                short_not_ok: true,
                tag: 0,
            })?);
            self.moved.lock().expect("no holder panics").in_flight += 1;
        }
        Ok(())
    }

    fn unlink(&mut self, host: &mut UsbHost<SimGuest>) {
        for urb in self.lanes.iter().rev().filter_map(|l| l.in_flight) {
            host.unlink(urb);
        }
    }

    fn completed(&mut self, _: &mut UsbHost<SimGuest>, completion: &Completion) -> Result<bool> {
        let mut lanes = self.lanes.iter_mut();
        let Some(lane) = lanes.find(|l| l.in_flight == Some(completion.urb)) else {
            return Ok(false);
        };
        lane.in_flight = None;
        if completion.result.is_err() || completion.actual_length != lane.data.len {
            bail!("endpoint {:02x}: {completion:?}", lane.endpoint);
        }
        let mut moved = self.moved.lock().expect("no holder panics");
        moved.urbs += 1;
        moved.in_flight -= 1;
        match lane.endpoint & 0x80 {
            0 => moved.sent += lane.data.len as u64,
            _ => moved.received += lane.data.len as u64,
        }
        Ok(true)
    }
}

#[test]
fn no_byte_is_lost_or_doubled_and_no_driver_notices() {
    let seed = Seed::new();
    let mut random = seed.random(1);
    let devices = "[[simulated]]\nkind = \"source-sink\"\npattern = \"mod63\"\n";
    let mut scene = Scene::start(devices).unwrap();
    let device = scene.plug(PLACE, 1).unwrap();
    // The one with interrupt endpoints.
    let setting = Setup::new(0x01, Setup::SET_INTERFACE, 2, 0, 0);
    assert_eq!(scene.control(device.target, setting).unwrap(), Ok(0));
    let pump = Pump::open(scene.kernel.host(), &device).unwrap();
    let moved = pump.moved.clone();
    let Scene {
        rig,
        mut domain,
        kernel,
        mut devices,
        ..
    } = scene;
    let workload = Workload::start(kernel, vec![Box::new(pump)]);
    let shared = workload.shared().clone();
    let mut travel = || -> Result<()> {
        for round in 0..8_u64 {
            let goal = moved.lock().unwrap().urbs + 1 + random.below(40);
            workload.wait_until("it went on", || moved.lock().unwrap().urbs >= goal)?;
            domain.travel(&rig, round % 4 == 3)?;
            workload.wait_until("the suspend was over", || shared.suspends() == round + 1)?;
        }
        shared.set_quiet(true);
        workload.wait_until("all was done", || moved.lock().unwrap().in_flight == 0)
    };
    let travelled = travel();
    let kernel = workload.finish();
    if let Err(e) = &travelled {
        let guest = kernel.as_ref().err().map(|e| format!("{e:#}"));
        panic!("{e:#}; guest: {guest:?}\n{}", rig.log_tails());
    }
    let mut kernel = kernel.unwrap();
    assert_eq!((shared.disconnects(), shared.cancelled()), (0, 2));
    let moved = *moved.lock().unwrap();
    let device = devices.counters(PLACE).unwrap();
    assert_eq!(
        (device["given"], device["taken"]),
        (moved.received, moved.sent)
    );
    let recalled = kernel.host().counters().recalled;
    assert!(recalled > 0, "no suspend came while anything was in flight");
    println!("{moved:?}, {recalled} taken back");
    domain.end(&rig, kernel).unwrap();
    assert_eq!(rig.stop().unwrap(), Vec::<String>::new());
}
