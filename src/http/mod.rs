//! HTTP/1.1 messages (RFC 9112): request heads, fields, body framing. Pure.

pub mod body;
pub mod fields;
pub mod head;
