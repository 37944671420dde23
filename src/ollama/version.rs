//! Versions of Ollama. Pure.

use std::fmt;

/// Three numbers of an Ollama version; zeros when unknown.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct OllamaVersion {
    pub major: u8,
    pub minor: u8,
    pub patch: u16,
}

impl OllamaVersion {
    /// Reads `0.5.4` and `0.5.4-rc1`; anything else is unknown (zeros).
    pub fn parse(text: &str) -> Self {
        let core = text.split(['-', '+']).next().unwrap_or_default();
        let parts: Vec<&str> = core.split('.').collect();
        let [major, minor, patch] = parts[..] else { return Self::default() };
        match (major.parse(), minor.parse(), patch.parse()) {
            (Ok(major), Ok(minor), Ok(patch)) => OllamaVersion { major, minor, patch },
            _ => Self::default(),
        }
    }

    /// The same version as one number, for datagrams and atomics.
    pub(crate) fn to_bits(self) -> u32 {
        u32::from(self.major) << 24 | u32::from(self.minor) << 16 | u32::from(self.patch)
    }

    pub(crate) fn from_bits(bits: u32) -> Self {
        let [major, minor, hi, lo] = bits.to_be_bytes();
        OllamaVersion { major, minor, patch: u16::from_be_bytes([hi, lo]) }
    }
}

impl fmt::Display for OllamaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}
