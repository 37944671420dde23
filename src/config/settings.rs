//! Everything that a daemon or a command can be told.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use super::{DISCOVERY_PORT, Limits, OllamaUrl, ServerName, Sleeper, Timing};
use crate::access::addresses::{AddressLists, Cidr};
use crate::access::cors::Origins;
use crate::access::permissions::{Policy, ShareModels};
use crate::ollama::aliases::Aliases;
use crate::ollama::model_name::ModelName;

/// What the user asks for with `--mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModeChoice {
    /// Server where a local Ollama answers, otherwise client.
    Auto,
    /// Use the LAN's servers.
    Client,
    /// Share the local Ollama, even when it isn't up yet.
    Server,
    /// Share it, and use the LAN's servers next to it.
    Both,
}

/// How lines of the log are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// A JSON object per line.
    Json,
}

with_defaults! {
    /// Everything that a daemon or a command can be told. The help has a line for each option.
    #[allow(missing_docs)] // Fields are named after their options.
    pub struct Settings {
        mode: ModeChoice = ModeChoice::Auto,
        /// Empty means the mode's own address. With both modes, the client's.
        listen: Vec<SocketAddr> = Vec::new(),
        /// With both modes, the server's addresses; empty means its own.
        share: Vec<SocketAddr> = Vec::new(),
        /// `None` means Ollama's default address.
        ollama: Option<OllamaUrl> = None,
        servers: Vec<ServerName> = Vec::new(),
        /// Empty means every suitable one.
        interfaces: Vec<String> = Vec::new(),
        /// 0 turns the discovery off.
        discovery_port: u16 = DISCOVERY_PORT,
        legacy: bool = true,
        policy: Policy = Policy::default(),
        share_models: ShareModels = ShareModels::default(),
        /// A server's machine is kept awake for so long after a request; `None` leaves it alone.
        keep_awake: Option<Duration> = Some(Duration::from_secs(600)),
        /// Which web pages may ask (`OLLAMA_ORIGINS`).
        origins: Origins = Origins::default(),
        reach: AddressLists = AddressLists::default(),
        /// Further names accepted in `Host`, in lower case.
        hosts: Vec<String> = Vec::new(),
        pins: Vec<(ModelName, String)> = Vec::new(),
        bans: Vec<(ModelName, String)> = Vec::new(),
        /// Names of models that stand for others, for programs of this machine.
        aliases: Aliases = Aliases::default(),
        /// Best first.
        preferred: Vec<String> = Vec::new(),
        wake: Vec<Sleeper> = Vec::new(),
        status_from: Vec<Cidr> = Vec::new(),
        log_level: LevelFilter = LevelFilter::Info,
        /// `None` means stderr.
        log_file: Option<PathBuf> = None,
        log_format: LogFormat = LogFormat::Text,
        daemon: bool = false,
        /// Started by Windows at log-in: ends when the pid file is gone.
        at_log_in: bool = false,
        pid_file: Option<PathBuf> = None,
        /// Identity, keys and the servers of the last run; `None` when no place is known.
        state_dir: Option<PathBuf> = None,
        key_file: Option<PathBuf> = None,
        /// `None`: machines without a key are talked to while this one has no keys.
        unpaired: Option<bool> = None,
        timing: Timing = Timing::default(),
        limits: Limits = Limits::default(),
        /// What is odd about how it was told, for the log and for `status`.
        warnings: Vec<String> = Vec::new(),
    }
}

impl Settings {
    pub(crate) fn ollama_url(&self) -> OllamaUrl {
        self.ollama.clone().unwrap_or_default()
    }
}
