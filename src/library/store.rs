//! Files of a store. Links within it aren't followed; of one in the place of a manifest the name of a blob
//! is taken.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::manifests::{Catalog, Digest, Place};
use crate::system::files::{Folder, Kind};

/// Models that are looked at, and bytes of a manifest; Ollama's have one or two thousand.
const MOST_MODELS: usize = 4096;
const MANIFEST: u64 = 256 << 10;
/// Files and folders on the way to them that are looked at.
const MOST_ENTRIES: usize = 4 * MOST_MODELS;

/// Where manifests are, in the order in which Ollama looks for one: in the first of them newer versions
/// keep links to blobs, which have the text.
const ROOTS: [&str; 2] = ["manifests-v2", "manifests"];

/// The text of a manifest. A link is only believed in which blob of this store it means.
fn read_named(blobs: &Folder, folder: &Folder, name: &str) -> io::Result<Vec<u8>> {
    match folder.file(name) {
        Ok(file) => read(file),
        Err(error) => {
            let link = folder.link(name).map_err(|_| error)?;
            let blob = link.to_str().and_then(|link| link.rsplit(['/', '\\']).next());
            let digest = blob.and_then(|blob| Digest::parse(&blob.replacen('-', ":", 1)));
            let digest = digest.ok_or(io::ErrorKind::NotFound)?;
            read(blobs.file(&digest.file_name())?)
        }
    }
}

/// A folder of the store; Ollama makes them for the first model.
fn open_if_there(store: &Folder, name: &str) -> io::Result<Option<Folder>> {
    match store.folder(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

/// Fails if the folders of the store can't be read.
pub(super) fn check(dir: &Path) -> io::Result<()> {
    let store = Folder::open(dir)?;
    for folder in ROOTS.into_iter().chain(["blobs"]) {
        if let Some(folder) = open_if_there(&store, folder)? {
            folder.entries()?.next().transpose().map(drop)?;
        }
    }
    Ok(())
}

pub(super) fn open_blob(dir: &Path, digest: &Digest) -> io::Result<(File, u64)> {
    let blobs = Folder::open(dir)?.folder("blobs")?;
    let file = blobs.file(&digest.file_name())?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

pub(super) fn has_all(dir: &Path, wanted: &[(Digest, u64)]) -> io::Result<bool> {
    let blobs = Folder::open(dir)?.folder("blobs")?;
    let has = |(digest, size): &(Digest, u64)| {
        blobs
            .file(&digest.file_name())
            .and_then(|file| file.metadata())
            .is_ok_and(|it| it.len() == *size)
    };
    Ok(wanted.iter().all(has))
}

pub(super) fn read_catalog(dir: &Path) -> io::Result<Catalog> {
    let store = Folder::open(dir)?;
    let Some(blobs) = open_if_there(&store, "blobs")? else { return Ok(Catalog::default()) };
    let (catalog, left) = (Catalog::default(), MOST_ENTRIES);
    let mut walk = Walk { root: "", blobs, way: Vec::new(), left, catalog };
    for root in ROOTS {
        if let Some(manifests) = open_if_there(&store, root)? {
            walk.root = root;
            walk.look(&manifests);
        }
    }
    Ok(walk.catalog)
}

struct Walk {
    root: &'static str,
    blobs: Folder,
    way: Vec<String>,
    left: usize,
    catalog: Catalog,
}

impl Walk {
    /// Reads what is four levels down. What can't be read isn't shared, and keeps nothing else from
    /// being so.
    fn look(&mut self, folder: &Folder) {
        let Ok(entries) = folder.entries() else { return };
        for entry in entries.flatten() {
            let Some(name) = entry.name.to_str() else { continue };
            if name.starts_with('.') || self.left == 0 || self.catalog.models() >= MOST_MODELS {
                continue;
            }
            self.left -= 1;
            self.way.push(name.to_owned());
            match (Place::of(self.root, &self.way), entry.kind) {
                (Some(_), Kind::Folder) => {}
                (Some(place), _) => {
                    if let Ok(text) = read_named(&self.blobs, folder, name) {
                        let blobs = &self.blobs;
                        let of = |digest: &Digest| read(blobs.file(&digest.file_name()).ok()?).ok();
                        self.catalog.add(place, &text, &of);
                    }
                }
                (None, Kind::Folder | Kind::Unknown) => {
                    if let Ok(below) = folder.folder(name) {
                        self.look(&below);
                    }
                }
                (None, _) => {}
            }
            self.way.pop();
        }
    }
}

fn read(file: File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.take(MANIFEST + 1).read_to_end(&mut text)?;
    match text.len() as u64 > MANIFEST {
        true => Err(io::Error::other("too long for a manifest")),
        false => Ok(text),
    }
}

pub(super) fn read_manifest(dir: &Path, place: &Place) -> io::Result<Vec<u8>> {
    let store = Folder::open(dir)?;
    let mut folder = store.folder(place.root)?;
    let [folders @ .., tag] = &place.way;
    for name in folders {
        folder = folder.folder(name)?;
    }
    read_named(&store.folder("blobs")?, &folder, tag)
}
