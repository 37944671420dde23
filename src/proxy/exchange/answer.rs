//! Answers of our own: errors, and lists merged over several servers.

use http::header::{HeaderValue, VIA};
use http::{HeaderMap, Method, StatusCode};

use super::{End, Exchange};
use crate::access::cors::Cors;
use crate::http::fields::{AnswerFraming, SERVER_FIELD, write_answer_head};
use crate::http::head::Framing;
use crate::ollama::inventory::{self, List};
use crate::proxy::connection::{Downstream, error_fields, json_answer};

impl Exchange<'_> {
    /// Answers from what is known of several servers; a single one answers for itself.
    pub(super) fn answer_from_lists(&self, connection: &mut Downstream) -> Option<End> {
        let target = self.head.target.as_str();
        let list = List::of(target);
        let is_read = matches!(self.head.method, Method::GET | Method::HEAD);
        if !is_read
            || (list.is_none() && target != "/api/version")
            || self.framing != Framing::Empty
            || self.head.fields.contains_key(SERVER_FIELD)
            || !self.is_client()
            || self.context.presence.backends() < 2
        {
            return None;
        }
        let inventories = self.context.mailbox.inventories();
        if inventories.backends < 2 || inventories.known.is_empty() {
            return None;
        }
        let (names, known): (Vec<String>, Vec<_>) = inventories.known.into_iter().unzip();
        let body = match list {
            Some(list) => inventory::merge(list, &known),
            None => {
                let version = inventories.version;
                let text = format!("{}.{}.{}", version.major, version.minor, version.patch);
                serde_json::json!({ "version": text }).to_string()
            }
        };
        let mut fields = HeaderMap::new();
        fields.append(VIA, self.context.via.clone());
        if let Ok(names) = HeaderValue::from_str(&names.join(", ")) {
            fields.insert(SERVER_FIELD, names);
        }
        Some(self.answer(connection, StatusCode::OK, fields, &body))
    }

    /// Answers with an error of our own.
    pub(super) fn refuse(
        &self,
        connection: &mut Downstream,
        status: u16,
        message: &str,
        cause: &'static str,
    ) -> End {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = self.dialect.error(status.as_u16(), message).to_string();
        log::debug!("refused status={status} message={message:?}");
        self.note(status.as_u16(), cause, message);
        self.answer(connection, status, error_fields(status.as_u16(), cause), &body)
    }

    /// Answers a browser that asks what a page may ask, as Ollama does.
    pub(super) fn answer_preflight(&self, connection: &mut Downstream, cors: &Cors) -> End {
        let (status, close) = (StatusCode::NO_CONTENT, self.closes());
        let mut answer = Vec::with_capacity(1024);
        let fields = cors.preflight();
        write_answer_head(&mut answer, status, &fields, AnswerFraming::None, None, close);
        let end = self.write_answer(connection, &answer, close);
        self.log(connection, status.as_u16(), "-", 0, None);
        end
    }

    /// Answers with JSON of our own.
    pub(super) fn answer(
        &self,
        connection: &mut Downstream,
        status: StatusCode,
        mut fields: HeaderMap,
        body: &str,
    ) -> End {
        let close = self.closes();
        let is_head = self.head.method == Method::HEAD;
        if let Some(cors) = &self.cors {
            cors.mark(&mut fields);
        }
        let answer = json_answer(status, fields, body, is_head, close);
        let written = self.write_answer(connection, &answer, close);
        self.log(connection, status.as_u16(), "-", body.len() as u64, None);
        written
    }

    /// Whether the connection ends after an answer that left the request's body unread.
    fn closes(&self) -> bool {
        let whole = self.framing == Framing::Empty;
        !whole || !self.head.keep_alive || self.context.connections.is_draining()
    }

    fn write_answer(&self, connection: &mut Downstream, answer: &[u8], close: bool) -> End {
        let stall = self.context.timing.stall_timeout;
        match connection.stream().write_all(answer, stall) {
            Ok(()) if !close => End::Keep,
            Ok(()) => End::Close,
            Err(_) => End::Cut,
        }
    }
}
