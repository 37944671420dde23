//! Who is cut off by pairing: from its first key on, a machine talks to those only that have one.

use crossbeam_channel::{Receiver, bounded};

use super::Own;
use crate::config::Settings;
use crate::discovery::scan::Scan;
use crate::discovery::schedule::DISCOVER;
use crate::net::interfaces::probed_interfaces;
use crate::net::lane::Lane;
use crate::net::untrusted_text::printable;
use crate::pairing::{identity::Identity, key_files, peers::Peer};
use crate::system;
use crate::tools::{say, table::wrap};

/// Servers that answer without a key.
pub(super) type Found = Option<Receiver<Vec<(Identity, String)>>>;

/// Looks for them meanwhile; `None` where nobody is cut off, or everybody was before.
pub(super) fn look(settings: &Settings, own: &Own) -> Found {
    let had_keys = key_files::load(&own.state_dir).is_ok_and(|peers| !peers.is_empty());
    let is_open = settings.unpaired == Some(true);
    if had_keys || is_open || settings.key_file.is_some() || settings.discovery_port == 0 {
        return None;
    }
    let (interfaces, port) = (settings.interfaces.clone(), settings.discovery_port);
    let asker = own.introduction.identity;
    let (tell, told) = bounded(1);
    let scan = move || {
        let (lanes, _) = Lane::open_all(&probed_interfaces(&interfaces), port);
        let mut found: Vec<(Identity, String)> = Vec::new();
        // As from the server of this machine, which doesn't answer itself.
        for answer in Scan::new(&lanes, asker, &[], DISCOVER) {
            let Some(identity) = answer.identity else { continue };
            if !found.iter().any(|(known, _)| *known == identity) {
                let named = format!("{} ({})", printable(&answer.name), answer.address.ip());
                found.push((identity, named.trim_start().to_owned()));
            }
        }
        let _ = tell.send(found);
    };
    system::spawn("scan", scan).ok().map(|_| told)
}

/// Says who is cut off now that there is a first peer.
pub(super) fn tell(found: Found, own: &Own, peer: &Peer) {
    let Some(found) = found.and_then(|told| told.recv().ok()) else { return };
    let is_other = |identity: Identity| {
        peer.identity != Some(identity) && own.introduction.identity != identity
    };
    let others = found.into_iter().filter(|(identity, _)| is_other(*identity));
    let names: Vec<String> = others.map(|(_, name)| name).collect();
    let mut text =
        "From now on this machine talks to paired machines only. Others that use it, or \
                    that it used, are cut off"
            .to_owned();
    if !names.is_empty() {
        text += &format!(": {}", names.join(", "));
    }
    text += ". To keep one, run 'ollana pair' here and there, or 'ollana token add NAME' here for a \
             device that can't run ollana; to keep all, unencrypted, start ollana with --unpaired on.";
    say(&wrap(&text, 80).join("\n"));
}
