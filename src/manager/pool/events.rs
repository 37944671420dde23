//! What comes into the pool and what goes out of it: requests and picks, inputs and actions.

#![expect(missing_docs, reason = "what has no docs here has a name that says it all")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::access::permissions::Permission;
use crate::config::{ServerName, Sleeper};
use crate::counters::Tally;
use crate::ollama::aliases::Aliases;
use crate::ollama::endpoints::Task;
use crate::ollama::facts::Capabilities;
use crate::ollama::model_name::ModelName;
use crate::pairing::identity::Identity;
use crate::upstream::{CheckResult, CheckTime, Hope, Target};

/// Names a server for as long as the pool lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendId(pub(crate) u32);

/// One check: its result is taken for no other one's.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CheckId {
    /// What is checked.
    pub backend: BackendId,
    pub(super) number: u64,
}

/// How the pool knows of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The Ollama of this machine.
    Local(ServerName),
    /// Named with `--server`; never forgotten.
    Named(ServerName),
    /// Answered a probe.
    Discovered,
    /// Answered a probe with bare magic; its port is a guess.
    Legacy,
}

/// An announcement, already matched to one of our probes.
#[derive(Clone, Debug)]
pub struct Sighting {
    /// Source address of the packet with the announced HTTP port.
    pub address: SocketAddr,
    pub identity: Identity,
    /// New at each start of the server.
    pub instance: u32,
    /// May be empty.
    pub name: String,
    /// Whether it says that its Ollama answers.
    pub ollama_up: bool,
    /// Whether it says that other machines may manage its models.
    pub management_open: bool,
}

/// What a request needs.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub task: Task,
    pub model: Option<ModelName>,
    /// The server that the client asks for by name or address.
    pub server: Option<String>,
    pub client: Option<IpAddr>,
    /// Tells a conversation from others; the same in all of its requests.
    pub conversation: Option<u64>,
    /// What the server has to allow for it.
    pub needs: Permission,
    /// Only the Ollama of this machine will do, whatever its last check said: the LAN asks us, or it is
    /// about this machine.
    pub local_only: bool,
    /// The model is out of memory behind the answer.
    pub unloads: bool,
    /// No work for a server's own processor: no limit of requests holds for it, it waits for none.
    pub is_exempt: bool,
    /// Where no server is up that could do it, one that is down is tried.
    pub may_try: bool,
    /// What its model has to be able to do.
    pub abilities: Capabilities,
    /// Tokens that its prompt has at least.
    pub tokens: u64,
    /// The context that it sets, in tokens.
    pub num_ctx: Option<u64>,
}

impl Wanted {
    /// The model, if it has to be where the request goes. Where there is an account, a cloud's model
    /// runs; only where its stub is can it be changed.
    pub(super) fn bound_model(&self) -> Option<&ModelName> {
        let is_bound = |model: &&ModelName| !model.is_cloud() || self.needs == Permission::Manage;
        self.model.as_ref().filter(is_bound)
    }
}

/// A server picked for one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pick {
    /// The server that counts the request until [`Input::Finished`].
    pub id: BackendId,
    pub address: SocketAddr,
    /// For the log and `X-Ollana-Server`.
    pub name: String,
    pub is_local: bool,
    /// The request doesn't count towards the server's limit.
    pub is_exempt: bool,
    /// No other server could do it, so it is worth waiting for.
    pub is_sole: bool,
    /// The server is down, as far as is known.
    pub is_trial: bool,
    /// Gone once the server is called down, or is somewhere else.
    pub(crate) hope: Hope,
    pub(crate) tally: Tally,
}

impl Pick {
    /// Bytes of an answer came from the server.
    pub fn received(&self, bytes: u64) {
        self.tally.bytes_down.add(bytes);
    }

    /// How the request ended that has it.
    pub fn report(&self, outcome: Outcome) -> Report {
        Report { is_exempt: self.is_exempt, ..outcome.into() }
    }

    pub(crate) fn label(&self) -> String {
        let address = self.address;
        if self.is_local {
            format!("Ollama at {address}")
        } else if self.name == address.to_string() {
            format!("server {address}")
        } else {
            format!("server {} ({address})", self.name)
        }
    }
}

/// Why there is no server for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoPick {
    /// None is up, or none is left to try.
    NoneUp(String),
    /// All that could do have as many requests as they take.
    Busy,
    /// The server that the client asks for, or any that may, is away.
    Away(String),
    /// The only server with the model is away, or was tried in vain.
    OwnerAway(String),
}

/// How a request on a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A whole answer of any status.
    Answered,
    /// The connection was refused or timed out; nothing was sent.
    Unreachable,
    /// The server failed before or within its answer.
    Failed,
    /// Ollama refused local inference: as many requests wait for it as it lets wait.
    Overloaded,
    /// A proxy was full, or something other than Ollama answered local inference with 503.
    TurnedAway,
    /// It answered 429 or 503, which says nothing of its load.
    Declined,
    /// An error of the server's own instead of the model's answer.
    Erred,
    /// Its account doesn't do: it is signed out, or its owner keeps it from the cloud. Nothing was
    /// computed.
    Unauthorized,
    /// The client left, or we ourselves were at fault.
    Void,
}

impl Outcome {
    /// Whether the server answered, though it may not have been passed on.
    pub fn is_answer(self) -> bool {
        !matches!(self, Outcome::Unreachable | Outcome::Failed | Outcome::Void)
    }
}

/// What a finished request taught.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    pub outcome: Outcome,
    /// From the request's head to the first byte of the answer.
    pub first_byte: Option<Duration>,
    /// Tokens per second that the server generated for this model.
    pub speed: Option<(ModelName, f64)>,
    /// It changed what models the server has.
    pub changed_models: bool,
    /// This model isn't there, or not any more.
    pub removed: Option<ModelName>,
    /// It left this model in memory, or took it out.
    pub loaded: Option<(ModelName, bool)>,
    /// It was answered with an error: the model and the conversation that it is about.
    pub erred: Option<(ModelName, Option<u64>)>,
    /// It didn't count towards the server's limit.
    pub is_exempt: bool,
}

impl Report {
    /// Whether the pool has to know, beyond the count of requests in flight.
    pub fn is_news(&self) -> bool {
        let is_trouble = self.is_trouble() || self.outcome == Outcome::Unauthorized;
        let changes_models = self.changed_models || self.removed.is_some();
        is_trouble || changes_models || self.speed.is_some()
    }

    pub fn is_trouble(&self) -> bool {
        use Outcome::{Answered, Declined, Unauthorized, Void};
        !matches!(self.outcome, Answered | Declined | Unauthorized | Void)
    }
}

impl From<Outcome> for Report {
    fn from(outcome: Outcome) -> Self {
        Report {
            outcome,
            first_byte: None,
            speed: None,
            changed_models: false,
            removed: None,
            loaded: None,
            erred: None,
            is_exempt: false,
        }
    }
}

/// A machine says that it can't be used.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub identity: Identity,
    /// What it calls itself; may be empty.
    pub name: String,
    pub from: IpAddr,
    pub why: Unusable,
}

/// Why a machine can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// It is a server whose Ollama was stopped.
    NotRunning,
    /// It talks to paired machines only.
    KeyRequired,
    /// We talk to paired machines only, and it isn't one.
    NotPaired,
}

impl Unusable {
    /// In JSON.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Unusable::NotRunning => "not_running",
            Unusable::KeyRequired => "key_required",
            Unusable::NotPaired => "not_paired",
        }
    }
}

impl Notice {
    /// For people.
    pub(crate) fn sentence(&self) -> String {
        let name = match self.name.as_str() {
            "" => self.from.to_string(),
            name => name.to_owned(),
        };
        match self.why {
            Unusable::NotRunning => not_running(&name),
            Unusable::KeyRequired => {
                format!("{name} answers paired machines only: run 'ollana pair' on both")
            }
            Unusable::NotPaired => format!(
                "this machine talks to paired machines only, and {name} isn't one: run 'ollana \
                 pair' on both"
            ),
        }
    }
}

pub(super) fn not_running(name: &str) -> String {
    format!("Ollama isn't running on {name}")
}

/// Something happened.
#[derive(Clone, Debug)]
pub enum Input {
    Sighted(Sighting),
    /// An older server answered from this address.
    LegacySighted(IpAddr),
    /// A machine says why it can't be used.
    Noticed(Notice),
    /// A server says that it leaves, in a packet from this address.
    Farewell {
        identity: Identity,
        from: IpAddr,
    },
    Checked(CheckId, CheckResult),
    /// A request ended that [`Pool::pick`](super::Pool::pick) counted in.
    Finished(BackendId, Report),
    /// A request ended that was counted elsewhere.
    Noted(BackendId, Report),
    /// Somebody looks at the state, and wants to see models too.
    Watched,
    /// Time has passed.
    Tick,
    /// A Wake-on-LAN packet was sent.
    Woken,
    /// This machine slept for so long, while its clock stood still.
    Slept(Duration),
}

/// What the Manager has to get done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask this target for `/api/version`, and for its models if told so; report
    /// [`Input::Checked`].
    Check(CheckId, Target, bool, CheckTime),
    Report(Transition),
    /// Write down what is known now.
    Remember,
}

/// An edge in a server's life, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transition {
    Up {
        name: String,
        address: SocketAddr,
        version: String,
    },
    Down {
        name: String,
        reason: String,
    },
    /// Its requests fail, or those for this model are answered with errors, so it gets none of them
    /// for a while.
    OutlierEjected {
        name: String,
        model: Option<ModelName>,
        pause: Duration,
    },
    /// The pool knows it no longer.
    Forgotten {
        name: String,
    },
    /// Its lists of models have a problem, or none any more.
    Lists {
        name: String,
        problem: Option<String>,
    },
    /// It is used at another address.
    Moved {
        name: String,
        address: SocketAddr,
    },
    /// It has the name, the address or the identity of another server.
    IdentityConflict {
        name: String,
        address: SocketAddr,
        reason: String,
        is_quarantined: bool,
    },
    /// The pool is full.
    Refused {
        address: SocketAddr,
    },
}

/// What the pool goes by.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Pause between two checks of a server that is up.
    pub health_interval: Duration,
    /// A check that hasn't reported by then is counted as silent.
    pub health_timeout: Duration,
    /// Good checks in a row before a server gets work.
    pub rise: u32,
    /// Silent checks in a row before it gets none.
    pub fall: u32,
    pub max_servers: usize,
    /// Whether to ask what models they have.
    pub inventories: bool,
    /// Inferences that a server may have at once; 0 means that it is learned from overloads.
    pub max_in_flight: u32,
    /// Models that go to the named servers while one of them is up.
    pub pins: Vec<(ModelName, String)>,
    /// Models that never go to the named servers.
    pub bans: Vec<(ModelName, String)>,
    /// Names that stand for models.
    pub aliases: Aliases,
    /// Servers that come first while they are up, best first.
    pub preferred: Vec<String>,
    /// Machines that are woken for a request.
    pub wake: Vec<Sleeper>,
}
