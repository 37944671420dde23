//! The servers: those that are named, those of the last run, and those that answer a broadcast.
//! Each is asked over HTTP and over UDP.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use super::ask::{self, Heard, Way};
use super::local::Here;
use super::report::Report;
use super::running::Running;
use crate::config::Settings;
use crate::manager::pool::{CheckResult, Known, Target};
use crate::manager::store;
use crate::net::interfaces::{Interface, Subnets};
use crate::ollama::version::OllamaVersion;
use crate::pairing::keyring::Keyring;
use crate::tools::SERVICE_DIR;
use crate::upstream::Upstream;
use crate::upstream::health_check::Check;

/// Most servers that are asked.
const MOST: usize = 32;
/// Most keys that a probe is sent with.
const KEYS: usize = 4;

/// How it came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Named,
    Remembered,
    Found,
}

struct Server {
    address: SocketAddr,
    name: String,
    origin: Origin,
    /// Answers to a probe sent to it alone, and to a broadcast.
    direct: Option<Heard>,
    broadcast: Option<Heard>,
    http: CheckResult,
}

/// Finds and asks them all.
pub(super) fn look(
    report: &mut Report,
    settings: &Settings,
    here: &Here,
    interfaces: &[Interface],
    keyring: &Arc<Keyring>,
    running: &Running,
) {
    let links = Subnets::now();
    let is_blind = running.hides_keys(report, keyring);
    let is_own =
        |ip: IpAddr| ip.is_loopback() || interfaces.iter().any(|one| IpAddr::V4(one.address) == ip);
    let mut servers = known(report, settings);
    let udp = settings.discovery_port;
    let mut heard = Vec::new();
    if udp == 0 {
        report.note("the discovery is off: only servers named by --server are used");
    } else {
        let mut ways = ask::broadcasts(interfaces, udp);
        ways.extend(servers.iter().filter_map(|server| direct(server.address, udp)));
        let keys: Vec<_> = keyring.keys().into_iter().take(KEYS).collect();
        let (answers, failed) = ask::scan(&ways, &keys);
        heard = answers;
        // A server that can't be reached is told by its own line.
        for (name, error) in failed.into_iter().filter(|(name, _)| name != DIRECT) {
            if matches!(error.kind(), ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown) {
                report.wrong(
                    format!("{name} is down: nothing leaves through it"),
                    format!("look at its cable or Wi-Fi, then: ip link set {name} up"),
                );
                continue;
            }
            report.warn(
                format!("a probe through {name} can't be sent: {error}"),
                "look at this machine's firewall and at the interface: ip address",
            );
        }
        if !is_blind {
            own_discovery(report, here, &heard, udp);
        }
    }
    for answer in heard.iter().filter(|answer| !is_own(answer.from.ip())) {
        let address = SocketAddr::new(answer.from.ip(), answer.http_port);
        let is_new = !servers.iter().any(|server| server.address.ip() == address.ip());
        if is_new && servers.len() < MOST {
            servers.push(Server::new(address, &answer.name, Origin::Found));
        }
    }
    for server in &mut servers {
        let of = |answer: &&Heard| answer.from.ip() == server.address.ip();
        let (direct, broadcast): (Vec<_>, Vec<_>) =
            heard.iter().filter(of).cloned().partition(|answer| answer.through == DIRECT);
        server.direct = direct.into_iter().next();
        server.broadcast = broadcast.into_iter().next();
    }
    check_all(&mut servers, settings, keyring);
    let works = servers.iter().any(|server| server.works() || running.uses(server.address));
    for server in &servers {
        if !server.works() && running.uses(server.address) {
            report.well(format!("{}: the ollana that runs here uses it", server.label()));
            continue;
        }
        let is_near = links.contain(server.address.ip());
        judge(report, server, udp, works, is_near, keyring.encrypts(server.address));
    }
    skew(report, &servers);
    let used: Vec<&str> = interfaces.iter().map(|one| one.name.as_str()).collect();
    if !servers.iter().any(|server| server.broadcast.is_some()) && udp != 0 && !used.is_empty() {
        let text =
            format!("no server of the LAN answered a broadcast on {} in 2 s", used.join(", "));
        match (here.is_client, works || is_blind) {
            (true, false) => report.wrong(
                text,
                "start ollana on the machine with Ollama, and open UDP 11436 and TCP 11435 there; \
                 on another subnet, in a VPN or behind guest Wi-Fi: --server HOST",
            ),
            _ => report.note(text),
        }
    }
}

impl Server {
    fn new(address: SocketAddr, name: &str, origin: Origin) -> Self {
        let (direct, broadcast, http) = (None, None, CheckResult::Void);
        Server { address, name: name.to_owned(), origin, direct, broadcast, http }
    }

    fn works(&self) -> bool {
        matches!(self.http, CheckResult::Healthy { .. })
    }

    fn label(&self) -> String {
        match self.name.as_str() {
            "" => self.address.to_string(),
            name if self.address.to_string().contains(name) => self.address.to_string(),
            name => format!("{name} ({})", self.address),
        }
    }
}

/// The named ones and those of the last run.
fn known(report: &mut Report, settings: &Settings) -> Vec<Server> {
    let mut servers: Vec<Server> = Vec::new();
    for named in &settings.servers {
        let address = (named.host.as_str(), named.port).to_socket_addrs();
        match address.ok().and_then(|mut all| all.next()) {
            Some(address) => servers.push(Server::new(address, &named.host, Origin::Named)),
            None => report.wrong(
                format!("--server {named}: no such host"),
                "look at its spelling, or give its address",
            ),
        }
    }
    let own = settings.state_dir.as_deref();
    let dirs = own.into_iter().chain([Path::new(SERVICE_DIR)]);
    for Known { address, name, .. } in dirs.flat_map(store::recall).filter(|k| k.is_present) {
        let is_known = servers.iter().any(|server| server.address.ip() == address.ip());
        if !is_known && !address.ip().is_loopback() && servers.len() < MOST {
            servers.push(Server::new(address, &name, Origin::Remembered));
        }
    }
    servers
}

/// The name of the ways that lead to one server alone.
const DIRECT: &str = "itself";

fn direct(server: SocketAddr, port: u16) -> Option<Way> {
    let SocketAddr::V4(server) = server else { return None };
    let target = std::net::SocketAddrV4::new(*server.ip(), port);
    Some(Way { own: std::net::Ipv4Addr::UNSPECIFIED, target, name: DIRECT.to_owned() })
}

/// Whether our own server's discovery answers.
fn own_discovery(report: &mut Report, here: &Here, heard: &[Heard], port: u16) {
    let answers = heard.iter().any(|answer| answer.from.ip().is_loopback());
    let holder = here.udp_holder(port);
    match (answers, here.shares(), holder) {
        (true, ..) => report.well(format!("this machine's own server answers UDP {port}")),
        (false, true, None) => report.wrong(
            format!("this machine's ollana shares Ollama, but nobody answers UDP {port}"),
            "start it without --discovery-port 0",
        ),
        (false, _, Some(holder)) if here.is_server => report.wrong(
            format!("UDP {port} is held by {holder}, and no ollana answers there"),
            "stop it, or give all machines another: --discovery-port N",
        ),
        _ => {}
    }
}

fn check_all(servers: &mut [Server], settings: &Settings, keyring: &Arc<Keyring>) {
    thread::scope(|scope| {
        for server in servers {
            scope.spawn(move || {
                let check = Check {
                    target: &Target::Address(server.address),
                    local: None,
                    wants_inventory: false,
                    timeout: ask::PATIENCE,
                };
                server.http = check.run(&Upstream::new(&settings.timing, keyring));
            });
        }
    });
}

fn judge(
    report: &mut Report,
    server: &Server,
    udp: u16,
    works: bool,
    is_near: bool,
    encrypted: Option<bool>,
) {
    let label = server.label();
    let port = server.address.port();
    let heard = server.direct.as_ref().or(server.broadcast.as_ref());
    match &server.http {
        CheckResult::Healthy { version, round_trip, .. } => {
            let time = |time: std::time::Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
            let by_udp =
                heard.map_or(String::new(), |one| format!(", UDP {}", time(one.round_trip)));
            let hop = match encrypted {
                Some(true) => "encrypted, ",
                Some(false) => "not encrypted, ",
                None => "",
            };
            let http = time(*round_trip);
            let text = format!("{label}: Ollama {version}, {hop}HTTP {http}{by_udp}");
            match (&server.broadcast, &server.direct, is_near) {
                _ if udp == 0 => report.well(text),
                (Some(heard), ..) => {
                    report.well(format!("{text}, found through {}", heard.through))
                }
                (None, _, false) => report.hint(
                    format!("{text}, on another subnet, which broadcasts don't reach"),
                    format!("keep --server {}", server.address.ip()),
                ),
                (None, Some(_), true) => report.warn(
                    format!("{label} answers UDP sent to it, but no broadcast of ours"),
                    format!(
                        "let UDP from source port {udp} in here; or keep --server {}",
                        server.address.ip()
                    ),
                ),
                (None, None, true) => report.warn(
                    format!("{label} answers HTTP, but not UDP {udp}: it isn't found by itself"),
                    format!(
                        "open it there: ufw allow {udp}/udp, or firewall-cmd --add-port={udp}/udp"
                    ),
                ),
            }
        }
        CheckResult::Refused(reason) | CheckResult::Silent(reason) => {
            let silent =
                matches!(server.http, CheckResult::Silent(_)) || reason.contains("timed out");
            match (heard, server.origin) {
                (Some(_), _) if silent => report.wrong(
                    format!("{label} answers UDP {udp}, but TCP {port} doesn't: {reason}"),
                    format!(
                        "open it there: ufw allow {port}/tcp, or firewall-cmd --add-port={port}/tcp"
                    ),
                ),
                (Some(_), _) => report.wrong(
                    format!("{label} is there, but can't be used: {reason}"),
                    "start Ollama there; ollana doctor on that machine says more",
                ),
                (None, Origin::Remembered) if works => {
                    report.note(format!("{label}, known from before, is away: {reason}"));
                }
                (None, Origin::Remembered) => report.warn(
                    format!("{label}, known from before, is away: {reason}"),
                    "switch it on and start ollana there; asleep: --wake",
                ),
                (None, _) if is_near => report.wrong(
                    format!("{label} can't be used: {reason}"),
                    "is it on, and does ollana run there? ollana doctor there says more",
                ),
                (None, _) => report.wrong(
                    format!("{label}, on another subnet, can't be used: {reason}"),
                    format!("let TCP {port} through to it, on the routers between too"),
                ),
            }
        }
        CheckResult::Void => report.note(format!("{label} could not be asked")),
    }
}

/// Servers of different versions may know different models and fields.
fn skew(report: &mut Report, servers: &[Server]) {
    let mut versions: Vec<(OllamaVersion, String)> = servers
        .iter()
        .filter_map(|server| match &server.http {
            CheckResult::Healthy { version, .. } => {
                Some((OllamaVersion::parse(version), format!("{} on {}", version, server.label())))
            }
            _ => None,
        })
        .collect();
    versions.sort();
    if let (Some((oldest, old)), Some((newest, new))) = (versions.first(), versions.last())
        && (oldest.major, oldest.minor) != (newest.major, newest.minor)
    {
        report.hint(
            format!("versions differ: {old}, {new}; newer models may not run on the older"),
            "update the older one",
        );
    }
}
