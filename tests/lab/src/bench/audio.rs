// SPDX-License-Identifier: GPL-3.0-or-later
//! The accounts of devices that play and record numbered audio frames.

use std::collections::BTreeMap;

use usb_sim::{FRAME_LEN, RATE, StreamCheck};

use super::score::Score;
use crate::traffic::Tally;

const FRAMES: &str = "frames";
/// What QEMU's speaker may still have in its buffer when its stream is closed; it forgets that.
const SPEAKER_BUFFER: u64 = RATE as u64;

/// What was heard of what was played, how many times some of it was missing, and how much was not
/// heard at the end.
struct Heard {
    good: u64,
    doubled: u64,
    gaps: u64,
    tail: u64,
}

/// What did not arrive was lost while the player stood still, if it says that it had to begin
/// anew for that reason as often as something is missing. Otherwise it was lost.
fn playback(heard: &Heard, played: Tally) -> Score {
    let missing = played.sent.saturating_sub(heard.good + heard.tail);
    let excused = played.restarts > 0 && heard.gaps <= played.restarts;
    Score {
        sent: played.sent,
        received: heard.good,
        lost: if excused { 0 } else { missing },
        lost_standing: if excused { missing } else { 0 },
        dropped_by_device: 0,
        doubled: heard.doubled,
        unit: FRAMES,
        errors: played
            .errors
            .iter()
            .map(|error| format!("playing: {error}"))
            .collect(),
        notes: Vec::new(),
    }
}

/// A speaker whose recording grew by these bytes.
pub(super) fn speaker(recording: &[u8], played: Tally) -> Score {
    let mut check = StreamCheck::default();
    check.feed_packet(&recording[..recording.len() - recording.len() % FRAME_LEN]);
    let counts = check.counts();
    let tail = played.sent.saturating_sub(counts.good + counts.dropped);
    let tail = tail.min(SPEAKER_BUFFER);
    let heard = Heard {
        good: counts.good,
        doubled: counts.doubled,
        gaps: counts.gaps,
        tail,
    };
    let mut score = playback(&heard, played);
    if tail > 0 {
        score.notes.push(format!("{tail} still in its buffer"));
    }
    score
}

/// A headset, from what it had counted before and after.
pub(super) fn headset(
    before: &BTreeMap<String, u64>,
    after: &BTreeMap<String, u64>,
    played: Tally,
    recorded: Tally,
) -> Score {
    let grown = |key: &str| {
        let of = |counts: &BTreeMap<String, u64>| counts.get(key).copied().unwrap_or(0);
        of(after).saturating_sub(of(before))
    };
    let heard = Heard {
        good: grown("good"),
        doubled: grown("doubled"),
        gaps: grown("gaps"),
        tail: 0,
    };
    let output = playback(&heard, played);
    let mut errors: Vec<String> = recorded
        .errors
        .iter()
        .map(|error| format!("recording: {error}"))
        .collect();
    if recorded.malformed > 0 {
        errors.push(format!("recording: {} spoiled", recorded.malformed));
    }
    // One half must not hide that there was nothing of the other.
    if output.received == 0 || recorded.received == 0 {
        errors.push(format!(
            "silence: {} played, {} recorded",
            output.received, recorded.received
        ));
    }
    let input = Score {
        sent: recorded.received + recorded.lost,
        received: recorded.received,
        lost: recorded.lost - recorded.lost_standing,
        lost_standing: recorded.lost_standing,
        dropped_by_device: 0,
        doubled: recorded.doubled,
        unit: FRAMES,
        errors,
        notes: recorded.gaps.clone(),
    };
    let mut score = output.and(input);
    for (key, what) in [
        ("record-missed-packets", "recorded while nobody asked"),
        ("playback-missed-packets", "with nothing to play"),
    ] {
        if grown(key) > 0 {
            score.notes.push(format!("{} ms {what}", grown(key)));
        }
    }
    score
}

#[cfg(test)]
mod tests {
    use usb_sim::Samples;

    use super::*;

    fn recording(parts: &[(u64, usize)]) -> Vec<u8> {
        let mut samples = Samples::default();
        let mut bytes = Vec::new();
        for &(skipped, frames) in parts {
            samples.skip(skipped);
            for _ in 0..frames {
                bytes.extend_from_slice(&samples.next_frame());
            }
        }
        bytes
    }

    #[test]
    fn a_gap_is_excused_by_a_restart_only() {
        let played = Tally {
            sent: 1000,
            ..Tally::default()
        };
        let bytes = recording(&[(0, 400), (100, 490)]);
        let score = speaker(&bytes, played.clone());
        assert_eq!((score.received, score.lost), (890, 100));
        assert!(!score.perfect());
        let restarted = Tally {
            restarts: 1,
            ..played
        };
        let score = speaker(&bytes, restarted.clone());
        assert_eq!((score.lost, score.lost_standing), (0, 100));
        assert!(score.perfect());
        let bytes = recording(&[(0, 400), (50, 400), (50, 90)]);
        assert_eq!(speaker(&bytes, restarted).lost, 100);
    }

    #[test]
    fn a_headset_must_play_and_record() {
        let count = |good| BTreeMap::from([("good".to_owned(), good)]);
        let played = Tally {
            sent: 100,
            ..Tally::default()
        };
        let recorded = Tally {
            received: 90,
            lost: 10,
            lost_standing: 10,
            ..Tally::default()
        };
        let score = headset(&count(5), &count(105), played.clone(), recorded);
        assert!(score.perfect(), "{score:?}");
        assert_eq!(
            (score.sent, score.received, score.lost_standing),
            (200, 190, 10)
        );
        assert!(!headset(&count(5), &count(105), played.clone(), Tally::default()).perfect());
        assert!(
            !headset(
                &count(5),
                &count(104),
                played,
                Tally {
                    received: 1,
                    ..Tally::default()
                }
            )
            .perfect()
        );
    }
}
