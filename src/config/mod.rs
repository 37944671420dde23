//! Settings: what a daemon or a command can be told, with units, defaults and reasons, and how
//! people write the values (`5s`, `64k`, `desktop:11435`).
//!
//! Must not know where values come from (that is [`crate::cli`]) or who uses them.
//!
//! - [`Settings`] holds all of them, [`Timing`] intervals and time-outs, [`Limits`] counts and
//!   sizes.
//! - [`OllamaUrl`], [`ServerName`], [`Sleeper`] and [`Mac`] are the ways to name a machine.

/// A struct that can be cloned and shown, its fields written with their defaults.
macro_rules! with_defaults {
    ($(#[$about:meta])* pub struct $name:ident {
        $($(#[$note:meta])* $field:ident: $kind:ty = $default:expr,)*
    }) => {
        $(#[$about])*
        #[derive(Clone, Debug)]
        pub struct $name { $($(#[$note])* pub $field: $kind,)* }

        impl Default for $name {
            fn default() -> Self {
                $name { $($field: $default,)* }
            }
        }
    };
}

mod addresses;
mod limits;
mod quantities;
mod settings;

pub(crate) use addresses::{
    DISCOVERY_PORT, OLLAMA_PORT, POOLED_PORT, SERVER_PORT, parse_host_port, parse_ollama,
};
pub use addresses::{Mac, OllamaUrl, ServerName, Sleeper};
pub use limits::{Limits, Timing};
pub(crate) use quantities::{elapsed, parse_duration, parse_size};
pub use settings::{LogFormat, ModeChoice, Settings};
