//! Answers as gin and Go's `net/http` frame them.

use super::super::{Call, Head, chunk, lock};
use super::{Machine, Served};

pub(super) const JSON: &str = "application/json; charset=utf-8";

/// Which clothes an answer or an error wears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Ollama,
    OpenAi,
    Anthropic,
}

/// A whole answer: its length is told while it is short, as Go does.
pub(super) fn whole(head: &Head, status: u16, fields: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let is_old = head.start[2] == "HTTP/1.0";
    let mut out = format!("HTTP/1.1 {status} {}\r\n{fields}", reason(status));
    let is_short = body.len() <= 2048;
    if status == 204 {
        // Has no length.
    } else if is_short || is_old {
        out += &format!("Content-Length: {}\r\n", body.len());
    } else {
        out += "Transfer-Encoding: chunked\r\n";
    }
    out += if closes(head) { "Connection: close\r\n\r\n" } else { "\r\n" };
    let mut out = out.into_bytes();
    if head.method() == "HEAD" || status == 204 {
        return out;
    }
    if is_short || is_old {
        out.extend_from_slice(body);
    } else {
        out.extend(chunk(body));
        out.extend_from_slice(b"0\r\n\r\n");
    }
    out
}

pub(super) fn closes(head: &Head) -> bool {
    let connection = head.one("connection").unwrap_or_default().to_ascii_lowercase();
    connection == "close" || head.start[2] == "HTTP/1.0" && connection != "keep-alive"
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        301 => "Moved Permanently",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        _ => "status code 499",
    }
}

/// A text as JSON writes it, quotes included.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// An error in the dialect of a path.
pub(super) fn error(dialect: Dialect, status: u16, message: &str) -> String {
    let message = quoted(message);
    match dialect {
        Dialect::Ollama => format!("{{\"error\":{message}}}"),
        Dialect::OpenAi => {
            let kind = match status {
                400 => "invalid_request_error",
                404 => "not_found_error",
                _ => "api_error",
            };
            format!(
                "{{\"error\":{{\"message\":{message},\"type\":\"{kind}\",\"param\":null,\
                 \"code\":null}}}}\n"
            )
        }
        Dialect::Anthropic => {
            let kind = match status {
                400 => "invalid_request_error",
                401 => "authentication_error",
                403 => "permission_error",
                404 => "not_found_error",
                429 => "rate_limit_error",
                503 | 529 => "overloaded_error",
                _ => "api_error",
            };
            format!(
                "{{\"type\":\"error\",\"error\":{{\"type\":\"{kind}\",\"message\":{message}}},\
                 \"request_id\":\"req_0123456789abcdef01234567\"}}\n"
            )
        }
    }
}

/// One answer under way. What is served is noted before its first byte, so that a client that has
/// an answer finds it among [`Ollama::served`](super::Ollama::served).
pub(super) struct Reply<'c, 'a> {
    pub(super) call: &'c mut Call<'a>,
    pub(super) dialect: Dialect,
    pub(super) model: Option<String>,
    pub(super) used_account: bool,
    machine: &'c Machine,
    path: &'c str,
    /// Index of what is served, once its head was sent.
    served: Option<usize>,
    is_chunked: bool,
}

impl<'c, 'a> Reply<'c, 'a> {
    pub(super) fn new(
        machine: &'c Machine,
        call: &'c mut Call<'a>,
        path: &'c str,
        dialect: Dialect,
    ) -> Self {
        Reply {
            call,
            dialect,
            model: None,
            used_account: false,
            machine,
            path,
            served: None,
            is_chunked: false,
        }
    }

    pub(super) fn has_begun(&self) -> bool {
        self.served.is_some()
    }

    fn note(&mut self, status: u16) {
        let mut served = lock(&self.machine.served);
        self.served = Some(served.len());
        served.push(Served {
            method: self.call.head.method().to_owned(),
            path: self.path.to_owned(),
            model: self.model.clone(),
            status,
            used_account: self.used_account,
            is_cancelled: false,
            record: self.call.record,
        });
    }

    pub(super) fn note_cancelled(&mut self) {
        if let Some(index) = self.served {
            lock(&self.machine.served)[index].is_cancelled = true;
        }
    }

    pub(super) fn send(&mut self, status: u16, fields: &str, body: impl AsRef<[u8]>) {
        self.note(status);
        let closes = closes(&self.call.head);
        let leaves = self.leaves_body();
        let field = if leaves && !closes { "Connection: close\r\n" } else { "" };
        let answer = whole(&self.call.head, status, &format!("{field}{fields}"), body);
        self.call.send(answer);
        match (leaves, closes) {
            (true, _) => self.call.close_half(),
            (false, true) => self.call.close(),
            (false, false) => {}
        }
    }

    /// Whether more of the body is to come than Go's server throws away to keep a connection.
    fn leaves_body(&mut self) -> bool {
        const MOST: usize = 256 << 10;
        let mut thrown = 0;
        while thrown <= MOST {
            match self.call.unread() {
                Some(0) => return false,
                Some(left) if left >= MOST => return true,
                _ => match self.call.read_part() {
                    Some(part) => thrown += part.len(),
                    None => return false,
                },
            }
        }
        true
    }

    /// What Go's server says of a request that no handler sees.
    pub(super) fn malformed(&mut self, why: &str) {
        self.note(400);
        self.call.send(format!(
            "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Connection: close\r\n\r\n400 Bad Request{why}"
        ));
        self.call.close_half();
    }

    pub(super) fn json(&mut self, status: u16, body: impl AsRef<[u8]>) {
        self.send(status, &format!("Content-Type: {JSON}\r\n"), body);
    }

    /// An error as the middleware of the path words it.
    pub(super) fn error(&mut self, status: u16, message: &str) {
        let kind = if self.dialect == Dialect::Ollama { JSON } else { "application/json" };
        let body = error(self.dialect, status, message);
        self.send(status, &format!("Content-Type: {kind}\r\n"), body);
    }

    /// The head of a stream.
    pub(super) fn stream(&mut self, content_type: &str) {
        self.note(200);
        self.is_chunked = self.call.head.start[2] != "HTTP/1.0";
        let framing = if self.is_chunked { "Transfer-Encoding: chunked\r\n" } else { "" };
        let close = if closes(&self.call.head) { "Connection: close\r\n" } else { "" };
        self.call.send(format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n{framing}{close}\r\n"
        ));
    }

    /// Some of a stream, flushed.
    pub(super) fn part(&mut self, data: impl AsRef<[u8]>) {
        let data = data.as_ref();
        if !data.is_empty() {
            if self.is_chunked {
                self.call.send_chunk(data)
            } else {
                self.call.send(data)
            };
        }
    }

    /// Ends a stream, or a whole answer.
    pub(super) fn end(&mut self) {
        if self.is_chunked {
            self.call.send("0\r\n\r\n");
        }
        if closes(&self.call.head) {
            self.call.close();
        }
    }
}
