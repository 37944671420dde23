//! Models on disk, laid out as Ollama lays them out:
//!
//! ```text
//! manifests/HOST/NAMESPACE/MODEL/TAG     blobs/sha256-HEX
//! ```

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use ring::digest::{Context, SHA256, digest};
use serde_json::{Value, json};

use super::Model;
use super::names::Name;

/// `sha256:…` of these bytes.
pub fn sha256(bytes: &[u8]) -> String {
    named(digest(&SHA256, bytes))
}

fn named(digest: ring::digest::Digest) -> String {
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A model as a registry has it: a manifest, and what it names.
#[derive(Clone, Debug)]
pub struct Package {
    pub manifest: String,
    /// Digest and bytes of each layer; the config is the last.
    pub blobs: Vec<(String, Vec<u8>)>,
}

impl Package {
    /// The first of these layers is the weights.
    pub fn of(layers: &[&[u8]]) -> Self {
        Package::made(layers, None)
    }

    /// The same, whose weights say where they were made from.
    pub fn made(layers: &[&[u8]], from: Option<&str>) -> Self {
        const KINDS: [&str; 4] = ["model", "template", "license", "params"];
        let config = br#"{"model_format":"gguf","model_family":"llama","model_type":"1.2B"}"#;
        let mut blobs: Vec<(String, Vec<u8>)> =
            layers.iter().map(|bytes| (sha256(bytes), bytes.to_vec())).collect();
        let described: Vec<String> = blobs
            .iter()
            .enumerate()
            .map(|(index, (digest, bytes))| {
                let kind = KINDS[index.min(KINDS.len() - 1)];
                let from = from.filter(|_| index == 0).map_or(String::new(), |from| {
                    format!(",\"from\":{}", json!(from)) //
                });
                format!(
                    "{{\"mediaType\":\"application/vnd.ollama.image.{kind}\",\
                     \"digest\":\"{digest}\",\"size\":{}{from}}}",
                    bytes.len()
                )
            })
            .collect();
        blobs.push((sha256(config), config.to_vec()));
        let manifest = format!(
            "{{\"schemaVersion\":2,\
             \"mediaType\":\"application/vnd.docker.distribution.manifest.v2+json\",\
             \"config\":{{\"mediaType\":\"application/vnd.docker.container.image.v1+json\",\
             \"digest\":\"{}\",\"size\":{}}},\"layers\":[{}]}}",
            sha256(config),
            config.len(),
            described.join(",")
        );
        Package { manifest, blobs }
    }

    /// Of all layers and the config.
    pub fn digests(&self) -> Vec<String> {
        self.blobs.iter().map(|(digest, _)| digest.clone()).collect()
    }
}

/// A folder that `OLLAMA_MODELS` could name; it goes with the last of its clones.
#[derive(Clone, Debug)]
pub struct Store(Arc<Folder>);

#[derive(Debug)]
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Default for Store {
    fn default() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, SeqCst);
        let path = std::env::temp_dir().join(format!("ollana-store-{}-{number}", process::id()));
        fs::create_dir_all(path.join("blobs")).expect("a folder for blobs");
        fs::create_dir_all(path.join("manifests")).expect("a folder for manifests");
        Store(Arc::new(Folder(path)))
    }
}

impl Store {
    pub fn new() -> Self {
        Store::default()
    }

    pub fn path(&self) -> &Path {
        &self.0.0
    }

    /// Where the blob with this digest is, if it is there.
    pub fn blob(&self, digest: &str) -> PathBuf {
        self.path().join("blobs").join(digest.replacen(':', "-", 1))
    }

    pub fn has(&self, digest: &str) -> bool {
        self.blob(digest).exists()
    }

    /// Where the manifest of a model is, if it is there.
    pub fn manifest(&self, name: &str) -> PathBuf {
        self.path().join("manifests").join(self.existing(&Name::parse(name)).path())
    }

    /// Puts a model there as a pull leaves it, under a name as it is written.
    pub fn add(&self, name: &str, package: &Package) {
        for (digest, bytes) in &package.blobs {
            fs::write(self.blob(digest), bytes).expect("write a blob");
        }
        self.write_as_it_is(&Name::parse(name), package.manifest.as_bytes()).expect("a manifest");
    }

    /// What its manifest names, in that order, the config last; nothing if it has none.
    pub fn digests(&self, name: &str) -> Vec<String> {
        let manifest = fs::read(self.manifest(name)).unwrap_or_default();
        layers(&manifest).unwrap_or_default().into_iter().map(|(digest, _)| digest).collect()
    }

    /// All files beside the manifests, in order.
    pub fn files(&self) -> Vec<String> {
        let files = fs::read_dir(self.path().join("blobs")).expect("the folder of blobs");
        let mut names: Vec<String> =
            files.map(|file| file.expect("a file").file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Files beside the blobs that no pull and no upload has finished.
    pub fn unfinished(&self) -> Vec<String> {
        let names = self.files().into_iter();
        names.filter(|name| name.len() != "sha256-".len() + 64).collect()
    }

    /// All models whose manifests can be read.
    pub(super) fn models(&self) -> Vec<Model> {
        let known = self.names().into_iter().filter_map(|name| {
            let manifest = fs::read(self.path().join("manifests").join(name.path())).ok()?;
            let size = layers(&manifest)?.iter().map(|(_, size)| size).sum();
            let digest = sha256(&manifest).split_off("sha256:".len());
            Some(Model { digest, size, ..Model::local(&name.shortest()) })
        });
        known.collect()
    }

    fn names(&self) -> Vec<Name> {
        let mut found = vec![(self.path().join("manifests"), Vec::new())];
        for _ in 0..4 {
            found = found
                .into_iter()
                .flat_map(|(path, parts): (PathBuf, Vec<String>)| {
                    let files = fs::read_dir(&path).into_iter().flatten().flatten();
                    files.filter_map(move |file| {
                        let name = file.file_name().into_string().ok()?;
                        Some((file.path(), [parts.as_slice(), &[name]].concat()))
                    })
                })
                .collect();
        }
        let files = found.into_iter().filter(|(path, _)| path.is_file());
        let mut names: Vec<Name> = files.filter_map(|(_, parts)| Name::of_path(&parts)).collect();
        names.sort_by_key(Name::shortest);
        names
    }

    /// The name as Ollama takes it (`getExistingName` in `server/routes.go`): each part in the case in
    /// which any model has it. Where models differ in that, one of them wins, another one each time.
    pub(super) fn existing(&self, name: &Name) -> Name {
        static TIMES: AtomicUsize = AtomicUsize::new(0);
        let mut names = self.names();
        let first = TIMES.fetch_add(1, SeqCst) % names.len().max(1);
        names.rotate_left(first);
        names.iter().fold(name.clone(), Name::in_case_of)
    }

    pub(super) fn write_manifest(&self, name: &Name, bytes: &[u8]) -> Result<(), String> {
        self.write_as_it_is(&self.existing(name), bytes)
    }

    fn write_as_it_is(&self, name: &Name, bytes: &[u8]) -> Result<(), String> {
        let path = self.path().join("manifests").join(name.path());
        // No name of a file on Windows has a colon, but Wine lets it pass.
        if cfg!(windows) && name.path().to_string_lossy().contains(':') {
            return Err(format!("mkdir {}: The directory name is invalid.", path.display()));
        }
        let folder = path.parent().expect("a folder of the manifest");
        fs::create_dir_all(folder).and_then(|()| fs::write(&path, bytes)).map_err(worded)
    }

    pub(super) fn copy(&self, source: &Name, destination: &Name) -> Result<(), String> {
        let path = self.path().join("manifests").join(self.existing(source).path());
        let bytes = fs::read(path).map_err(worded)?;
        self.write_manifest(destination, &bytes)
    }

    /// Removes a model, and those of its blobs that no other needs.
    pub(super) fn delete(&self, name: &Name) {
        let root = self.path().join("manifests");
        let path = root.join(self.existing(name).path());
        let old = layers(&fs::read(&path).unwrap_or_default()).unwrap_or_default();
        let _ = fs::remove_file(&path);
        for folder in path.ancestors().skip(1).take_while(|folder| *folder != root) {
            let _ = fs::remove_dir(folder);
        }
        self.remove_unused(old.into_iter().map(|(digest, _)| digest));
    }

    /// Removes those of these blobs that no manifest names.
    pub(super) fn remove_unused(&self, digests: impl Iterator<Item = String>) {
        let root = self.path().join("manifests");
        let manifests = self.names().into_iter().map(|name| fs::read(root.join(name.path())));
        let used: BTreeSet<String> = manifests
            .filter_map(|manifest| layers(&manifest.ok()?))
            .flatten()
            .map(|(digest, _)| digest)
            .collect();
        for digest in digests.filter(|digest| !used.contains(digest)) {
            let _ = fs::remove_file(self.blob(&digest));
        }
    }

    /// Takes a blob in while its hash is made, and gives its digest: what was cut short leaves
    /// nothing, and what has another digest than expected is there under its own.
    pub(super) fn take(
        &self,
        mut part: impl FnMut() -> Result<Option<Vec<u8>>, String>,
    ) -> Result<String, String> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, SeqCst);
        let path = self.path().join("blobs").join(format!("sha256-{number:010}"));
        let mut take = || {
            let mut file = File::create(&path).map_err(worded)?;
            let mut hash = Context::new(&SHA256);
            while let Some(part) = part()? {
                hash.update(&part);
                file.write_all(&part).map_err(worded)?;
            }
            let digest = named(hash.finish());
            fs::rename(&path, self.blob(&digest)).map_err(worded)?;
            Ok(digest)
        };
        let taken = take();
        let _ = fs::remove_file(&path);
        taken
    }

    /// Whether a blob is what its name says; it is removed if not.
    pub(super) fn verify(&self, digest: &str) -> Result<(), String> {
        let mut file = File::open(self.blob(digest)).map_err(worded)?;
        let mut hash = Context::new(&SHA256);
        let mut piece = vec![0; 256 << 10];
        loop {
            match file.read(&mut piece).map_err(worded)? {
                0 => break,
                n => hash.update(&piece[..n]),
            }
        }
        let found = named(hash.finish());
        if found == digest {
            return Ok(());
        }
        let _ = fs::remove_file(self.blob(digest));
        let what = "digest mismatch, file must be downloaded again";
        Err(format!("{what}: want {digest}, got {found}"))
    }
}

/// Digest and size of what a manifest names, the config last.
pub(super) fn layers(manifest: &[u8]) -> Option<Vec<(String, u64)>> {
    let manifest: Value = serde_json::from_slice(manifest).ok()?;
    let layers = manifest["layers"].as_array().map_or(&[][..], Vec::as_slice);
    let all = layers.iter().chain([&manifest["config"]]);
    let named = all.filter(|layer| layer["digest"].as_str().is_some_and(|text| !text.is_empty()));
    named
        .map(|layer| Some((layer["digest"].as_str()?.to_owned(), layer["size"].as_u64()?)))
        .collect()
}

/// An error as Go words its cause.
pub(super) fn worded(error: std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::StorageFull => "no space left on device".to_owned(),
        std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::ConnectionReset => "connection reset by peer".to_owned(),
        _ => error.to_string(),
    }
}
