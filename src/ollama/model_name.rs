//! Names of models, compared as Ollama compares them. Pure.
//!
//! Ollama's rules (`types/model/name.go`): `[host/][namespace/]model[:tag]`, missing parts are
//! `registry.ollama.ai`, `library` and `latest`, letters compare without case. Behind that, `:local`
//! or `:cloud` may say where it is to run (`internal/modelref/modelref.go`).

/// A model's name in one spelling: lower case, default host and namespace left out, tag always
/// there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelName(String);

impl ModelName {
    /// Reads a name as programs write it; `None` if it is empty.
    pub fn parse(text: &str) -> Option<Self> {
        let name = text.trim().to_lowercase();
        // A scheme is dropped, as Ollama does for names pasted from a browser.
        let name = name.split_once("://").map_or(name.as_str(), |(_, rest)| rest);
        let name = name.strip_prefix("registry.ollama.ai/").unwrap_or(name);
        let name = name.strip_prefix("library/").unwrap_or(name);
        let (base, source) = split_source(name);
        if base.is_empty() {
            return None;
        }
        Some(ModelName(match (has_tag(base), source) {
            (true, Source::Cloud) => format!("{base}-cloud"),
            (true, Source::Local) => base.to_owned(),
            (false, Source::Cloud) => format!("{base}:cloud"),
            (false, Source::Local) => format!("{base}:latest"),
        }))
    }

    /// Whether Ollama runs it in its own cloud, so that any signed-in server will do.
    pub(crate) fn is_cloud(&self) -> bool {
        self.0.ends_with(":cloud") || self.0.ends_with("-cloud")
    }

    /// The spelling.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(Clone, Copy)]
enum Source {
    Local,
    /// The list has it as a stub, whose tag says so.
    Cloud,
}

/// Takes off what says where the model is to run.
fn split_source(name: &str) -> (&str, Source) {
    let (base, last) = name.rsplit_once(':').unwrap_or((name, ""));
    match last.trim() {
        "local" => (base, Source::Local),
        "cloud" => (base, Source::Cloud),
        _ => (name, Source::Local),
    }
}

/// A colon before the last slash belongs to a host's port.
fn has_tag(name: &str) -> bool {
    name.rsplit('/').next().is_some_and(|last| last.contains(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_model_are_one() {
        for spelling in [
            "llama3.2",
            "llama3.2:latest",
            "LLaMA3.2:Latest",
            "library/llama3.2",
            "registry.ollama.ai/library/llama3.2:latest",
            "https://registry.ollama.ai/library/llama3.2",
            " llama3.2 ",
            "llama3.2:local",
            "llama3.2:latest:LOCAL",
            "library/llama3.2: local ",
        ] {
            let name = ModelName::parse(spelling).expect(spelling);
            assert_eq!(name.as_str(), "llama3.2:latest", "{spelling}");
        }
    }

    #[test]
    fn others_stay_apart() {
        for (spelling, want) in [
            ("llama3.2:1b", "llama3.2:1b"),
            ("me/llama3.2", "me/llama3.2:latest"),
            ("hf.co/a/b:Q4_K_M", "hf.co/a/b:q4_k_m"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("localhost:5000/a/b:local", "localhost:5000/a/b:latest"),
            ("llama3.2:1b:local", "llama3.2:1b"),
            ("gpt-oss:120b:cloud", "gpt-oss:120b-cloud"),
            ("gpt-oss:120b-cloud", "gpt-oss:120b-cloud"),
            ("gpt-oss:cloud", "gpt-oss:cloud"),
            ("local", "local:latest"),
            ("a:locally", "a:locally"),
        ] {
            assert_eq!(ModelName::parse(spelling).expect(spelling).as_str(), want);
        }
        assert_eq!(["  ", ":local", ":cloud"].map(ModelName::parse), [None, None, None]);
        assert!(ModelName::parse("gpt-oss:120b-cloud").expect("name").is_cloud());
        assert!(ModelName::parse("x:cloud").expect("name").is_cloud());
        assert!(!ModelName::parse("cloud").expect("name").is_cloud());
    }
}
