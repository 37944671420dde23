//! What is known of Ollama's API: its endpoints ([`endpoints`]), what a request's body is about
//! ([`subject`]), names of models and those that stand for others ([`aliases`]), what models can do
//! ([`facts`]), pulls, lists of models and their merging ([`inventory`]), ends of streamed answers,
//! shapes of errors.
//!
//! Pure: knows nothing of who may ask, of servers to choose from, or of sockets. Paths of Ollama's
//! API are written in [`endpoints`] only.

pub mod aliases;
pub mod endpoints;
mod entry;
pub(crate) mod errors;
pub mod facts;
pub mod inventory;
mod json_repair;
pub(crate) mod list_reader;
pub(crate) mod manifest;
pub mod model_name;
pub(crate) mod pull;
pub(crate) mod stream_end;
pub mod subject;
pub mod version;
