// SPDX-License-Identifier: GPL-3.0-or-later
//! The guest's workload: `lab-disk write FILE BLOCKS SEED REPORT [PAUSE_MS]`, which pauses
//! between two batches for that long, or `lab-disk tick REPORT`. Runs until `REPORT.stop` exists; keeps a report in JSON in REPORT.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};
use xen_vusb_lab::workload::{BLOCK_BYTES, Gap, Report, fill, splitmix};

/// Finer ticks would tell nothing more about pauses of a second, and load the emulator.
const TICK: Duration = Duration::from_millis(5);
/// Blocks written before one sync: a realistic mix of larger transfers and flushes.
const BATCH: u64 = 4;
/// Blocks read at once at the end: one SCSI command.
const READ_BLOCKS: usize = 16;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-disk: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["write", file, blocks, seed, report, pause @ ..] if pause.len() <= 1 => {
            let (blocks, seed) = (
                blocks.parse().map_err(io::Error::other)?,
                seed.parse().map_err(io::Error::other)?,
            );
            let pause = pause.first().map_or(Ok(0), |ms| ms.parse());
            let pause = Duration::from_millis(pause.map_err(io::Error::other)?);
            Writer::open(file, blocks, seed, report)?.run(pause)
        }
        ["tick", report] => tick(report),
        _ => Err(io::Error::other(
            "usage: lab-disk write FILE BLOCKS SEED REPORT [PAUSE_MS] | lab-disk tick REPORT",
        )),
    }
}

fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_nanos() as u64)
}

/// Keeps the report file fresh, and notices the request to stop.
struct Reporter {
    path: String,
    report: Report,
    last_event_ns: u64,
    saved: Instant,
}

impl Reporter {
    fn new(path: &str) -> Self {
        let _ = fs::remove_file(format!("{path}.stop"));
        Self {
            path: path.to_owned(),
            report: Report::default(),
            last_event_ns: now_ns(),
            saved: Instant::now(),
        }
    }

    fn event(&mut self) {
        let now = now_ns();
        self.report.note_gap(Gap {
            from_ns: self.last_event_ns,
            to_ns: now,
        });
        self.last_event_ns = now;
    }

    /// Saves now and then; true when it is time to stop.
    fn poll(&mut self) -> io::Result<bool> {
        if self.saved.elapsed() < Duration::from_millis(500) {
            return Ok(false);
        }
        self.save()?;
        Ok(Path::new(&format!("{}.stop", self.path)).exists())
    }

    fn save(&mut self) -> io::Result<()> {
        self.saved = Instant::now();
        let temporary = format!("{}.part", self.path);
        fs::write(&temporary, serde_json::to_vec(&self.report)?)?;
        fs::rename(&temporary, &self.path)
    }

    fn failed(&mut self, what: &str, error: &io::Error) {
        self.report.io_errors += 1;
        if self.report.errors.len() < 10 {
            self.report.errors.push(format!("{what}: {error}"));
        }
    }
}

fn tick(report: &str) -> io::Result<()> {
    let mut reporter = Reporter::new(report);
    while !reporter.poll()? {
        std::thread::sleep(TICK);
        reporter.event();
    }
    reporter.report.finished = true;
    reporter.save()
}

struct Writer {
    file: File,
    direct: File,
    counters: Vec<u64>,
    seed: u64,
    random: u64,
    reporter: Reporter,
}

impl Writer {
    fn open(path: &str, blocks: u64, seed: u64, report: &str) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        let mut buffer = vec![0; BLOCK_BYTES];
        for block in 0..blocks {
            fill(&mut buffer, seed, block, 0);
            file.write_all_at(&buffer, block * BLOCK_BYTES as u64)?;
        }
        file.sync_all()?;
        // Reads must come from the device, not from the page cache that the writes filled.
        let direct = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)?;
        let counters = vec![0; usize::try_from(blocks).map_err(io::Error::other)?];
        Ok(Self {
            file,
            direct,
            counters,
            seed,
            random: seed,
            reporter: Reporter::new(report),
        })
    }

    fn run(mut self, pause: Duration) -> io::Result<()> {
        let mut aligned = Aligned::new(1);
        let mut wanted = vec![0; BLOCK_BYTES];
        while !self.reporter.poll()? {
            self.random = splitmix(self.random);
            let first = self.random % (self.counters.len() as u64 - BATCH);
            for block in first..first + BATCH {
                // Counted before the write: if it fails half-way the block may hold either.
                self.counters[block as usize] += 1;
                fill(&mut wanted, self.seed, block, self.counters[block as usize]);
                match self.file.write_all_at(&wanted, block * BLOCK_BYTES as u64) {
                    Ok(()) => self.reporter.report.written += 1,
                    Err(error) => self.reporter.failed("write", &error),
                }
            }
            if let Err(error) = self.file.sync_data() {
                self.reporter.failed("fsync", &error);
            }
            for block in first..first + BATCH {
                fill(&mut wanted, self.seed, block, self.counters[block as usize]);
                match self
                    .direct
                    .read_exact_at(aligned.bytes(), block * BLOCK_BYTES as u64)
                {
                    Ok(()) if aligned.bytes() == wanted.as_slice() => {
                        self.reporter.report.verified += 1
                    }
                    Ok(()) => self.reporter.report.mismatches += 1,
                    Err(error) => self.reporter.failed("read", &error),
                }
            }
            self.reporter.event();
            std::thread::sleep(pause);
        }
        self.hash_all(&mut wanted);
        self.reporter.report.finished = true;
        self.reporter.save()
    }

    /// Reads everything back, many blocks at a time: one by one it would take the emulated machine
    /// minutes.
    fn hash_all(&mut self, wanted: &mut [u8]) {
        let (mut expected, mut read) = (Sha256::new(), Sha256::new());
        let mut aligned = Aligned::new(READ_BLOCKS);
        for (chunk, counters) in self.counters.chunks(READ_BLOCKS).enumerate() {
            let first = chunk * READ_BLOCKS;
            let bytes = &mut aligned.bytes()[..counters.len() * BLOCK_BYTES];
            let result = self
                .direct
                .read_exact_at(bytes, (first * BLOCK_BYTES) as u64);
            for (at, counter) in counters.iter().enumerate() {
                fill(wanted, self.seed, (first + at) as u64, *counter);
                expected.update(&*wanted);
                let block = &bytes[at * BLOCK_BYTES..][..BLOCK_BYTES];
                self.reporter.report.mismatches += u64::from(result.is_ok() && block != wanted);
            }
            match result {
                Ok(()) => read.update(&*bytes),
                Err(error) => self.reporter.failed("final read", &error),
            }
        }
        self.reporter.report.sha256_expected = hex(&expected.finalize());
        self.reporter.report.sha256_read = hex(&read.finalize());
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Blocks in memory aligned as O_DIRECT wants them.
struct Aligned {
    memory: Vec<u8>,
    offset: usize,
    len: usize,
}

impl Aligned {
    fn new(blocks: usize) -> Self {
        let len = blocks * BLOCK_BYTES;
        let memory = vec![0; len + BLOCK_BYTES];
        let offset = memory.as_ptr().align_offset(BLOCK_BYTES);
        Self {
            memory,
            offset,
            len,
        }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.offset..self.offset + self.len]
    }
}
