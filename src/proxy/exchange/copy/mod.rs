//! A model that is copied from another machine of the LAN exactly as it is there, without the
//! registry: one that was made there, or any where the internet is away.
//!
//! ```text
//!  donor ──manifest──► is the name right, what is missing here, is there room on the disk?
//!        ──layers────► sharing ──► POST /api/blobs of the own Ollama, which hashes them
//!  a registry on loopback ──manifest──► POST /api/pull of the own Ollama, under a name for a moment
//!  what has the plain name is copied aside, the new one over it; then the names for a moment go
//! ```
//!
//! The answer is that of a pull, line by line. The plain name means what it meant before up to the
//! moment when it means the new model. Names that a crash leaves behind, the next copy deletes; layers
//! that no model names, Ollama itself at its next start.

mod answer;
mod onward;

use std::time::{Duration, Instant};

use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};

use self::answer::{Answer, Broken};
use super::own::{Own, ask, name, sha256};
use super::{End, Exchange, OwnAnswer};
use crate::access::permissions::{Permission, Refusal};
use crate::http::fields::{COPY_FIELD, ERROR_FIELD};
use crate::manager::pool::{Outcome, Wanted};
use crate::manager::{Lease, Refused};
use crate::net::untrusted_text::printable;
use crate::ollama::endpoints::Task;
use crate::ollama::manifest;
use crate::ollama::model_name::ModelName;
use crate::ollama::pull::{self, layer_line};
use crate::proxy::request_body::RequestBody;
use crate::sharing::{self, Blob, Donors, MANIFEST_TIME, Neighbour, Registry, Seek, manifest_path};
use crate::system::size_text;
use crate::upstream::build_uri;
use crate::upstream::exchange_io::{Attempt, Fault};

/// How long a donor is looked for: a server that uses no others looks around once.
const SEARCH: Duration = Duration::from_secs(3);
/// A donor gives a layer within this, once it isn't busy with others.
const LAYER_TIME: Duration = Duration::from_secs(120);
/// How often it is looked what has become of a layer and of the client, and how often that is told.
const LOOK: Duration = Duration::from_millis(20);
const TELL: Duration = Duration::from_millis(100);

fn refused(status: u16, reason: impl Into<String>) -> OwnAnswer {
    OwnAnswer::NoCopy(status, reason.into())
}

/// Fails unless the answer of this name's machine is one of an ollana that models can be copied to.
fn knows_copies(answer: &HeaderMap, name: &str) -> Result<(), OwnAnswer> {
    match [COPY_FIELD, ERROR_FIELD].iter().any(|it| answer.contains_key(it)) {
        true => Ok(()),
        false => Err(refused(502, format!("{name} runs no ollana that models can be copied to"))),
    }
}

impl<'a> Exchange<'a> {
    /// The server from which the request wants a model copied, if it wants that and may.
    pub(super) fn copies_from(&self) -> Result<Option<&'a str>, OwnAnswer> {
        let field = self.head.fields.get(COPY_FIELD).filter(|_| self.endpoint.task == Task::Pull);
        let Some(field) = field else { return Ok(None) };
        let policy = self.context.settings.policy;
        if policy.permission(self.connection.caller()) < Permission::Manage {
            return Err(self.forbidden(Refusal::Manage));
        }
        let name = field.to_str().ok().filter(|name| !name.is_empty());
        name.map(Some).ok_or_else(|| refused(400, "no server has the name to copy from"))
    }

    pub(super) fn is_copy(&self) -> bool {
        matches!(self.copies_from(), Ok(Some(_)))
    }

    /// The own Ollama, where that is the one that gets the copy.
    pub(super) fn lease_for_copy(&self, wanted: &Wanted) -> Result<Option<Lease>, OwnAnswer> {
        if self.is_client() && !self.context.presence.is_local_up() {
            return Ok(None);
        }
        match self.lease(&[], wanted) {
            Ok(lease) => Ok(Some(lease).filter(|lease| lease.pick.is_local)),
            Err(Refused::QueueFull) => Err(OwnAnswer::QueueFull),
            Err(Refused::NoServer(why) | Refused::OwnerAway(why)) => Err(OwnAnswer::NoServer(why)),
        }
    }

    /// What is said instead of an answer of a server that took the request for an ordinary pull.
    pub(super) fn misses_copy(&self, answer: &HeaderMap, lease: &Lease) -> Option<OwnAnswer> {
        let is_wanted = self.is_client() && self.is_copy();
        is_wanted.then(|| knows_copies(answer, &lease.pick.label()).err()).flatten()
    }

    /// Copies the model that the body names into the own Ollama, which the lease is of.
    pub(super) fn copy(
        &mut self,
        mut body: RequestBody<'a>,
        (mut lease, wanted): (Lease, &Wanted),
        donor: &str,
    ) -> Result<End, OwnAnswer> {
        let (model, streams) = self.copy_asked(&mut body)?;
        let wanted = Wanted { model: ModelName::parse(&model), ..wanted.clone() };
        let transfer = self.show_progress(&wanted, &body);
        if let Some(transfer) = &transfer {
            transfer.goes_to(&lease.pick.name, true);
        }
        let donor = self.neighbour(donor)?;
        let upstream = self.upstream;
        let own = Own { upstream, address: lease.pick.address, prefix: &self.context.prefix };
        let models = own.models().map_err(OwnAnswer::Failed)?;
        let turn = self.context.sharing.begin_copy();
        if turn.is_only_one {
            own.clean_up(&models).map_err(OwnAnswer::Failed)?;
        }
        let manifest = self.manifest(&donor, &model)?;
        let copy = Copying { exchange: self, own, donor, model, manifest };
        let blobs = copy.blobs()?;
        let missing = copy.missing(&blobs, &models)?;
        let mut answer = Answer { exchange: self, streams, transfer: transfer.as_ref(), bytes: 0 };
        let result = answer.begin().and_then(|()| copy.run(&blobs, &missing, &mut answer));
        let failed = match result {
            Ok(()) => None,
            Err(Broken::Failed(reason)) => Some(reason),
            Err(Broken::ClientLeft) => return Err(OwnAnswer::Fault(Fault::ClientLeft)),
        };
        lease.report.outcome = Outcome::Answered;
        lease.report.changed_models = true;
        if failed.is_none() {
            // Who reads this asks for the model at once.
            lease.tell_of_change();
        }
        if let Some(reason) = &failed {
            log::warn!(
                "copy failed model={:?} donor={:?} reason={reason:?}",
                copy.model,
                copy.donor.name
            );
            self.note(0, "own", reason);
        }
        Ok(answer.end(failed, &lease.pick.name))
    }

    fn copy_asked(&mut self, body: &mut RequestBody<'a>) -> Result<(String, bool), OwnAnswer> {
        self.fetch_all(body)?;
        let asked = pull::copy_asked(&body.kept.bytes).filter(|_| body.is_done());
        asked.ok_or_else(|| refused(400, "invalid model name"))
    }

    /// Whether this machine listens there.
    fn is_own_address(&self, name: &str) -> bool {
        let about = self.context.presence.about();
        about.is_some_and(|about| about.listen.iter().any(|at| at.to_string() == name))
    }

    /// The machine that people mean by a name; an error if none shows up.
    pub(super) fn neighbour(&self, name: &str) -> Result<Neighbour, OwnAnswer> {
        let Exchange { context, .. } = self;
        let own = || refused(400, format!("{name} is the machine itself that would get the model"));
        if self.is_own_address(name) {
            return Err(own());
        }
        let until = Instant::now() + SEARCH;
        loop {
            let all = context.sharing.look();
            if let Some(found) = all.iter().find(|neighbour| neighbour.is_called(name)) {
                return Ok(found.clone());
            }
            if self.has_client_left() {
                return Err(OwnAnswer::Fault(Fault::ClientLeft));
            }
            // Another one may have the same name.
            let is_own = name.eq_ignore_ascii_case(&context.machine);
            if Instant::now() >= until && is_own {
                return Err(own());
            }
            if Instant::now() >= until {
                let names: Vec<&str> = all.iter().map(|other| other.name.as_str()).collect();
                let known = match names.is_empty() {
                    true => "it knows none".to_owned(),
                    false => format!("known are: {}", names.join(", ")),
                };
                let machine = &context.machine;
                return Err(refused(404, format!("{machine} knows no server {name:?} ({known})")));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// What the donor says of the model.
    fn manifest(&self, donor: &Neighbour, model: &str) -> Result<Vec<u8>, OwnAnswer> {
        let name = &donor.name;
        let target = manifest_path(model);
        let attempt = Attempt { is_lan: true, ..Attempt::default() };
        let uri = build_uri(donor.address, "", &target);
        let request = uri.map(|uri| (Method::GET, uri, None));
        let answer =
            request.and_then(|request| ask(self.upstream, attempt, request, MANIFEST_TIME));
        let failed = |reason: String| refused(502, format!("{name}: {reason}"));
        let (status, bytes) = answer.map_err(failed)?;
        let told: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let told = printable(told["error"].as_str().unwrap_or_default());
        Err(match status {
            StatusCode::OK => return Ok(bytes),
            _ if told.is_empty() => {
                refused(502, format!("{name} runs no ollana that models can be copied from"))
            }
            StatusCode::NOT_FOUND => refused(
                404,
                format!(
                    "{name} does not have {model}, or does not share it with {}: only machines that are \
                 paired get copies (ollana pair)",
                    self.context.machine
                ),
            ),
            StatusCode::FORBIDDEN | StatusCode::NOT_IMPLEMENTED | StatusCode::BAD_GATEWAY => {
                refused(status.as_u16(), format!("{name}: {told}"))
            }
            _ => refused(502, format!("{name} answers with status {status}: {told}")),
        })
    }
}

struct Copying<'e, 'a> {
    exchange: &'e Exchange<'a>,
    own: Own<'e>,
    donor: Neighbour,
    model: String,
    manifest: Vec<u8>,
}

impl Copying<'_, '_> {
    fn blobs(&self) -> Result<Vec<Blob>, OwnAnswer> {
        let layers = manifest::layers(&self.manifest).unwrap_or_default();
        let blobs = layers.iter().map(|(digest, size)| Blob::new(digest, *size));
        let blobs = blobs.collect::<Option<Vec<Blob>>>().filter(|blobs| !blobs.is_empty());
        blobs.ok_or_else(|| refused(502, format!("{} sends no manifest", self.donor.name)))
    }

    /// What isn't here yet. A disk that has no room for it is told before anything is sent.
    fn missing(&self, blobs: &[Blob], models: &[Value]) -> Result<Vec<Blob>, OwnAnswer> {
        let mut missing = Vec::new();
        for blob in blobs {
            if !self.own.has(blob).map_err(OwnAnswer::Failed)? {
                missing.push(blob.clone());
            }
        }
        let context = self.exchange.context;
        let needed: u64 = missing.iter().map(|blob| blob.size).fold(0, u64::saturating_add);
        let library = context.library.as_ref().filter(|library| {
            // Ollama may keep its models elsewhere than we know.
            let mut names = models.iter().filter_map(name).peekable();
            names.peek().is_none() || names.any(|name| library.manifest(&name).is_some())
        });
        let room = library.and_then(|library| library.free_space());
        match room.filter(|room| *room < needed) {
            None => Ok(missing),
            Some(room) => {
                let [needed, room] = [needed, room].map(|bytes| size_text(bytes as f64));
                Err(refused(
                    507,
                    format!(
                        "{} has no room for {}: it needs {needed}, and {room} are free",
                        context.machine, self.model
                    ),
                ))
            }
        }
    }

    fn run(
        &self,
        blobs: &[Blob],
        missing: &[Blob],
        answer: &mut Answer<'_, '_>,
    ) -> Result<(), Broken> {
        answer.say(&json!({ "status": "pulling manifest" }))?;
        for blob in blobs {
            if missing.contains(blob) {
                self.take(blob, answer)?;
            } else {
                answer.say(&layer_line(blob.digest(), blob.size, blob.size, None))?;
            }
        }
        answer.say(&json!({ "status": "writing manifest" }))?;
        // It takes a moment; to end it half-way would leave more behind than to end it.
        self.install()?;
        Ok(())
    }

    /// Puts a layer of the donor's into the own Ollama.
    fn take(&self, blob: &Blob, answer: &mut Answer<'_, '_>) -> Result<(), Broken> {
        let (sharing, donor) = (&self.exchange.context.sharing, &self.donor);
        let donors = Donors::Only(donor.address, manifest_path(&self.model));
        let waiting =
            json!({ "status": format!("waiting for {}, which gives to others", donor.name) });
        let is_busy = |refusal: &Option<sharing::Refusal>| *refusal == Some(sharing::Refusal::Busy);
        let (mut seek, mut until, mut waits) = (None, Instant::now() + LAYER_TIME, false);
        let source = loop {
            // There may be too many others just now.
            seek = seek.or_else(|| sharing.seek(blob.clone(), donors.clone()));
            if let Some(source) = seek.as_mut().and_then(|seek| seek.found_within(LOOK)) {
                break source;
            }
            answer.look()?;
            let refusal = seek.as_ref().and_then(Seek::refusal);
            if is_busy(&refusal) {
                until = Instant::now() + LAYER_TIME;
                if !std::mem::replace(&mut waits, true) {
                    answer.say(&waiting)?;
                }
            }
            if Instant::now() >= until || seek.as_ref().is_some_and(|seek| seek.is_over) {
                let why = refusal.map(|refusal| format!(": {refusal}")).unwrap_or_default();
                return Err(format!("{} does not give {}{why}", donor.name, blob.short()).into());
            }
            if seek.is_none() {
                std::thread::sleep(LOOK);
            }
        };
        let put = sharing.put(source, (self.own.address, self.own.prefix));
        let put = put.map_err(|error| error.to_string())?;
        let mut told = None;
        loop {
            let ended = put.ended_within(LOOK);
            if ended.is_some() || told.is_none_or(|at: Instant| at.elapsed() >= TELL) {
                let given = put.given();
                let name = Some(donor.name.as_str());
                match is_busy(&put.refusal()) {
                    true => answer.say(&waiting)?,
                    false => answer.say(&layer_line(blob.digest(), blob.size, given, name))?,
                }
                told = Some(Instant::now());
            }
            answer.look()?;
            match ended {
                None => {}
                Some(Ok(())) => break,
                Some(Err(reason)) => {
                    return Err(format!("{} from {}: {reason}", blob.short(), donor.name).into());
                }
            }
        }
        if put.was_whole() {
            answer.saved(blob.size);
        }
        Ok(())
    }

    /// Gives the model its name, once all of its layers are here.
    fn install(&self) -> Result<(), String> {
        let mut result = Err("no port of 127.0.0.1 can be had for the copy".to_owned());
        for address in sharing::addresses() {
            let registry = match Registry::start(self.manifest.clone(), address) {
                Ok(registry) => registry,
                Err(error) => {
                    result = Err(error.to_string());
                    continue;
                }
            };
            let (new, old) = (registry.name(), registry.other_name());
            let pulled = self.own.pull(&new).map_err(|reason| {
                if registry.was_asked() {
                    return reason;
                }
                let machine = &self.exchange.context.machine;
                format!("Ollama does not reach {machine}, does it run in a container? ({reason})")
            });
            let is_reached = pulled.is_ok() || registry.was_asked();
            let placed = pulled.and_then(|()| self.place(&new, &old));
            // What is missing is no trouble, and what can't be deleted now, the next copy deletes.
            let deleted = self.own.delete(&new);
            result = placed.and(deleted);
            if is_reached {
                break;
            }
        }
        result?;
        self.compare()
    }

    /// Lets the plain name mean what the new one means. Ollama's copy over a name forgets the layers
    /// that it named, until the next start; deleting a name that was put aside does not.
    fn place(&self, new: &str, old: &str) -> Result<(), String> {
        let had_one = self.own.copy(&self.model, old)?;
        match self.own.copy(new, &self.model) {
            Ok(true) => {}
            failed => {
                let reason = failed.err().unwrap_or_else(|| format!("{new} is gone"));
                if had_one {
                    self.own.copy(old, &self.model)?;
                    self.own.delete(old)?;
                }
                return Err(reason);
            }
        }
        if had_one { self.own.delete(old) } else { Ok(()) }
    }

    /// Whether it is what the donor has: the same manifest, byte by byte. Ollama before 0.19 writes
    /// it anew, so that layers are compared where the store can be read, and their size elsewhere.
    fn compare(&self) -> Result<(), String> {
        let digest = sha256(&self.manifest);
        let layers = manifest::layers(&self.manifest).unwrap_or_default();
        let size: u64 = layers.iter().map(|(_, size)| size).sum();
        let wanted = ModelName::parse(&self.model);
        let known = self.own.models()?;
        let known = known.iter().find(|model| name(model) == wanted);
        let is_same = known.is_some_and(|model| {
            let library = self.exchange.context.library.as_ref();
            let is_there = || library.zip(wanted.as_ref()).and_then(|(it, name)| it.manifest(name));
            model["digest"] == digest
                || match is_there() {
                    Some(there) => manifest::layers(&there).as_ref() == Some(&layers),
                    None => model["size"] == size,
                }
        });
        let name = &self.donor.name;
        is_same.then_some(()).ok_or_else(|| format!("{} is not what {name} has", self.model))
    }
}
