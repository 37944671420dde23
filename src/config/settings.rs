//! Everything that a daemon or a command can be told.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use super::{
    DISCOVERY_PORT, Limits, OLLAMA_PORT, OllamaUrl, SERVER_PORT, ServerName, Sleeper, Timing,
};
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

    /// Whether a client of these settings listens on the port of an Ollama on this machine.
    pub(crate) fn takes_ollamas_port(&self) -> bool {
        let ollama = self.ollama_url();
        let is_its_port = match self.listen.is_empty() {
            true => ollama.port == OLLAMA_PORT,
            false => self.listen.iter().any(|address| address.port() == ollama.port),
        };
        let is_loopback = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
        is_its_port && (ollama.host == "localhost" || ollama.host.parse().is_ok_and(is_loopback))
    }

    /// Where a server listens, if that is told.
    pub(crate) fn server_listen(&self) -> &[SocketAddr] {
        match self.mode {
            ModeChoice::Both => &self.share,
            // These are a client's, which leaves them to Ollama once that runs.
            ModeChoice::Auto if self.takes_ollamas_port() => &[],
            _ => &self.listen,
        }
    }

    /// TCP ports at which other machines reach ollana, each once.
    pub(crate) fn lan_ports(&self) -> Vec<u16> {
        let mut ports: Vec<u16> = self.lan_addresses().iter().map(SocketAddr::port).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// Addresses at which other machines reach ollana, but for those with a port that isn't known yet.
    pub(crate) fn lan_addresses(&self) -> Vec<SocketAddr> {
        let is_both = self.mode == ModeChoice::Both;
        // Without an address of its own, a client listens on the loopback.
        let has_usual = self.server_listen().is_empty() && self.mode != ModeChoice::Client;
        let usual = SocketAddr::from((Ipv4Addr::UNSPECIFIED, SERVER_PORT));
        let shared = self.share.iter().filter(|_| is_both);
        let given = self.listen.iter().chain(shared).copied();
        let is_reached = |it: &SocketAddr| !it.ip().to_canonical().is_loopback() && it.port() != 0;
        has_usual.then_some(usual).into_iter().chain(given.filter(is_reached)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_the_lan_are_those_of_the_addresses_that_it_reaches() {
        use ModeChoice::{Auto, Both, Client, Server};
        for (mode, listen, share, want) in [
            (Auto, "", "", &[11435][..]),
            (Client, "", "", &[]),
            (Server, "0.0.0.0:9", "", &[9]),
            (Auto, "127.0.0.1:9 0.0.0.0:8 [::]:8 10.0.0.1:7", "", &[7, 8]),
            (Auto, "0.0.0.0:8 127.0.0.1:9", "", &[8]),
            (Client, "0.0.0.0:9", "", &[9]),
            // Where Ollama is to be, a client listens, and a server elsewhere.
            (Auto, "127.0.0.1:11434 10.0.0.1:11434", "", &[11434, 11435]),
            (Server, "10.0.0.1:11434", "", &[11434]),
            (Server, "[::1]:9 [::ffff:127.0.0.1]:8 0.0.0.0:0", "", &[]),
            // Only with both modes, the server's addresses are apart.
            (Auto, "0.0.0.0:9", "0.0.0.0:8", &[9]),
            (Both, "", "", &[11435]),
            (Both, "127.0.0.1:9", "", &[11435]),
            (Both, "127.0.0.1:9", "0.0.0.0:8", &[8]),
            (Both, "0.0.0.0:9", "127.0.0.1:8", &[9]),
        ] {
            let [listen, share] = [listen, share].map(|all| {
                all.split_whitespace().map(|address| address.parse().expect("an address")).collect()
            });
            let settings = Settings { mode, listen, share, ..Settings::default() };
            assert_eq!(settings.lan_ports(), want, "{:?} {:?}", settings.listen, settings.share);
        }
    }
}
