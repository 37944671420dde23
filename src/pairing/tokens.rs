//! Tokens: what devices that can't run ollana send instead of having a key. And the file of those
//! that are valid, `tokens/list` below the state directory.
//!
//! ```text
//! {"tokens":[{"name":"phone","check":"…32 digits","added":1795392000}]}
//! ```
//!
//! It has a keyed hash of each, from which nobody gets the token: that is 128 random bits. Where the
//! file is gone or can't be read, no token is valid.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use crate::pairing::key_files::{self, unusable};
use crate::pairing::noise::Key;
use crate::system::files::{self, Stamp};
use crate::system::{Hex, lock, parse_hex, random};

/// How each begins, so that the tokens of other programs are not taken for ours.
pub(crate) const PREFIX: &str = "ollana-";
const MAX_TOKENS: usize = 64;
/// Characters of a name: it is a label of the metrics, and a column of a table.
const MAX_NAME: usize = 32;
/// Wrong tokens of one address within this time; after that, its tokens are not looked at until the
/// time is up.
const MAX_WRONG: usize = 10;
const WRONG_TIME: Duration = Duration::from_secs(60);
/// Addresses whose wrong tokens are counted at a time.
const MAX_SOURCES: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) name: String,
    check: [u8; 16],
    /// In seconds since 1970 by this machine's clock.
    pub(crate) added: u64,
}

/// Whether a token may be called so.
pub(crate) fn is_name(name: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_first = |byte: &u8| byte.is_ascii_alphanumeric();
    name.len() <= MAX_NAME
        && name.bytes().all(is_part)
        && name.as_bytes().first().is_some_and(is_first)
}

fn file_in(state_dir: &Path) -> PathBuf {
    state_dir.join("tokens/list")
}

fn parse(text: &str) -> Option<Vec<Token>> {
    let root: Value = serde_json::from_str(text).ok()?;
    let token = |entry: &Value| {
        let name = entry["name"].as_str().filter(|name| is_name(name))?.to_owned();
        let check = parse_hex(entry["check"].as_str()?)?;
        Some(Token { name, check, added: entry["added"].as_u64()? })
    };
    root["tokens"].as_array()?.iter().map(token).collect()
}

fn format(tokens: &[Token]) -> String {
    let line = |token: &Token| {
        let check = Hex(&token.check).to_string();
        json!({"name": token.name, "check": check, "added": token.added}).to_string()
    };
    let lines: Vec<String> = tokens.iter().map(line).collect();
    format!("{{\"tokens\":[\n{}\n]}}", lines.join(",\n"))
}

fn load_from(path: &Path) -> Result<Vec<Token>, String> {
    let Some(text) = key_files::read_in_private(path)? else { return Ok(Vec::new()) };
    parse(&text).ok_or_else(|| unusable(path)("damaged, no list of tokens"))
}

pub(crate) fn load(state_dir: &Path) -> Result<Vec<Token>, String> {
    let path = file_in(state_dir);
    files::as_owner_of(state_dir, || load_from(&path)).map_err(unusable(&path))?
}

fn update<T>(
    state_dir: &Path,
    change: impl FnOnce(&mut Vec<Token>) -> Result<T, String>,
) -> Result<T, String> {
    let path = file_in(state_dir);
    let change = || {
        let folder = path.parent().unwrap_or(state_dir);
        let _lock = key_files::lock(folder).map_err(unusable(&path))?;
        let mut tokens = load_from(&path)?;
        let result = change(&mut tokens)?;
        files::replace(state_dir, &path, &format(&tokens)).map_err(unusable(&path))?;
        Ok(result)
    };
    files::as_owner_of(state_dir, change).map_err(unusable(&path))?
}

/// Makes a token and keeps what checks it. The result is the only place where it is told.
pub(crate) fn add(state_dir: &Path, name: &str) -> Result<String, String> {
    let random = random::<16>().map_err(|error| format!("no random bytes: {error}"))?;
    let secret = format!("{PREFIX}{}", Hex(&random));
    let check = Key::of_token(&secret).authenticate(name.as_bytes());
    let added = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs());
    update(state_dir, |tokens| {
        if tokens.iter().any(|token| token.name == name) {
            return Err(format!(
                "there is a token called {name} already, and it is not shown again; for a new one, \
                 first: ollana token remove {name}"
            ));
        }
        if tokens.len() >= MAX_TOKENS {
            return Err(format!("there are {MAX_TOKENS} tokens, and there may be no more"));
        }
        tokens.push(Token { name: name.to_owned(), check, added });
        Ok(secret)
    })
}

/// Whether there was such a token.
pub(crate) fn remove(state_dir: &Path, name: &str) -> Result<bool, String> {
    update(state_dir, |tokens| {
        let before = tokens.len();
        tokens.retain(|token| token.name != name);
        Ok(tokens.len() < before)
    })
}

/// What a token that was sent is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Worth {
    Valid,
    Wrong,
    /// It was not looked at: too many wrong ones came from its address.
    Unknown,
}

/// A token and what came with it since the start.
#[derive(Clone, Debug)]
pub(crate) struct InUse {
    pub(crate) token: Token,
    pub(crate) requests: u64,
    pub(crate) last: Option<Instant>,
}

/// The tokens of a running daemon.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    state_dir: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tokens: Vec<InUse>,
    stamp: Option<Stamp>,
    has_complained: bool,
    wrong: HashMap<IpAddr, Guesses>,
}

/// The wrong tokens that came from an address.
#[derive(Debug)]
struct Guesses {
    /// A hash of each; one that is shown again and again, by a device that has it from before, is one.
    seen: Vec<[u8; 16]>,
    since: Instant,
}

impl Guesses {
    fn is_recent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < WRONG_TIME
    }
}

impl Tokens {
    /// Those of the file, for a start that must not wait for ever.
    pub(super) fn open(state_dir: Option<PathBuf>) -> Self {
        let new = |state_dir| Tokens { state_dir, ..Tokens::default() };
        let tokens = new(state_dir.clone());
        let read = files::in_time(move || {
            tokens.refresh();
            Ok(tokens)
        });
        read.unwrap_or_else(|_| new(state_dir))
    }

    /// Reads the file again if it has changed.
    pub(super) fn refresh(&self) {
        let Some(dir) = &self.state_dir else { return };
        let stamp = files::stamp(&file_in(dir));
        if lock(&self.state).stamp == stamp {
            return;
        }
        let read = load(dir);
        let mut state = lock(&self.state);
        match read {
            Ok(tokens) => {
                let known = std::mem::take(&mut state.tokens);
                let taken = tokens.into_iter().map(|token| {
                    let known = known.iter().find(|known| known.token == token).cloned();
                    known.unwrap_or(InUse { token, requests: 0, last: None })
                });
                state.tokens = taken.collect();
                log::info!("tokens taken up count={}", state.tokens.len());
                state.stamp = stamp;
                state.has_complained = false;
            }
            // The present ones stay; the next call reads again.
            Err(error) => {
                if !std::mem::replace(&mut state.has_complained, true) {
                    log::error!("tokens not taken up: {error}");
                }
            }
        }
    }

    /// All of them, with what they were used for.
    pub(crate) fn all(&self) -> Vec<InUse> {
        lock(&self.state).tokens.clone()
    }

    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.state).tokens.is_empty()
    }

    /// Judges a token that came from this address, and counts it. Takes the same time for every wrong
    /// one of its length.
    pub(crate) fn judge(&self, now: Instant, from: IpAddr, shown: &str) -> Worth {
        let mut state = lock(&self.state);
        let State { tokens, wrong, .. } = &mut *state;
        if wrong.get(&from).is_some_and(|it| it.seen.len() >= MAX_WRONG && it.is_recent(now)) {
            return Worth::Unknown;
        }
        let key = Key::of_token(shown);
        let mut found = None;
        for known in tokens.iter_mut() {
            if key.verifies(known.token.name.as_bytes(), &known.token.check) {
                found = Some(known);
            }
        }
        if let Some(known) = found {
            known.requests += 1;
            known.last = Some(now);
            return Worth::Valid;
        }
        if wrong.len() >= MAX_SOURCES {
            wrong.retain(|_, guesses| guesses.is_recent(now));
        }
        // Who has more addresses than that is not held up by counting.
        if wrong.len() < MAX_SOURCES || wrong.contains_key(&from) {
            let hash = key.authenticate(b"wrong");
            let first = || Guesses { seen: Vec::new(), since: now };
            let guesses = wrong.entry(from).or_insert_with(first);
            if !guesses.is_recent(now) {
                *guesses = first();
            }
            if !guesses.seen.contains(&hash) {
                guesses.seen.push(hash);
            }
        }
        Worth::Wrong
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn folder() -> PathBuf {
        std::env::temp_dir().join(format!("ollana-tokens-{}", Hex(&random::<8>().unwrap())))
    }

    #[test]
    fn names_are_short_and_plain() {
        let long = "x".repeat(MAX_NAME);
        for name in ["phone", "7", "TV-box_2.1", &long] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "-h", ".", "my phone", "ä", "a\n", "a/b", "a\"b", &format!("{long}x")] {
            assert!(!is_name(name), "{name:?}");
        }
    }

    #[test]
    fn tokens_are_kept_as_hashes_for_nobody_else() {
        let dir = folder();
        assert_eq!(load(&dir), Ok(Vec::new()));
        let phone = add(&dir, "phone").unwrap();
        assert!(phone.len() == PREFIX.len() + 32 && phone.starts_with(PREFIX), "{phone}");
        assert!(add(&dir, "phone").unwrap_err().contains("ollana token remove phone"));
        assert_ne!(add(&dir, "tv").unwrap(), phone);
        let text = fs::read_to_string(file_in(&dir)).unwrap();
        assert!(!text.contains(&phone[PREFIX.len()..]), "{text}");
        assert_eq!(parse(&text).unwrap(), load(&dir).unwrap());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!((mode(&file_in(&dir)), mode(&dir.join("tokens"))), (0o600, 0o700));
            fs::set_permissions(file_in(&dir), fs::Permissions::from_mode(0o644)).unwrap();
            assert!(load(&dir).unwrap_err().contains("chmod 600"));
            fs::set_permissions(file_in(&dir), fs::Permissions::from_mode(0o600)).unwrap();
        }
        assert_eq!((remove(&dir, "phone"), remove(&dir, "phone")), (Ok(true), Ok(false)));
        assert_eq!(load(&dir).unwrap().len(), 1);
        for n in 1..MAX_TOKENS {
            add(&dir, &n.to_string()).unwrap();
        }
        assert!(add(&dir, "more").unwrap_err().contains("no more"));
        assert!(!dir.join("keys").exists(), "no key is missed because of a token");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn damage_is_never_overwritten() {
        let dir = folder();
        add(&dir, "phone").unwrap();
        let text = fs::read_to_string(file_in(&dir)).unwrap();
        for (part, other) in
            [("phone", ""), ("\"check\":\"", "\"check\":\"0"), ("tokens", "x"), ("]}", "")]
        {
            let damaged = text.replacen(part, other, 1);
            fs::write(file_in(&dir), &damaged).unwrap();
            assert!(load(&dir).unwrap_err().contains("damaged"), "{damaged}");
            assert!(add(&dir, "tv").is_err() && remove(&dir, "phone").is_err());
            assert_eq!(fs::read_to_string(file_in(&dir)).unwrap(), damaged);
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_running_daemon_takes_them_up_and_counts_them() {
        let (dir, now) = (folder(), Instant::now());
        let from = IpAddr::from([10, 0, 0, 1]);
        let tokens = Tokens::open(Some(dir.clone()));
        assert!(tokens.is_empty());
        let [phone, tv] = ["phone", "tv"].map(|name| add(&dir, name).unwrap());
        assert_eq!(tokens.judge(now, from, &phone), Worth::Wrong, "not yet");
        tokens.refresh();
        for shown in [&phone, &phone, &tv] {
            assert_eq!(tokens.judge(now, from, shown), Worth::Valid);
        }
        for shown in ["", PREFIX, &phone[..phone.len() - 1], &phone.to_uppercase()] {
            assert_eq!(tokens.judge(now, from, shown), Worth::Wrong, "{shown}");
        }
        remove(&dir, "tv").unwrap();
        tokens.refresh();
        assert_eq!(tokens.judge(now, from, &tv), Worth::Wrong);
        let all = tokens.all();
        assert_eq!((all.len(), all[0].requests, all[0].last), (1, 2, Some(now)), "still counted");
        // A new token of the same name has nothing of the old one.
        remove(&dir, "phone").unwrap();
        let new = add(&dir, "phone").unwrap();
        tokens.refresh();
        assert_eq!(tokens.judge(now, from, &phone), Worth::Wrong);
        assert_eq!(tokens.judge(now, from, &new), Worth::Valid);
        fs::write(file_in(&dir), "{").unwrap();
        tokens.refresh();
        assert_eq!(
            tokens.judge(now, from, &new),
            Worth::Valid,
            "what can't be read changes nothing"
        );
        assert!(Tokens::open(Some(dir.clone())).is_empty(), "but nobody starts with it");
        fs::remove_dir_all(&dir).unwrap();
        tokens.refresh();
        assert!(tokens.is_empty(), "a file that is gone lets nobody in");
    }

    #[test]
    fn guessing_is_slow_and_holds_up_nobody_else() {
        let (dir, t0) = (folder(), Instant::now());
        let phone = add(&dir, "phone").unwrap();
        let tokens = Tokens::open(Some(dir.clone()));
        let ip = |n: u32| IpAddr::from(n.to_be_bytes());
        // Programs of a device that was given no new tokens try their old ones again and again.
        for n in 0..4 * MAX_WRONG {
            assert_eq!(tokens.judge(t0, ip(1), &format!("ollana-old-{}", n % 2)), Worth::Wrong);
        }
        for n in 2..MAX_WRONG {
            assert_eq!(tokens.judge(t0, ip(1), &format!("ollana-{n}")), Worth::Wrong);
        }
        assert_eq!(tokens.judge(t0, ip(1), &phone), Worth::Unknown, "not even the right one");
        assert_eq!(tokens.judge(t0, ip(2), &phone), Worth::Valid);
        assert_eq!(tokens.judge(t0 + WRONG_TIME, ip(1), &phone), Worth::Valid);
        assert_eq!(tokens.judge(t0 + WRONG_TIME, ip(1), "ollana-0"), Worth::Wrong);
        for n in 0..2 * MAX_SOURCES as u32 {
            tokens.judge(t0 + WRONG_TIME, ip(n), "ollana-0");
        }
        assert_eq!(lock(&tokens.state).wrong.len(), MAX_SOURCES);
        fs::remove_dir_all(&dir).unwrap();
    }
}
