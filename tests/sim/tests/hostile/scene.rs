// SPDX-License-Identifier: GPL-3.0-or-later
//! A hostile guest and its neighbour.

use sim_scenarios::programs;
use sim_scenarios::rig::{Guest, GuestOptions, Rig, RigOptions};

use crate::frontend::RawFrontend;

/// Two guests on one host.
pub struct Scene {
    pub rig: Rig,
    pub neighbour: Guest,
    pub hostile: RawFrontend,
}

impl Scene {
    /// A guest at work on the disk, and beside it one that is up to no good.
    pub fn new() -> Self {
        Self::with(&RigOptions::default())
    }

    /// The same on this rig.
    pub fn with(options: &RigOptions) -> Self {
        programs::build().unwrap();
        let rig = Rig::start(options).unwrap();
        let mut neighbour = Guest::start(&rig, 0, &GuestOptions::new("neighbour")).unwrap();
        rig.attach_disk(&neighbour).unwrap();
        neighbour.wait_ready().unwrap();
        let mut hostile = RawFrontend::connect(&rig, 0, "hostile");
        hostile.wait_for_state(&["4"]);
        Self {
            rig,
            neighbour,
            hostile,
        }
    }

    /// The neighbour goes on as if nothing were.
    pub fn neighbour_is_well(&mut self) {
        self.neighbour.wait_commands(10).unwrap();
        assert!(self.rig.hosts[0].vusbd_runs());
    }

    /// Everything is put away, and the neighbour's account is right.
    pub fn end(mut self) {
        self.neighbour_is_well();
        let Self {
            rig,
            neighbour,
            hostile,
        } = self;
        let domid = hostile.domid;
        rig.hosts[0].xl.destroy(domid).unwrap();
        drop(hostile);
        rig.end_unnoticed(neighbour);
    }
}
