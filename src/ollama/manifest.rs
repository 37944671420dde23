//! Manifests of models, as registries give them and Ollama keeps them. Pure.

use std::collections::HashMap;

use serde_json::Value;

/// What a registry calls a manifest.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// The layers that a manifest names, the configuration behind them (`manifest/manifest.go`): digests and
/// sizes, each once. `None` if it is no manifest, or one that says two sizes of a layer.
pub(crate) fn layers(manifest: &[u8]) -> Option<Vec<(String, u64)>> {
    let manifest: Value = serde_json::from_slice(manifest).ok()?;
    let config = manifest.get("config").filter(|config| config["digest"] != "");
    let mut layers: Vec<(String, u64)> = Vec::new();
    let mut sizes = HashMap::new();
    for layer in manifest.get("layers")?.as_array()?.iter().chain(config) {
        let size = layer.get("size")?.as_u64()?;
        let digest = layer.get("digest")?.as_str()?;
        match sizes.insert(digest.to_owned(), size) {
            None => layers.push((digest.to_owned(), size)),
            Some(before) if before == size => {}
            Some(_) => return None,
        }
    }
    (!layers.is_empty()).then_some(layers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_and_configuration_count_once_each() {
        let manifest = r#"{"schemaVersion":2,"config":{"digest":"c","size":3},
            "layers":[{"digest":"a","size":7},{"digest":"b","size":0},{"digest":"a","size":7}]}"#;
        let want = [("a", 7), ("b", 0), ("c", 3)].map(|(digest, size)| (digest.to_owned(), size));
        assert_eq!(layers(manifest.as_bytes()), Some(want.into()));
        let plain = br#"{"config":{"digest":"","size":0},"layers":[{"digest":"a","size":7}]}"#;
        assert_eq!(layers(plain).map(|layers| layers.len()), Some(1));
        for bad in [
            "",
            "{}",
            "[]",
            "null",
            r#"{"layers":[]}"#,
            r#"{"layers":{}}"#,
            r#"{"layers":[{"digest":"a"}]}"#,
            r#"{"layers":[{"digest":"a","size":-1}]}"#,
            r#"{"layers":[{"digest":"a","size":1e30}]}"#,
            r#"{"layers":[{"size":1}]}"#,
            r#"{"layers":[{"digest":"a","size":1},{"digest":"a","size":2}]}"#,
            r#"{"layers":[{"digest":"a","size":1}],"config":{"digest":"a","size":2}}"#,
            r#"{"layers":[{"digest":"a","size":1}],"config":3}"#,
            r#"{"layers":[{"digest":"a","size":1}]"#,
        ] {
            assert_eq!(layers(bad.as_bytes()), None, "{bad}");
        }
    }
}
