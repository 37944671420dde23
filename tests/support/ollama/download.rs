//! Pulls in layers, one after the other, from a registry (`server/images.go`, `server/download.go`).
//!
//! What is there is skipped. What was begun goes on where it was, whoever began it: its state is in
//! files beside the blobs. Pulls of one layer share its download, which ends with the last of them.
//! Waits between attempts are a fiftieth of Ollama's, and a layer has one part, as Ollama's have that
//! are smaller than 200 MB.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::{Head, lock, read_once};
use super::body::Fields;
use super::names::Name;
use super::reply::{Reply, quoted};
use super::store::{Store, layers, worded};
use super::{Machine, World};

/// The downloads under way, by digest.
pub(super) type Downloads = Mutex<BTreeMap<String, Arc<Download>>>;

/// Why a pull ends before its end.
pub(super) enum Stop {
    /// Its client left.
    Left,
    Failed(String),
}

impl From<String> for Stop {
    fn from(error: String) -> Self {
        Stop::Failed(error)
    }
}

/// `POST /api/pull` of a model that isn't at the cloud.
pub(super) fn pull(
    machine: &Machine,
    store: &Store,
    reply: &mut Reply<'_, '_>,
    fields: &Fields,
    name: &Name,
) {
    let source = machine.world(|world| Source::of(world, name, fields.flag("insecure")));
    Lines::answer(reply, fields, |lines| run(machine, store, lines, name, &source));
}

fn run(
    machine: &Machine,
    store: &Store,
    lines: &mut Lines<'_, '_, '_>,
    name: &Name,
    source: &Source,
) -> Result<(), Stop> {
    lines.say("pulling manifest")?;
    let [path, tag] = name.registry_path();
    let manifest = source.manifest(&format!("/v2/{path}/manifests/{tag}"));
    let manifest = manifest.map_err(|error| format!("pull model manifest: {error}"))?;
    let wanted = layers(&manifest)
        .ok_or_else(|| "pull model manifest: unexpected end of JSON input".to_owned())?;
    let shortest = name.shortest();
    let old = store.digests(&shortest);
    let mut downloaded = Vec::new();
    for (digest, _) in &wanted {
        if let Ok(file) = fs::metadata(store.blob(digest)) {
            lines.progress(digest, file.len(), file.len())?;
            continue;
        }
        let url = format!("/v2/{path}/blobs/{digest}");
        let download = Download::join(&machine.downloads, store, source, digest, url)?;
        let ended = download.wait(lines);
        download.release();
        ended?;
        downloaded.push(digest);
    }
    lines.say("verifying sha256 digest")?;
    for digest in downloaded {
        store.verify(digest)?;
    }
    lines.say("writing manifest")?;
    store.write_manifest(name, &manifest)?;
    let unused: Vec<String> = old
        .into_iter()
        .filter(|digest| !wanted.iter().any(|(wanted, _)| wanted == digest))
        .collect();
    if !unused.is_empty() {
        lines.say("removing unused layers")?;
        store.remove_unused(unused.into_iter());
    }
    lines.say("success")
}

/// The lines of a pull, or the last one alone.
pub(super) struct Lines<'r, 'c, 'a> {
    reply: &'r mut Reply<'c, 'a>,
    streams: bool,
    last: String,
}

impl<'r, 'c, 'a> Lines<'r, 'c, 'a> {
    /// Answers with the lines that `run` says, to their end.
    pub(super) fn answer(
        reply: &'r mut Reply<'c, 'a>,
        fields: &Fields,
        run: impl FnOnce(&mut Self) -> Result<(), Stop>,
    ) {
        let streams = fields.flag("stream") != Some(false);
        let mut lines = Lines { reply, streams, last: String::new() };
        match run(&mut lines) {
            Ok(()) => lines.finish(),
            Err(Stop::Left) => {
                lines.reply.note_cancelled();
                lines.reply.call.close();
            }
            Err(Stop::Failed(error)) => lines.fail(&error),
        }
    }

    pub(super) fn say(&mut self, status: &str) -> Result<(), Stop> {
        self.line(format!("{{\"status\":{}}}", quoted(status)))
    }

    fn progress(&mut self, digest: &str, total: u64, completed: u64) -> Result<(), Stop> {
        let status = quoted(&format!("pulling {}", &digest[7..19]));
        let number = |name: &str, number| match number {
            0 => String::new(),
            number => format!(",\"{name}\":{number}"),
        };
        let [total, completed] = [number("total", total), number("completed", completed)];
        self.line(format!(
            "{{\"status\":{status},\"digest\":\"{digest}\"{total}{completed}}}" //
        ))
    }

    fn line(&mut self, line: String) -> Result<(), Stop> {
        if self.streams {
            if !self.reply.has_begun() {
                self.reply.stream("application/x-ndjson");
            }
            self.reply.part(format!("{line}\n"));
        }
        self.last = line;
        self.check()
    }

    /// Whether the client is still there.
    pub(super) fn check(&mut self) -> Result<(), Stop> {
        let call = &mut *self.reply.call;
        if call.has_ended() || call.has_left() { Err(Stop::Left) } else { Ok(()) }
    }

    fn finish(&mut self) {
        match self.streams {
            true => self.reply.end(),
            false => self.reply.send(200, "Content-Type: application/json\r\n", &self.last),
        }
    }

    fn fail(&mut self, error: &str) {
        let body = format!("{{\"error\":{}}}", quoted(error));
        if self.streams {
            self.reply.part(format!("{body}\n"));
            self.reply.end();
        } else {
            self.reply.send(500, "Content-Type: application/json\r\n", body);
        }
    }
}

/// Where a pull's model comes from, and a push's goes.
#[derive(Clone)]
pub(super) struct Source {
    /// The host as the name says it, behind its scheme.
    base: String,
    address: Result<SocketAddr, String>,
}

impl Source {
    pub(super) fn of(world: &World, name: &Name, insecure: Option<bool>) -> Self {
        let host = name.host();
        let is_insecure = insecure == Some(true);
        let base = format!("{}://{host}", if is_insecure { "http" } else { "https" });
        let address = match host.parse() {
            Ok(address) if world.is_contained && SocketAddr::ip(&address).is_loopback() => {
                Err(format!("dial tcp {address}: connect: connection refused"))
            }
            Ok(address) if is_insecure => Ok(address),
            Ok(address) => match TcpStream::connect(address) {
                Ok(_) => Err("http: server gave HTTP response to HTTPS client".to_owned()),
                Err(_) => Ok(address),
            },
            Err(_) => world.internet.ok_or_else(|| {
                format!("dial tcp: lookup {host} on 127.0.0.53:53: no such host") //
            }),
        };
        Source { base, address }
    }

    /// Asks, and reads the answer's head. The rest of the answer comes with it.
    fn ask(
        &self,
        method: &str,
        path: &str,
        fields: &str,
    ) -> Result<(Head, TcpStream, Vec<u8>), String> {
        self.send(method, path, fields, b"")
    }

    /// The same, of a request with a body.
    pub(super) fn send(
        &self,
        method: &str,
        path: &str,
        fields: &str,
        body: &[u8],
    ) -> Result<(Head, TcpStream, Vec<u8>), String> {
        let verb = format!("{}{}", &method[..1], method[1..].to_lowercase());
        let failed = |why: String| format!("{verb} \"{}{path}\": {why}", self.base);
        let address = self.address.clone().map_err(failed)?;
        let mut stream = TcpStream::connect(address).map_err(|error| {
            failed(format!("dial tcp {address}: connect: {}", worded(error))) //
        })?;
        let host = self.base.rsplit('/').next().unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: ollama/0.33.0\r\n\
             Connection: close\r\n{fields}\r\n"
        );
        let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        sent.map_err(|error| failed(worded(error)))?;
        let mut input = Vec::new();
        loop {
            if let Some(head) = Head::take(&mut input) {
                return Ok((head, stream, input));
            }
            if read_once(&stream, &mut input).map_err(|error| failed(worded(error)))? == 0 {
                return Err(failed("EOF".to_owned()));
            }
        }
    }

    /// An answer without an error in its status.
    fn get(
        &self,
        method: &str,
        path: &str,
        fields: &str,
    ) -> Result<(Head, TcpStream, Vec<u8>), String> {
        let (head, stream, mut input) = self.ask(method, path, fields)?;
        match head.status() {
            404 => Err("file does not exist".to_owned()),
            status @ 400.. => {
                read_rest(&head, &stream, &mut input)?;
                Err(format!("{status}: {}", String::from_utf8_lossy(&input)))
            }
            _ => Ok((head, stream, input)),
        }
    }

    fn manifest(&self, path: &str) -> Result<Vec<u8>, String> {
        let accept = "Accept: application/vnd.docker.distribution.manifest.v2+json\r\n";
        let (head, stream, mut input) = self.get("GET", path, accept)?;
        read_rest(&head, &stream, &mut input)?;
        Ok(input)
    }

    /// Where the bytes of a blob are, as the registry says when it is asked for all of them.
    fn locate(&self, path: &str) -> Result<String, String> {
        let (head, ..) = self.get("GET", path, "")?;
        if !matches!(head.status(), 200 | 307) {
            return Err(format!("unexpected status code {}", head.status()));
        }
        let place = head.one("location").ok_or("http: no Location header in response")?;
        let path = place.split_once("://").map(|(_, rest)| rest.find('/').map(|at| &rest[at..]));
        Ok(path.flatten().unwrap_or(&place).to_owned())
    }
}

fn read_rest(head: &Head, stream: &TcpStream, input: &mut Vec<u8>) -> Result<(), String> {
    while head.length().is_none_or(|length| input.len() < length) {
        if read_once(stream, input).map_err(worded)? == 0 {
            return head.length().map_or(Ok(()), |_| Err("unexpected EOF".to_owned()));
        }
    }
    Ok(())
}

/// One layer on its way.
pub(super) struct Download {
    digest: String,
    total: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    completed: u64,
    done: Option<Result<(), String>>,
    pulls: usize,
    is_cancelled: bool,
    stream: Option<TcpStream>,
}

impl Download {
    /// The download that is under way, or a new one.
    fn join(
        all: &Arc<Downloads>,
        store: &Store,
        source: &Source,
        digest: &str,
        path: String,
    ) -> Result<Arc<Self>, String> {
        let mut under_way = lock(all);
        if let Some(download) = under_way.get(digest) {
            lock(&download.state).pulls += 1;
            return Ok(Arc::clone(download));
        }
        let (total, completed) = match fs::read(partial(store, digest, "-0")) {
            Ok(part) => {
                let part: Value = serde_json::from_slice(&part).map_err(|e| e.to_string())?;
                (part["Size"].as_u64().unwrap_or(0), part["Completed"].as_u64().unwrap_or(0))
            }
            Err(_) => {
                let (head, ..) = source.get("HEAD", &path, "")?;
                (head.length().unwrap_or(0) as u64, 0)
            }
        };
        let state = State { completed, pulls: 1, ..State::default() };
        let digest = digest.to_owned();
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let download = Arc::new(Download { digest, total, state, changed });
        download.write_part(store, completed)?;
        under_way.insert(download.digest.clone(), Arc::clone(&download));
        let [running, ended] = [Arc::clone(&download), Arc::clone(&download)];
        let (all, store, source) = (Arc::clone(all), store.clone(), source.clone());
        thread::spawn(move || {
            let result = running.run(&store, &source, &path);
            lock(&all).remove(&ended.digest);
            lock(&ended.state).done = Some(result);
            ended.changed.notify_all();
        });
        Ok(download)
    }

    fn write_part(&self, store: &Store, completed: u64) -> Result<(), String> {
        let part = json!({"N": 0, "Offset": 0, "Size": self.total, "Completed": completed});
        fs::write(partial(store, &self.digest, "-0"), format!("{part}\n")).map_err(worded)
    }

    fn run(&self, store: &Store, source: &Source, path: &str) -> Result<(), String> {
        let name = partial(store, &self.digest, "");
        let file = File::options().create(true).truncate(false).write(true).open(&name);
        let mut file = file.map_err(worded)?;
        file.set_len(self.total).map_err(worded)?;
        let until = Instant::now() + Duration::from_secs(30) / 50;
        let place = loop {
            match source.locate(path) {
                Ok(place) => break place,
                Err(_) if Instant::now() >= until => {
                    return Err("context deadline exceeded".to_owned());
                }
                Err(_) => self.pause(Duration::from_millis(10))?,
            }
        };
        let mut completed = lock(&self.state).completed;
        for attempt in 0.. {
            let ended = self.attempt(source, &place, &mut file, &mut completed);
            self.write_part(store, completed)?;
            match ended {
                Ok(()) => break,
                Err(error) if lock(&self.state).is_cancelled => {
                    let _ = error;
                    return Err("context canceled".to_owned());
                }
                Err(error) if error.contains("no space left") => return Err(error),
                Err(error) if attempt == 5 => {
                    return Err(format!("max retries exceeded: {error}"));
                }
                Err(_) => self.pause(Duration::from_secs(1 << attempt) / 50)?,
            }
        }
        drop(file);
        fs::remove_file(partial(store, &self.digest, "-0")).map_err(worded)?;
        fs::rename(name, store.blob(&self.digest)).map_err(worded)
    }

    /// Waits, unless nobody wants it any more.
    fn pause(&self, time: Duration) -> Result<(), String> {
        let state = lock(&self.state);
        let waited = self.changed.wait_timeout_while(state, time, |state| !state.is_cancelled);
        match waited.unwrap_or_else(PoisonError::into_inner).0.is_cancelled {
            true => Err("context canceled".to_owned()),
            false => Ok(()),
        }
    }

    /// One request for what is missing. What came of it counts if it is cut short, but not if the
    /// connection breaks.
    fn attempt(
        &self,
        source: &Source,
        place: &str,
        file: &mut File,
        completed: &mut u64,
    ) -> Result<(), String> {
        if *completed == self.total {
            return Ok(());
        }
        let range = format!("Range: bytes={completed}-{}\r\n", self.total - 1);
        let (_, stream, mut input) = source.ask("GET", place, &range)?;
        {
            let mut state = lock(&self.state);
            if state.is_cancelled {
                return Err("context canceled".to_owned());
            }
            state.stream = stream.try_clone().ok();
        }
        file.seek(SeekFrom::Start(*completed)).map_err(worded)?;
        let mut here = *completed;
        loop {
            let rest = usize::try_from(self.total - here).unwrap_or(usize::MAX);
            input.truncate(rest);
            file.write_all(&input).map_err(worded)?;
            here += input.len() as u64;
            lock(&self.state).completed = here;
            input.clear();
            if here == self.total {
                *completed = here;
                return Ok(());
            }
            match read_once(&stream, &mut input) {
                Ok(0) => {
                    *completed = here;
                    return Err("unexpected EOF".to_owned());
                }
                Ok(_) => {}
                Err(error) => {
                    lock(&self.state).completed = *completed;
                    return Err(worded(error));
                }
            }
        }
    }

    /// Tells how far it is until it is done.
    fn wait(&self, lines: &mut Lines<'_, '_, '_>) -> Result<(), Stop> {
        let mut next = Instant::now() + Duration::from_millis(60);
        loop {
            let state = lock(&self.state);
            let step = Duration::from_millis(3);
            let waited = self.changed.wait_timeout_while(state, step, |s| s.done.is_none());
            let state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if let Some(done) = &state.done {
                return done.clone().map_err(Stop::Failed);
            }
            let completed = state.completed;
            drop(state);
            lines.check()?;
            if Instant::now() >= next {
                next += Duration::from_millis(60);
                lines.progress(&self.digest, self.total, completed)?;
            }
        }
    }

    /// One pull less waits for it; the last one ends it.
    fn release(&self) {
        let mut state = lock(&self.state);
        state.pulls -= 1;
        if state.pulls == 0 {
            state.is_cancelled = true;
            if let Some(stream) = state.stream.take() {
                let _ = stream.shutdown(Shutdown::Both);
            }
            self.changed.notify_all();
        }
    }
}

fn partial(store: &Store, digest: &str, end: &str) -> std::path::PathBuf {
    let mut path = store.blob(digest).into_os_string();
    path.push(format!("-partial{end}"));
    path.into()
}
