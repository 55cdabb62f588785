// SPDX-License-Identifier: GPL-3.0-or-later
//! Devices that never pause, and a guest that is migrated meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use frontend_shim::ResumeMode;
use sim_scenarios::guest::{
    Keyboard, Player, Recorder, Serial, Shared, Typed, UnlinkedData, Workload,
};
use sim_scenarios::random::{Random, Seed};
use sim_scenarios::rig::{Devices, Proxy, RigOptions};
use sim_scenarios::scene::Scene;

const DEVICES: &str = "[[simulated]]\nkind = \"keyboard\"\n\
                       [[simulated]]\nkind = \"serial\"\n\
                       [[simulated]]\nkind = \"audio\"\nclock = \"manual\"\n";
const KEYBOARD: &str = "0-2";
const AUDIO: &str = "0-4";
const PLAYBACK: u8 = 0x01;
const RECORDING: u8 = 0x82;
/// As Linux's drivers. What an answer brings that crosses with the unlink of its URB can be lost so;
/// nothing else may be.
const UNLINKED: UnlinkedData = UnlinkedData::Dropped;
/// Time on the audio device's bus that passes in one blackout.
const BLACKOUT_STEPS: u32 = 20;

/// Keys that are typed and were not read.
const MOST_WAITING: usize = 200;

/// How long the network is away.
const AWAY: Duration = Duration::from_secs(3);

/// What goes on outside of the guest: somebody types, and time passes on the headset's bus. While
/// the guest runs, time passes only as far as URBs are queued for it, so that no machine is too slow
/// for the streams; while the guest is on its way through a suspend, time does not wait for it.
struct World {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<u8>>>,
}

impl World {
    fn start(
        mut devices: Devices,
        shared: Arc<Shared>,
        arrived: Arc<Mutex<Typed>>,
        mut random: Random,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut typed = Vec::new();
            let mut steps = 0;
            while !stopped.load(Ordering::SeqCst) {
                // A keyboard has a buffer, too.
                let waiting = {
                    let arrived = arrived.lock().expect("no holder panics");
                    let over = arrived.keys.len() + arrived.dropped as usize;
                    typed.len().saturating_sub(over)
                };
                if random.below(3) == 0 && waiting < MOST_WAITING {
                    // A, B, C … one after the other.
                    let key = 4 + (typed.len() % 26) as u8;
                    devices.tell(KEYBOARD, &format!("stroke {key:02x}"))?;
                    typed.push(key);
                }
                if shared.is_blackout() {
                    if steps < BLACKOUT_STEPS {
                        steps += 1;
                        devices.tell(AUDIO, "advance 1000")?;
                    }
                } else {
                    steps = 0;
                    let queued = devices.waiting(AUDIO, RECORDING)?;
                    if queued.min(devices.waiting(AUDIO, PLAYBACK)?) >= 2 {
                        // As long as one URB.
                        devices.tell(AUDIO, "advance 16000")?;
                    }
                }
                std::thread::sleep(Duration::from_micros(500 + random.below(3000)));
            }
            Ok(typed)
        });
        Self { stop, thread }
    }

    /// Ends it. What was typed.
    fn stop(self) -> Result<Vec<u8>> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("it does not panic")
    }
}

/// With our frontend nothing is lost: what drivers do not take back is not lost with it.
#[test]
fn a_keyboard_a_serial_line_and_a_headset_travel_along() {
    travel_along(ResumeMode::Recall, Scene::start(DEVICES).unwrap(), None);
}

/// The network is away while the guest is being suspended, for less than it takes to give up what is
/// recalled: that is answered when the network is back, and nothing of it is lost or done again.
#[test]
fn they_travel_along_while_the_network_is_away() {
    let mut options = RigOptions {
        devices: DEVICES.to_owned(),
        ..RigOptions::default()
    };
    let network = options.cuttable().unwrap();
    let scene = Scene::with(&options).unwrap();
    travel_along(ResumeMode::Recall, scene, Some(&network));
}

/// With the resume callback alone, what comes with an unlinked URB is.
#[test]
fn they_travel_along_with_a_resume_callback() {
    let scene = Scene::start_as(DEVICES, ResumeMode::Callback).unwrap();
    travel_along(ResumeMode::Callback, scene, None);
}

/// With a proxy the network is away in every suspend.
fn travel_along(mode: ResumeMode, mut scene: Scene, proxy: Option<&Proxy>) {
    let seed = Seed::new();
    let keyboard = scene.plug(KEYBOARD, 1).unwrap();
    let serial = scene.plug("0-3", 2).unwrap();
    let audio = scene.plug(AUDIO, 3).unwrap();
    let host = scene.kernel.host();
    let keyboard = Keyboard::open(host, &keyboard, UNLINKED).unwrap();
    let serial = Serial::open(host, &serial, seed.random(5).next_u64(), UNLINKED).unwrap();
    let recorder = Recorder::open(host, &audio).unwrap();
    let player = Player::open(host, &audio).unwrap();
    let (typed, streamed) = (keyboard.typed(), serial.streamed());
    let (recorded, played) = (recorder.recorded(), player.played());
    let Scene {
        rig,
        mut domain,
        kernel,
        mut devices,
        ..
    } = scene;
    let workload = Workload::start(
        kernel,
        vec![
            Box::new(keyboard),
            Box::new(serial),
            Box::new(recorder),
            Box::new(player),
        ],
    );
    let shared = workload.shared().clone();
    let world = World::start(
        rig.exporter.devices().unwrap(),
        shared.clone(),
        typed.clone(),
        seed.random(6),
    );

    let progress = |urbs: u64| {
        let goal = (
            recorded.lock().unwrap().urbs + urbs,
            played.lock().unwrap().urbs + urbs,
            streamed.lock().unwrap().received + 2000,
            typed.lock().unwrap().keys.len() + 5,
        );
        workload.wait_until("all devices went on", || {
            recorded.lock().unwrap().urbs >= goal.0
                && played.lock().unwrap().urbs >= goal.1
                && streamed.lock().unwrap().received >= goal.2
                && typed.lock().unwrap().keys.len() >= goal.3
        })
    };
    let mut random = seed.random(7);
    let mut travel = || -> Result<()> {
        for round in 0..8_u64 {
            progress(1 + random.below(5))?;
            if round % 3 == 1 {
                rig.hosts[domain.host].restart_vusbd()?;
                progress(1 + random.below(5))?;
            }
            std::thread::scope(|scope| {
                if let Some(proxy) = proxy {
                    proxy.take_down();
                    scope.spawn(|| {
                        std::thread::sleep(AWAY);
                        proxy.set_down(false);
                    });
                }
                domain.travel(&rig, round % 4 == 3)
            })?;
            workload.wait_until("the suspend was over", || shared.suspends() == round + 1)?;
        }
        progress(5)
    };
    let travelled = travel();
    // When the guest has ended, the world goes on for a moment, to a keyboard that nobody reads.
    let (keys, typed_all) = match world.stop() {
        Ok(keys) => (keys, Ok(())),
        Err(e) => (Vec::new(), Err(e)),
    };
    // What goes on outside comes first: without it nothing goes on inside.
    let settled = typed_all.and(travelled).and_then(|()| {
        let so_far = || typed.lock().unwrap().keys.len() as u64;
        workload.wait_while("every key had arrived", so_far, || {
            let typed = typed.lock().unwrap();
            typed.keys.last() == keys.last()
                && typed.keys.len() + typed.dropped as usize >= keys.len()
        })?;
        shared.set_quiet(true);
        let so_far = || streamed.lock().unwrap().received;
        workload.wait_while("every byte had come back", so_far, || {
            let streamed = streamed.lock().unwrap();
            streamed.received >= streamed.sent && streamed.sent > 0
        })
    });
    // At the end drivers take everything back themselves, and with it what just comes.
    let dropped = typed.lock().unwrap().dropped + streamed.lock().unwrap().dropped;
    let kernel = workload.finish();
    if let Err(e) = &settled {
        let guest = kernel.as_ref().err().map(|e| format!("{e:#}"));
        panic!(
            "{e:#}; guest: {guest:?}; {:?} {:?} {} of {} keys\n{}",
            streamed.lock().unwrap(),
            recorded.lock().unwrap(),
            typed.lock().unwrap().keys.len(),
            keys.len(),
            rig.log_tails()
        );
    }
    let kernel = kernel.unwrap();
    assert_eq!((shared.disconnects(), shared.cancelled()), (0, 2));

    let typed = typed.lock().unwrap();
    let mut all = keys.iter();
    assert!(
        typed.keys.iter().all(|key| all.any(|k| k == key)),
        "doubled or out of order: {:?}",
        typed.keys
    );
    let lost_keys = keys.len() - typed.keys.len();
    assert!(lost_keys as u64 <= typed.dropped, "{lost_keys} keys lost");

    let recorded = recorded.lock().unwrap();
    let frames = recorded.frames;
    assert_eq!((frames.doubled, frames.malformed, frames.silent), (0, 0, 0));
    assert_eq!(
        frames.dropped, recorded.dropped_in_blackouts,
        "{recorded:?}"
    );
    assert_eq!(
        (frames.started, recorded.gaps, recorded.failed_packets),
        (1, 0, 0)
    );
    assert!(frames.dropped > 0, "no time passed in the blackouts");

    let played = played.lock().unwrap();
    assert_eq!(played.gaps, 0);
    let heard = devices.counters(AUDIO).unwrap();
    assert_eq!(heard["good"], played.frames, "{heard:?}");
    for fault in ["dropped", "doubled", "malformed", "silent"] {
        assert_eq!(heard[fault], 0, "{fault}: {heard:?}");
    }
    let streamed = streamed.lock().unwrap();
    assert!(streamed.lost <= streamed.dropped, "{streamed:?}");
    if mode.is_unnoticed() {
        assert_eq!(
            (lost_keys, streamed.lost, dropped),
            (0, 0, 0),
            "{streamed:?}"
        );
    }
    println!(
        "{} keys and {lost_keys} lost, {} bytes and {} lost, {} frames recorded and {} dropped in blackouts, {} played",
        keys.len(),
        streamed.received,
        streamed.lost,
        frames.good,
        frames.dropped,
        played.frames
    );
    domain.end(&rig, kernel).unwrap();
    assert_eq!(rig.stop().unwrap(), Vec::<String>::new());
}
