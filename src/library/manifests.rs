//! What manifests say: which blobs a model is made of, and whether it was made on this machine.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::access::permissions::Origin;
use crate::ollama::model_name::ModelName;
use crate::system::{Hex, parse_hex};

/// Blobs of one model that are looked at.
const MOST_LAYERS: usize = 4096;

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

/// Host, namespace, model and tag of a manifest, as the names of its folders and its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place(pub(super) [String; 4]);

impl Place {
    /// `None` unless these are four.
    pub(super) fn of(way: &[String]) -> Option<Self> {
        way.to_vec().try_into().ok().map(Place)
    }

    fn name(&self) -> Option<ModelName> {
        let [host, namespace, model, tag] = &self.0;
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
    /// Takes in a manifest; one that can't be understood names nothing.
    pub(super) fn add(&mut self, place: Place, text: &[u8]) {
        let Ok(manifest) = serde_json::from_slice::<Value>(text) else { return };
        let layers = manifest["layers"].as_array().map_or(&[][..], Vec::as_slice);
        let Some(name) = place.name().filter(|_| layers.len() <= MOST_LAYERS) else { return };
        // A layer says from where it was taken that was made here of a file or of another model.
        let is_made = layers.iter().any(|layer| layer.get("from").is_some());
        let origin = if is_made { Origin::Made } else { Origin::Pulled };
        for layer in layers.iter().chain([&manifest["config"]]) {
            let digest = layer["digest"].as_str().and_then(Digest::parse);
            if let Some((digest, size)) = digest.zip(layer["size"].as_u64()) {
                let known = self.blobs.entry(digest).or_insert((origin, size));
                // What one model that was pulled has is nobody's secret.
                if origin == Origin::Pulled {
                    *known = (origin, size);
                }
            }
        }
        self.models.insert(name, place);
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

/// A manifest without what its layers say of where they were taken from, which are paths of this
/// machine. One that has none of that stays as it is, byte by byte.
pub(super) fn without_paths(text: &[u8]) -> Option<Vec<u8>> {
    let manifest: Value = serde_json::from_slice(text).ok()?;
    let layers = manifest["layers"].as_array()?;
    if layers.iter().all(|layer| layer.get("from").is_none()) {
        return Some(text.to_owned());
    }
    // In the order in which Ollama writes them, so that the manifest's digest is the one that it gets
    // elsewhere.
    let write = |blob: &Value| {
        let member = |name: &str| blob[name].to_string();
        format!(
            r#"{{"mediaType":{},"digest":{},"size":{}}}"#,
            member("mediaType"),
            member("digest"),
            member("size")
        )
    };
    let layers: Vec<String> = layers.iter().map(write).collect();
    let version = manifest.get("schemaVersion").cloned().unwrap_or(json!(2));
    Some(
        format!(
            r#"{{"schemaVersion":{version},"mediaType":{},"config":{},"layers":[{}]}}"#,
            manifest["mediaType"],
            write(&manifest["config"]),
            layers.join(",")
        )
        .into_bytes(),
    )
}
