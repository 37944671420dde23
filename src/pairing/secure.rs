//! Connecting to a server and accepting a client, with the handshake of paired machines where there
//! is a key. A server's port takes handshakes and plain HTTP: the first byte tells which.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use crate::net::socket::{self, HANGUP};
use crate::pairing::noise::{self, FIRST_BYTE, Introduction, Key, NoiseError, Purpose};
use crate::pairing::{keyring::Keyring, stream::Stream};

#[derive(Debug)]
pub(crate) enum SecureError {
    Connect(io::Error),
    /// It closes the connection when it sees our keys.
    KeyRefused,
    /// It resets the connection, whatever we say. So a server does with addresses that may not connect.
    Reset,
    /// It answers in clear that this is no request: it knows no handshakes.
    NotPaired,
    /// It answers in clear with another status, which tells nothing of what it knows.
    Answered(u16),
    Handshake(NoiseError),
    /// We have no key, and may not talk to it in clear.
    NoKey,
}

impl fmt::Display for SecureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SecureError::Connect(error) => return error.fmt(f),
            SecureError::Handshake(error) => return error.fmt(f),
            SecureError::KeyRefused => "it does not take our key (pair again: ollana pair)",
            SecureError::Reset => {
                "it cuts our connections off at once (does its --allow or --deny keep this machine's \
                 address out?)"
            }
            SecureError::NotPaired => {
                "it is not paired with this machine (run ollana pair on both, or allow it with \
                 --unpaired on)"
            }
            SecureError::Answered(429 | 503) => "it has no room for another connection",
            SecureError::Answered(status) => return write!(f, "it answers with status {status}"),
            SecureError::NoKey => "no machine is paired with this one (run ollana pair)",
        })
    }
}

/// Connects to a server, encrypted if there is a key for it. Each TCP connection and handshake may
/// take `timeout`, all of them together no longer than `until`; they end early when `watched` hangs
/// up.
pub(crate) fn connect(
    keyring: &Keyring,
    address: SocketAddr,
    timeout: Duration,
    until: Option<Instant>,
    watched: Option<&Stream>,
) -> Result<Arc<Stream>, SecureError> {
    let left = || until.map(|until| until.saturating_duration_since(Instant::now()));
    let time = || left().map_or(timeout, |left| left.min(timeout));
    let attempt = keyring.keys_to_try(address);
    let own = Introduction::of(keyring.own);
    let mut refused = SecureError::NoKey;
    for (count, key) in (attempt.refused + 1..).zip(attempt.keys) {
        // A reset may come before the first byte can be sent.
        let stream = open(address, time(), watched).map_err(unanswered)?;
        let hello = if attempt.has_key { Hello::Any } else { Hello::WithLine };
        let shaken = initiate(&stream, Purpose::Requests, hello, (&key, &own), time(), watched);
        let Err(error) = shaken else {
            keyring.note(address, Some(key.id()));
            let is_valid = keyring.watch(&stream);
            return is_valid.then_some(stream).ok_or(SecureError::KeyRefused);
        };
        refused = error;
        match refused {
            SecureError::KeyRefused | SecureError::Reset => keyring.note_refused(address, count),
            SecureError::NotPaired => break, // It doesn't know handshakes, whatever the key.
            _ => return Err(refused),
        }
    }
    let has_none = matches!(refused, SecureError::NotPaired);
    if !attempt.then_plain || !has_none && !attempt.are_last {
        return Err(refused);
    }
    let stream = connect_plain(address, time(), watched)?;
    // One that refuses our keys may have another; one that answers in clear has none.
    if has_none {
        keyring.note(address, None);
    }
    Ok(stream)
}

pub(crate) fn connect_plain(
    address: SocketAddr,
    timeout: Duration,
    watched: Option<&Stream>,
) -> Result<Arc<Stream>, SecureError> {
    open(address, timeout, watched).map_err(SecureError::Connect)
}

fn open(
    address: SocketAddr,
    timeout: Duration,
    watched: Option<&Stream>,
) -> io::Result<Arc<Stream>> {
    let socket = socket::connect(address, watched.map(Stream::socket), timeout)?;
    socket::prepare(&socket, socket::UNACKNOWLEDGED)?;
    Ok(Arc::new(Stream::new(socket)))
}

/// How the first message is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hello {
    Any,
    /// Such that an HTTP server without handshakes answers it too; that is four times the work.
    WithLine,
}

/// Shakes hands on a new stream, which is encrypted from then on; returns who the peer is.
// Not inlined: its 2 KiB of stack would stay resident under every plain stream.
#[inline(never)]
pub(crate) fn initiate(
    stream: &Stream,
    purpose: Purpose,
    hello: Hello,
    (key, own): (&Key, &Introduction),
    timeout: Duration,
    watched: Option<&Stream>,
) -> Result<Introduction, SecureError> {
    let made = match hello {
        Hello::Any => noise::initiate(purpose, key, own),
        Hello::WithLine => noise::initiate_with_line(purpose, key, own),
    };
    let (initiator, hello) = made.map_err(SecureError::Handshake)?;
    send(stream, &hello).map_err(unanswered)?;
    let mut reply = vec![0; purpose.reply_len()];
    let received = receive(stream, &mut reply, timeout, watched);
    match clear_status(&reply) {
        None => {}
        Some(400) => return Err(SecureError::NotPaired),
        Some(status) => return Err(SecureError::Answered(status)),
    }
    received.map_err(|(n, error)| match n {
        0 => unanswered(error),
        _ => SecureError::Connect(error),
    })?;
    let established = initiator.finish(&reply).map_err(SecureError::Handshake)?;
    stream.encrypt(established.session, key.id());
    Ok(established.peer)
}

/// What it means that a peer says nothing. One without our key has read all we sent, so that its end
/// is no reset.
fn unanswered(error: io::Error) -> SecureError {
    match error.kind() {
        ErrorKind::UnexpectedEof => SecureError::KeyRefused,
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => SecureError::Reset,
        _ => SecureError::Connect(error),
    }
}

/// The status of an answer in clear. A server that is full answers before it has read anything; one
/// that knows no handshakes says 400, as of everything that is no request.
fn clear_status(answer: &[u8]) -> Option<u16> {
    let status = answer.strip_prefix(b"HTTP/1.")?.get(2..5)?;
    std::str::from_utf8(status).ok()?.parse().ok()
}

#[inline(never)]
pub(crate) fn respond(
    stream: &Stream,
    purpose: Purpose,
    key: &Key,
    own: &Introduction,
    hello: &[u8],
) -> Result<Introduction, SecureError> {
    let responded = noise::respond(purpose, key, own, hello);
    let (reply, established) = responded.map_err(SecureError::Handshake)?;
    send(stream, &reply).map_err(SecureError::Connect)?;
    stream.encrypt(established.session, key.id());
    Ok(established.peer)
}

/// Sends a message of a handshake. The empty buffer of a new connection takes it at once.
fn send(stream: &Stream, message: &[u8]) -> io::Result<()> {
    match stream.try_write(message)? == message.len() {
        true => Ok(()),
        false => {
            Err(io::Error::new(ErrorKind::WriteZero, "it did not take the handshake's answer"))
        }
    }
}

/// Fills `buffer` and takes no byte more. On failure, how many bytes came and what went wrong.
pub(crate) fn receive(
    stream: &Stream,
    buffer: &mut [u8],
    timeout: Duration,
    mut watched: Option<&Stream>,
) -> Result<(), (usize, io::Error)> {
    let deadline = Instant::now() + timeout;
    let mut filled = 0;
    while filled < buffer.len() {
        let fail = |error| (filled, error);
        match stream.try_read(&mut buffer[filled..]).map_err(fail)? {
            Some(0) => return Err(fail(ErrorKind::UnexpectedEof.into())),
            Some(n) => filled += n,
            None => {
                let left = deadline.saturating_duration_since(Instant::now());
                let second = watched.map(|stream| (stream.socket(), HANGUP));
                let first = (stream.socket(), PollFlags::IN);
                let (own, other) = socket::wait(first, second, Some(left)).map_err(fail)?;
                match watched {
                    Some(watched) if socket::has_left(watched.socket(), other) => {
                        return Err(fail(ErrorKind::ConnectionAborted.into()));
                    }
                    _ if !own.is_empty() => {}
                    Some(_) if !other.is_empty() => watched = None,
                    _ => return Err(fail(ErrorKind::TimedOut.into())),
                }
            }
        }
    }
    Ok(())
}

pub(crate) enum Accepted {
    /// As HTTP in clear, or it has ended already.
    Plain,
    /// With the handshake of a paired machine; it is encrypted from now on.
    Encrypted,
    /// With bytes that get no answer: the connection is to be closed.
    Refused,
}

/// Looks at the first byte of a connection, which is there, and answers a handshake, of which the rest may
/// take up to `rest`. A machine without the key gets no byte.
pub(crate) fn accept(keyring: &Keyring, stream: &Arc<Stream>, rest: Duration) -> Accepted {
    if !keyring.has_keys() {
        return Accepted::Plain;
    }
    let socket = stream.socket();
    let mut first = [0];
    while let Err(error) = socket.peek(&mut first) {
        let waited = match error.kind() {
            // The kernel may tell of bytes that it drops then.
            ErrorKind::WouldBlock => socket::wait((socket, PollFlags::IN), None, Some(rest)),
            ErrorKind::Interrupted => continue,
            _ => return Accepted::Plain, // It is over, as its reader will see.
        };
        if waited.map_or(true, |(events, _)| events.is_empty()) {
            return Accepted::Refused;
        }
    }
    if first != [FIRST_BYTE] {
        return Accepted::Plain;
    }
    let shaken = accept_handshake(keyring, stream, rest)
        .inspect_err(|reason| log::debug!("handshake refused reason={reason:?}"));
    let is_taken = shaken.is_ok() && keyring.watch(stream);
    if is_taken { Accepted::Encrypted } else { Accepted::Refused }
}

fn accept_handshake(keyring: &Keyring, stream: &Stream, timeout: Duration) -> Result<(), String> {
    let mut hello = vec![0; Purpose::Requests.hello_len()];
    receive(stream, &mut hello, timeout, None)
        .map_err(|(n, error)| format!("{} behind {n} bytes", error.kind()))?;
    let id = Purpose::Requests.read_id(&hello).ok_or_else(|| NoiseError::Malformed.to_string())?;
    let key = keyring.key(id).ok_or_else(|| format!("unknown key {id}"))?;
    respond(stream, Purpose::Requests, &key, &Introduction::of(keyring.own), &hello)
        .map(drop)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
