//! Firewalls of this machine, as far as their settings tell. Whether packets arrive is tried
//! elsewhere, with the servers.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Output, Stdio};

use super::report::Report;
use crate::access::addresses::Cidr;
use crate::config::Settings;
use crate::net::interfaces::{Interface, Subnets, without_label};
use crate::system;
use crate::tools::firewalld;

/// With which `firewall-cmd` exits if polkit doesn't let this user ask.
const UNAUTHORIZED: i32 = 253;

/// A port, and its protocol as rules call it.
type Port = (u16, &'static str);

pub(super) fn look(
    report: &mut Report,
    settings: &Settings,
    lan_ports: Option<Vec<u16>>,
    interfaces: &[Interface],
) {
    let is_server = lan_ports.is_some();
    let udp = settings.discovery_port;
    let ports = ports(lan_ports, udp);
    let zones = firewalld(settings, &ports);
    let found: Vec<Firewall> = ufw(&ports, udp, interfaces).into_iter().chain(zones).collect();
    let is_found = !found.is_empty();
    for Firewall { name, is_open, open, open_source } in found {
        match (is_server, is_open) {
            _ if ports.is_empty() => report.well(format!("{name} is on: nothing has to come in")),
            (true, Some(true)) => report.well(format!("{name} lets the ports through")),
            (true, Some(false)) => {
                report.warn(format!("{name} is on and doesn't let {} in", told(&ports)), open);
            }
            (true, None) => report.hint(format!("{name} is on; only root sees its rules"), open),
            (false, _) => report.hint(
                format!("{name} is on: it may drop the answers to broadcasts"),
                format!("if no server is found: {open_source}"),
            ),
        }
    }
    if is_found {
        return;
    }
    if cfg!(windows) {
        return match output("netsh", &["advfirewall", "firewall", "show", "rule", "name=ollana"]) {
            Some(_) => report.well("Windows' firewall has a rule that lets ollana's packets in"),
            None => report.hint(
                "Windows' firewall may drop what is for ollana: it has no rule named ollana",
                "as an administrator: ollana service firewall",
            ),
        };
    }
    match rules() {
        Some(rules) => judge(report, &rules, is_server, &ports, interfaces),
        None if cfg!(target_os = "linux") && system::user() == Some(0) => {
            report.note("not judged: neither nft nor iptables-save is installed");
        }
        None if cfg!(target_os = "linux") => report.note("not judged: only root sees its rules"),
        None if cfg!(target_os = "macos") => report.hint(
            "not judged: macOS shows its firewall in System Settings > Network",
            "if it is on: sudo ollana service firewall",
        ),
        None => report.note("not judged on this system"),
    }
}

/// The ports that packets of others come in at. Nobody connects to a client, and nobody asks over UDP
/// where the discovery is off.
fn ports(lan_ports: Option<Vec<u16>>, udp: u16) -> Vec<Port> {
    let tcp = lan_ports.unwrap_or_default().into_iter().map(|port| (port, "tcp"));
    tcp.chain((udp != 0).then_some((udp, "udp"))).collect()
}

/// `TCP 11435 and UDP 11436`
fn told(ports: &[Port]) -> String {
    each(ports, " and ", |(port, protocol)| format!("{} {port}", protocol.to_uppercase()))
}

fn each(ports: &[Port], between: &str, tell: impl Fn(Port) -> String) -> String {
    ports.iter().copied().map(tell).collect::<Vec<String>>().join(between)
}

/// What a program prints, if there is such a program and it exits with 0.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = run(program, arguments).filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn exit_code(program: &str, arguments: &[&str]) -> Option<i32> {
    run(program, arguments)?.status.code()
}

fn run(program: &str, arguments: &[&str]) -> Option<Output> {
    // The directories of administrators' programs aren't in every PATH.
    let places = ["", "/usr/sbin/", "/sbin/", "/usr/bin/"];
    let outputs = places.iter().filter_map(|place| {
        let mut command = Command::new(format!("{place}{program}"));
        command.args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()
    });
    outputs.into_iter().next()
}

/// A program that manages the rules, and is on.
struct Firewall {
    name: String,
    /// Whether it lets a server's ports through, if that may be seen.
    is_open: Option<bool>,
    /// Opens a server's ports.
    open: String,
    /// Lets answers to a client's broadcasts in.
    open_source: String,
}

fn ufw(ports: &[Port], udp: u16, interfaces: &[Interface]) -> Option<Firewall> {
    let config = fs::read_to_string("/etc/ufw/ufw.conf").unwrap_or_default();
    config.lines().find(|line| line.trim().eq_ignore_ascii_case("enabled=yes"))?;
    let defaults = fs::read_to_string("/etc/default/ufw").unwrap_or_default();
    let is_lax = defaults.contains("DEFAULT_INPUT_POLICY=\"ACCEPT\"");
    let subnets = Subnets::now();
    let lan = Lan { interfaces, is_near: &|ip| subnets.contain(ip) };
    // Broadcasts are IPv4's. Its twin of IPv6, user6.rules, lets in none of them.
    let rules = fs::read_to_string("/etc/ufw/user.rules").ok();
    Some(Firewall {
        name: "ufw".to_owned(),
        is_open: rules.map(|rules| ufw_admits(&rules, is_lax, &lan, ports)),
        open: each(ports, " && ", |(port, protocol)| format!("sudo ufw allow {port}/{protocol}")),
        open_source: format!("sudo ufw allow proto udp from any port {udp}"),
    })
}

/// Where packets for a server come from.
struct Lan<'a> {
    interfaces: &'a [Interface],
    /// Whether an address is within one of their subnets.
    is_near: &'a dyn Fn(IpAddr) -> bool,
}

/// Whether ufw lets a machine of the LAN in at all of these ports: one that is named by a rule, or
/// one that none names.
fn ufw_admits(rules: &str, is_lax: bool, lan: &Lan<'_>, ports: &[Port]) -> bool {
    // What goes out or through passes other chains.
    let rules = rules.lines().filter_map(|line| line.strip_prefix("-A ufw-user-input "));
    let rules: Vec<&str> = rules.collect();
    let is_ours = |rule: &str| ports.iter().any(|(port, of)| covers(rule, *port, of));
    // A rule for one of the ports means machines elsewhere, too.
    let named = rules.iter().filter_map(|rule| {
        let source = after(rule, "-s")?.split('/').next()?.parse().ok()?;
        ((lan.is_near)(IpAddr::V4(source)) || is_ours(rule)).then_some(source)
    });
    let lets_in = |interface: &Interface, source: Ipv4Addr| {
        ports.iter().all(|port| {
            let verdict = rules.iter().find_map(|rule| ufw_verdict(rule, interface, source, *port));
            verdict.unwrap_or(is_lax)
        })
    };
    let none = [Interface::default_route()];
    let interfaces = if lan.interfaces.is_empty() { &none[..] } else { lan.interfaces };
    interfaces.iter().any(|interface| {
        let mut sources = named.clone().chain([interface.address]);
        sources.any(|source| lets_in(interface, source))
    })
}

/// Whether a rule of ufw lets in what comes from there for a port; `None` if that isn't the rule's
/// to say. A rule without a port is about all of them.
fn ufw_verdict(
    rule: &str,
    interface: &Interface,
    source: Ipv4Addr,
    (port, protocol): Port,
) -> Option<bool> {
    let within = |option: &str, address: Ipv4Addr| {
        let range = after(rule, option).map(str::parse::<Cidr>);
        range.is_none_or(|range| range.is_ok_and(|range| range.contains(address.into())))
    };
    let own = without_label(&interface.name);
    let is_interface = |name: &str| match name.strip_suffix('+') {
        Some(start) => own.starts_with(start),
        None => name == own,
    };
    // Questions of the discovery are broadcasts.
    let to = if protocol == "udp" { interface.broadcast } else { interface.address };
    let is_about = after(rule, "-p").is_none_or(|of| of == protocol)
        && (!rule.contains("--dport") || covers(rule, port, protocol))
        // Who asks does so from any port.
        && !rule.contains("--sport")
        && after(rule, "-i").is_none_or(is_interface)
        && within("-s", source)
        && within("-d", to);
    match after(rule, "-j").filter(|_| is_about)? {
        "ACCEPT" | "ufw-user-limit-accept" => Some(true),
        "DROP" | "REJECT" => Some(false),
        _ => None,
    }
}

/// The word that follows an option of a rule.
fn after<'a>(rule: &'a str, option: &str) -> Option<&'a str> {
    rule.split_whitespace().skip_while(|word| *word != option).nth(1)
}

/// Each zone of firewalld that an interface in use is in. Others than root may be asked for an
/// administrator's password, so the zones are asked for root alone.
fn firewalld(settings: &Settings, ports: &[Port]) -> Vec<Firewall> {
    if !matches!(exit_code("firewall-cmd", &["--state"]), Some(0 | UNAUTHORIZED)) {
        return Vec::new();
    }
    if system::user() != Some(0) {
        let open = "sudo ollana service firewall".to_owned();
        let (name, open_source) = ("firewalld".to_owned(), open.clone());
        return vec![Firewall { name, is_open: None, open, open_source }];
    }
    let udp = settings.discovery_port;
    let of_zone = |name: String| {
        let zone = format!("--zone={name}");
        let query = |query: String| exit_code("firewall-cmd", &[&zone, &query]);
        // Such as the zone "trusted".
        let lets_all_in = || {
            let told = output("firewall-cmd", &[&zone, "--list-all"]).unwrap_or_default();
            told.lines().any(|line| line.trim() == "target: ACCEPT")
        };
        let is_open = match zone_admits(ports, query) {
            Some(false) | None if lets_all_in() => Some(true),
            told => told,
        };
        let add = each(ports, " ", |(port, protocol)| format!("--add-port={port}/{protocol}"));
        Firewall {
            name: format!("firewalld (zone {name})"),
            is_open,
            open: format!("firewall-cmd --permanent {zone} {add} && firewall-cmd --reload"),
            open_source: format!("firewall-cmd {zone} --add-source-port={udp}/udp"),
        }
    };
    let zones = firewalld::zones(settings, &|option| output("firewall-cmd", &[option]));
    zones.into_iter().map(of_zone).collect()
}

/// Whether a zone of firewalld lets all of these ports in, by the exit codes of queries: 0 is a yes, 1
/// a no, and others tell nothing.
fn zone_admits(ports: &[Port], query: impl Fn(String) -> Option<i32>) -> Option<bool> {
    let admits = |(port, protocol): &Port| match query(format!("--query-port={port}/{protocol}")) {
        Some(code @ (0 | 1)) => Some(code == 0),
        _ => None,
    };
    ports.iter().map(admits).try_fold(true, |all, one| one.map(|one| all && one))
}

/// The kernel's rules, if this user may see them.
fn rules() -> Option<String> {
    let nft = output("nft", &["list", "ruleset"]);
    let iptables = output("iptables-save", &[]);
    (nft.is_some() || iptables.is_some()).then(|| nft.into_iter().chain(iptables).collect())
}

/// Understands rules that name ports, and the default of what comes in. Of others it says that they
/// aren't judged.
fn judge(
    report: &mut Report,
    rules: &str,
    is_server: bool,
    ports: &[Port],
    interfaces: &[Interface],
) {
    let mut accepts: Vec<&str> = Vec::new();
    let (mut is_clear, mut is_strict, mut unclear) = (true, false, None);
    for rule in input_rules(rules) {
        let lower = rule.to_lowercase();
        if !lower.contains("drop") && !lower.contains("reject") {
            accepts.extend(lower.contains("accept").then_some(rule));
        } else if let Some(port) = ports.iter().find(|(port, of)| covers(rule, *port, of)) {
            let (number, protocol) = *port;
            let lets_some_in = |earlier: &&str| {
                covers(earlier, number, protocol)
                    || has_source(earlier) && !earlier.contains("dport")
            };
            is_clear = false;
            if is_of_others(rule, interfaces) || accepts.iter().any(lets_some_in) {
                unclear = unclear.or(Some(rule));
                continue;
            }
            let protocol = protocol.to_uppercase();
            report.wrong(
                format!("a rule of this machine drops {protocol} {number}: {rule}"),
                "take it out, or let the local network through before it",
            );
        } else if lower.contains("policy drop") || lower.starts_with(":input drop") {
            is_strict = true;
        } else if lower.contains("dport") || lower.contains("invalid") {
            // Of other ports, or of no connection.
        } else if is_bare(&lower) {
            is_strict = true;
        } else {
            unclear = unclear.or(Some(rule));
        }
    }
    let opens = |(port, protocol): Port| accepts.iter().any(|rule| covers(rule, port, protocol));
    let udp = ports.iter().find(|(_, protocol)| *protocol == "udp");
    let is_in_the_way = match is_server {
        true => !ports.iter().copied().all(opens),
        // Answers come to a port that no rule can name. Without the discovery, there are none.
        false => udp.is_some(),
    };
    if is_strict && is_in_the_way {
        is_clear = false;
        let text = "incoming packets are dropped by default";
        match udp {
            Some((udp, _)) if !is_server => report.hint(
                format!("{text}: answers to broadcasts may be among them"),
                format!("if no server is found: accept UDP from source port {udp}"),
            ),
            _ => report.warn(
                format!("{text}, and no rule that is understood here opens {}", told(ports)),
                format!("accept {} from the local network", told(ports)),
            ),
        }
    }
    match unclear {
        Some(rule) => report.note(format!("not judged: a rule drops what matches {rule}")),
        None if is_clear => report.well("no rule of this machine is in the way"),
        None => {}
    }
}

/// The rules that what comes in passes, of `nft list ruleset` and `iptables-save`: those of the chains
/// at the hook, and of the chains that these lead to.
fn input_rules(rules: &str) -> Vec<&str> {
    let mut of_chains: Vec<(&str, &str)> = Vec::new();
    let (mut chain, mut wanted) = ("", vec!["INPUT"]);
    for line in rules.lines().map(str::trim) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["chain", name, "{"] => chain = name,
            ["-A", name, ..] => of_chains.push((name, line)),
            _ if line.starts_with(":INPUT ") => of_chains.push(("INPUT", line)),
            _ if line.starts_with([':', '*', '#']) => {}
            _ => {
                if line.contains("hook input") {
                    wanted.push(chain);
                }
                of_chains.push((chain, line));
            }
        }
    }
    let mut at = 0;
    while let Some(chain) = wanted.get(at).copied() {
        let lines = of_chains.iter().filter(|(of, _)| *of == chain);
        let words = lines.flat_map(|(_, line)| line.split([' ', ';', ',', '}']));
        let leads = |word: &&str| of_chains.iter().any(|(of, _)| of == word);
        let next: Vec<&str> = words.filter(leads).collect();
        wanted.extend(next.into_iter().filter(|name| !name.is_empty()));
        // Each once, in the order in which they were met.
        let mut seen = Vec::new();
        wanted.retain(|name| {
            !seen.contains(name) && {
                seen.push(name);
                true
            }
        });
        at += 1;
    }
    of_chains.iter().filter(|(of, _)| wanted.contains(of)).map(|(_, line)| *line).collect()
}

/// Whether a rule is about this port, by itself, within a range, or as none of those it excepts.
fn covers(rule: &str, port: u16, protocol: &str) -> bool {
    let other = if protocol == "tcp" { "udp" } else { "tcp" };
    let Some((before, ports)) = rule.split_once("dport") else { return false };
    let ports = ports.trim_start_matches('s').trim_start();
    let excepted = ports.strip_prefix("!= ");
    let is_excepted = excepted.is_some() || before.ends_with("! --");
    let ports = excepted.unwrap_or(ports);
    // A set in braces, or one word.
    let ports = match ports.strip_prefix('{') {
        Some(set) => set.split('}').next().unwrap_or_default(),
        None => ports.split(' ').next().unwrap_or_default(),
    };
    let is_in = |range: &str| {
        let mut ends = range.trim().split(['-', ':']).map(str::parse::<u16>);
        match (ends.next(), ends.next()) {
            (Some(Ok(one)), None) => one == port,
            (Some(Ok(first)), Some(Ok(last))) => (first..=last).contains(&port),
            _ => false,
        }
    };
    let is_of_protocol = before.contains(protocol) || !before.contains(other);
    is_of_protocol && ports.split(',').any(is_in) != is_excepted
}

fn has_source(rule: &str) -> bool {
    after(rule, "saddr").or(after(rule, "-s")).is_some()
}

/// Whether a rule may be about machines elsewhere only: it names a source, or no interface of ours.
fn is_of_others(rule: &str, interfaces: &[Interface]) -> bool {
    let named = ["iifname", "iif", "-i"].iter().find_map(|option| after(rule, option));
    let is_ours = |name: &str| {
        let name = name.trim_matches('"');
        interfaces.iter().any(|own| without_label(&own.name) == name)
    };
    has_source(rule) || rule.contains("! -i ") || named.is_some_and(|name| !is_ours(name))
}

/// Whether a rule drops all that comes to it.
fn is_bare(rule: &str) -> bool {
    let rest = rule.strip_prefix("-a input ").unwrap_or(rule);
    let is_of_none = |word: &str| {
        let words = ["counter", "packets", "bytes", "drop", "reject", "-j", "log"];
        words.contains(&word) || word.bytes().all(|byte| byte.is_ascii_digit())
    };
    rest.split(" with ").next().unwrap_or_default().split_whitespace().all(is_of_none)
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    const PORTS: &[Port] = &[(11435, "tcp"), (11436, "udp")];

    fn judged(rules: &str, is_server: bool) -> (Level, String) {
        judged_for(PORTS, rules, is_server)
    }

    fn judged_for(ports: &[Port], rules: &str, is_server: bool) -> (Level, String) {
        let mut report = Report::default();
        let own = Ipv4Addr::new(192, 168, 1, 20);
        judge(&mut report, rules, is_server, ports, &[Interface::new("eth0", own, own)]);
        let worst = report.findings.into_iter().max_by_key(|finding| finding.level);
        worst.map(|finding| (finding.level, finding.text)).unwrap()
    }

    const STRICT: &str = "chain in {\n type filter hook input priority 0; policy drop;\n";

    #[test]
    fn rules_of_nft_and_iptables() {
        let table = [
            ("", Level::Well),
            ("chain in {\n type filter hook input priority 0; policy accept;\n}", Level::Well),
            // Of other ports, other protocols, other hooks.
            ("hook input udp dport 53 drop", Level::Well),
            ("hook input udp dport 114360 drop", Level::Well),
            ("hook input tcp dport 11436 drop", Level::Well),
            ("hook input udp sport 11436 dport 53 drop", Level::Well),
            (
                "chain f {\n type filter hook forward priority 0; policy drop;\n drop\n}",
                Level::Well,
            ),
            ("-A FORWARD -p tcp --dport 11435 -j DROP", Level::Well),
            ("-A INPUT -m conntrack --ctstate INVALID -j DROP", Level::Well),
            // One of ours, alone, in a set, in a range, in a chain behind.
            ("hook input udp dport 11436 drop", Level::Wrong),
            ("hook input meta l4proto { tcp, udp } th dport 11436 drop", Level::Wrong),
            ("hook input tcp dport { 80, 11435 } counter packets 0 bytes 0 drop", Level::Wrong),
            ("hook input tcp dport 11000-12000 reject with tcp reset", Level::Wrong),
            ("-A INPUT -p tcp --dport 11435 -j REJECT", Level::Wrong),
            ("-A INPUT -p udp -m multiport --dports 53,11430:11440 -j DROP", Level::Wrong),
            ("-A INPUT -j mine\n-A mine -p tcp --dport 11435 -j DROP", Level::Wrong),
            ("hook input tcp dport != { 22, 80 } drop", Level::Wrong),
            ("hook input tcp dport != 11435 drop", Level::Well),
            ("-A INPUT -p udp -m udp ! --dport 53 -j DROP", Level::Wrong),
            // Everything else is dropped.
            (STRICT, Level::Warning),
            (":INPUT DROP [0:0]", Level::Warning),
            ("-A INPUT -p tcp --dport 22 -j ACCEPT\n-A INPUT -j DROP", Level::Warning),
            (
                "chain in {\n type filter hook input priority 0;\n counter packets 1 bytes 2 drop\n}",
                Level::Warning,
            ),
            // It may be of others than the LAN.
            ("hook input iifname eth0 tcp dport 11435 drop", Level::Wrong),
            ("hook input iifname \"eth0\" tcp dport 11435 drop", Level::Wrong),
            ("hook input iifname != \"eth0\" tcp dport 11435 drop", Level::Note),
            ("-A INPUT -i wan0 -p tcp --dport 11435 -j DROP", Level::Note),
            ("-A INPUT ! -i eth0 -p tcp --dport 11435 -j DROP", Level::Note),
            ("hook input ip saddr 203.0.113.0/24 tcp dport 11435 drop", Level::Note),
            // Some were let through before.
            (
                "-A INPUT -s 192.168.1.0/24 -p tcp --dport 11435 -j ACCEPT\n\
                 -A INPUT -p tcp --dport 11435 -j DROP",
                Level::Note,
            ),
            (
                "-A INPUT -s 192.168.1.0/24 -j ACCEPT\n-A INPUT -p tcp --dport 11435 -j DROP",
                Level::Note,
            ),
            (
                "-A INPUT -i lo -j ACCEPT\n-A INPUT -s 10.0.0.1 -p tcp --dport 80 -j ACCEPT\n\
                 -A INPUT -p tcp --dport 11435 -j DROP\n-A INPUT -p tcp --dport 11435 -j ACCEPT",
                Level::Wrong,
            ),
            // Nobody knows what that means.
            ("hook input ip saddr 10.0.0.0/8 drop", Level::Note),
            ("-A INPUT -i eth0 -j REJECT --reject-with icmp-port-unreachable", Level::Note),
        ];
        for (rules, level) in table {
            let judged = judged(rules, true);
            assert_eq!(judged.0, level, "{rules}: {}", judged.1);
        }
        let (_, text) = judged("  hook input udp dport 11436 drop", true);
        assert!(text.contains("drops UDP 11436: hook input udp dport 11436 drop"), "{text}");
        let of_client = |rules: &str| judged_for(&ports(None, 11436), rules, false).0;
        assert_eq!(of_client(STRICT), Level::Note);
        assert_eq!(of_client(&format!("{STRICT}udp dport 11436 accept")), Level::Note);
        assert_eq!(of_client("hook input tcp dport != { 22 } drop"), Level::Well);
        let open = "tcp dport 11435 accept\nudp dport 11436 accept";
        assert_eq!(judged(&format!("{STRICT}{open}"), true).0, Level::Well);
        let open = "tcp dport 11434-11436 accept\nudp dport 11434-11436 accept";
        assert_eq!(judged(&format!("{STRICT}{open}\n drop"), true).0, Level::Well);
        let (_, text) = judged("hook input ip saddr 10.0.0.0/8 drop", true);
        assert!(text.starts_with("not judged: "), "{text}");
    }

    /// As ufw 0.36 writes them, on a machine 192.168.1.20.
    #[test]
    fn rules_of_ufw() {
        let ours = "-p tcp --dport 11435 -j ACCEPT\n-p udp --dport 11436 -j ACCEPT";
        let from = |range: &str| ours.replace("-j", &format!("-s {range} -j"));
        let before = |rule: &str, rest: &str| format!("{rule}\n{rest}");
        let limited = "-p tcp --dport 11435 -m conntrack --ctstate NEW -m recent --set\n\
                       -p tcp --dport 11435 -m conntrack --ctstate NEW -m recent --update \
                       --seconds 30 --hitcount 6 -j ufw-user-limit\n\
                       -p tcp --dport 11435 -j ufw-user-limit-accept";
        let logged = "-p udp --dport 11436 -j ufw-user-logging-input";
        let udp = "-p udp --dport 11436 -j ACCEPT";
        let [address, broadcast] = [20, 255].map(|last| Ipv4Addr::new(192, 168, 1, last));
        let interfaces = [Interface::new("eth0", address, broadcast)];
        let subnet: Cidr = "192.168.1.0/24".parse().unwrap();
        let lan = Lan { interfaces: &interfaces, is_near: &|ip| subnet.contains(ip) };
        let others = "-A ufw-user-output -j ACCEPT\n-A ufw-user-forward -j ACCEPT\n\
                      -A ufw-user-limit-accept -j ACCEPT\n";
        for (rules, want) in [
            ("", false),
            (ours, true),
            ("-p tcp --dport 11435 -j ACCEPT", false),
            (before("-p tcp -m multiport --dports 80,11000:12000 -j ACCEPT", udp).as_str(), true),
            (&ours.replace("ACCEPT", "ACCEPT -m comment --comment 'dapp_Transport'"), true),
            (&before(limited, &before(logged, udp)), true),
            // Without a port: for everybody, a subnet, a machine, an interface.
            ("-j ACCEPT", true),
            ("-s 192.168.1.0/24 -j ACCEPT", true),
            ("-s 192.168.0.0/16 -j ACCEPT", true),
            ("-s 192.168.1.7 -j ACCEPT", true),
            ("-i eth0 -j ACCEPT", true),
            ("-i eth+ -s 192.168.1.0/24 -j ACCEPT", true),
            ("-p udp -j ACCEPT\n-p tcp -s 192.168.1.0/24 -j ACCEPT", true),
            ("-d 192.168.1.0/24 -j ACCEPT", true),
            // For others, or for something else; broadcasts go to no machine's own address.
            ("-s 203.0.113.7 -j ACCEPT", false),
            ("-s 203.0.113.7 -j ACCEPT\n-p tcp --dport 22 -s 203.0.113.7 -j ACCEPT", false),
            ("-i docker0 -j ACCEPT", false),
            ("-p udp -j ACCEPT", false),
            ("-p tcp -s 192.168.1.7 -j ACCEPT\n-p udp -s 192.168.1.8 -j ACCEPT", false),
            ("-p udp --sport 11436 -j ACCEPT\n-p tcp --dport 11435 -j ACCEPT", false),
            ("-d 192.168.1.20 -j ACCEPT", false),
            // A rule for the ports means whom it names, wherever these are.
            (&from("10.9.0.0/16"), true),
            // The first match wins.
            (&before("-p tcp --dport 11435 -j DROP", "-s 192.168.1.0/24 -j ACCEPT"), false),
            (&before("-s 192.168.1.0/24 -j ACCEPT", "-p tcp --dport 11435 -j DROP"), true),
            (&before("-s 192.168.1.0/24 -j DROP", ours), false),
            (&before("-s 192.168.1.7 -j REJECT", ours), true),
            (&before("-s 192.168.1.7 -j REJECT", &from("192.168.1.7")), false),
            (&before("-i wlan0 -j REJECT --reject-with tcp-reset", ours), true),
            (&before("-i eth0 -j DROP", ours), false),
        ] {
            let rules = rules.lines().map(|rule| format!("-A ufw-user-input {rule}\n"));
            let rules = rules.collect::<String>() + others;
            assert_eq!(ufw_admits(&rules, false, &lan, PORTS), want, "{rules}");
        }
        let labelled = [Interface::new("eth0:1", address, broadcast)];
        let lan = Lan { interfaces: &labelled, ..lan };
        assert!(ufw_admits("-A ufw-user-input -i eth0 -j ACCEPT", false, &lan, PORTS));
        // What no rule is about follows the default.
        let shut = "-A ufw-user-input -p udp --dport 11436 -j DROP";
        assert!(ufw_admits(others, true, &lan, PORTS));
        assert!(!ufw_admits(shut, true, &lan, PORTS));
        assert!(ufw_admits(shut, true, &lan, &PORTS[..1]));
        // Where there is no interface to broadcast on.
        let lan = Lan { interfaces: &[], ..lan };
        for (rule, want) in [("-j ACCEPT", true), ("-i docker0 -j ACCEPT", false)] {
            let rule = format!("-A ufw-user-input {rule}");
            assert_eq!(ufw_admits(&rule, false, &lan, PORTS), want, "{rule}");
        }
    }

    /// Exit code 253 is that of a user whom polkit doesn't let ask.
    #[test]
    fn a_zone_that_does_not_tell_is_not_called_closed() {
        for (tcp, udp, want) in [
            (Some(0), Some(0), Some(true)),
            (Some(0), Some(1), Some(false)),
            (Some(1), Some(253), None),
            (Some(253), Some(253), None),
            (Some(0), None, None),
        ] {
            let query = |query: String| match query.as_str() {
                "--query-port=11435/tcp" => tcp,
                "--query-port=11436/udp" => udp,
                other => panic!("{other}"),
            };
            assert_eq!(zone_admits(PORTS, query), want, "{tcp:?} {udp:?}");
        }
    }

    #[test]
    fn without_the_discovery_nothing_is_said_of_udp() {
        let tcp = &PORTS[..1];
        assert_eq!(ports(Some(vec![11435]), 0), tcp);
        assert_eq!(judged_for(&ports(None, 0), STRICT, false).0, Level::Well);
        let (level, text) = judged_for(tcp, STRICT, true);
        assert!(level == Level::Warning && text.ends_with("here opens TCP 11435"), "{text}");
        let open = format!("{STRICT}tcp dport 11435 accept");
        assert_eq!(judged_for(tcp, &open, true).0, Level::Well);
    }
}
