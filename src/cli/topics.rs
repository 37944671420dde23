//! The table of options, page by page of the help; and the pages of the help that are prose.
//!
//! From a row come: how a flag or its `OLLANA_…` variable is read, the help, the man page, the
//! completions of three shells, and "did you mean".

use log::LevelFilter;

use super::options::Meaning::{List, Scalar, Switch, Time, Words};
use super::options::{
    OptionSpec, absolute, head_size, host_name, keep_awake, number, option, route, server,
    socket_address, text,
};
use crate::access::permissions::ShareModels;
use crate::config::{self, LogFormat, ModeChoice};
use crate::http::head::MAX_FIELDS;

/// A page of `ollana help TOPIC`, a section of the man page.
pub(crate) struct Topic {
    pub(crate) name: &'static str,
    pub(crate) intro: &'static str,
    /// Options that are shown here and nowhere else.
    pub(crate) options: &'static [OptionSpec],
    /// What belongs to them and is no option with a value: how it is written, what it does.
    pub(crate) others: &'static [(&'static str, &'static str)],
    /// What is said below, in lines of at most 80 columns.
    pub(crate) text: &'static str,
}

const fn prose(name: &'static str, text: &'static str) -> Topic {
    Topic { name, intro: "", options: &[], others: &[], text }
}

/// A list of the settings, and the function that reads one of its values.
macro_rules! list {
    ($first:ident $(.$next:ident)?, $read:expr) => {
        List(|s, v| $read(v).map(|value| s.$first$(.$next)?.push(value)), |s| {
            s.$first$(.$next)?.clear();
        })
    };
}

/// Every option, and everything else that there is help about besides commands.
///
/// Not formatted by rustfmt: what a row says is in its first line, what it does in the next.
#[rustfmt::skip]
pub(crate) const TOPICS: &[Topic] = &[
    Topic {
        name: "options",
        intro: "Mode, addresses, servers, and which of them gets a request.",
        options: &[
            option("mode MODE", "auto, client, server or both", "auto", Words(&[
                ("auto", |s| s.mode = ModeChoice::Auto),
                ("client", |s| s.mode = ModeChoice::Client),
                ("server", |s| s.mode = ModeChoice::Server),
                ("both", |s| s.mode = ModeChoice::Both),
            ])),
            option("listen ADDR:PORT", "HTTP address of this mode's proxy",
                "client 127.0.0.1:11434 and [::1]:11434, server 0.0.0.0:11435",
                list!(listen, socket_address)),
            option("share ADDR:PORT", "with --mode both, the server's address", "0.0.0.0:11435",
                list!(share, socket_address)),
            option("ollama URL", "this machine's Ollama", "$OLLAMA_HOST or 127.0.0.1:11434",
                Scalar(|s, v| config::parse_ollama(v).map(|url| s.ollama = Some(url)))),
            option("server HOST[:PORT]", "a server that isn't found by itself", "",
                list!(servers, server)),
            option("discovery-port N", "UDP port of the discovery, 0 turns it off", "11436",
                Scalar(|s, v| number(v, 0, 65535).map(|port| s.discovery_port = port))),
            option("interface NAME", "broadcast on this interface", "all suitable",
                list!(interfaces, text)),
            option("prefer SERVER", "use this server first while it is up", "",
                list!(preferred, text)),
            option("wake SERVER|MAC", "wake this machine when nobody else can", "",
                list!(wake, str::parse)),
            option("keep-awake T", "a server stays awake for requests, and so long after; off: never",
                "10m", Scalar(|s, v| keep_awake(v).map(|time| s.keep_awake = time))),
            option("pin MODEL=SERVER", "this model goes to this server", "", list!(pins, route)),
            option("ban MODEL=SERVER", "this model never goes to this server", "",
                list!(bans, route)),
            option("alias NAME=MODEL[,MODEL]", "NAME stands for the first of these that a server has", "",
                List(|s, v| s.aliases.add(v), |s| s.aliases.clear())),
            // Nothing is more than debug: finer lines aren't compiled in (see Cargo.toml).
            option("log-level LEVEL", "off, error, warn, info or debug", "info", Words(&[
                ("off", |s| s.log_level = LevelFilter::Off),
                ("error", |s| s.log_level = LevelFilter::Error),
                ("warn", |s| s.log_level = LevelFilter::Warn),
                ("info", |s| s.log_level = LevelFilter::Info),
                ("debug", |s| s.log_level = LevelFilter::Debug),
            ])),
            option("legacy on|off", "answer four-byte probes of older versions", "on",
                Switch(|s| &mut s.legacy)),
        ],
        others: &[("--help, --version", "all commands, or what a command takes; the version")],
        text: "\
More options: ollana help access, limits and service. Each is a variable too:
OLLANA_LOG_LEVEL=debug (lists take commas); the command line wins.
",
    },
    Topic {
        name: "access",
        intro: "What other machines may do here. Programs of this machine may do everything, \
                and so may machines that are paired with it.",
        options: &[
            option("manage on|off", "they may pull, push, create, copy, delete models", "off",
                Switch(|s| &mut s.policy.manage)),
            option("pull on|off", "they may pull from Ollama's own registry", "off",
                Switch(|s| &mut s.policy.pull)),
            option("cloud on|off", "they may use cloud models and web search, on your account", "on",
                Switch(|s| &mut s.policy.cloud)),
            option("share-models WHOM", "on, paired or off: who gets this machine's models", "on",
                Words(&[
                    ("on", |s| s.share_models = ShareModels::On),
                    ("paired", |s| s.share_models = ShareModels::Paired),
                    ("off", |s| s.share_models = ShareModels::Off),
                ])),
            option("allow RANGE", "only these addresses may connect, and this machine",
                "loopback, private, link-local, own subnets", list!(reach.allow, str::parse)),
            option("deny RANGE", "these may not, whatever is allowed", "",
                list!(reach.deny, str::parse)),
            option("host NAME", "accept this name in a request's Host", "",
                list!(hosts, host_name)),
            option("status-from RANGE", "who else may see /ollana/", "",
                list!(status_from, str::parse)),
        ],
        others: &[("OLLAMA_ORIGINS=LIST",
            "web pages that may ask besides Ollama's own list; set it for the ollana that they \
             reach, as for Ollama itself")],
        text: "\
Ranges are written 192.168.1.0/24, fd00::/8 or 192.168.1.7.
Inference and lists are open to other machines; account routes and what ollana
doesn't know stay closed. Of the account they hear whether it is signed in and
its plan, which cloud models need.
",
    },
    Topic {
        name: "limits",
        intro: "Intervals, time-outs and limits. Times: 250ms, 5s, 2m. Sizes: 4096, 64k, 4m.",
        options: &[
            option("probe-interval T", "between two discovery probes", "5s",
                Time(|s| &mut s.timing.probe_interval)),
            option("health-interval T", "between two health checks of a server", "1s",
                Time(|s| &mut s.timing.health_interval)),
            option("health-timeout T", "for the answer to a health check", "1500ms",
                Time(|s| &mut s.timing.health_timeout)),
            option("rise N", "good checks in a row until a server gets work", "1",
                Scalar(|s, v| number(v, 1, 100).map(|n| s.limits.rise = n))),
            option("fall N", "failed checks in a row until it gets none", "2",
                Scalar(|s, v| number(v, 1, 100).map(|n| s.limits.fall = n))),
            option("connect-timeout T", "to connect to a server", "1300ms",
                Time(|s| &mut s.timing.connect_timeout)),
            option("wait-timeout T", "a request waits for a server being checked", "1500ms",
                Time(|s| &mut s.timing.wait_timeout)),
            option("queue-timeout T", "a request waits while all servers are busy", "60s",
                Time(|s| &mut s.timing.queue_timeout)),
            option("wake-timeout T", "a request waits for a machine that was woken", "60s",
                Time(|s| &mut s.timing.wake_timeout)),
            option("head-timeout T", "for a request's whole head", "10s",
                Time(|s| &mut s.timing.head_timeout)),
            option("idle-timeout T", "until an idle connection is closed", "2m",
                Time(|s| &mut s.timing.idle_timeout)),
            option("body-timeout T", "a client sends nothing of its body", "60s",
                Time(|s| &mut s.timing.body_timeout)),
            option("stall-timeout T", "the other side reads nothing of what we send", "2m",
                Time(|s| &mut s.timing.stall_timeout)),
            option("drain-timeout T", "for streams to finish after SIGTERM", "30s",
                Time(|s| &mut s.timing.drain_timeout)),
            option("max-connections N", "in all; one thread each", "2048",
                Scalar(|s, v| number(v, 1, 65536).map(|n| s.limits.max_connections = n))),
            option("max-connections-per-source N", "of one address; as many must be free", "1024",
                Scalar(|s, v| {
                    number(v, 1, 65536).map(|n| s.limits.max_connections_per_source = n)
                })),
            option("max-head SIZE", "bytes of a request head", "64k",
                Scalar(|s, v| head_size(v).map(|size| s.limits.max_head = size))),
            option("max-fields N", "fields of a request head, 10 to 128", "100",
                Scalar(|s, v| number(v, 10, MAX_FIELDS).map(|n| s.limits.max_fields = n))),
            option("replay-limit SIZE", "body kept to try another server", "4m",
                Scalar(|s, v| config::parse_size(v).map(|size| s.limits.replay_limit = size))),
            option("replay-budget SIZE", "all kept bodies together", "64m",
                Scalar(|s, v| config::parse_size(v).map(|size| s.limits.replay_budget = size))),
            option("max-servers N", "in the pool", "64",
                Scalar(|s, v| number(v, 1, 1024).map(|n| s.limits.max_servers = n))),
            option("max-in-flight N", "inferences on one server; 0: learned when overloaded", "0",
                Scalar(|s, v| number(v, 0, 65536).map(|n| s.limits.max_in_flight = n))),
        ],
        others: &[],
        text: "",
    },
    Topic {
        name: "service",
        intro: "systemd is told when ollana is ready, and that it is alive. (\"cargo install ollana\" \
                installs another program with the same name.)",
        options: &[
            option("log-file FILE", "log there; at 10 MB it becomes FILE.1; SIGHUP reopens it", "",
                Scalar(|s, v| absolute(v).map(|file| s.log_file = Some(file)))),
            option("log-format FORMAT", "text, or json: an object per line", "text", Words(&[
                ("text", |s| s.log_format = LogFormat::Text),
                ("json", |s| s.log_format = LogFormat::Json),
            ])),
            option("pid-file FILE", "write the process number there", "",
                Scalar(|s, v| absolute(v).map(|file| s.pid_file = Some(file)))),
            option("state-dir DIR", "where the identity, keys and the servers of the last run are",
                "$STATE_DIRECTORY or ~/.local/state/ollana",
                Scalar(|s, v| text(v).map(|dir| s.state_dir = Some(dir.into())))),
            option("key-file FILE",
                "a secret of 32 bytes in hexadecimal or base64; machines that have the same are \
                 paired", "",
                Scalar(|s, v| text(v).map(|file| s.key_file = Some(file.into())))),
            option("unpaired on|off", "talk to machines without a key, unencrypted",
                "on without keys, off with keys", Words(&[
                ("on", |s| s.unpaired = Some(true)),
                ("off", |s| s.unpaired = Some(false)),
            ])),
        ],
        others: &[("--daemon",
            "with serve: go to the background once it is ready; exit code 0 says that it is")],
        text: "",
    },
    prose("metrics", include_str!("help/metrics.txt")),
    prose("protocol", include_str!("help/protocol.txt")),
    prose("security", include_str!("help/security.txt")),
    prose("token", include_str!("help/token.txt")),
    prose("trouble", include_str!("help/trouble.txt")),
    prose("both", include_str!("help/both.txt")),
    prose("models", include_str!("help/models.txt")),
    prose("sharing", include_str!("help/sharing.txt")),
];

pub(crate) fn options() -> impl Iterator<Item = &'static OptionSpec> {
    TOPICS.iter().flat_map(|topic| topic.options)
}
