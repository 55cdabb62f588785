// SPDX-License-Identifier: GPL-3.0-or-later
//! What each device is there for, done by a machine that has it on a bus: a guest, or for
//! comparison the exporter machine itself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::peer::{CARD_ATR, Peer};
pub use super::score::Score;
use super::typist::{Input, Typist};
use super::{Bench, Kind, Plugged, User, audio, served};
use crate::traffic::Tally;
use anyhow::{Result, bail};

/// Blocks that a disk's short job writes and reads.
const BLOCKS: u64 = 512;
/// Keys and clicks of a short job.
const STROKES: u64 = 52;
/// Of audio of a short job; the headset's bus is slow.
const PLAY_TIME: Duration = Duration::from_secs(4);
const HEADSET_TIME: Duration = Duration::from_secs(20);
/// Of the speaker's stream: an emulator runs in bursts.
const SPEAKER_BUFFER_MS: u32 = 500;

/// A job that is being done until it is told to stop.
pub enum Job {
    /// Keys or clicks by QEMU's monitor.
    Typing(Typist, &'static str),
    /// Keys from a gadget.
    GadgetTyping,
    /// Records through QEMU's serial adapter.
    Line(Peer),
    /// Records through a gadget.
    GadgetLine,
    /// Commands to a card.
    Card(Peer),
    /// Audio out to QEMU's recording, which had this many bytes.
    Playing(usize),
    /// Audio out and in; what the device had counted before.
    Headset(BTreeMap<String, u64>),
}

/// How often something is sent in a job.
const INTERVAL: Duration = Duration::from_millis(150);

impl Job {
    /// Begin; disks have no such job, they have a file system with a writer.
    pub fn start(bench: &Bench, plugged: &Plugged, user: &User) -> Result<Self> {
        Self::start_every(bench, plugged, user, INTERVAL)
    }

    /// The same with this much time between two keys, clicks or records.
    pub fn start_every(
        bench: &Bench,
        plugged: &Plugged,
        user: &User,
        interval: Duration,
    ) -> Result<Self> {
        let name = plugged.kind.name();
        let socket = bench.socket(name);
        let qmp: PathBuf = bench.machine.monitor(bench.run_directory());
        user.agent.must(&format!("rm -f /run/{name}.json"))?;
        let job = match plugged.kind {
            Kind::Keyboard | Kind::Tablet | Kind::HidGadget => {
                let event = user.node("/dev/input", "event*")?;
                let counting = if plugged.kind == Kind::Tablet {
                    "touches"
                } else {
                    "keys"
                };
                user.background(
                    &format!("lab-usb {counting} {event} /run/{name}.json"),
                    name,
                )?;
                user.started(name)?;
                match plugged.kind {
                    Kind::Keyboard => {
                        let typist = Typist::start(&qmp, Input::Letters, interval, u64::MAX);
                        Self::Typing(typist, "keys")
                    }
                    Kind::Tablet => {
                        let typist = Typist::start(&qmp, Input::Clicks, interval, u64::MAX);
                        Self::Typing(typist, "clicks")
                    }
                    _ => {
                        bench.agent.must(&format!(
                            "setsid lab-usb type /dev/hidg0 0 1000000 {} </dev/null >/run/type.out 2>&1 & echo $! > /run/type.pid",
                            interval.as_millis()
                        ))?;
                        Self::GadgetTyping
                    }
                }
            }
            Kind::Serial => {
                let tty = user.node("/dev", "ttyUSB*")?;
                let peer = Peer::line(&socket, interval)?;
                user.background(
                    &format!(
                        "lab-usb stream {tty} /run/{name}.json {}",
                        interval.as_millis()
                    ),
                    name,
                )?;
                Self::Line(peer)
            }
            Kind::AcmGadget | Kind::PrinterGadget => {
                let (near, far_node) = match plugged.kind {
                    Kind::AcmGadget => (user.node("/dev", "ttyACM*")?, "/dev/ttyGS0"),
                    _ => (user.node("/dev/usb", "lp[0-9]*")?, "/dev/g_printer0"),
                };
                let command = |node: &str, report: &str| {
                    format!(
                        "lab-usb stream {node} /run/{report}.json {} wait",
                        interval.as_millis()
                    )
                };
                let (far, end) = (bench.user(""), far_end(plugged.kind));
                far.agent.must(&format!("rm -f /run/{end}.json"))?;
                far.background(&command(far_node, &end), &end)?;
                far.started(&end)?;
                user.background(&command(&near, name), name)?;
                user.started(name)?;
                far.agent.must(&format!("touch /run/{end}.json.go"))?;
                user.agent.must(&format!("touch /run/{name}.json.go"))?;
                Self::GadgetLine
            }
            Kind::Reader => {
                let peer = Peer::card(&socket)?;
                std::thread::sleep(Duration::from_millis(500));
                let node = user.usbfs()?;
                user.background(&format!("lab-usb card {node} /run/{name}.json"), name)?;
                Self::Card(peer)
            }
            Kind::Speaker => {
                let before = bench.played()?.len();
                let pcm = user.node("/dev/snd", "pcmC*p")?;
                user.background(
                    &format!(
                        "lab-usb play {pcm} {} /run/{name}.json {SPEAKER_BUFFER_MS}",
                        control(&pcm)
                    ),
                    name,
                )?;
                Self::Playing(before)
            }
            Kind::Headset => {
                let before = served::stats(&bench.agent, 1)?;
                let playback = user.node("/dev/snd", "pcmC*p")?;
                let capture = user.node("/dev/snd", "pcmC*c")?;
                let buffer_ms = bench.headset_buffer_ms();
                user.background(
                    &format!(
                        "lab-usb play {playback} {} /run/{name}.json {buffer_ms}",
                        control(&playback)
                    ),
                    name,
                )?;
                user.background(
                    &format!("lab-usb record {capture} /run/{name}-in.json {buffer_ms}"),
                    "record",
                )?;
                Self::Headset(before)
            }
            _ => bail!("{name} has no such job"),
        };
        user.started(name)?;
        Ok(job)
    }

    /// What has arrived at the other end so far; nothing where that end does not say.
    pub fn far(&self) -> Tally {
        match self {
            Self::Line(peer) | Self::Card(peer) => peer.tally(),
            _ => Tally::default(),
        }
    }

    /// Stop, wait for what is on its way, count.
    pub fn finish(self, bench: &Bench, plugged: &Plugged, user: &User) -> Result<Score> {
        let name = plugged.kind.name();
        match self {
            Self::Typing(typist, unit) => {
                let sent = typist.finish(true)?;
                std::thread::sleep(Duration::from_secs(3));
                Ok(Score::one_way(unit, sent, &user.stopped(name)?))
            }
            Self::GadgetTyping => {
                // It prints only at its end; it is stopped by taking its signal for one.
                bench.agent.must("kill $(cat /run/type.pid) || true")?;
                std::thread::sleep(Duration::from_secs(3));
                let tally = user.stopped(name)?;
                // What was sent is what was not lost and what was: gaps are in the tally.
                Ok(Score {
                    sent: tally.received + tally.lost,
                    lost: tally.lost,
                    ..Score::one_way("keys", tally.received, &tally)
                })
            }
            Self::Line(peer) => {
                peer.quiet();
                let near = user.stopped(name)?;
                let far = peer.finish()?;
                Ok(Score::one_way("records", near.sent, &far)
                    .and(Score::one_way("records", far.sent, &near)))
            }
            Self::GadgetLine => {
                let (far, end) = (bench.user(""), far_end(plugged.kind));
                // Both stop sending, then both linger.
                far.agent.must(&format!("touch /run/{end}.json.stop"))?;
                let near = user.stopped(name)?;
                let far = far.stopped(&end)?;
                Ok(Score::one_way("records", near.sent, &far)
                    .and(Score::one_way("records", far.sent, &near)))
            }
            Self::Card(peer) => {
                let near = user.stopped(name)?;
                let far = peer.finish()?;
                let mut score = Score::one_way("commands", near.sent, &near);
                score.doubled += far.doubled;
                Ok(score)
            }
            Self::Playing(before) => {
                let near = user.stopped(name)?;
                std::thread::sleep(Duration::from_secs(2));
                let played = bench.played()?;
                Ok(audio::speaker(&played[before.min(played.len())..], near))
            }
            Self::Headset(before) => {
                let capture = user.stopped("headset-in")?;
                let near = user.stopped(name)?;
                std::thread::sleep(Duration::from_secs(2));
                let after = served::stats(&bench.agent, 1)?;
                Ok(audio::headset(&before, &after, near, capture))
            }
        }
    }
}

/// The report of a gadget's own end of a line.
fn far_end(kind: Kind) -> String {
    format!("{}-far", kind.name())
}

/// The control device of a card from one of its PCM devices.
fn control(pcm: &str) -> String {
    let card: String = pcm
        .trim_start_matches("/dev/snd/pcmC")
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    format!("/dev/snd/controlC{card}")
}

/// A device's job done once, for some seconds; what it did, in words, and its score.
pub fn once(bench: &Bench, plugged: &Plugged, user: &User) -> Result<(String, Score)> {
    match plugged.kind {
        kind if kind.is_disk() => {
            let disk = user.node("/dev", "sd?")?;
            user.wait_for_medium(&disk)?;
            let tally: Tally = user.run(&format!("lab-usb blocks {disk} {BLOCKS} 7"))?;
            let score = Score::one_way("blocks", tally.sent, &tally);
            Ok((format!("{disk} written and read"), score))
        }
        _ => {
            let job = Job::start(bench, plugged, user)?;
            let length = match plugged.kind {
                Kind::Speaker => PLAY_TIME,
                Kind::Headset => HEADSET_TIME,
                _ => INTERVAL * STROKES as u32,
            };
            std::thread::sleep(length);
            let score = job.finish(bench, plugged, user)?;
            let what = match plugged.kind {
                Kind::Keyboard | Kind::HidGadget => "keys typed, read from evdev".to_owned(),
                Kind::Tablet => "clicks at numbered places, read from evdev".to_owned(),
                Kind::Serial | Kind::AcmGadget | Kind::PrinterGadget => {
                    "numbered records both ways".to_owned()
                }
                Kind::Reader => {
                    let expected: String = CARD_ATR.iter().map(|b| format!("{b:02x}")).collect();
                    format!("card powered (ATR {expected}), numbered commands")
                }
                Kind::Speaker => "numbered frames played, compared with the recording".to_owned(),
                _ => "numbered frames played and recorded".to_owned(),
            };
            Ok((what, score))
        }
    }
}
