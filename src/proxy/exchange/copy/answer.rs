//! The answer to a copy, which is that to a pull.

use http::header::{CONTENT_TYPE, HeaderValue, VIA};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use super::super::{End, Exchange};
use crate::counters::TransferGuard;
use crate::http::body::LAST_CHUNK;
use crate::http::fields::{self, AnswerFraming, COPY_FIELD, SERVER_FIELD};

/// Why a copy ends early.
pub(super) enum Broken {
    ClientLeft,
    Failed(String),
}

impl From<String> for Broken {
    fn from(reason: String) -> Self {
        Broken::Failed(reason)
    }
}

/// The answer on its way to the client: lines, or one object at the end.
pub(super) struct Answer<'e, 'a> {
    pub(super) exchange: &'e Exchange<'a>,
    pub(super) streams: bool,
    pub(super) transfer: Option<&'e TransferGuard>,
    pub(super) bytes: u64,
}

impl Answer<'_, '_> {
    fn framing(&self) -> AnswerFraming {
        if self.exchange.head.http_10 { AnswerFraming::Close } else { AnswerFraming::Chunked }
    }

    fn fields(&self) -> HeaderMap {
        let context = self.exchange.context;
        let mut fields = HeaderMap::new();
        fields.insert(VIA, context.via.clone());
        fields.insert(COPY_FIELD, HeaderValue::from_static("copy"));
        fields.extend(context.own_name.clone().map(|name| (SERVER_FIELD, name)));
        fields
    }

    pub(super) fn begin(&mut self) -> Result<(), Broken> {
        if !self.streams {
            return Ok(());
        }
        let mut fields = self.fields();
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        if let Some(cors) = &self.exchange.cors {
            cors.mark(&mut fields);
        }
        let (mut head, closes) = (Vec::new(), self.closes());
        fields::write_answer_head(&mut head, StatusCode::OK, &fields, self.framing(), None, closes);
        self.write(&head)
    }

    fn closes(&self) -> bool {
        !self.exchange.head.keep_alive || self.framing() == AnswerFraming::Close
    }

    fn write(&self, bytes: &[u8]) -> Result<(), Broken> {
        let stall = self.exchange.context.settings.timing.stall_timeout;
        self.exchange.connection.stream.write_all(bytes, stall).map_err(|_| Broken::ClientLeft)
    }

    pub(super) fn say(&mut self, line: &Value) -> Result<(), Broken> {
        let text = format!("{line}\n");
        if let Some(transfer) = self.transfer {
            transfer.read(text.as_bytes());
        }
        if !self.streams {
            return self.look();
        }
        self.bytes += text.len() as u64;
        match self.framing() {
            AnswerFraming::Chunked => {
                self.write(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes())
            }
            _ => self.write(text.as_bytes()),
        }
    }

    /// Whether there is still a client.
    pub(super) fn look(&self) -> Result<(), Broken> {
        if self.exchange.has_client_left() { Err(Broken::ClientLeft) } else { Ok(()) }
    }

    pub(super) fn saved(&self, bytes: u64) {
        if let Some(transfer) = self.transfer {
            transfer.saved(bytes);
        }
    }

    pub(super) fn end(mut self, failed: Option<String>, backend: &str) -> End {
        let (status, last) = match failed {
            None => (200, json!({ "status": "success" })),
            Some(reason) => (500, json!({ "error": reason })),
        };
        if !self.streams {
            return self.exchange.answer(status, self.fields(), &last.to_string());
        }
        let end = match self.framing() {
            AnswerFraming::Chunked => LAST_CHUNK,
            _ => b"",
        };
        let sent = self.say(&last).and_then(|()| self.write(end));
        self.exchange.log(200, backend, self.bytes, None);
        match sent {
            Err(_) => End::Cut,
            Ok(()) if self.closes() => End::Close,
            Ok(()) => End::Keep,
        }
    }
}
