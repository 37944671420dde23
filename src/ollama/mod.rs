//! What is known of Ollama's API. Pure: knows nothing of sockets, threads or clocks.

pub mod endpoints;
pub mod errors;
pub mod inventory;
pub mod model_name;
pub mod stream_end;
pub mod subject;
pub mod version;
