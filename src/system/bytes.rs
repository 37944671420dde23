//! Bytes that grow as they are received.

use std::io;
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// More bytes than this are kept apart from the heap.
const MOST_IN_HEAP: usize = 32 * 1024;
/// The least that is taken from the system for them.
const LEAST_APART: usize = 128 * 1024;

/// Many are in memory of their own, which goes back to the system as a whole: what comes free in the
/// middle of a heap doesn't, and bodies of some megabytes would leave it that large.
#[derive(Debug)]
pub(crate) struct Bytes {
    memory: Memory,
    length: usize,
}

#[derive(Debug)]
enum Memory {
    Heap(Vec<u8>),
    Apart(MmapMut),
}

impl Memory {
    fn all(&self) -> &[u8] {
        match self {
            Memory::Heap(bytes) => bytes,
            Memory::Apart(map) => map,
        }
    }
}

impl Bytes {
    pub(crate) const fn new() -> Self {
        Bytes { memory: Memory::Heap(Vec::new()), length: 0 }
    }

    /// Makes it longer by bytes of any value, which are to be overwritten. If the system has no
    /// memory, nothing changes.
    pub(crate) fn grow(&mut self, more: usize) -> io::Result<()> {
        let length = self.length + more;
        match &mut self.memory {
            memory if length <= memory.all().len() => {}
            Memory::Heap(bytes) if length <= MOST_IN_HEAP => bytes.resize(length, 0),
            memory => {
                let size = length.checked_next_power_of_two().unwrap_or(length);
                let mut map = MmapMut::map_anon(size.max(LEAST_APART))?;
                map[..self.length].copy_from_slice(&memory.all()[..self.length]);
                *memory = Memory::Apart(map);
            }
        }
        self.length = length;
        Ok(())
    }

    pub(crate) fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes { length: bytes.len(), memory: Memory::Heap(bytes) }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory.all()[..self.length]
    }
}

impl DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        let all = match &mut self.memory {
            Memory::Heap(bytes) => &mut bytes[..],
            Memory::Apart(map) => map,
        };
        &mut all[..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_received_stays_in_either_memory() {
        let (mut bytes, mut expected) = (Bytes::new(), Vec::new());
        for (at, more) in [1, 4096, 0, 28_671, 1, 100_000, 7, 3_000_000].into_iter().enumerate() {
            bytes.grow(more + 10).unwrap();
            let from = expected.len();
            bytes[from..from + more].fill(at as u8);
            bytes.truncate(from + more);
            expected.resize(from + more, at as u8);
            assert!(*bytes == expected[..], "after {more} more");
            let is_apart = matches!(bytes.memory, Memory::Apart(_));
            assert_eq!(is_apart, expected.len() + 10 > MOST_IN_HEAP, "{}", expected.len());
        }
        let made = Bytes::from(vec![1, 2]);
        assert_eq!(*made, [1, 2]);
    }

    #[test]
    fn without_memory_nothing_is_lost() {
        let mut bytes = Bytes::from(vec![1, 2]);
        assert!(bytes.grow(isize::MAX as usize - 2).is_err());
        assert_eq!(*bytes, [1, 2]);
    }
}
