//! What manifests say: which blobs a model is made of, and whether it was made on this machine.

use std::collections::HashMap;
use std::fmt;

use serde_json::Value;

use crate::access::permissions::Origin;
use crate::ollama::model_name::ModelName;
use crate::system::{Hex, parse_hex};

/// Blobs of all models that are remembered; models in thousands of pieces are such that aren't shared
/// anyway.
const MOST_BLOBS: usize = 1 << 16;
/// Manifests in one that lists others, for different runners.
const MOST_LISTED: usize = 16;

/// The SHA-256 that names a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Digest([u8; 32]);

impl Digest {
    /// Reads `sha256:` and 64 digits in lower case; `None` for anything else.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix("sha256:")?;
        let is_lower = !hex.bytes().any(|byte| byte.is_ascii_uppercase());
        parse_hex(hex).filter(|_| is_lower).map(Digest)
    }

    pub(super) fn file_name(&self) -> String {
        format!("sha256-{}", Hex(&self.0))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", Hex(&self.0))
    }
}

/// Where a manifest is: which of the folders of manifests, and the names of the folders and of the file
/// in it, which are host, namespace, model and tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) root: &'static str,
    pub(super) way: [String; 4],
}

impl Place {
    /// `None` unless these are four.
    pub(super) fn of(root: &'static str, way: &[String]) -> Option<Self> {
        way.to_vec().try_into().ok().map(|way| Place { root, way })
    }

    fn name(&self) -> Option<ModelName> {
        let [host, namespace, model, tag] = &self.way;
        ModelName::parse(&format!("{host}/{namespace}/{model}:{tag}"))
    }
}

/// All that the manifests of a store name.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    /// Origin and size.
    blobs: HashMap<Digest, (Origin, u64)>,
    models: HashMap<ModelName, Place>,
}

impl Catalog {
    /// Takes in a manifest; one that can't be understood names nothing. Some list others, in place or
    /// as blobs, which `read` reads.
    pub(super) fn add(
        &mut self,
        place: Place,
        text: &[u8],
        read: &dyn Fn(&Digest) -> Option<Vec<u8>>,
    ) {
        let Ok(manifest) = serde_json::from_slice::<Value>(text) else { return };
        let Some(name) = place.name() else { return };
        if let Some(listed) = manifest["manifests"].as_array().filter(|it| it.len() <= MOST_LISTED)
        {
            for one in listed {
                let blob = digest_of(one).and_then(|digest| read(&digest));
                match blob {
                    Some(text) => {
                        self.add_layers(&serde_json::from_slice(&text).unwrap_or_default(), &text)
                    }
                    None => self.add_layers(one, text),
                };
            }
            self.models.entry(name).or_insert(place);
        } else if self.add_layers(&manifest, text) {
            // The folder that is read first is where Ollama looks first.
            self.models.entry(name).or_insert(place);
        }
    }

    /// Whether it is a manifest with layers.
    fn add_layers(&mut self, manifest: &Value, text: &[u8]) -> bool {
        let Some(layers) = manifest["layers"].as_array() else { return false };
        if layers.len() + self.blobs.len() > MOST_BLOBS {
            return false;
        }
        let origin = if is_made(layers, text) { Origin::Made } else { Origin::Pulled };
        for layer in layers.iter().chain([&manifest["config"]]) {
            if let Some((digest, size)) = digest_of(layer).zip(layer["size"].as_u64()) {
                let known = self.blobs.entry(digest).or_insert((origin, size));
                // What one model that was pulled has is nobody's secret.
                if origin == Origin::Pulled {
                    *known = (origin, size);
                }
            }
        }
        true
    }

    pub(super) fn models(&self) -> usize {
        self.models.len()
    }

    pub(super) fn blob(&self, digest: &Digest) -> Option<(Origin, u64)> {
        self.blobs.get(digest).copied()
    }

    pub(super) fn place(&self, name: &ModelName) -> Option<Place> {
        self.models.get(name).cloned()
    }
}

fn digest_of(of: &Value) -> Option<Digest> {
    of["digest"].as_str().and_then(Digest::parse)
}

/// Whether a model was made here. Its layers say from what they were taken, but for those that were
/// converted or quantized. Ollama ends each manifest that it writes itself with a line feed, and a
/// registry's not.
fn is_made(layers: &[Value], text: &[u8]) -> bool {
    let is_own = text.ends_with(b"}\n") && text.starts_with(br#"{"schemaVersion":2,"mediaType":"#);
    is_own || layers.iter().any(|layer| layer.get("from").is_some())
}

/// A manifest without what its layers say of where they were taken from, which are paths of this
/// machine. One that has none of that stays as it is, byte by byte. A list of manifests isn't one of a
/// model.
pub(crate) fn without_paths(text: &[u8]) -> Option<Vec<u8>> {
    let manifest: Value = serde_json::from_slice(text).ok()?;
    let layers = manifest["layers"].as_array()?;
    if layers.iter().chain([&manifest["config"]]).all(|layer| layer.get("from").is_none()) {
        return Some(text.to_owned());
    }
    // In the order in which Ollama writes them, so that the manifest's digest is the one that it gets
    // elsewhere.
    let write = |blob: &Value| object(blob, &["mediaType", "digest", "size", "name"]);
    let layers: Vec<String> = layers.iter().map(write).collect();
    let parts = [
        object(&manifest, &["schemaVersion", "mediaType"]),
        format!(r#"{{"config":{},"layers":[{}]}}"#, write(&manifest["config"]), layers.join(",")),
        object(&manifest, &["runner", "format"]),
    ];
    let inner = parts.iter().map(|part| &part[1..part.len() - 1]).filter(|part| !part.is_empty());
    let whole = format!("{{{}}}", inner.collect::<Vec<_>>().join(","));
    // By its end it is known for one that was made, there too.
    let end = if text.ends_with(b"\n") { "\n" } else { "" };
    Some((whole + end).into_bytes())
}

/// These members of an object, as far as it has them.
fn object(of: &Value, names: &[&str]) -> String {
    let members = names.iter().filter_map(|name| Some(format!("\"{name}\":{}", of.get(name)?)));
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}
