//! An Ollama that keeps Ollama's contract: what 0.33 answers, with the strictness with which it does.
//!
//! [`World`] is the machine that it runs on: its models, its account, its speed. A test changes it
//! at any time and reads in [`served`](Ollama::served) what the handlers did. What only one test
//! needs goes into [`World::script`], by path, or into [`World::fate`]; `Call::as_ollama` gives a
//! script of a [`Fake`] the usual answer. The rules are those of Ollama's `server/routes.go`, `server/sched.go`,
//! `server/cloud_proxy.go`, `middleware/` and of the libraries below it (gin, Go's `net/http` and
//! `encoding/json`).

mod account;
mod body;
mod download;
mod inference;
mod library;
mod lists;
mod names;
mod reply;
mod routes;
mod store;
mod upload;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::{Call, Fake, Gate, eventually, lock};

pub use lists::checked;
pub use names::{Name, Reference, Source};
pub use store::{Package, Store, sha256};

/// Other spellings of paths: method, target, and the status and place of the redirect.
pub const REDIRECTS: &[(&str, &str, u16, &str)] = &[
    ("GET", "//api/tags", 301, "/api/tags"),
    ("GET", "///api//tags?x=//y&z", 301, "/api/tags?x=//y&z"),
    ("GET", "/api/./x/../tags", 301, "/api/tags"),
    ("GET", "//evil.example/../api/tags", 301, "/api/tags"),
    ("GET", "/api/tags/", 301, "/api/tags"),
    ("GET", "/v1/models/", 301, "/v1/models"),
    ("HEAD", "/api/tags/", 307, "/api/tags"),
    ("POST", "//api/chat", 307, "/api/chat"),
    ("POST", "/v1/chat/completions/?a=b", 307, "/v1/chat/completions?a=b"),
    ("DELETE", "/api/delete/", 307, "/api/delete"),
    ("POST", "/v1//messages", 307, "/v1/messages"),
    ("GET", "////api///tags?a=//b", 301, "/api/tags?a=//b"),
    ("GET", "//evil.example/../v1/models", 301, "/v1/models"),
    ("POST", "/api/chat/?x", 307, "/api/chat?x"),
    ("POST", "//v1/messages", 307, "/v1/messages"),
];

/// One model as its manifest and its file describe it.
#[derive(Clone, Debug)]
pub struct Model {
    /// As lists show it, always with a tag.
    pub name: String,
    pub digest: String,
    pub size: u64,
    pub modified_at: String,
    pub family: String,
    pub capabilities: Vec<&'static str>,
    /// What it was trained for.
    pub context_length: u64,
    /// The model at the cloud that a stub stands for.
    pub remote_model: Option<String>,
}

impl Model {
    /// A model whose weights are on this machine.
    pub fn local(name: &str) -> Self {
        let name = Name::parse(name).shortest();
        let size = 1_321_098_329 + name.len() as u64;
        Model {
            digest: digest(&name),
            name,
            size,
            modified_at: "2026-08-20T10:11:12.123456789+02:00".to_owned(),
            family: "llama".to_owned(),
            capabilities: vec!["completion", "tools"],
            context_length: 131_072,
            remote_model: None,
        }
    }

    /// The stub that a pull of a cloud model leaves behind.
    pub fn cloud(name: &str) -> Self {
        let reference = Reference::parse(name).expect("the name of a cloud model");
        let local = Model::local(&reference.pull_name());
        Model { size: 384, remote_model: Some(reference.base), ..local }
    }
}

/// 64 digits that the name decides.
fn digest(name: &str) -> String {
    let (_, sum) = super::Sum::of(name.as_bytes());
    format!("{sum:016x}").repeat(4)
}

/// The account at ollama.com that the machine uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account {
    SignedIn,
    SignedOut,
    /// ollama.com can't be reached.
    Offline,
}

/// What answers a path instead of Ollama.
pub type Script = Arc<dyn Fn(&mut Call<'_>) + Send + Sync>;

/// A machine with an Ollama.
#[derive(Clone)]
pub struct World {
    pub models: Vec<Model>,
    /// Names of models in memory, as `ps` shows them.
    pub loaded: Vec<String>,
    pub version: String,
    pub account: Account,
    /// Whether the account has used up what its plan allows in a week.
    pub quota_spent: bool,
    /// `OLLAMA_NO_CLOUD`.
    pub cloud_disabled: bool,
    /// Requests for local models that run at the same time, and that wait then; one more is told
    /// that the server is busy.
    pub parallel: usize,
    pub queue: usize,
    /// Local inference waits for this before its head, as for a model that is being loaded.
    pub loading: Option<Gate>,
    /// Inference streams its first token, then waits for this.
    pub hold: Option<Gate>,
    /// How long each token of a stream but the first takes.
    pub token_takes: Duration,
    /// Whether answers of `generate` and `chat` call a tool.
    pub calls_tool: bool,
    /// Tokens of an answer.
    pub tokens: usize,
    /// Tokens that a prompt counts.
    pub prompt_tokens: usize,
    /// The context that models are loaded with.
    pub context_length: u64,
    /// Bytes of a model that its graphics card has room for.
    pub card: u64,
    /// How long `/api/version` takes.
    pub version_takes: Duration,
    /// Reads so many bytes of a body, then nothing for this long, then the rest.
    pub reads_then_pauses: Option<(usize, Duration)>,
    /// Digests of blobs (`sha256:…`).
    pub blobs: Vec<String>,
    /// Names that can be pulled; all if none.
    pub registry: Option<Vec<String>>,
    /// Where its models are on disk; then they are all that it has, pulls download, and uploads are
    /// checked. Without it, names and digests are believed.
    pub store: Option<Store>,
    /// The registry that it finds behind every host name; none: it is offline. Names that begin with
    /// an address lead there.
    pub internet: Option<SocketAddr>,
    /// It runs in a container, whose loopback isn\'t that of the machine.
    pub is_contained: bool,
    /// Whether it has the routes that come after 0.33 (`…/input_tokens`, `/api/usage`).
    pub is_coming: bool,
    /// Bodies of lists (`/api/tags`, `/api/ps`, `/v1/models`, `/api/version`) as they stand here.
    pub raw_lists: BTreeMap<String, String>,
    /// By path without query; for paths of lists too, whose requests are then recorded like others.
    pub script: BTreeMap<String, Script>,
    /// What befalls every other request instead of an answer: a death, an upload that isn't read.
    pub fate: Option<Script>,
}

impl Default for World {
    fn default() -> Self {
        World {
            models: Vec::new(),
            loaded: Vec::new(),
            version: "0.33.0".to_owned(),
            account: Account::SignedIn,
            quota_spent: false,
            cloud_disabled: false,
            parallel: 64,
            queue: 512,
            loading: None,
            hold: None,
            token_takes: Duration::ZERO,
            calls_tool: false,
            tokens: 3,
            prompt_tokens: 11,
            context_length: 4096,
            card: u64::MAX,
            version_takes: Duration::ZERO,
            reads_then_pauses: None,
            blobs: Vec::new(),
            registry: None,
            store: None,
            internet: None,
            is_contained: false,
            is_coming: false,
            raw_lists: BTreeMap::new(),
            script: BTreeMap::new(),
            fate: None,
        }
    }
}

impl World {
    /// A machine with these local models.
    pub fn with(models: &[&str]) -> Self {
        World { models: models.iter().map(|name| Model::local(name)).collect(), ..World::default() }
    }

    /// The model with this name, in any case.
    fn find(&self, name: &Name) -> Option<&Model> {
        self.models.iter().find(|model| Name::parse(&model.name) == *name)
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.models.iter().map(|model| model.name.as_str()).collect();
        f.debug_struct("World").field("models", &names).finish_non_exhaustive()
    }
}

/// What one handler did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    pub method: String,
    /// Without query.
    pub path: String,
    /// What the request calls its model.
    pub model: Option<String>,
    pub status: u16,
    /// Whether it was asked of ollama.com, with the account of this machine.
    pub used_account: bool,
    /// Whether the client left before the end.
    pub is_cancelled: bool,
    /// Index of the request among the records of the fake.
    pub record: usize,
}

/// The requests for local models.
#[derive(Debug, Default)]
struct Load {
    running: usize,
    waiting: usize,
}

/// What the threads of one Ollama share.
struct Machine {
    world: Mutex<World>,
    load: Mutex<Load>,
    freed: Condvar,
    served: Mutex<Vec<Served>>,
    downloads: Arc<download::Downloads>,
}

impl Machine {
    fn new(world: World) -> Self {
        Machine {
            world: Mutex::new(world),
            load: Mutex::default(),
            freed: Condvar::new(),
            served: Mutex::default(),
            downloads: Arc::default(),
        }
    }

    fn world<T>(&self, look: impl FnOnce(&mut World) -> T) -> T {
        let mut world = lock(&self.world);
        if let Some(store) = &world.store {
            world.models = store.models();
        }
        look(&mut world)
    }
}

/// An Ollama that listens. It is a [`Fake`] too: what it received is recorded byte for byte.
pub struct Ollama {
    fake: Fake,
    machine: Arc<Machine>,
}

impl Ollama {
    /// On a machine with this store, whose internet is this registry.
    pub fn with_store(store: &Store, internet: Option<SocketAddr>) -> Self {
        Ollama::start(World { store: Some(store.clone()), internet, ..World::default() })
    }

    /// On a machine with these local models, signed in.
    pub fn with(models: &[&str]) -> Self {
        Ollama::start(World::with(models))
    }

    pub fn start(world: World) -> Self {
        let machine = Arc::new(Machine::new(world));
        let [checking, serving] = [Arc::clone(&machine), Arc::clone(&machine)];
        let checks = move |head: &super::Head| {
            let path = head.target();
            let (world, is_scripted) =
                checking.world(|world| (world.clone(), world.script.contains_key(path)));
            if is_scripted || !routes::is_own_host(head) {
                return None;
            }
            // They ask for it where there are stubs.
            let has_stub = world.models.iter().any(|model| model.remote_model.is_some());
            if path == "/api/status" && has_stub {
                let body = lists::list(&world, path);
                return Some(reply::whole(head, 200, "Content-Type: application/json\r\n", body));
            }
            if !lists::LISTS.contains(&path) {
                return None;
            }
            let answer = checked(&world, head)?;
            if path.ends_with("/api/version") {
                std::thread::sleep(world.version_takes);
            }
            Some(answer)
        };
        let fake = Fake::start_checked(checks, move |call| routes::serve(&serving, call));
        Ollama { fake, machine }
    }

    /// Changes the machine; requests under way go on as they began.
    pub fn change(&self, change: impl FnOnce(&mut World)) {
        self.machine.world(change);
        self.machine.freed.notify_all();
    }

    /// What handlers did, in the order in which they began to answer. The checks of daemons don't
    /// count.
    pub fn served(&self) -> Vec<Served> {
        lock(&self.machine.served).clone()
    }

    /// Waits until so many requests wait for their turn.
    pub fn wait_waiting(&self, count: usize) {
        let waiting = || lock(&self.machine.load).waiting;
        eventually("requests to wait", || (waiting() == count).then_some(()));
    }

    /// Waits until so many handlers have begun to answer.
    pub fn wait_served(&self, count: usize) -> Vec<Served> {
        eventually("handlers to answer", || Some(self.served()).filter(|all| all.len() >= count))
    }

    /// The models of those requests that name one, in the same order.
    pub fn served_models(&self) -> Vec<String> {
        self.served().into_iter().filter_map(|served| served.model).collect()
    }
}

impl Deref for Ollama {
    type Target = Fake;

    fn deref(&self) -> &Fake {
        &self.fake
    }
}

impl DerefMut for Ollama {
    fn deref_mut(&mut self) -> &mut Fake {
        &mut self.fake
    }
}

impl Call<'_> {
    /// Answers as an Ollama on this machine does; what it changes there is forgotten.
    pub fn as_ollama(&mut self, world: &World) {
        routes::serve(&Machine::new(world.clone()), self);
    }
}
