//! A registry of this machine that Ollama pushes a model to, where the folder of its models can't be read.
//!
//! ```text
//!  HEAD blobs/DIGEST        is it there? all are but the one that is wanted, if any
//!  POST blobs/uploads/      where to put that one
//!  PATCH blobs/uploads/1    a part of it; they come one after the other (server/upload.go)
//!  PUT   manifests/1        the manifest, last (server/images.go, PushModel)
//! ```
//!
//! It keeps nothing: a part is read by whom it is for. Its name is as unguessable as that of the
//! [`registry`](super::registry) that Ollama pulls from.

use std::io::{self, Read};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use http::Method;
use http::header::CONTENT_RANGE;
use rustix::event::PollFlags;

use super::registry::{NEW, Place, answer, read_head};
use crate::http::head::{Framing, Head};
use crate::http::target::split_query;
use crate::net::socket::{self, HANGUP};

/// Bytes of a manifest that are taken; most have one or two thousand.
const MOST: u64 = 256 << 10;

/// Where one model is pushed to.
#[derive(Debug)]
pub(crate) struct Uploads {
    place: Place,
    /// The digest of the blob that it lacks.
    lacks: Option<String>,
}

/// What a request of Ollama's brings.
#[derive(Debug)]
pub(crate) enum Came {
    /// Nothing: it was answered.
    Question,
    Manifest(Vec<u8>),
    Part(Part),
}

/// A part of the blob.
#[derive(Debug)]
pub(crate) struct Part {
    /// Where in the blob the bytes begin that come next.
    pub(crate) at: u64,
    left: u64,
    /// What has come with the head.
    begun: Vec<u8>,
    stream: TcpStream,
    /// Where the next part goes.
    next: String,
}

impl Uploads {
    pub(crate) fn open(lacks: Option<String>, on: Ipv4Addr) -> io::Result<Self> {
        Ok(Uploads { place: Place::open(on)?, lacks })
    }

    /// The name under which Ollama can push the model.
    pub(crate) fn name(&self) -> String {
        format!("{}:{NEW}", self.place.model)
    }

    /// Waits for a request up to `time`, and takes it. What isn't Ollama's is no request.
    ///
    /// # Errors
    /// `watched` has left, or the system is out of descriptors.
    pub(crate) fn next(&self, watched: &TcpStream, time: Duration) -> io::Result<Option<Came>> {
        let listener = (&self.place.listener, PollFlags::IN);
        let (own, other) = socket::wait(listener, Some((watched, HANGUP)), Some(time))?;
        if socket::has_left(watched, other) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if own.is_empty() {
            return Ok(None);
        }
        let stream = self.place.accept()?;
        Ok(stream.and_then(|stream| self.serve(stream).ok()))
    }

    fn serve(&self, stream: TcpStream) -> io::Result<Came> {
        let (head, begun) = read_head(&stream)?;
        let (path, _) = split_query(&head.target);
        let path = self.place.below(path).unwrap_or_default();
        let upload = format!("{}blobs/uploads/1", self.place.url);
        match (&head.method, path.split_once('/').unwrap_or_default()) {
            (&Method::HEAD, ("blobs", digest)) => {
                let lacks = self.lacks.as_deref() == Some(digest);
                let status = if lacks { "404 Not Found" } else { "200 OK" };
                answer(&stream, &head.method, status, "", b"")?;
            }
            (&Method::POST, ("blobs", "uploads/")) => {
                let fields = format!("Location: {}\r\n", upload);
                answer(&stream, &head.method, "202 Accepted", &fields, b"")?;
            }
            (&Method::PATCH, ("blobs", "uploads/1")) => {
                let (Framing::Length(left), Some(at)) = (head.framing, first(&head)) else {
                    return answer(&stream, &head.method, "400 Bad Request", "", b"")
                        .map(|()| Came::Question);
                };
                stream.set_nonblocking(true)?;
                return Ok(Came::Part(Part { at, left, begun, stream, next: upload }));
            }
            (&Method::PUT, ("manifests", NEW)) => {
                let manifest = read_manifest(&head, begun, &stream)?;
                answer(&stream, &head.method, "201 Created", "", b"")?;
                return Ok(Came::Manifest(manifest));
            }
            (&Method::PUT, ("blobs", "uploads/1")) => {
                answer(&stream, &head.method, "201 Created", "", b"")?;
            }
            _ => {
                answer(&stream, &head.method, "404 Not Found", "", b"")?;
                return Err(io::ErrorKind::NotFound.into());
            }
        }
        Ok(Came::Question)
    }
}

/// Where a part begins (`Content-Range: 0-99`).
fn first(head: &Head) -> Option<u64> {
    head.fields.get(CONTENT_RANGE)?.to_str().ok()?.split_once('-')?.0.parse().ok()
}

fn read_manifest(head: &Head, begun: Vec<u8>, mut stream: &TcpStream) -> io::Result<Vec<u8>> {
    let length = match head.framing {
        Framing::Length(length) if length <= MOST => length,
        _ => return Err(io::Error::other("no manifest")),
    };
    let mut manifest = begun;
    let rest = length.saturating_sub(manifest.len() as u64);
    stream.by_ref().take(rest).read_to_end(&mut manifest)?;
    match manifest.len() as u64 == length {
        true => Ok(manifest),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

impl Part {
    /// The next bytes; 0 at the part's end.
    ///
    /// # Errors
    /// `watched` has left, Ollama has, or it sends nothing for so long.
    pub(crate) fn read(
        &mut self,
        out: &mut [u8],
        watched: &TcpStream,
        patience: Duration,
    ) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(out.len());
        let out = &mut out[..most];
        if out.is_empty() {
            return Ok(0);
        }
        let n = match self.begun.len().min(most) {
            0 => self.receive(out, watched, patience)?,
            n => {
                out[..n].copy_from_slice(&self.begun[..n]);
                self.begun.drain(..n);
                n
            }
        };
        self.at += n as u64;
        self.left -= n as u64;
        Ok(n)
    }

    fn receive(
        &mut self,
        out: &mut [u8],
        watched: &TcpStream,
        patience: Duration,
    ) -> io::Result<usize> {
        loop {
            let from = (&self.stream, PollFlags::IN);
            let (own, other) = socket::wait(from, Some((watched, HANGUP)), Some(patience))?;
            if socket::has_left(watched, other) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if own.is_empty() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match socket::try_read(&self.stream, out)? {
                Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(n) => return Ok(n),
                None => {}
            }
        }
    }

    /// The whole part was taken: the next one may come.
    pub(crate) fn end(self) -> io::Result<()> {
        self.stream.set_nonblocking(false)?;
        let fields = format!("Location: {}\r\n", self.next);
        answer(&self.stream, &Method::PATCH, "202 Accepted", &fields, b"")
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);
    const WANTED: &str = "sha256:aa";

    /// A push's place, and somebody who waits for it.
    fn open() -> (Uploads, TcpStream, TcpStream) {
        let uploads = Uploads::open(Some(WANTED.to_owned()), Ipv4Addr::LOCALHOST).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        near.set_nonblocking(true).unwrap();
        (uploads, near, listener.accept().unwrap().0)
    }

    /// Sends a request, and takes it.
    fn come(uploads: &Uploads, watched: &TcpStream, request: &str) -> (Option<Came>, String) {
        let address = uploads.place.listener.local_addr().unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let came = uploads.next(watched, LONG).unwrap();
        let mut answer = String::new();
        if !matches!(came, Some(Came::Part(_))) {
            let _ = stream.read_to_string(&mut answer);
        }
        (came, answer)
    }

    #[test]
    fn a_push_goes_its_way() {
        let (uploads, watched, _far) = open();
        let path = &uploads.place.path;
        let ask = |method: &str, rest: &str, fields: &str| {
            let request = format!("{method} {path}{rest} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            come(&uploads, &watched, &request)
        };
        for (digest, status) in [("sha256:bb", "200"), (WANTED, "404")] {
            let (came, answer) = ask("HEAD", &format!("blobs/{digest}"), "");
            assert!(matches!(came, Some(Came::Question)));
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        }
        let (_, answer) = ask("POST", "blobs/uploads/?from=x&mount=y", "Content-Length: 0\r\n");
        let place = format!("Location: {}blobs/uploads/1\r\n", uploads.place.url);
        assert!(answer.starts_with("HTTP/1.1 202 ") && answer.contains(&place), "{answer}");
        let fields = "Content-Range: 7-9\r\nContent-Length: 3\r\n\r\nabc";
        let request = format!("PATCH {path}blobs/uploads/1 HTTP/1.1\r\nHost: a\r\n{fields}");
        let (came, _) = come(&uploads, &watched, &request);
        let Some(Came::Part(mut part)) = came else { panic!("{came:?}") };
        assert_eq!((part.at, part.left), (7, 3));
        let mut bytes = [0; 2];
        assert_eq!(part.read(&mut bytes, &watched, LONG).unwrap(), 2);
        assert_eq!(part.read(&mut bytes, &watched, LONG).unwrap(), 1);
        assert_eq!(part.read(&mut bytes, &watched, LONG).unwrap(), 0);
        part.end().unwrap();
    }

    /// Programs of this machine find the port, and say what they like there.
    #[test]
    fn what_is_no_part_of_the_push_brings_nothing() {
        let (uploads, watched, far) = open();
        let path = uploads.place.path.clone();
        let elsewhere = path.replace("ollana-copy/", "ollana-copy/0");
        for request in [
            format!(
                "PUT {elsewhere}manifests/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{{}}"
            ),
            format!("PUT {path}manifests/2 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{{}}"),
            format!("PUT {path}manifests/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 262145\r\n\r\n"),
            format!("PUT {path}manifests/1 HTTP/1.1\r\nHost: a\r\n\r\n"),
            format!(
                "PATCH {path}blobs/uploads/2 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na"
            ),
            format!(
                "PATCH {path}blobs/uploads/1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na"
            ),
            format!("GET {path}manifests/1 HTTP/1.1\r\nHost: a\r\n\r\n"),
            format!("GET {path}../manifests/1 HTTP/1.1\r\nHost: a\r\n\r\n"),
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "nonsense\r\n\r\n".to_owned(),
            "x".repeat(100_000),
        ] {
            let (came, answer) = come(&uploads, &watched, &request);
            assert!(matches!(came, None | Some(Came::Question)), "{request:.80}: {came:?}");
            assert!(!answer.starts_with("HTTP/1.1 20"), "{request:.80}: {answer}");
        }
        drop(far);
        assert!(uploads.next(&watched, LONG).is_err(), "who waited for it has left");
    }
}
