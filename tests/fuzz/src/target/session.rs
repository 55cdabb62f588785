// SPDX-License-Identifier: GPL-3.0-or-later
//! Both ends of a session over connections that break anywhere: every transfer is carried out once
//! and completes once, in the order in which it completed.

use std::collections::{BTreeMap, VecDeque};

use session::Epoch;
use session::client::{self, Client};
use session::frame::{Transfer, TransferStatus, TransferType};
use session::open::How;
use session::server::{self, MAX_OPEN, Outcome, Server};

use crate::{Input, Target};

/// See the module's documentation.
pub const TARGET: Target = Target {
    name: "session",
    seeds,
    run,
};

fn seeds() -> Vec<Vec<u8>> {
    let honest = [0, 1, 0, 40, 2, 255, 3, 0, 4, 255, 5, 200];
    let broken = [0, 1, 2, 20, 6, 0, 2, 255, 3, 0, 4, 30, 6, 1, 4, 255, 5, 255];
    let claimed = [0, 1, 2, 255, 7, 0, 1, 2, 255, 3, 4, 255, 5, 255];
    let much: Vec<u8> = [0, 0, 0, 2, 255, 3, 0, 3, 0, 4, 255, 5, 255].repeat(20);
    vec![honest.to_vec(), broken.to_vec(), claimed.to_vec(), much]
}

/// The backend's side of a transfer.
#[derive(Clone, Copy)]
struct Wanted {
    transfer: Transfer,
    value: u8,
}

struct World {
    client: Client,
    server: Server,
    up: VecDeque<u8>,
    down: VecDeque<u8>,
    wanted: BTreeMap<u64, Wanted>,
    executing: Vec<(u64, u8)>,
    /// In the order of execution, for each epoch.
    handed_out: u64,
    completed: VecDeque<u64>,
    value: u8,
}

fn run(input: &mut Input<'_>) {
    let mut server = Server::new(Epoch(1));
    drop(server.claim(Epoch(2)));
    let mut world = World {
        client: Client::new(Epoch(2)),
        server,
        up: VecDeque::new(),
        down: VecDeque::new(),
        wanted: BTreeMap::new(),
        executing: Vec::new(),
        handed_out: 0,
        completed: VecDeque::new(),
        value: 0,
    };
    while !input.is_empty() {
        world.act(input);
        assert!(world.server.executing() <= MAX_OPEN);
        assert_eq!(world.server.executing(), world.executing.len());
        assert_eq!(world.client.outstanding(), world.wanted.len());
    }
    world.settle();
}

impl World {
    fn act(&mut self, input: &mut Input<'_>) {
        match input.below(9) {
            0 if self.client.has_room() => self.submit(input),
            1 => {
                if let Some(&request) = self.wanted.keys().nth(input.below(32)) {
                    self.client.cancel(request);
                }
            }
            2 => {
                let len = usize::from(input.byte()) * 8;
                self.send_up();
                self.receive_at_server(len, input);
            }
            3 => {
                let at = input.below(MAX_OPEN);
                self.execute(at, TransferStatus::Completed);
            }
            4 => {
                let len = usize::from(input.byte()) * 8;
                self.send_down(len);
            }
            5 => {
                let len = usize::from(input.byte()) * 8;
                self.receive_at_client(len, input);
            }
            6 => {
                self.cut();
                input.did(("cut", self.wanted.len().min(4), self.executing.len().min(4)));
                self.resume();
            }
            7 => self.claim(input),
            _ => self.client.acknowledge(),
        }
    }

    fn submit(&mut self, input: &mut Input<'_>) {
        let what = input.byte();
        self.value = self.value.wrapping_add(1);
        let mut transfer = Transfer {
            transfer_type: TransferType::Bulk,
            endpoint: if what & 1 == 0 { 0x81 } else { 2 },
            flags: 0,
            length: 2,
            interval: 0,
            setup: [0; 8],
        };
        if what & 15 == 15 {
            // SET_ADDRESS, which is not for the device.
            transfer.transfer_type = TransferType::Control;
            (transfer.endpoint, transfer.length) = (0, 0);
            transfer.setup = [0, 5, self.value & 127, 0, 0, 0, 0, 0];
        }
        let wanted = Wanted {
            transfer,
            value: self.value,
        };
        let request = self.client.submit(&wanted.transfer, |out| wanted.fill(out));
        self.wanted.insert(request.unwrap(), wanted);
    }

    fn send_up(&mut self) {
        self.up.extend(self.client.output().drain(..));
    }

    fn send_down(&mut self, len: usize) {
        let output = self.server.output();
        let len = len.min(output.len());
        self.down.extend(&output[..len]);
        self.server.sent(len);
    }

    fn receive_at_server(&mut self, len: usize, input: &mut Input<'_>) {
        let len = len.min(self.up.len());
        let bytes: Vec<u8> = self.up.iter().copied().take(len).collect();
        let mut taken = 0;
        while let Some((event, len)) = self
            .server
            .next_event(&bytes[taken..])
            .expect("an honest backend's frames")
        {
            taken += len;
            input.did(("server", std::mem::discriminant(&event)));
            match event {
                server::Event::Submit { request, body, .. } => {
                    assert_eq!(request, self.handed_out + 1, "once, and in order");
                    self.handed_out = request;
                    let value = body.first().copied().unwrap_or_default();
                    if let Some(wanted) = self.wanted.get(&request)
                        && wanted.transfer.submit_body_len() > 0
                    {
                        assert_eq!(value, wanted.value, "its own data");
                    }
                    self.executing.push((request, value));
                }
                server::Event::Save { request } => {
                    assert_eq!(request, self.handed_out + 1, "once, and in order");
                    self.handed_out = request;
                    self.executing.push((request, 0));
                }
                server::Event::Cancel { request } => {
                    let at = self.executing.iter().position(|e| e.0 == request).unwrap();
                    self.execute(at, TransferStatus::Cancelled);
                }
                _ => {}
            }
        }
        self.up.drain(..taken);
    }

    fn execute(&mut self, at: usize, status: TransferStatus) {
        if at >= self.executing.len() {
            return;
        }
        let (request, _) = self.executing.remove(at);
        let epoch = self.server.epoch();
        let answered = self
            .server
            .complete(epoch, request, Outcome::new(status, 2), |out| {
                out.extend([request as u8; 2]);
            });
        assert!(answered);
        self.completed.push_back(request);
    }

    fn receive_at_client(&mut self, len: usize, input: &mut Input<'_>) {
        let len = len.min(self.down.len());
        let bytes: Vec<u8> = self.down.iter().copied().take(len).collect();
        let mut taken = 0;
        while let Some((event, len)) = self
            .client
            .next_event(&bytes[taken..])
            .expect("an honest exporter's frames")
        {
            taken += len;
            let client::Event::Completed { completion, body } = event else {
                panic!("nothing else was sent");
            };
            input.did(("completed", completion.status, body.len()));
            let request = completion.request;
            assert_eq!(self.completed.pop_front(), Some(request), "in order");
            let wanted = self
                .wanted
                .remove(&request)
                .expect("it was wanted, and once");
            if wanted.transfer.is_in() {
                assert_eq!(body, [request as u8; 2], "its own data");
            }
        }
        self.down.drain(..taken);
    }

    /// What is on its way is lost.
    fn cut(&mut self) {
        self.client.lost();
        self.server.disconnected();
        self.up.clear();
        self.down.clear();
    }

    fn resume(&mut self) {
        let How::Resume {
            epoch,
            completions_received,
        } = self.client.resume()
        else {
            panic!("a client resumes");
        };
        assert_eq!(epoch, self.server.epoch());
        let received = self.server.resume(completions_received).unwrap();
        self.client.resumed(received).unwrap();
        let unsent: Vec<u64> = self.client.unsent(received).collect();
        for request in unsent {
            let wanted = self.wanted[&request];
            self.client
                .resend(request, &wanted.transfer, |out| wanted.fill(out))
                .unwrap();
        }
        self.client.resend_cancels();
    }

    /// Another backend takes over.
    fn claim(&mut self, input: &mut Input<'_>) {
        let old = self.server.epoch();
        let epoch = Epoch(old.0 + 1);
        let farewell = self.server.claim(epoch);
        // The old one still gets whole frames, and the word that it is fenced as the last.
        self.down.extend(farewell);
        let bytes: Vec<u8> = self.down.drain(..).collect();
        let (mut taken, mut fenced) = (0, false);
        while let Some((event, len)) = self.client.next_event(&bytes[taken..]).unwrap() {
            taken += len;
            fenced = event == client::Event::Fenced;
        }
        assert!(fenced && taken == bytes.len());
        for (request, _) in std::mem::take(&mut self.executing) {
            let outcome = Outcome::new(TransferStatus::Completed, 0);
            let late = self.server.complete(old, request, outcome, |_| ());
            assert!(!late, "nobody waits for what the old epoch did");
        }
        input.did("claim");
        self.client = Client::new(epoch);
        (self.handed_out, self.completed) = (0, VecDeque::new());
        self.wanted.clear();
        self.up.clear();
    }

    /// Without more faults everything completes.
    fn settle(&mut self) {
        let mut nothing = Input::new(&[]);
        self.cut();
        self.resume();
        for _ in 0..4 {
            self.send_up();
            self.receive_at_server(usize::MAX, &mut nothing);
            while !self.executing.is_empty() {
                self.execute(0, TransferStatus::Completed);
            }
            self.send_down(usize::MAX);
            self.receive_at_client(usize::MAX, &mut nothing);
            self.client.acknowledge();
        }
        assert!(self.wanted.is_empty(), "every transfer completes");
        assert!(self.up.is_empty() && self.down.is_empty());
    }
}

impl Wanted {
    fn fill(&self, out: &mut Vec<u8>) -> Result<(), ()> {
        out.resize(out.len() + self.transfer.submit_body_len(), self.value);
        Ok(())
    }
}
