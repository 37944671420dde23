//! What is remembered over restarts: the servers, what they have, and how to wake them.
//!
//! `servers.json` is a list of objects, of which older versions know the first four members:
//! address, name, present, identity; given (as the user named it), seen (when it was last well, in
//! seconds since 1970), new (a newcomer then), models and openai (its lists, as it wrote them).

use std::io;
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
            self.keeper.put(("servers.json", 0), move || remember(&dir, &servers));
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
    let file = dir.join("servers.json");
    let now = unix_time();
    let list: Value = servers.iter().map(|known| entry(known, now)).collect();
    // Many changes come to the same, and disks don't last for ever.
    if is_same(&read(dir, "servers.json"), &list) {
        return Ok(());
    }
    replace(dir, &file, &list.to_string())
}

fn entry(known: &Known, now: u64) -> Value {
    let mut entry = json!({
        "address": known.address, "name": known.name, "present": known.is_present,
        "identity": known.identity.map(|identity| identity.to_string()),
    });
    if let Some(Had { models, given, ago, stamp, is_newcomer }) = &known.had {
        let list = |list| serde_json::from_str::<Value>(&merged(list, &[Arc::clone(models)]));
        let list = |of, member| list(of).map(|mut list| list[member].take()).unwrap_or_default();
        // What a clock that isn't set yet, or was set since, makes of it is no news.
        let seen = Some(now.saturating_sub(ago.as_secs())).filter(|_| now >= EARLIEST);
        entry["seen"] = seen.into_iter().chain(*stamp).min().into();
        entry["given"] = given.as_ref().map(ToString::to_string).into();
        entry["new"] = (*is_newcomer).into();
        entry["models"] = list(List::Tags, "models");
        entry["openai"] = list(List::OpenAi, "data");
    }
    entry
}

/// Whether two lists say the same, times apart.
fn is_same(old: &Value, new: &Value) -> bool {
    let (Some(old), Some(new)) = (old.as_array(), new.as_array()) else { return false };
    let split = |entry: &Value| {
        let mut entry = entry.clone();
        let seen = entry.as_object_mut().and_then(|entry| entry.remove("seen"));
        (entry, seen.and_then(|seen| seen.as_u64()).unwrap_or_default())
    };
    let same = |(old, new)| {
        let ((old, then), (new, now)) = (split(old), split(new));
        old == new && then.abs_diff(now) < SAME_TIME
    };
    old.len() == new.len() && old.iter().zip(new).all(same)
}

/// The servers of earlier runs, in the order in which they were met.
pub(crate) fn recall(dir: &Path) -> Vec<Known> {
    let list = read_in_time(dir, "servers.json");
    let now = unix_time();
    let known = |entry: &Value| {
        Some(Known {
            identity: member(entry, "identity").and_then(|text| Identity::parse(&text)),
            name: member(entry, "name")?,
            address: member(entry, "address")?.parse().ok()?,
            is_present: entry.get("present") != Some(&false.into()),
            had: had(entry, now),
        })
    };
    list.as_array().into_iter().flatten().filter_map(known).collect()
}

fn member(entry: &Value, name: &str) -> Option<String> {
    Some(cut(entry.get(name)?.as_str()?, MAX_TEXT).to_owned())
}

/// What an entry says that a server had; nothing if an older version wrote it.
fn had(entry: &Value, now: u64) -> Option<Had> {
    let list = |of: &str, member: &str| json!({ of: entry.get(member) }).to_string();
    entry.get("models")?.as_array()?;
    let models = Inventory::new([&list("models", "models"), "", &list("data", "openai")], None);
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

fn read(dir: &Path, name: &str) -> Value {
    let text = files::read(dir, &dir.join(name)).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

fn read_in_time(dir: &Path, name: &'static str) -> Value {
    let dir = dir.to_owned();
    in_time(move || Ok(read(&dir, name))).unwrap_or_default()
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
        let (number, recalled) = (keeper.enter(), macs(&read_in_time(&dir, "wake.json")));
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
        self.keeper.put(("wake.json", self.number), move || {
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
    let known = macs(&read(dir, "wake.json"));
    let mut all = known.clone();
    put_all(&mut all, learned);
    if all == known {
        return Ok(());
    }
    let map = Value::from_iter(all.iter().map(|(name, mac)| (&**name, mac.to_string())));
    replace(dir, &dir.join("wake.json"), &map.to_string())
}

fn put_all(all: &mut Vec<(String, Mac)>, new: Vec<(String, Mac)>) {
    for (name, mac) in new {
        match all.iter_mut().find(|(known, _)| *known == name) {
            Some(known) => known.1 = mac,
            None => all.push((name, mac)),
        }
    }
}

fn macs(map: &Value) -> Vec<(String, Mac)> {
    let mac = |(name, mac): (&String, &Value)| Some((name.clone(), mac.as_str()?.parse().ok()?));
    map.as_object().into_iter().flatten().filter_map(mac).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::system::random;

    fn folder() -> PathBuf {
        std::env::temp_dir().join(format!("ollana-state-{:?}", random::<8>().unwrap()))
    }

    fn inventory(models: &[&str]) -> Arc<Inventory> {
        let tags: Value = models
            .iter()
            .map(|name| json!({ "model": name, "size": 7, "details": {"parameter_size": "8B"} }))
            .collect();
        let openai: Value = models.iter().map(|name| json!({ "id": name })).collect();
        let (tags, openai) = (json!({ "models": tags }), json!({ "data": openai }));
        Arc::new(Inventory::new([&tags.to_string(), "", &openai.to_string()], None))
    }

    fn had(models: &[&str], ago: u64) -> Had {
        let given = Some(parse_host_port("nas:11434", 1).unwrap());
        let ago = Duration::from_secs(ago);
        Had { models: inventory(models), given, ago, stamp: None, is_newcomer: true }
    }

    fn known(identity: Option<Identity>, is_present: bool, had: Option<Had>) -> Known {
        let name = "d\"esk".to_owned();
        Known { identity, name, address: "10.0.0.7:11435".parse().unwrap(), is_present, had }
    }

    #[test]
    fn servers_are_recalled_and_junk_is_not() {
        let dir = folder();
        assert_eq!(recall(&dir), []);
        let servers = [known(Some(Identity([0xA7; 16])), true, None), known(None, false, None)];
        remember(&dir, &servers);
        assert_eq!(recall(&dir), servers);
        for junk in ["", "{}", "[{\"address\":\"x\",\"name\":\"\"}]", "[1]"] {
            fs::write(dir.join("servers.json"), junk).unwrap();
            assert_eq!(recall(&dir), [], "{junk}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_they_had_is_recalled_with_its_time() {
        let dir = folder();
        remember(&dir, &[known(None, false, Some(had(&["a", "b"], 5000)))]);
        let recalled = recall(&dir).remove(0).had.expect("what it had");
        assert!((5000..5010).contains(&recalled.ago.as_secs()), "{:?}", recalled.ago);
        let stamp = recalled.stamp.expect("a time");
        let models = recalled.models.models();
        assert_eq!(
            (models[0].label.as_str(), models[0].size, models[1].label.as_str()),
            ("a", 7, "b")
        );
        assert_eq!(merged(List::OpenAi, &[recalled.models]).matches("\"id\"").count(), 2);
        assert!(recalled.is_newcomer && recalled.given.is_some_and(|given| given.host == "nas"));
        // Recalled by a machine whose clock stands in 1970, and written down again.
        let entry = entry(&known(None, false, Some(Had { stamp: Some(stamp), ..had(&[], 0) })), 60);
        assert_eq!(entry["seen"], stamp);
        // Written by a clock that ran ahead, or wasn't set.
        for wrong in ["99999999999", "60", "-1", "null", "\"x\"", "1e300"] {
            let text = fs::read_to_string(dir.join("servers.json")).unwrap();
            let text = text.replace(&stamp.to_string(), wrong);
            fs::write(dir.join("servers.json"), text).unwrap();
            let had = recall(&dir).remove(0).had.expect("what it had");
            assert_eq!(had.ago, Duration::ZERO, "{wrong} counts as now");
            remember(&dir, &[known(None, false, Some(Had { stamp: Some(stamp), ..had }))]);
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn hardware_addresses_of_all_who_learn_are_kept() {
        let dir = folder();
        let keeper = Keeper::start().unwrap();
        let all: Vec<Macs> =
            (0..2).map(|_| Macs::recall(dir.clone(), Arc::clone(&keeper))).collect();
        std::thread::scope(|scope| {
            for n in 0..16u8 {
                let macs = &all[usize::from(n % 2)];
                scope.spawn(move || {
                    macs.learn(vec![("moved".to_owned(), Mac([n; 6]))]);
                    macs.learn(vec![(n.to_string(), Mac([n; 6]))]);
                });
            }
        });
        assert_eq!(all[1].of("7"), Some(Mac([7; 6])));
        drop((all, keeper));
        let macs = Macs::recall(dir.clone(), Keeper::start().unwrap());
        for n in 0..16 {
            assert_eq!(macs.of(&n.to_string()), Some(Mac([n; 6])));
        }
        assert!(macs.of("moved").is_some());
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_daemon_that_came_last_is_remembered() {
        let dir = folder();
        let keeper = Keeper::start().unwrap();
        let memory = || Memory::new(dir.clone(), Arc::clone(&keeper));
        let (old, new) = (memory(), memory());
        new.keep(vec![known(None, true, None)]);
        old.keep(Vec::new());
        drop((old, new, keeper));
        assert_eq!(recall(&dir), [known(None, true, None)]);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_disk_is_spared() {
        let dir = folder();
        let file = dir.join("servers.json");
        let write = |models: &[&str], ago| {
            remember(&dir, &[known(None, true, Some(had(models, ago)))]);
            files::stamp(&file)
        };
        let first = write(&["a"], 0);
        assert_eq!(write(&["a"], 300), first, "nothing but the time has changed");
        assert_ne!(write(&["a"], 700), first);
        let second = write(&["a"], 700);
        assert_ne!(write(&["a", "b"], 700), second);
        fs::remove_dir_all(&dir).unwrap();
    }
}
