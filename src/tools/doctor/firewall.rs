//! Firewalls of this machine, as far as their settings tell. Whether packets arrive is tried
//! elsewhere, with the servers.

use std::fs;
use std::process::{Command, Stdio};

use super::report::Report;
use crate::config::{SERVER_PORT, Settings};

pub(super) fn look(report: &mut Report, settings: &Settings, is_server: bool) {
    let mut tcp = settings.share.iter().chain(&settings.listen).map(|address| address.port());
    let tcp = tcp.next_back().filter(|_| is_server).unwrap_or(SERVER_PORT);
    let udp = settings.discovery_port;
    let found: Vec<Firewall> =
        [ufw(tcp, udp), firewalld(is_server, tcp, udp)].into_iter().flatten().collect();
    let is_found = !found.is_empty();
    for Firewall { name, is_open, open, open_source } in found {
        match (is_server, is_open) {
            (true, Some(true)) => report.well(format!("{name} lets the ports through")),
            (true, Some(false)) => {
                let text = format!("{name} is on and doesn't let TCP {tcp} and UDP {udp} in");
                report.warn(text, open);
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
        Some(rules) => judge(report, &rules, is_server, tcp, udp),
        None if cfg!(target_os = "linux") => report.note("its rules: only root sees them"),
        None if cfg!(target_os = "macos") => report.note(
            "if the firewall is on (System Settings > Network): sudo ollana service firewall",
        ),
        None => report.note("not looked at on this system"),
    }
}

/// What a program prints, if there is such a program and it exits with 0.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    // The directories of administrators' programs aren't in every PATH.
    let places = ["", "/usr/sbin/", "/sbin/", "/usr/bin/"];
    let outputs = places.iter().filter_map(|place| {
        let mut command = Command::new(format!("{place}{program}"));
        command.args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()
    });
    let output = outputs.into_iter().next()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A program that manages the rules, and is on.
struct Firewall {
    name: &'static str,
    /// Whether it lets a server's ports through, if that may be seen.
    is_open: Option<bool>,
    /// Opens a server's ports.
    open: String,
    /// Lets answers to a client's broadcasts in.
    open_source: String,
}

fn ufw(tcp: u16, udp: u16) -> Option<Firewall> {
    let config = fs::read_to_string("/etc/ufw/ufw.conf").unwrap_or_default();
    config.lines().find(|line| line.trim().eq_ignore_ascii_case("enabled=yes"))?;
    let allows = |rules: &str, port: u16| {
        let port = port.to_string();
        rules.lines().any(|line| line.ends_with("ACCEPT") && line.contains(&port))
    };
    let rules = fs::read_to_string("/etc/ufw/user.rules").ok();
    Some(Firewall {
        name: "ufw",
        is_open: rules.map(|rules| allows(&rules, tcp) && allows(&rules, udp)),
        open: format!("sudo ufw allow {tcp}/tcp && sudo ufw allow {udp}/udp"),
        open_source: format!("sudo ufw allow proto udp from any port {udp}"),
    })
}

fn firewalld(is_server: bool, tcp: u16, udp: u16) -> Option<Firewall> {
    output("firewall-cmd", &["--state"])?;
    let query = |port: String| output("firewall-cmd", &[&format!("--query-port={port}")]).is_some();
    Some(Firewall {
        name: "firewalld",
        is_open: Some(is_server && query(format!("{tcp}/tcp")) && query(format!("{udp}/udp"))),
        open: format!(
            "firewall-cmd --permanent --add-port={tcp}/tcp --add-port={udp}/udp && \
             firewall-cmd --reload"
        ),
        open_source: format!("firewall-cmd --add-source-port={udp}/udp"),
    })
}

/// The kernel's rules, if this user may see them.
fn rules() -> Option<String> {
    let nft = output("nft", &["list", "ruleset"]);
    let iptables = output("iptables-save", &[]);
    (nft.is_some() || iptables.is_some()).then(|| nft.into_iter().chain(iptables).collect())
}

/// Understands rules that name one of the ports, and the default of the input chain.
fn judge(report: &mut Report, rules: &str, is_server: bool, tcp: u16, udp: u16) {
    let drops = |line: &&str| {
        let line = line.to_lowercase();
        line.contains("drop") || line.contains("reject")
    };
    let names = |line: &str, port: u16| {
        line.split(|c: char| !c.is_ascii_digit()).any(|number| number == port.to_string())
    };
    let mut is_clear = true;
    for (port, kind) in [(tcp, "TCP"), (udp, "UDP")] {
        if let Some(rule) = rules.lines().filter(drops).find(|line| names(line, port)) {
            is_clear = false;
            report.wrong(
                format!("a rule of this machine drops {kind} {port}: {}", rule.trim()),
                "take it out, or let the local network through before it",
            );
        }
    }
    let is_strict = rules.lines().any(|line| {
        let line = line.trim().to_lowercase();
        (line.contains("hook input") && line.contains("policy drop"))
            || line.starts_with(":input drop")
    });
    let opens = |port| rules.lines().any(|line| names(line, port) && !drops(&line));
    if is_strict && !(opens(tcp) && opens(udp)) {
        is_clear = false;
        if is_server {
            let text = "incoming packets are dropped by default, and no rule opens";
            report.warn(
                format!("{text} {tcp} and {udp}"),
                format!("accept TCP {tcp} and UDP {udp} from the local network"),
            );
        } else {
            report.hint(
                "incoming packets are dropped by default: answers to broadcasts may be among them",
                format!("if no server is found: accept UDP from source port {udp}"),
            );
        }
    }
    if is_clear {
        report.well("no rule of this machine is in the way");
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    fn judged(rules: &str, is_server: bool) -> (Level, String) {
        let mut report = Report::default();
        judge(&mut report, rules, is_server, 11435, 11436);
        let worst = report.findings.into_iter().max_by_key(|finding| finding.level);
        worst.map(|finding| (finding.level, finding.text)).unwrap()
    }

    #[test]
    fn rules_of_nft_and_iptables() {
        assert_eq!(judged("", true).0, Level::Well);
        assert_eq!(judged("udp dport 53 drop", true).0, Level::Well);
        let (level, text) = judged("  udp dport 11436 drop", true);
        assert_eq!(level, Level::Wrong);
        assert!(text.contains("drops UDP 11436: udp dport 11436 drop"), "{text}");
        assert_eq!(judged("-A INPUT -p tcp --dport 11435 -j REJECT", true).0, Level::Wrong);
        assert_eq!(judged("udp dport 114360 drop", true).0, Level::Well);
        let strict = "type filter hook input priority 0; policy drop;\n";
        assert_eq!(judged(strict, true).0, Level::Warning);
        assert_eq!(judged(strict, false).0, Level::Note);
        assert_eq!(
            judged(&format!("{strict}tcp dport 11435 accept\nudp dport 11436 accept"), true).0,
            Level::Well
        );
        assert_eq!(judged(":INPUT DROP [0:0]", true).0, Level::Warning);
    }
}
