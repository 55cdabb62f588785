// SPDX-License-Identifier: GPL-3.0-or-later
//! What a guest gets beside one that means harm.
//!
//! A hostile guest's own processor is in the simulator one of this machine's, which a guest's on Xen
//! is not. So what a guest gets is compared twice: with an idle one beside it, and with one
//! that only keeps a processor busy. And what does not depend on how many processors there are, or
//! what else they do: how much of one `vusbd` spends on the hostile guest.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sim_scenarios::random::Random;
use sim_scenarios::rig::{EXPORTER, Guest, Rig, RigOptions};

use crate::frontend::{CONTROL, IN, Raw, RawFrontend, SLOT};
use crate::scene::Scene;

/// A device for the hostile guest.
const DEVICE: &str = "[[simulated]]\nkind = \"source-sink\"\n";
/// How long harm is done before anything is measured: what is allowed in a burst is used up.
const WARM_UP: Duration = Duration::from_millis(500);
/// `vusbd`'s thread for all that is not a controller's (`comm` has 15 bytes).
const MAIN_THREAD: &str = "vusbd-sim";

/// What the guest beside is up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Nothing.
    Idle,
    /// It computes.
    Busy,
    /// Requests to a port that is not there, 16 at a time, and every answer is signalled.
    Flood,
    /// The same, and answers are never looked at.
    NeverReads,
    /// Events with nothing on the ring.
    EmptyEvents,
    /// Anything in the slots, with a producer index that moves on.
    Scribbles,
    /// Indices that cannot be, and a new connection each time.
    IndexJumps,
    /// New connections.
    Reconnects,
    /// Transfers from its own device into pages that are revoked meanwhile.
    Revokes,
    /// Nothing; but an administrator runs two commands for it, again and again, that change nothing.
    Asked,
    /// Its device is attached and detached without pause: two commands of the administrator as well.
    Replugs,
}

impl Deed {
    /// What harms.
    pub const HARM: [Self; 7] = [
        Self::Flood,
        Self::NeverReads,
        Self::EmptyEvents,
        Self::Scribbles,
        Self::IndexJumps,
        Self::Reconnects,
        Self::Revokes,
    ];

    /// What no guest can do: programs of dom0, as many as it has a processor for. What they take is to be told
    /// from what `vusbd` does for them.
    pub const ADMINISTRATOR: [Self; 2] = [Self::Asked, Self::Replugs];

    /// Does it again and again until `stop`; how often.
    fn run(self, rig: &Rig, hostile: &mut RawFrontend, stop: &AtomicBool) -> u64 {
        let mut random = Random::new(11);
        let nowhere = Raw {
            id: 1,
            pipe: CONTROL | IN | 3,
            ..Raw::default()
        };
        let nowhere = vec![nowhere; 16];
        let mut times = 0;
        while !stop.load(Ordering::Relaxed) {
            match self {
                Self::Idle => std::thread::sleep(Duration::from_millis(5)),
                Self::Busy => {
                    std::hint::black_box(random.next_u64());
                }
                Self::Flood => {
                    hostile.push(&nowhere);
                    while hostile.skip_answers() > 0 && !stop.load(Ordering::Relaxed) {
                        hostile.ask_for_event();
                        std::hint::spin_loop();
                    }
                }
                Self::NeverReads => match hostile.skip_answers() {
                    0 => hostile.push(&nowhere),
                    _ => hostile.notify(),
                },
                Self::EmptyEvents => hostile.notify(),
                Self::Scribbles => {
                    let mut bytes = [0; 8];
                    random.fill(&mut bytes);
                    hostile.scribble(64 + random.next_u64() as usize % (16 * SLOT - 8), &bytes);
                    if hostile.skip_answers() == 0 {
                        hostile.push_unwritten(16);
                    }
                }
                Self::IndexJumps => {
                    hostile.show(random.next_u64() as u32);
                    hostile.reconnect_blindly();
                }
                Self::Reconnects => hostile.reconnect_blindly(),
                Self::Revokes => {
                    let (page, gref) = hostile.page();
                    hostile.push(&[Raw::descriptor(gref)]);
                    hostile.revoke(page);
                    while hostile.skip_answers() > 0 && !stop.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                }
                Self::Asked => {
                    rig.xl_vusb(0, &["status"]).unwrap();
                    rig.xl_vusb(0, &["status"]).unwrap();
                }
                Self::Replugs => {
                    rig.xl_vusb(0, &["detach", "hostile", "1"]).unwrap();
                    attach(rig);
                }
            }
            times += 1;
        }
        times
    }
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Idle => "idle",
            Self::Busy => "computes",
            Self::Flood => "floods",
            Self::NeverReads => "never reads",
            Self::EmptyEvents => "empty events",
            Self::Scribbles => "scribbles",
            Self::IndexJumps => "index jumps",
            Self::Reconnects => "reconnects",
            Self::Revokes => "revokes grants",
            Self::Asked => "is asked about",
            Self::Replugs => "is replugged",
        })
    }
}

fn attach(rig: &Rig) {
    let device = format!("{EXPORTER}/0-2");
    rig.xl_vusb(0, &["attach", "hostile", &device]).unwrap();
}

/// What was measured while a deed was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Share {
    /// URBs of the guest at work, per second.
    pub urbs: f64,
    /// Its bytes, read and written, per second.
    pub bytes: f64,
    /// The part of one processor that `vusbd` used on the other guest's controller.
    pub own: f64,
    /// The same, on what is not a controller's.
    pub main: f64,
    /// The deed, per second.
    pub deeds: f64,
}

/// Does a deed in a domain of its own for so long, and measures.
pub fn measure(rig: &Rig, neighbour: &mut Guest, deed: Deed, length: Duration) -> Share {
    let mut hostile = RawFrontend::connect(rig, 0, "hostile");
    hostile.wait_for_state(&["4"]);
    if matches!(deed, Deed::Revokes | Deed::Asked | Deed::Replugs) {
        attach(rig);
    }
    let domid = hostile.domid;
    let stop = AtomicBool::new(false);
    let share = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let started = Instant::now();
            let times = deed.run(rig, &mut hostile, &stop);
            times as f64 / started.elapsed().as_secs_f64()
        });
        std::thread::sleep(WARM_UP);
        let before = (neighbour.report().unwrap(), times(rig), Instant::now());
        std::thread::sleep(length);
        let after = (neighbour.report().unwrap(), times(rig), Instant::now());
        stop.store(true, Ordering::Relaxed);
        let deeds = worker.join().expect("the hostile guest's thread");
        let spent = (after.2 - before.2).as_secs_f64();
        let used = |thread: &str| {
            let at = |times: &Times| times.get(thread).copied().unwrap_or_default();
            at(&after.1).saturating_sub(at(&before.1)).as_secs_f64() / spent
        };
        let moved = |r: &sim_scenarios::guest::Report| r.bytes_read + r.bytes_written;
        Share {
            urbs: (after.0.urbs - before.0.urbs) as f64 / spent,
            bytes: (moved(&after.0) - moved(&before.0)) as f64 / spent,
            own: used(&format!("vusb-{domid}-0")),
            main: used(MAIN_THREAD),
            deeds,
        }
    });
    rig.hosts[0].xl.destroy(domid).unwrap();
    share
}

type Times = std::collections::BTreeMap<String, Duration>;

fn times(rig: &Rig) -> Times {
    rig.hosts[0].vusbd_thread_times().unwrap()
}

/// A rig with a device for the hostile guest, and a guest at work on the disk.
pub fn scene() -> Scene {
    Scene::with(&RigOptions {
        devices: DEVICE.into(),
        ..RigOptions::default()
    })
}

/// The head of [`line`]'s table.
pub const HEAD: &str =
    "beside one that  URB/s  MiB/s  of idle  of computes  its thread  main thread  deeds/s";

/// A line of a table.
pub fn line(deed: Deed, share: Share, idle: Share, busy: Share) -> String {
    format!(
        "{deed:<15} {:>6.0} {:>6.2} {:>7.0}% {:>11.0}% {:>10.1}% {:>11.1}% {:>8.0}",
        share.urbs,
        share.bytes / f64::from(1 << 20),
        100.0 * share.urbs / idle.urbs,
        100.0 * share.urbs / busy.urbs,
        100.0 * share.own,
        100.0 * share.main,
        share.deeds,
    )
}
