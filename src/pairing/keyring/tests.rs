use std::fs;
use std::path::PathBuf;

use super::*;
use crate::net::os::loopback_pair;
use crate::pairing::key_files::update;
use crate::pairing::noise::{self, Introduction, Purpose};
use crate::pairing::peers;
use crate::system::random;

fn folder() -> PathBuf {
    std::env::temp_dir().join(format!("ollana-keys-{:?}", random::<8>().unwrap()))
}

fn machine(n: u8) -> Peer {
    let identity = Some(Identity([n; 16]));
    let (name, key) = (format!("m{n}"), Key::new([n; 32]));
    Peer { name, identity, key, added: 0, is_confirmed: true }
}

fn open(dir: &Path, unpaired: Option<bool>) -> Keyring {
    Keyring::open(Identity([0; 16]), Some(dir), None, unpaired).unwrap()
}

#[test]
fn a_key_file_is_a_peer() {
    let dir = folder();
    fs::create_dir(&dir).unwrap();
    let path = dir.join("secret");
    let open = || Keyring::open(Identity([0; 16]), None, Some(&path), None);
    assert!(open().is_err(), "a file that isn't there");
    fs::write(&path, "00".repeat(32)).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(open().unwrap_err().to_string().contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    assert_eq!(open().unwrap().keys(), [Key::new([0; 32])]);
    fs::write(&path, "hunter2").unwrap();
    assert!(open().unwrap_err().to_string().contains("32 bytes"));
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn keys_come_and_go_without_a_restart() {
    let dir = folder();
    let keyring = open(&dir, None);
    assert!(keyring.takes_unpaired());
    for n in [1, 2] {
        update(&dir, |peers| peers::add(peers, machine(n))).unwrap();
    }
    keyring.refresh();
    assert!(keyring.keys().len() == 2 && !keyring.takes_unpaired());
    let file = dir.join("keys/peers");
    fs::write(&file, "damaged").unwrap();
    keyring.refresh();
    assert_eq!(keyring.keys().len(), 2, "a damaged file opens no door");
    fs::remove_file(&file).unwrap();
    update(&dir, |peers| peers::add(peers, machine(2))).unwrap();
    keyring.refresh();
    assert_eq!(keyring.keys(), [machine(2).key]);
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn who_has_a_key_is_never_talked_to_in_clear() {
    let dir = folder();
    for n in [1, 2] {
        update(&dir, |peers| peers::add(peers, machine(n))).unwrap();
    }
    let address = "10.0.0.7:11435".parse().unwrap();
    for unpaired in [None, Some(false), Some(true)] {
        let keyring = open(&dir, unpaired);
        let attempt = keyring.keys_to_try(address);
        assert_eq!((attempt.keys.len(), attempt.then_plain), (2, unpaired == Some(true)));
        assert_eq!(keyring.keeps_plain(address, 0), unpaired == Some(true));
        assert_eq!(keyring.encrypts(address), (unpaired == Some(true)).then_some(false));
        keyring.note(address, Some(machine(2).id()));
        let attempt = keyring.keys_to_try(address);
        assert_eq!(attempt.keys, [machine(2).key, machine(1).key], "the likely one first");
        assert!(!attempt.then_plain);
        assert!(keyring.is_paired(Identity([9; 16]), address));
        assert!(keyring.is_paired(Identity([1; 16]), "10.0.0.8:1".parse().unwrap()));
        assert!(!keyring.is_paired(Identity([9; 16]), "10.0.0.8:1".parse().unwrap()));
        keyring.note(address, None);
        let attempt = keyring.keys_to_try(address);
        assert_eq!((attempt.keys.len(), attempt.then_plain), (2, false), "there is no way back");
        assert!(!keyring.keeps_plain(address, 0));
        let other = "10.0.0.9:11435".parse().unwrap();
        keyring.note(other, None);
        let attempt = keyring.keys_to_try(other);
        assert_eq!(attempt.then_plain, unpaired == Some(true));
        assert_eq!(attempt.keys.len(), if attempt.then_plain { 0 } else { 2 });
    }
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn no_flood_makes_us_forget_who_has_a_key() {
    let dir = folder();
    update(&dir, |peers| peers::add(peers, machine(1))).unwrap();
    let keyring = open(&dir, Some(true));
    let address = |n: usize| SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 11435));
    keyring.note(address(0), Some(machine(1).id()));
    for n in 1..3 * MAX_SERVERS {
        keyring.note(address(n), None);
    }
    assert!(!keyring.keys_to_try(address(0)).then_plain && !keyring.keeps_plain(address(0), 0));
    assert!(keyring.state().servers.len() <= MAX_SERVERS);
    for n in 0..MAX_SERVERS {
        keyring.note(address(n), Some(machine(1).id()));
    }
    keyring.note(address(MAX_SERVERS), Some(machine(1).id()));
    assert_eq!(keyring.state().servers.len(), MAX_SERVERS);
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_key_that_goes_during_a_handshake_is_missed() {
    let dir = folder();
    update(&dir, |peers| peers::add(peers, machine(1))).unwrap();
    let keyring = open(&dir, None);
    let stream = |key: Key| {
        let who = |n| Introduction::of(Identity([n; 16]));
        let (_, hello) = noise::initiate(Purpose::Requests, &key, &who(1)).unwrap();
        let (_, established) = noise::respond(Purpose::Requests, &key, &who(2), &hello).unwrap();
        let stream = Stream::new(loopback_pair().unwrap().0);
        stream.encrypt(established.session, key.id());
        Arc::new(stream)
    };
    assert!(keyring.watch(&stream(machine(1).key)));
    assert!(!keyring.watch(&stream(machine(2).key)), "nobody would cut it");
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_new_key_counts_beside_the_old_one_until_it_is_used() {
    let dir = folder();
    let again =
        |n: u8, key: u8| Peer { key: Key::new([key; 32]), is_confirmed: false, ..machine(n) };
    let address = "10.0.0.7:11435".parse().unwrap();
    // The first key of all: what was in clear stays so until the other machine has shown the key.
    update(&dir, |peers| peers::add(peers, again(1, 11))).unwrap();
    let keyring = open(&dir, None);
    assert!(keyring.has_keys() && keyring.takes_unpaired());
    assert!(!keyring.is_paired(Identity([1; 16]), address));
    assert!(keyring.keys_to_try(address).then_plain);
    keyring.note(address, None);
    assert_eq!(keyring.keys_to_try(address).keys.len(), 1, "it may have taken it up by now");
    assert_eq!(keyring.keys_to_try(address).keys.len(), 0, "but isn't asked each time");
    keyring.note(address, Some(again(1, 11).id()));
    assert!(!keyring.takes_unpaired() && keyring.is_paired(Identity([1; 16]), address));
    keyring.refresh();
    assert!(key_files::load(&dir).unwrap()[0].is_confirmed, "over restarts");
    // Pairing again.
    for key in [12, 13] {
        update(&dir, |peers| peers::add(peers, again(1, key))).unwrap();
    }
    update(&dir, |peers| peers::add(peers, machine(2))).unwrap();
    keyring.refresh();
    let tried = |keys: &[u8]| {
        let attempt = keyring.keys_to_try(address);
        assert_eq!(
            attempt.keys[..keys.len()],
            keys.iter().map(|n| Key::new([*n; 32])).collect::<Vec<_>>()
        );
        assert!(!attempt.then_plain);
    };
    tried(&[13, 12, 11]);
    tried(&[11]);
    keyring.note(address, Some(again(1, 12).id()));
    keyring.refresh();
    assert_eq!(keyring.keys(), [12, 13, 2].map(|n| Key::new([n; 32])));
    tried(&[13, 12]);
    tried(&[12]);
    fs::remove_dir_all(&dir).unwrap();
}
