// SPDX-License-Identifier: GPL-3.0-or-later
use super::*;

const LEN: usize = 3 * 4096;

/// Anonymous memory in place of a device's. The bytes count up.
fn memory(access: Access) -> SharedMemory {
    // SAFETY: a new mapping at an address of the kernel's choice takes no memory away.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            LEN,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(start, libc::MAP_FAILED);
    let start = NonNull::new(start.cast::<u8>()).unwrap();
    for at in 0..LEN {
        // SAFETY: inside the new mapping.
        unsafe { start.as_ptr().add(at).write(pattern(at)) };
    }
    // SAFETY: mapped just above.
    unsafe { SharedMemory::from_raw(start, LEN, access) }
}

fn pattern(at: usize) -> u8 {
    (at % 251) as u8
}

#[test]
fn reads_are_right_at_every_alignment_and_length() {
    let memory = memory(Access::ReadOnly);
    for offset in (0..17).chain(4090..4100) {
        for len in (0..40).chain([4095, 4096]) {
            let mut bytes = vec![0xee; len];
            memory.read(offset, &mut bytes);
            for (at, byte) in bytes.iter().enumerate() {
                assert_eq!(*byte, pattern(offset + at), "offset {offset}, length {len}");
            }
        }
    }
}

#[test]
fn writes_change_their_range_and_nothing_else() {
    for offset in (0..17).chain(4090..4100) {
        for len in (0..40).chain([1000]) {
            let memory = memory(Access::ReadWrite);
            memory.write(offset, &vec![0xff; len]);
            let mut all = vec![0; LEN];
            memory.read(0, &mut all);
            for (at, byte) in all.iter().enumerate() {
                let written = (offset..offset + len).contains(&at);
                let expected = if written { 0xff } else { pattern(at) };
                assert_eq!(*byte, expected, "byte {at}, offset {offset}, length {len}");
            }
        }
    }
}

#[test]
fn the_last_byte_can_be_reached() {
    let memory = memory(Access::ReadWrite);
    memory.write(LEN - 1, &[7]);
    let mut byte = [0];
    memory.read(LEN - 1, &mut byte);
    assert_eq!(byte, [7]);
    memory.read(LEN, &mut []);
}

#[test]
fn words_are_those_of_the_bytes() {
    let memory = memory(Access::ReadWrite);
    memory.store_release(LEN - 4, 0x0102_0304);
    assert_eq!(memory.load_acquire(LEN - 4), 0x0102_0304);
    let mut bytes = [0; 4];
    memory.read(LEN - 4, &mut bytes);
    assert_eq!(u32::from_ne_bytes(bytes), 0x0102_0304);
}

#[test]
#[should_panic(expected = "2 bytes at offset 12287 of a mapping of 12288 bytes")]
fn a_read_past_the_end_panics() {
    memory(Access::ReadOnly).read(LEN - 1, &mut [0; 2]);
}

#[test]
#[should_panic(expected = "of a mapping of 12288 bytes")]
fn a_range_that_overflows_panics() {
    memory(Access::ReadOnly).read(usize::MAX, &mut [0; 2]);
}

#[test]
#[should_panic(expected = "of a mapping of 12288 bytes")]
fn a_write_past_the_end_panics() {
    memory(Access::ReadWrite).write(LEN, &[0]);
}

#[test]
#[should_panic(expected = "a store to a mapping that is read-only")]
fn a_write_to_read_only_memory_panics() {
    memory(Access::ReadOnly).write(0, &[0]);
}

#[test]
#[should_panic(expected = "not a multiple of four")]
fn an_index_off_its_boundary_panics() {
    memory(Access::ReadOnly).load_acquire(2);
}
