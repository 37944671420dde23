//! Who calls: a program of this machine, a paired machine, a device with a token, or anybody.
//!
//! A request with a token is judged by it, also where anybody may call, so that a device hears that its
//! token was removed. Trusted callers need none. No token goes to an upstream, valid or not (`forward`).

use std::time::Instant;

use http::HeaderMap;
use http::header::AUTHORIZATION;

use super::{Exchange, OwnAnswer};
use crate::access::permissions::Caller;
use crate::pairing::tokens::{PREFIX, Worth};

/// What looks like a token of ours in a request's fields.
fn shown(fields: &HeaderMap) -> Option<&str> {
    let values = fields.get_all(AUTHORIZATION).into_iter().filter_map(|value| value.to_str().ok());
    values
        .filter_map(|value| value.split_ascii_whitespace().last())
        .find(|it| it.starts_with(PREFIX))
}

pub(super) fn strip(fields: &mut HeaderMap) {
    if shown(fields).is_some() {
        fields.remove(AUTHORIZATION);
    }
}

impl Exchange<'_> {
    /// Who calls, if this machine answers that one.
    pub(super) fn admit(&self) -> Result<Caller, OwnAnswer> {
        let (caller, keyring) = (self.connection.caller(), &self.context.keyring);
        if caller.is_trusted() {
            return Ok(caller);
        }
        let Some(token) = shown(&self.head.fields) else {
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
