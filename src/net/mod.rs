//! Sockets and interfaces of this machine, and the cleaning of text that came over them. Knows no
//! protocol above TCP and UDP.
//!
//! [`socket`]: non-blocking TCP, waiting, wakers. `lane`: UDP broadcasts, one socket per interface.
//! `interfaces`: interfaces and subnets. `names`: from names to addresses. `holders`: which programs
//! have a port. `untrusted_text`: what may be logged and shown of a name. `os`: what differs between
//! operating systems.

pub(crate) mod holders;
pub(crate) mod interfaces;
pub(crate) mod lane;
pub(crate) mod names;
pub(crate) mod os;
pub mod socket;
pub(crate) mod untrusted_text;
