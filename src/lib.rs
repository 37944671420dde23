//! Ollama over LAN.

pub mod body;
pub mod cli;
pub mod config;
pub mod dialect;
pub mod guard;
pub mod head;
pub mod headers;
pub mod pool;
pub mod wire;
