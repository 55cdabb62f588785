// SPDX-License-Identifier: GPL-3.0-or-later
//! Blocks of a disk, written and read back past the page cache.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use xen_vusb_lab::traffic::Tally;
use xen_vusb_lab::workload::{BLOCK_BYTES, fill};

/// Blocks of one transfer.
const TRANSFER_BLOCKS: u64 = 15;

/// Write `count` blocks in transfers of uneven length, sync, read and compare.
pub fn check(path: &str, count: u64, seed: u64) -> io::Result<Tally> {
    let mut tally = Tally::default();
    let disk = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)?;
    let bytes = TRANSFER_BLOCKS as usize * BLOCK_BYTES;
    let mut memory = vec![0; bytes + BLOCK_BYTES];
    let offset = memory.as_ptr().align_offset(BLOCK_BYTES);
    let mut wanted = vec![0; BLOCK_BYTES];
    let chunks = || {
        (0..count)
            .step_by(TRANSFER_BLOCKS as usize)
            .map(|first| (first, TRANSFER_BLOCKS.min(count - first)))
    };
    for (first, blocks) in chunks() {
        let buffer = &mut memory[offset..offset + blocks as usize * BLOCK_BYTES];
        for (at, block) in buffer.chunks_exact_mut(BLOCK_BYTES).enumerate() {
            fill(block, seed, first + at as u64, 1);
        }
        disk.write_all_at(buffer, first * BLOCK_BYTES as u64)?;
        tally.sent += blocks;
    }
    disk.sync_all()?;
    for (first, blocks) in chunks() {
        let buffer = &mut memory[offset..offset + blocks as usize * BLOCK_BYTES];
        buffer.fill(0);
        disk.read_exact_at(buffer, first * BLOCK_BYTES as u64)?;
        for (at, block) in buffer.chunks_exact(BLOCK_BYTES).enumerate() {
            fill(&mut wanted, seed, first + at as u64, 1);
            if block == wanted {
                tally.received += 1;
            } else {
                tally.lost += 1;
            }
        }
    }
    tally.finished = true;
    Ok(tally)
}
