//! The account at ollama.com, and what is asked there with it.

use super::reply::Reply;
use super::{Account, Machine};

const SIGN_IN: &str = "https://ollama.com/connect?name=desk&key=c3NoLWVkMjU1MTkgQUFBQQ";

impl Account {
    /// Whether ollama.com knows who asks; else the answer is given.
    fn is_known(self, reply: &mut Reply<'_, '_>) -> bool {
        match self {
            Account::SignedIn => return true,
            Account::SignedOut => reply
                .json(401, format!("{{\"error\":\"unauthorized\",\"signin_url\":\"{SIGN_IN}\"}}")),
            Account::Offline => reply.json(
                502,
                "{\"error\":\"Post \\\"https://ollama.com:443\\\": dial tcp: lookup ollama.com: \
                 no such host\"}",
            ),
        }
        false
    }
}

/// What stands between a request and ollama.com; true if nothing does.
pub(super) fn reaches_cloud(machine: &Machine, reply: &mut Reply<'_, '_>, purpose: &str) -> bool {
    let world = machine.world(|world| world.clone());
    if world.cloud_disabled {
        reply.json(403, format!("{{\"error\":\"ollama cloud is disabled: {purpose}\"}}"));
        return false;
    }
    reply.used_account = true;
    // Everybody may know what a model is.
    if purpose == DETAILS && world.account != Account::Offline {
        return true;
    }
    if !world.account.is_known(reply) {
        return false;
    }
    if world.quota_spent {
        reply.json(
            429,
            "{\"error\":\"you (somebody) have reached your weekly usage limit, upgrade for higher \
             limits: https://ollama.com/upgrade\"}",
        );
    }
    !world.quota_spent
}

pub(super) const INFERENCE: &str = "remote model is unavailable";
pub(super) const DETAILS: &str = "remote model details are unavailable";

/// `POST /api/me`.
pub(super) fn me(machine: &Machine, reply: &mut Reply<'_, '_>) {
    reply.used_account = true;
    let account = machine.world(|world| world.account);
    if account == Account::Offline {
        reply.json(503, "{\"error\":\"account unavailable\"}");
    } else if account.is_known(reply) {
        reply.json(
            200,
            "{\"id\":\"01234567-89ab-cdef-0123-456789abcdef\",\"email\":\"somebody@example.org\",\
             \"name\":\"somebody\",\"bio\":\"likes llamas\",\
             \"avatarurl\":\"https://ollama.com/avatar/somebody\",\"firstname\":\"Some\",\
             \"lastname\":\"Body\",\"plan\":\"pro\"}",
        );
    }
}

/// `POST /api/signout`.
pub(super) fn sign_out(machine: &Machine, reply: &mut Reply<'_, '_>) {
    reply.used_account = true;
    let before = machine.world(|world| {
        let before = world.account;
        if before == Account::SignedIn {
            world.account = Account::SignedOut;
        }
        before
    });
    match before {
        Account::SignedIn => reply.json(200, "null"),
        Account::SignedOut => {
            reply.json(401, "{\"error\":\"you are not currently signed in\"}");
        }
        Account::Offline => reply.json(500, "{\"error\":\"there was an error signing out\"}"),
    }
}
