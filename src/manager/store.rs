//! What is remembered over restarts: the servers, and how to wake them.

use std::path::Path;

use serde_json::{Value, json};

use super::pool::Known;
use crate::config::Mac;
use crate::pairing::identity::Identity;
use crate::system::files::{self, replace};

/// Writes down which servers there are, for [`recall`]. Failing only costs the next start a moment.
pub(crate) fn remember(dir: &Path, servers: &[Known]) {
    let entry = |known: &Known| {
        json!({
            "address": known.address, "name": known.name, "present": known.is_present,
            "identity": known.identity.map(|identity| identity.to_string()),
        })
    };
    let list: Value = servers.iter().map(entry).collect();
    if let Err(error) = replace(dir, &dir.join("servers.json"), &list.to_string()) {
        log::debug!("servers not remembered dir={dir:?} reason={error}");
    }
}

/// The servers of earlier runs, in the order in which they were met.
pub(crate) fn recall(dir: &Path) -> Vec<Known> {
    let list = read(dir, "servers.json");
    let member = |entry: &Value, name: &str| Some(entry.get(name)?.as_str()?.to_owned());
    let server = |entry: &Value| {
        Some(Known {
            identity: member(entry, "identity").and_then(|text| Identity::parse(&text)),
            name: member(entry, "name")?,
            address: member(entry, "address")?.parse().ok()?,
            is_present: entry.get("present") != Some(&false.into()),
        })
    };
    list.as_array().into_iter().flatten().filter_map(server).collect()
}

fn read(dir: &Path, name: &str) -> Value {
    let text = files::read(dir, &dir.join(name)).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// Writes down the hardware addresses of servers, for [`recall_macs`].
pub(crate) fn remember_macs(dir: &Path, macs: &[(String, Mac)]) {
    let map = Value::from_iter(macs.iter().map(|(name, mac)| (&**name, mac.to_string())));
    if let Err(error) = replace(dir, &dir.join("wake.json"), &map.to_string()) {
        log::warn!("hardware addresses not kept, try --state-dir dir={dir:?} reason={error}");
    }
}

/// The hardware addresses that were kept, by server.
pub(crate) fn recall_macs(dir: &Path) -> Vec<(String, Mac)> {
    let map = read(dir, "wake.json");
    let mac = |(name, mac): (&String, &Value)| Some((name.clone(), mac.as_str()?.parse().ok()?));
    map.as_object().into_iter().flatten().filter_map(mac).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::system::random;

    #[test]
    fn servers_are_recalled_and_junk_is_not() {
        let dir = std::env::temp_dir().join(format!("ollana-state-{:?}", random::<8>().unwrap()));
        assert_eq!(recall(&dir), []);
        let known = |identity, is_present| Known {
            identity,
            name: "d\"esk".to_owned(),
            address: "10.0.0.7:11435".parse().unwrap(),
            is_present,
        };
        let servers = [known(Some(Identity([0xA7; 16])), true), known(None, false)];
        remember(&dir, &servers);
        assert_eq!(recall(&dir), servers);
        for junk in ["", "{}", "[{\"address\":\"x\",\"name\":\"\"}]", "[1]"] {
            fs::write(dir.join("servers.json"), junk).unwrap();
            assert_eq!(recall(&dir), [], "{junk}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
