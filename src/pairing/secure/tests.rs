use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::thread;

use super::*;
use crate::pairing::identity::Identity;
use crate::pairing::key_files::update;
use crate::pairing::peers::{self, Peer};
use crate::system::random;

const PATIENCE: Duration = Duration::from_secs(2);

/// A machine with keys of so many others, which all have been used.
struct Machine {
    dir: PathBuf,
}

impl Machine {
    fn with_keys(numbers: impl Iterator<Item = u8>) -> Self {
        let dir = std::env::temp_dir().join(format!("ollana-secure-{:?}", random::<8>().unwrap()));
        for n in numbers {
            let (name, identity) = (format!("m{n}"), Some(Identity([n; 16])));
            let key = Key::new([n; 32]);
            let peer = Peer { name, identity, key, added: 0, is_confirmed: true };
            update(&dir, |all| peers::add(all, peer)).unwrap();
        }
        Machine { dir }
    }

    fn keyring(&self, unpaired: Option<bool>) -> Keyring {
        Keyring::open(Identity(random().unwrap()), Some(&self.dir), None, unpaired).unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A server that does the same with every connection.
fn serve(each: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let each = each.clone();
            thread::spawn(move || each(stream));
        }
    });
    address
}

fn try_at(keyring: &Keyring, address: SocketAddr) -> Result<Arc<Stream>, SecureError> {
    connect(keyring, address, PATIENCE, None, None)
}

#[test]
fn a_server_without_handshakes_is_known_by_the_first_one() {
    // As Go's server, it waits for a whole line.
    let address = serve(|stream| {
        let mut line = Vec::new();
        let heard = BufReader::new(&stream).read_until(b'\n', &mut line);
        if heard.is_ok() && line.ends_with(b"\n") {
            let _ = (&stream).write_all(
                b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
                  Connection: close\r\n\r\n400 Bad Request",
            );
        }
    });
    let machine = Machine::with_keys(1..=3);
    for _ in 0..40 {
        let refused = try_at(&machine.keyring(None), address).unwrap_err();
        assert!(matches!(refused, SecureError::NotPaired), "{refused:?}");
        let stream = try_at(&machine.keyring(Some(true)), address).unwrap();
        assert!(stream.key().is_none(), "in clear");
    }
}

#[test]
fn a_server_that_is_full_is_not_taken_for_one_without_handshakes() {
    let machine = Machine::with_keys(1..=3);
    for (head, told) in [
        ("HTTP/1.1 503 Service Unavailable\r\nX-Ollana-Error: full", "no room"),
        ("HTTP/1.1 429 Too Many Requests\r\nX-Ollana-Error: full", "no room"),
        ("HTTP/1.0 502 Bad Gateway", "status 502"),
        ("HTTP/1.1 200 OK", "status 200"),
        ("HTTP/1.", "unexpected end"),
    ] {
        let address = serve(move |mut stream| {
            let _ = stream.write_all(format!("{head}\r\nContent-Length: 0\r\n\r\n").as_bytes());
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        });
        for unpaired in [None, Some(true)] {
            let keyring = machine.keyring(unpaired);
            let refused = try_at(&keyring, address).unwrap_err().to_string();
            assert!(refused.contains(told), "{head}: {refused}");
            // Nothing is remembered: next time, its keys are tried again.
            assert_eq!(keyring.keys_to_try(address).keys.len(), 3, "{head}");
        }
    }
}

#[test]
fn a_server_that_keeps_this_address_out_is_not_said_to_have_another_key() {
    let machine = Machine::with_keys(1..=3);
    let resets = serve(|stream| socket::reset_on_close(&stream));
    let refuses = serve(|mut stream| drop(stream.read_exact(&mut [0; 77])));
    for _ in 0..20 {
        let keyring = machine.keyring(None);
        let refused = try_at(&keyring, resets).unwrap_err();
        assert!(matches!(refused, SecureError::Reset), "{refused:?}");
        let refused = try_at(&keyring, refuses).unwrap_err();
        assert!(matches!(refused, SecureError::KeyRefused), "{refused:?}");
    }
}

#[test]
fn of_many_keys_each_gets_its_turn_before_anything_goes_in_clear() {
    const KEYS: u8 = 40;
    let here = Machine::with_keys(1..=KEYS);
    for (unpaired, theirs) in [(None, 1), (Some(true), 1), (Some(true), 20), (Some(true), KEYS)] {
        let there = Machine::with_keys(theirs..=theirs);
        let keyring = Arc::new(there.keyring(Some(false)));
        let address = serve(move |socket| {
            socket.set_nonblocking(true).unwrap();
            let stream = Arc::new(Stream::new(socket));
            let _ = accept(&keyring, &stream, PATIENCE);
        });
        let keyring = here.keyring(unpaired);
        let stream = (0..3).find_map(|_| try_at(&keyring, address).ok()).expect("a key that fits");
        assert_eq!(stream.key(), Some(Key::new([theirs; 32]).id()), "{unpaired:?} {theirs}");
    }
    // One that has none of them is talked to in clear, where that may be, once it has refused all.
    let refuses = serve(|mut stream| drop(stream.read_exact(&mut [0; 77])));
    for unpaired in [None, Some(true)] {
        let keyring = here.keyring(unpaired);
        let is_plain: Vec<bool> = (0..5).map(|_| try_at(&keyring, refuses).is_ok()).collect();
        let may_be = unpaired == Some(true);
        assert_eq!(is_plain, [false, false, may_be, may_be, may_be], "{unpaired:?}");
    }
}
