//! Identities, keys, and the encryption between paired machines.
//!
//! Owns who a machine is, the files of keys and tokens and the [`Keyring`](keyring::Keyring) of a daemon,
//! the Noise handshake and its records, and the [`Stream`](stream::Stream), whose bytes are read and
//! written in the same way whether they are encrypted or not; [`secure`] connects and accepts.
//! Knows nothing of HTTP, of discovery's datagrams, or of which server is chosen.

pub mod code;
pub mod identity;
pub mod key_files;
pub mod keyring;
pub(crate) mod marks;
pub mod noise;
pub mod peers;
mod records;
pub(crate) mod secure;
pub mod stream;
pub(crate) mod tokens;
