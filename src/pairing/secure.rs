//! The handshake on a connection between two machines, on either side of it.
//!
//! The same port takes both: the first byte tells a handshake from plain HTTP.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use crate::net::socket::{self, HANGUP};
use crate::pairing::keyring::{Keyring, Way, Ways};
use crate::pairing::noise::{self, Broken, FIRST_BYTE, Key, Purpose};
use crate::pairing::stream::Stream;

/// Why a server can't be reached in the way that its key asks for.
#[derive(Debug)]
pub enum HopError {
    /// No connection.
    Connect(io::Error),
    /// It closes when it sees our keys.
    Unknown,
    /// It answers in clear.
    Plain,
    /// Its answer is not what the key's owner would say.
    Broken(Broken),
    /// We have no key and may not do without.
    NoKey,
}

impl fmt::Display for HopError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HopError::Connect(error) => write!(f, "{error}"),
            HopError::Unknown => write!(f, "it does not take our key (pair again: ollana pair)"),
            HopError::Plain => write!(
                f,
                "it is not paired with this machine (run ollana pair on both, or allow it with \
                 --unpaired on)"
            ),
            HopError::Broken(broken) => write!(f, "{broken}"),
            HopError::NoKey => write!(f, "no machine is paired with this one (run ollana pair)"),
        }
    }
}

/// How long steps of a handshake may take, and who else is to be watched meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Patience<'a> {
    /// For the connection, and again for the handshake.
    pub timeout: Duration,
    /// Whose hang-up ends it.
    pub watched: Option<&'a Stream>,
}

/// Connects to a server, encrypted if there is a key for it.
///
/// # Errors
/// [`HopError`]; nothing of a request was sent.
pub fn call(
    keyring: &Keyring,
    address: SocketAddr,
    patience: Patience<'_>,
) -> Result<Arc<Stream>, HopError> {
    let Ways { keys, plain } = keyring.ways(address);
    let mut refused = HopError::NoKey;
    for key in keys {
        match call_with(keyring, &key, address, patience) {
            Ok(stream) => {
                keyring.note(address, Way::Key(key.id()));
                let stream = Arc::new(stream);
                return if keyring.watch(&stream) { Ok(stream) } else { Err(HopError::Unknown) };
            }
            Err(error @ HopError::Unknown) => refused = error,
            // It knows no handshakes at all.
            Err(error @ HopError::Plain) => {
                refused = error;
                break;
            }
            Err(error) => return Err(error),
        }
    }
    if !plain {
        return Err(refused);
    }
    let stream = Stream::new(connect(address, patience)?);
    // Only who can't shake hands at all counts as plain from now on.
    if matches!(refused, HopError::Plain) {
        keyring.note(address, Way::Plain);
    }
    Ok(Arc::new(stream))
}

/// Connects without a handshake.
///
/// # Errors
/// [`HopError::Connect`].
pub fn connect(address: SocketAddr, patience: Patience<'_>) -> Result<TcpStream, HopError> {
    socket::connect(address, patience.watched.map(Stream::socket), patience.timeout)
        .and_then(|socket| socket::prepare(&socket, socket::UNACKNOWLEDGED).map(|()| socket))
        .map_err(HopError::Connect)
}

// A frame of its own: its 2 KiB would stay resident under every plain stream.
#[inline(never)]
fn call_with(
    keyring: &Keyring,
    key: &Key,
    address: SocketAddr,
    patience: Patience<'_>,
) -> Result<Stream, HopError> {
    let socket = connect(address, patience)?;
    let (caller, hello) =
        noise::call(Purpose::Hop, key, &keyring.introduction()).map_err(HopError::Broken)?;
    // A new connection takes this little at once.
    let sent = socket::try_write(&socket, &hello).map_err(HopError::Connect)?;
    if sent != hello.len() {
        return Err(HopError::Connect(ErrorKind::WriteZero.into()));
    }
    let mut reply = vec![0; Purpose::Hop.reply_len()];
    match receive(&socket, &mut reply, patience) {
        Ok(_) => {}
        Err((n, _)) if reply[..n].starts_with(b"HTTP/") => return Err(HopError::Plain),
        Err((0, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset)) => {
            return Err(HopError::Unknown);
        }
        Err((_, kind)) => return Err(HopError::Connect(kind.into())),
    }
    if reply.starts_with(b"HTTP/") {
        return Err(HopError::Plain);
    }
    let greeted = caller.finish(&reply).map_err(HopError::Broken)?;
    let stream = Stream::new(socket);
    stream.encrypt(greeted.session, key.id());
    Ok(stream)
}

/// Fills `buffer` and takes no byte more. On failure, how much of it came and what went wrong.
fn receive(
    socket: &TcpStream,
    buffer: &mut [u8],
    patience: Patience<'_>,
) -> Result<(), (usize, ErrorKind)> {
    let deadline = Instant::now() + patience.timeout;
    let mut watched = patience.watched;
    let mut filled = 0;
    while filled < buffer.len() {
        let fail = |error: io::Error| (filled, error.kind());
        match socket::try_read(socket, &mut buffer[filled..]).map_err(fail)? {
            Some(0) => return Err((filled, ErrorKind::UnexpectedEof)),
            Some(n) => filled += n,
            None => {
                let left = deadline.saturating_duration_since(Instant::now());
                let second = watched.map(|stream| (stream.socket(), HANGUP));
                let (own, other) =
                    socket::wait((socket, PollFlags::IN), second, Some(left)).map_err(fail)?;
                match watched {
                    Some(stream) if socket::has_left(stream.socket(), other) => {
                        return Err((filled, ErrorKind::ConnectionAborted));
                    }
                    _ if !own.is_empty() => {}
                    Some(_) if !other.is_empty() => watched = None,
                    _ => return Err((filled, ErrorKind::TimedOut)),
                }
            }
        }
    }
    Ok(())
}

/// How a new connection begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// As HTTP in clear, or not at all yet.
    Plain,
    /// With the handshake of a paired machine; from now on it is encrypted.
    Paired,
    /// With something that gets no answer.
    Refused,
}

/// Waits for the first byte of a connection, and answers a handshake.
///
/// A machine without the key gets no byte: the connection is closed.
pub fn answer(keyring: &Keyring, stream: &Arc<Stream>, idle: Duration, rest: Duration) -> Opening {
    if !keyring.has_keys() {
        return Opening::Plain;
    }
    let socket = stream.socket();
    let mut first = [0];
    while let Err(error) = socket.peek(&mut first) {
        let waited = match error.kind() {
            ErrorKind::WouldBlock => socket::wait((socket, PollFlags::IN), None, Some(idle)),
            ErrorKind::Interrupted => continue,
            _ => return Opening::Plain, // It is over, as its reader will see.
        };
        if !matches!(waited, Ok((events, _)) if !events.is_empty()) {
            return Opening::Refused;
        }
    }
    if first != [FIRST_BYTE] {
        return Opening::Plain;
    }
    match shake_hands(keyring, stream, rest) {
        Ok(()) if keyring.watch(stream) => Opening::Paired,
        Ok(()) => Opening::Refused,
        Err(reason) => {
            log::debug!("handshake refused reason={reason:?}");
            Opening::Refused
        }
    }
}

// A frame of its own, as above.
#[inline(never)]
fn shake_hands(keyring: &Keyring, stream: &Stream, timeout: Duration) -> Result<(), String> {
    let socket = stream.socket();
    let mut hello = vec![0; Purpose::Hop.hello_len()];
    receive(socket, &mut hello, Patience { timeout, watched: None })
        .map_err(|(n, kind)| format!("{kind} behind {n} bytes"))?;
    let id = Purpose::Hop.read_id(&hello).ok_or_else(|| Broken::Form.to_string())?;
    let key = keyring.key(id).ok_or_else(|| format!("unknown key {id}"))?;
    let (reply, greeted) = noise::answer(Purpose::Hop, &key, &keyring.introduction(), &hello)
        .map_err(|broken| broken.to_string())?;
    match socket::try_write(socket, &reply) {
        Ok(n) if n == reply.len() => {}
        Ok(_) => return Err("it takes no answer".to_owned()),
        Err(error) => return Err(error.to_string()),
    }
    stream.encrypt(greeted.session, id);
    Ok(())
}
