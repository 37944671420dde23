//! Who may do what. Pure.

pub mod addresses;
pub mod cors;
pub mod host;
pub mod permissions;
