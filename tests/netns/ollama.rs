//! A stand-in for Ollama on a host's 127.0.0.1:11434, whose tokens come when the test says so.
//!
//! | target | answer |
//! |---|---|
//! | `/api/version`, `/api/tags` | one JSON object; the tags name this Ollama |
//! | `/api/chat` | [`TOKENS`] lines with its name, each when it is released |
//! | `/api/blobs/…` | 201 once the body is whole |
//! | `/v1/audio/transcriptions` | none |
//! | everything else | `{"status":"NAME"}` |

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::lan::Host;
use crate::support::sha256;

/// Lines of one answer.
pub(crate) const TOKENS: usize = 4;
/// How often a connection looks whether a token was released, or the end has come.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };

/// A running stand-in; stopped when it is dropped.
pub(crate) struct Ollama {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    name: String,
    /// Pause before each answer.
    pause: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    is_stopping: bool,
    /// Tokens of each answer that may be sent.
    released: usize,
    /// Of the manifest of its model.
    digest: String,
    /// Targets of the requests that came, but for `/api/version`.
    requests: Vec<String>,
    /// When a connection was closed before its answer was complete.
    left: Option<Instant>,
    /// Bytes of bodies.
    received: u64,
    connections: Vec<TcpStream>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ollama {
    /// On a host; its tokens flow freely.
    pub(crate) fn start(host: &Host, name: &str) -> Ollama {
        Ollama::listen(host, "127.0.0.1:11434", name)
    }

    /// On an address of a host.
    pub(crate) fn listen(host: &Host, address: &str, name: &str) -> Ollama {
        Ollama::listen_slowly(host, address, name, Duration::ZERO)
    }

    /// The same, with a pause before each answer.
    pub(crate) fn listen_slowly(host: &Host, address: &str, name: &str, pause: Duration) -> Ollama {
        let listener = host.run(|| TcpListener::bind(address)).expect("Ollama's port");
        listener.set_nonblocking(true).expect("a listener that doesn't block");
        let state = Mutex::new(State { released: TOKENS, ..State::default() });
        let shared = Arc::new(Shared { name: name.to_owned(), pause, state });
        let own = Arc::clone(&shared);
        let thread = host.spawn(move || accept(&listener, &own));
        Ollama { shared, thread: Some(thread) }
    }

    /// Has its model be one with this manifest.
    pub(crate) fn has(&self, manifest: &str) {
        self.shared.state().digest = sha256(manifest.as_bytes()).split_off("sha256:".len());
    }

    /// In this process, for good, as a program of its own.
    pub(crate) fn serve(name: &str, start: Duration) {
        // Like Ollama, it needs its port some ten milliseconds after it was started.
        let deadline = Instant::now() + start;
        let listener = loop {
            match TcpListener::bind("127.0.0.1:11434") {
                Ok(listener) => break listener,
                Err(error) if Instant::now() > deadline => panic!("Ollama's port: {error}"),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        let state = Mutex::new(State { released: TOKENS, ..State::default() });
        let (name, pause) = (name.to_owned(), Duration::ZERO);
        accept(&listener, &Arc::new(Shared { name, pause, state }));
    }

    /// Lets so many tokens of each answer go.
    pub(crate) fn release(&self, tokens: usize) {
        self.shared.state().released = tokens;
    }

    /// Requests for this target so far.
    pub(crate) fn requests(&self, target: &str) -> usize {
        self.shared.state().requests.iter().filter(|request| *request == target).count()
    }

    /// When the last connection was closed before its answer was complete.
    pub(crate) fn left(&self) -> Option<Instant> {
        self.shared.state().left
    }

    /// Bytes of bodies so far.
    pub(crate) fn received(&self) -> u64 {
        self.shared.state().received
    }
}

impl Drop for Ollama {
    /// Ends as a killed process does: the port refuses, connections are cut.
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.is_stopping = true;
        for connection in state.connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
        drop(state);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.state().is_stopping {
        let _ = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&LOOK));
        let Ok((stream, _)) = listener.accept() else { continue };
        let kept = stream.try_clone().and_then(|kept| {
            stream.set_nodelay(true)?;
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(Duration::from_secs(60)))?;
            Ok(kept)
        });
        let Ok(kept) = kept else { continue };
        shared.state().connections.push(kept);
        let shared = Arc::clone(shared);
        std::thread::spawn(move || while let Ok(true) = serve(&stream, &shared) {});
    }
}

/// One request; whether the connection can have another.
fn serve(mut stream: &TcpStream, shared: &Shared) -> io::Result<bool> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte)? == 0 {
            return Ok(false);
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let target = head.split(' ').nth(1).unwrap_or_default();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    if target != "/api/version" {
        shared.state().requests.push(target.to_owned());
    }
    std::thread::sleep(shared.pause);
    let answer = body(stream, length.and_then(|text| text.parse().ok()).unwrap_or(0), shared)
        .and_then(|()| match head.contains("\r\nhost: rebinding.example\r\n") {
            // As Ollama does to a name that it doesn't know.
            true => stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"),
            false => answer(stream, target, shared),
        });
    if answer.is_err() {
        shared.state().left = Some(Instant::now());
        let _ = stream.shutdown(Shutdown::Both);
    }
    answer.map(|()| true)
}

fn body(mut stream: &TcpStream, mut left: u64, shared: &Shared) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    while left > 0 {
        let n = match stream.read(&mut buffer)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            n => n as u64,
        };
        left -= n;
        shared.state().received += n;
    }
    Ok(())
}

fn answer(mut stream: &TcpStream, target: &str, shared: &Shared) -> io::Result<()> {
    let name = &shared.name;
    let whole = |status: &str, text: &str| {
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        )
    };
    let text = match target {
        "/api/version" => whole("200 OK", "{\"version\":\"0.9.9\"}"),
        "/api/tags" => {
            let digest = &shared.state().digest;
            let model = format!(r#"{{"name":"{name}","digest":"{digest}"}}"#);
            whole("200 OK", &format!(r#"{{"models":[{model}]}}"#))
        }
        "/api/chat" => return tokens(stream, shared),
        "/v1/audio/transcriptions" => return wait_for_release(stream, shared, usize::MAX),
        _ if target.starts_with("/api/blobs/") => whole("201 Created", ""),
        _ => whole("200 OK", &format!("{{\"status\":\"{name}\"}}")),
    };
    stream.write_all(text.as_bytes())
}

/// The line of a token, as a client has to see it.
pub(crate) fn token_line(name: &str, number: usize) -> String {
    let done = number == TOKENS;
    format!("{{\"model\":\"{name}\",\"response\":\"token {number}\",\"done\":{done}}}\n")
}

/// All lines of an answer.
pub(crate) fn all_lines(name: &str) -> String {
    (1..=TOKENS).map(|number| token_line(name, number)).collect()
}

/// Like Ollama, sends the head along with the first token.
fn tokens(mut stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    for number in 1..=TOKENS {
        wait_for_release(stream, shared, number)?;
        let line = token_line(&shared.name, number);
        let head = match number {
            1 => {
                "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\
                  Transfer-Encoding: chunked\r\n\r\n"
            }
            _ => "",
        };
        let end = if number == TOKENS { "0\r\n\r\n" } else { "" };
        stream.write_all(format!("{head}{:x}\r\n{line}\r\n{end}", line.len()).as_bytes())?;
    }
    Ok(())
}

/// Waits until a token may go; an error when the peer leaves before.
fn wait_for_release(stream: &TcpStream, shared: &Shared, number: usize) -> io::Result<()> {
    loop {
        let state = shared.state();
        if state.is_stopping {
            return Err(ErrorKind::Interrupted.into());
        }
        if state.released >= number {
            return Ok(());
        }
        drop(state);
        let mut fds = [PollFd::new(stream, PollFlags::IN)];
        let _ = poll(&mut fds, Some(&LOOK));
        if !fds[0].revents().is_empty() && stream.peek(&mut [0]).unwrap_or(0) == 0 {
            return Err(ErrorKind::ConnectionAborted.into());
        }
    }
}
