//! A registry of models: manifests, and blobs with `Range`, over real HTTP on loopback. It can be
//! slow, give a wrong byte, stop in the middle and go away; [`Fake::kill`] and [`Fake::restart`]
//! make it unreachable.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::ollama::{Name, Package};
use super::{Call, Fake, Gate, PATIENCE, lock};

/// What a registry has and how it gives it.
#[derive(Debug, Default)]
pub struct Shelf {
    /// By `NAMESPACE/MODEL` and tag.
    manifests: BTreeMap<(String, String), String>,
    blobs: BTreeMap<String, Arc<Vec<u8>>>,
    /// Bytes per second of each download.
    pub rate: Option<u64>,
    /// Of each download that begins: so many bytes, then nothing until the gate opens.
    pub holds: Option<(usize, Gate)>,
    /// Each download ends behind so many bytes.
    pub cuts: Option<usize>,
    /// A blob, and the byte of it that comes out wrong.
    pub wrong_byte: Option<(String, usize)>,
    /// Status and body of every answer.
    pub refuses: Option<(u16, String)>,
    /// Bytes given for requests with a range, by digest. Ollama leaves the answer to its request for
    /// the whole as soon as it has the head.
    given: BTreeMap<String, u64>,
}

/// The registry itself. It is a [`Fake`] too: what it was asked is recorded.
pub struct Registry {
    fake: Fake,
    shelf: Arc<Mutex<Shelf>>,
}

impl Registry {
    pub fn start() -> Self {
        let shelf = Arc::new(Mutex::new(Shelf::default()));
        let serving = Arc::clone(&shelf);
        let fake = Fake::start_checked(|_| None, move |call| serve(&serving, call));
        Registry { fake, shelf }
    }

    /// Has this model from now on.
    pub fn publish(&self, name: &str, package: &Package) {
        let mut shelf = lock(&self.shelf);
        let [path, tag] = Name::parse(name).registry_path();
        shelf.manifests.insert((path, tag), package.manifest.clone());
        for (digest, bytes) in &package.blobs {
            shelf.blobs.insert(digest.clone(), Arc::new(bytes.clone()));
        }
    }

    pub fn change(&self, change: impl FnOnce(&mut Shelf)) {
        change(&mut lock(&self.shelf));
    }

    /// How many bytes of a blob were sent to downloads.
    pub fn given(&self, digest: &str) -> u64 {
        lock(&self.shelf).given.get(digest).copied().unwrap_or(0)
    }
}

impl Deref for Registry {
    type Target = Fake;

    fn deref(&self) -> &Fake {
        &self.fake
    }
}

impl DerefMut for Registry {
    fn deref_mut(&mut self) -> &mut Fake {
        &mut self.fake
    }
}

fn serve(shelf: &Mutex<Shelf>, call: &mut Call<'_>) {
    if let Some((status, body)) = lock(shelf).refuses.clone() {
        return call.answer(&format!("{status} No"), "text/plain", body);
    }
    let target = call.target().to_owned();
    let path = target.strip_prefix("/v2/").unwrap_or_default();
    if let Some((name, tag)) = path.split_once("/manifests/") {
        let manifest = lock(shelf).manifests.get(&(name.to_owned(), tag.to_owned())).cloned();
        let kind = "application/vnd.docker.distribution.manifest.v2+json";
        return match manifest {
            Some(manifest) => call.answer("200 OK", kind, manifest),
            None => call.answer("404 Not Found", "application/json", "{\"errors\":[]}"),
        };
    }
    let digest = path.split_once("/blobs/").map_or("", |(_, digest)| digest).to_owned();
    let Some(bytes) = lock(shelf).blobs.get(&digest).cloned() else {
        return call.answer("404 Not Found", "application/json", "{\"errors\":[]}");
    };
    let range = call.head.one("range").and_then(|range| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse::<usize>().ok()?, last.parse::<usize>().ok()?))
    });
    let (first, end) = range.map_or((0, bytes.len()), |(first, last)| (first, last + 1));
    let end = end.min(bytes.len());
    let part = &bytes[first.min(end)..end];
    let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
    // Ollama wants to know where the bytes themselves are, and goes there with its ranges.
    call.send(format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nLocation: {target}\r\n\
         Content-Range: bytes {first}-{}/{}\r\nAccept-Ranges: bytes\r\n\r\n",
        part.len(),
        end.saturating_sub(1),
        bytes.len()
    ));
    if call.head.method() != "HEAD" {
        give(shelf, call, &digest, part, first);
    }
}

/// Sends bytes of a blob, from this one on, as well as it can.
fn give(shelf: &Mutex<Shelf>, call: &mut Call<'_>, digest: &str, bytes: &[u8], first: usize) {
    const PIECE: usize = 32 << 10;
    let (rate, holds, cuts, wrong) = {
        let shelf = lock(shelf);
        let wrong = shelf.wrong_byte.clone().filter(|(other, _)| other == digest);
        (shelf.rate, shelf.holds.clone(), shelf.cuts, wrong)
    };
    let mut sent = 0;
    while sent < bytes.len() {
        if let Some((_, gate)) = holds.as_ref().filter(|(bytes, _)| sent == *bytes) {
            let mut waited = Duration::ZERO;
            let step = Duration::from_millis(5);
            while !gate.wait_for(step) {
                if call.has_left() {
                    return;
                }
                waited += step;
                assert!(waited < 3 * PATIENCE, "the registry waited in vain for its gate");
            }
        }
        if cuts == Some(sent) {
            return call.close();
        }
        let stops = holds.iter().map(|(bytes, _)| *bytes).chain(cuts);
        let stop = stops.filter(|stop| *stop > sent).min().unwrap_or(usize::MAX);
        let end = bytes.len().min(sent + PIECE).min(stop);
        let mut piece = bytes[sent..end].to_vec();
        if let Some((_, byte)) = &wrong
            && let Some(byte) = byte.checked_sub(first + sent).and_then(|at| piece.get_mut(at))
        {
            *byte ^= 1;
        }
        if !call.send(&piece) {
            return;
        }
        if call.head.has("range") {
            *lock(shelf).given.entry(digest.to_owned()).or_default() += piece.len() as u64;
        }
        sent = end;
        if let Some(rate) = rate {
            thread::sleep(Duration::from_secs_f64(piece.len() as f64 / rate as f64));
        }
    }
}
