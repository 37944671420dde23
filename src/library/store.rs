//! Files of a store. Links within it aren't followed.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, openat};

use super::manifests::{Catalog, Digest, Place};

/// Models that are looked at, and bytes of a manifest; Ollama's have one or two thousand.
const MOST_MODELS: usize = 4096;
const MANIFEST: u64 = 256 << 10;
/// Files and folders on the way to them that are looked at.
const MOST_ENTRIES: usize = 4 * MOST_MODELS;

fn open_dir(above: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(above, name, OFlags::RDONLY | flags, Mode::empty())?)
}

/// The store itself may be a link, or behind one: its owner has put it there.
fn open_store(dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(CWD, dir, flags, Mode::empty())?)
}

/// A plain file; what would make its reader wait is none.
fn open_file(above: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(above, name, flags, Mode::empty())?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("not a plain file")),
    }
}

/// Fails if the folders of the store can't be read.
pub(super) fn check(dir: &Path) -> io::Result<()> {
    let store = open_store(dir)?;
    for folder in ["manifests", "blobs"] {
        match open_dir(&store, folder) {
            // Ollama makes them for the first model.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
            Ok(folder) => Dir::read_from(&folder)?.next().transpose().map(drop)?,
        }
    }
    Ok(())
}

pub(super) fn open_blob(dir: &Path, digest: &Digest) -> io::Result<(File, u64)> {
    let blobs = open_dir(&open_store(dir)?, "blobs")?;
    let file = open_file(&blobs, &digest.file_name())?;
    let size = file.metadata()?.size();
    Ok((file, size))
}

pub(super) fn read_catalog(dir: &Path) -> io::Result<Catalog> {
    let mut catalog = Catalog::default();
    let store = open_store(dir)?;
    let manifests = match open_dir(&store, "manifests") {
        Ok(manifests) => manifests,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(catalog),
        Err(error) => return Err(error),
    };
    let mut left = MOST_ENTRIES;
    walk(&manifests, &mut Vec::new(), &mut left, &mut catalog);
    Ok(catalog)
}

/// Reads what is four levels down. What can't be read isn't shared, and keeps nothing else from being
/// so.
fn walk(folder: &OwnedFd, way: &mut Vec<String>, left: &mut usize, catalog: &mut Catalog) {
    let Ok(entries) = Dir::read_from(folder) else { return };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().to_str() else { continue };
        if name.starts_with('.') || *left == 0 || catalog.models() >= MOST_MODELS {
            continue;
        }
        *left -= 1;
        let is_file = entry.file_type() == FileType::RegularFile;
        let may_be = |kind| entry.file_type() == kind || entry.file_type() == FileType::Unknown;
        way.push(name.to_owned());
        match (way.len(), Place::of(way)) {
            (4, Some(place)) if may_be(FileType::RegularFile) => {
                if let Ok(text) = open_file(folder, name).and_then(read) {
                    catalog.add(place, &text);
                }
            }
            (1..4, _) if !is_file && may_be(FileType::Directory) => {
                if let Ok(below) = open_dir(folder, name) {
                    walk(&below, way, left, catalog);
                }
            }
            _ => {}
        }
        way.pop();
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
    let mut folder = open_dir(&open_store(dir)?, "manifests")?;
    let [folders @ .., tag] = &place.0;
    for name in folders {
        folder = open_dir(&folder, name)?;
    }
    read(open_file(&folder, tag)?)
}
