//! Everything that a daemon or a command can be told.

use std::net::SocketAddr;
use std::path::PathBuf;

use log::LevelFilter;

use super::{DISCOVERY_PORT, Limits, OllamaUrl, ServerName, Sleeper, Timing};
use crate::access::addresses::{AddressLists, Cidr};
use crate::access::cors::Origins;
use crate::access::permissions::Policy;
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

/// Everything that a daemon or a command can be told. The help has a line for each option.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // Fields are named after their options.
pub struct Settings {
    pub mode: ModeChoice,
    /// Empty means the mode's own address. With both modes, the client's.
    pub listen: Vec<SocketAddr>,
    /// With both modes, the server's addresses; empty means its own.
    pub share: Vec<SocketAddr>,
    /// `None` means Ollama's default address.
    pub ollama: Option<OllamaUrl>,
    /// Servers that broadcasts don't reach.
    pub servers: Vec<ServerName>,
    /// Empty means every suitable one.
    pub interfaces: Vec<String>,
    /// 0 turns the discovery off.
    pub discovery_port: u16,
    pub legacy: bool,
    /// What other machines may do here.
    pub policy: Policy,
    /// Which web pages may ask (`OLLAMA_ORIGINS`).
    pub origins: Origins,
    /// Which machines may connect.
    pub reach: AddressLists,
    /// Further names accepted in `Host`, in lower case.
    pub hosts: Vec<String>,
    pub pins: Vec<(ModelName, String)>,
    pub bans: Vec<(ModelName, String)>,
    /// Best first.
    pub preferred: Vec<String>,
    pub wake: Vec<Sleeper>,
    pub status_from: Vec<Cidr>,
    pub log_level: LevelFilter,
    /// `None` means stderr.
    pub log_file: Option<PathBuf>,
    pub log_format: LogFormat,
    pub daemon: bool,
    pub pid_file: Option<PathBuf>,
    /// Identity, keys and the servers of the last run; `None` when no place is known.
    pub state_dir: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// `None`: machines without a key are talked to while this one has no keys.
    pub unpaired: Option<bool>,
    pub timing: Timing,
    pub limits: Limits,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            mode: ModeChoice::Auto,
            listen: Vec::new(),
            share: Vec::new(),
            ollama: None,
            servers: Vec::new(),
            interfaces: Vec::new(),
            discovery_port: DISCOVERY_PORT,
            legacy: true,
            policy: Policy::default(),
            origins: Origins::default(),
            reach: AddressLists::default(),
            hosts: Vec::new(),
            pins: Vec::new(),
            bans: Vec::new(),
            preferred: Vec::new(),
            wake: Vec::new(),
            status_from: Vec::new(),
            log_level: LevelFilter::Info,
            log_file: None,
            log_format: LogFormat::Text,
            daemon: false,
            pid_file: None,
            state_dir: None,
            key_file: None,
            unpaired: None,
            timing: Timing::default(),
            limits: Limits::default(),
        }
    }
}

impl Settings {
    /// The local Ollama's address, with Ollama's own default.
    pub(crate) fn ollama_url(&self) -> OllamaUrl {
        self.ollama.clone().unwrap_or_default()
    }
}
