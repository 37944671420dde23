//! Who may do what here: names of this machine ([`host`]), web pages ([`cors`]), addresses that may
//! connect ([`addresses`]), and what each caller may ask for ([`permissions`]).
//!
//! Pure: decides by values that the proxies hand over. Knows Ollama's endpoints, but no sockets.

pub mod addresses;
pub mod cors;
pub mod host;
pub mod permissions;
