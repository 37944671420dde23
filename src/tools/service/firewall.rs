//! `ollana service firewall`: lets the LAN reach ollana through the firewall of this machine, and
//! answers to a client's broadcasts come in. `--undo` takes the rules away.

use super::host::Host;
use super::plan::{self, Step, attempt, run as command};
use crate::config::Settings;
use crate::tools::{self, firewalld, say};

const RULE: &str = "name=ollana";
const MACOS: &str = "/usr/libexec/ApplicationFirewall/socketfilterfw";

pub(super) fn run(
    host: &Host,
    settings: &Settings,
    is_dry: bool,
    undo: bool,
) -> Result<(), String> {
    let udp = settings.discovery_port;
    let mut what: Vec<String> =
        settings.lan_ports().iter().map(|port| format!("TCP {port}")).collect();
    if udp != 0 {
        what.push(format!("UDP {udp}, and UDP from port {udp}"));
    }
    let verb = if undo { "takes the rules away for" } else { "lets in" };
    let what = match host.system.as_str() {
        "windows" => {
            let program = host.program.display();
            format!("what is for {program}, in networks that Windows calls private or a domain")
        }
        "macos" => format!("what is for {}", host.program.display()),
        _ if what.is_empty() => {
            return tools::print("nothing has to come in: ollana answers this machine only\n");
        }
        _ => what.join(", "),
    };
    let steps = match host.system.as_str() {
        "windows" => windows(host, undo),
        "macos" => macos(host, undo),
        _ => linux(host, settings, undo),
    };
    if steps.is_empty() {
        say(&format!(
            "no firewall that ollana knows is on here; your own rules must let in {what}"
        ));
        return Ok(());
    }
    say(&format!("{verb} {what}"));
    // Windows asks its own programs who is an administrator; theirs is the complaint.
    let may_change = is_dry || host.is_root() || host.system == "windows";
    plan::follow(&steps, is_dry || !may_change)?;
    if may_change {
        return Ok(());
    }
    // Root may have a service with other ones.
    let undo = if undo { &["--undo".to_owned()][..] } else { &[] };
    let words = ["ollana service firewall".to_owned()];
    Err(format!("this takes root: use sudo {}", [&words, undo, &host.options].concat().join(" ")))
}

/// A rule for the program, in networks that the user calls private and in an office's. Windows makes
/// rules against it for a user who says no when it asks, or is no administrator, and they would go first.
fn windows(host: &Host, undo: bool) -> Vec<Step> {
    let program = format!("program={}", host.program.display());
    let delete = ["netsh", "advfirewall", "firewall", "delete", "rule", RULE];
    let delete_its =
        ["netsh", "advfirewall", "firewall", "delete", "rule", "name=all", "dir=in", &program];
    if undo {
        return vec![command(&delete)];
    }
    #[rustfmt::skip]
    let add = [
        "netsh", "advfirewall", "firewall", "add", "rule", RULE, "dir=in", "action=allow", &program,
        "profile=private,domain", "enable=yes",
    ];
    vec![attempt(&delete), attempt(&delete_its), command(&add)]
}

fn macos(host: &Host, undo: bool) -> Vec<Step> {
    let program = host.program.display().to_string();
    match undo {
        true => vec![command(&[MACOS, "--remove", &program])],
        false => {
            vec![command(&[MACOS, "--add", &program]), command(&[MACOS, "--unblockapp", &program])]
        }
    }
}

/// Without the discovery (port 0), nobody asks over UDP.
fn linux(host: &Host, settings: &Settings, undo: bool) -> Vec<Step> {
    let udp = Some(settings.discovery_port).filter(|port| *port != 0);
    let tcp = settings.lan_ports().into_iter().map(|port| format!("{port}/tcp"));
    let ports: Vec<String> = tcp.chain(udp.map(|port| format!("{port}/udp"))).collect();
    let mut steps = Vec::new();
    let is_on = |line: &str| line.trim().eq_ignore_ascii_case("enabled=yes");
    if host.text(&host.path("/etc/ufw/ufw.conf")).lines().any(is_on) {
        let verb: &[&str] = if undo { &["delete", "allow"] } else { &["allow"] };
        let allow = |rule: &[&str]| command(&[&["ufw"][..], verb, rule].concat());
        steps.extend(ports.iter().map(|port| allow(&[port])));
        let source = |port: u16| allow(&["proto", "udp", "from", "any", "port", &port.to_string()]);
        steps.extend(udp.map(source));
    }
    if host.succeeds(&["firewall-cmd", "--state"]) {
        let verb = if undo { "remove" } else { "add" };
        let ports = ports.iter().map(|port| format!("--{verb}-port={port}"));
        let source = udp.map(|port| format!("--{verb}-source-port={port}/udp"));
        let changes: Vec<String> = ports.chain(source).collect();
        for zone in zones(settings, undo) {
            let zone = format!("--zone={zone}");
            let changes = changes.iter().map(String::as_str);
            let words = ["firewall-cmd", "--permanent", &zone].into_iter().chain(changes);
            steps.push(command(&words.collect::<Vec<_>>()));
        }
        steps.push(command(&["firewall-cmd", "--reload"]));
    }
    steps
}

/// The zones of firewalld that are opened, or closed again: the default one too, in case an
/// interface has got a zone of its own since.
fn zones(settings: &Settings, undo: bool) -> Vec<String> {
    let ask = |option: &str| Some(plan::said(&["firewall-cmd", option]));
    let mut zones = firewalld::zones(settings, &ask);
    let default = firewalld::default_zone(&ask);
    if undo && !zones.contains(&default) {
        zones.push(default);
    }
    zones
}
