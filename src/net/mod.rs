//! Sockets and interfaces of this machine, and what may be shown of text that came over them.

pub mod interfaces;
pub mod socket;
pub mod untrusted_text;
