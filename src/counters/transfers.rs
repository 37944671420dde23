//! Pulls and uploads on their way through.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::sources::Sources;
use crate::net::untrusted_text::printable;
use crate::system::{lock, parse_hex};

/// Pulls and uploads shown at once; more are served, but not shown.
const MAX_TRANSFERS: usize = 64;

/// The speed is that of the last 5 to 10 seconds.
const SPAN: Duration = Duration::from_secs(5);

/// What a pull's line calls the server that gives the bytes, where it isn't the registry. Only a
/// server's proxy writes it; programs pass over what they don't know.
pub(crate) const FROM: &str = "from";

#[derive(Debug)]
pub(crate) struct Transfer {
    /// `pull`, `push`, `create` or `upload`.
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    pub(crate) since: Instant,
    /// Bytes of the layer or blob under way (0 if unknown), and how many of them are done.
    total: AtomicU64,
    done: AtomicU64,
    /// Bytes seen passing or told to have passed, over all layers.
    moved: AtomicU64,
    speed: Mutex<Speed>,
    words: Mutex<Words>,
    sources: Arc<Sources>,
}

/// What is told of a transfer besides figures.
#[derive(Clone, Debug, Default)]
pub(crate) struct Words {
    pub(crate) server: String,
    /// That server is this machine's Ollama.
    pub(crate) is_here: bool,
    /// What is being done.
    pub(crate) state: String,
    /// The server that gives the bytes; empty: the registry does.
    pub(crate) from: String,
    /// Whether its lines name each layer by its digest, which is what others are asked for. Ollama
    /// does not for models of tensors (`server/images.go`, `pullWithTransfer`).
    pub(crate) names_layers: Option<bool>,
}

/// Two moments, and how much was moved until then.
#[derive(Debug)]
struct Speed {
    before: (Instant, u64),
    last: (Instant, u64),
}

impl Transfer {
    /// The first word about a layer only tells where it stands, which may be far where an earlier
    /// pull broke off.
    fn set(&self, done: u64, total: u64) {
        let before = self.done.swap(done, Relaxed);
        if self.total.swap(total, Relaxed) == total {
            self.add(done.saturating_sub(before));
        }
    }

    pub(crate) fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Relaxed);
        self.add(bytes);
    }

    fn add(&self, bytes: u64) {
        let moved = self.moved.fetch_add(bytes, Relaxed) + bytes;
        lock(&self.speed).note(Instant::now(), moved);
        if self.kind == "pull" {
            let words = lock(&self.words);
            if words.is_here {
                self.sources.add(&words.from, bytes);
            }
        }
    }

    /// The server that does it, and whether that is this machine's Ollama.
    pub(crate) fn goes_to(&self, server: &str, is_here: bool) {
        let mut words = lock(&self.words);
        (words.server, words.is_here) = (printable(server), is_here);
    }

    /// Who gives the bytes from now on; empty: the registry does.
    pub(crate) fn comes_from(&self, server: &str) {
        let (mut words, server) = (lock(&self.words), printable(server));
        if words.from != server {
            words.from = server;
            // Its speed says nothing of the other's.
            *lock(&self.speed) = Speed::new(Instant::now(), self.moved.load(Relaxed));
        }
    }

    /// A layer is here and right, of which so much did not have to come from the registry.
    pub(crate) fn saved(&self, bytes: u64) {
        self.sources.saved.add(bytes);
    }

    /// Bytes done, and bytes in all (0 if unknown).
    pub(crate) fn progress(&self) -> (u64, u64) {
        (self.done.load(Relaxed), self.total.load(Relaxed))
    }

    pub(crate) fn bytes_per_s(&self, now: Instant) -> u64 {
        lock(&self.speed).per_second(now, self.moved.load(Relaxed))
    }

    pub(crate) fn words(&self) -> Words {
        lock(&self.words).clone()
    }

    /// Reads a line of a pull, push or create: what is done, of which layer, and how far that is.
    pub(crate) fn read(&self, line: &[u8]) {
        let Ok(line) = serde_json::from_slice::<Value>(line) else { return };
        let text = |member: &str| line.get(member).and_then(Value::as_str);
        if let Some(status) = text("status") {
            let mut words = lock(&self.words);
            if words.state != status {
                words.state = printable(status);
            }
        }
        let number = |member: &str| line.get(member).and_then(Value::as_u64);
        match (number("completed"), number("total")) {
            (done, Some(total)) => {
                let is_layer = text("digest").is_some_and(is_digest);
                lock(&self.words).names_layers = Some(is_layer);
                self.comes_from(text(FROM).unwrap_or_default());
                self.set(done.unwrap_or(0).min(total), total);
            }
            // A step that has no measure, such as "verifying sha256 digest": what was done of the
            // last layer says nothing of it.
            (_, None) => self.set(0, 0),
        }
    }
}

/// Whether it names a blob: `sha256:` and 64 hexadecimal digits.
fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").and_then(parse_hex::<32>).is_some()
}

impl Speed {
    fn new(now: Instant, moved: u64) -> Self {
        Speed { before: (now, moved), last: (now, moved) }
    }

    fn note(&mut self, now: Instant, moved: u64) {
        if now.saturating_duration_since(self.last.0) >= SPAN {
            *self = Speed { before: self.last, last: (now, moved) };
        }
    }

    fn per_second(&mut self, now: Instant, moved: u64) -> u64 {
        self.note(now, moved); // Nothing may have come for long.
        let time = now.saturating_duration_since(self.before.0).as_secs_f64();
        let bytes = moved.saturating_sub(self.before.1);
        if time > 0.5 { (bytes as f64 / time) as u64 } else { 0 }
    }
}

/// All that are under way, the oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Transfers {
    list: Arc<Mutex<Vec<Arc<Transfer>>>>,
    /// Where the bytes of this machine's pulls came from.
    pub(crate) sources: Arc<Sources>,
}

impl Transfers {
    /// A pull or an upload begins.
    pub(crate) fn begin(&self, kind: &'static str, name: &str, total: u64) -> TransferGuard {
        let now = Instant::now();
        let transfer = Arc::new(Transfer {
            kind,
            name: printable(name),
            since: now,
            total: AtomicU64::new(total),
            done: AtomicU64::default(),
            moved: AtomicU64::default(),
            speed: Mutex::new(Speed::new(now, 0)),
            words: Mutex::default(),
            sources: Arc::clone(&self.sources),
        });
        let mut list = lock(&self.list);
        if list.len() < MAX_TRANSFERS {
            list.push(Arc::clone(&transfer));
        }
        TransferGuard { transfer, list: Arc::clone(&self.list) }
    }

    pub(crate) fn all(&self) -> Vec<Arc<Transfer>> {
        lock(&self.list).clone()
    }
}

/// A transfer's place in the list; dropping it takes the transfer out.
#[derive(Debug)]
pub(crate) struct TransferGuard {
    transfer: Arc<Transfer>,
    list: Arc<Mutex<Vec<Arc<Transfer>>>>,
}

impl std::ops::Deref for TransferGuard {
    type Target = Arc<Transfer>;

    fn deref(&self) -> &Arc<Transfer> {
        &self.transfer
    }
}

impl Drop for TransferGuard {
    fn drop(&mut self) {
        lock(&self.list).retain(|other| !Arc::ptr_eq(other, &self.transfer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYER: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn line(digest: &str, done: u64, total: u64, from: Option<&str>) -> Vec<u8> {
        let mut line = serde_json::json!({
            "status": format!("pulling {digest}"), "digest": digest, "total": total, "completed": done,
        });
        if let Some(from) = from {
            line[FROM] = from.into();
        }
        line.to_string().into_bytes()
    }

    #[test]
    fn transfers_shown_are_bounded() {
        let transfers = Transfers::default();
        let mut held: Vec<_> = (0..100).map(|_| transfers.begin("pull", "m", 0)).collect();
        assert_eq!(transfers.all().len(), MAX_TRANSFERS);
        held.truncate(1);
        assert_eq!(transfers.all().len(), 1);
    }

    #[test]
    fn what_a_transfer_has_moved_counts_every_layer() {
        let transfers = Transfers::default();
        let pull = transfers.begin("pull", "m", 0);
        let moved = || pull.moved.load(Relaxed);
        pull.set(60, 100); // Taken up where an earlier one broke off.
        pull.set(100, 100);
        pull.set(5, 10); // The next layer.
        assert_eq!((pull.progress(), moved()), ((5, 10), 40));
        pull.read(br#"{"status":"pulling 12ab","digest":"x","total":10,"completed":7}"#);
        assert_eq!(pull.words().state, "pulling 12ab");
        pull.read(b"no JSON");
        assert_eq!((pull.progress(), moved()), ((7, 10), 42));
    }

    #[test]
    fn a_step_without_a_measure_shows_nothing_of_the_last_layer() {
        let transfers = Transfers::default();
        let pull = transfers.begin("pull", "m", 0);
        let moved = || pull.moved.load(Relaxed);
        pull.read(&line(LAYER, 0, 100, None));
        pull.read(&line(LAYER, 100, 100, None));
        for _ in 0..2 {
            pull.read(br#"{"status":"verifying sha256 digest"}"#);
            assert_eq!((pull.progress(), moved()), ((0, 0), 100));
        }
        // Nor does a layer count twice that goes on after it.
        pull.read(&line(LAYER, 100, 100, None));
        assert_eq!((pull.progress(), moved()), ((100, 100), 100));
        // An upload of unknown length has no lines.
        let upload = transfers.begin("upload", "m", 0);
        upload.advance(7);
        assert_eq!(upload.progress(), (7, 0));
    }

    #[test]
    fn bytes_are_counted_for_whom_they_come_from() {
        let transfers = Transfers::default();
        let pull = transfers.begin("pull", "m", 0);
        pull.goes_to("here", true);
        for (done, from) in [(0, None), (10, None), (30, Some("desktop")), (70, Some("nas"))] {
            pull.read(&line(LAYER, done, 100, from));
            assert_eq!(pull.words().from, from.unwrap_or_default());
        }
        pull.read(&line(LAYER, 100, 100, None)); // The registry goes on.
        pull.saved(60);
        let Sources { registry, saved, .. } = &*transfers.sources;
        assert_eq!((registry.value(), saved.value()), (40, 60));
        let servers = [("desktop".to_owned(), 20), ("nas".to_owned(), 40)];
        assert_eq!(transfers.sources.servers(), servers);
        // Nor is it a pull of this machine that another one does, or anything but a pull.
        for (kind, is_here) in [("pull", false), ("push", true)] {
            let other = transfers.begin(kind, "m", 0);
            other.goes_to("nas", is_here);
            other.read(&line(LAYER, 0, 100, None));
            other.read(&line(LAYER, 100, 100, None));
        }
        assert_eq!(registry.value(), 40);
    }

    #[test]
    fn whether_layers_are_named() {
        let pull = Transfers::default().begin("pull", "m", 0);
        pull.read(br#"{"status":"pulling manifest"}"#);
        assert_eq!(pull.words().names_layers, None);
        for (digest, want) in [(LAYER, true), ("sha256:model", false), ("", false)] {
            pull.read(&line(digest, 1, 2, None));
            assert_eq!(pull.words().names_layers, Some(want), "{digest}");
        }
        pull.read(br#"{"status":"pulling model","total":10,"completed":7}"#);
        assert_eq!(pull.words().names_layers, Some(false));
    }

    #[test]
    fn the_speed_is_that_of_the_last_seconds() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut speed = Speed::new(start, 0);
        assert_eq!(speed.per_second(at(200), 100), 0, "too soon to say");
        (1..=60).for_each(|s| speed.note(at(1000 * s), 10 * s)); // A minute at 10.
        (1..=10).for_each(|s| speed.note(at(60_000 + 1000 * s), 600 + 100 * s));
        assert_eq!(speed.per_second(at(70_000), 1600), 100);
        assert!(speed.per_second(at(71_000), 1600) < 100);
        assert_eq!(speed.per_second(at(200_000), 1600), 0, "it stands");
    }
}
