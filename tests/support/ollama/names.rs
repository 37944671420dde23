//! Names of models, with and without the suffix that says where the model is
//! (`types/model/name.go`, `internal/modelref/modelref.go`).

/// All four parts of a name; one is equal to another in any case.
#[derive(Clone, Debug)]
pub struct Name {
    host: String,
    namespace: String,
    model: String,
    tag: String,
}

const HOST: &str = "registry.ollama.ai";
const NAMESPACE: &str = "library";

impl Name {
    /// What the text says, the rest as Ollama takes it. It need not be valid.
    pub fn parse(text: &str) -> Self {
        let (rest, tag) = match text.rsplit_once(':') {
            Some((rest, tag)) if !tag.contains('/') => (rest, tag),
            _ => (text, "latest"),
        };
        let (rest, model) = rest.rsplit_once('/').map_or(("", rest), |(rest, model)| (rest, model));
        let (host, namespace) = match rest.rsplit_once('/') {
            Some((host, namespace)) => (host, namespace),
            None if rest.is_empty() => (HOST, NAMESPACE),
            None => (HOST, rest),
        };
        let host = host.split_once("://").map_or(host, |(_, host)| host);
        let [host, namespace, model, tag] = [host, namespace, model, tag].map(str::to_owned);
        Name { host, namespace, model, tag }
    }

    /// Of the four folders of a manifest's path.
    pub(super) fn of_path(parts: &[String]) -> Option<Self> {
        let [host, namespace, model, tag] = parts else { return None };
        let [host, namespace, model, tag] = [host, namespace, model, tag].map(String::clone);
        Some(Name { host, namespace, model, tag }).filter(Name::is_valid)
    }

    /// Where its manifest is, below the folder of all manifests.
    pub(super) fn path(&self) -> std::path::PathBuf {
        [&self.host, &self.namespace, &self.model, &self.tag].iter().collect()
    }

    /// What a registry calls it: the model with its namespace, and the tag.
    pub fn registry_path(&self) -> [String; 2] {
        [format!("{}/{}", self.namespace, self.model), self.tag.clone()]
    }

    /// The registry that has it, with the port if it isn't the usual one.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn is_valid(&self) -> bool {
        let is_valid = |part: &str, longest: usize, extra: &str| {
            part.len() <= longest
                && part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
        };
        is_valid(&self.host, 350, "-_.:")
            && is_valid(&self.namespace, 80, "-_")
            && is_valid(&self.model, 80, "-_.")
            && is_valid(&self.tag, 80, "-_.")
    }

    /// The same, each part in the case of the other name's where only that differs.
    pub(super) fn in_case_of(self, other: &Name) -> Self {
        let part = |own: String, other: &String| match own.eq_ignore_ascii_case(other) {
            true => other.clone(),
            false => own,
        };
        Name {
            host: part(self.host, &other.host),
            namespace: part(self.namespace, &other.namespace),
            model: part(self.model, &other.model),
            tag: part(self.tag, &other.tag),
        }
    }

    /// As lists show it.
    pub fn shortest(&self) -> String {
        let Name { host, namespace, model, tag } = self;
        if !host.eq_ignore_ascii_case(HOST) {
            format!("{host}/{namespace}/{model}:{tag}")
        } else if !namespace.eq_ignore_ascii_case(NAMESPACE) {
            format!("{namespace}/{model}:{tag}")
        } else {
            format!("{model}:{tag}")
        }
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.host.eq_ignore_ascii_case(&other.host)
            && self.namespace.eq_ignore_ascii_case(&other.namespace)
            && self.model.eq_ignore_ascii_case(&other.model)
            && self.tag.eq_ignore_ascii_case(&other.tag)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Unspecified,
    Local,
    Cloud,
}

/// What a request calls its model.
#[derive(Clone, Debug)]
pub struct Reference {
    /// Without the suffix.
    pub base: String,
    pub source: Source,
}

impl Reference {
    /// The error as Ollama words it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() {
            return Err("model is required".to_owned());
        }
        let (base, source) = suffix(text);
        if source != Source::Unspecified && suffix(&base).1 != Source::Unspecified {
            return Err(format!("use either :local or :cloud, not both: {text:?}"));
        }
        Ok(Reference { base, source })
    }

    pub fn name(&self) -> Name {
        Name::parse(&self.base)
    }

    /// The name of the manifest that a pull writes and a delete removes.
    pub fn pull_name(&self) -> String {
        let has_tag = self.base.rsplit('/').next().is_some_and(|last| last.contains(':'));
        match (self.source, has_tag) {
            (Source::Cloud, true) => format!("{}-cloud", self.base),
            (Source::Cloud, false) => format!("{}:cloud", self.base),
            _ => self.base.clone(),
        }
    }
}

fn suffix(text: &str) -> (String, Source) {
    let Some((base, tag)) = text.rsplit_once(':') else {
        return (text.to_owned(), Source::Unspecified);
    };
    let tag = tag.trim();
    let lower = tag.to_ascii_lowercase();
    match lower.as_str() {
        "cloud" => (base.to_owned(), Source::Cloud),
        "local" => (base.to_owned(), Source::Local),
        _ if lower.ends_with("-cloud") && !tag.contains('/') => {
            (format!("{base}:{}", &tag[..tag.len() - "-cloud".len()]), Source::Cloud)
        }
        _ => (text.to_owned(), Source::Unspecified),
    }
}
