//! `ollana pair`: one machine shows a code, on the other one it is typed, and both have a key.
//!
//! ```text
//!  ollana pair CODE ── "who shows a code?" ── UDP broadcast ──► ollana pair
//!       │          ◄── announcement, from where it is reached ──    │
//!       └── TCP: handshake with the code as key, half a key ──►     │
//!       │        ◄── half a key; "kept" ──                           │
//!       └── "kept" ──► · ◄── "confirmed" ────────────────────────────┘
//! ```
//!
//! Each says "kept" once the key is on its disk. Whatever ends before, both have a key that works:
//! the one before counts until the new one is confirmed, here or by its first use.
//!
//! It uses a port of its own, three above the discovery's, so it works whether ollana runs or not.
//! A running one takes the key up by itself.

mod cut_off;
mod join;
mod show;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::{print, say, state_dir};
use crate::cli::Tool;
use crate::config::{DISCOVERY_PORT, SERVER_PORT};
use crate::pairing::noise::{Introduction, Key};
use crate::pairing::peers::{self, Peer};
use crate::pairing::{code::PairingCode, key_files, marks};
use crate::serve::{host_name, state_dir::identity};
use crate::system::{failed, to_stderr};

/// From the discovery's port to that of pairing; the ports between are taken.
const PORT_STEP: u16 = 3;
/// How long each message of the other machine may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(3);
/// Length of half a key in bytes.
const HALF: usize = 32;
/// What each machine says once it has kept the key.
const KEPT: &[u8] = b"kept";
/// What the machine that shows the code says last.
const CONFIRMED: &[u8] = b"done";

/// This machine.
#[derive(Clone)]
struct Own {
    state_dir: PathBuf,
    introduction: Introduction,
}

/// What is wrong with the code on the command line.
pub(super) fn misread(tool: &Tool) -> Option<String> {
    let typed = tool.operands.first().filter(|typed| *typed != "-")?;
    read(typed).err()
}

fn read(typed: &str) -> Result<PairingCode, String> {
    let no_code = || format!("{typed:?} is not a code; they look like k7pm2-xvd9q");
    PairingCode::parse(typed).ok_or_else(no_code)
}

pub(super) fn run(tool: &Tool) -> Result<(), String> {
    let settings = &tool.settings;
    let state_dir = state_dir(settings)?;
    // Fails before a code is shown or typed if the key couldn't be kept after.
    key_files::prepare(&state_dir)?;
    // Among paired machines this one is known as the server on the usual port.
    let identity = identity(Some(&state_dir), SERVER_PORT);
    let identity = identity.map_err(failed("cannot make an identity"))?;
    let introduction = Introduction { name: host_name(), ..Introduction::of(identity) };
    let dir = state_dir.clone();
    let own = Own { state_dir, introduction };
    let near = if settings.discovery_port == 0 { DISCOVERY_PORT } else { settings.discovery_port };
    let port = near.saturating_add(PORT_STEP);
    let cut_off = cut_off::look(settings, &own);
    let peer = match &tool.operands[..] {
        [] => show::Host::open(port)?.show(&own, show::CODE_LIFE)?,
        [typed, rest @ ..] => {
            let typed = if typed == "-" { ask_for_code()? } else { typed.clone() };
            let code = read(&typed)?;
            let machines = match rest.first() {
                Some(host) => vec![(join::resolve(host, port)?, host.clone())],
                None => join::search(&settings.interfaces, &own, port)?,
            };
            join::join_any(&own, &code, machines)?
        }
    };
    let marked = marks::set_elsewhere(&dir, true);
    say(&format!("paired with {}, key {}", peer.name, peer.id()));
    if let Err(error) = marked {
        to_stderr(&format!("ollana: not noted in the configuration that there are keys: {error}"));
    }
    say("Both machines show the same key. A running ollana takes it up by itself.");
    cut_off::tell(cut_off, &own, &peer);
    Ok(())
}

fn ask_for_code() -> Result<String, String> {
    print("code: ")?;
    let mut line = String::new();
    io::stdin().read_line(&mut line).map_err(failed("cannot read the code"))?;
    Ok(line.trim().to_owned())
}

/// Adds the new peer to the file of keys, unconfirmed; it may get another name there.
fn keep(own: &Own, peer: Introduction, key: Key) -> Result<Peer, String> {
    let added = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs());
    let (name, identity) = (peer.name, Some(peer.identity));
    let mut peer = Peer { name, identity, key, added, is_confirmed: false };
    let add = |list: &mut Vec<Peer>| peers::add(list, peer.clone());
    peer.name = key_files::update(&own.state_dir, add)?;
    Ok(peer)
}
