//! The zones of firewalld: an interface is in one of them, and each lets in what it is told to.

use crate::config::Settings;
use crate::net::interfaces::{broadcast_interfaces, without_label};

/// Runs `firewall-cmd` with one option; what it prints, if it succeeds.
pub(super) type Ask<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The zones of the interfaces that ollana uses, each once.
pub(super) fn zones(settings: &Settings, ask: Ask<'_>) -> Vec<String> {
    let mut interfaces = settings.interfaces.clone();
    if interfaces.is_empty() {
        interfaces.extend(broadcast_interfaces(&[]).into_iter().map(|one| one.name));
    }
    let of_interface = |name: &String| {
        let interface = without_label(name);
        // It fails where the interface is of no zone.
        let zone = named(ask(&format!("--get-zone-of-interface={interface}")));
        zone.unwrap_or_else(|| default_zone(ask))
    };
    let mut zones: Vec<String> = interfaces.iter().map(of_interface).collect();
    if zones.is_empty() {
        zones.push(default_zone(ask));
    }
    zones.sort();
    zones.dedup();
    zones
}

/// The zone of all that is in no other one.
pub(super) fn default_zone(ask: Ask<'_>) -> String {
    // As firewalld comes.
    named(ask("--get-default-zone")).unwrap_or_else(|| "public".to_owned())
}

fn named(told: Option<String>) -> Option<String> {
    told.map(|zone| zone.trim().to_owned()).filter(|zone| !zone.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_zone_of_the_interfaces_is_named_once() {
        let ask = |option: &str| match option.split_once('=') {
            Some(("--get-zone-of-interface", "eth0" | "eth1")) => Some("home\n".to_owned()),
            Some(("--get-zone-of-interface", "eth2")) => Some("work\n".to_owned()),
            None if option == "--get-default-zone" => Some("work\n".to_owned()),
            _ => None,
        };
        let of = |interfaces: &[&str], ask: Ask<'_>| {
            let interfaces = interfaces.iter().map(|name| (*name).to_owned()).collect();
            zones(&Settings { interfaces, ..Settings::default() }, ask)
        };
        assert_eq!(of(&["eth0", "eth0:1", "eth1"], &ask), ["home"]);
        assert_eq!(of(&["eth2", "eth0", "eth1"], &ask), ["home", "work"]);
        // Of no zone: the default one's.
        assert_eq!(of(&["wlan0", "eth2"], &ask), ["work"]);
        assert_eq!(of(&["wlan0"], &|_| None), ["public"]);
    }
}
