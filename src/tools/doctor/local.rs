//! This machine: its ports and the programs that have them, its Ollama, and what it runs in.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, SystemTime};

use http::Response;
use http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, HOST, ORIGIN};

use super::ask::{self, LOCALHOST};
use super::report::{Report, by_system};
use crate::config::{ModeChoice, OLLAMA_PORT, POOLED_PORT, SERVER_PORT, Settings};
use crate::net::holders::{Holder, holders};
use crate::net::{interfaces, names};
use crate::ollama::version::OllamaVersion;
use crate::tools::{NAME_TIME, daemon::reached};
use crate::upstream::describe_io;

/// Older ones answer to any `Host` (CVE-2024-28224).
const FIRST_WITH_HOST_CHECK: OllamaVersion = OllamaVersion { major: 0, minor: 1, patch: 29 };
/// A clock before this was never set; seconds since 1970.
const LEAST_TIME: u64 = 1_767_225_600; // 2026-01-01

#[derive(PartialEq)]
pub(super) enum Who {
    Nobody,
    Ollama(String),
    Ollana,
    /// Another program, or one that doesn't answer.
    Other,
}

/// An address of this machine that ollana or Ollama should have.
pub(super) struct Place {
    pub(super) address: SocketAddr,
    pub(super) is_servers: bool,
    pub(super) who: Who,
}

pub(super) struct Here {
    /// The local Ollama's version, or why there is none.
    pub(super) ollama: Result<String, String>,
    pub(super) is_client: bool,
    pub(super) is_server: bool,
    pub(super) places: Vec<Place>,
    holders: Vec<Holder>,
}

impl Here {
    /// Whether an ollana of ours shares its Ollama.
    pub(super) fn shares(&self) -> bool {
        self.places.iter().any(|place| place.is_servers && place.who == Who::Ollana)
    }

    /// The program that has a UDP port, as text.
    pub(super) fn udp_holder(&self, port: u16) -> Option<String> {
        let mut found = self.holders.iter().filter(|h| h.is_udp && h.address.port() == port);
        found.next().map(|holder| named(holder.program.as_ref()))
    }

    fn holder(&self, address: SocketAddr) -> Option<&Holder> {
        let is_same = |holder: &&Holder| {
            let (own, other) = (holder.address.ip(), address.ip());
            !holder.is_udp
                && holder.address.port() == address.port()
                && (own == other || own.is_unspecified() || other.is_unspecified())
        };
        self.holders.iter().find(is_same)
    }
}

fn named(program: Option<&(String, u32)>) -> String {
    match program {
        Some((name, pid)) => format!("{name} (process {pid})"),
        None => "another user's program (root sees which)".to_owned(),
    }
}

/// Finds out which programs have the ports, and asks them.
pub(super) fn look(settings: &Settings) -> Here {
    let url = settings.ollama_url();
    let addresses = names::resolve(&url.host, url.port, NAME_TIME);
    let ollama = match addresses.map(|all| ask::get(settings, all[0], &[LOCALHOST])) {
        Err(reason) => Err(reason),
        Ok(Err(error)) => Err(describe_io(&error)),
        Ok(Ok(answer)) if ask::is_from_ollana(&answer) => Err("an ollana answers there".to_owned()),
        Ok(Ok(answer)) => ask::version(&answer)
            .ok_or_else(|| format!("status {}, which is not Ollama's", answer.status().as_u16())),
    };
    let server = SocketAddr::from((Ipv4Addr::UNSPECIFIED, SERVER_PORT));
    let both = settings.mode == ModeChoice::Both;
    let is_server = match settings.mode {
        ModeChoice::Client => false,
        ModeChoice::Server | ModeChoice::Both => true,
        ModeChoice::Auto => ollama.is_ok() || who(settings, server) == Who::Ollana,
    };
    let is_client = both || !is_server;
    let port = if both && url.port == OLLAMA_PORT { POOLED_PORT } else { OLLAMA_PORT };
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let or = |given: &[SocketAddr], applies: bool, usual: &[SocketAddr]| {
        if applies && !given.is_empty() { given.to_vec() } else { usual.to_vec() }
    };
    let of_client = or(&settings.listen, is_client, &loopback.map(|ip| (ip, port).into()));
    let of_server = or(settings.server_listen(), is_server, &[server]);
    let of_server = of_server.into_iter().map(|address| (address, true));
    let wanted = of_client.into_iter().map(|address| (address, false)).chain(of_server);
    let ports = wanted.clone().map(|(address, _)| address.port());
    let ports: Vec<u16> = ports.chain([settings.discovery_port, url.port]).collect();
    let mut here = Here { ollama, is_client, is_server, places: vec![], holders: holders(&ports) };
    for (address, is_servers) in wanted {
        let who = match who(settings, address) {
            // As far as Linux knows, nobody has it: packets are dropped.
            Who::Other if cfg!(target_os = "linux") && here.holder(address).is_none() => {
                Who::Nobody
            }
            who => who,
        };
        here.places.push(Place { address, is_servers, who });
    }
    here
}

fn who(settings: &Settings, address: SocketAddr) -> Who {
    match ask::get(settings, reached(address), &[LOCALHOST]) {
        Ok(answer) if ask::is_from_ollana(&answer) => Who::Ollana,
        Ok(answer) => ask::version(&answer).map_or(Who::Other, Who::Ollama),
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused
            | ErrorKind::AddrNotAvailable
            | ErrorKind::NetworkUnreachable => Who::Nobody,
            // There may be no IPv6 here at all.
            _ if address.is_ipv6() => Who::Nobody,
            _ => Who::Other,
        },
    }
}

pub(super) fn ports(report: &mut Report, settings: &Settings, here: &Here) {
    let is_running = here.places.iter().any(|place| place.who == Who::Ollana);
    for place in &here.places {
        let address = place.address;
        let is_wanted = if place.is_servers { here.is_server } else { here.is_client };
        let option = match (place.is_servers, settings.mode) {
            (true, ModeChoice::Both) => "--share",
            _ => "--listen",
        };
        let program = here.holder(address).and_then(|holder| holder.program.as_ref());
        let by = program.map_or(String::new(), |(name, pid)| format!(", {name} (process {pid})"));
        match &place.who {
            Who::Ollama(version) if place.is_servers || here.ollama.is_err() => report.wrong(
                format!("{address}: an Ollama {version}{by} has it"),
                format!("share it: --ollama http://{}", reached(address)),
            ),
            Who::Ollama(version) => report.well(format!("{address}: Ollama {version}{by}")),
            Who::Ollana => report.well(format!("{address}: ollana{by}")),
            Who::Nobody if is_wanted && address.is_ipv4() && !is_running => report.hint(
                format!("{address} is free: no ollana runs here"),
                by_system(
                    "start it: ollana, or systemctl start ollana",
                    "start it: ollana, or at every log-in: ollana service install",
                    "start it: ollana, or at every log-in: ollana service install",
                ),
            ),
            Who::Nobody if is_wanted && address.is_ipv4() => {
                report.hint(format!("{address} is free"), "restart ollana, if it should have it");
            }
            Who::Nobody => {}
            Who::Other => {
                let (text, fix, is_known) = silent(address, program, option);
                if is_wanted || is_known { report.wrong(text, fix) } else { report.note(text) }
            }
        }
    }
    for place in &here.places {
        if matches!(place.who, Who::Ollama(_) | Who::Ollana) {
            let held = here.holder(place.address).map(|holder| holder.address.ip());
            checks(report, settings, reached(place.address), &place.who, held);
        }
    }
}

/// What is said of a program that doesn't answer as Ollama or ollana, what to do, and whether it is one
/// of them by its name.
fn silent(
    address: SocketAddr,
    program: Option<&(String, u32)>,
    option: &str,
) -> (String, String, bool) {
    let holder = named(program);
    match program {
        Some((name, _)) if name == "ollama" || name == "ollana" => (
            format!("{address}: {holder} has it, but doesn't answer"),
            "restart it; its log says more".to_owned(),
            true,
        ),
        _ => (
            format!("{address} is held by {holder}, which answers neither as Ollama nor as ollana"),
            format!("stop it, or give ollana another address: {option} ADDR:PORT"),
            false,
        ),
    }
}

/// Says that any `Host` is answered by a program that listens on the address `held`, if that is known.
/// Ollama asks for none where it listens on more than the loopback, as it does in a container.
fn any_host(report: &mut Report, address: SocketAddr, who: &Who, held: Option<IpAddr>) {
    let version = match who {
        Who::Ollama(version) => OllamaVersion::parse(version),
        _ => OllamaVersion::default(),
    };
    let is_old = version != OllamaVersion::default() && version < FIRST_WITH_HOST_CHECK;
    let name = if *who == Who::Ollana { "ollana" } else { "Ollama" };
    let text = format!("{name} at {address} answers to any Host: a web page can reach it");
    match who {
        Who::Ollama(_) if is_old => report.warn(text, "update it"),
        Who::Ollama(_) if held.is_some_and(|ip| !ip.is_loopback()) => report.warn(
            text + ", since it listens on more than the loopback",
            "OLLAMA_HOST=127.0.0.1 for it; in Docker: -p 127.0.0.1:11434:11434",
        ),
        // A container's port on the loopback alone: that is the best there is.
        Who::Ollama(_) => report.hint(
            text + ", as in a container or behind a proxy",
            "a proxy must keep the Host it was called by; elsewhere: OLLAMA_HOST=127.0.0.1",
        ),
        _ => report
            .warn(text, "update it; a proxy in front of it must keep the Host it was called by"),
    }
}

fn checks(
    report: &mut Report,
    settings: &Settings,
    address: SocketAddr,
    who: &Who,
    held: Option<IpAddr>,
) {
    let name = if *who == Who::Ollana { "ollana" } else { "Ollama" };
    let host = ask::get(settings, address, &[(HOST, "rebinding.example")]);
    let has_status = |code: u16| host.as_ref().is_ok_and(|answer| answer.status().as_u16() == code);
    if has_status(200) {
        any_host(report, address, who, held);
    }
    let origin = "https://page.example";
    let allows = |answer: Response<String>| {
        let field = answer.headers().get(ACCESS_CONTROL_ALLOW_ORIGIN);
        field.is_some_and(|allowed| allowed == "*" || allowed == origin)
    };
    let is_open = ask::get(settings, address, &[LOCALHOST, (ORIGIN, origin)]).is_ok_and(allows);
    if is_open {
        report.warn(
            format!("{name} at {address} lets the pages of every web site use it"),
            "narrow OLLAMA_ORIGINS of Ollama, and restart it",
        );
    }
    if has_status(403) && !is_open {
        report.well(format!("{name} at {address} refuses a foreign Host and other sites' pages"));
    }
}

pub(super) fn ollama(report: &mut Report, settings: &Settings, here: &Here) {
    let url = settings.ollama_url();
    match &here.ollama {
        Ok(version) => report.well(format!("Ollama {version} answers at {url}")),
        Err(reason) if here.is_server => report.wrong(
            format!("no Ollama to share at {url}: {reason}"),
            by_system(
                "start it: ollama serve, or systemctl start ollama; if it is elsewhere: --ollama URL",
                "start it: ollama serve, or open -a Ollama; if it is elsewhere: --ollama URL",
                "start Ollama from the start menu; if it is elsewhere: --ollama URL",
            ),
        ),
        Err(_) => report.note("none: this machine uses the LAN's"),
    }
    let Ok(version) = &here.ollama else { return };
    let host = url.host.parse().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let holder = here.holder(SocketAddr::new(host, url.port));
    let variable = holder.and_then(|holder| variable(holder.program.as_ref()?.1, "OLLAMA_HOST"));
    for interface in interfaces::broadcast_interfaces(&[]) {
        let address = SocketAddr::new(interface.address.into(), url.port);
        let host = address.to_string();
        let answer = ask::get(settings, address, &[(HOST, &host)]);
        if answer.is_ok_and(|answer| {
            !ask::is_from_ollana(&answer) && ask::version(&answer).as_ref() == Some(version)
        }) {
            let set = variable.as_ref().map_or(String::new(), |v| format!(" (OLLAMA_HOST={v})"));
            let text = format!("Ollama itself answers the network at {address}{set}");
            report.warn(
                text + ", past ollana's checks",
                by_system(
                    "set OLLAMA_HOST=127.0.0.1 for it (systemctl edit ollama), and restart it; in Docker \
                     instead: -p 127.0.0.1:11434:11434",
                    "launchctl setenv OLLAMA_HOST 127.0.0.1, and restart Ollama; in its settings, don't \
                     expose it to the network",
                    "setx OLLAMA_HOST 127.0.0.1, and restart Ollama; in its settings, don't expose it to \
                     the network",
                ),
            );
        }
    }
}

/// An environment variable of a process, if this user may see it.
fn variable(pid: u32, name: &str) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut variables = bytes.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    variables.find_map(|one| Some(one.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
}

/// The clock, the loopback interface, and what this machine runs in.
pub(super) fn surroundings(report: &mut Report, settings: &Settings) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    if now.as_secs() < LEAST_TIME {
        report.warn(
            "the clock was never set: ollana doesn't mind, but Ollama can't pull models",
            by_system(
                "timedatectl set-ntp true, or wait for the network's time",
                "sudo sntp -sS time.apple.com, or wait for the network's time",
                "w32tm /resync, or wait for the network's time",
            ),
        );
    }
    let loopback = ask::get(settings, (Ipv4Addr::LOCALHOST, 9).into(), &[LOCALHOST]);
    let is_down = |kind| matches!(kind, ErrorKind::NetworkUnreachable | ErrorKind::TimedOut);
    if loopback.is_err_and(|error| is_down(error.kind())) {
        report.wrong(
            "the loopback interface is down: no program reaches Ollama or ollana",
            by_system("ip link set lo up", "sudo ifconfig lo0 up", "restart the machine"),
        );
    }
    let kernel = fs::read_to_string("/proc/version").unwrap_or_default().to_lowercase();
    if kernel.contains("microsoft") {
        report.hint(
            "this is WSL2: behind its NAT, broadcasts don't reach the LAN",
            "networkingMode=mirrored in .wslconfig, or name a server: --server HOST",
        );
    }
    let marks = ["/.dockerenv", "/run/.containerenv"];
    if marks.iter().any(|mark| Path::new(mark).exists()) || std::env::var_os("container").is_some()
    {
        report.hint(
            "this is a container: on a bridge of its own, broadcasts don't leave the machine",
            "run it with --network host, or name a server: --server HOST",
        );
    }
    if cfg!(target_os = "macos") {
        report.hint(
            "macOS asks once whether ollana may see the local network",
            "System Settings > Privacy & Security > Local Network: allow ollana",
        );
    }
    report.well(format!("ollana {}, {}", env!("CARGO_PKG_VERSION"), std::env::consts::OS));
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), OLLAMA_PORT);

    #[test]
    fn an_ollama_that_answers_to_any_host_is_asked_only_for_what_helps() {
        let said = |who: Who, held: Option<IpAddr>| {
            let mut report = Report::default();
            any_host(&mut report, ADDRESS, &who, held);
            let finding = report.findings.remove(0);
            (finding.level, finding.fix.unwrap())
        };
        let ollama = |version: &str| Who::Ollama(version.to_owned());
        let loopback = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let all = Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        assert_eq!(said(ollama("0.1.28"), loopback), (Level::Warning, "update it".to_owned()));
        let (level, fix) = said(ollama("0.13.1"), all);
        assert!(level == Level::Warning && fix.contains("-p 127.0.0.1:11434:11434"), "{fix}");
        // Docker's port on the loopback, which may be hidden, and a build without a version.
        for (version, held) in [("0.13.1", loopback), ("0.13.1", None), ("0.0.0", loopback)] {
            assert_eq!(said(ollama(version), held).0, Level::Note, "{version} {held:?}");
        }
        let (level, fix) = said(Who::Ollana, loopback);
        assert!(level == Level::Warning && fix.starts_with("update it; a proxy"), "{fix}");
    }

    #[test]
    fn an_ollama_that_is_slow_is_not_called_another_program() {
        for (name, says, is_known) in [
            ("ollama", "127.0.0.1:11434: ollama (process 7) has it, but doesn't answer", true),
            ("ollana", "127.0.0.1:11434: ollana (process 7) has it, but doesn't answer", true),
            (
                "nginx",
                "127.0.0.1:11434 is held by nginx (process 7), which answers neither as Ollama nor \
                 as ollana",
                false,
            ),
        ] {
            let (text, fix, known) = silent(ADDRESS, Some(&(name.to_owned(), 7)), "--listen");
            assert_eq!((text.as_str(), known), (says, is_known));
            assert_eq!(fix.starts_with("restart it"), is_known, "{fix}");
        }
        assert!(silent(ADDRESS, None, "--listen").0.contains("root sees which"));
    }
}
