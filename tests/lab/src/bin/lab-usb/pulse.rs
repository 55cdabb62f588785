// SPDX-License-Identifier: GPL-3.0-or-later
//! A device in constant use, and how long each operation takes. The scenario writes the name of its phase into
//! `REPORT.phase`; the program ends when there is `REPORT.stop`.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use xen_vusb_lab::pulse::Pulse;
use xen_vusb_lab::workload::{BLOCK_BYTES, fill};

/// Between two operations, and between two looks at the files.
const PAUSE: Duration = Duration::from_millis(10);
const LOOK: Duration = Duration::from_millis(200);
/// Blocks of a disk that are written in turn.
const BLOCKS: u64 = 256;

/// Keeps a [`Pulse`] in a file.
pub struct Keeper {
    path: String,
    /// What is kept.
    pub pulse: Pulse,
    looked: Instant,
}

impl Keeper {
    /// Begin.
    pub fn new(path: &str) -> io::Result<Self> {
        for old in ["stop", "phase"] {
            let _ = fs::remove_file(format!("{path}.{old}"));
        }
        let mut keeper = Self {
            path: path.to_owned(),
            pulse: Pulse::default(),
            looked: Instant::now(),
        };
        keeper.pulse.enter("start");
        keeper.save()?;
        Ok(keeper)
    }

    /// Looks for a new phase now and then; true when it is time to stop.
    pub fn poll(&mut self) -> io::Result<bool> {
        if self.looked.elapsed() < LOOK {
            return Ok(false);
        }
        self.looked = Instant::now();
        if let Ok(phase) = fs::read_to_string(format!("{}.phase", self.path))
            && !phase.is_empty()
        {
            self.pulse.enter(&phase);
        }
        self.save()?;
        Ok(Path::new(&format!("{}.stop", self.path)).exists())
    }

    /// The last report.
    pub fn finish(mut self) -> io::Result<()> {
        self.pulse.finished = true;
        self.save()
    }

    fn save(&self) -> io::Result<()> {
        let temporary = format!("{}.part", self.path);
        fs::write(&temporary, serde_json::to_vec(&self.pulse)?)?;
        fs::rename(&temporary, &self.path)
    }
}

/// Writes a block of a disk, reads it back past the page cache, compares; without end.
pub fn disk(path: &str, report: &str) -> io::Result<()> {
    let disk = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)?;
    let mut memory = vec![0; 2 * BLOCK_BYTES];
    let offset = memory.as_ptr().align_offset(BLOCK_BYTES);
    let block = &mut memory[offset..offset + BLOCK_BYTES];
    let mut wanted = vec![0; BLOCK_BYTES];
    let mut keeper = Keeper::new(report)?;
    let mut number = 0;
    while !keeper.poll()? {
        fill(&mut wanted, 1, number % BLOCKS, number);
        block.copy_from_slice(&wanted);
        let at = number % BLOCKS * BLOCK_BYTES as u64;
        let start = Instant::now();
        let result = disk
            .write_all_at(block, at)
            .and_then(|()| disk.read_exact_at(block, at));
        keeper.pulse.operation(start.elapsed().as_secs_f64() * 1e3);
        match result {
            Ok(()) => keeper.pulse.lost += u64::from(*block != *wanted),
            Err(error) => keeper.pulse.failed(&error.to_string()),
        }
        number += 1;
        std::thread::sleep(PAUSE);
    }
    keeper.finish()
}
