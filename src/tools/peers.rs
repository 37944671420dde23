//! `ollana peers` and `ollana unpair NAME`: the machines that this one is paired with.

use super::table::wrap;
use super::{print, say, state_dir};
use crate::cli::Tool;
use crate::pairing::peers::Peer;
use crate::pairing::{key_files, marks};
use crate::system::failed;

pub(super) fn list(tool: &Tool) -> Result<(), String> {
    let mut peers = key_files::load(&state_dir(&tool.settings)?)?;
    if let Some(path) = &tool.settings.key_file {
        peers.push(key_files::peer_of(path)?);
    }
    print(&table(&peers))
}

pub(super) fn remove(tool: &Tool) -> Result<(), String> {
    let dir = state_dir(&tool.settings)?;
    let name = tool.operand();
    let (done, whose, left) = if tool.has("all") {
        key_files::update(&dir, |peers| {
            peers.clear();
            Ok(())
        })?;
        ("no machine is paired".to_owned(), "their", 0)
    } else {
        let is_meant = |peer: &Peer| peer.name == name;
        if !key_files::load(&dir)?.iter().any(is_meant) {
            return Err(format!("no paired machine is called {name:?}; 'ollana peers' shows them"));
        }
        let left = key_files::update(&dir, |peers| {
            peers.retain(|peer| !is_meant(peer));
            Ok(peers.len())
        })?;
        (format!("{name} is not paired"), "its", left)
    };
    // Before anything is said: a mark that outlives the keys keeps ollana from starting.
    let unmarked = if left == 0 { marks::set_elsewhere(&dir, false) } else { Ok(()) };
    let text = format!("{done} any more; a running ollana cuts {whose} connections by itself");
    say(&wrap(&text, 80).join("\n"));
    if left == 0 {
        say("No paired machine is left: ollana talks unencrypted to the LAN again. To stop\n\
             that, start it with --unpaired off.");
    }
    unmarked.map_err(failed("cannot note it in the configuration"))
}

/// At most 80 columns wide.
fn table(peers: &[Peer]) -> String {
    if peers.is_empty() {
        return "no paired machines; 'ollana pair' on two machines pairs them\n".to_owned();
    }
    let row = |name: &str, added: &str, key: &str| format!("{name:<46}  {added:<10}  {key}\n");
    let mark = |peer: &Peer| if peer.is_confirmed { "" } else { " *" };
    let key = |peer: &Peer| format!("{}{}", peer.id(), mark(peer));
    let rows: String =
        peers.iter().map(|peer| row(&peer.name, &date(peer.added), &key(peer))).collect();
    let is_open = peers.iter().any(|peer| !peer.is_confirmed);
    let note = "* not used yet; until then, what was before it counts as well\n";
    row("NAME", "ADDED", "KEY") + &rows + if is_open { note } else { "" }
}

pub(super) fn date(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).ok().filter(|seconds| *seconds > 0);
    match seconds.map(time::OffsetDateTime::from_unix_timestamp) {
        Some(Ok(time)) => time.date().to_string(),
        _ => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pairing::noise::Key;

    #[test]
    fn the_table_fits_80_columns() {
        let peer = |name: &str| Peer {
            name: name.to_owned(),
            identity: None,
            key: Key::new([7; 32]),
            added: 1_795_392_000,
            is_confirmed: name == "desktop",
        };
        let text = table(&[peer("desktop"), peer(&"x".repeat(46)), peer(&"ä".repeat(23))]);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("2026-11-23  "), "{text}");
        assert_eq!(date(0), "-");
        assert_eq!(date(u64::MAX), "-");
    }
}
