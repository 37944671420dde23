//! Who may do what: the class of a request, and what another machine may ask of this one. Pure.
//!
//! Ollama listens on loopback because whoever reaches it may pull, create, push and delete models.
//! A proxy that opens it to the LAN opens what the LAN is for, models at work, and nothing else:
//!
//! | class | what | this machine, paired ones | others on the LAN |
//! |---|---|---|---|
//! | [`Open`](Class::Open) | inference, lists, versions | yes | yes |
//! | [`Manage`](Class::Manage) | push, create, copy, delete, blobs | yes | with `--manage on` |
//! | [`Pull`](Class::Pull) | pull | yes | with `--manage on`; from Ollama's own registry, `--pull on` |
//! | [`Account`](Class::Account) | sign out, who am I, keys, experiments | yes | no |
//! | [`Unknown`](Class::Unknown) | everything else | yes | no |
//!
//! Paths are those of Ollama's `GenerateRoutes` (`server/routes.go`, August 2026 and all earlier
//! ones), compared byte by byte. Go's router looks at the decoded path, and its mux cleans `//` and
//! `..`, so other spellings of a path may reach the same handler: they are all unknown here.

use std::net::IpAddr;

use http::Method;
use serde_json::{Map, Value};

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A program of this machine. What comes through a tunnel or a reverse proxy on it counts too.
    Own,
    /// A machine that was paired with this one: it may do whatever `Own` may.
    Paired,
    /// Any other machine.
    Lan,
}

impl Caller {
    /// By the two ends of its connection. Whoever connects to an address of this machine from the
    /// same address is this machine: the kernel takes no such packets from a network.
    pub fn of(peer: IpAddr, local: Option<IpAddr>) -> Self {
        let peer = peer.to_canonical();
        let is_own = peer.is_loopback() || local.is_some_and(|ip| ip.to_canonical() == peer);
        if is_own { Caller::Own } else { Caller::Lan }
    }

    /// Whether it may do what a program of this machine may.
    pub fn is_trusted(self) -> bool {
        self != Caller::Lan
    }
}

/// What a request does, by its method and path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Inference, and what only reads.
    Open,
    /// Changes the server's models, or publishes one.
    Manage,
    /// Downloads a model.
    Pull,
    /// Uses or changes the owner's account at ollama.com.
    Account,
    /// Nothing that Ollama is known to have.
    Unknown,
}

/// Exact paths; one that ends in `/:` takes one more segment.
const ROUTES: &[(Class, &str, &[&str])] = &[
    (Class::Open, "GET HEAD", &["/", "/api/version", "/api/status", "/api/tags", "/api/ps"]),
    (Class::Open, "GET HEAD", &["/v1/models", "/v1/models/:"]),
    (Class::Open, "POST", &["/api/generate", "/api/chat", "/api/show"]),
    (Class::Open, "POST", &["/api/embed", "/api/embeddings", "/v1/embeddings"]),
    (Class::Open, "POST", &["/v1/chat/completions", "/v1/completions", "/v1/responses"]),
    // Ollama doesn't count tokens yet; programs want to hear that from it.
    (Class::Open, "POST", &["/v1/messages", "/v1/messages/count_tokens"]),
    (Class::Open, "POST", &["/v1/audio/transcriptions"]),
    (Class::Open, "POST", &["/v1/images/generations", "/v1/images/edits"]),
    (Class::Pull, "POST", &["/api/pull"]),
    (Class::Manage, "POST", &["/api/push", "/api/create", "/api/copy"]),
    (Class::Manage, "DELETE", &["/api/delete"]),
    (Class::Manage, "POST HEAD", &["/api/blobs/:"]),
    (Class::Account, "POST", &["/api/me", "/api/signout"]),
    (Class::Account, "DELETE", &["/api/user/keys/:"]),
    (Class::Account, "GET POST DELETE", &["/api/experimental/:"]),
];

impl Class {
    /// By method and target.
    pub fn of(method: &Method, target: &str) -> Self {
        let path = target.split('?').next().unwrap_or(target);
        let mut routes = ROUTES.iter().filter(|(_, _, paths)| paths.iter().any(|p| fits(p, path)));
        if method == Method::OPTIONS {
            // No handler of Ollama's runs for it, whatever the path.
            return if routes.next().is_some() || path == "*" {
                Class::Open
            } else {
                Class::Unknown
            };
        }
        let takes = |methods: &str| methods.split(' ').any(|name| name == method.as_str());
        let route = routes.find(|(_, methods, _)| takes(methods));
        route.map_or(Class::Unknown, |(class, _, _)| *class)
    }
}

fn fits(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix(':') {
        Some(prefix) => path.strip_prefix(prefix).is_some_and(is_segment),
        None => pattern == path,
    }
}

/// Whether Go sees one path segment here too, once it has decoded it.
fn is_segment(text: &str) -> bool {
    let Some(bytes) = percent_decode(text) else { return false };
    let plain = bytes.iter().all(|b| !matches!(b, b'/' | b'\\' | 0..=0x1f | 0x7f));
    plain && !bytes.is_empty() && bytes != b"." && bytes != b".."
}

/// What a text with `%xx` in it stands for; `None` where Go would call it malformed.
pub fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        match (first, tail) {
            (b'%', [high, low, after @ ..]) => {
                out.push((digit(high)? * 16 + digit(low)?) as u8);
                rest = after;
            }
            (b'%', _) => return None,
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    Some(out)
}

/// What a server lets a caller do. Ordered: each step includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permission {
    /// Use models.
    #[default]
    Use,
    /// Pull from Ollama's own registry, too.
    Pull,
    /// Manage models, too.
    Manage,
}

impl Permission {
    /// Its word in `X-Ollana-Open`.
    pub fn word(self) -> &'static str {
        match self {
            Permission::Use => "use",
            Permission::Pull => "pull",
            Permission::Manage => "manage",
        }
    }

    /// The inverse of [`word`](Self::word).
    pub fn of_word(word: &str) -> Option<Self> {
        [Permission::Use, Permission::Pull, Permission::Manage]
            .into_iter()
            .find(|o| o.word() == word)
    }
}

/// What the owner of this machine allows to others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// `--manage`: they may manage models.
    pub manage: bool,
    /// `--pull`: they may pull from Ollama's own registry.
    pub pull: bool,
}

/// Whether a request may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Pass,
    /// It may if its body names a model of Ollama's own registry: see [`registry_pull`].
    PassFromRegistry,
    /// It may not.
    Refuse(Refusal),
}

/// Why it may not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Others may not manage models here.
    Manage,
    /// Others may not pull here.
    Pull,
    /// Others may pull here, but only from Ollama's own registry.
    Registry,
    /// Others may not use the owner's account.
    Account,
    /// Others get only what is known.
    Unknown,
}

impl Refusal {
    /// A sentence for the program's user: what `machine` refuses, and what opens it.
    pub fn message(self, machine: &str) -> String {
        match self {
            Refusal::Manage => format!(
                "{machine} does not let other machines change its models; \
                 to allow it, start ollana on {machine} with --manage on"
            ),
            Refusal::Pull => format!(
                "{machine} does not let other machines pull models; to allow it, start ollana on \
                 {machine} with --pull on (Ollama's registry only) or --manage on"
            ),
            Refusal::Registry => format!(
                "{machine} lets other machines pull from Ollama's own registry only; \
                 to allow others, start ollana on {machine} with --manage on"
            ),
            Refusal::Account => format!(
                "{machine} does not let other machines use its Ollama account; \
                 do this on {machine} itself"
            ),
            Refusal::Unknown => format!(
                "ollana on {machine} does not know this method and path, so it does not pass it \
                 on for other machines; do this on {machine} itself"
            ),
        }
    }
}

impl Policy {
    /// Whether a caller's request of this class may pass.
    pub fn judge(self, caller: Caller, class: Class) -> Verdict {
        if caller.is_trusted() {
            return Verdict::Pass;
        }
        match class {
            Class::Open => Verdict::Pass,
            Class::Manage | Class::Pull if self.manage => Verdict::Pass,
            Class::Pull if self.pull => Verdict::PassFromRegistry,
            Class::Pull => Verdict::Refuse(Refusal::Pull),
            Class::Manage => Verdict::Refuse(Refusal::Manage),
            Class::Account => Verdict::Refuse(Refusal::Account),
            Class::Unknown => Verdict::Refuse(Refusal::Unknown),
        }
    }

    /// What a caller may do.
    pub fn permission(self, caller: Caller) -> Permission {
        match (caller, self) {
            (Caller::Own | Caller::Paired, _) | (_, Policy { manage: true, .. }) => {
                Permission::Manage
            }
            (Caller::Lan, Policy { pull: true, .. }) => Permission::Pull,
            (Caller::Lan, _) => Permission::Use,
        }
    }
}

/// How open a server must be for a request of this class, `model` being the one it names.
pub fn needed(class: Class, model: Option<&str>) -> Permission {
    match class {
        Class::Manage => Permission::Manage,
        Class::Pull if model.is_some_and(is_of_registry) => Permission::Pull,
        Class::Pull => Permission::Manage,
        Class::Open | Class::Account | Class::Unknown => Permission::Use,
    }
}

/// The body to send on for a pull from Ollama's own registry; `None` for any other pull.
///
/// It is made anew from what was understood: Go's decoder takes members in any case, the last of
/// several, and whatever follows the object, so that the same bytes could name another model to it.
pub fn registry_pull(body: &[u8]) -> Option<Vec<u8>> {
    let object: Map<String, Value> = serde_json::from_slice(body).ok()?;
    let text = |member: &str| object.get(member).and_then(Value::as_str).filter(|t| !t.is_empty());
    let model = text("model").or_else(|| text("name")).filter(|model| is_of_registry(model))?;
    if !matches!(object.get("insecure"), None | Some(Value::Null | Value::Bool(false))) {
        return None;
    }
    let mut known = Map::new();
    // Servers before 0.1.30 or so know only `name`.
    known.insert("model".to_owned(), model.into());
    known.insert("name".to_owned(), model.into());
    if let Some(stream @ Value::Bool(_)) = object.get("stream") {
        known.insert("stream".to_owned(), stream.clone());
    }
    serde_json::to_vec(&known).ok()
}

/// Whether a name is plain, or says Ollama's own registry: `[registry.ollama.ai/][user/]model[:tag]`
/// (`types/model/name.go`, whose host is what precedes two slashes).
fn is_of_registry(name: &str) -> bool {
    let is_part = |part: &str| {
        let starts_well = part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        starts_well && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    let parts: Vec<&str> = name.split('/').collect();
    let (user, last) = match parts[..] {
        [model] => ("library", model),
        [user, model] | ["registry.ollama.ai", user, model] => (user, model),
        _ => return false,
    };
    let (model, tag) = last.split_once(':').unwrap_or((last, "latest"));
    is_part(user) && !user.contains('.') && is_part(model) && is_part(tag)
}

#[cfg(test)]
mod tests;
