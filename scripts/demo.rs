//! `make run`: a stand-in for Ollama, an ollana server and an ollana client on this machine, and one
//! chat through all three. Ports are ephemeral, nothing is left behind.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use ollana::http::body::{ChunkDecoder, Step};

type Failable<T> = Result<T, Box<dyn Error>>;

const ANSWER: &[&str] = &[
    "Every", " token", " leaves", " Ollama", " on", " one", " machine", " and", " is", " on",
    " the", " other", " before", " the", " next", " one", " is", " made", ".",
];
/// Time to make a token: about what a small model needs on a Raspberry Pi.
const TOKEN_TIME: Duration = Duration::from_millis(100);
/// Nothing in this demo takes longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A child that ends with us.
struct Daemon {
    child: Child,
    address: String,
    why: String,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn main() -> Failable<()> {
    let binary = std::env::args().nth(1).ok_or("usage: demo PATH-OF-OLLANA")?;
    println!("Everything here runs on this machine and ends by itself.\n");
    let (sent, received) = channel();
    let ollama = start_ollama(sent)?;
    println!("  a stand-in for Ollama listens on {ollama}");
    let discovery = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
    let url = format!("http://{ollama}");
    let server = start(&binary, &["--ollama", &url, "--discovery-port", &discovery])?;
    println!("  ollana, a server, listens on     {}  {}", server.address, server.why);
    let nothing = "http://127.0.0.1:9";
    let client = start(&binary, &["--ollama", nothing, "--discovery-port", &discovery])?;
    println!("  ollana, a client, listens on     {}  {}", client.address, client.why);
    let start = Instant::now();
    // A client that has just started may be asked before the first server has answered it.
    loop {
        let mut version =
            request(&client.address, "GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        let mut status = String::new();
        BufReader::new(&mut version).read_line(&mut status)?;
        if status.contains("200") {
            break;
        }
        if start.elapsed() > PATIENCE {
            return Err(format!("the client answered {status}").into());
        }
        thread::sleep(Duration::from_millis(2));
    }
    println!("  the client found the server within {} ms\n", start.elapsed().as_millis());

    println!("  $ curl http://{}/api/chat -d '{{\"model\":\"demo\", …}}'\n", client.address);
    let mut arrived = chat(&client.address)?;
    let mut delays: Vec<Duration> =
        received.try_iter().zip(arrived.drain(..)).map(|(s, a)| a - s).collect();
    delays.sort();
    let median = delays.get(delays.len() / 2).ok_or("no tokens came")?;
    println!(
        "\n  {} tokens through both proxies, each {} µs after it was made (median).",
        delays.len(),
        median.as_micros()
    );
    println!("\nOn your machines: make build, then run target/release/ollana on each.");
    Ok(())
}

/// Starts ollana and waits for its start-up line, which says where it listens.
fn start(binary: &str, flags: &[&str]) -> Failable<Daemon> {
    let mut child = Command::new(binary)
        .args(["serve", "--listen", "127.0.0.1:0"])
        .args(flags)
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{binary}: {error}"))?;
    let stderr = child.stderr.take().ok_or("no stderr")?;
    let mut daemon = Daemon { child, address: String::new(), why: String::new() };
    let (lines, line) = channel();
    thread::spawn(move || {
        for text in BufReader::new(stderr).lines().map_while(Result::ok) {
            let _ = lines.send(text);
        }
    });
    loop {
        let text = line.recv_timeout(PATIENCE).map_err(|_| "ollana did not start")?;
        if let Some((_, rest)) = text.split_once(" listen=") {
            daemon.address = rest.split(' ').next().unwrap_or_default().to_owned();
            let found = text.contains("mode=server");
            daemon.why = if found { "(Ollama answers)" } else { "(no Ollama here)" }.to_owned();
            return Ok(daemon);
        }
        if text.contains("ollana: ") {
            return Err(text.into());
        }
    }
}

fn request(address: &str, head: &str) -> Failable<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(head.as_bytes())?;
    Ok(stream)
}

/// Chats and prints each token when it comes; returns when they came.
fn chat(address: &str) -> Failable<Vec<Instant>> {
    let body = r#"{"model":"demo","messages":[{"role":"user","content":"How does it work?"}]}"#;
    let head = format!(
        "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = BufReader::new(request(address, &head)?);
    let mut line = String::new();
    while stream.read_line(&mut line)? > 2 {
        line.clear();
    }
    let start = Instant::now();
    let mut arrived = Vec::new();
    let mut decoder = ChunkDecoder::default();
    let mut buffer = [0; 4096];
    loop {
        let mut rest = 0..stream.read(&mut buffer)?;
        let now = Instant::now();
        if rest.is_empty() {
            return Err("the answer broke off".into());
        }
        while !rest.is_empty() {
            match decoder.step(&buffer[rest.clone()])? {
                Step::More => break,
                Step::End { .. } => return Ok(arrived),
                Step::Data { skip, len } => {
                    let data = &buffer[rest.start + skip..rest.start + skip + len];
                    rest.start += skip + len;
                    let token: serde_json::Value = serde_json::from_slice(data)?;
                    let text = token["message"]["content"].as_str().unwrap_or_default();
                    arrived.push(now);
                    println!("    +{:4} ms {text}", (now - start).as_millis());
                }
            }
        }
    }
}

/// Answers `/api/version` and chats; tells when it sent each token.
fn start_ollama(sent: Sender<Instant>) -> Failable<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let sent = sent.clone();
            thread::spawn(move || serve(stream, &sent));
        }
    });
    Ok(address)
}

fn serve(stream: TcpStream, sent: &Sender<Instant>) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut writer = stream;
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        if !head.starts_with("POST /api/chat") {
            let body = r#"{"version":"0.0.0-demo"}"#;
            write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
                .ok()?;
            continue;
        }
        let type_ = "Content-Type: application/x-ndjson\r\nTransfer-Encoding: chunked";
        write!(writer, "HTTP/1.1 200 OK\r\n{type_}\r\n\r\n").ok()?;
        for (at, token) in ANSWER.iter().enumerate() {
            thread::sleep(TOKEN_TIME);
            let done = at + 1 == ANSWER.len();
            let line = format!("{{\"message\":{{\"content\":\"{token}\"}},\"done\":{done}}}\n");
            let _ = sent.send(Instant::now());
            write!(writer, "{:x}\r\n{line}\r\n", line.len()).ok()?;
        }
        write!(writer, "0\r\n\r\n").ok()?;
    }
}
