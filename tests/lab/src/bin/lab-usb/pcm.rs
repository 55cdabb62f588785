// SPDX-License-Identifier: GPL-3.0-or-later
//! Audio through ALSA's device nodes (`include/uapi/sound/asound.h`): 48 kHz, two channels, 16
//! bits. What is played and recorded are the numbered frames of `usb_sim::Samples`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::thread;
use std::time::{Duration, Instant};

use usb_sim::{FRAME_LEN, RATE, Samples, StreamCheck, StreamCounts};
use xen_vusb_lab::traffic::Tally;

use crate::ioctl::{self, Plain, READ, WRITE};
use crate::report::Reporter;
use crate::standstill::Standstill;

/// Periods of a stream's buffer.
const PERIODS: u32 = 10;
/// How long to wait for room or data; processes that poll are dear under emulation.
const PAUSE: Duration = Duration::from_millis(40);
/// How long the rest of the buffer may take to be played.
const DRAIN_TIME: Duration = Duration::from_secs(40);

#[repr(C)]
#[derive(Clone, Copy)]
struct Interval {
    min: u32,
    max: u32,
    flags: u32,
}

/// `struct snd_pcm_hw_params`: three masks and twelve intervals are in use.
#[repr(C)]
struct HwParams {
    flags: u32,
    masks: [[u32; 8]; 8],
    intervals: [Interval; 21],
    rmask: u32,
    cmask: u32,
    info: u32,
    msbits: u32,
    rate_num: u32,
    rate_den: u32,
    fifo_size: u64,
    sync: [u8; 16],
    reserved: [u8; 48],
}

/// Places in `masks` and, from SAMPLE_BITS on, in `intervals`.
const ACCESS: usize = 0;
const FORMAT: usize = 1;
const CHANNELS: usize = 2;
const RATE_PLACE: usize = 3;
const PERIOD_SIZE: usize = 5;
const BUFFER_SIZE: usize = 9;
/// Values of the masks.
const RW_INTERLEAVED: u32 = 3;
const S16_LE: u32 = 2;
/// An interval of whole numbers.
const INTEGER: u32 = 4;

#[repr(C)]
struct Transfer {
    result: i64,
    buffer: *mut u8,
    frames: u64,
}

/// `struct snd_ctl_elem_info`: an id whose first number is enough, then type, access, count.
#[repr(C)]
struct ElementInfo {
    id: [u32; 16],
    kind: i32,
    access: u32,
    count: u32,
    owner: i32,
    /// Of an integer: minimum, maximum, step.
    range: [i64; 16],
    reserved: [u8; 64],
}

/// `struct snd_ctl_elem_value`.
#[repr(C)]
struct ElementValue {
    id: [u32; 16],
    indirect: u64,
    values: [i64; 128],
    reserved: [u8; 128],
}

// SAFETY: arrays of integers, as the kernel declares them.
unsafe impl Plain for HwParams {}
// SAFETY: integers, and an address that is never read here.
unsafe impl Plain for Transfer {}
// SAFETY: arrays of integers.
unsafe impl Plain for ElementInfo {}
// SAFETY: arrays of integers.
unsafe impl Plain for ElementValue {}

const HW_PARAMS: u32 = ioctl::request::<HwParams>(READ | WRITE, b'A', 0x11);
const PREPARE: u32 = ioctl::request::<[u8; 0]>(0, b'A', 0x40);
const DRAIN: u32 = ioctl::request::<[u8; 0]>(0, b'A', 0x44);
const WRITEI_FRAMES: u32 = ioctl::request::<Transfer>(WRITE, b'A', 0x50);
const READI_FRAMES: u32 = ioctl::request::<Transfer>(READ, b'A', 0x51);
const ELEM_INFO: u32 = ioctl::request::<ElementInfo>(READ | WRITE, b'U', 0x11);
const ELEM_WRITE: u32 = ioctl::request::<ElementValue>(READ | WRITE, b'U', 0x13);

/// When to end: after some seconds, printing the tally, or at the stop of a report in a file.
enum Until {
    Seconds(Instant, Duration, Tally),
    Report(Reporter),
}

impl Until {
    fn new(text: &str) -> io::Result<Self> {
        Ok(match text.parse() {
            Ok(seconds) => Self::Seconds(
                Instant::now(),
                Duration::from_secs(seconds),
                Tally::default(),
            ),
            Err(_) => Self::Report(Reporter::new(text)?),
        })
    }

    fn tally(&mut self) -> &mut Tally {
        match self {
            Self::Seconds(_, _, tally) => tally,
            Self::Report(reporter) => &mut reporter.tally,
        }
    }

    fn poll(&mut self) -> io::Result<bool> {
        match self {
            Self::Seconds(start, length, _) => Ok(start.elapsed() >= *length),
            Self::Report(reporter) => reporter.poll(),
        }
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::Seconds(_, _, mut tally) => {
                tally.finished = true;
                crate::print(&tally)
            }
            Self::Report(reporter) => reporter.finish(),
        }
    }
}

fn configure(pcm: &File, period: u32) -> io::Result<()> {
    let any = Interval {
        min: 0,
        max: u32::MAX,
        flags: 0,
    };
    let exactly = |value| Interval {
        min: value,
        max: value,
        flags: INTEGER,
    };
    let mut intervals = [any; 21];
    intervals[CHANNELS] = exactly(2);
    intervals[RATE_PLACE] = exactly(RATE);
    intervals[PERIOD_SIZE] = exactly(period);
    intervals[BUFFER_SIZE] = exactly(period * PERIODS);
    let mut masks = [[u32::MAX; 8]; 8];
    masks[ACCESS] = [0; 8];
    masks[ACCESS][0] = 1 << RW_INTERLEAVED;
    masks[FORMAT] = [0; 8];
    masks[FORMAT][0] = 1 << S16_LE;
    let mut parameters = HwParams {
        flags: 0,
        masks,
        intervals,
        rmask: u32::MAX,
        cmask: 0,
        info: u32::MAX,
        msbits: 0,
        rate_num: 0,
        rate_den: 0,
        fifo_size: 0,
        sync: [0; 16],
        reserved: [0; 48],
    };
    ioctl::with(pcm, HW_PARAMS, &mut parameters)?;
    ioctl::plain(pcm, PREPARE)?;
    Ok(())
}

/// Frames of a period, which are as many as are read or written at a time.
fn frames(buffer_ms: u32) -> (u32, usize) {
    let period = buffer_ms * (RATE / 1000) / PERIODS;
    (period, period as usize)
}

/// A blocking read or write ends in EIO when the device moves nothing for little longer than its buffer
/// lasts, and the stream is over. An emulator may take that long; so does a guest's migration.
fn open(pcm: &str, period: u32) -> io::Result<File> {
    let pcm = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(pcm)?;
    configure(&pcm, period)?;
    Ok(pcm)
}

/// An underrun, an overrun or a suspended stream is noted, and the stream begins again. It is no
/// failure of a machine that stood still.
fn recover(
    pcm: &File,
    error: &io::Error,
    standstill: &mut Standstill,
    tally: &mut Tally,
) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::EPIPE | libc::ESTRPIPE) => {
            if standstill.recent() {
                tally.restarts += 1;
            } else {
                tally.failed(&error.to_string());
            }
            ioctl::plain(pcm, PREPARE)?;
            Ok(())
        }
        Some(libc::EINTR) => Ok(()),
        Some(libc::EAGAIN) => {
            thread::sleep(PAUSE);
            Ok(())
        }
        code => Err(code.map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)),
    }
}

/// Play numbered frames.
pub fn play(pcm: &str, control: &str, until: &str, buffer_ms: u32) -> io::Result<()> {
    full_volume(control)?;
    let mut until = Until::new(until)?;
    let (period, chunk_len) = frames(buffer_ms);
    let pcm = open(pcm, period)?;
    let mut standstill = Standstill::new();
    let mut samples = Samples::default();
    let mut chunk = vec![0; chunk_len * FRAME_LEN];
    let mut left = 0;
    while !until.poll()? {
        standstill.recent();
        if left == 0 {
            for frame in chunk.chunks_exact_mut(FRAME_LEN) {
                frame.copy_from_slice(&samples.next_frame());
            }
            left = chunk_len;
        }
        match write(&pcm, &mut chunk[(chunk_len - left) * FRAME_LEN..]) {
            Ok(written) => {
                left -= written;
                until.tally().sent += written as u64;
            }
            Err(error) => {
                if let Err(error) = recover(&pcm, &error, &mut standstill, until.tally()) {
                    until.tally().failed(&format!("the stream ended: {error}"));
                    break;
                }
            }
        }
    }
    until.tally().sent += finish(&pcm, &mut chunk[(chunk_len - left) * FRAME_LEN..]);
    // A driver goes on for a moment after the last frame, through what the buffer had there before: that
    // is to be silence, however long it does.
    finish(&pcm, &mut vec![0; PERIODS as usize * chunk_len * FRAME_LEN]);
    drain(&pcm);
    until.finish()
}

/// Write audio frames, as many as there is room for.
fn write(pcm: &File, frames: &mut [u8]) -> io::Result<usize> {
    let count = frames.len() / FRAME_LEN;
    let mut transfer = Transfer {
        result: 0,
        buffer: frames.as_mut_ptr(),
        frames: count as u64,
    };
    ioctl::with(pcm, WRITEI_FRAMES, &mut transfer)?;
    Ok(usize::try_from(transfer.result).unwrap_or(0).min(count))
}

/// Write all of them, waiting for room; how many were. Ends early with the stream.
fn finish(pcm: &File, frames: &mut [u8]) -> u64 {
    let start = Instant::now();
    let mut written = 0;
    while written * FRAME_LEN < frames.len() && start.elapsed() < DRAIN_TIME {
        match write(pcm, &mut frames[written * FRAME_LEN..]) {
            Ok(count) => written += count,
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => thread::sleep(PAUSE),
            Err(_) => break,
        }
    }
    written as u64
}

/// Wait until what is in the buffer has been played. After an underrun there is nothing to wait for.
fn drain(pcm: &File) {
    let start = Instant::now();
    // It only begins to drain. Room is of use to nobody then: none is offered until all is over.
    let begun = ioctl::plain(pcm, DRAIN).is_err_and(|e| e.raw_os_error() == Some(libc::EAGAIN));
    while begun && start.elapsed() < DRAIN_TIME && !ioctl::writable(pcm) {
        thread::sleep(PAUSE);
    }
}

/// Record and check numbered frames.
pub fn record(pcm: &str, until: &str, buffer_ms: u32) -> io::Result<()> {
    let mut until = Until::new(until)?;
    let (period, chunk_len) = frames(buffer_ms);
    let pcm = open(pcm, period)?;
    let mut standstill = Standstill::new();
    let mut check = StreamCheck::default();
    let mut chunk = vec![0; chunk_len * FRAME_LEN];
    while !until.poll()? {
        let mut transfer = Transfer {
            result: 0,
            buffer: chunk.as_mut_ptr(),
            frames: chunk_len as u64,
        };
        match ioctl::with(&pcm, READI_FRAMES, &mut transfer) {
            Ok(_) => {
                let read = usize::try_from(transfer.result).unwrap_or(0).min(chunk_len);
                check.feed_packet(&chunk[..read * FRAME_LEN]);
            }
            Err(error) => {
                if let Err(error) = recover(&pcm, &error, &mut standstill, until.tally()) {
                    until.tally().failed(&format!("the stream ended: {error}"));
                    break;
                }
            }
        }
        let lost = until.tally().lost;
        let stood_still = standstill.recent();
        account(&check.counts(), stood_still, until.tally());
        let lost = until.tally().lost - lost;
        if lost > 0 && !stood_still {
            let when = standstill
                .ago()
                .map_or("before any standstill".into(), |ago| {
                    format!("{} s after a standstill", ago.as_secs())
                });
            until.tally().gap(|| format!("{lost} frames, {when}"));
        }
    }
    until.finish()
}

/// What was recorded so far. What is missing now and was not before is the fault of a machine that
/// stood still, if it did.
fn account(counts: &StreamCounts, stood_still: bool, tally: &mut Tally) {
    if stood_still {
        tally.lost_standing += counts.dropped - tally.lost;
    } else if counts.started > tally.last.max(1) {
        tally.failed("the numbers began anew");
    }
    tally.received = counts.good;
    tally.lost = counts.dropped;
    tally.doubled = counts.doubled;
    tally.malformed = counts.silent + counts.malformed;
    tally.last = counts.started;
}

/// Every volume to its maximum and every switch on: at less a device would scale the samples, and
/// their numbers would not be theirs any more.
fn full_volume(control: &str) -> io::Result<()> {
    let control = OpenOptions::new().read(true).write(true).open(control)?;
    for number in 1..=16 {
        let mut id = [0; 16];
        id[0] = number;
        let mut info = ElementInfo {
            id,
            kind: 0,
            access: 0,
            count: 0,
            owner: 0,
            range: [0; 16],
            reserved: [0; 64],
        };
        if ioctl::with(&control, ELEM_INFO, &mut info).is_err() {
            continue;
        }
        let value = match info.kind {
            // SNDRV_CTL_ELEM_TYPE_BOOLEAN, SNDRV_CTL_ELEM_TYPE_INTEGER
            1 => 1,
            2 => info.range[1],
            _ => continue,
        };
        let mut element = ElementValue {
            id,
            indirect: 0,
            values: [0; 128],
            reserved: [0; 128],
        };
        element.values[..(info.count as usize).min(128)].fill(value);
        // Some elements cannot be written.
        let _ = ioctl::with(&control, ELEM_WRITE, &mut element);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_standstill_excuses_a_gap() {
        let mut tally = Tally::default();
        let counts = |dropped, started| StreamCounts {
            good: 10,
            dropped,
            started,
            ..StreamCounts::default()
        };
        account(&counts(0, 1), false, &mut tally);
        account(&counts(5, 1), true, &mut tally);
        account(&counts(5, 2), true, &mut tally);
        assert_eq!(
            (tally.lost, tally.lost_standing, tally.error_count),
            (5, 5, 0)
        );
        account(&counts(8, 2), false, &mut tally);
        assert_eq!(
            (tally.lost, tally.lost_standing, tally.error_count),
            (8, 5, 0)
        );
        account(&counts(8, 3), false, &mut tally);
        assert_eq!(tally.error_count, 1);
    }

    #[test]
    fn structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<HwParams>(), 608);
        assert_eq!(size_of::<Transfer>(), 24);
        assert_eq!(size_of::<ElementInfo>(), 272);
        assert_eq!(size_of::<ElementValue>(), 1224);
    }
}
