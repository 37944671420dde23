//! Sees that Ollama is being started on this machine while this daemon has its port, so that the daemon
//! can leave it.
//!
//! | system | how | what isn't seen |
//! |---|---|---|
//! | Linux | the kernel tells when Ollama's program is opened | what is in containers |
//! | macOS, the BSDs | a look at the processes every two seconds | a start that gives up sooner |
//! | Windows | the same, for Ollama's app, which starts the server again and again | `ollama serve` in a terminal |

#[cfg_attr(any(target_os = "linux", target_os = "android"), path = "linux.rs")]
#[cfg_attr(not(any(target_os = "linux", target_os = "android")), path = "others.rs")]
mod system;

// Tried on Linux too.
#[cfg(all(test, target_os = "linux"))]
#[allow(dead_code)]
mod others;

pub(super) use system::OllamaWatch;
