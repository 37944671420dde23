//! Every port, interval, time-out and limit, each with its unit and its reason.
//!
//! Owns the values and how they are written by people (`5s`, `64k`); knows nothing of
//! where they come from (that is `cli`) or of who uses them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use crate::access::addresses::{Cidr, Reach};
use crate::access::cors::Origins;
use crate::access::permissions::Policy;
use crate::ollama::model_name::ModelName;

/// Ollama's own HTTP port (`envconfig/config.go`).
pub const OLLAMA_PORT: u16 = 11434;
/// HTTP port of an Ollana server's proxy.
pub const SERVER_PORT: u16 = 11435;
/// HTTP port of the client's proxy where Ollama itself has [`OLLAMA_PORT`].
pub const POOLED_PORT: u16 = 11437;
/// UDP port of the discovery.
pub const DISCOVERY_PORT: u16 = 11436;

/// Most fields in one request head that `--max-fields` may allow.
pub const MAX_FIELDS: usize = 128;
/// Longest single field line, name and value: ureq writes each in one piece of its buffer.
pub const MAX_FIELD_LINE: usize = 16 * 1024;

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

/// Where the local Ollama answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OllamaUrl {
    /// Host name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Path put in front of every target; empty or `/x` without a trailing slash.
    pub prefix: String,
}

/// The hardware address of a network card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::str::FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("{text}: expected six bytes such as d8:bb:c1:00:0a:ff");
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let digits = parts.next().filter(|part| part.len() == 2).ok_or_else(error)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() { Err(error()) } else { Ok(Mac(bytes)) }
    }
}

/// A machine that may be asleep and is woken when it is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sleeper {
    /// By its hardware address.
    Mac(Mac),
    /// By name or address; its hardware address is learned while it is up.
    Server(String),
}

impl fmt::Display for Sleeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sleeper::Mac(mac) => mac.fmt(f),
            Sleeper::Server(name) => write!(f, "{name:?}"),
        }
    }
}

impl Sleeper {
    /// As it is written on the command line.
    pub fn parse(text: &str) -> Self {
        text.parse().map_or_else(|_| Sleeper::Server(text.to_owned()), Sleeper::Mac)
    }
}

/// A server named by the user.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerName {
    /// Host name or address, without brackets.
    pub host: String,
    /// TCP port of its proxy.
    pub port: u16,
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl OllamaUrl {
    /// Its host and port.
    pub fn server(&self) -> ServerName {
        ServerName { host: self.host.clone(), port: self.port }
    }
}

impl fmt::Display for OllamaUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.server(), self.prefix)
    }
}

/// Intervals and time-outs.
#[derive(Clone, Debug)]
pub struct Timing {
    /// Pause between two discovery probes (default 5 s, ± 10 % jitter).
    pub probe_interval: Duration,
    /// Pause between two health checks of one backend (default 1 s).
    pub health_interval: Duration,
    /// A health check without an answer by then has failed (default 1.5 s).
    pub health_timeout: Duration,
    /// TCP connect to an upstream (default 1.3 s: a LAN answers in milliseconds, and the kernel
    /// repeats a lost SYN after 1 s).
    pub connect_timeout: Duration,
    /// Whole request head, from its first byte (default 10 s).
    pub head_timeout: Duration,
    /// Idle keep-alive connection (default 120 s, above Go's client's 90 s).
    pub idle_timeout: Duration,
    /// Request body without a new byte from the client (default 60 s).
    pub body_timeout: Duration,
    /// Peer that doesn't read what we send (default 120 s).
    pub stall_timeout: Duration,
    /// How long a request waits for a server that is just being checked (default 1.5 s).
    pub wait_timeout: Duration,
    /// How long a request waits while all servers that could do are busy (default 60 s).
    pub queue_timeout: Duration,
    /// How long a request waits for a machine that was woken for it (default 60 s).
    pub wake_timeout: Duration,
    /// Streams may finish for this long after SIGTERM (default 30 s).
    pub drain_timeout: Duration,
}

/// Counts and sizes.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Successful health checks in a row before a backend gets work (default 1).
    pub rise: u32,
    /// Silent health checks in a row before it gets none (default 2; a refusal counts at once).
    pub fall: u32,
    /// Connections in all (default 2048; one thread each).
    pub max_connections: usize,
    /// Connections from one remote address (default 1024); loopback is exempt.
    pub max_connections_per_source: usize,
    /// Bytes of a request head (default 64 KiB).
    pub max_head: usize,
    /// Fields in a request head (default 100).
    pub max_fields: usize,
    /// Bytes of a request body kept for another try (default 4 MiB).
    pub replay_limit: usize,
    /// Bytes of all kept bodies together (default 64 MiB).
    pub replay_budget: usize,
    /// Servers in the pool (default 64).
    pub max_servers: usize,
    /// Requests that one server gets at once; 0 means that busy answers teach it (default 0).
    pub max_in_flight: u32,
}

/// Everything a daemon can be told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Client, server or whichever fits.
    pub mode: ModeChoice,
    /// Addresses to listen on; empty means the mode's own. With both modes, the client's.
    pub listen: Vec<SocketAddr>,
    /// With both modes, the server's addresses; empty means its own.
    pub share: Vec<SocketAddr>,
    /// The local Ollama; `None` means Ollama's default address.
    pub ollama: Option<OllamaUrl>,
    /// Servers that broadcasts don't reach.
    pub servers: Vec<ServerName>,
    /// Interfaces to broadcast on; empty means every suitable one.
    pub interfaces: Vec<String>,
    /// UDP port of the discovery; 0 turns it off.
    pub discovery_port: u16,
    /// Whether bare four-byte probes are answered.
    pub legacy: bool,
    /// What other machines may do here.
    pub policy: Policy,
    /// Which web pages may ask (`OLLAMA_ORIGINS`).
    pub origins: Origins,
    /// Which machines may connect.
    pub reach: Reach,
    /// Further names accepted in `Host`.
    pub hosts: Vec<String>,
    /// Models that go to the named servers while one of them is up.
    pub pins: Vec<(ModelName, String)>,
    /// Models that never go to the named servers.
    pub bans: Vec<(ModelName, String)>,
    /// Servers that come first while they are up, best first.
    pub preferred: Vec<String>,
    /// Machines to wake when nobody else can do a request.
    pub wake: Vec<Sleeper>,
    /// Who may ask for the state (`/ollana/`) besides this machine.
    pub status_from: Vec<Cidr>,
    /// Least severe level that is logged.
    pub log_level: LevelFilter,
    /// Where the log goes; `None` means stderr.
    pub log_file: Option<PathBuf>,
    /// How its lines are written.
    pub log_format: LogFormat,
    /// Whether to go to the background once it serves.
    pub daemon: bool,
    /// Where to write the process number.
    pub pid_file: Option<PathBuf>,
    /// Where the identity is kept; `None` when no place is known.
    pub state_dir: Option<PathBuf>,
    /// A secret that several machines have from whoever set them up.
    pub key_file: Option<PathBuf>,
    /// Whether machines without a key are talked to; without a word, they are while there are no
    /// keys.
    pub unpaired: Option<bool>,
    /// Intervals and time-outs.
    pub timing: Timing,
    /// Counts and sizes.
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
            reach: Reach::default(),
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
            timing: Timing {
                probe_interval: Duration::from_secs(5),
                health_interval: Duration::from_secs(1),
                health_timeout: Duration::from_millis(1500),
                connect_timeout: Duration::from_millis(1300),
                head_timeout: Duration::from_secs(10),
                idle_timeout: Duration::from_secs(120),
                body_timeout: Duration::from_secs(60),
                stall_timeout: Duration::from_secs(120),
                wait_timeout: Duration::from_millis(1500),
                queue_timeout: Duration::from_secs(60),
                wake_timeout: Duration::from_secs(60),
                drain_timeout: Duration::from_secs(30),
            },
            limits: Limits {
                rise: 1,
                fall: 2,
                max_connections: 2048,
                max_connections_per_source: 1024,
                max_head: 64 * 1024,
                max_fields: 100,
                replay_limit: 4 << 20,
                replay_budget: 64 << 20,
                max_servers: 64,
                max_in_flight: 0,
            },
        }
    }
}

impl Settings {
    /// The local Ollama's address, with Ollama's own default.
    pub fn ollama_url(&self) -> OllamaUrl {
        self.ollama.clone().unwrap_or_else(|| OllamaUrl {
            host: "127.0.0.1".to_owned(),
            port: OLLAMA_PORT,
            prefix: String::new(),
        })
    }
}

/// Reads an address of Ollama by the rules of its own `OLLAMA_HOST`
/// (`envconfig.Host`): quotes and blanks trimmed, no scheme means port 11434,
/// `http://` means port 80, a path is kept.
///
/// # Errors
/// A sentence for the user: TLS upstreams and malformed addresses are refused.
pub fn parse_ollama(text: &str) -> Result<OllamaUrl, String> {
    let text = text.trim().trim_matches(['"', '\'']).trim();
    let (rest, default_port) = match text.split_once("://") {
        None => (text, OLLAMA_PORT),
        Some(("http", rest)) => (rest, 80),
        Some(("https", _)) => {
            return Err(format!("{text}: a local Ollama speaks plain http, not https"));
        }
        Some((scheme, _)) => return Err(format!("{text}: unknown scheme {scheme}")),
    };
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    let prefix = path.trim_end_matches('/').to_owned();
    if prefix.bytes().any(|b| !(0x21..=0x7e).contains(&b) || b == b'#' || b == b'?') {
        return Err(format!("{text}: the path must be plain ASCII without '?' and '#'"));
    }
    let server = parse_host_port(authority, default_port)?;
    // A server is told to listen on "any address"; to reach it we ask loopback.
    let host = match server.host.parse::<IpAddr>() {
        Ok(ip) if ip == IpAddr::V4(Ipv4Addr::UNSPECIFIED) => "127.0.0.1".to_owned(),
        Ok(ip) if ip == IpAddr::V6(Ipv6Addr::UNSPECIFIED) => "::1".to_owned(),
        _ if server.host.is_empty() => "127.0.0.1".to_owned(),
        _ => server.host,
    };
    Ok(OllamaUrl { host, port: server.port, prefix })
}

/// Reads `HOST[:PORT]`, IPv6 with or without brackets.
///
/// # Errors
/// A sentence for the user when the port isn't a number or the host can't be one.
pub fn parse_host_port(text: &str, default_port: u16) -> Result<ServerName, String> {
    let text = text.trim();
    if let Ok(ip) = text.parse::<Ipv6Addr>() {
        return Ok(ServerName { host: ip.to_string(), port: default_port });
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or(format!("{text}: missing ]"))?;
            host.parse::<Ipv6Addr>().map_err(|_| format!("{text}: not an IPv6 address"))?;
            match after.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if after.is_empty() => (host, None),
                None => return Err(format!("{text}: expected :PORT after ]")),
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':');
    if !host.bytes().all(allowed) {
        return Err(format!("{text}: {host} is no host name or address"));
    }
    let port = match port {
        None => default_port,
        Some(port) => port.parse().map_err(|_| format!("{text}: {port} is no port"))?,
    };
    Ok(ServerName { host: host.to_owned(), port })
}

/// Reads `MODEL=SERVER`.
///
/// # Errors
/// A sentence for the user.
pub fn parse_route(text: &str) -> Result<(ModelName, String), String> {
    let parts = text
        .split_once('=')
        .and_then(|(model, server)| Some((ModelName::parse(model)?, server.trim().to_owned())));
    parts
        .filter(|(_, server)| !server.is_empty())
        .ok_or_else(|| format!("{text}: expected MODEL=SERVER, such as llama3.2=desktop"))
}

/// Reads `250ms`, `5s`, `2m` or a bare number of seconds.
///
/// # Errors
/// A sentence for the user; zero is refused.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (digits, unit) = split_unit(text);
    let millis = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        _ => 0,
    };
    match digits.parse::<u64>().ok().and_then(|n| n.checked_mul(millis)) {
        Some(ms) if ms > 0 && ms <= 86_400_000 => Ok(Duration::from_millis(ms)),
        _ => Err(format!("{text}: expected a time such as 250ms, 5s or 2m, at most a day")),
    }
}

/// Reads `4096`, `64k` or `4m` (bytes, KiB, MiB).
///
/// # Errors
/// A sentence for the user.
pub fn parse_size(text: &str) -> Result<usize, String> {
    let (digits, unit) = split_unit(text);
    let shift = match unit {
        "" => 0,
        "k" => 10,
        "m" => 20,
        _ => 64,
    };
    match digits.parse::<usize>() {
        Ok(n) if shift < 64 && n <= (1 << 30) >> shift => Ok(n << shift),
        _ => Err(format!("{text}: expected a size such as 4096, 64k or 4m, at most 1024m")),
    }
}

fn split_unit(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ollama_host_follows_ollamas_rules() {
        // Cases of envconfig's own table, where they describe an http address.
        for (text, want) in [
            ("", "http://127.0.0.1:11434"),
            ("1.2.3.4", "http://1.2.3.4:11434"),
            (":1234", "http://127.0.0.1:1234"),
            ("1.2.3.4:1234", "http://1.2.3.4:1234"),
            ("example.com", "http://example.com:11434"),
            ("http://1.2.3.4", "http://1.2.3.4:80"),
            ("http://1.2.3.4:1234/", "http://1.2.3.4:1234"),
            ("example.com/ollama", "http://example.com:11434/ollama"),
            ("[::1]", "http://[::1]:11434"),
            ("[::]:1337", "http://[::1]:1337"),
            ("::1", "http://[::1]:11434"),
            ("0.0.0.0", "http://127.0.0.1:11434"),
            ("\"1.2.3.4\"", "http://1.2.3.4:11434"),
            ("' 1.2.3.4 '", "http://1.2.3.4:11434"),
        ] {
            let got = parse_ollama(text).unwrap_or_else(|e| panic!("{text:?}: {e}"));
            assert_eq!(got.to_string(), want, "{text:?}");
        }
        for text in ["https://x", "ftp://x", "x:y", "[::1", "[x]", "a b", "x/?q"] {
            assert!(parse_ollama(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn durations_and_sizes() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("3"), Ok(Duration::from_secs(3)));
        for bad in ["", "0", "s", "-1s", "1h", "2d", "1.5s", "99999999999999999999s"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
        assert_eq!(parse_size("64k"), Ok(65536));
        assert_eq!(parse_size("0"), Ok(0));
        for bad in ["", "k", "1g", "2048m", "-1"] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
    }
}
