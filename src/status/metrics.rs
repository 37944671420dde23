//! `/ollana/metrics`: Prometheus' text format.

use std::collections::HashSet;
use std::fmt::Write;

use super::View;
use crate::counters::{BOUNDS, CAUSES, CLASSES, Histogram, Kind, Retry};
use crate::manager::pool::ServerNow;

/// Longest label value, in characters.
const MAX_LABEL: usize = 100;

/// Lines under construction.
#[derive(Default)]
struct Text(String);

/// Labels as they stand in a line: names are ours, values anything.
type Labels<'a> = &'a [(&'a str, &'a str)];

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
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

    fn single(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    fn histogram(&mut self, name: &str, labels: Labels<'_>, times: &Histogram) {
        let buckets = times.buckets();
        let mut count = 0;
        let bucket = format!("{name}_bucket");
        for (at, n) in buckets.iter().enumerate() {
            count += n;
            let bound = BOUNDS.get(at).map_or("+Inf".to_owned(), f64::to_string);
            let labels: Vec<(&str, &str)> =
                labels.iter().copied().chain([("le", bound.as_str())]).collect();
            self.sample(&bucket, &labels, count as f64);
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
    text.family(name, "gauge", "Always 1; the labels tell the version and the mode.");
    let labels = [("version", env!("CARGO_PKG_VERSION")), ("mode", about.mode.as_str())];
    text.sample(name, &labels, 1.0);
    let uptime = view.now.saturating_duration_since(about.started).as_secs_f64();
    text.single("ollana_uptime_seconds", "gauge", "Time since the start.", uptime);
    let ready = f64::from(u8::from(view.is_ready));
    text.single("ollana_ready", "gauge", "Whether requests can be served.", ready);
    let usage = || about.connections.iter().map(|proxy| proxy.usage());
    let now = usage().map(|usage| usage.connections as f64).sum();
    text.single("ollana_connections", "gauge", "Connections of clients.", now);
    let max = usage().map(|usage| usage.max as f64).sum();
    text.single("ollana_connections_max", "gauge", "Connections that there may be.", max);
    let keys = view.keyring.keys().len() as f64;
    text.single("ollana_keys", "gauge", "Machines that this one is paired with.", keys);
    let waiting = view.snapshot.waiting as f64;
    text.single("ollana_queue_requests", "gauge", "Requests that wait for a server.", waiting);
    let name = "ollana_queue_wait_seconds";
    text.family(name, "histogram", "How long requests waited that had to.");
    text.histogram(name, &[], &view.counters.queue_wait);
    let transfers = view.counters.transfers().len() as f64;
    text.single("ollana_transfers", "gauge", "Pulls and uploads under way.", transfers);
}

fn requests(text: &mut Text, view: &View<'_>) {
    let counters = view.counters;
    let name = "ollana_requests_total";
    text.family(name, "counter", "Requests by kind and class of status; left: the client did.");
    for (kind, label) in Kind::ALL {
        for (class, count) in CLASSES.into_iter().zip(counters.requests(kind)) {
            text.sample(name, &[("kind", label), ("class", class)], count as f64);
        }
    }
    let name = "ollana_failures_total";
    text.family(name, "counter", "What went wrong, by cause.");
    for (cause, count) in CAUSES.into_iter().zip(counters.failures()) {
        text.sample(name, &[("cause", cause)], count as f64);
    }
    let name = "ollana_retries_total";
    text.family(name, "counter", "Requests sent again, by reason.");
    for (why, reason) in Retry::ALL {
        text.sample(name, &[("reason", reason)], counters.retries(why) as f64);
    }
    let name = "ollana_time_to_first_byte_seconds";
    text.family(name, "histogram", "From a request's head to the first byte of its answer.");
    for (kind, label) in Kind::ALL {
        text.histogram(name, &[("kind", label)], counters.first_byte(kind));
    }
    let name = "ollana_body_bytes_total";
    text.family(name, "counter", "Bytes of bodies: up to the servers, down to the clients.");
    text.sample(name, &[("direction", "up")], counters.all.bytes_up.value() as f64);
    text.sample(name, &[("direction", "down")], counters.all.bytes_down.value() as f64);
    let tokens = counters.all.tokens.value() as f64;
    text.single("ollana_tokens_total", "counter", "Tokens written, as far as told.", tokens);
}

/// A value of one server.
type Look = fn(&ServerNow, &View<'_>) -> Option<f64>;

/// What there is about every server: name, type, help, value.
const SERVER_FAMILIES: &[(&str, &str, &str, Look)] = &[
    ("ollana_backend_up", "gauge", "Whether the server gets work.", |s, _| {
        Some(f64::from(u8::from(s.state.gets_work())))
    }),
    ("ollana_backend_encrypted", "gauge", "Whether the hop to it is encrypted.", |s, view| {
        view.encrypts(s).map(|is| f64::from(u8::from(is)))
    }),
    (
        "ollana_backend_resting",
        "gauge",
        "Whether it is passed over while others can do.",
        |s, _| Some(f64::from(u8::from(s.pause.is_some()))),
    ),
    ("ollana_backend_in_flight_requests", "gauge", "Requests it has.", |s, _| {
        Some(f64::from(s.backend.load.in_flight))
    }),
    ("ollana_backend_limit_requests", "gauge", "Requests it takes at once, if known.", |s, _| {
        s.limit.map(f64::from)
    }),
    ("ollana_backend_round_trip_seconds", "gauge", "Of a health check, smoothed.", |s, _| {
        s.backend.health.round_trip.map(|time| time.as_secs_f64())
    }),
    ("ollana_backend_first_byte_seconds", "gauge", "Time to its first byte, smoothed.", |s, _| {
        s.backend.load.first_byte.map(|time| time.as_secs_f64())
    }),
    ("ollana_backend_models", "gauge", "Models on its disk, if known.", |s, _| {
        s.backend.models.inventory.as_ref().map(|inventory| inventory.len() as f64)
    }),
    ("ollana_backend_requests_total", "counter", "Requests that ended there.", |s, _| {
        Some(s.backend.tally.requests.value() as f64)
    }),
    ("ollana_backend_failures_total", "counter", "Requests that failed by its fault.", |s, _| {
        Some(s.backend.tally.failures.value() as f64)
    }),
    ("ollana_backend_tokens_total", "counter", "Tokens that it wrote.", |s, _| {
        Some(s.backend.tally.tokens.value() as f64)
    }),
    ("ollana_backend_sent_bytes_total", "counter", "Bytes of bodies sent to it.", |s, _| {
        Some(s.backend.tally.bytes_up.value() as f64)
    }),
    ("ollana_backend_received_bytes_total", "counter", "Bytes of its answers' bodies.", |s, _| {
        Some(s.backend.tally.bytes_down.value() as f64)
    }),
];

fn servers(text: &mut Text, view: &View<'_>) {
    let servers = &view.snapshot.servers;
    let labels = labels(servers);
    let name = "ollana_backends";
    text.family(name, "gauge", "Servers by health.");
    for health in ["ready", "down", "new"] {
        let count = servers.iter().filter(|s| s.state.health() == health).count();
        text.sample(name, &[("state", health)], count as f64);
    }
    let name = "ollana_backend_info";
    text.family(name, "gauge", "Always 1; the labels tell address, origin and Ollama's version.");
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
    for (name, kind, help, look) in SERVER_FAMILIES {
        text.family(name, kind, help);
        for (server, label) in servers.iter().zip(&labels) {
            if let Some(value) = look(server, view) {
                text.sample(name, &[("server", label)], value);
            }
        }
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
        let number = server.backend.id.number();
        let label = if used.contains(&name) { format!("{name} #{number}") } else { name };
        used.insert(label.clone());
        labels.push(label);
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
    use crate::manager::pool::{History, Pool, Rules};
    use crate::manager::{About, Snapshot};
    use crate::pairing::keyring::Keyring;
    use crate::proxy::connections::Connections;

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
            preferred: Vec::new(),
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
            servers,
            waiting: 2,
            longest_wait: None,
            last_wait: None,
            transitions: Vec::new(),
            history: History::default(),
        };
        let about = About {
            name: "box".to_owned(),
            mode: "client".to_owned(),
            why: String::new(),
            listen: Vec::new(),
            discovery: "off".to_owned(),
            connections: vec![std::sync::Arc::new(Connections::new(9, 5))],
            timing: Settings::default().timing,
            started: now,
        };
        write(&View {
            about: &about,
            snapshot: &snapshot,
            counters: &counters,
            keyring: &Keyring::none(),
            is_ready: true,
            now,
        })
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
            "ollana_backends{state=\"new\"} 3",
            "ollana_backend_up{server=\"b\\\"\\\\\\n?\"} 0",
            "ollana_backend_up{server=\"a #2\"} 0",
            "ollana_backend_limit_requests{server=\"a\"} 3",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} in\n{text}");
        }
    }
}
