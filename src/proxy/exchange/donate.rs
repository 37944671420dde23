//! What other machines get of this one's models, so that they needn't download it again.
//!
//! | path | answer |
//! |---|---|
//! | `/ollana/blobs/sha256:HEX` | a blob; one range of it with `Range` |
//! | `/ollana/manifests/NAME` | a model's manifest, for paired machines and own programs |
//!
//! Blobs are given to a few at once ([`donations`](super::donations)), past the page cache, in which a
//! model may be that runs; a blob that is there already stays, since it may be that model's. Whoever
//! gets one can't know more than that a model has it: what isn't shared isn't there. Where the folder
//! of the models can't be read, paired machines get them from Ollama itself ([`push`](super::push)).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::time::Duration;

use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, IF_RANGE, ORIGIN, RANGE,
};
use http::{HeaderMap, Method, StatusCode};

use super::donations::{Donation, PIECE, Pushable};
use super::{End, Exchange, OwnAnswer, Side, own};
use crate::access::permissions::Origin;
use crate::http::fields::{self, AnswerFraming};
use crate::http::target::percent_decode;
use crate::library::{self, Digest, Library};
use crate::net::socket::{self, HANGUP, UNACKNOWLEDGED};
use crate::ollama::manifest::{MEDIA_TYPE, layers};
use crate::ollama::model_name::ModelName;
use crate::system::files::{self, Advice};

/// Who asks which machines have a model waits for two seconds.
const LIST_TIME: Duration = Duration::from_secs(1);

/// Bytes that are sent before it is looked whether the process is to end, and what the page cache
/// keeps of them is dropped.
const STRIDE: u64 = 8 << 20;
/// Places at which it is looked whether the page cache has a blob.
const SAMPLES: u64 = 16;
const BYTES: &str = "application/octet-stream";

/// Where the bytes of a blob are.
enum Bytes {
    File(library::Blob),
    Ollama(Pushable),
}

impl Exchange<'_> {
    /// Answers a request for a blob or a manifest; `None` if it is for something else.
    pub(super) fn donate(&self, path: &str) -> Option<Result<End, OwnAnswer>> {
        let (kind, name) = path.strip_prefix('/')?.split_once('/')?;
        let give = match kind {
            "blobs" => Self::give_blob,
            "manifests" => Self::give_manifest,
            _ => return None,
        };
        Some(self.donor().and_then(|library| give(self, library, name)))
    }

    /// The store, if this caller may have something of it.
    fn donor(&self) -> Result<&Library, OwnAnswer> {
        let caller = self.connection.caller();
        let fields = &self.head.fields;
        if self.connection.place.is_reserve() {
            return Err(OwnAnswer::Full);
        }
        if !caller.is_trusted() && !self.context.keyring.takes_unpaired() {
            return Err(OwnAnswer::Unpaired);
        }
        if fields.contains_key(ORIGIN) || fields.contains_key("sec-fetch-site") {
            return Err(OwnAnswer::OwnPathForeignPage);
        }
        if !matches!(self.head.method, Method::GET | Method::HEAD) {
            return Err(OwnAnswer::OwnPathMethod);
        }
        let library = self.context.library.as_deref();
        library.filter(|_| self.context.side == Side::Server).ok_or(OwnAnswer::NotShared)
    }

    fn give_blob(&self, library: &Library, name: &str) -> Result<End, OwnAnswer> {
        let sharing = self.context.settings.share_models;
        // Programs may escape the colon.
        let name = percent_decode(name).and_then(|name| String::from_utf8(name).ok());
        let digest = name.as_deref().and_then(Digest::parse).ok_or(OwnAnswer::NotShared)?;
        let caller = self.connection.caller();
        let may_have = |origin: &Origin| sharing.allows(caller, *origin);
        let is_shared = library.origin(&digest).is_some_and(|origin| may_have(&origin));
        let file = is_shared.then(|| library.open(&digest)).flatten().map(Bytes::File);
        let donations = &self.context.donations;
        let pushed = || donations.pushes.find(&digest).filter(|_| may_have(&Origin::Made));
        let source = file.or_else(|| pushed().map(Bytes::Ollama)).ok_or(OwnAnswer::NotShared)?;
        let size = match &source {
            Bytes::File(blob) => blob.size,
            Bytes::Ollama(blob) => blob.size,
        };
        let is_head = self.head.method == Method::HEAD;
        let donation = if is_head { None } else { donations.begin(&self.connection.stream) };
        if if is_head { donations.is_full() } else { donation.is_none() } {
            return Err(OwnAnswer::DonorBusy);
        }
        let asked = self.head.fields.get(RANGE).filter(|_| {
            // The bytes of a digest never change, but nobody was told a validator.
            !is_head && !self.head.fields.contains_key(IF_RANGE)
        });
        let part = match asked.map_or(Asked::All, |range| asked_range(range.as_bytes(), size)) {
            Asked::All => None,
            Asked::Part(part) => Some(part),
            Asked::Nothing => return Err(OwnAnswer::NoSuchRange(size)),
        };
        let mut fields = self.blob_fields(BYTES);
        fields.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        let status = match &part {
            None => StatusCode::OK,
            Some(Range { start, end }) => {
                let range = format!("bytes {start}-{}/{size}", end - 1);
                fields.extend(HeaderValue::from_str(&range).ok().map(|it| (CONTENT_RANGE, it)));
                StatusCode::PARTIAL_CONTENT
            }
        };
        let bytes = part.unwrap_or(0..size);
        let length = bytes.end - bytes.start;
        let push = match &source {
            Bytes::Ollama(blob) if !is_head && length > 0 => Some(self.push_blob(blob)?),
            _ => None,
        };
        let end = self.send_head(status, &fields, length);
        if is_head || end == End::Cut {
            return Ok(end);
        }
        let sent = match (&source, push) {
            (Bytes::File(blob), _) => self.send_file(&blob.file, bytes, donation.as_ref()),
            (Bytes::Ollama(_), Some(push)) => self.send_pushed(push, bytes, donation.as_ref()),
            (Bytes::Ollama(_), None) => Ok(()),
        };
        Ok(match sent {
            Ok(()) => end,
            Err(error) => {
                log::debug!("blob broke off addr={} reason={error}", self.connection.peer);
                End::Cut
            }
        })
    }

    fn give_manifest(&self, library: &Library, name: &str) -> Result<End, OwnAnswer> {
        // Where it came from doesn't matter: whoever believes a manifest must know who gave it.
        let sharing = self.context.settings.share_models;
        let is_shared = sharing.allows(self.connection.caller(), Origin::Made);
        let name = percent_decode(name).and_then(|name| String::from_utf8(name).ok());
        let name = name.as_deref().and_then(ModelName::parse).filter(|_| is_shared);
        let name = name.ok_or(OwnAnswer::NotShared)?;
        let manifest = match library
            .manifest(&name)
            .map(|text| (library::without_paths(&text), text))
        {
            Some((None, _)) => {
                let name = name.as_str();
                return Err(OwnAnswer::NoCopy(
                    501,
                    format!("{name} has several manifests, one for each kind of runner: pull it"),
                ));
            }
            Some((Some(manifest), text)) if self.is_given_by(library, &name, &text) => manifest,
            // Ollama has it, or all of it, where we can't look.
            _ => self.pushed_manifest(&name)?,
        };
        let fields = self.blob_fields(MEDIA_TYPE);
        let end = self.send_head(StatusCode::OK, &fields, manifest.len() as u64);
        if self.head.method == Method::HEAD || end == End::Cut {
            return Ok(end);
        }
        let stall = self.context.settings.timing.stall_timeout;
        let written = self.connection.stream.write_all(&manifest, stall);
        Ok(written.map_or(End::Cut, |()| end))
    }

    /// Whether a model can be given from the store: an Ollama that answers has the same one, not another
    /// in a folder that we don't know, and what it names can be read.
    fn is_given_by(&self, library: &Library, name: &ModelName, text: &[u8]) -> bool {
        let models = self.own_ollama().and_then(|own| own.models_within(LIST_TIME));
        let is_listed = models.map_or(true, |models| {
            let mut listed = models.iter().filter(|model| own::name(model).as_ref() == Some(name));
            listed.any(|model| model["digest"] == own::sha256(text))
        });
        let blobs = layers(text).unwrap_or_default().into_iter();
        let blobs = blobs.map(|(digest, size)| Some((Digest::parse(&digest)?, size))).collect();
        is_listed && Option::is_some_and(blobs, |blobs| library.has_all(blobs))
    }

    /// So many bytes of a blob were taken.
    pub(super) fn note_given(&self, bytes: u64, donation: Option<&Donation>) {
        self.context.presence.counters().transfers.sources.given.add(bytes);
        donation.into_iter().for_each(|donation| donation.take(bytes));
    }

    fn blob_fields(&self, media: &'static str) -> HeaderMap {
        let fields = [(CONTENT_TYPE, media), (CACHE_CONTROL, "no-store")];
        fields.map(|(name, value)| (name, HeaderValue::from_static(value))).into_iter().collect()
    }

    fn send_head(&self, status: StatusCode, fields: &HeaderMap, length: u64) -> End {
        let (mut head, closes) = (Vec::with_capacity(512), self.closes());
        let framing = AnswerFraming::Length(length);
        fields::write_answer_head(&mut head, status, fields, framing, Some(length), closes);
        self.write_answer(&head, closes)
    }

    /// Sends these bytes of a file, and nothing more once the client has left.
    fn send_file(
        &self,
        file: &File,
        bytes: Range<u64>,
        donation: Option<&Donation>,
    ) -> io::Result<()> {
        let stream = &self.connection.stream;
        let stall = self.context.settings.timing.stall_timeout;
        let stays = is_in_page_cache(file, &bytes);
        files::advise(file, bytes.clone(), Advice::Sequential);
        // A peer whose disk is slow closes its window for a while.
        socket::limit_unacknowledged(stream.socket(), stall.max(UNACKNOWLEDGED))?;
        let mut buffer = Vec::new();
        let mut at = bytes.start;
        while at < bytes.end {
            // Those who get it go on elsewhere, or with what they have when we are back.
            if self.context.connections.is_draining() {
                return Err(io::Error::other("the process ends"));
            }
            let stride = at..bytes.end.min(at + STRIDE);
            while at < stride.end {
                let most = usize::try_from(stride.end - at).unwrap_or(PIECE);
                let n = match stream.key() {
                    None => self.send_unseen(file, at, most)?,
                    Some(_) => {
                        buffer.resize(PIECE.min(most), 0);
                        files::read_exact_at(file, &mut buffer, at)?;
                        stream.write_watching(&buffer, stall, HANGUP)?;
                        buffer.len() as u64
                    }
                };
                self.note_given(n, donation);
                at += n;
            }
            // From the beginning: what the socket still had a moment ago couldn't be dropped.
            if !stays {
                files::advise(file, bytes.start..at, Advice::DontNeed);
            }
        }
        socket::limit_unacknowledged(stream.socket(), UNACKNOWLEDGED)
    }

    /// Sends bytes of a file that needn't come into our memory. Returns how many.
    fn send_unseen(&self, file: &File, at: u64, most: usize) -> io::Result<u64> {
        let stream = &self.connection.stream;
        if let Some(sent) = socket::send_file(stream.socket(), file, at, most)? {
            return Ok(sent as u64);
        }
        stream.wait_for_room(self.context.settings.timing.stall_timeout, &mut { HANGUP })?;
        Ok(0)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    All,
    Part(Range<u64>),
    /// Only what isn't there.
    Nothing,
}

/// What a `Range` asks for (RFC 9110 §14.2). Several ranges, other units and what can't be read stand
/// for everything, as the RFC allows.
fn asked_range(range: &[u8], size: u64) -> Asked {
    let part = || {
        let (first, last) = str::from_utf8(range).ok()?.strip_prefix("bytes=")?.split_once('-')?;
        let number = |digits: &str| match digits.bytes().all(|byte| byte.is_ascii_digit()) {
            true => digits.parse::<u64>().ok(),
            false => None,
        };
        Some(match (first, last) {
            ("", last) => size.saturating_sub(number(last)?)..size,
            (first, "") => number(first)?..size,
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(first..last.saturating_add(1).min(size))?
            }
        })
    };
    match part() {
        None => Asked::All,
        Some(part) if part.is_empty() => Asked::Nothing,
        Some(part) => Asked::Part(part),
    }
}

/// Whether most of these bytes are in the page cache, by samples.
fn is_in_page_cache(file: &File, bytes: &Range<u64>) -> bool {
    let step = (bytes.end - bytes.start) / SAMPLES;
    let is_there = |n: &u64| files::is_in_page_cache(file, bytes.start + n * step);
    let there = (0..SAMPLES).filter(is_there).count() as u64;
    there * 4 >= SAMPLES * 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (range, want) in [
            ("bytes=0-", Asked::Part(0..10)),
            ("bytes=3-", Asked::Part(3..10)),
            ("bytes=3-3", Asked::Part(3..4)),
            ("bytes=3-99", Asked::Part(3..10)),
            ("bytes=0-18446744073709551615", Asked::Part(0..10)),
            ("bytes=-4", Asked::Part(6..10)),
            ("bytes=-99", Asked::Part(0..10)),
            ("bytes=10-", Asked::Nothing),
            ("bytes=18446744073709551615-", Asked::Nothing),
            ("bytes=-0", Asked::Nothing),
            ("bytes=4-3", Asked::All),
            ("bytes=+1-3", Asked::All),
            ("bytes=1-+3", Asked::All),
            ("bytes=18446744073709551616-", Asked::All),
            ("bytes=0-1,3-4", Asked::All),
            ("bytes=-", Asked::All),
            ("bytes=--1", Asked::All),
            ("bytes=a-b", Asked::All),
            ("items=0-1", Asked::All),
            ("bytes 0-1", Asked::All),
            ("", Asked::All),
            ("\u{e9}", Asked::All),
        ] {
            assert_eq!(asked_range(range.as_bytes(), 10), want, "{range}");
        }
        assert_eq!(asked_range(b"bytes=0-", 0), Asked::Nothing);
    }

    /// Whatever is asked for, it is a part of the blob, all of it or nothing.
    #[test]
    fn no_range_leads_out_of_the_blob() {
        const WORDS: [&str; 12] = [
            "bytes=",
            "bytes",
            "=",
            "-",
            ",",
            " ",
            "0",
            "7",
            "00",
            "10",
            "18446744073709551615",
            "\0",
        ];
        let mut random = 0x5eed_u64;
        for _ in 0..50_000 {
            let mut next = |most: u64| {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (random >> 33) % most
            };
            let words = next(7);
            let start = if next(4) == 0 { "" } else { "bytes=" };
            let rest: String = (0..words).map(|_| WORDS[next(12) as usize]).collect();
            let (range, size) = (format!("{start}{rest}"), [0, 1, 10, u64::MAX][next(4) as usize]);
            if let Asked::Part(part) = asked_range(range.as_bytes(), size) {
                assert!(part.start < part.end && part.end <= size, "{range:?} of {size}: {part:?}");
            }
        }
    }
}
