//! What the tests on loopback share: an Ollama that keeps Ollama's contract, a fake that does what
//! a test tells it, daemons in front of them, a client that sees every byte, and ways to wait that
//! have a deadline.

#![allow(dead_code, unused_imports, reason = "every test file uses its own part")]
#![allow(missing_docs, unreachable_pub, reason = "names of tests say what they are for")]

mod call;
mod chain;
mod client;
mod fake;
mod http;
mod named;
pub mod ollama;
mod process;
mod random;
pub mod readme;
mod registry;
mod seeds;
mod system;
mod wire;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use call::Call;
pub use chain::{Chain, Upstream, Way, client_settings, key_file, server_settings, start};
pub use client::{
    Answer, CHAT, Client, End, INFERENCE, MODEL, NEVER_TWICE, post, queues, queues_to_client,
    request,
};
pub use fake::{Closed, Connection, Fake, Record};
pub use http::{Head, chunk, chunked, ndjson, read_once};
pub use named::{assert_is_there, tests_of};
pub use ollama::{
    Account,
    Model,
    Ollama,
    Package,
    REDIRECTS,
    Script,
    Served,
    Store,
    World,
    sha256, //
};
pub use process::{Process, free_tcp_port, free_udp_port, state_dir, unread};
pub use random::{Random, Sum};
pub use registry::{Registry, Shelf};
pub use seeds::{Agenda, number, run_all, shown};
pub use system::{
    SECOND_TERM_CODE, Signal, clear_environment, ctrl_c_code, host_name, ignores_ctrl_c, is_root,
    open_to_others, private_file, send_signal, symlink, with_signals,
};
#[cfg(unix)]
pub use system::{copy_program, script};
pub use wire::{lan_address, wire};

/// What anything may take that isn't measured: a wait that lasts longer has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Looks until there is something to see. For what has no channel to wait on.
pub fn eventually<T>(awaited: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "waited in vain: {awaited}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Fails unless something takes less than `limit`. A busy machine may delay it once; then it has to be
/// so twice.
pub fn soon(what: &str, limit: Duration, mut attempt: impl FnMut() -> Duration) {
    let first = attempt();
    if first >= limit {
        let again = [attempt(), attempt()];
        assert!(again.iter().all(|took| *took < limit), "{what}: after {first:?}, then {again:?}");
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Closed until somebody opens it; then it stays open.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn new() -> Self {
        Gate::default()
    }

    pub fn open(&self) {
        *lock(&self.0.0) = true;
        self.0.1.notify_all();
    }

    /// Whether it was opened in time.
    #[must_use]
    pub fn wait(&self) -> bool {
        self.wait_for(PATIENCE)
    }

    /// Whether it is opened within this time.
    #[must_use]
    pub fn wait_for(&self, time: Duration) -> bool {
        let (open, changed) = &*self.0;
        let waited = changed.wait_timeout_while(lock(open), time, |open| !*open);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}
