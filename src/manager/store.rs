//! What is remembered over restarts: the servers, what they have, and how to wake them.
//!
//! `servers.json` is a list of objects, one a line, so that a line that can't be read costs one
//! server alone. Older versions know the first four members: address, name, present, identity; given
//! (as the user named it), new (a newcomer then), models and data (its lists, as it wrote them), seen
//! (when it was last well, in seconds since 1970).

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::pool::{Had, Known};
use crate::config::{Mac, parse_host_port};
use crate::net::untrusted_text::cut;
use crate::ollama::endpoints::List;
use crate::ollama::inventory::{Inventory, merged};
use crate::pairing::identity::Identity;
use crate::system::files::{self, in_time, replace};
use crate::system::{keeper::Keeper, lock};

const SERVERS: &str = "servers.json";
const WAKE: &str = "wake.json";
/// Stands before the time in a line, which ends with it.
const SEEN: &str = ",\"seen\":";

/// No earlier time is believed: 2025.
const EARLIEST: u64 = 1_735_689_600;
/// Longest name or address that is taken from a file, in bytes.
const MAX_TEXT: usize = 256;

/// Times that differ by less are no reason to write.
const SAME_TIME: u64 = 600;

/// Where the Manager of one daemon has its servers written down. It waits for no disk.
#[derive(Debug)]
pub struct Memory {
    dir: PathBuf,
    keeper: Arc<Keeper>,
    number: u64,
}

impl Memory {
    pub(crate) fn new(dir: PathBuf, keeper: Arc<Keeper>) -> Self {
        let number = keeper.lead();
        Memory { dir, keeper, number }
    }

    /// A daemon that only lets its streams finish knows less than the one after it.
    pub(super) fn keep(&self, servers: Vec<Known>) {
        let dir = self.dir.clone();
        if self.keeper.is_led_by(self.number) {
            self.keeper.put((SERVERS, 0), move || remember(&dir, &servers));
        }
    }
}

/// Writes down which servers there are and what they have, for [`recall`]. Failing costs little.
fn remember(dir: &Path, servers: &[Known]) {
    if let Err(error) = write(dir, servers) {
        log::debug!("servers not remembered dir={dir:?} reason={error}");
    }
}

pub(crate) fn write(dir: &Path, servers: &[Known]) -> io::Result<()> {
    let file = dir.join(SERVERS);
    let now = unix_time();
    let lines: Vec<String> = servers.iter().map(|known| line(known, now)).collect();
    // Many changes come to the same, and disks don't last for ever.
    if is_same(&text(dir, SERVERS)?, &lines) {
        return Ok(());
    }
    replace(dir, &file, &format!("[\n{}\n]", lines.join(",\n")))
}

/// A server's lists go in as it wrote them, which takes no more room than they take in memory.
fn line(known: &Known, now: u64) -> String {
    let mut about = json!({
        "address": known.address, "name": known.name, "present": known.is_present,
        "identity": known.identity.map(|identity| identity.to_string()),
    });
    let Some(Had { models, given, ago, stamp, is_newcomer }) = &known.had else {
        return about.to_string();
    };
    about["given"] = given.as_ref().map(ToString::to_string).into();
    about["new"] = (*is_newcomer).into();
    // What a clock that isn't set yet, or was set since, makes of it is no news.
    let seen = Some(now.saturating_sub(ago.as_secs())).filter(|_| now >= EARLIEST);
    let seen = Value::from(seen.into_iter().chain(*stamp).min());
    let about = about.to_string();
    let [tags, openai] = [List::Tags, List::OpenAi]
        .map(|list| merged(list, &[Arc::clone(models)]).replace('\n', " "));
    let [about, tags, openai] = [&about, &tags, &openai].map(|object| &object[1..object.len() - 1]);
    format!("{{{about},{tags},{openai}{SEEN}{seen}}}")
}

/// Whether a file says the same as these lines, times apart.
fn is_same(old: &str, new: &[String]) -> bool {
    let split = |line: &str| {
        let (rest, seen) = line.rsplit_once(SEEN).unwrap_or((line, ""));
        (rest.to_owned(), seen.trim_end_matches('}').parse::<u64>().unwrap_or_default())
    };
    let same = |(old, new): (&str, &String)| {
        let ((old, then), (new, now)) = (split(old), split(new));
        old == new && then.abs_diff(now) < SAME_TIME
    };
    let old: Vec<&str> = lines(old).collect();
    old.len() == new.len() && old.into_iter().zip(new).all(same)
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().map(|line| line.trim_end_matches(','));
    lines.filter(|line| !matches!(*line, "" | "[" | "]"))
}

/// The servers of earlier runs, in the order in which they were met. A line that can't be read costs
/// no other.
pub(crate) fn recall(dir: &Path) -> Vec<Known> {
    let text = text_in_time(dir, SERVERS);
    let now = unix_time();
    let (mut servers, mut unread) = (Vec::new(), 0);
    for line in lines(&text) {
        let all = match serde_json::from_str(line) {
            Ok(Value::Array(all)) => {
                all.iter().map(|entry| known(entry, &older(entry), now)).collect()
            }
            Ok(entry) => vec![known(&entry, line, now)],
            Err(_) => vec![None],
        };
        unread += all.iter().filter(|known| known.is_none()).count();
        servers.extend(all.into_iter().flatten());
    }
    if unread > 0 {
        log::warn!("servers of an earlier run can't be read dir={dir:?} servers={unread}");
    }
    servers
}

/// An entry of older versions, whose file is one line, with its lists as a server writes them.
fn older(entry: &Value) -> String {
    json!({ "models": entry.get("models"), "data": entry.get("openai") }).to_string()
}

fn known(entry: &Value, line: &str, now: u64) -> Option<Known> {
    Some(Known {
        identity: member(entry, "identity").and_then(|text| Identity::parse(&text)),
        name: member(entry, "name")?,
        address: member(entry, "address")?.parse().ok()?,
        is_present: entry.get("present") != Some(&false.into()),
        had: had(entry, line, now),
    })
}

fn member(entry: &Value, name: &str) -> Option<String> {
    Some(cut(entry.get(name)?.as_str()?, MAX_TEXT).to_owned())
}

/// What an entry says that a server had, with its lists in `line`; nothing if an older version wrote
/// it.
fn had(entry: &Value, line: &str, now: u64) -> Option<Had> {
    entry.get("models")?.as_array()?;
    let models = Inventory::new([line, "", line], None);
    // A time that is still to come was told by a clock that wasn't set, or this one isn't: it counts
    // as now, and so does none.
    let stamp = entry.get("seen").and_then(Value::as_u64).filter(|stamp| *stamp >= EARLIEST);
    Some(Had {
        models: Arc::new(models),
        given: member(entry, "given").and_then(|text| parse_host_port(&text, 0).ok()),
        ago: Duration::from_secs(stamp.map_or(0, |stamp| now.saturating_sub(stamp))),
        stamp,
        is_newcomer: entry.get("new") == Some(&true.into()),
    })
}

fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// The text of a file; nothing if there is none yet.
fn text(dir: &Path, name: &str) -> io::Result<String> {
    match files::read(dir, &dir.join(name)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        // A line that nobody can read, and that isn't worth to be kept.
        Err(error) if error.kind() == ErrorKind::InvalidData => Ok("?".to_owned()),
        read => read,
    }
}

fn text_in_time(dir: &Path, name: &'static str) -> String {
    let owned = dir.to_owned();
    in_time(move || text(&owned, name)).unwrap_or_else(|error| {
        log::warn!("can't be read file={name} dir={dir:?} reason={error}");
        String::new()
    })
}

/// Hardware addresses by server: those of earlier runs, and those that were learned since.
#[derive(Debug)]
pub(crate) struct Macs {
    dir: PathBuf,
    keeper: Arc<Keeper>,
    number: u64,
    recalled: Vec<(String, Mac)>,
    learned: Mutex<Vec<(String, Mac)>>,
}

impl Macs {
    pub(crate) fn recall(dir: PathBuf, keeper: Arc<Keeper>) -> Self {
        let (number, recalled) = (keeper.enter(), macs(&text_in_time(&dir, WAKE)));
        Macs { dir, keeper, number, recalled, learned: Mutex::default() }
    }

    pub(super) fn of(&self, server: &str) -> Option<Mac> {
        let learned = lock(&self.learned);
        let mut all = learned.iter().chain(&self.recalled);
        all.find(|(name, _)| name == server).map(|(_, mac)| *mac)
    }

    /// Takes them over, and has all that were learned written down.
    pub(super) fn learn(&self, found: Vec<(String, Mac)>) {
        let mut learned = lock(&self.learned);
        put_all(&mut learned, found);
        let (dir, learned) = (self.dir.clone(), learned.clone());
        self.keeper.put((WAKE, self.number), move || {
            if let Err(error) = add_macs(&dir, learned) {
                log::warn!(
                    "hardware addresses not kept, try --state-dir dir={dir:?} reason={error}"
                );
            }
        });
    }
}

/// Others' stay: only the Keeper's thread changes the file.
fn add_macs(dir: &Path, learned: Vec<(String, Mac)>) -> io::Result<()> {
    let known = macs(&text(dir, WAKE)?);
    let mut all = known.clone();
    put_all(&mut all, learned);
    if all == known {
        return Ok(());
    }
    let map = Value::from_iter(all.iter().map(|(name, mac)| (&**name, mac.to_string())));
    replace(dir, &dir.join(WAKE), &map.to_string())
}

fn put_all(all: &mut Vec<(String, Mac)>, new: Vec<(String, Mac)>) {
    for (name, mac) in new {
        match all.iter_mut().find(|(known, _)| *known == name) {
            Some(known) => known.1 = mac,
            None => all.push((name, mac)),
        }
    }
}

fn macs(text: &str) -> Vec<(String, Mac)> {
    let map: Value = serde_json::from_str(text).unwrap_or_default();
    let mac = |(name, mac): (&String, &Value)| Some((name.clone(), mac.as_str()?.parse().ok()?));
    map.as_object().into_iter().flatten().filter_map(mac).collect()
}

#[cfg(test)]
mod tests;
