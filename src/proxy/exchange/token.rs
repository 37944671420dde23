//! Who calls: a program of this machine, a paired machine, a device with a token, or anybody.
//!
//! A request with a token is judged by it, also where anybody may call, so that a device hears that its
//! token was removed. Trusted callers need none. No token goes to an upstream, valid or not (`forward`).

use std::time::Instant;

use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderName};

use super::{Exchange, OwnAnswer};
use crate::access::permissions::Caller;
use crate::pairing::tokens::{PREFIX, Worth};

/// Where programs send one; those for Anthropic in the second.
const FIELDS: [HeaderName; 2] = [AUTHORIZATION, HeaderName::from_static("x-api-key")];

/// What looks like a token of ours in fields of this name.
fn shown_in<'f>(fields: &'f HeaderMap, name: &HeaderName) -> Option<&'f str> {
    let values = fields.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    let mut words = values.filter_map(|value| value.split_ascii_whitespace().last());
    words.find(|word| word.starts_with(PREFIX))
}

pub(super) fn strip(fields: &mut HeaderMap) {
    for name in FIELDS {
        if shown_in(fields, &name).is_some() {
            fields.remove(name);
        }
    }
}

impl Exchange<'_> {
    /// Who calls, if this machine answers that one.
    pub(super) fn admit(&self) -> Result<Caller, OwnAnswer> {
        let (caller, keyring) = (self.connection.caller(), &self.context.keyring);
        if caller.is_trusted() {
            return Ok(caller);
        }
        let shown = FIELDS.iter().find_map(|name| shown_in(&self.head.fields, name));
        let Some(token) = shown else {
            return match keyring.takes_unpaired() {
                true => Ok(caller),
                false if keyring.tokens.is_empty() => Err(OwnAnswer::Unpaired),
                false => Err(OwnAnswer::NoToken),
            };
        };
        match keyring.tokens.judge(Instant::now(), self.connection.peer.ip(), token) {
            Worth::Valid => Ok(Caller::Token),
            Worth::Wrong => Err(OwnAnswer::WrongToken),
            Worth::Unknown => Err(OwnAnswer::WrongTokens),
        }
    }
}
