//! HTTP/1.1 messages (RFC 9112), strictly read: request heads ([`head`]), fields that may pass a
//! hop ([`fields`]), framing of bodies ([`body`]), paths and queries.
//!
//! Pure: bytes in, bytes out. Knows nothing of Ollama's API, of who may ask, or of sockets.

pub mod body;
pub mod fields;
pub mod head;
pub(crate) mod target;
