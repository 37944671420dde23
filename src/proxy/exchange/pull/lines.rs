//! The lines of a pull, as the client gets them, whoever gives the bytes of its layers.

use std::io::{self, Read};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::Exchange;
use super::{Plan, has_lines};
use crate::counters::TransferGuard;
use crate::manager::Lease;
use crate::manager::pool::Wanted;
use crate::net::untrusted_text::printable;
use crate::ollama::errors;
use crate::ollama::pull::{self, Progress};
use crate::sharing::{Blob, Put, Seek};
use crate::system::files::taken_space;
use crate::system::size_text;
use crate::upstream::exchange_io::{self, Fault};

/// Smaller layers are left to the registry: to ask takes longer than they do.
const WORTH: u64 = 8_000_000;
/// Bytes per second that a LAN brings, to judge whether a layer that is half here is worth a new start.
const LAN_SPEED: f64 = 100e6;
/// How long the registry's speed is measured before it is believed.
const MEASURED: Duration = Duration::from_secs(1);
/// Between two lines about a layer that comes from the house.
const TELL: Duration = Duration::from_millis(100);
/// How often is looked what has become of it, and of the client.
const LOOK: Duration = Duration::from_millis(20);
/// Bytes of Ollama's answer that are read at a time.
const PIECE: usize = 4 << 10;
/// Longer lines than Ollama writes go on in parts.
const LONGEST_LINE: usize = 64 << 10;
/// Lines that aren't about a layer, and layers that failed, that are remembered.
const MOST_SEEN: usize = 64;
/// A pull that ended with its client leaves a download behind that is just ending, and a new pull
/// that meets it fails with its error. It is sent again so often, after a pause that gets longer.
const ECHO: &str = "context canceled";
const MOST_ECHOES: u32 = 6;
const ECHO_PAUSE: Duration = Duration::from_millis(50);
/// Bytes of an answer that isn't lines.
const MOST_REASON: u64 = 4 << 10;

/// Where the lines come from.
enum Phase {
    /// Ollama, which gets what it lacks from the registry.
    Registry(Box<dyn Read>),
    Taking(Taking),
    /// Ollama is to pull again: it finds what it has got, and goes on.
    Again,
    Over,
}

/// A layer on its way from the house into Ollama.
struct Taking {
    put: Put,
    /// Bytes of it that the registry had given before.
    before: u64,
    since: Instant,
    told: Instant,
}

/// The layer that Ollama is getting.
struct Layer {
    now: Progress,
    /// When it was seen first, and how much of it there was.
    first: (Instant, u64),
    seek: Option<Seek>,
}

impl Layer {
    /// Whether to take it as a whole from the house is likely to be faster than what is left of it.
    fn is_worth_it(&self) -> bool {
        let Progress { total, completed, .. } = self.now;
        let (rest, time) = (total.saturating_sub(completed) as f64, self.first.0.elapsed());
        if time < MEASURED {
            return rest >= total as f64 / 10.0;
        }
        let speed = completed.saturating_sub(self.first.1) as f64 / time.as_secs_f64();
        rest / speed.max(1.0) > total as f64 / LAN_SPEED
    }
}

/// The lines of a pull, as the client gets them.
pub(in super::super) struct Lines<'b, 'a> {
    exchange: &'b Exchange<'a>,
    plan: &'b Plan,
    lease: &'b Lease,
    wanted: &'b Wanted,
    underway: Option<&'b TransferGuard>,
    phase: Phase,
    /// The line of Ollama's that has begun.
    line: Vec<u8>,
    /// Whole lines for the client.
    pub(super) ready: Vec<u8>,
    /// What befell Ollama's answer, told behind what had come of it.
    failed: Option<io::Error>,
    /// Lines that aren't about a layer.
    seen: Vec<Vec<u8>>,
    is_again: bool,
    layer: Option<Layer>,
    /// Layers before it.
    earlier: Vec<String>,
    /// Layers that failed to come from the house.
    left: Vec<String>,
    echoes: u32,
}

impl<'b, 'a> Lines<'b, 'a> {
    pub(in super::super) fn new(
        exchange: &'b Exchange<'a>,
        plan: &'b Plan,
        lease: &'b Lease,
        (wanted, underway): (&'b Wanted, Option<&'b TransferGuard>),
        answer: impl Read + 'static,
    ) -> Self {
        Lines {
            exchange,
            plan,
            lease,
            wanted,
            underway,
            phase: Phase::Registry(Box::new(answer)),
            line: Vec::new(),
            ready: Vec::new(),
            failed: None,
            seen: Vec::new(),
            is_again: false,
            layer: None,
            earlier: Vec::new(),
            left: Vec::new(),
            echoes: 0,
        }
    }

    /// Waits until something is ready; false at the end.
    pub(super) fn advance(&mut self) -> io::Result<bool> {
        while self.ready.is_empty() {
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            match &self.phase {
                Phase::Registry(_) => self.read_on()?,
                Phase::Taking(_) => self.wait_for_layer()?,
                Phase::Again => self.begin_again()?,
                Phase::Over => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Reads more of Ollama's answer.
    fn read_on(&mut self) -> io::Result<()> {
        let Phase::Registry(answer) = &mut self.phase else { return Ok(()) };
        let seeks = self.layer.as_ref().is_some_and(|layer| layer.seek.is_some());
        let until = seeks.then(|| Instant::now() + LOOK);
        exchange_io::with(|io| io.look_until = until);
        let is_time_up = || {
            let is_late = until.is_some_and(|until| Instant::now() >= until);
            is_late && exchange_io::with(|io| io.fault()).is_none()
        };
        let mut piece = [0; PIECE];
        match answer.read(&mut piece) {
            Ok(0) => {
                self.pass_on_begun();
                self.phase = Phase::Over;
            }
            Ok(n) => {
                for part in piece[..n].split_inclusive(|byte| *byte == b'\n') {
                    self.line.extend_from_slice(part);
                    if part.ends_with(b"\n") {
                        if !self.end_line()? {
                            break;
                        }
                    } else if self.line.len() > LONGEST_LINE {
                        self.pass_on_begun();
                    }
                }
            }
            Err(_) if is_time_up() => {}
            Err(error) => {
                self.pass_on_begun();
                self.failed = Some(error);
            }
        }
        if self.line.is_empty() {
            self.take_if_found();
        }
        Ok(())
    }

    fn pass_on_begun(&mut self) {
        self.ready.append(&mut self.line);
    }

    /// A line of Ollama's is whole. False if what follows it in this answer doesn't count any more.
    fn end_line(&mut self) -> io::Result<bool> {
        let line = std::mem::take(&mut self.line);
        match Progress::read(&line) {
            Some(progress) => {
                self.ready.extend_from_slice(&line);
                if self.lease.pick.is_local {
                    self.note(progress);
                }
                self.take_if_found();
                return Ok(matches!(self.phase, Phase::Registry(_)));
            }
            None if self.is_again && self.seen.contains(&line) => {}
            None if self.is_echo(&line) => {
                self.echoes += 1;
                self.pause(ECHO_PAUSE * self.echoes)?;
                self.phase = Phase::Again;
                return Ok(false);
            }
            None => {
                let line = self.advised(&line).unwrap_or(line);
                self.ready.extend_from_slice(&line);
                if self.seen.len() < MOST_SEEN {
                    self.seen.push(line);
                }
            }
        }
        Ok(true)
    }

    /// The error of a pull that doesn't reach the registry, with what to do where a neighbour gives the
    /// model.
    fn advised(&self, line: &[u8]) -> Option<Vec<u8>> {
        let reason = pull::error(line).filter(|_| self.lease.pick.is_local)?;
        let is_meant = errors::tells_unreached_registry(&reason);
        let (model, _) = pull::copy_asked(&self.plan.body).filter(|_| is_meant)?;
        let context = self.exchange.context;
        let holder = context.sharing.who_gives(&model)?;
        let is_own = self.exchange.connection.is_own();
        let target = Some(context.machine.as_str()).filter(|_| !is_own);
        let advice = pull::advice(&model, &printable(&holder.name), target);
        Some(format!("{}\n", json!({ "error": format!("{advice} ({reason})") })).into_bytes())
    }

    /// Whether it is the end of the pull that we have ended, which the new one has met.
    fn is_echo(&self, line: &[u8]) -> bool {
        self.is_again
            && self.echoes < MOST_ECHOES
            && pull::error(line).is_some_and(|error| error.contains(ECHO))
    }

    /// A layer has come so far.
    fn note(&mut self, progress: Progress) {
        if let Some(layer) = &mut self.layer
            && layer.now.digest == progress.digest
        {
            layer.now = progress;
            let is_worth_it = layer.is_worth_it();
            layer.seek.take_if(|_| !is_worth_it);
            return;
        }
        let is_over = |layer: &Layer| layer.now.completed >= layer.now.total;
        let is_new = !self.earlier.contains(&progress.digest);
        // Lines of layers that come side by side must not have them sought in turns.
        if !is_new && !self.layer.as_ref().is_none_or(is_over) || self.earlier.len() >= MOST_SEEN {
            return;
        }
        self.earlier.extend(self.layer.take().map(|layer| layer.now.digest));
        let mut layer =
            Layer { first: (Instant::now(), progress.completed), now: progress, seek: None };
        let Progress { digest, total, completed } = &layer.now;
        // Others may have it as soon as it is whole, and needn't wait for the rest.
        let library = self.exchange.context.library.as_ref();
        library.into_iter().for_each(|library| library.note_pulled(digest, *total));
        if completed < total {
            let (free, written) = self.disk(digest).unzip();
            let lacks = |bytes: u64| free.is_some_and(|free| free < bytes);
            // Ollama doesn't count all that it has written, and writes over it.
            let needed = total.saturating_sub(written.unwrap_or_default().max(*completed));
            if lacks(needed) {
                return self.tell_full(needed, free.unwrap_or_default());
            }
            let is_sought = *total > WORTH && layer.is_worth_it() && !self.left.contains(digest);
            // The whole of it needs room besides what has come of it.
            if is_sought && !lacks(*total) {
                let sharing = &self.exchange.context.sharing;
                let blob = Blob::new(digest, *total);
                layer.seek = blob.and_then(|blob| sharing.seek(blob, self.plan.donors.clone()));
            }
        }
        self.layer = Some(layer);
    }

    /// Bytes free where Ollama has begun to write this layer, and bytes that it has taken of the disk
    /// for it; `None` if it can't be seen there.
    fn disk(&self, digest: &str) -> Option<(u64, u64)> {
        let library = self.exchange.context.library.as_ref()?;
        Blob::new(digest, 0)?;
        let begun = library.dir()?.join("blobs").join(digest.replacen(':', "-", 1) + "-partial");
        // The state of its first part; the bytes come later.
        let mut part = begun.clone().into_os_string();
        part.push("-0");
        let free = library.free_space().filter(|_| Path::new(&part).exists())?;
        Some((free, taken_space(&begun)))
    }

    fn tell_full(&mut self, needed: u64, free: u64) {
        let error = format!(
            "the disk of {} is too full for this model: {} are still to come, {} are free",
            self.exchange.context.machine,
            size_text(needed as f64),
            size_text(free as f64)
        );
        log::warn!("pull refused reason={error:?}");
        self.push_line(&json!({ "error": error }));
        self.phase = Phase::Over;
    }

    fn push_line(&mut self, line: &Value) {
        self.ready.extend_from_slice(line.to_string().as_bytes());
        self.ready.push(b'\n');
    }

    /// Ends Ollama's pull where somebody of the house has begun to send the layer.
    fn take_if_found(&mut self) {
        let seek = self.layer.as_mut().and_then(|layer| layer.seek.as_mut());
        let Some(source) = seek.and_then(|seek| seek.found_within(Duration::ZERO)) else { return };
        let context = self.exchange.context;
        let ollama = (self.lease.pick.address, context.prefix.as_str());
        let layer = self.layer.take();
        log::debug!("layer found digest={:?} from={:?}", source.blob.digest(), source.donor);
        match context.sharing.put(source, ollama) {
            Ok(put) => {
                let before = layer.map_or(0, |layer| layer.now.completed);
                let since = Instant::now();
                self.phase = Phase::Taking(Taking { put, before, since, told: since });
                self.tell(0);
            }
            Err(error) => log::warn!("cannot take a layer: {error}"),
        }
    }

    /// Tells how far the layer has come that is taken from the house.
    fn tell(&mut self, completed: u64) {
        let Phase::Taking(taking) = &mut self.phase else { return };
        taking.told = Instant::now();
        let (blob, donor) = (&taking.put.blob, taking.put.donor());
        // No progress bar goes back.
        let completed = completed.max(taking.before);
        let line = pull::layer_line(blob.digest(), blob.size, completed, Some(&donor));
        self.push_line(&line);
    }

    /// Waits for the layer, and for the time to tell how far it is.
    fn wait_for_layer(&mut self) -> io::Result<()> {
        self.look_at_client()?;
        let Phase::Taking(taking) = &mut self.phase else { return Ok(()) };
        let Some(ended) = taking.put.ended_within(LOOK) else {
            if taking.told.elapsed() >= TELL {
                let given = taking.put.given();
                self.tell(given);
            }
            return Ok(());
        };
        let (blob, before) = (&taking.put.blob, taking.before);
        let (size, ms) = (blob.size, taking.since.elapsed().as_millis());
        let (digest, from) = (blob.digest().to_owned(), taking.put.donor());
        match ended {
            Ok(()) => {
                if taking.put.was_whole() {
                    log::info!("layer taken digest={digest:?} from={from:?} bytes={size} ms={ms}");
                    let saved = size.saturating_sub(before);
                    self.underway.into_iter().for_each(|underway| underway.saved(saved));
                }
                self.tell(size);
            }
            Err(reason) => {
                log::warn!("layer not taken digest={digest:?} from={from:?} reason={reason:?}");
                self.left.push(digest);
            }
        }
        self.phase = Phase::Again;
        Ok(())
    }

    fn begin_again(&mut self) -> io::Result<()> {
        self.is_again = true;
        self.layer = None;
        self.earlier.clear();
        self.phase = Phase::Over;
        let answer = self.exchange.pull_again(self.plan, self.lease, self.wanted)?;
        if has_lines(&answer) {
            self.phase = Phase::Registry(Box::new(answer.into_body().into_reader()));
            return Ok(());
        }
        let status = answer.status();
        let mut body = Vec::new();
        answer.into_body().into_reader().take(MOST_REASON).read_to_end(&mut body)?;
        let error = pull::error(&body).unwrap_or_else(|| format!("Ollama answers with {status}"));
        self.push_line(&json!({ "error": error }));
        Ok(())
    }

    fn pause(&self, time: Duration) -> io::Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.look_at_client()?;
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Sends what is ready; an error if the client has left.
    fn look_at_client(&self) -> io::Result<()> {
        exchange_io::with(|io| io.flush())?;
        match self.exchange.has_client_left() {
            true => Err(exchange_io::with(|io| io.give_up(Fault::ClientLeft))),
            false => Ok(()),
        }
    }
}

impl Read for Lines<'_, '_> {
    /// Whole lines, as long as they fit.
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if !self.advance()? {
            return Ok(0);
        }
        let most = self.ready.len().min(out.len());
        let ends = self.ready[..most].iter().rposition(|byte| *byte == b'\n');
        let n = ends.map_or(most, |end| end + 1);
        out[..n].copy_from_slice(&self.ready[..n]);
        self.ready.drain(..n);
        Ok(n)
    }
}
