//! Puts a model in the place of an alias (`--alias`) that a request of this machine names, before
//! anything depends on its model. What manages models means the names that are written there.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::{Context, Exchange, OwnAnswer};
use crate::http::head::Framing;
use crate::http::target::{percent_encode, split_query, with_query_value};
use crate::manager::Inventories;
use crate::ollama::aliases::Alias;
use crate::ollama::endpoints::{Class, Task};
use crate::ollama::inventory::is_had;
use crate::ollama::subject::{Subject, subject};
use crate::proxy::request_body::RequestBody;
use crate::proxy::zstd;
use crate::upstream::exchange_io::Fault;

/// Between two looks at what the servers have.
const LOOK: Duration = Duration::from_millis(20);

impl<'a> Exchange<'a> {
    /// What the body is about with a model in the alias's place, if it was looked at.
    pub(super) fn resolve_alias(
        &mut self,
        body: &mut RequestBody<'a>,
    ) -> Result<Option<Subject>, OwnAnswer> {
        let aliases = &self.context.settings.aliases;
        let is_use = self.endpoint.task == Task::Use
            && matches!(self.endpoint.class, Class::Open | Class::Unknown);
        if !(is_use && self.is_client()) || aliases.is_empty() {
            return Ok(None);
        }
        let in_path = self.endpoint.model_in_path(&self.head.target);
        if let Some(alias) = in_path.and_then(|name| aliases.named(&name)) {
            let (path, query) = split_query(&self.head.target);
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            let mark = if query.is_empty() { "" } else { "?" };
            let model = percent_encode(&self.model_for(alias));
            self.target = Some(format!("{parent}/{model}{mark}{query}"));
        }
        if !self.endpoint.names_model() || self.framing == Framing::Empty {
            return Ok(None);
        }
        let mut subject = self.look(body)?;
        // What comes late may be named another time.
        if self.alias_of(&subject).is_some()
            && let Some(watch) = body.watch.take()
        {
            subject = self.look_on(body, watch.scan)?;
        }
        self.resolve_in_body(body, subject).map(Some)
    }

    /// The same for a body that was looked at.
    pub(super) fn resolve_in_body(
        &mut self,
        body: &mut RequestBody<'a>,
        mut seen: Subject,
    ) -> Result<Subject, OwnAnswer> {
        let Some(alias) = self.alias_of(&seen) else { return Ok(seen) };
        let model = self.model_for(alias);
        let other = match self.endpoint.takes_form() {
            true => format!("{model}\r\n"),
            false => serde_json::Value::from(model.as_str()).to_string(),
        };
        if self.is_zstd() && !self.unpack(body, &mut seen)? {
            return Ok(seen);
        }
        if self.endpoint.takes_form() && seen.model_at.is_none() {
            self.target = Some(with_query_value(&self.head.target, "model", &model));
            return Ok(Subject { model: Some(model), ..seen });
        }
        let (place, length) = (seen.model_at.take().unwrap_or_default(), other.len());
        if place.is_empty() || !body.kept.splice(place.clone(), other.as_bytes()) {
            let reason = "the alias that it names as its model stands too far behind in it; \
                          name a model, or raise --replay-budget";
            return Err(OwnAnswer::Fault(Fault::BodyMalformed(reason)));
        }
        if let Framing::Length(all) = &mut self.framing {
            *all = *all - place.len() as u64 + length as u64;
        }
        body.watch = None;
        Ok(Subject { model: Some(model), ..seen })
    }

    fn alias_of(&self, subject: &Subject) -> Option<&'a Alias> {
        self.context.settings.aliases.find(subject.model.as_deref()?)
    }

    /// The model for it, once it is known what the servers have, or won't be soon.
    fn model_for(&self, alias: &Alias) -> String {
        let Context { mailbox, presence, settings, .. } = self.context;
        let (begun, most) = (Instant::now(), settings.timing.wait_timeout);
        loop {
            let Inventories { backends, sleeping, known, .. } = mailbox.inventories();
            if let Some(model) = alias.model(|model| is_had(&known, model)) {
                return model.to_owned();
            }
            let is_new = presence.about().is_some_and(|about| about.started.elapsed() < most);
            let is_open = backends + sleeping > known.len() || (backends == 0 && is_new);
            if !is_open || begun.elapsed() > most || self.has_client_left() {
                return alias.first().to_owned();
            }
            sleep(LOOK);
        }
    }

    /// Puts what is packed in a body into its place; false if it isn't whole, which is for Ollama to
    /// say.
    fn unpack(
        &mut self,
        body: &mut RequestBody<'a>,
        seen: &mut Subject,
    ) -> Result<bool, OwnAnswer> {
        self.fetch_all(body)?;
        let (mut plain, memory) = (Vec::new(), self.lend_for_zstd()?);
        if body.is_done() && memory.is_some() {
            zstd::decode(&*body.kept.bytes, |piece| {
                plain.extend_from_slice(piece);
                true
            });
        }
        let whole = subject(&plain);
        if whole.model != seen.model {
            return Ok(false);
        }
        seen.model_at = whole.model_at;
        drop(memory);
        self.replace_body(body, plain);
        self.is_unpacked = true;
        Ok(true)
    }
}
