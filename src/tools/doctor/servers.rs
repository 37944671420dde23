//! The servers: those named by an option, those of the last run, and those that answer a broadcast.
//! Each is asked over UDP and over HTTP.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::ask;
use super::causes::Evidence;
use super::local::Here;
use super::report::{Report, by_system};
use super::running::Running;
use crate::config::{ServerName, Settings};
use crate::discovery::scan::{Answer, Scan};
use crate::discovery::schedule::DOCTOR;
use crate::manager::pool::{Known, Notice, Unusable};
use crate::manager::store;
use crate::net::interfaces::{Interface, Subnets};
use crate::net::lane::Lane;
use crate::net::names;
use crate::ollama::version::OllamaVersion;
use crate::pairing::identity::Identity;
use crate::pairing::keyring::Keyring;
use crate::pairing::marks;
use crate::system;
use crate::tools::{NAME_TIME, SERVICE_DIR, state_dir};
use crate::upstream::Check;
use crate::upstream::Upstream;
use crate::upstream::{CheckResult, CheckTime, Target};

/// Most servers that are asked.
const MOST: usize = 32;
/// The name of lanes to one server alone.
const DIRECT: &str = "itself";

enum Origin {
    Named,
    Remembered,
    Found,
}

struct Server {
    address: SocketAddr,
    name: String,
    origin: Origin,
    /// As the user named it.
    given: Option<ServerName>,
    /// Its answer to a probe sent to it alone.
    direct: Option<Answer>,
    /// Its answer to a broadcast.
    broadcast: Option<Answer>,
    http: CheckResult,
    /// If it can't be used.
    evidence: Option<Evidence>,
    is_on_link: bool,
    /// Whether what goes to it is encrypted, if that is known.
    is_encrypted: Option<bool>,
}

pub(super) fn look(
    report: &mut Report,
    settings: &Settings,
    here: &Here,
    interfaces: &[Interface],
    keyring: &Arc<Keyring>,
    running: &Running,
) {
    let subnets = Subnets::now();
    let is_blind = running.hides_keys(report, keyring, are_keys_hidden(settings));
    let is_own =
        |ip: IpAddr| ip.is_loopback() || interfaces.iter().any(|one| IpAddr::V4(one.address) == ip);
    let mut servers = known(report, settings, running);
    let udp = settings.discovery_port;
    let (mut answers, mut notices) = (Vec::new(), Vec::new());
    if udp == 0 {
        report.note("the discovery is off: only servers named by --server are used");
    } else {
        (answers, notices) = probe(report, interfaces, &servers, udp, keyring);
        notices.retain(|notice| {
            let is_used = answers.iter().any(|it: &Answer| it.identity == Some(notice.identity));
            // Without the keys of the daemon, it is no wonder.
            let is_moot = is_blind && notice.why != Unusable::NotRunning;
            !(is_used || is_moot || is_own(notice.from))
        });
        if !is_blind {
            own_discovery(report, here, &answers, udp);
        }
    }
    for answer in answers.iter().filter(|answer| !is_own(answer.address.ip())) {
        add(&mut servers, Server::new(answer.address, &answer.name, Origin::Found));
    }
    for server in &mut servers {
        let mut of_server =
            answers.iter().filter(|answer| answer.address.ip() == server.address.ip());
        server.direct = of_server.clone().find(|answer| answer.interface == DIRECT).cloned();
        server.broadcast = of_server.find(|answer| answer.interface != DIRECT).cloned();
        server.is_on_link = subnets.contain(server.address.ip());
    }
    check_all(&mut servers, settings, keyring);
    let works = servers.iter().any(|Server { http, address, .. }| {
        matches!(http, CheckResult::Healthy { .. }) || running.uses(*address)
    });
    for server in &servers {
        let label = server.label();
        match &server.http {
            CheckResult::Healthy { version, round_trip, .. } => {
                server.judge_usable(report, udp, version, *round_trip);
            }
            _ if running.uses(server.address) => {
                report.well(format!("{label}: the ollana that runs here uses it"));
            }
            CheckResult::Refused(reason)
            | CheckResult::Unreached(reason)
            | CheckResult::Silent(reason) => {
                // What it says itself is told below.
                if notices.iter().all(|notice| notice.from != server.address.ip()) {
                    let is_needed = here.is_client && !works;
                    server.judge_unusable(report, udp, reason, &subnets, is_needed, is_blind);
                }
            }
            CheckResult::Void => report.note(format!("{label} could not be asked")),
        }
    }
    for notice in &notices {
        let fix = match notice.why {
            Unusable::NotRunning => "start Ollama there; if that is meant so, nothing",
            _ => "ollana pair, here and there; or start one of them with --unpaired on",
        };
        match here.is_client && !works {
            true => report.wrong(notice.sentence(), fix),
            false => report.hint(notice.sentence(), fix),
        }
    }
    for (name, contest) in running.contested() {
        let fix = match contest.starts_with("has the identity") {
            true => {
                "after copying a disk, delete identity-* in ollana's folder on one, and restart it"
            }
            false => "rename one of them; or --server ADDRESS of the one that is meant",
        };
        report.warn(format!("{name}: {contest}"), fix);
    }
    skew(report, &servers);
    let used: Vec<&str> = interfaces.iter().map(|one| one.name.as_str()).collect();
    let used = used.join(", ");
    if !servers.iter().any(|server| server.broadcast.is_some()) && udp != 0 && !used.is_empty() {
        let text = format!("no server of the LAN answered a broadcast on {used} in 2 s");
        if here.is_client && !works && !is_blind && notices.is_empty() {
            report.wrong(
                text,
                format!(
                    "start ollana on the machine with Ollama, and open UDP {udp} and TCP 11435 \
                     there; on another subnet, in a VPN, behind guest Wi-Fi or without ollana: \
                     --server HOST"
                ),
            );
        } else {
            report.note(text);
        }
    }
}

/// Broadcasts probes, and sends some to each known server alone. Reports those that can't be sent.
fn probe(
    report: &mut Report,
    interfaces: &[Interface],
    servers: &[Server],
    port: u16,
    keyring: &Keyring,
) -> (Vec<Answer>, Vec<Notice>) {
    let broadcasts = [interfaces, &[Interface::loopback()]].concat();
    let (mut lanes, mut failed) = Lane::open_all(&broadcasts, port);
    lanes.extend(servers.iter().filter_map(|server| {
        let IpAddr::V4(ip) = server.address.ip() else { return None };
        Lane::open(&Interface::new(DIRECT, Ipv4Addr::UNSPECIFIED, ip), port).ok()
    }));
    let keys = keyring.keys();
    let own = Identity(system::random().unwrap_or_default());
    let mut scan = Scan::new(&lanes, own, &keys, DOCTOR);
    let answers = scan.by_ref().filter(|answer| answer.identity.is_some()).collect();
    let errors = lanes.iter().zip(std::mem::take(&mut scan.errors));
    failed.extend(errors.filter_map(|(lane, error)| Some((lane.name.clone(), error?))));
    // A server that can't be reached has a line of its own.
    for (name, error) in failed.into_iter().filter(|(name, _)| name != DIRECT) {
        match error.kind() {
            ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown => report.wrong(
                format!("{name} is down: nothing leaves through it"),
                by_system(
                    "look at its cable or Wi-Fi, then: ip link set NAME up",
                    "look at its cable or Wi-Fi, then: sudo ifconfig NAME up",
                    "look at its cable or Wi-Fi",
                )
                .replace("NAME", &name),
            ),
            ErrorKind::HostUnreachable if cfg!(target_os = "macos") => report.wrong(
                format!("macOS lets no probe out through {name}"),
                "System Settings > Privacy & Security > Local Network: allow ollana, or the terminal",
            ),
            _ => report.warn(
                format!("a probe through {name} can't be sent: {error}"),
                by_system(
                    "look at this machine's firewall and at the interface: ip address",
                    "look at this machine's firewall and at the interface: ifconfig",
                    "look at this machine's firewall and at the interface: ipconfig",
                ),
            ),
        }
    }
    (answers, std::mem::take(&mut scan.notices))
}

impl Server {
    fn new(address: SocketAddr, name: &str, origin: Origin) -> Self {
        Server {
            address,
            name: name.to_owned(),
            origin,
            given: None,
            direct: None,
            broadcast: None,
            http: CheckResult::Void,
            evidence: None,
            is_on_link: false,
            is_encrypted: None,
        }
    }

    fn label(&self) -> String {
        let address = self.address.to_string();
        if address.contains(&self.name) { address } else { format!("{} ({address})", self.name) }
    }

    /// Whether it is an Ollama without ollana.
    fn is_plain(&self) -> bool {
        matches!(self.http, CheckResult::Healthy { identity: None, name: None, .. })
    }

    fn judge_usable(&self, report: &mut Report, udp: u16, version: &str, round_trip: Duration) {
        let (label, ip) = (self.label(), self.address.ip());
        let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
        let encrypted =
            self.is_encrypted.map_or("", |yes| if yes { "encrypted, " } else { "not encrypted, " });
        if self.is_plain() {
            return report.well(format!(
                "{label} is a plain Ollama {version}, without ollana: no encryption, found by name only, \
                 HTTP {}",
                ms(round_trip)
            ));
        }
        let mut text = format!("{label}: Ollama {version}, {encrypted}HTTP {}", ms(round_trip));
        if let Some(answer) = self.direct.as_ref().or(self.broadcast.as_ref()) {
            text += &format!(", UDP {}", ms(answer.round_trip));
        }
        match (&self.broadcast, &self.direct) {
            // No probe goes over IPv6, nor through a tunnel of SSH, which ends on the loopback.
            _ if udp == 0 || self.address.is_ipv6() || ip.is_loopback() => report.well(text),
            (Some(Answer { interface, .. }), _) => {
                report.well(format!("{text}, found through {interface}"));
            }
            _ if !self.is_on_link => report.hint(
                format!("{text}, on another subnet, which broadcasts don't reach"),
                format!("keep --server {ip}"),
            ),
            (None, Some(_)) => report.warn(
                format!("{label} answers UDP sent to it, but no broadcast of ours"),
                format!("let UDP from source port {udp} in here; or keep --server {ip}"),
            ),
            (None, None) => report.warn(
                format!("{label} answers HTTP, but not UDP {udp}: it isn't found by itself"),
                format!("open it there: ufw allow {udp}/udp, or firewall-cmd --add-port={udp}/udp"),
            ),
        }
    }

    /// `is_needed` tells whether this machine wants a server and has no other; `is_blind`, whether ollana
    /// here has keys that this command can't read.
    fn judge_unusable(
        &self,
        report: &mut Report,
        udp: u16,
        reason: &str,
        subnets: &Subnets,
        is_needed: bool,
        is_blind: bool,
    ) {
        let Some(evidence) = &self.evidence else { return };
        let answers = (self.direct.is_some() || self.broadcast.is_some()).then_some(udp);
        let label = self.label();
        let (text, fix) = evidence.diagnose((&label, self.address), reason, answers, subnets);
        match (&self.origin, is_needed) {
            _ if is_blind && evidence.wants_pairing(reason) => {
                report.hint(text, "sudo ollana doctor, which sees the keys of this machine");
            }
            (Origin::Remembered, false) => report.note(text),
            (Origin::Remembered, true) => report.warn(text, fix),
            _ => report.wrong(text, fix),
        }
    }
}

/// Whether a service of this machine is paired, and only root may read its keys.
fn are_keys_hidden(settings: &Settings) -> bool {
    let dir = SERVICE_DIR.map(Path::new).filter(|_| state_dir(settings).is_err());
    dir.is_some_and(marks::is_marked)
}

/// The servers named by an option, those that ollana found here, and those of the last run.
fn known(report: &mut Report, settings: &Settings, running: &Running) -> Vec<Server> {
    let mut servers: Vec<Server> = Vec::new();
    // All are looked up at once.
    let found = |named: &ServerName, time| names::resolve(&named.host, named.ports()[0], time);
    for named in &settings.servers {
        let _ = found(named, Duration::ZERO);
    }
    for named in &settings.servers {
        match found(named, NAME_TIME) {
            Ok(all) => servers.push(Server {
                given: Some(named.clone()),
                ..Server::new(all[0], &named.host, Origin::Named)
            }),
            Err(reason) => report.wrong(
                format!("--server {named}: {reason}"),
                "look at its spelling, or give its address",
            ),
        }
    }
    if settings.discovery_port == 0 {
        return servers; // Ollana uses no others then.
    }
    for (address, name) in running.servers() {
        add(&mut servers, Server::new(address, &name, Origin::Remembered));
    }
    let own = settings.state_dir.as_deref();
    let dirs = own.into_iter().chain(SERVICE_DIR.map(Path::new));
    for Known { address, name, .. } in dirs.flat_map(store::recall).filter(|k| k.is_present) {
        if !address.ip().is_loopback() {
            add(&mut servers, Server::new(address, &name, Origin::Remembered));
        }
    }
    servers
}

fn add(servers: &mut Vec<Server>, new: Server) {
    let is_known = servers.iter().any(|server| server.address.ip() == new.address.ip());
    if !is_known && servers.len() < MOST {
        servers.push(new);
    }
}

fn own_discovery(report: &mut Report, here: &Here, answers: &[Answer], port: u16) {
    let is_answered = answers.iter().any(|answer| answer.address.ip().is_loopback());
    match (is_answered, here.shares(), here.udp_holder(port)) {
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
                let target = match &server.given {
                    Some(given) => Target::Name(given.clone()),
                    None => Target::Address(server.address),
                };
                let check = Check {
                    target: &target,
                    local: None,
                    wants_inventory: false,
                    time: CheckTime::of(ask::PATIENCE),
                };
                server.http = check.run(&Upstream::new(&settings.timing, keyring));
                match server.http {
                    CheckResult::Healthy { address, .. } => server.address = address,
                    CheckResult::Void => {}
                    _ => server.evidence = Some(Evidence::gather(settings, server.address)),
                }
                server.is_encrypted = keyring.encrypts(server.address);
            });
        }
    });
}

/// Older versions of Ollama don't know every model.
fn skew(report: &mut Report, servers: &[Server]) {
    let versions = servers.iter().filter_map(|server| {
        let CheckResult::Healthy { version, .. } = &server.http else { return None };
        Some((OllamaVersion::parse(version), format!("{version} on {}", server.label())))
    });
    if let (Some((oldest, old)), Some((newest, new))) = (versions.clone().min(), versions.max())
        && (oldest.major, oldest.minor) != (newest.major, newest.minor)
    {
        report.hint(
            format!("versions differ: {old}, {new}; newer models may not run on the older"),
            "update the older one",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    #[test]
    fn the_readme_shows_it() {
        let readme = include_str!("../../../README.md");
        let shown = readme.split("```\n").find(|block| block.starts_with("servers\n")).unwrap();
        let address = SocketAddr::from(([10, 77, 0, 1], 11435));
        let ms = |ms: f64| Duration::from_secs_f64(ms / 1e3);
        let answer = |interface: &str| Answer {
            identity: None,
            name: "desktop".to_owned(),
            address,
            interface: interface.to_owned(),
            ollama_up: true,
            version: OllamaVersion::parse("0.13.1"),
            in_flight: 0,
            round_trip: ms(10.9),
        };
        let server = Server {
            broadcast: Some(answer("eth0")),
            direct: Some(answer(DIRECT)),
            is_encrypted: Some(false),
            http: CheckResult::Unreached(String::new()),
            ..Server::new(address, "desktop", Origin::Found)
        };
        let mut report = Report::default();
        report.about("servers");
        server.judge_usable(&mut report, 11436, "0.13.1", ms(20.4));
        assert_eq!(report.text(false), shown);
    }

    fn judged(server: &Server) -> Level {
        let mut report = Report::default();
        server.judge_usable(&mut report, 11436, "0.13.1", Duration::ZERO);
        report.findings[0].level
    }

    /// Probes are IPv4's, and no tunnel of SSH carries them.
    #[test]
    fn where_no_probe_goes_its_silence_is_no_fault() {
        for (address, want) in [
            ("10.77.0.1:11435", Level::Warning),
            ("[fe80::1%1]:11435", Level::Well),
            ("127.0.0.1:9000", Level::Well),
        ] {
            let server = Server {
                is_on_link: true,
                is_encrypted: Some(false),
                http: CheckResult::Unreached(String::new()),
                ..Server::new(address.parse().unwrap(), "x", Origin::Named)
            };
            assert_eq!(judged(&server), want, "{address}");
        }
    }

    #[test]
    fn a_refusal_for_want_of_a_key_is_no_fault_of_one_who_cannot_read_it() {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let evidence = Evidence::gather(&Settings::default(), address);
        for (reason, is_needed, is_blind, want) in [
            ("the key is another; run 'ollana pair'", true, true, Level::Note),
            ("the key is another; run 'ollana pair'", true, false, Level::Warning),
            ("connection refused", true, true, Level::Warning),
            // A server was a client once, and remembers.
            ("connection refused", false, false, Level::Note),
        ] {
            let server = Server {
                evidence: Some(evidence.clone()),
                ..Server::new(address, "x", Origin::Remembered)
            };
            let mut report = Report::default();
            let subnets = Subnets::now();
            server.judge_unusable(&mut report, 11436, reason, &subnets, is_needed, is_blind);
            assert_eq!(report.findings[0].level, want, "{reason} {is_needed} {is_blind}");
        }
    }
}
