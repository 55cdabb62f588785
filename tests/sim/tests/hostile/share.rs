// SPDX-License-Identifier: GPL-3.0-or-later
//! The share of a processor that a hostile guest can make `vusbd` use.

use std::time::Duration;

use crate::beside::{Deed, HEAD, line, measure, scene};
use crate::scene::Scene;

/// The most of one processor that `vusbd` may spend on a guest that does harm, on its own thread
/// and on what all guests share, for others to keep four fifths of what they had even where dom0 has
/// one processor. In a build without optimisations that is several times what it is otherwise.
const MOST_OF_A_PROCESSOR: f64 = 0.2;

#[test]
fn a_hostile_guest_costs_little_of_a_processor() {
    let length = Duration::from_millis(1500);
    let Scene {
        rig,
        mut neighbour,
        hostile,
    } = scene();
    rig.hosts[0].xl.destroy(hostile.domid).unwrap();
    drop(hostile);
    let idle = measure(&rig, &mut neighbour, Deed::Idle, length);
    let busy = measure(&rig, &mut neighbour, Deed::Busy, length);
    println!("{HEAD}");
    println!("{}", line(Deed::Idle, idle, idle, busy));
    println!("{}", line(Deed::Busy, busy, idle, busy));
    let mut costly = Vec::new();
    for deed in Deed::HARM.into_iter().chain(Deed::ADMINISTRATOR) {
        let share = measure(&rig, &mut neighbour, deed, length);
        let line = line(deed, share, idle, busy);
        println!("{line}");
        assert!(share.urbs > 0.0, "the guest beside stands still\n{line}");
        // What dom0's own programs ask for is not limited. The threads' times are of the processor, so that a
        // busy machine makes them smaller only.
        if !Deed::ADMINISTRATOR.contains(&deed)
            && share.own + (share.main - idle.main) > MOST_OF_A_PROCESSOR
        {
            costly.push(line);
        }
    }
    assert!(costly.is_empty(), "{HEAD}\n{}", costly.join("\n"));
    rig.end_unnoticed(neighbour);
}
