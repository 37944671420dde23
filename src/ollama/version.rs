//! Versions of Ollama. Pure.

/// Three numbers of an Ollama version; zeros when unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct OllamaVersion {
    /// First number.
    pub major: u8,
    /// Second number.
    pub minor: u8,
    /// Third number.
    pub patch: u16,
}

impl OllamaVersion {
    /// Reads `0.5.4` and `0.5.4-rc1`; anything else is unknown (zeros).
    pub fn parse(text: &str) -> Self {
        let core = text.split(['-', '+']).next().unwrap_or_default();
        let mut parts = core.split('.');
        let version = (|| {
            Some(OllamaVersion {
                major: parts.next()?.parse().ok()?,
                minor: parts.next()?.parse().ok()?,
                patch: parts.next()?.parse().ok()?,
            })
        })();
        version.filter(|_| parts.next().is_none()).unwrap_or_default()
    }

    /// The same version as one number, for an atomic.
    pub fn to_bits(self) -> u32 {
        u32::from(self.major) << 24 | u32::from(self.minor) << 16 | u32::from(self.patch)
    }

    /// The inverse of [`to_bits`](Self::to_bits).
    pub fn from_bits(bits: u32) -> Self {
        let [major, minor, hi, lo] = bits.to_be_bytes();
        OllamaVersion { major, minor, patch: u16::from_be_bytes([hi, lo]) }
    }
}
