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
    let found = [ufw(report, is_server, tcp, udp), firewalld(report, is_server, tcp, udp)];
    if found.contains(&true) {
        return;
    }
    match rules() {
        Some(rules) => judge(report, &rules, is_server, tcp, udp),
        None if cfg!(target_os = "linux") => report.note("its rules: only root sees them"),
        None if cfg!(target_os = "macos") => report.note(
            "System Settings > Network > Firewall must allow incoming connections for ollana",
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

fn ufw(report: &mut Report, is_server: bool, tcp: u16, udp: u16) -> bool {
    let config = fs::read_to_string("/etc/ufw/ufw.conf").unwrap_or_default();
    if !config.lines().any(|line| line.trim().eq_ignore_ascii_case("enabled=yes")) {
        return false;
    }
    let rules = fs::read_to_string("/etc/ufw/user.rules");
    let allows = |port: u16| {
        rules.as_ref().is_ok_and(|rules| {
            rules.lines().any(|line| line.ends_with("ACCEPT") && line.contains(&port.to_string()))
        })
    };
    match (is_server, rules.is_ok()) {
        (true, true) if allows(tcp) && allows(udp) => report.well("ufw lets the ports through"),
        (true, true) => report.warn(
            format!("ufw is on and doesn't let TCP {tcp} and UDP {udp} in"),
            format!("sudo ufw allow {tcp}/tcp && sudo ufw allow {udp}/udp"),
        ),
        (true, false) => report.hint(
            "ufw is on; only root sees its rules",
            format!("sudo ufw allow {tcp}/tcp && sudo ufw allow {udp}/udp"),
        ),
        (false, _) => report.hint(
            "ufw is on: it may drop the answers to broadcasts",
            format!("if no server is found: sudo ufw allow proto udp from any port {udp}"),
        ),
    }
    true
}

fn firewalld(report: &mut Report, is_server: bool, tcp: u16, udp: u16) -> bool {
    if output("firewall-cmd", &["--state"]).is_none() {
        return false;
    }
    let ports = [format!("{tcp}/tcp"), format!("{udp}/udp")];
    let is_open =
        |port: &String| output("firewall-cmd", &[&format!("--query-port={port}")]).is_some();
    if !is_server {
        report.hint(
            "firewalld is on: it may drop the answers to broadcasts",
            format!("if no server is found: firewall-cmd --add-source-port={udp}/udp"),
        );
    } else if ports.iter().all(is_open) {
        report.well("firewalld lets the ports through");
    } else {
        report.warn(
            format!("firewalld is on and doesn't let TCP {tcp} and UDP {udp} in"),
            format!(
                "firewall-cmd --permanent --add-port={tcp}/tcp --add-port={udp}/udp && \
                 firewall-cmd --reload"
            ),
        );
    }
    true
}

/// The kernel's rules, if this user may see them.
fn rules() -> Option<String> {
    let nft = output("nft", &["list", "ruleset"]);
    let iptables = output("iptables-save", &[]);
    match (nft, iptables) {
        (None, None) => None,
        (nft, iptables) => Some(nft.unwrap_or_default() + &iptables.unwrap_or_default()),
    }
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
            report.warn(
                format!(
                    "incoming packets are dropped by default, and no rule opens {tcp} and {udp}"
                ),
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
