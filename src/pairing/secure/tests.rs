use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
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
