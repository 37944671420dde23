//! A blob on its way into the own Ollama. It is hashed here as well: what Ollama has got whole, it keeps
//! under the digest that it has, so that of wrong bytes the last ones are held back.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Method, Request};
use ring::digest::{Context, SHA256};

use super::source::{Piece, Said, Source};
use super::{Blob, LOOK, Lapse, Refusal, Sharing, Wanted};
use crate::system::{self, Hex, lock};
use crate::upstream::exchange_io::{self, Attempt, ExchangeIo};
use crate::upstream::{Upstream, build_uri};

/// Bytes of an error of Ollama's that are read.
const REASON: u64 = 4 << 10;

#[derive(Debug)]
struct PutProgress {
    given: AtomicU64,
    donor: Mutex<Arc<str>>,
}

/// A blob that is being put into Ollama. Dropping it breaks that off.
#[derive(Debug)]
pub(crate) struct Put {
    pub(crate) blob: Blob,
    progress: Arc<PutProgress>,
    ended: Receiver<Result<(), String>>,
    refusal: Said,
    _wanted: Option<Wanted>,
}

impl Put {
    /// Bytes that Ollama was given.
    pub(crate) fn given(&self) -> u64 {
        self.progress.given.load(Relaxed)
    }

    /// Whether it was given all of it: Ollama takes nothing of a layer that it has got meanwhile.
    pub(crate) fn was_whole(&self) -> bool {
        self.given() == self.blob.size
    }

    /// Who gives them at present.
    pub(crate) fn donor(&self) -> Arc<str> {
        Arc::clone(&lock(&self.progress.donor))
    }

    /// What the only machine that may give the rest says at present instead.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        lock(&self.refusal).clone()
    }

    /// Waits for the end up to `time`: that Ollama has the blob now, or why not; `None` if it goes on.
    pub(crate) fn ended_within(&self, time: Duration) -> Option<Result<(), String>> {
        match self.ended.recv_timeout(time) {
            Ok(result) => Some(result),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Err("its thread has failed".to_owned())),
        }
    }
}

impl Sharing {
    /// Puts what a source brings into the Ollama at this address, behind this prefix of its paths.
    ///
    /// # Errors
    /// There is no thread for it.
    pub(crate) fn put(
        &self,
        mut source: Source,
        (ollama, prefix): (SocketAddr, &str),
    ) -> io::Result<Put> {
        let blob = source.blob.clone();
        let (wanted, refusal) = (source.wanted.take(), Arc::clone(&source.refusal));
        let donor = Mutex::new(Arc::clone(&source.donor));
        let progress = Arc::new(PutProgress { given: AtomicU64::new(0), donor });
        let (end, ended) = bounded(1);
        let upstream = Upstream::new(&self.timing, &self.keyring);
        let uri = build_uri(ollama, prefix, &format!("/api/blobs/{}", blob.digest));
        let mut request = Request::new(());
        *request.uri_mut() = uri.map_err(io::Error::other)?;
        *request.method_mut() = Method::POST;
        request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(blob.size));
        let pieces = Pieces {
            sharing: self.clone(),
            hash: Context::new(&SHA256),
            hashed: 0,
            source,
            progress: Arc::clone(&progress),
            piece: None,
            donors: Vec::new(),
            used: 0,
            left: blob.size,
        };
        system::spawn("putter", move || {
            upstream.begin(Attempt { is_large: true, ..Attempt::default() });
            let _ = end.send(send(&upstream, request, pieces));
            exchange_io::with(ExchangeIo::end);
        })?;
        Ok(Put { blob, progress, ended, refusal, _wanted: wanted })
    }
}

fn send(upstream: &Upstream, request: Request<()>, mut pieces: Pieces) -> Result<(), String> {
    let answer = upstream.send(request, Some(&mut pieces as &mut dyn Read))?;
    let status = answer.status();
    let mut reason = String::new();
    let _ = answer.into_body().into_reader().take(REASON).read_to_string(&mut reason);
    match status.is_success() {
        true => Ok(()),
        false => Err(format!("Ollama answers with status {status} {}", reason.trim())),
    }
}

/// The pieces of a source as the body of a request.
struct Pieces {
    sharing: Sharing,
    /// Of the pieces that have come, and how many bytes they have.
    hash: Context,
    hashed: u64,
    source: Source,
    progress: Arc<PutProgress>,
    piece: Option<Piece>,
    /// Who gave any of them.
    donors: Vec<SocketAddr>,
    /// Bytes of the piece that were used.
    used: usize,
    left: u64,
}

impl Read for Pieces {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.left == 0 {
                return Ok(0);
            }
            if exchange_io::with(|io| io.is_answered_early()) {
                // Nothing more is sent, but ureq wants the declared length before it reads the answer.
                let n = self.left.min(out.len() as u64);
                self.left -= n;
                return Ok(n as usize);
            }
            if let Some(piece) = &self.piece {
                let n = (&piece.bytes[self.used..]).read(out)?;
                self.progress.given.fetch_add(n as u64, Relaxed);
                self.used += n;
                self.left -= n as u64;
                if self.used == piece.bytes.len() {
                    self.used = 0;
                    self.piece.take().into_iter().for_each(|piece| self.source.reuse(piece));
                }
                return Ok(n);
            }
            // Not a kind of error that ureq takes for the end of a body.
            let broken = io::Error::other;
            if !self.source.work.is_wanted() {
                return Err(broken("nobody wants it any more"));
            }
            let next = self.source.next(LOOK);
            self.piece = next?;
            if let Some(piece) = &self.piece {
                *lock(&self.progress.donor) = Arc::clone(&piece.donor);
                if !self.donors.contains(&piece.address) {
                    self.donors.push(piece.address);
                }
                self.hash.update(&piece.bytes);
                self.hashed += piece.bytes.len() as u64;
                if self.is_wrong() {
                    // Of several, any may have lied.
                    self.donors.iter().for_each(|it| self.sharing.remember(*it, Lapse::Wrong));
                    return Err(broken("digest mismatch: these are other bytes"));
                }
            }
        }
    }
}

impl Pieces {
    /// Whether all bytes have come, and aren't those of the digest.
    fn is_wrong(&self) -> bool {
        let Blob { digest, size } = &self.source.blob;
        let found = || Hex(self.hash.clone().finish().as_ref()).to_string();
        self.hashed == *size && digest.strip_prefix("sha256:") != Some(&found())
    }
}
