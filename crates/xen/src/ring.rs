// SPDX-License-Identifier: GPL-3.0-or-later
//! A page of a mapping as the shared memory of a ring.

use std::sync::Arc;

use usbif::RingMemory;

use crate::{Mapping, PAGE_SIZE};

/// One page of a [`Mapping`], for [`usbif::BackRing`] and [`usbif::FrontRing`].
#[derive(Clone, Debug)]
pub struct RingPage<M> {
    mapping: M,
    start: usize,
}

impl<M: Mapping> RingPage<M> {
    /// Page number `page`, counted from 0, of `mapping`.
    ///
    /// # Panics
    /// When the mapping does not have that page.
    pub fn new(mapping: M, page: usize) -> Self {
        assert!(
            page < mapping.len_bytes() / PAGE_SIZE,
            "page {page} of a mapping of {} bytes",
            mapping.len_bytes()
        );
        Self {
            mapping,
            start: page * PAGE_SIZE,
        }
    }

    /// The mapping.
    pub fn mapping(&self) -> &M {
        &self.mapping
    }

    /// Gives the mapping back.
    pub fn into_mapping(self) -> M {
        self.mapping
    }

    /// The range must end within the page, or it would be the next ring's.
    fn at(&self, offset: usize, len: usize) -> usize {
        assert!(
            offset + len <= PAGE_SIZE,
            "{len} bytes at {offset} of a ring page"
        );
        self.start + offset
    }
}

impl<M: Mapping> RingMemory for RingPage<M> {
    fn read(&self, offset: usize, dst: &mut [u8]) {
        self.mapping.read(self.at(offset, dst.len()), dst);
    }

    fn write(&self, offset: usize, src: &[u8]) {
        self.mapping.write(self.at(offset, src.len()), src);
    }

    fn load_acquire(&self, offset: usize) -> u32 {
        self.mapping.load_acquire(self.at(offset, 4))
    }

    fn store_release(&self, offset: usize, value: u32) {
        self.mapping.store_release(self.at(offset, 4), value);
    }

    fn full_barrier(&self) {
        self.mapping.full_barrier();
    }
}

/// Several rings in one mapping share it.
impl<M: Mapping + Sync> Mapping for Arc<M> {
    fn len_bytes(&self) -> usize {
        (**self).len_bytes()
    }
    fn read(&self, offset: usize, dst: &mut [u8]) {
        (**self).read(offset, dst);
    }
    fn write(&self, offset: usize, src: &[u8]) {
        (**self).write(offset, src);
    }
    fn load_acquire(&self, offset: usize) -> u32 {
        (**self).load_acquire(offset)
    }
    fn store_release(&self, offset: usize, value: u32) {
        (**self).store_release(offset, value);
    }
    fn full_barrier(&self) {
        (**self).full_barrier();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use usbif::RingMemory;

    use super::*;

    struct Heap(Mutex<Vec<u8>>);

    impl Mapping for Heap {
        fn len_bytes(&self) -> usize {
            self.0.lock().unwrap().len()
        }
        fn read(&self, offset: usize, dst: &mut [u8]) {
            dst.copy_from_slice(&self.0.lock().unwrap()[offset..offset + dst.len()]);
        }
        fn write(&self, offset: usize, src: &[u8]) {
            self.0.lock().unwrap()[offset..offset + src.len()].copy_from_slice(src);
        }
        fn load_acquire(&self, offset: usize) -> u32 {
            let mut bytes = [0; 4];
            self.read(offset, &mut bytes);
            u32::from_le_bytes(bytes)
        }
        fn store_release(&self, offset: usize, value: u32) {
            self.write(offset, &value.to_le_bytes());
        }
    }

    fn two_pages() -> Arc<Heap> {
        Arc::new(Heap(Mutex::new(vec![0; 2 * PAGE_SIZE])))
    }

    #[test]
    fn two_rings_share_a_mapping_and_nothing_else() {
        let heap = two_pages();
        let [first, second] = [0, 1].map(|page| RingPage::new(heap.clone(), page));
        first.store_release(8, 1);
        second.store_release(8, 2);
        second.write(64, b"slot");
        assert_eq!((first.load_acquire(8), second.load_acquire(8)), (1, 2));
        let mut bytes = [0; 4];
        heap.read(PAGE_SIZE + 64, &mut bytes);
        assert_eq!(&bytes, b"slot");
        first.read(64, &mut bytes);
        assert_eq!(bytes, [0; 4]);
    }

    #[test]
    #[should_panic(expected = "at 4093 of a ring page")]
    fn a_ring_does_not_reach_into_the_next_page() {
        RingPage::new(two_pages(), 0).write(4093, b"slot");
    }

    #[test]
    #[should_panic(expected = "page 2 of a mapping")]
    fn there_is_no_page_beyond_the_mapping() {
        RingPage::new(two_pages(), 2);
    }
}
