//! `ollana doctor`: checks everything that ollana needs on this machine and the LAN, and says what to
//! do about what doesn't work. Needs no daemon, changes nothing, and takes about two seconds.

mod ask;
mod causes;
mod firewall;
mod local;
mod report;
mod running;
mod servers;

use std::process::ExitCode;
use std::sync::Arc;

use super::screen;
use crate::cli::Tool;
use crate::config::Settings;
use crate::net::interfaces::{self, Interface};
use crate::pairing::keyring::Keyring;
use report::Report;
use running::Running;

/// What makes a server on the other side of a tunnel work.
const ACROSS_A_VPN: &str = "for a server across it, its name or address there: --server \
                            desktop.tailnet-name; Tailscale's and other private addresses may \
                            connect as the LAN's may";

/// Exit code 0: nothing has to be done; 1: something has.
pub(super) fn run(tool: &Tool) -> ExitCode {
    let report = examine(tool);
    let text = || report.text(screen::style().is_coloured);
    let text = if tool.has("json") { report.json() } else { text() };
    if let Err(reason) = super::print(&text) {
        return super::complain(&reason, 1);
    }
    if report.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn examine(tool: &Tool) -> Report {
    let mut report = Report::default();
    let running = Running::ask(&tool.settings);
    let settings = &running.settings(tool);
    let keyring = keyring(&mut report, settings);
    let here = local::look(settings);
    report.about("this machine");
    local::surroundings(&mut report, settings);
    report.about("Ollama here");
    local::ollama(&mut report, settings, &here);
    if let Some(advice) = running.advice() {
        report
            .hint(advice, "ollana --mode server, or OLLANA_MODE=server in its service's settings");
    }
    if let Some(problem) = running.unshared() {
        report.hint(problem, "ollana help sharing; or --share-models off, if it shall be so");
    }
    report.about("ports");
    local::ports(&mut report, settings, &here);
    report.about("interfaces");
    let interfaces = network(&mut report, settings);
    report.about("firewall");
    let lan_ports = here.is_server.then(|| running.lan_ports(settings));
    firewall::look(&mut report, settings, lan_ports, &interfaces);
    report.about("servers");
    servers::look(&mut report, settings, &here, &interfaces, &Arc::new(keyring), &running);
    report
}

fn keyring(report: &mut Report, settings: &Settings) -> Keyring {
    super::keyring(settings).unwrap_or_else(|error| {
        report.about("keys");
        report.wrong(error.to_string(), "the line above says it; ollana does not start like this");
        Keyring::none()
    })
}

fn network(report: &mut Report, settings: &Settings) -> Vec<Interface> {
    let used = interfaces::broadcast_interfaces(&settings.interfaces);
    for text in interfaces::unknown_interfaces(&settings.interfaces) {
        report.wrong(
            text,
            report::by_system(
                "ip -4 address shows their names",
                "ifconfig shows their names",
                "ipconfig shows their names",
            ),
        );
    }
    for Interface { name, address, broadcast } in &used {
        report.well(format!("{name} {address}: broadcasts go to {broadcast}"));
    }
    for (name, address, why) in interfaces::other_interfaces(&settings.interfaces) {
        let text = format!("{name} {address} {why}: no broadcasts there");
        match why == interfaces::TUNNEL {
            true => report.hint(text, ACROSS_A_VPN),
            false => report.note(text),
        }
    }
    if used.is_empty() && settings.interfaces.is_empty() {
        report.wrong(
            "no interface to broadcast on: no server can be found",
            "connect to the network, or name a server: --server HOST",
        );
    }
    used
}
