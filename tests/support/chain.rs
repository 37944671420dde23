//! Daemons in this process, one hop or both, in front of fakes.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, OnceLock};

use ollana::config::{ModeChoice, OllamaUrl, ServerName, Settings};
use ollana::serve::Daemon;

use super::{Client, Fake, Ollama, eventually, lock, private_file};

/// What daemons can stand in front of.
pub trait Upstream {
    fn address(&self) -> SocketAddr;
}

impl Upstream for Fake {
    fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Upstream for Ollama {
    fn address(&self) -> SocketAddr {
        self.address
    }
}

/// The ways from a client to an Ollama that a test goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// client → server proxy → Ollama
    OneHop,
    /// client → client proxy → server proxy → Ollama
    TwoHops,
    /// the same, the proxies paired by a key file: what is between them is encrypted
    Paired,
}

impl Way {
    pub const ALL: [Way; 3] = [Way::OneHop, Way::TwoHops, Way::Paired];

    pub fn hops(self) -> usize {
        match self {
            Way::OneHop => 1,
            Way::TwoHops | Way::Paired => 2,
        }
    }

    fn key_file(self) -> Option<PathBuf> {
        (self == Way::Paired).then(key_file)
    }

    /// Daemons with default settings in front of this one.
    pub fn to(self, fake: &impl Upstream) -> Chain {
        self.with(fake, |_| {})
    }

    /// The same with other settings, on every hop.
    pub fn with(self, fake: &impl Upstream, tweak: impl Fn(&mut Settings)) -> Chain {
        Chain::start(self, &[fake], tweak)
    }
}

/// A file with a secret, the same for all daemons of this process.
pub fn key_file() -> PathBuf {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    let make = || {
        let path =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("secret-{}", std::process::id()));
        let mut file = private_file(&path).expect("a key file");
        writeln!(file, "{}", "5eed".repeat(16)).expect("a key file");
        path
    };
    FILE.get_or_init(make).clone()
}

/// Daemons that are up.
pub struct Chain {
    pub servers: Vec<Daemon>,
    pub client: Option<Daemon>,
    pub way: Way,
}

impl Chain {
    /// One server proxy per fake, and, for two hops, a client proxy in front of them all.
    pub fn start(way: Way, fakes: &[&impl Upstream], tweak: impl Fn(&mut Settings)) -> Self {
        let servers: Vec<Daemon> = fakes
            .iter()
            .map(|fake| {
                let mut settings = server_settings(fake.address());
                settings.key_file = way.key_file();
                tweak(&mut settings);
                start(&settings)
            })
            .collect();
        let client = (way != Way::OneHop).then(|| {
            let addresses: Vec<SocketAddr> = servers.iter().map(|s| s.addresses()[0]).collect();
            let mut settings = client_settings(&addresses);
            settings.key_file = way.key_file();
            tweak(&mut settings);
            start(&settings)
        });
        Chain { servers, client, way }
    }

    /// A client proxy that takes the fakes themselves for its servers.
    pub fn direct(fakes: &[&impl Upstream], tweak: impl Fn(&mut Settings)) -> Self {
        let addresses: Vec<SocketAddr> = fakes.iter().map(|fake| fake.address()).collect();
        let mut settings = client_settings(&addresses);
        tweak(&mut settings);
        Chain { servers: Vec::new(), client: Some(start(&settings)), way: Way::OneHop }
    }

    /// The daemon that clients talk to.
    pub fn front(&self) -> &Daemon {
        self.client.as_ref().unwrap_or_else(|| &self.servers[0])
    }

    pub fn address(&self) -> SocketAddr {
        self.front().addresses()[0]
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.address())
    }
}

impl Drop for Chain {
    /// Whatever a test did: with its clients gone, every lease has been given back.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        for daemon in self.servers.iter().chain(&self.client) {
            eventually("all leases to be given back", || {
                (daemon.presence().in_flight() == 0).then_some(())
            });
        }
        let panics = lock(&PANICS).clone();
        assert!(panics.is_empty(), "threads of a daemon panicked: {panics:?}");
    }
}

/// Threads of daemons survive their panics, so nobody would see them otherwise.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn watch_for_panics() {
    const OURS: &[&str] = &[
        "acceptor",
        "worker",
        "rejector",
        "parking",
        "manager",
        "ticker",
        "log",
        "checker",
        "discovery",
        "responder",
    ];
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let thread = std::thread::current();
            if thread.name().is_some_and(|name| OURS.contains(&name)) {
                lock(&PANICS).push(panic.to_string());
            }
            hook(panic);
        }));
    });
}

/// Starts a daemon and waits until it has a backend.
pub fn start(settings: &Settings) -> Daemon {
    watch_for_panics();
    let daemon = Daemon::start(settings).unwrap_or_else(|error| panic!("start: {error}"));
    eventually("a daemon to find its backend", || daemon.presence().is_up().then_some(()));
    daemon
}

/// A server proxy for the Ollama at this address, without discovery.
pub fn server_settings(ollama: SocketAddr) -> Settings {
    let url =
        OllamaUrl { host: ollama.ip().to_string(), port: ollama.port(), prefix: String::new() };
    Settings { mode: ModeChoice::Server, ollama: Some(url), ..quiet_settings() }
}

/// A client proxy for the servers at these addresses, without discovery.
pub fn client_settings(servers: &[SocketAddr]) -> Settings {
    let named =
        |address: &SocketAddr| ServerName { host: address.ip().to_string(), port: address.port() };
    let servers = servers.iter().map(named).collect();
    Settings { mode: ModeChoice::Client, servers, ..quiet_settings() }
}

fn quiet_settings() -> Settings {
    Settings {
        listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
        discovery_port: 0,
        keep_awake: None,
        ..Settings::default()
    }
}
