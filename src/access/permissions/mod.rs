//! Permissions: which classes of requests another machine may send to this one. Pure.
//!
//! Ollama listens on loopback because every program that can connect to it may pull, create, push
//! and delete models. A proxy that opens it to the LAN opens inference and lists, and nothing else:
//!
//! | class | what | this machine, paired ones | others on the LAN |
//! |---|---|---|---|
//! | `Open` | inference, lists, versions | yes | yes; with `--cloud off`, nothing that uses the account |
//! | `Manage` | push, create, copy, delete, blobs | yes | with `--manage on` |
//! | `Pull` | pull | yes | with `--manage on`; from Ollama's own registry, `--pull on` |
//! | `Whoami` | who am I | yes | whether it is signed in, and its plan; not with `--cloud off` |
//! | `Account` | sign out, usage, keys, experiments | yes | no |
//! | `Local` | what Ollama takes from its own machine alone | this machine only | no |
//! | `Unknown` | everything else | yes | no: 404 or 405, as from an Ollama without it |
//!
//! A device that sends a token may do what others on the LAN may, but never `Manage` or `Pull`.
//!
//! [`ollama::endpoints`](crate::ollama::endpoints) has the class of each path.

use std::net::IpAddr;

use crate::ollama::endpoints::Class;
use crate::ollama::pull::is_of_registry;

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A program of this machine. What comes through a tunnel or a reverse proxy on it counts too.
    Own,
    /// A machine that was paired with this one: it may do what `Own` may.
    Paired,
    /// A device that sends one of this machine's tokens.
    Token,
    /// Any other machine.
    Lan,
}

impl Caller {
    /// By the two ends of its connection. A peer with this machine's own address is this machine:
    /// the kernel takes no such packets from a network.
    pub(crate) fn of(peer: IpAddr, local: Option<IpAddr>) -> Self {
        let peer = peer.to_canonical();
        let is_own = peer.is_loopback() || local.is_some_and(|ip| ip.to_canonical() == peer);
        if is_own { Caller::Own } else { Caller::Lan }
    }

    /// Whether it may do what a program of this machine may.
    pub(crate) fn is_trusted(self) -> bool {
        matches!(self, Caller::Own | Caller::Paired)
    }
}

/// What a server lets a caller do. Ordered: each step includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permission {
    /// Use models.
    #[default]
    Use,
    /// Pull from Ollama's own registry, too.
    Pull,
    /// Manage models, too.
    Manage,
}

impl Permission {
    const ALL: [Permission; 3] = [Permission::Use, Permission::Pull, Permission::Manage];

    /// Its word in `X-Ollana-Open`.
    pub(crate) fn word(self) -> &'static str {
        ["use", "pull", "manage"][self as usize]
    }

    pub(crate) fn of_word(word: &str) -> Option<Self> {
        Permission::ALL.into_iter().find(|permission| permission.word() == word)
    }
}

/// What this machine's owner allows to other machines that aren't paired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// `--manage`: they may manage models.
    pub manage: bool,
    /// `--pull`: they may pull from Ollama's own registry.
    pub pull: bool,
    /// `--cloud`: they may use what needs the account of this machine's Ollama.
    pub cloud: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Policy { manage: false, pull: false, cloud: true }
    }
}

/// How a model came to be on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// From a registry, where others can have it too.
    Pulled,
    /// Made on this machine.
    Made,
}

/// Whom this machine gives the blobs of its models (`--share-models`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShareModels {
    /// Those that were pulled to every machine that may use it, those that were made here to paired ones.
    #[default]
    On,
    /// All to paired machines, none to others.
    Paired,
    /// None to anybody.
    Off,
}

impl ShareModels {
    /// Its word in the options.
    pub(crate) fn word(self) -> &'static str {
        ["on", "paired", "off"][self as usize]
    }

    pub(crate) fn allows(self, caller: Caller, origin: Origin) -> bool {
        match self {
            ShareModels::Off => false,
            _ if caller.is_trusted() => true,
            ShareModels::On => origin == Origin::Pulled,
            ShareModels::Paired => false,
        }
    }
}

/// Whether a request may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    /// Pass if its body names a model of Ollama's own registry: see
    /// [`registry_pull`](crate::ollama::pull::registry_pull).
    PassFromRegistry,
    Refuse(Refusal),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Manage,
    Pull,
    /// A pull, but not from Ollama's own registry.
    Registry,
    /// Changes models, and comes with a token.
    Token,
    /// What would use the account.
    Cloud,
    Account,
    Unknown,
}

impl Refusal {
    /// A sentence for the program's user: what `machine` refuses, and what would allow it.
    pub(crate) fn message(self, machine: &str) -> String {
        match self {
            Refusal::Manage => format!(
                "{machine} does not let other machines change its models; \
                 to allow it, start ollana on {machine} with --manage on"
            ),
            Refusal::Pull => format!(
                "{machine} does not let other machines pull models; to allow it, start ollana on \
                 {machine} with --pull on (Ollama's registry only) or --manage on"
            ),
            Refusal::Registry => format!(
                "{machine} lets other machines pull from Ollama's own registry only; \
                 to allow others, start ollana on {machine} with --manage on"
            ),
            Refusal::Token => format!(
                "a token is good for using and listing the models of {machine}, not for changing \
                 them; do this on {machine} itself, or on a machine that is paired with it"
            ),
            Refusal::Cloud => format!(
                "{machine} does not let other machines use its Ollama account, so no cloud models \
                 and no web search; to allow it, start ollana on {machine} with --cloud on"
            ),
            Refusal::Account => format!(
                "{machine} does not let other machines use its Ollama account; \
                 do this on {machine} itself"
            ),
            Refusal::Unknown => format!(
                "ollana on {machine} does not know this method and path, so it does not pass it \
                 on for other machines; do this on {machine} itself"
            ),
        }
    }
}

impl Policy {
    pub(crate) fn judge(self, caller: Caller, class: Class) -> Verdict {
        match (class, self.permission(caller)) {
            (Class::Local, _) if caller != Caller::Own => Verdict::Refuse(Refusal::Unknown),
            _ if caller.is_trusted() => Verdict::Pass,
            (Class::Whoami, _) if !self.cloud => Verdict::Refuse(Refusal::Cloud),
            // Of which some needs a look into the body: `keeps_from_cloud`.
            (Class::Open | Class::Whoami, _) => Verdict::Pass,
            (Class::Manage | Class::Pull, _) if caller == Caller::Token => {
                Verdict::Refuse(Refusal::Token)
            }
            (Class::Manage | Class::Pull, Permission::Manage) => Verdict::Pass,
            (Class::Pull, Permission::Pull) => Verdict::PassFromRegistry,
            (Class::Pull, _) => Verdict::Refuse(Refusal::Pull),
            (Class::Manage, _) => Verdict::Refuse(Refusal::Manage),
            (Class::Account, _) => Verdict::Refuse(Refusal::Account),
            (Class::Local | Class::Unknown, _) => Verdict::Refuse(Refusal::Unknown),
        }
    }

    /// Whether a caller may not use a cloud's models, nor what else needs the account.
    pub(crate) fn keeps_from_cloud(self, caller: Caller) -> bool {
        !self.cloud && !caller.is_trusted()
    }

    pub(crate) fn permission(self, caller: Caller) -> Permission {
        match self {
            _ if caller == Caller::Token => Permission::Use,
            _ if caller.is_trusted() || self.manage => Permission::Manage,
            Policy { pull: true, .. } => Permission::Pull,
            Policy { .. } => Permission::Use,
        }
    }
}

/// What a server must allow for a request of this class that names this model.
pub(crate) fn needed(class: Class, model: Option<&str>) -> Permission {
    match class {
        Class::Manage => Permission::Manage,
        Class::Pull if model.is_some_and(is_of_registry) => Permission::Pull,
        Class::Pull => Permission::Manage,
        Class::Open | Class::Whoami | Class::Account | Class::Local | Class::Unknown => {
            Permission::Use
        }
    }
}

#[cfg(test)]
mod tests;
