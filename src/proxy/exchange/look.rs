//! Looks at a request's body before there is an upstream, to see what it is about.
//!
//! Until a body has named its model, more of it is received and kept, in memory that all exchanges
//! share. The last of several names counts: what comes without a pause is looked at too, as far as it
//! would be kept anyway, and the rest while it passes (`request_body::Watch`). A body that others leave
//! no memory waits for it; one beyond its share goes by what is known. So do tools, images and the length
//! of the prompt: what stands behind that doesn't count, and is never waited for.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue};

use super::{Exchange, OwnAnswer};
use crate::http::target;
use crate::ollama::endpoints::Task;
use crate::ollama::subject::{FormScan, Scan, Subject};
use crate::proxy::kept::Loan;
use crate::proxy::request_body::{BodyReader, RequestBody, Watch};
use crate::proxy::zstd;
use crate::upstream::exchange_io::{Attempt, Fault};

/// Bytes that are looked at where little depends on the model.
const LITTLE: usize = 64 * 1024;
/// A client that sends nothing for so long makes a pause within its body.
const PAUSE: Duration = Duration::from_millis(100);

/// How much more of a body is to be had.
enum More {
    No,
    /// What comes without a pause.
    AtHand,
    Any,
}

impl<'a> Exchange<'a> {
    /// What the body is about. Of a pull all is received, because it may have to be rewritten.
    pub(super) fn look(&mut self, body: &mut RequestBody<'a>) -> Result<Subject, OwnAnswer> {
        if self.endpoint.takes_form() {
            return self.look_at_form(body);
        }
        let mut scan = Scan::new(self.endpoint.model_members());
        if self.is_zstd() {
            self.look_at_zstd(body, &mut scan)?;
            return Ok(scan.subject());
        }
        let (task, has_choice) = (self.endpoint.task, self.has_choice());
        self.fetch(body, |piece| {
            scan.push(piece);
            match task {
                Task::Pull => More::Any,
                _ if scan.is_done() => More::No,
                // What a create starts from may stand behind its name.
                Task::Build => More::Any,
                _ if scan.model().is_none() => More::Any,
                _ if has_choice => More::AtHand,
                _ => More::No,
            }
        })?;
        Ok(self.watch(body, scan))
    }

    /// What a body is about that has turned out, while it was sent, to name another model.
    pub(super) fn look_on(
        &mut self,
        body: &mut RequestBody<'a>,
        mut scan: Scan,
    ) -> Result<Subject, OwnAnswer> {
        if !scan.is_done() {
            self.look_to_the_end(body, &mut scan)?;
        }
        Ok(self.watch(body, scan))
    }

    /// What a body is about that was seen to its end; `None` if that can't be told.
    pub(super) fn look_at_whole(
        &mut self,
        body: &mut RequestBody<'a>,
    ) -> Result<Option<Subject>, OwnAnswer> {
        if self.endpoint.takes_form() {
            let subject = self.look_at_form(body)?;
            return Ok(Some(subject).filter(|subject| subject.model.is_some()));
        }
        let mut scan = Scan::new(self.endpoint.model_members());
        if self.is_zstd() {
            // Where Ollama doesn't decode it, this may have been something else.
            self.look_at_zstd(body, &mut scan)?;
            return Ok(scan.is_done().then(|| scan.subject()));
        }
        self.look_to_the_end(body, &mut scan)?;
        // What ends before its object does is no JSON to Ollama either.
        Ok((scan.is_done() || body.is_done()).then(|| scan.subject()))
    }

    fn look_to_the_end(
        &mut self,
        body: &mut RequestBody<'a>,
        scan: &mut Scan,
    ) -> Result<(), OwnAnswer> {
        self.fetch(body, |piece| {
            scan.push(piece);
            if scan.is_done() { More::No } else { More::Any }
        })
    }

    /// Ollama knows no other encoding, and takes the bytes as they are.
    pub(super) fn is_zstd(&self) -> bool {
        self.field(CONTENT_ENCODING).is_some_and(|it| it.eq_ignore_ascii_case("zstd"))
    }

    fn watch(&self, body: &mut RequestBody<'a>, scan: Scan) -> Subject {
        let subject = scan.subject();
        let (chosen_for, banned) = (subject.model.clone(), &*self.context.settings.bans);
        let is_over = scan.is_done() || body.is_done() || !self.has_choice();
        body.watch = (!is_over).then_some(Watch { scan, chosen_for, banned });
        subject
    }

    fn look_at_form(&mut self, body: &mut RequestBody<'a>) -> Result<Subject, OwnAnswer> {
        let mut form = self.field(CONTENT_TYPE).and_then(FormScan::new);
        // Go's reader of forms takes values of the query first.
        let (_, query) = target::split_query(&self.head.target);
        let mut model = target::query_value(query, "model");
        if let (None, Some(form)) = (&model, &mut form) {
            self.fetch(body, |piece| {
                form.push(piece);
                if form.is_done() { More::No } else { More::Any }
            })?;
            model = form.model().map(str::to_owned);
        }
        let model_at = form.and_then(|form| form.model_at());
        Ok(Subject { model, model_at, ..Subject::default() })
    }

    fn look_at_zstd(
        &mut self,
        body: &mut RequestBody<'a>,
        scan: &mut Scan,
    ) -> Result<(), OwnAnswer> {
        let most = self.most_looked_at();
        if let Some(_memory) = self.lend_for_zstd()? {
            let reader = self.begin_reading(body, self.patience());
            let packed = Packed { reader, most, read: 0 };
            zstd::decode(packed, |piece| {
                scan.push(piece);
                !scan.is_done()
            });
        }
        self.fault().map_or(Ok(()), Err)
    }

    /// Memory to decode zstd in, if there is as much.
    pub(super) fn lend_for_zstd(&self) -> Result<Option<Loan<'a>>, OwnAnswer> {
        let mut memory = self.context.budget.lend();
        let (mut patience, has_left) = (self.patience(), || self.has_client_left());
        let is_lent =
            memory.await_growth(zstd::MEMORY, &mut patience, has_left).map_err(OwnAnswer::Fault)?;
        // The body that is decoded may need it next.
        memory.end_turn();
        Ok(is_lent.then_some(memory))
    }

    /// Receives and keeps all of a body that there is room for.
    pub(super) fn fetch_all(&mut self, body: &mut RequestBody<'a>) -> Result<(), OwnAnswer> {
        self.fetch(body, |_| More::Any)
    }

    /// The same of a body that was looked at: it can be sent without, so memory isn't waited for.
    pub(super) fn fetch_rest(&mut self, body: &mut RequestBody<'a>) -> Result<(), OwnAnswer> {
        let mut watch = body.watch.take();
        let fetched = self.fetch_within(body, None, |piece| {
            watch.iter_mut().for_each(|watch| watch.scan.push(piece));
            More::Any
        });
        body.watch = watch;
        fetched
    }

    /// Receives and keeps pieces of the body, and hands them to `look`, which tells how it goes on.
    fn fetch(
        &mut self,
        body: &mut RequestBody<'a>,
        look: impl FnMut(&[u8]) -> More,
    ) -> Result<(), OwnAnswer> {
        self.fetch_within(body, self.patience(), look)
    }

    fn fetch_within(
        &mut self,
        body: &mut RequestBody<'a>,
        patience: Option<Duration>,
        mut look: impl FnMut(&[u8]) -> More,
    ) -> Result<(), OwnAnswer> {
        let (limits, all) = (&self.context.settings.limits, self.most_looked_at());
        let (mut most, mut pause) = (all, None);
        let mut reader = self.begin_reading(body, patience);
        loop {
            let before = reader.kept().len();
            if reader.fetch(most, pause).is_err() {
                drop(reader);
                return Err(self.fault().unwrap_or(OwnAnswer::Fault(Fault::ClientLeft)));
            }
            let piece = &reader.kept()[before..];
            if piece.is_empty() {
                return Ok(());
            }
            (most, pause) = match look(piece) {
                More::No => return Ok(()),
                More::AtHand => (all.min(limits.replay_limit), Some(PAUSE)),
                More::Any => (all, None),
            };
        }
    }

    fn most_looked_at(&self) -> usize {
        // Of an inference it depends on the model whether it counts.
        let matters = self.has_choice() || self.endpoint.is_inference() || self.keeps_from_cloud();
        if matters { self.context.budget.share() } else { LITTLE }
    }

    /// How long it waits for memory, if its body decides where it goes, or whether it may.
    fn patience(&self) -> Option<Duration> {
        let is_pull = self.endpoint.task == Task::Pull;
        let matters = self.has_choice() || self.keeps_from_cloud() || is_pull;
        let can_come = !self.is_zstd() || self.context.budget.has_beside_share(zstd::MEMORY);
        (matters && can_come).then_some(self.context.settings.timing.queue_timeout)
    }

    fn begin_reading<'b>(
        &'b mut self,
        body: &'b mut RequestBody<'a>,
        patience: Option<Duration>,
    ) -> BodyReader<'b, 'a> {
        let client = Some(Arc::clone(&self.connection.stream));
        let half_closed = self.half_closed();
        self.upstream.begin(Attempt { client, half_closed, ..Attempt::default() });
        let timeout = self.context.settings.timing.body_timeout;
        let mut reader = BodyReader::new(self.connection, body, timeout);
        reader.patience = patience;
        reader
    }

    fn field(&self, name: HeaderName) -> Option<&str> {
        self.head.fields.get(name).map(HeaderValue::to_str)?.ok()
    }
}

/// A body that is received as it is read.
struct Packed<'b, 'a> {
    reader: BodyReader<'b, 'a>,
    most: usize,
    /// Bytes that were read.
    read: usize,
}

impl Read for Packed<'_, '_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.read == self.reader.kept().len() {
            self.reader.fetch(self.most, None)?;
        }
        let n = (&self.reader.kept()[self.read..]).read(out)?;
        self.read += n;
        Ok(n)
    }
}
