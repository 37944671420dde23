//! Pulls of a machine that is only a server, which looks around for others that have the layers.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use super::daemon::Daemon;
use super::http::open;
use super::lan::{Host, Lan};
use super::ollama::Ollama;
use crate::support::sha256;

/// More than what is left to the registry.
const SIZE: usize = 9_000_000;

fn bytes() -> Vec<u8> {
    vec![7; SIZE]
}

fn digest() -> String {
    sha256(&bytes())
}

/// Puts a model of one layer into a host's store.
fn give(host: &Host) {
    let dir = host.dir().join(".ollama/models");
    let folder = dir.join("manifests/registry.ollama.ai/library/alpha");
    for folder in [&folder, &dir.join("blobs")] {
        std::fs::create_dir_all(folder).expect("a store");
    }
    let blob = dir.join("blobs").join(digest().replace(':', "-"));
    std::fs::write(blob, bytes()).expect("a blob");
    let layer = format!(r#"{{"digest":"{}","size":{SIZE}}}"#, digest());
    let manifest = format!(r#"{{"schemaVersion":2,"config":{layer},"layers":[{layer}]}}"#);
    std::fs::write(folder.join("latest"), manifest).expect("a manifest");
}

/// An Ollama whose registry sends nothing: its first pull tells of the layer again and again until it is
/// left, the second finds the layer. What it was given of the layer is counted.
fn stuck(host: &Host) -> Arc<AtomicUsize> {
    let listener = host.run(|| TcpListener::bind("127.0.0.1:11434")).expect("Ollama's port");
    let given = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&given);
    host.spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let counted = Arc::clone(&counted);
            std::thread::spawn(move || serve(&stream, &counted));
        }
    });
    given
}

/// One request.
fn serve(mut stream: &TcpStream, given: &AtomicUsize) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let head = head.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = reader.take(length.and_then(|text| text.parse().ok()).unwrap_or(0));
    let read = io::copy(&mut body, &mut io::sink())?;
    let target = head.split(' ').nth(1).unwrap_or_default();
    let whole = |status: &str, text: &str| {
        format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
            text.len()
        )
    };
    if target.starts_with("/api/blobs/") {
        given.fetch_add(read as usize, SeqCst);
        return stream.write_all(whole("201 Created", "").as_bytes());
    }
    if target != "/api/pull" {
        return stream.write_all(whole("200 OK", r#"{"version":"0.9.9","models":[]}"#).as_bytes());
    }
    let kind = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n";
    write!(stream, "{kind}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n")?;
    let say = |line: String| write!(&mut &*stream, "{:x}\r\n{line}\n\r\n", line.len() + 1);
    say(r#"{"status":"pulling manifest"}"#.to_owned())?;
    let layer = format!(r#""status":"pulling","digest":"{}","total":{SIZE}"#, digest());
    let start = Instant::now();
    while given.load(SeqCst) < SIZE && start.elapsed() < Duration::from_secs(30) {
        say(format!(r#"{{{layer},"completed":1}}"#))?;
        std::thread::sleep(Duration::from_millis(60));
    }
    if given.load(SeqCst) < SIZE {
        return Ok(());
    }
    say(format!(r#"{{{layer},"completed":{SIZE}}}"#))?;
    say(r#"{"status":"success"}"#.to_owned())?;
    stream.write_all(b"0\r\n\r\n")
}

/// In the moment in which it pulls; it doesn't look around otherwise.
#[test]
fn a_server_looks_around_for_those_who_have_a_layer() {
    let Some(mut lan) = Lan::new(1) else { return };
    let [donor, puller] = [1, 2].map(|_| lan.host(&[("eth0", 0)]));
    let _ollama = Ollama::start(&donor, "gpu");
    give(&donor);
    let _donor = Daemon::start(&donor, &[]);
    let given = stuck(&puller);
    let daemon = Daemon::start(&puller, &[]);
    let to = SocketAddr::from(([127, 0, 0, 1], 11435));
    let body = r#"{"model":"alpha"}"#;
    let mut call = open(&puller, to, "POST", "/api/pull", body.len()).expect("connected");
    call.upload(body.as_bytes()).expect("sent");
    let text = call.head().expect("an answer").rest().expect("a clean end");
    assert!(text.ends_with("{\"status\":\"success\"}\n"), "{text:.2000}");
    assert_eq!(given.load(SeqCst), SIZE);
    let from = format!("\"from\":\"{}\"", donor.name());
    assert!(text.contains(&from), "{from}: {text:.2000}");
    daemon.wait_for("layer taken");
    assert_eq!(daemon.count("layer taken"), 1);
}
