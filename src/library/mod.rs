//! Ollama's store of models on this disk: what other machines may have of it. It is only ever read.
//!
//! ```text
//!  STORE/manifests/HOST/NAMESPACE/MODEL/TAG   which blobs a model is made of
//!  STORE/blobs/sha256-HEX                     their bytes
//! ```
//!
//! A blob is given only if a manifest names it that can be read, with the size that it has; or a pull that
//! passed here, whose manifest is written last. Nothing
//! within the store is followed that is a link, so no name leads out of it. The room knows nothing of
//! who asks; `access` says who may have what ([`ShareModels`](crate::access::permissions::ShareModels)).

mod manifests;
mod store;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use self::manifests::Catalog;
pub(crate) use self::manifests::Digest;
use crate::access::permissions::Origin;
use crate::ollama::model_name::ModelName;
use crate::system::{files, lock};

/// Layers of pulls that are remembered.
const MOST_PULLED: usize = 256;
/// How old what was read of the manifests may be.
const AGE: Duration = Duration::from_secs(1);

/// A store, wherever it is.
#[derive(Debug)]
pub(crate) struct Library {
    dir: PathBuf,
    read: Mutex<Option<(Instant, Arc<Catalog>)>>,
    /// Layers of pulls that passed here, and their sizes; the last ones.
    pulled: Mutex<VecDeque<(Digest, u64)>>,
}

/// A blob that may be given to whom its origin allows.
#[derive(Debug)]
pub(crate) struct Blob {
    pub(crate) file: File,
    pub(crate) size: u64,
}

impl Library {
    /// The one that the Ollama of this machine uses, as far as that can be told.
    pub(crate) fn find() -> Option<Self> {
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let named = variable("OLLAMA_MODELS");
        // Where Ollama's installer has its service keep them.
        let service = PathBuf::from("/usr/share/ollama/.ollama/models");
        let home = variable("HOME").map(|home| home.join(".ollama/models"));
        let places = [named, Some(service), home];
        places.into_iter().flatten().find(|dir| dir.is_dir()).map(Library::at)
    }

    pub(crate) fn at(dir: PathBuf) -> Self {
        Library { dir, read: Mutex::default(), pulled: Mutex::default() }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Models that others may have, and why there are none if the store can't be read.
    pub(crate) fn state(&self) -> Result<usize, String> {
        let dir = self.dir.clone();
        files::in_time(move || store::check(&dir)).map_err(|error| self.unreadable(&error))?;
        self.catalog().map(|catalog| catalog.models()).map_err(|error| self.unreadable(&error))
    }

    fn unreadable(&self, error: &io::Error) -> String {
        let dir = self.dir.display();
        format!(
            "Ollama's models in {dir} can't be read ({error}), so other machines download them \
             again; let the user of ollana read that folder, or set OLLAMA_MODELS to where they are"
        )
    }

    /// Where a blob comes from, if a model has it that can be read.
    pub(crate) fn origin(&self, digest: &Digest) -> Option<Origin> {
        self.known(digest).map(|(origin, _)| origin)
    }

    /// The blob of this digest, if it is whole.
    pub(crate) fn open(&self, digest: &Digest) -> Option<Blob> {
        let (_, size) = self.known(digest)?;
        let (dir, digest) = (self.dir.clone(), *digest);
        let opened = files::in_time(move || store::open_blob(&dir, &digest));
        let (file, length) = opened.ok()?;
        (length == size).then_some(Blob { file, size })
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
        let named = self.catalog().ok().and_then(|catalog| catalog.blob(digest));
        named.or_else(|| {
            let pulled = lock(&self.pulled);
            let it = pulled.iter().find(|(pulled, _)| pulled == digest);
            it.map(|(_, size)| (Origin::Pulled, *size))
        })
    }

    /// The manifest of a model, as Ollama wrote it, but for the paths of this machine in it.
    pub(crate) fn manifest(&self, name: &ModelName) -> Option<Vec<u8>> {
        let place = self.catalog().ok()?.place(name)?;
        let dir = self.dir.clone();
        let text = files::in_time(move || store::read_manifest(&dir, &place)).ok()?;
        manifests::without_paths(&text)
    }

    /// What the manifests say, read again if that is old.
    fn catalog(&self) -> io::Result<Arc<Catalog>> {
        let mut read = lock(&self.read);
        if let Some((at, catalog)) = &*read
            && at.elapsed() < AGE
        {
            return Ok(Arc::clone(catalog));
        }
        let dir = self.dir.clone();
        let catalog = Arc::new(files::in_time(move || store::read_catalog(&dir))?);
        *read = Some((Instant::now(), Arc::clone(&catalog)));
        Ok(catalog)
    }
}

#[cfg(test)]
mod tests;
