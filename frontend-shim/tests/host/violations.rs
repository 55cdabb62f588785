// SPDX-License-Identifier: GPL-3.0-or-later
//! Backends that break the protocol.

use crate::common::backend::Order;
use crate::common::disk::{BULK_IN, DiskDevice, INTERRUPT_IN};
use crate::*;

#[test]
fn a_response_ahead_of_the_requests_is_noticed() {
    let (mut rig, _device) = rig();
    rig.backend.order(Order::AnswerTwice);
    while !rig.host.front().is_dead() {
        rig.host.wait(LONG).unwrap();
    }
    assert!(matches!(
        rig.violations.lock().unwrap()[..],
        [Violation::RingCorrupt(_)]
    ));
    assert!(matches!(
        rig.host.wait_for_device(port(4), LONG),
        Err(HostError::Submit(SubmitError::Dead))
    ));
}

#[test]
fn an_answer_to_an_id_that_is_not_in_use_is_noticed() {
    let (mut rig, device) = rig();
    let host = &mut rig.host;
    let buffer = host.alloc_buffer(4096).unwrap();
    rig.backend.order(Order::Hold);
    host.submit(&bulk(&device, BULK_IN, buffer.slice(0, 512), 0))
        .unwrap();
    host.step().unwrap();
    // Only then: the ring lets it answer as many as it has read.
    let interrupt = Urb {
        target: device.target,
        endpoint: INTERRUPT_IN,
        kind: UrbKind::Interrupt { interval: 4 },
        data: Some(buffer.slice(0, 8)),
        short_not_ok: false,
        tag: 1,
    };
    host.submit(&interrupt).unwrap();
    host.control(
        device.target,
        Setup::new(0x02, Setup::CLEAR_FEATURE, 0, 0x81, 0),
        ControlData::None,
        LONG,
    )
    .unwrap();
    rig.backend.order(Order::AnswerStale(13));
    while !host.front().is_dead() {
        host.wait(LONG).unwrap();
    }
    assert_eq!(*rig.violations.lock().unwrap(), [Violation::UnknownId(13)]);
}

#[test]
fn a_grant_that_is_still_mapped_after_the_answer_is_noticed() {
    let mut rig = rig_with(DiskDevice::new(), true);
    let device = plug_in(&mut rig);
    rig.backend.order(Order::KeepMapping);
    let mut descriptor = [0; 18];
    rig.host
        .get_descriptor(device.target, 0x0100, &mut descriptor)
        .unwrap();
    rig.host.step().unwrap();
    assert!(rig.host.front().is_dead());
    assert_eq!(*rig.violations.lock().unwrap(), [Violation::GrantInUse]);
}
