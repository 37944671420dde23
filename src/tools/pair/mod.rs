//! `ollana pair`: one machine shows a code, on the other one it is typed, and both have a key.
//!
//! ```text
//!  ollana pair CODE ── "who shows a code?" ── UDP broadcast ──► ollana pair
//!       │          ◄── announcement, from where it is reached ──    │
//!       └── TCP: handshake with the code as key, half a key ──►     │
//!                ◄── half a key; "kept" ────────────────────────────┘
//! ```
//!
//! It uses a port of its own, three above the discovery's, so it works whether ollana runs or not.
//! A running one takes the key up by itself.

mod host;

use crate::serve::state_dir;
use crate::system;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::state_dir;
use crate::cli::Tool;
use crate::config::{DISCOVERY_PORT, SERVER_PORT, Settings, parse_host_port};
use crate::discovery::scan::{Answer, Scan};
use crate::discovery::schedule;
use crate::net::interfaces::{Interface, Subnets, broadcast_interfaces};
use crate::net::lane::Lane;
use crate::pairing::code::Code;
use crate::pairing::identity::Identity;
use crate::pairing::keyring::{self, KeysError};
use crate::pairing::noise::{self, Broken, Greeted, Introduction, Key, OVERHEAD, Purpose, Session};
use crate::pairing::peers::{self, Peer};
use crate::serve::host_name;

/// From the discovery's port to that of pairing; those between are taken.
const PORT_STEP: u16 = 3;
/// How often somebody may get the code wrong.
const TRIES: u32 = 5;
/// For each message of somebody who pairs, and for whoever only connects.
const STEP: Duration = Duration::from_secs(3);
/// The length of half a key.
const HALF: usize = 32;
/// Further machines that show a code are waited for so long.
const OTHERS: Duration = Duration::from_millis(250);
/// What ends an exchange well.
const KEPT: &[u8] = b"kept";

/// Why two machines aren't paired.
pub(super) enum Problem {
    /// No place to keep keys, or it can't be used.
    Keys(KeysError),
    /// Where keys are kept can't be told, or not by this user.
    Place(String),
    /// What was typed is no code.
    NoCode(String),
    /// Another `ollana pair` has the port.
    Busy(u16),
    /// Nobody typed the code in time.
    Expired,
    /// It was typed wrong too often.
    Guessed,
    /// No machine shows a code.
    Nobody,
    /// The other machine doesn't know this code.
    Refused(String),
    /// Something of the system or the network.
    Failed(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Keys(error) => write!(f, "{error}"),
            Problem::Place(what) | Problem::Failed(what) => f.write_str(what),
            Problem::NoCode(text) => {
                write!(f, "{text:?} is not a code; they look like k7pm2-xvd9q")
            }
            Problem::Busy(port) => {
                write!(f, "port {port} is taken: another 'ollana pair' waits here; end it first")
            }
            Problem::Expired => {
                write!(f, "nobody typed the code in time; run it again for a new one")
            }
            Problem::Guessed => {
                write!(f, "the code was typed wrong {TRIES} times; run it again for a new one")
            }
            Problem::Nobody => write!(
                f,
                "no machine here shows a code: run 'ollana pair' on the other one first.\n\
                 If it does, name its address: ollana pair CODE ADDRESS"
            ),
            Problem::Refused(name) => {
                write!(
                    f,
                    "{name} does not take this code:\n\
                 it is mistyped, used, or older than 3 minutes"
                )
            }
        }
    }
}

fn failed(what: &str) -> impl Fn(io::Error) -> Problem {
    move |error| Problem::Failed(format!("{what}: {error}"))
}

/// What this machine brings to a pair.
struct Own {
    state_dir: PathBuf,
    introduction: Introduction,
}

/// Runs the command.
///
/// # Errors
/// [`Problem`] says why there is no new key.
pub(super) fn run(tool: &Tool) -> Result<(), Problem> {
    let settings = &tool.settings;
    let state_dir = state_dir(settings).map_err(Problem::Place)?;
    // What can't be kept is better said before than after.
    keyring::update(&state_dir, |_| Ok(())).map_err(Problem::Keys)?;
    let identity = machine(&state_dir).map_err(failed("cannot make an identity"))?;
    let introduction = Introduction { name: host_name(), ..Introduction::of(identity) };
    let own = Own { state_dir, introduction };
    let port = match settings.discovery_port {
        0 => DISCOVERY_PORT,
        port => port,
    };
    let port = port.saturating_add(PORT_STEP);
    let peer = match &tool.operands[..] {
        [] => host::Host::open(port)?.show(&own, host::LIFE)?,
        [typed, rest @ ..] => {
            let typed = if typed == "-" { ask_for_code()? } else { typed.clone() };
            let code = Code::parse(&typed).ok_or(Problem::NoCode(typed))?;
            let found = match rest.first() {
                Some(host) => vec![(name_address(host, port)?, host.clone())],
                None => search(settings, &own, port)?,
            };
            join_any(&own, &code, &found)?
        }
    };
    let (id, name) = (peer.id(), peer.name);
    println!("paired with {name}, key {id}");
    println!("Both machines show the same key. A running ollana takes it up by itself.");
    Ok(())
}

/// Who this machine is among paired ones: the identity of the server on the usual port.
fn machine(state_dir: &Path) -> io::Result<Identity> {
    state_dir::identity(Some(state_dir), SERVER_PORT)
}

fn ask_for_code() -> Result<String, Problem> {
    print!("code: ");
    let mut line = String::new();
    let read = io::stdout().flush().and_then(|()| io::stdin().read_line(&mut line));
    read.map_err(failed("cannot read the code"))?;
    Ok(line.trim().to_owned())
}

fn name_address(host: &str, port: u16) -> Result<SocketAddr, Problem> {
    let server = parse_host_port(host, port).map_err(Problem::Failed)?;
    let mut addresses = (server.host.as_str(), server.port)
        .to_socket_addrs()
        .map_err(failed(&format!("can't resolve {host}")))?;
    addresses.next().ok_or_else(|| Problem::Failed(format!("{host} has no address")))
}

/// Adds the new peer to those that are kept.
fn keep(own: &Own, peer: &Introduction, key: Key) -> Result<Peer, Problem> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let mut peer = Peer { name: peer.name.clone(), identity: Some(peer.identity), key, added: now };
    let add = |list: &mut Vec<Peer>| peers::add(list, peer.clone());
    peer.name = keyring::update(&own.state_dir, add).map_err(Problem::Keys)?;
    Ok(peer)
}

/// A connection behind the handshake.
struct Talk {
    stream: TcpStream,
    session: Session,
}

impl Talk {
    fn say(&mut self, plain: &[u8]) -> io::Result<()> {
        self.stream.write_all(&seal(&mut self.session, plain)?)
    }

    fn hear<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut record = vec![0; N + OVERHEAD];
        self.stream.read_exact(&mut record)?;
        open(&mut self.session, &mut record)
    }
}

fn seal(session: &mut Session, plain: &[u8]) -> io::Result<Vec<u8>> {
    let mut record = vec![0; plain.len() + OVERHEAD];
    session.seal(plain, &mut record).map_err(broken)?;
    Ok(record)
}

fn open<const N: usize>(session: &mut Session, record: &mut [u8]) -> io::Result<[u8; N]> {
    if Session::record_len(record) != Some(record.len()) {
        return Err(broken(Broken::Record));
    }
    let plain = session.open(record).map_err(broken)?;
    record[plain].try_into().map_err(|_| broken(Broken::Record))
}

fn broken(error: Broken) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error.to_string())
}

fn make_steps_short(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(STEP))?;
    stream.set_write_timeout(Some(STEP))
}

/// However slowly the bytes come, it takes no longer.
fn read_within(stream: &mut TcpStream, buffer: &mut [u8], time: Duration) -> io::Result<()> {
    let deadline = Instant::now() + time;
    let mut filled = 0;
    while filled < buffer.len() {
        if Instant::now() >= deadline {
            return Err(ErrorKind::TimedOut.into());
        }
        match stream.read(&mut buffer[filled..])? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            n => filled += n,
        }
    }
    Ok(())
}

/// Looks for machines that show a code: where they are, and their names.
fn search(settings: &Settings, own: &Own, port: u16) -> Result<Vec<(SocketAddr, String)>, Problem> {
    let identity = own.introduction.identity;
    let mut interfaces = broadcast_interfaces(&settings.interfaces);
    interfaces.push(Interface::loopback());
    let (lanes, _) = Lane::open_all(&interfaces, port);
    let mut scan = Scan::new(&lanes, identity, &[], schedule::PAIR);
    let mut found: Vec<(SocketAddr, String, Identity)> = Vec::new();
    while let Some(Answer { address, name, identity: shown, .. }) = scan.next() {
        let Some(shown) = shown.filter(|shown| *shown != identity) else { continue };
        let is_known = found.iter().any(|(_, _, identity)| *identity == shown);
        if is_known || !Subnets::now().contain(address.ip()) {
            continue;
        }
        if found.is_empty() {
            scan.end_within(OTHERS);
        }
        found.push((address, printable(&name, address.ip()), shown));
    }
    if found.is_empty() {
        return Err(Problem::Nobody);
    }
    Ok(found.into_iter().map(|(address, name, _)| (address, name)).collect())
}

fn printable(name: &str, ip: IpAddr) -> String {
    if name.is_empty() { ip.to_string() } else { format!("{name} ({ip})") }
}

/// Tries the code on each machine that shows one.
fn join_any(own: &Own, code: &Code, found: &[(SocketAddr, String)]) -> Result<Peer, Problem> {
    let key = code.key();
    let mut last = Problem::Nobody;
    for (address, name) in found {
        match join(own, &key, *address, name) {
            Ok(peer) => return Ok(peer),
            Err(problem) => last = problem,
        }
    }
    Err(last)
}

fn join(own: &Own, key: &Key, address: SocketAddr, name: &str) -> Result<Peer, Problem> {
    let what = format!("cannot pair with {name}");
    let unreached = failed(&what);
    let refused = |error: io::Error| match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => Problem::Refused(name.to_owned()),
        _ => unreached(error),
    };
    let mut stream = TcpStream::connect_timeout(&address, STEP).map_err(&unreached)?;
    make_steps_short(&stream).map_err(&unreached)?;
    let called = noise::call(Purpose::Pairing, key, &own.introduction);
    let (caller, hello) = called.map_err(|error| unreached(broken(error)))?;
    stream.write_all(&hello).map_err(&unreached)?;
    let mut reply = vec![0; Purpose::Pairing.reply_len()];
    read_within(&mut stream, &mut reply, STEP).map_err(refused)?;
    let Greeted { session, peer } = caller.finish(&reply).map_err(|error| match error {
        Broken::Mirror => unreached(broken(error)),
        _ => Problem::Refused(name.to_owned()),
    })?;
    let mut talk = Talk { stream, session };
    let mut exchange = || {
        let theirs = talk.hear::<HALF>()?;
        let half = system::random()?;
        talk.say(&half)?;
        match talk.hear::<{ KEPT.len() }>()? {
            kept if kept == KEPT => Ok(Key::of_halves(&theirs, &half)),
            _ => Err(broken(Broken::Record)),
        }
    };
    let key = exchange().map_err(&unreached)?;
    keep(own, &peer, key)
}
