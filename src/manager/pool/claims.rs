//! What a server says that it is, how far that is believed, and what tells against it.

use std::time::Instant;

use super::events::{Notice, Sighting};
use crate::access::permissions::Permission;
use crate::pairing::identity::Identity;

/// How far the claimed identity is believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Proof {
    /// It was announced, which anyone can forge, or there is none.
    #[default]
    Announced,
    /// The server said so itself when it was checked.
    Confirmed,
    /// Confirmed, but this run of another one has been announced from its address since.
    Contradicted(Identity, u32),
}

/// A machine's notice that it can't be used.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    pub(super) notice: Notice,
    /// When it was said first, and last.
    pub(super) since: Instant,
    pub(super) at: Instant,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct IdentityConflict {
    /// For people: what is odd about it.
    pub(crate) reason: String,
    /// It gets no request, because the server whose place it claims is well.
    pub(crate) is_quarantined: bool,
    /// It has been taken for a successor, so nobody needs to be told any more.
    pub(crate) is_settled: bool,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Claims {
    pub(super) identity: Option<Identity>,
    pub(super) proof: Proof,
    /// When a check showed that a contradicting announcement was forged.
    pub(super) forged_at: Option<Instant>,
    pub(crate) conflict: Option<IdentityConflict>,
    pub(super) told_at: Option<Instant>,
    /// Probation: what it says wins it nothing over servers that were known before.
    pub(crate) is_newcomer: bool,
    /// New at each start of the server.
    pub(super) instance: u32,
    pub(crate) name: String,
    pub(super) management_open: bool,
    /// It has announced, since it was last well, that its Ollama doesn't answer.
    pub(super) lacks_ollama: bool,
    /// What it lets us do, as its proxy told when it was checked.
    pub(super) permission: Option<Permission>,
}

impl Claims {
    /// Whether another server, which is well, has more right to its name, address or identity.
    pub(super) fn is_quarantined(&self) -> bool {
        self.conflict.as_ref().is_some_and(|conflict| conflict.is_quarantined)
    }

    /// Whether an announcement of this identity contradicts what the server itself said.
    pub(super) fn is_contradicted_by(&self, identity: Identity) -> bool {
        self.proof != Proof::Announced && self.identity.is_some_and(|own| own != identity)
    }

    pub(super) fn announced(&mut self, sighting: Sighting) {
        self.instance = sighting.instance;
        self.management_open = sighting.management_open;
        self.lacks_ollama = !sighting.ollama_up;
        if !sighting.name.is_empty() && self.proof == Proof::Announced {
            self.name = sighting.name;
        }
        if self.identity != Some(sighting.identity) {
            (self.identity, self.proof) = (Some(sighting.identity), Proof::Announced);
        }
    }

    pub(super) fn checked(
        &mut self,
        now: Instant,
        identity: Option<Identity>,
        name: Option<String>,
        permission: Option<Permission>,
    ) {
        match (self.proof, identity) {
            (Proof::Contradicted(claimed, instance), Some(identity)) if claimed == identity => {
                self.instance = instance;
            }
            (Proof::Contradicted(..), Some(_)) => self.forged_at = Some(now),
            _ => {}
        }
        self.proof = if identity.is_some() { Proof::Confirmed } else { Proof::Announced };
        self.identity = identity.or(self.identity);
        self.permission = permission;
        self.lacks_ollama = false;
        if let Some(name) = name {
            self.name = name;
        }
    }
}
