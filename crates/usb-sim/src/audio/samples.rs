// SPDX-License-Identifier: GPL-3.0-or-later
//! Numbered audio frames.

/// Bytes of an audio frame: two channels of 16 bits.
pub const FRAME_LEN: usize = 4;

/// The numbers 1, 2, 3 … as audio frames: the left sample is the low half, the right one the high
/// half, both little-endian. After 2³²-1 comes 1 again; 0 is silence.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    last: u32,
}

impl Samples {
    /// The next frame.
    pub fn next_frame(&mut self) -> [u8; FRAME_LEN] {
        self.skip(1);
        self.last.to_le_bytes()
    }

    /// Leaves out so many frames.
    pub fn skip(&mut self, frames: u64) {
        self.last = wrapped(u64::from(self.last) + frames % CYCLE);
    }

    /// The number of the last frame given or left out.
    pub fn given(&self) -> u32 {
        self.last
    }
}

/// Numbers in use.
const CYCLE: u64 = u32::MAX as u64;

/// `number`, which may be beyond the last by less than a cycle, as one that is in use.
fn wrapped(number: u64) -> u32 {
    match number {
        0..=CYCLE => number as u32,
        _ => (number - CYCLE) as u32,
    }
}

/// What a [`StreamCheck`] found; all in audio frames but for `malformed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamCounts {
    /// Frames that were the next one.
    pub good: u64,
    /// Frames of zeroes.
    pub silent: u64,
    /// Frames that were left out.
    pub dropped: u64,
    /// How many times some were.
    pub gaps: u64,
    /// Frames that came again.
    pub doubled: u64,
    /// Times that the numbers began at 1 again, or began elsewhere.
    pub started: u64,
    /// Packets that were no whole number of frames.
    pub malformed: u64,
}

/// Checks that a stream is that of [`Samples`], silence apart.
#[derive(Clone, Debug, Default)]
pub struct StreamCheck {
    last: Option<u32>,
    counts: StreamCounts,
}

impl StreamCheck {
    /// The findings so far.
    pub fn counts(&self) -> StreamCounts {
        self.counts
    }

    /// Another stream begins; it may start with any number.
    pub fn new_stream(&mut self) {
        self.last = None;
    }

    /// The next packet. What is left of a broken frame at its end is dropped.
    pub fn feed_packet(&mut self, bytes: &[u8]) {
        let frames = bytes.chunks_exact(FRAME_LEN);
        if !frames.remainder().is_empty() {
            self.counts.malformed += 1;
        }
        for frame in frames {
            self.feed(u32::from_le_bytes([frame[0], frame[1], frame[2], frame[3]]));
        }
    }

    fn feed(&mut self, number: u32) {
        if number == 0 {
            self.counts.silent += 1;
            return;
        }
        let counts = &mut self.counts;
        match self.last {
            None => {
                counts.started += 1;
                counts.good += 1;
            }
            Some(last) => {
                let expected = wrapped(u64::from(last) + 1);
                let ahead = number.wrapping_sub(expected);
                match (number, ahead) {
                    (_, 0) => counts.good += 1,
                    (1, _) => {
                        counts.started += 1;
                        counts.good += 1;
                    }
                    (_, 1..=0x7fff_ffff) => {
                        // Past the end of the numbers, 0 was skipped over.
                        let zero = u32::from(number < expected);
                        counts.dropped += u64::from(ahead - zero);
                        counts.gaps += 1;
                        counts.good += 1;
                    }
                    // The stream goes on after the last new one.
                    _ => {
                        counts.doubled += 1;
                        return;
                    }
                }
            }
        }
        self.last = Some(number);
    }
}
