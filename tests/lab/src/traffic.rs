// SPDX-License-Identifier: GPL-3.0-or-later
//! Numbered traffic: what one end sent is known from what the other end received, record by
//! record, so that losses and repetitions are counted rather than guessed.

use serde::{Deserialize, Serialize};

/// What a program has sent and received so far, or did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Records, keys or audio frames that it sent.
    pub sent: u64,
    /// Those that it received in their turn.
    pub received: u64,
    /// Numbers that were skipped over.
    pub lost: u64,
    /// Records that came again.
    pub doubled: u64,
    /// What was no record at all.
    pub malformed: u64,
    /// Audio frames of [`Tally::lost`] that were lost while the machine stood still.
    #[serde(default)]
    pub lost_standing: u64,
    /// Audio streams that began anew because the machine had stood still.
    #[serde(default)]
    pub restarts: u64,
    /// Number of the record received last.
    pub last: u64,
    /// Failed system calls, underruns, suspended streams: the first few, in words.
    pub errors: Vec<String>,
    /// How many of these there were.
    pub error_count: u64,
    /// The first few gaps and torn records, in words: what is to be looked for in a kernel's log at that time.
    #[serde(default)]
    pub gaps: Vec<String>,
    /// Seconds of the machine's uptime, where the program keeps it.
    #[serde(skip)]
    pub now: f64,
    /// The same when the last record arrived.
    #[serde(skip)]
    pub last_at: f64,
    /// The program has ended by itself.
    pub finished: bool,
}

impl Tally {
    /// Take note of a failure.
    pub fn failed(&mut self, what: &str) {
        self.error_count += 1;
        if self.errors.len() < 10 {
            self.errors.push(what.to_owned());
        }
    }

    /// Take note of a gap or a torn record.
    pub fn gap(&mut self, what: impl FnOnce() -> String) {
        if self.gaps.len() < 10 {
            self.gaps.push(format!("at {:.1} s: {}", self.now, what()));
        }
    }

    /// A record with this number came in; `cycle` is how many numbers there are, 0 if they never
    /// repeat. The first may have any number.
    pub fn arrived(&mut self, number: u64, cycle: u64, first: bool) {
        if !first {
            let expected = if cycle == 0 {
                self.last + 1
            } else {
                (self.last + 1) % cycle
            };
            let ahead = match cycle {
                0 => number.checked_sub(expected),
                // Behind and ahead look the same in a cycle: the nearer one it is.
                _ => Some((number + cycle - expected) % cycle).filter(|ahead| *ahead < cycle / 2),
            };
            let (last, waited) = (self.last, self.now - self.last_at);
            if ahead != Some(0) {
                self.gap(|| format!("{number} after {last}, {waited:.1} s after it"));
            }
            match ahead {
                Some(ahead) => self.lost += ahead,
                None => {
                    self.doubled += 1;
                    return;
                }
            }
        }
        self.received += 1;
        self.last = number;
        self.last_at = self.now;
    }
}

/// Bytes of a record of [`record`].
pub const RECORD_BYTES: usize = 9;

/// Record number `number` of a byte stream: eight hexadecimal digits and a line feed.
pub fn record(number: u64) -> [u8; RECORD_BYTES] {
    let mut bytes = [b'\n'; RECORD_BYTES];
    for (place, byte) in bytes[..8].iter_mut().enumerate() {
        let digit = (number >> (28 - 4 * place)) & 0xf;
        *byte = b"0123456789abcdef"[digit as usize];
    }
    bytes
}

/// Cuts a byte stream into records and counts what is missing. Numbers begin at 1.
#[derive(Debug, Default)]
pub struct Records {
    line: Vec<u8>,
    seen_any: bool,
}

impl Records {
    /// The next bytes.
    pub fn feed(&mut self, bytes: &[u8], tally: &mut Tally) {
        for &byte in bytes {
            if byte != b'\n' {
                // Without line feeds nothing is a record; nor is the memory for it unlimited.
                if self.line.len() < 64 {
                    self.line.push(byte);
                }
                continue;
            }
            let number = std::str::from_utf8(&self.line)
                .ok()
                .filter(|text| text.len() == 8)
                .and_then(|text| u64::from_str_radix(text, 16).ok());
            match number {
                Some(number) => {
                    // A stream that starts with another number than 1 has lost its start.
                    let first = !self.seen_any && number == 1;
                    self.seen_any = true;
                    tally.arrived(number, 0, first);
                }
                None => {
                    tally.malformed += 1;
                    tally.gap(|| format!("{:?}", String::from_utf8_lossy(&self.line)));
                }
            }
            self.line.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(numbers: impl IntoIterator<Item = u64>) -> Vec<u8> {
        numbers.into_iter().flat_map(record).collect()
    }

    #[test]
    fn a_whole_stream_has_nothing_lost() {
        let (mut records, mut tally) = (Records::default(), Tally::default());
        for part in stream(1..=1000).chunks(7) {
            records.feed(part, &mut tally);
        }
        assert_eq!(
            (tally.received, tally.lost, tally.doubled, tally.malformed),
            (1000, 0, 0, 0)
        );
    }

    #[test]
    fn losses_and_repetitions_are_counted() {
        let (mut records, mut tally) = (Records::default(), Tally::default());
        records.feed(&stream([1, 2, 5, 6, 6, 5, 7]), &mut tally);
        assert_eq!((tally.received, tally.lost, tally.doubled), (5, 2, 2));
        let (mut records, mut tally) = (Records::default(), Tally::default());
        records.feed(&stream([3, 4]), &mut tally);
        assert_eq!((tally.received, tally.lost), (2, 2));
    }

    #[test]
    fn a_torn_record_is_malformed_and_lost() {
        let mut bytes = stream(1..=4);
        bytes.drain(12..14);
        let (mut records, mut tally) = (Records::default(), Tally::default());
        records.feed(&bytes, &mut tally);
        assert_eq!((tally.received, tally.lost, tally.malformed), (3, 1, 1));
    }

    #[test]
    fn cycles_wrap_and_tell_ahead_from_behind() {
        let mut tally = Tally::default();
        tally.arrived(24, 26, true);
        for number in [25, 0, 1, 3, 3, 2, 4] {
            tally.arrived(number, 26, false);
        }
        assert_eq!((tally.received, tally.lost, tally.doubled), (6, 1, 2));
    }
}
