//! Waiting for things to happen, and how long they may take.

use std::thread;
use std::time::{Duration, Instant};

/// What a fault may cost; the tests allow as much as [`allowed`] says.
pub(crate) mod limits {
    use std::time::Duration;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// From the start of a client to its first answer, the server being there.
    pub(crate) const FOUND: Duration = ms(1500);
    /// From the start of a server to a running client's first answer: one probe interval.
    pub(crate) const NOTICED: Duration = ms(6000);
    /// A request that no server can take is refused: it waits 1.5 s for one that just restarts.
    pub(crate) const REFUSING: Duration = ms(2000);
    /// A server that stays silent gets no more requests.
    pub(crate) const SILENT: Duration = ms(7000);
    /// A server that can be reached again gets requests.
    pub(crate) const BACK: Duration = ms(3000);
    /// A stream that breaks off is an error at the client.
    pub(crate) const BROKEN: Duration = ms(200);
    /// A request without a first byte is on its way to another server.
    pub(crate) const RETRIED: Duration = ms(500);
    /// … the server in use refuses connections.
    pub(crate) const NEXT_AFTER_REFUSAL: Duration = ms(50);
    /// … the server in use swallows connections.
    pub(crate) const NEXT_AFTER_SILENCE: Duration = ms(1500);
    /// … a connection to it is left over from before it vanished: both are tried.
    pub(crate) const NEXT_AFTER_STALE: Duration = ms(3000);
    /// A peer that vanished without a word is an error at the client.
    pub(crate) const VANISHED: Duration = ms(12_000);
    /// A server's new address is in use.
    pub(crate) const MOVED: Duration = ms(6000);
    /// The Ollama behind a server stopped or started.
    pub(crate) const OLLAMA_CHANGED: Duration = ms(2000);
    /// A client's hang-up has closed Ollama's socket.
    pub(crate) const HUNG_UP: Duration = ms(100);
    /// An honest probe is answered whatever others send.
    pub(crate) const PROBE_ANSWERED: Duration = ms(1000);
}

/// For slower machines.
const SLACK: u32 = 2;
/// What a scheduler or a disk of a busy machine may cost besides; nothing in `make netns`.
const BUSY: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);

/// Looks until `look` finds something; how long that took comes with it.
pub(crate) fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Option<T>,
) -> (T, Duration) {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return (found, start.elapsed());
        }
        let waited = start.elapsed();
        assert!(waited < limit, "not within {limit:?}: {what}");
        thread::sleep(LOOK);
    }
}

/// Whether nothing else runs on this machine, as in `make netns`.
pub(crate) fn is_strict() -> bool {
    std::env::var_os("OLLANA_STRICT").is_some()
}

/// How long something may take here whose limit this is.
fn allowed(limit: Duration) -> Duration {
    limit * SLACK + if is_strict() { Duration::ZERO } else { BUSY }
}

/// Waits for something that may take `limit`, with slack, and prints how long it took.
pub(crate) fn takes<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let (found, took) = until(what, allowed(limit), &mut look);
    judge(what, took, limit);
    found
}

/// Prints how long something took and fails if that is too long, with slack.
pub(crate) fn judge(what: &str, took: Duration, limit: Duration) {
    let thread = thread::current();
    let test = thread.name().unwrap_or_default().trim_start_matches("netns::");
    println!("{test}: {what} {} ms (limit {} ms)", took.as_millis(), limit.as_millis());
    let allowed = allowed(limit);
    assert!(took <= allowed, "{what} took {took:?}, limit {limit:?}, allowed {allowed:?}");
}

/// Looks for as long as `time` says; for what must not happen, or has to go on for a while.
pub(crate) fn throughout(time: Duration, mut look: impl FnMut()) {
    let start = Instant::now();
    until("the end of a span of time", time * 100, || {
        look();
        (start.elapsed() >= time).then_some(())
    });
}
