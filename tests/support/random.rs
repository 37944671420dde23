//! Repeatable chance, and a hash to compare what is too large to keep.

use std::hash::{DefaultHasher, Hasher};

/// xorshift64*: good enough to choose test cases.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// 0 to `bound` - 1.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn is_one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }

    pub fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        &among[self.below(among.len())]
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

/// A running hash of bytes, whatever pieces they come in.
#[derive(Clone, Debug, Default)]
pub struct Sum {
    // The standard library's SipHash takes pieces as one stream, and is fast in a debug build.
    hasher: DefaultHasher,
    pub length: u64,
}

impl Sum {
    pub fn of(bytes: &[u8]) -> (u64, u64) {
        let mut sum = Sum::default();
        sum.add(bytes);
        sum.get()
    }

    pub fn add(&mut self, bytes: &[u8]) {
        self.hasher.write(bytes);
        self.length += bytes.len() as u64;
    }

    /// Length and hash so far.
    pub fn get(&self) -> (u64, u64) {
        (self.length, self.hasher.finish())
    }
}
