// SPDX-License-Identifier: GPL-3.0-or-later
//! What a guest gets beside one that means harm, in rounds of all deeds, so that what else the
//! machine does meets all of them. The last column but two says what `vusbd` spends on it.

#[path = "../tests/hostile/beside.rs"]
mod beside;
#[path = "../tests/hostile/frontend.rs"]
#[allow(dead_code)]
mod frontend;
#[path = "../tests/hostile/scene.rs"]
#[allow(dead_code)]
mod scene;

use std::time::Duration;

use beside::{Deed, HEAD, Share, line, measure};

const ROUNDS: usize = 5;
const LENGTH: Duration = Duration::from_secs(2);

fn median(shares: &[Share], of: impl Fn(&Share) -> f64) -> f64 {
    let mut values: Vec<f64> = shares.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() {
    let scene = beside::scene();
    let (rig, mut neighbour) = (scene.rig, scene.neighbour);
    rig.hosts[0]
        .xl
        .destroy(scene.hostile.domid)
        .expect("the domain");
    let deeds = [
        &[Deed::Idle, Deed::Busy],
        &Deed::HARM[..],
        &Deed::ADMINISTRATOR[..],
    ]
    .concat();
    let mut shares = vec![Vec::new(); deeds.len()];
    for _ in 0..ROUNDS {
        for (deed, shares) in deeds.iter().zip(&mut shares) {
            shares.push(measure(&rig, &mut neighbour, *deed, LENGTH));
        }
    }
    let shares: Vec<Share> = shares
        .iter()
        .map(|shares| Share {
            urbs: median(shares, |s| s.urbs),
            bytes: median(shares, |s| s.bytes),
            own: median(shares, |s| s.own),
            main: median(shares, |s| s.main),
            deeds: median(shares, |s| s.deeds),
        })
        .collect();
    println!("{HEAD}");
    for (deed, share) in deeds.iter().zip(&shares) {
        println!("{}", line(*deed, *share, shares[0], shares[1]));
    }
}
