//! Ollama's store of models on this disk: what other machines may have of it. It is only ever read.
//!
//! ```text
//!  STORE/manifests/HOST/NAMESPACE/MODEL/TAG   which blobs a model is made of
//!  STORE/blobs/sha256-HEX                     their bytes
//! ```
//!
//! A blob is given only if a manifest names it that can be read, with the size that it has; or a pull
//! that passed here, whose manifest is written last. Nothing within the store is followed that is a
//! link, so no name leads out of it. The room knows nothing of who asks; `access` says who may have
//! what ([`ShareModels`](crate::access::permissions::ShareModels)).

mod manifests;
mod places;
mod store;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use self::manifests::Catalog;
pub(crate) use self::manifests::{Digest, without_paths};
use self::places::{Places, places};
use crate::access::permissions::Origin;
use crate::ollama::model_name::ModelName;
use crate::system::{files, lock};

/// Layers of pulls that are remembered.
const MOST_PULLED: usize = 256;
/// How old what was read of the manifests may be.
const AGE: Duration = Duration::from_secs(1);
/// The same where they don't name what is asked for: a model may just have come.
const AGE_OF_MISS: Duration = Duration::from_millis(100);
/// How old what was found out of the store's place may be: Ollama may be started anew with another one.
const AGE_OF_PLACES: Duration = Duration::from_secs(60);

/// The store that the Ollama of this machine uses, as far as that can be told.
#[derive(Debug)]
pub(crate) struct Library {
    /// Ollama's.
    port: Option<u16>,
    /// Where it may be, best first, and since when that is known; found when it is wanted, and anew after
    /// a while and when none can be read.
    places: Mutex<(Option<Instant>, Places)>,
    read: Mutex<Option<(Instant, Arc<Catalog>)>>,
    problem: Mutex<Option<String>>,
    /// Layers of pulls that passed here, and their sizes; the last ones.
    pulled: Mutex<VecDeque<(Digest, u64)>>,
    /// Dropped with this: see [`gone`](Self::gone).
    alive: Mutex<Option<Sender<()>>>,
}

/// A blob that may be given to whom its origin allows.
#[derive(Debug)]
pub(crate) struct Blob {
    pub(crate) file: File,
    pub(crate) size: u64,
}

impl Library {
    pub(crate) fn find(port: u16) -> Self {
        Library { port: Some(port), ..Library::at(Vec::new()) }
    }

    fn at(dirs: Vec<PathBuf>) -> Self {
        let places = Mutex::new((None, Places { dirs, is_told: true }));
        let (read, problem, pulled, alive) = Default::default();
        Library { port: None, places, read, problem, pulled, alive }
    }

    /// Disconnected once this is dropped, for a thread that looks after it.
    pub(crate) fn gone(&self) -> Receiver<()> {
        let (alive, gone) = bounded(0);
        *lock(&self.alive) = Some(alive);
        gone
    }

    /// The store's folder.
    pub(crate) fn dir(&self) -> Option<PathBuf> {
        present(&self.places())
    }

    /// Bytes that are free for models. The blobs may be on a disk of their own; before the first model,
    /// they have no folder.
    pub(crate) fn free_space(&self) -> Option<u64> {
        let dir = self.dir()?;
        files::free_space(&dir.join("blobs")).or_else(|| files::free_space(&dir))
    }

    fn places(&self) -> Vec<PathBuf> {
        let mut known = lock(&self.places);
        if let Some(port) = self.port
            && known.0.is_none_or(|at| at.elapsed() >= AGE_OF_PLACES)
        {
            let found = places(port);
            // While Ollama starts anew, there is nobody to tell.
            if known.0.is_none() || found.is_told || !known.1.is_told {
                known.1 = found;
            }
            known.0 = Some(Instant::now());
        }
        known.1.dirs.clone()
    }

    /// Looks at the store: how many models others may have.
    ///
    /// # Errors
    /// It can't be read; a sentence for people.
    pub(crate) fn look(&self) -> Result<usize, String> {
        let looked = self.in_store(store::check).and_then(|()| self.catalog(AGE));
        looked.map(|catalog| catalog.models()).map_err(|error| self.note(&error))
    }

    /// Why it can't be read, as was seen last.
    pub(crate) fn problem(&self) -> Option<String> {
        lock(&self.problem).clone()
    }

    fn note(&self, error: &io::Error) -> String {
        let places = self.places().into_iter().map(|dir| dir.display().to_string());
        let places = places.reduce(|all, dir| format!("{all} or {dir}"));
        let reason = match error.kind() {
            ErrorKind::NotFound => "there is no such folder".to_owned(),
            ErrorKind::PermissionDenied => "permission denied".to_owned(),
            ErrorKind::NotADirectory => {
                "one of its folders is a link or a file; only the whole may be a link".to_owned()
            }
            _ => error.to_string(),
        };
        let problem = format!(
            "Ollama's models{} can't be read ({reason}), so other machines download them again; \
             let the user of ollana read that folder, or set OLLAMA_MODELS to where they are",
            places.map_or(String::new(), |places| format!(" in {places}"))
        );
        *lock(&self.problem) = Some(problem.clone());
        problem
    }

    /// Does something with the store's folder, whose disk may never answer.
    fn in_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let places = self.places();
        files::in_time(move || work(&present(&places).ok_or(ErrorKind::NotFound)?))
    }

    /// Where a blob comes from, if a model has it that can be read.
    pub(crate) fn origin(&self, digest: &Digest) -> Option<Origin> {
        self.known(digest).map(|(origin, _)| origin)
    }

    /// The blob of this digest, if it is whole.
    pub(crate) fn open(&self, digest: &Digest) -> Option<Blob> {
        let (_, size) = self.known(digest)?;
        let digest = *digest;
        let (file, length) = self.in_store(move |dir| store::open_blob(dir, &digest)).ok()?;
        (length == size).then_some(Blob { file, size })
    }

    /// Whether these blobs can all be opened, and have these sizes.
    pub(crate) fn has_all(&self, blobs: Vec<(Digest, u64)>) -> bool {
        self.in_store(move |dir| store::has_all(dir, &blobs)).is_ok_and(|has_all| has_all)
    }

    /// A pull has told of this layer. Ollama gives it its name once it is whole.
    pub(crate) fn note_pulled(&self, digest: &str, size: u64) {
        let Some(digest) = Digest::parse(digest) else { return };
        let mut pulled = lock(&self.pulled);
        pulled.retain(|(known, _)| *known != digest);
        if pulled.len() >= MOST_PULLED {
            pulled.pop_front();
        }
        pulled.push_back((digest, size));
    }

    fn known(&self, digest: &Digest) -> Option<(Origin, u64)> {
        let named = |age| self.catalog(age).map(|catalog| catalog.blob(digest));
        let found = match named(AGE) {
            Ok(None) => named(AGE_OF_MISS),
            found => found,
        };
        found.ok().flatten().or_else(|| {
            let pulled = lock(&self.pulled);
            let it = pulled.iter().find(|(pulled, _)| pulled == digest);
            it.map(|(_, size)| (Origin::Pulled, *size))
        })
    }

    /// The manifest of a model, as Ollama wrote it.
    pub(crate) fn manifest(&self, name: &ModelName) -> Option<Vec<u8>> {
        let place = self.catalog(AGE).ok().and_then(|catalog| catalog.place(name))?;
        self.in_store(move |dir| store::read_manifest(dir, &place)).ok()
    }

    /// What the manifests say, read again if that is older.
    fn catalog(&self, age: Duration) -> io::Result<Arc<Catalog>> {
        let mut read = lock(&self.read);
        if let Some((at, catalog)) = &*read
            && at.elapsed() < age
        {
            return Ok(Arc::clone(catalog));
        }
        let catalog = self.in_store(store::read_catalog).inspect_err(|_| {
            // Ollama may have come since, or was told of another folder.
            lock(&self.places).0 = None;
        })?;
        let catalog = Arc::new(catalog);
        lock(&self.problem).take();
        *read = Some((Instant::now(), Arc::clone(&catalog)));
        Ok(catalog)
    }
}

/// The first folder that is there; what can't be looked at may be.
fn present(places: &[PathBuf]) -> Option<PathBuf> {
    let is_none =
        |dir: &Path| fs::metadata(dir).is_err_and(|error| error.kind() == ErrorKind::NotFound);
    places.iter().find(|dir| !is_none(dir)).cloned()
}

#[cfg(test)]
mod tests;
