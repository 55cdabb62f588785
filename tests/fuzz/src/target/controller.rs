// SPDX-License-Identifier: GPL-3.0-or-later
//! Requests of any shape against the port and URB machine: each is answered once, and nothing is
//! answered that was not asked.

use std::collections::BTreeMap;

use usbif::{BadRequest, DeviceAddress, PortNumber, Speed, UrbRequest, UrbResponse, UrbStatus};
use vusb_core::{Answers, Controller, PortState, Slot, UrbResult, Verdict};

use crate::{Input, Target};

/// See the module's documentation.
pub const TARGET: Target = Target {
    name: "controller",
    seeds,
    run,
};

/// The slots of the URB ring.
const SLOTS: usize = 16;
const PORTS: u8 = 4;

fn seeds() -> Vec<Vec<u8>> {
    // Plug, release, SET_ADDRESS 5, a transfer to it, its completion, a reset.
    let mut life = vec![0, 0, 0, 1, 0];
    life.extend(request(2, 1, 0, [0, 5, 5, 0, 0, 0, 0, 0]));
    life.extend(request(2, 1, 5, [0x80, 6, 0, 1, 0, 0, 0, 0]));
    life.extend([6, 0, 0]);
    life.extend(request(2, 1, 0, [0x80, 6, 0, 1, 0, 0, 0, 0]));
    life.extend([1, 0, 6, 0, 0]);
    vec![life]
}

/// The operation that takes a control request.
fn request(id: u16, port: u8, device: u8, setup: [u8; 8]) -> Vec<u8> {
    let mut bytes = vec![4, port, device, 2];
    bytes.extend(id.to_le_bytes());
    bytes.extend(setup);
    bytes
}

struct World {
    core: Controller,
    /// Ids of requests that were taken, and how often.
    asked: BTreeMap<u16, u32>,
    /// How many requests wait for an answer: at most the slots of the ring.
    unanswered: usize,
    number: u64,
    resetting: bool,
}

fn run(input: &mut Input<'_>) {
    let mut world = World {
        core: Controller::new(PORTS),
        asked: BTreeMap::new(),
        unanswered: 0,
        number: 0,
        resetting: false,
    };
    while !input.is_empty() {
        world.act(input);
        world.events(input);
    }
    // The end of a domain: nothing may be left.
    for port in world.core.ports() {
        world.unplug(port);
    }
    assert_eq!(world.unanswered, 0, "requests without an answer");
    assert!(world.core.is_idle());
}

impl World {
    fn act(&mut self, input: &mut Input<'_>) {
        let port = |input: &mut Input<'_>| PortNumber::new(1 + input.byte() % (PORTS + 1)).unwrap();
        match input.below(9) {
            0 => {
                let port = port(input);
                let speed = Speed::from_wire(1 + input.byte() % 3).unwrap();
                let carried = input.chance(64).then(|| PortState {
                    speed,
                    address: DeviceAddress::new(input.byte()),
                });
                let plugged = self.core.plug(port, speed, carried);
                input.did(("plug", plugged.is_ok(), carried.is_some()));
            }
            1 => {
                let port = port(input);
                if port.get() <= PORTS {
                    self.release(port);
                }
            }
            2 => {
                let port = port(input);
                if port.get() <= PORTS {
                    self.unplug(port);
                }
            }
            3 => {
                let port = port(input);
                if port.get() <= PORTS && self.core.port_state(port).speed != Speed::None {
                    self.core.replug(port);
                }
            }
            4 => self.take(shaped(input), input),
            5 => {
                let bytes = input.array();
                self.take(UrbRequest::decode(&bytes), input);
            }
            6 => {
                let slot = self.slots().nth(input.below(SLOTS));
                let status = [UrbStatus::OK, UrbStatus::STALL, UrbStatus::IOERROR];
                let status = status[input.below(3)];
                if let Some(slot) = slot
                    && self.core.urb(slot).is_some_and(|u| u.submitted.is_some())
                {
                    self.finish(slot, UrbResult::new(status, input.u32()));
                    input.did("completed");
                }
            }
            7 => {
                self.core.tell_all();
            }
            _ => {
                self.core.forget_requests();
                self.asked.clear();
                self.unanswered = 0;
            }
        }
    }

    fn take(&mut self, request: Result<UrbRequest, BadRequest>, input: &mut Input<'_>) {
        if self.unanswered >= SLOTS {
            // The ring would not have given it.
            return;
        }
        let id = request.as_ref().map_or_else(|bad| bad.id, |r| r.id);
        *self.asked.entry(id).or_default() += 1;
        self.unanswered += 1;
        let verdict = self.core.take(request);
        input.did((std::mem::discriminant(&verdict), self.unanswered));
        match verdict {
            Verdict::Answer(response) => self.answered(&response),
            Verdict::AnswerBoth(_, answers) => self.answer(answers),
            Verdict::Submit(slot) => self.submit(slot),
            Verdict::Hold(_) => {}
            Verdict::Reset(_) => self.resetting = true,
            Verdict::Cancel(slot) => assert!(self.core.urb(slot).unwrap().submitted.is_some()),
        }
    }

    fn submit(&mut self, slot: Slot) {
        self.number += 1;
        let urb = self.core.urb(slot).unwrap();
        assert!(urb.submitted.is_none(), "submitted twice");
        assert!(!self.core.is_held(urb.port), "submitted while held");
        self.core.submitted(slot, self.number);
        assert_eq!(
            self.core.by_number(urb_port(&self.core, slot), self.number),
            Some(slot)
        );
    }

    fn release(&mut self, port: PortNumber) {
        match self.core.is_reset_due(port) {
            true => self.core.reset_done(port),
            false => self.core.release(port),
        }
        for slot in self.core.held_requests(port) {
            self.submit(slot);
        }
    }

    fn unplug(&mut self, port: PortNumber) {
        self.core.unplug(port);
        let slots: Vec<Slot> = self.core.unanswered(port).collect();
        for slot in slots {
            self.finish(slot, UrbResult::failed(UrbStatus::NODEV));
        }
    }

    fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.core
            .ports()
            .flat_map(|port| self.core.unanswered(port))
    }

    fn finish(&mut self, slot: Slot, result: UrbResult) {
        if let Some(answers) = self.core.complete(slot, result) {
            self.answer(answers);
        }
        assert!(self.core.complete(slot, result).is_none(), "answered twice");
    }

    fn answer(&mut self, answers: Answers) {
        if let Some(unlink) = answers.unlink {
            self.answered(&unlink);
        }
        self.answered(&answers.urb);
    }

    fn answered(&mut self, response: &UrbResponse) {
        assert!(response.status.is_defined());
        let open = self.asked.get_mut(&response.id).expect("nobody asked");
        *open = open.checked_sub(1).expect("answered once more than asked");
        self.unanswered -= 1;
    }

    fn events(&mut self, input: &mut Input<'_>) {
        // At most a disconnect and a connect wait for each port.
        for _ in 0..2 * PORTS {
            if input.chance(128)
                && let Some(event) = self.core.next_event()
            {
                self.core.told(event);
                let now = self.core.port_state(event.port).speed;
                let last = self.core.next_event().is_none_or(|e| e.port != event.port);
                assert!(!last || now == event.speed, "what is told last is true");
            }
        }
    }
}

fn urb_port(core: &Controller, slot: Slot) -> PortNumber {
    core.urb(slot).unwrap().port
}

/// A request that is nearly right.
fn shaped(input: &mut Input<'_>) -> Result<UrbRequest, BadRequest> {
    use usbif::{Direction, Pipe, Segment, Setup, TransferType, UrbKind};
    let port = input.byte() & 7;
    let device = DeviceAddress::new(input.byte() & 0x7f).unwrap();
    let kind = input.below(5);
    let id = input.u16() & 0x1f;
    let (kind, transfer_type) = match kind {
        0 => (UrbKind::Bulk, TransferType::Bulk),
        1 => (
            UrbKind::Unlink {
                id: input.u16() & 0x1f,
            },
            TransferType::Bulk,
        ),
        3 => {
            let interval = input.u16();
            (UrbKind::Interrupt { interval }, TransferType::Interrupt)
        }
        4 => {
            let kind = UrbKind::Isochronous {
                interval: input.u16(),
                start_frame: input.u16(),
                packets: input.u16() & 0x1ff,
            };
            (kind, TransferType::Isochronous)
        }
        _ => {
            let setup = Setup(input.array());
            (UrbKind::Control { setup }, TransferType::Control)
        }
    };
    let direction = [Direction::In, Direction::Out][input.below(2)];
    let length = match kind {
        UrbKind::Control { setup } => setup.length() & 0xfff,
        _ => input.u16() & 0xfff,
    };
    let segments = [Segment {
        gref: 8,
        offset: 0,
        length,
    }];
    let pipe = Pipe::new(port, device, input.byte() & 15, direction, transfer_type);
    let pipe = match kind {
        UrbKind::Unlink { .. } => pipe.with_unlink(),
        _ => pipe,
    };
    let used = usize::from(length > 0);
    UrbRequest::new(id, pipe, 0, kind, &segments[..used])
}
