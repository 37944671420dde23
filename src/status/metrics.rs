//! `/ollana/metrics`: Prometheus' text format.

use std::collections::HashSet;
use std::fmt::Write;
use std::iter;

use super::View;
use crate::counters::{BOUNDS, CAUSES, CLASSES, Counter, Done, Histogram, Kind, Retry};
use crate::manager::pool::{Backend, ServerNow};

/// Longest label value, in characters.
const MAX_LABEL: usize = 100;

#[derive(Default)]
struct Text(String);

/// Labels as they stand in a line: names are ours, values anything.
type Labels<'a> = &'a [(&'a str, &'a str)];

impl Text {
    /// Begins a family. Counters are those whose name ends in `_total`.
    fn family(&mut self, name: &str, help: &str) {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        self.typed(name, kind, help);
    }

    fn typed(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String can't fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: Labels<'_>, value: f64) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{label}=\"", if at == 0 { '{' } else { ',' });
            for c in text.chars().take(MAX_LABEL) {
                match c {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    c if c.is_control() => self.0.push('?'),
                    c => self.0.push(c),
                }
            }
            self.0.push('"');
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }

    fn single(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, help);
        self.sample(name, &[], value);
    }

    fn histogram(&mut self, name: &str, labels: Labels<'_>, times: &Histogram) {
        let buckets = times.buckets();
        let mut count = 0;
        let bucket = format!("{name}_bucket");
        for (at, n) in buckets.iter().enumerate() {
            count += n;
            let bound = BOUNDS.get(at).map_or("+Inf".to_owned(), f64::to_string);
            self.sample(&bucket, &[labels, &[("le", &bound)]].concat(), count as f64);
        }
        self.sample(&format!("{name}_sum"), labels, times.sum());
        self.sample(&format!("{name}_count"), labels, count as f64);
    }
}

pub(crate) fn write(view: &View<'_>) -> String {
    let mut text = Text::default();
    daemon(&mut text, view);
    requests(&mut text, view);
    servers(&mut text, view);
    text.0
}

fn daemon(text: &mut Text, view: &View<'_>) {
    let about = view.about;
    let name = "ollana_build_info";
    text.family(name, "Always 1; the labels tell the version and the mode.");
    text.sample(name, &[("version", env!("CARGO_PKG_VERSION")), ("mode", &about.mode)], 1.0);
    let uptime = view.snapshot.sleeps.age(about.started, view.now).as_secs_f64();
    let usage = || about.connections.iter().map(|proxy| proxy.usage());
    let connections = usage().map(|usage| usage.connections as f64).sum();
    let max = usage().map(|usage| usage.max as f64).sum();
    let keys = view.keyring.keys().len() as f64;
    let waiting = view.snapshot.waiting as f64;
    text.single("ollana_uptime_seconds", "Time since the start.", uptime);
    text.single("ollana_ready", "Whether requests can be served.", flag(view.is_ready));
    text.single("ollana_connections", "Connections of clients.", connections);
    text.single("ollana_connections_max", "Connections that there may be.", max);
    text.single("ollana_keys", "Machines that this one is paired with.", keys);
    let name = "ollana_token_requests_total";
    text.family(name, "Requests that came with a token.");
    for known in view.keyring.tokens.all() {
        text.sample(name, &[("token", &known.token.name)], known.requests as f64);
    }
    text.single("ollana_queue_requests", "Requests that wait for a server.", waiting);
    let name = "ollana_queue_wait_seconds";
    text.typed(name, "histogram", "How long requests waited that had to.");
    text.histogram(name, &[], &view.counters.queue_wait);
    let transfers = view.counters.transfers.all().len() as f64;
    text.single("ollana_transfers", "Pulls and uploads under way.", transfers);
    let sources = &view.counters.transfers.sources;
    let name = "ollana_pulled_bytes_total";
    text.family(name, "Bytes that pulls got, by source: the registry, or a server of the house.");
    text.sample(name, &[("source", "registry"), ("server", "")], sources.registry.value() as f64);
    for (server, bytes) in sources.servers() {
        text.sample(name, &[("source", "server"), ("server", &server)], bytes as f64);
    }
    let (saved, given) = (sources.saved.value() as f64, sources.given.value() as f64);
    text.single("ollana_saved_bytes_total", "Bytes not pulled from the registry.", saved);
    text.single("ollana_given_bytes_total", "Bytes of models given to others.", given);
}

fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

fn requests(text: &mut Text, view: &View<'_>) {
    let counters = view.counters;
    let name = "ollana_requests_total";
    text.family(name, "Requests by kind and class of status; left: the client did.");
    for (kind, label) in Kind::ALL {
        for (class, count) in CLASSES.into_iter().zip(counters.requests(kind)) {
            text.sample(name, &[("kind", label), ("class", class)], count as f64);
        }
    }
    let name = "ollana_failures_total";
    text.family(name, "What went wrong, by cause.");
    for (cause, count) in CAUSES.into_iter().zip(counters.failures()) {
        text.sample(name, &[("cause", cause)], count as f64);
    }
    let name = "ollana_retries_total";
    text.family(name, "Requests sent again, by reason.");
    for (why, reason) in Retry::ALL {
        text.sample(name, &[("reason", reason)], counters.retries[why as usize].value() as f64);
    }
    let name = "ollana_time_to_first_byte_seconds";
    text.typed(name, "histogram", "From a request's head to the first byte of its answer.");
    for (kind, label) in Kind::ALL {
        text.histogram(name, &[("kind", label)], &counters.first_byte[kind as usize]);
    }
    let name = "ollana_body_bytes_total";
    text.family(name, "Bytes of bodies: up to the servers, down to the clients.");
    text.sample(name, &[("direction", "up")], counters.all.bytes_up.value() as f64);
    text.sample(name, &[("direction", "down")], counters.all.bytes_down.value() as f64);
    let tokens = counters.all.tokens.value() as f64;
    text.single("ollana_tokens_total", "Tokens written, as far as told.", tokens);
}

type Look = fn(&ServerNow, &Backend, &View<'_>) -> Option<f64>;
type Count = fn(&Done) -> &Counter;

/// What there is about every server: name after `ollana_server_`, help, value.
const SERVER_GAUGES: &[(&str, &str, Look)] = &[
    ("up", "Whether the server gets work.", |s, _, _| Some(flag(s.state.gets_work()))),
    ("encrypted", "Whether the hop to it is encrypted.", |s, _, view| view.encrypts(s).map(flag)),
    ("resting", "Whether it is passed over while others can do.", |s, _, _| {
        Some(flag(s.pause.is_some()))
    }),
    ("in_flight_requests", "Requests it has.", |_, b, _| Some(b.load.in_flight.into())),
    ("limit_requests", "Requests it takes at once, if known.", |s, _, _| s.limit.map(f64::from)),
    ("round_trip_seconds", "Of a health check, smoothed.", |_, b, _| {
        b.health.round_trip.map(|time| time.as_secs_f64())
    }),
    ("first_byte_seconds", "Time to its first byte, smoothed.", |_, b, _| {
        b.load.first_byte.map(|time| time.as_secs_f64())
    }),
    ("models", "Models on its disk, if known.", |_, b, _| {
        b.models.inventory.as_ref().map(|inventory| inventory.len() as f64)
    }),
];

/// What every server has done: name after `ollana_server_`, help, value.
const SERVER_COUNTERS: &[(&str, &str, Count)] = &[
    ("requests_total", "Requests that ended there.", |done| &done.requests),
    ("failures_total", "Requests that failed by its fault.", |done| &done.failures),
    ("tokens_total", "Tokens that it wrote.", |done| &done.tokens),
    ("sent_bytes_total", "Bytes of bodies sent to it.", |done| &done.bytes_up),
    ("received_bytes_total", "Bytes of its answers' bodies.", |done| &done.bytes_down),
];

fn servers(text: &mut Text, view: &View<'_>) {
    let servers = &view.snapshot.servers;
    let labels = labels(servers);
    let name = "ollana_servers";
    text.family(name, "Servers by health.");
    for health in ["ready", "down", "new"] {
        let count = servers.iter().filter(|s| s.state.health() == health).count();
        text.sample(name, &[("state", health)], count as f64);
    }
    let name = "ollana_server_info";
    text.family(name, "Always 1; the labels tell address, origin and Ollama's version.");
    for (server, label) in servers.iter().zip(&labels) {
        let address = server.backend.addresses.first().map(|it| it.to_string()).unwrap_or_default();
        let labels = [
            ("server", label.as_str()),
            ("address", &address),
            ("origin", server.origin),
            ("ollama", &server.backend.health.version),
        ];
        text.sample(name, &labels, 1.0);
    }
    let mut family = |name: &str, help: &str, look: &dyn Fn(&ServerNow) -> Option<f64>| {
        let name = format!("ollana_server_{name}");
        text.family(&name, help);
        for (server, label) in servers.iter().zip(&labels) {
            if let Some(value) = look(server) {
                text.sample(&name, &[("server", label)], value);
            }
        }
    };
    for (name, help, look) in SERVER_GAUGES {
        family(name, help, &|s| look(s, &s.backend, view));
    }
    for (name, help, of) in SERVER_COUNTERS {
        family(name, help, &|s| Some(of(&s.backend.tally).value() as f64));
    }
}

/// A label for each server: its name, made different from the others' where it isn't. Two lines
/// with the same labels would spoil the whole answer.
fn labels(servers: &[ServerNow]) -> Vec<String> {
    let mut used = HashSet::new();
    let mut labels = Vec::new();
    for server in servers {
        // As it will be written, because that is what must differ.
        let clean = |c: char| if c.is_control() && c != '\n' { '?' } else { c };
        let name: String = server.name.chars().take(MAX_LABEL - 16).map(clean).collect();
        // Another server may be called like a name with a number.
        let numbered = (server.backend.id.0..).map(|number| format!("{name} #{number}"));
        let mut free = iter::once(name.clone()).chain(numbered);
        labels.extend(free.find(|label| used.insert(label.clone())));
    }
    labels
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::config::ServerName;
    use crate::config::Settings;
    use crate::counters::Counters;
    use crate::manager::pool::{History, Pool, Rules, Sleeps};
    use crate::manager::{About, Snapshot};
    use crate::ollama::aliases::Aliases;
    use crate::pairing::keyring::Keyring;
    use crate::proxy::connections::{Connections, Process};

    fn rules() -> Rules {
        Rules {
            health_interval: Duration::from_secs(1),
            health_timeout: Duration::from_secs(1),
            rise: 1,
            fall: 2,
            max_servers: 64,
            inventories: true,
            max_in_flight: 3,
            pins: Vec::new(),
            bans: Vec::new(),
            aliases: Aliases::default(),
            preferred: Vec::new(),
            wake: Vec::new(),
        }
    }

    fn text(names: &[&str]) -> String {
        let now = Instant::now();
        let mut pool = Pool::new(rules(), 1);
        for (port, _) in (1..).zip(names) {
            pool.add_named(now, ServerName { host: "x".to_owned(), port });
        }
        let counters = Counters::default();
        counters.request(Kind::Generate, 200, Some(Duration::from_millis(30)));
        counters.queue_wait.add(Duration::from_secs(400));
        let mut servers = pool.snapshot(now);
        servers.iter_mut().zip(names).for_each(|(server, name)| server.name = (*name).to_owned());
        let snapshot = Snapshot {
            away: Vec::new(),
            servers,
            waiting: 2,
            longest_wait: None,
            last_wait: None,
            transitions: Vec::new(),
            aliases: Vec::new(),
            history: History::default(),
            sleeps: Sleeps::default(),
            notes: Vec::new(),
        };
        let about = About {
            name: "box".to_owned(),
            mode: "client".to_owned(),
            why: String::new(),
            listen: Vec::new(),
            discovery: "off".to_owned(),
            connections: vec![std::sync::Arc::new(Connections::new(9, 5, Process::of_its_own(9)))],
            timing: Settings::default().timing,
            share_models: Settings::default().share_models,
            library: None,
            started: now,
        };
        write(&View {
            about: &about,
            snapshot: &snapshot,
            counters: &counters,
            keyring: &Keyring::none(),
            is_ready: true,
            advice: None,
            awake: (false, None),
            odd: Vec::new(),
            now,
        })
    }

    #[test]
    fn every_server_has_a_label_of_its_own() {
        for names in [&["a", "a #2", "a"][..], &["a", "a #2 #3", "a #2", "a #2", "a", "a #4"]] {
            let text = text(names);
            let up = text.lines().filter(|line| line.starts_with("ollana_server_up{"));
            assert_eq!(up.collect::<HashSet<_>>().len(), names.len(), "{names:?} in\n{text}");
        }
    }

    #[test]
    fn every_line_is_of_the_format() {
        let text = text(&["a", "b\"\\\n\u{1b}", "a"]);
        let mut family = String::new();
        let (mut families, mut seen) = (HashSet::new(), HashSet::new());
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                family = rest.split(' ').next().unwrap_or_default().to_owned();
                assert!(families.insert(family.clone()), "{family} comes twice");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let kind = rest.strip_prefix(&format!("{family} ")).expect("the same family");
                assert!(matches!(kind, "gauge" | "counter" | "histogram"), "{line}");
                assert_eq!(kind == "counter", family.ends_with("_total"), "{line}");
            } else {
                assert!(line.starts_with(&family), "{line} in {family}");
                let (name, value) = line.rsplit_once(' ').expect("a value");
                assert!(value.parse::<f64>().is_ok(), "{line}");
                assert!(seen.insert(name.to_owned()), "{name} comes twice");
                assert!(!line.contains('\u{1b}'), "{line:?}");
            }
        }
        for line in [
            "ollana_requests_total{kind=\"generate\",class=\"2xx\"} 1",
            "ollana_time_to_first_byte_seconds_bucket{kind=\"generate\",le=\"0.02\"} 0",
            "ollana_time_to_first_byte_seconds_bucket{kind=\"generate\",le=\"0.05\"} 1",
            "ollana_time_to_first_byte_seconds_sum{kind=\"generate\"} 0.03",
            "ollana_queue_wait_seconds_bucket{le=\"300\"} 0",
            "ollana_queue_wait_seconds_bucket{le=\"+Inf\"} 1",
            "ollana_queue_requests 2",
            "ollana_servers{state=\"new\"} 3",
            "ollana_server_up{server=\"b\\\"\\\\\\n?\"} 0",
            "ollana_server_up{server=\"a #2\"} 0",
            "ollana_server_limit_requests{server=\"a\"} 3",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} in\n{text}");
        }
    }
}
