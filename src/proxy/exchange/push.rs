//! Models of an Ollama whose folder can't be read, such as in a container or in a home that lets nobody
//! in, or of which something is elsewhere: Ollama itself pushes them, to a registry of this machine, and
//! what it sends goes on to the machine that copies the model. Nothing of it is kept.
//!
//! ```text
//!  GET /ollana/manifests/NAME ──► copy to a name for a moment, push: everything is there already, so
//!                                 that only the manifest comes; which blobs it names is remembered
//!  GET /ollana/blobs/DIGEST   ──► the same, but this blob is lacking: its parts come in order
//! ```
//!
//! The name is needed until the push has begun, and deleted then; one that a crash leaves behind, the
//! next copy deletes. Ollama pushes a blob to one place at a time, so one is given at a time.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use super::donations::{Donation, MOST_BLOBS, PIECE, Pushable};
use super::own::{self, Own};
use super::{Exchange, OwnAnswer};
use crate::library::{self, Digest};
use crate::net::names;
use crate::net::socket::{self, HANGUP, UNACKNOWLEDGED};
use crate::net::untrusted_text::printable;
use crate::ollama::model_name::ModelName;
use crate::ollama::{manifest, pull};
use crate::sharing::{self, Came, Part, Turn, Uploads};
use crate::upstream::exchange_io;

/// Ollama's first request comes within this, its manifest within that, and more bytes.
const FIRST: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether Ollama has refused.
const LOOK: Duration = Duration::from_millis(20);
/// A name of Ollama's machine is looked up within this.
const NAME_TIME: Duration = Duration::from_secs(1);

fn failed(reason: &str) -> OwnAnswer {
    let reason = printable(reason);
    OwnAnswer::NoCopy(
        502,
        format!("not all of what Ollama has can be read here, and it can't push: {reason}"),
    )
}

impl Exchange<'_> {
    /// A model's manifest as Ollama pushes it.
    pub(super) fn pushed_manifest(&self, wanted: &ModelName) -> Result<Vec<u8>, OwnAnswer> {
        let own = self.own_ollama().map_err(|reason| failed(&reason))?;
        let models = own.models().map_err(|reason| failed(&reason))?;
        let model = models.iter().find(|model| own::name(model).as_ref() == Some(wanted));
        let model = model.ok_or(OwnAnswer::NotShared)?;
        let name = model["name"].as_str().unwrap_or_default();
        let (mut push, mut came) = self.push(own, name, None).map_err(|it| failed(&it))?;
        let mut text = loop {
            match came {
                Came::Manifest(text) => break text,
                Came::Question => came = push.next().map_err(|reason| failed(&reason))?,
                Came::Part(_) => return Err(failed("it sends what it wasn't asked for")),
            }
        };
        // Ollama ends those that it makes itself with a line feed, and doesn't push that. What isn't known
        // to have been pulled counts as made.
        if model["digest"] != own::sha256(&text) {
            text.push(b'\n');
        }
        let layers = manifest::layers(&text).ok_or_else(|| failed("it sends no manifest"))?;
        if layers.len() > MOST_BLOBS {
            return Err(failed("the model has too many layers"));
        }
        self.context.donations.pushes.remember(name, &layers);
        library::without_paths(&text).ok_or_else(|| failed("it sends no manifest"))
    }

    /// Has Ollama begin to push a blob.
    pub(super) fn push_blob(&self, blob: &Pushable) -> Result<(Push<'_>, Part), OwnAnswer> {
        let own = self.own_ollama().map_err(|reason| failed(&reason))?;
        let one = self.context.donations.pushes.begin().ok_or(OwnAnswer::DonorBusy)?;
        let push = self.push(own, &blob.model, Some(&blob.digest));
        let (mut push, mut came) = push.map_err(|reason| failed(&reason))?;
        push.one = Some(one);
        loop {
            match came {
                Came::Part(part) => return Ok((push, part)),
                Came::Question => came = push.next().map_err(|reason| failed(&reason))?,
                // The name means another model now.
                Came::Manifest(_) => return Err(OwnAnswer::NotShared),
            }
        }
    }

    /// Passes on these bytes of a blob that is being pushed.
    pub(super) fn send_pushed(
        &self,
        (mut push, mut part): (Push<'_>, Part),
        bytes: Range<u64>,
        donation: Option<&Donation>,
    ) -> io::Result<()> {
        let client = &self.connection.stream;
        let stall = self.context.settings.timing.stall_timeout;
        socket::limit_unacknowledged(client.socket(), stall.max(UNACKNOWLEDGED))?;
        let (mut buffer, mut at) = (vec![0; PIECE], bytes.start);
        while at < bytes.end {
            if self.context.connections.is_draining() {
                return Err(io::Error::other("the process ends"));
            }
            let begin = part.at;
            let n = part.read(&mut buffer, client.socket(), PATIENCE)? as u64;
            if n == 0 {
                part.end()?;
                part = push.next_part()?;
                continue;
            }
            if begin > at {
                return Err(io::Error::other("Ollama leaves a part out"));
            }
            // What comes before that isn't wanted, or has been sent already.
            let useful = at.min(begin + n)..bytes.end.min(begin + n);
            let [from, to] =
                [useful.start, useful.end.max(useful.start)].map(|it| (it - begin) as usize);
            client.write_watching(&buffer[from..to], stall, HANGUP)?;
            let given = (to - from) as u64;
            self.note_given(given, donation);
            at += given;
        }
        socket::limit_unacknowledged(client.socket(), UNACKNOWLEDGED)
    }

    pub(super) fn own_ollama(&self) -> Result<Own<'_>, String> {
        let url = self.context.settings.ollama_url();
        let address = names::resolve(&url.host, url.port, NAME_TIME)?;
        let address: SocketAddr = *address.first().ok_or("it has no address")?;
        Ok(Own { upstream: self.upstream, address, prefix: &self.context.prefix })
    }

    /// Has Ollama push a model: the push, and its first request.
    fn push<'e>(
        &'e self,
        own: Own<'e>,
        model: &str,
        lacks: Option<&Digest>,
    ) -> Result<(Push<'e>, Came), String> {
        // Before it begins: what others make meanwhile isn't left over.
        let models = own.models()?;
        let turn = self.context.sharing.begin_copy();
        if turn.is_only_one {
            own.clean_up(&models)?;
        }
        let mut refused = "no port of 127.0.0.1 can be had for the copy".to_owned();
        for address in sharing::addresses() {
            let uploads = match Uploads::open(lacks.map(Digest::to_string), address) {
                Ok(uploads) => uploads,
                Err(error) => {
                    refused = error.to_string();
                    continue;
                }
            };
            let mut push = Push {
                own,
                uploads,
                client: self.connection.stream.socket(),
                lines: Box::new(io::empty()),
                line: Vec::new(),
                is_named: true,
                one: None,
                turn: None,
            };
            let name = push.uploads.name();
            if !own.copy(model, &name)? {
                return Err(format!("{model} is gone"));
            }
            push.lines = own.push(&name)?;
            match push.next() {
                Ok(came) => {
                    push.turn = Some(turn);
                    return Ok((push, came));
                }
                // It may be in a container, whose loopback is another one.
                Err(reason) => refused = reason,
            }
        }
        Err(refused)
    }
}

/// A push of the own Ollama's. Dropping it ends that.
pub(super) struct Push<'e> {
    own: Own<'e>,
    uploads: Uploads,
    client: &'e std::net::TcpStream,
    /// What Ollama says of it.
    lines: Box<dyn Read>,
    line: Vec<u8>,
    is_named: bool,
    /// Of a blob: its place.
    one: Option<MutexGuard<'e, ()>>,
    turn: Option<Turn>,
}

impl Push<'_> {
    fn next(&mut self) -> Result<Came, String> {
        let until = Instant::now() + if self.is_named { FIRST } else { PATIENCE };
        while Instant::now() < until {
            let came = self.uploads.next(self.client, LOOK).map_err(|error| error.to_string())?;
            if let Some(came) = came {
                self.forget_name();
                return Ok(came);
            }
            if self.is_named {
                self.look_at_lines()?;
            }
        }
        Err("it sends nothing".to_owned())
    }

    fn next_part(&mut self) -> io::Result<Part> {
        loop {
            match self.next().map_err(io::Error::other)? {
                Came::Part(part) => return Ok(part),
                Came::Question => {}
                Came::Manifest(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }

    /// Whether Ollama has refused before it came.
    fn look_at_lines(&mut self) -> Result<(), String> {
        exchange_io::with(|io| io.look_until = Some(Instant::now() + Duration::from_millis(1)));
        let mut piece = [0; 1024];
        let n = self.lines.read(&mut piece).unwrap_or_default();
        self.line.extend_from_slice(&piece[..n]);
        for line in self.line.split(|byte| *byte == b'\n') {
            if let Some(error) = pull::error(line) {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Ollama has read what the name means.
    fn forget_name(&mut self) {
        if std::mem::take(&mut self.is_named)
            && let Err(reason) = self.own.delete(&self.uploads.name())
        {
            log::warn!("a copy for a moment stays, until the next one: {reason}");
        }
    }
}

impl Drop for Push<'_> {
    fn drop(&mut self) {
        self.lines = Box::new(io::empty());
        self.forget_name();
    }
}
