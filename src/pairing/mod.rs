//! Identities, keys and the encryption between paired machines.

pub mod code;
pub mod identity;
pub mod keyring;
pub mod noise;
pub mod peers;
pub mod secure;
pub mod stream;
