//! Identities, keys, and the encryption between paired machines.
//!
//! Owns who a machine is, the files and the list of keys, the Noise handshake and its records, and
//! the [`Stream`](stream::Stream) that hides them: whether it is encrypted or plain, its bytes are
//! read and written in the same way. Knows nothing of HTTP, of discovery's datagrams, or of which
//! server is chosen.
//!
//! ```text
//!  code, identity, peers, noise/   pure
//!  key_files    the files of keys: reading, changing, permissions
//!  keyring      a daemon's keys, and where they must be used; key_use remembers who has which
//!  stream       one TCP connection; records, if it is encrypted
//!  secure       connecting to a server, accepting a client
//! ```

pub mod code;
pub mod identity;
pub mod key_files;
mod key_use;
pub mod keyring;
pub mod noise;
pub mod peers;
mod records;
pub(crate) mod secure;
pub mod stream;
