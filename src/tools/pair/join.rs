//! The machine on which the code is typed: it looks for machines that show a code, and tries all of
//! them at once, so that machines which only pretend to show one keep nobody waiting.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::{CONFIRMED, HALF, KEPT, Own, STEP_TIMEOUT, keep};
use crate::config::{SERVER_PORT, parse_host_port};
use crate::discovery::{scan::Scan, schedule};
use crate::net::interfaces::{Interface, Subnets, broadcast_interfaces};
use crate::net::lane::Lane;
use crate::net::names;
use crate::pairing::noise::{Key, NoiseError, Purpose};
use crate::pairing::secure::{self, Hello, SecureError};
use crate::pairing::{code::PairingCode, key_files, peers::Peer, stream::Stream};
use crate::system;
use crate::tools::NAME_TIME;

/// How long further machines may answer after the first.
const MORE_ANSWERS: Duration = Duration::from_millis(250);
/// Machines that are tried at once, each with a thread and a descriptor.
const AT_ONCE: usize = 512;

pub(super) fn resolve(host: &str, port: u16) -> Result<SocketAddr, String> {
    let server = parse_host_port(host, port)?;
    names::resolve(&server.host, server.port, NAME_TIME).map(|all| all[0])
}

/// The machines that show a code: their addresses and names.
pub(super) fn search(
    interfaces: &[String],
    own: &Own,
    port: u16,
) -> Result<Vec<(SocketAddr, String)>, String> {
    let identity = own.introduction.identity;
    let mut interfaces = broadcast_interfaces(interfaces);
    interfaces.push(Interface::loopback());
    let (lanes, _) = Lane::open_all(&interfaces, port);
    let mut scan = Scan::new(&lanes, identity, &[], schedule::PAIR);
    let mut found: Vec<(SocketAddr, String)> = Vec::new();
    let mut copy = None;
    while let Some(answer) = scan.next() {
        let (ip, name) = (answer.address.ip(), answer.name);
        let is_known = found.iter().any(|(address, _)| *address == answer.address);
        if is_known || answer.identity.is_none() || !Subnets::now().contain(ip) {
            continue;
        }
        let name = if name.is_empty() { ip.to_string() } else { format!("{name} ({ip})") };
        if answer.identity == Some(identity) {
            let is_here = ip.is_loopback() || interfaces.iter().any(|it| it.address == ip);
            copy = copy.or_else(|| (!is_here).then_some(name));
            continue;
        }
        if found.is_empty() {
            scan.end_within(MORE_ANSWERS);
        }
        found.push((answer.address, name));
    }
    if let Some(name) = copy.filter(|_| found.is_empty()) {
        return Err(same_identity(&name));
    }
    if found.is_empty() {
        return Err("no machine here shows a code: run 'ollana pair' on the other one first.\n\
                    If it does, name its address: ollana pair CODE ADDRESS"
            .to_owned());
    }
    Ok(found)
}

/// Tries the code on all machines until one takes it. If none does, the error is that of the first
/// that could be asked.
pub(super) fn join_any(
    own: &Own,
    code: &PairingCode,
    machines: Vec<(SocketAddr, String)>,
) -> Result<Peer, String> {
    let key = code.key();
    let threads = machines.len().min(AT_ONCE);
    let (to_try, tries) = crossbeam_channel::unbounded();
    machines.into_iter().for_each(|machine| drop(to_try.send(machine)));
    drop(to_try);
    let (tried, results) = crossbeam_channel::unbounded();
    for at in 0..threads {
        let (own, key, tries, tried) = (own.clone(), key.clone(), tries.clone(), tried.clone());
        let work = move || {
            for (address, name) in tries {
                // Nobody listens any more once a machine has taken the code.
                if tried.send(join(&own, &key, address, &name)).is_err() {
                    return;
                }
            }
        };
        // With fewer threads it only takes longer.
        if let Err(error) = system::spawn("pair", work) {
            if at == 0 {
                return Err(format!("cannot start a thread: {error}"));
            }
            break;
        }
    }
    drop(tried);
    let (mut failures, mut unconfirmed) = (Vec::new(), None);
    for result in results {
        match result {
            Ok((peer, true)) => return Ok(peer),
            // A machine that was found in two networks gets a key on each way, and shows the one that
            // it has confirmed.
            Ok((peer, false)) => unconfirmed = unconfirmed.or(Some(peer)),
            Err(failure) => failures.push(failure),
        }
    }
    if let Some(peer) = unconfirmed {
        return Ok(peer);
    }
    failures.sort_by_key(|failure: &Failure| !failure.has_answered);
    Err(failures.into_iter().next().map_or_else(String::new, |failure| failure.text))
}

struct Failure {
    /// Whether the machine knows how to pair, so that its answer counts.
    has_answered: bool,
    text: String,
}

impl Failure {
    fn unasked(text: String) -> Self {
        Failure { has_answered: false, text }
    }

    fn answered(text: String) -> Self {
        Failure { has_answered: true, text }
    }
}

/// Pairs with one machine. Whether it has confirmed the key: both have it before, and if that is lost,
/// its first use confirms it.
fn join(own: &Own, key: &Key, address: SocketAddr, name: &str) -> Result<(Peer, bool), Failure> {
    let broken = |error| Failure::unasked(format!("cannot pair with {name}: {}", why(error)));
    let socket = TcpStream::connect_timeout(&address, STEP_TIMEOUT).map_err(&broken)?;
    socket.set_nonblocking(true).and_then(|()| socket.set_nodelay(true)).map_err(&broken)?;
    let stream = Stream::new(socket);
    let refused = |error| match error {
        SecureError::Handshake(NoiseError::OwnIdentity) => Failure::answered(same_identity(name)),
        SecureError::Connect(error) if !is_end(&error) => broken(error),
        _ => Failure::answered(format!(
            "{name} does not take this code:\nit is mistyped, used, or older than 3 minutes"
        )),
    };
    let me = &own.introduction;
    let peer =
        secure::initiate(&stream, Purpose::Pairing, Hello::Any, (key, me), STEP_TIMEOUT, None);
    let peer = peer.map_err(refused)?;
    let key = exchange_halves(&stream)
        .map_err(|error| Failure { has_answered: true, ..broken(error) })?;
    let peer = keep(own, peer, key).map_err(Failure::answered)?;
    let mut last = [0; CONFIRMED.len()];
    let is_confirmed = stream.write_all(KEPT, STEP_TIMEOUT).is_ok()
        && secure::receive(&stream, &mut last, STEP_TIMEOUT, None).is_ok()
        && last == CONFIRMED;
    if is_confirmed {
        key_files::confirm(&own.state_dir, vec![peer.id()]).map_err(Failure::answered)?;
    }
    Ok((peer, is_confirmed))
}

fn same_identity(name: &str) -> String {
    format!(
        "{name} has the identity of this machine.\nIf its disk is a copy of this one's, remove \
         identity-{SERVER_PORT} from the state\ndirectory of one of them, and start its ollana again"
    )
}

fn why(error: io::Error) -> String {
    match error.kind() {
        ErrorKind::TimedOut => "no answer in time".to_owned(),
        ErrorKind::ConnectionRefused => {
            "no code is shown there, run 'ollana pair' on it first".to_owned()
        }
        _ => error.to_string(),
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset)
}

fn exchange_halves(stream: &Stream) -> io::Result<Key> {
    let receive = |buffer: &mut [u8]| {
        secure::receive(stream, buffer, STEP_TIMEOUT, None).map_err(|(_, error)| error)
    };
    let (mut theirs, mut kept) = ([0; HALF], [0; KEPT.len()]);
    receive(&mut theirs)?;
    let half = system::random()?;
    stream.write_all(&half, STEP_TIMEOUT)?;
    receive(&mut kept)?;
    if kept != KEPT {
        return Err(NoiseError::Record.into());
    }
    Ok(Key::of_halves(&theirs, &half))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Instant;

    use super::super::show::Host;
    use super::*;
    use crate::pairing::identity::Identity;
    use crate::pairing::noise::Introduction;
    use crate::system::Hex;

    fn machine(n: u8) -> Own {
        let name = format!("ollana-pair-{}", Hex(&system::random::<8>().unwrap()));
        let introduction = Introduction::of(Identity([n; 16]));
        Own { state_dir: std::env::temp_dir().join(name), introduction }
    }

    #[test]
    fn a_thousand_that_pretend_to_show_a_code_hide_nobody() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let pretends = (silent.local_addr().unwrap(), "false".to_owned());
        let mut machines = vec![pretends; 1000];
        let (host, shows, types) = (Host::open(0).unwrap(), machine(1), machine(2));
        let code = PairingCode::new(*b"whatever");
        let typed = code.clone();
        let address = SocketAddr::from(([127, 0, 0, 1], host.port()));
        machines.insert(900, (address, "true".to_owned()));
        let start = Instant::now();
        let (shown, joined) = std::thread::scope(|scope| {
            let shown = scope.spawn(|| host.wait_for(&shows, &code, Duration::from_secs(20)));
            let joined = join_any(&types, &typed, machines);
            (shown.join().unwrap(), joined)
        });
        assert_eq!(shown.unwrap().id(), joined.unwrap().id());
        assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
        for own in [shows, types] {
            std::fs::remove_dir_all(own.state_dir).unwrap();
        }
    }

    /// As it is where both machines are in two networks.
    #[test]
    fn a_machine_that_is_found_twice_shows_the_same_key() {
        for _ in 0..5 {
            let (host, shows, types) = (Host::open(0).unwrap(), machine(1), machine(2));
            let code = PairingCode::new(*b"whatever");
            let at = |last| SocketAddr::from(([127, 0, 0, last], host.port()));
            let machines = vec![(at(1), "pi".to_owned()), (at(2), "pi".to_owned())];
            let (shown, joined) = std::thread::scope(|scope| {
                let shown = scope.spawn(|| host.wait_for(&shows, &code, Duration::from_secs(20)));
                let joined = join_any(&types, &code, machines);
                (shown.join().unwrap(), joined)
            });
            assert_eq!(shown.unwrap().id(), joined.unwrap().id());
            // The other way may still be at its end.
            for own in [shows, types] {
                let _ = std::fs::remove_dir_all(own.state_dir);
            }
        }
    }

    #[test]
    fn an_error_says_what_happened() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        drop(taken);
        let error =
            join_any(&machine(1), &PairingCode::new([0; 8]), vec![(address, "pi".to_owned())]);
        let expected = "cannot pair with pi: no code is shown there, run 'ollana pair' on it first";
        assert_eq!(error, Err(expected.to_owned()));
    }
}
