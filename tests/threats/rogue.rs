//! An upstream that says whatever a test makes it say, also where a health check asks.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::support::{Head, lock};

/// A request's head, and the way back.
type Script = dyn Fn(&Head, &mut TcpStream) + Send + Sync;

/// Listens until the test's process ends; every connection has a thread.
pub(super) struct Rogue {
    pub(super) address: SocketAddr,
    /// The targets it was asked for, in order.
    asked: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
}

impl Rogue {
    pub(super) fn start(script: impl Fn(&Head, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let script: Arc<Script> = Arc::new(script);
        let (asked, connections) = (Arc::new(Mutex::default()), Arc::new(AtomicUsize::new(0)));
        let (noted, counted) = (Arc::clone(&asked), Arc::clone(&connections));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                counted.fetch_add(1, SeqCst);
                let (script, noted) = (Arc::clone(&script), Arc::clone(&noted));
                thread::spawn(move || serve(stream, &*script, &noted));
            }
        });
        Rogue { address, asked, connections }
    }

    /// What answers every request with these bytes.
    pub(super) fn answering(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Rogue::start(move |_, stream| drop(stream.write_all(&answer)))
    }

    pub(super) fn asked(&self) -> Vec<String> {
        lock(&self.asked).clone()
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }
}

/// Bodies of requests are short here, and come with their heads.
fn serve(mut stream: TcpStream, script: &Script, asked: &Mutex<Vec<String>>) {
    let mut input = Vec::new();
    loop {
        while let Some(head) = Head::take(&mut input) {
            let length = head.length().unwrap_or(0);
            while input.len() < length {
                if !crate::support::read_once(&stream, &mut input).is_ok_and(|n| n > 0) {
                    return;
                }
            }
            input.drain(..length);
            lock(asked).push(head.target().to_owned());
            script(&head, &mut stream);
        }
        if !crate::support::read_once(&stream, &mut input).is_ok_and(|n| n > 0) {
            return;
        }
    }
}

/// An answer with this body, as Ollama frames it.
pub(super) fn ok(body: impl AsRef<[u8]>) -> Vec<u8> {
    answer("200 OK", "", body)
}

/// The same with another status, and with fields of its own.
pub(super) fn answer(status: &str, fields: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{fields}Content-Length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// What an Ollama answers to health checks.
pub(super) fn healthy(target: &str) -> Option<Vec<u8>> {
    Some(ok(match target {
        "/api/version" => "{\"version\":\"0.5.4\"}",
        "/api/tags" | "/api/ps" => "{\"models\":[]}",
        "/v1/models" => "{\"object\":\"list\",\"data\":[]}",
        _ => return None,
    }))
}
