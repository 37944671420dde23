//! What a daemon tells of itself: `/ollana/…`, to whom, and under which load.

mod support;

use std::io::BufRead;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{
    Answer, CHAT, Chain, Client, Fake, Gate, Ollama, Process, Way, World, chunk, clear_environment,
    eventually, free_tcp_port, ndjson, request,
};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn state(client: &mut Client) -> Value {
    let answer = client.get("/ollana/status");
    assert_eq!(answer.status(), 200, "{}", answer.text());
    answer.json()
}

fn ask(client: &mut Client, method: &str, target: &str, fields: &str) -> Answer {
    client.ask(format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n"))
}

#[test]
fn both_proxies_tell_of_themselves_and_pass_nothing_on() {
    for way in Way::ALL {
        let fake = Ollama::with(&["alpha"]);
        let chain = way.to(&fake);
        let mut client = chain.connect();
        for (target, status) in [
            ("/ollana", 308),
            ("/ollana/", 200),
            ("/ollana/status", 200),
            ("/ollana/status?brief", 200),
            ("/ollana/metrics", 200),
            ("/ollana/health", 200),
            ("/ollana/ready", 200),
            ("/ollana/nothing", 404),
            ("/ollana/status/", 404),
        ] {
            let get = client.get(target);
            assert_eq!(get.status(), status, "{way:?} {target}");
            assert_eq!(get.head.one("x-content-type-options").as_deref(), Some("nosniff"));
            assert_eq!(get.head.one("cache-control").as_deref(), Some("no-store"));
            assert!(!get.head.has("access-control-allow-origin"), "{target}");
            let head = ask(&mut client, "HEAD", target, "");
            assert_eq!((head.status(), head.body.len()), (status, 0), "{way:?} {target}");
            let post = client.ask(request("POST", target, "{}"));
            assert_eq!(post.status(), 405, "{way:?} {target}");
            assert_eq!(post.head.one("allow").as_deref(), Some("GET, HEAD"));
            client = chain.connect(); // The unread body closed the last one.
        }
        let nothing = client.get("/ollana/nothing").json()["error"].to_string();
        assert!(nothing.contains("no such path"), "{nothing}");
        let state = state(&mut client);
        assert_eq!(state["version"], 1);
        assert_eq!(state["ready"], true);
        assert_eq!(state["servers"][0]["health"], "ready");
        assert_eq!(state["servers"][0]["ollama"], "0.33.0");
        assert_eq!(fake.count(), 0, "nothing may reach the Ollama");
        // A path that only looks like ours is Ollama's.
        assert_eq!(client.get("/ollanas").text(), "404 page not found");
        assert_eq!(fake.wait_served(1)[0].path, "/ollanas");
    }
}

#[test]
fn pages_of_other_sites_and_foreign_names_get_nothing() {
    let fake = Ollama::with(&["alpha"]);
    let chain = Way::OneHop.to(&fake);
    let get = |fields: &str, target: &str| {
        chain.connect().ask(format!("GET {target} HTTP/1.1\r\n{fields}\r\n")).status()
    };
    for target in ["/ollana/status", "/ollana/metrics", "/ollana/"] {
        assert_eq!(get("Host: evil.example\r\n", target), 403, "{target}");
    }
    for site in ["cross-site", "same-site"] {
        let fields = format!("Host: localhost\r\nSec-Fetch-Site: {site}\r\n");
        assert_eq!(get(&fields, "/ollana/status"), 403, "{site}");
        assert_eq!(get(&fields, "/ollana/"), 200, "a link may lead to the page");
    }
    for site in ["same-origin", "none"] {
        let fields = format!("Host: localhost\r\nSec-Fetch-Site: {site}\r\n");
        assert_eq!(get(&fields, "/ollana/status"), 200, "{site}");
    }
    let page = chain.connect().get("/ollana/");
    let policy = page.head.one("content-security-policy").unwrap_or_default();
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
}

/// As the page does it: the server by its id, and its token.
#[test]
fn the_page_unloads_models_where_they_are() {
    let world = || World { loaded: vec!["m".to_owned()], ..World::with(&["m", "other"]) };
    for way in [Way::TwoHops, Way::Paired] {
        let fakes = [Ollama::start(world()), Ollama::start(world())];
        let chain = Chain::start(way, &[&fakes[0], &fakes[1]], |_| {});
        let mut looking = chain.connect();
        let servers = |looking: &mut Client| {
            let state = state(looking);
            let servers = state["servers"].as_array().cloned().unwrap_or_default();
            chain
                .servers
                .iter()
                .map(|daemon| {
                    let address = daemon.addresses()[0].to_string();
                    servers.iter().find(|server| server["addresses"][0] == address).cloned()
                })
                .collect::<Option<Vec<Value>>>()
                .unwrap_or_default()
        };
        let is_loaded = |server: &Value| {
            let models = server["models"].as_array().cloned().unwrap_or_default();
            models.iter().any(|model| model["name"] == "m:latest" && model["loaded"] == true)
        };
        let known = eventually("both to be known to have it in memory", || {
            let servers = servers(&mut looking);
            (servers.len() == 2 && servers.iter().all(is_loaded)).then_some(servers)
        });
        let token = looking.get("/ollana/").page_token();
        let unload = |query: &str| {
            let head = format!("POST /ollana/unload{query} HTTP/1.1\r\nHost: localhost\r\n");
            let fields = format!("Origin: http://localhost\r\nX-Ollana-Token: {token}\r\n");
            chain.connect().ask(format!("{head}{fields}Content-Length: 0\r\n\r\n"))
        };
        let id = &known[1]["id"];
        for (query, status, error) in [
            ("".to_owned(), 400, "one is missing"),
            (format!("?server={id}"), 400, "one is missing"),
            ("?model=m".to_owned(), 400, "one is missing"),
            ("?server=x&model=m".to_owned(), 400, "one is missing"),
            ("?server=99&model=m".to_owned(), 404, "no server has the id 99"),
            (format!("?server={id}&model=other"), 404, "doesn't have \"other:latest\" in memory"),
            (format!("?server={id}&model=nosuch"), 404, "doesn't have \"nosuch:latest\" in memory"),
        ] {
            let answer = unload(&query);
            let text = answer.json()["error"].as_str().unwrap_or_default().to_owned();
            assert!(answer.status() == status && text.contains(error), "{query}: {answer:?}");
        }
        assert!(fakes.iter().all(|fake| fake.served().is_empty()));
        let answer = unload(&format!("?server={id}&model=m%3Alatest"));
        assert_eq!(answer.status(), 200, "{way:?}: {answer:?}");
        assert_eq!(answer.json()["unloaded"], "m:latest");
        assert_eq!(fakes[0].served(), [], "{way:?}: the other one");
        let served = fakes[1].served();
        assert_eq!((served.len(), served[0].path.as_str()), (1, "/api/generate"), "{way:?}");
        let after = eventually("it to be known", || {
            Some(servers(&mut looking)).filter(|it| !is_loaded(&it[1]))
        });
        assert!(is_loaded(&after[0]), "{way:?}: the other one has it still");
        // What the server says against it is told.
        fakes[0].change(|world| world.models.clear());
        let answer = unload(&format!("?server={}&model=m", known[0]["id"]));
        let text = answer.json()["error"].as_str().unwrap_or_default().to_owned();
        assert!(answer.status() == 502 && text.contains("not found"), "{way:?}: {answer:?}");
    }
}

#[test]
fn it_answers_while_no_server_is_there() {
    let process = Process::start(&format!(
        "--mode client --listen 127.0.0.1:0 --discovery-port 0 --server {}",
        free_tcp_port()
    ));
    let mut client = Client::connect(process.address());
    assert_eq!(client.get("/ollana/health").status(), 200);
    assert_eq!(client.get("/ollana/ready").status(), 503);
    eventually("the server to be seen down", || {
        (state(&mut client)["servers"][0]["health"] == "down").then_some(())
    });
    let state = state(&mut client);
    assert_eq!(state["ready"], false);
    assert_eq!(state["servers"][0]["reason"], "connection refused: nothing listens there");
    assert_eq!(state["machine"]["mode"], "client");
    let warnings = state["warnings"].to_string();
    assert!(warnings.contains("no server is ready"), "{warnings}");
    assert_eq!(client.get("/api/tags").status(), 503);
    let state = client.get("/ollana/status").json();
    assert_eq!(state["failures"][0]["path"], "/api/tags");
    assert_eq!(state["failures"][0]["cause"], "unreached");
}

#[test]
fn it_answers_while_every_place_is_taken() {
    let gate = Gate::new();
    let fake = Ollama::start(World { loading: Some(gate.clone()), ..World::with(&["m"]) });
    let chain = Way::OneHop.with(&fake, |settings| settings.limits.max_connections = 3);
    let mut busy: Vec<Client> = (0..3).map(|_| chain.connect()).collect();
    busy.iter_mut().for_each(|client| client.send(request("POST", "/api/chat", CHAT)));
    fake.wait("three requests", |state| (state.records.len() == 3).then_some(()));
    for _ in 0..20 {
        let mut client = chain.connect();
        let answer = client.get("/ollana/status");
        assert_eq!(answer.json()["servers"][0]["in_flight"], 3);
        let taken = answer.json()["limits"]["connections"][0].clone();
        assert_eq!((&taken["now"], &taken["max"]), (&json!(4), &json!(3)), "one more to look");
        client.expect_close();
        drop(client);
        let refused = chain.connect().get("/api/tags");
        assert_eq!(refused.status(), 503, "no place for anything else");
        let is_left = || (chain.front().connections() == 3).then_some(());
        eventually("those who looked to be gone", is_left);
    }
    gate.open();
    for client in &mut busy {
        assert_eq!(client.answer_to("POST").status(), 200);
    }
}

#[test]
fn requests_tokens_and_bytes_are_counted() {
    let fake = Ollama::start(World { tokens: 12, ..World::with(&["m:1b"]) });
    for way in Way::ALL {
        let chain = way.to(&fake);
        let mut client = chain.connect();
        let answer = client.post("/api/generate", "{\"model\":\"m:1b\",\"prompt\":\"a\"}");
        assert_eq!(answer.status(), 200);
        let state = eventually("the request to be counted", || {
            let state = state(&mut client);
            (state["totals"]["requests"] == 1).then_some(state)
        });
        let server = &state["servers"][0];
        assert_eq!(server["tokens"], 12, "{way:?}");
        assert_eq!(state["totals"]["tokens"], 12);
        assert_eq!(server["bytes_up"], 29);
        assert_eq!(server["bytes_down"], answer.body.len());
        assert_eq!(server["in_flight"], 0);
        let metrics = client.get("/ollana/metrics").text();
        for line in [
            "ollana_requests_total{kind=\"generate\",class=\"2xx\"} 1",
            "ollana_tokens_total 12",
            "ollana_body_bytes_total{direction=\"up\"} 29",
            "ollana_time_to_first_byte_seconds_count{kind=\"generate\"} 1",
            "ollana_ready 1",
        ] {
            assert!(metrics.lines().any(|other| other == line), "{line} in\n{metrics}");
        }
    }
}

#[test]
fn pulls_and_uploads_show_how_far_they_are() {
    let gates = [Gate::new(), Gate::new(), Gate::new()];
    let [half, verified, rest] = gates.clone();
    let fake = Fake::unlike_ollama(move |call| {
        if call.target().starts_with("/api/blobs/") {
            let mut got = 0;
            while got < 600_000 {
                got += call.read_part().map_or(600_000, |part| part.len());
            }
            call.wait(&rest, "the test to have seen the upload");
            call.read_body();
            call.send(OK);
            return;
        }
        call.read_body();
        call.send(ndjson());
        call.send_chunk("{\"status\":\"pulling manifest\"}\n");
        call.send_chunk("{\"status\":\"pulling 12ab\",\"total\":4000,\"comp");
        call.send_chunk("leted\":1000}\n");
        call.wait(&half, "the test to have seen the pull");
        call.send_chunk("{\"status\":\"verifying sha256 digest\"}\n");
        call.wait(&verified, "the test to have seen what comes after the layers");
        call.send_chunk("{\"status\":\"success\"}\n");
        call.send("0\r\n\r\n");
    });
    let chain = Way::TwoHops.to(&fake);
    let mut looking = chain.connect();
    let mut under_way = |awaited: &str, wanted: &dyn Fn(&Value) -> bool| {
        eventually(awaited, || {
            let state = state(&mut looking);
            state["transfers"].as_array()?.iter().find(|one| wanted(one)).cloned()
        })
    };
    let mut pulling = chain.connect();
    pulling.send(request("POST", "/api/pull", "{\"model\":\"llama3.2:1b\"}"));
    let pull = under_way("the pull's progress", &|one| one["done"] == 1000);
    assert_eq!(pull["kind"], "pull");
    assert_eq!(pull["name"], "llama3.2:1b");
    assert_eq!(pull["total"], 4000);
    assert_eq!(pull["state"], "pulling 12ab");
    gates[0].open();
    let pull = under_way("the check of what was pulled", &|one| {
        one["state"] == "verifying sha256 digest" && one["done"] == 0
    });
    assert_eq!(pull["total"], Value::Null);
    gates[1].open();
    assert_eq!(pulling.answer_to("POST").status(), 200);
    let mut uploading = chain.connect();
    let size = 1_000_000;
    uploading.send(format!(
        "POST /api/blobs/sha256:00ff HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n"
    ));
    uploading.send(vec![b'x'; 700_000]);
    let upload = under_way("the upload's progress", &|one| {
        one["done"].as_u64().is_some_and(|done| done >= 600_000)
    });
    assert_eq!(upload["kind"], "upload");
    assert_eq!(upload["name"], "sha256:00ff");
    assert_eq!(upload["total"], size);
    gates[2].open();
    uploading.send(vec![b'x'; 300_000]);
    assert_eq!(uploading.answer_to("POST").status(), 200);
    eventually("all of it to be over", || {
        let state = state(&mut looking);
        state["transfers"].as_array().is_some_and(Vec::is_empty).then_some(())
    });
    let totals = &state(&mut looking)["totals"];
    assert!(totals["bytes_up"].as_u64().is_some_and(|bytes| bytes >= size), "{totals}");
}

/// Its lines tell from whom a pull gets its bytes; the machine whose Ollama pulls counts them.
#[test]
fn the_bytes_of_pulls_are_counted_by_source() {
    for way in [Way::OneHop, Way::TwoHops] {
        let gate = Gate::new();
        let go_on = gate.clone();
        let fake = Fake::unlike_ollama(move |call| {
            call.read_body();
            call.send(ndjson());
            let digest = format!("sha256:{}", "0f".repeat(32));
            for (done, from) in
                [(1000, json!(null)), (1500, json!(null)), (4000, json!("desk\u{1b}"))]
            {
                let line = json!({
                    "status": "pulling 0f0f", "digest": digest, "total": 9000, "completed": done,
                    "from": from,
                });
                call.send_chunk(format!("{line}\n"));
            }
            call.wait(&go_on, "the test to have seen the pull");
            call.send_chunk("{\"status\":\"success\"}\n");
            call.send("0\r\n\r\n");
        });
        let chain = way.to(&fake);
        let (mut looking, mut pulling) = (chain.connect(), chain.connect());
        pulling.send(request("POST", "/api/pull", "{\"model\":\"llama3.2:1b\"}"));
        let seen = eventually("the pull's progress", || {
            let state = state(&mut looking);
            (state["transfers"][0]["done"] == 4000).then_some(state)
        });
        let pull = &seen["transfers"][0];
        assert_eq!((&pull["from"], &pull["names_layers"]), (&json!("desk?"), &json!(true)));
        assert_eq!(pull["is_here"], way == Way::OneHop);
        assert_eq!(pull["name"], "llama3.2:1b");
        let (registry, servers) = match way {
            Way::OneHop => (500, json!([{ "name": "desk?", "bytes": 2500 }])),
            _ => (0, json!([])),
        };
        let want = json!({ "registry": registry, "servers": servers, "saved": 0, "given": 0 });
        for (member, want) in want.as_object().expect("an object") {
            assert_eq!(seen["shared"][member], *want, "{way:?} {member}");
        }
        let line = "ollana_pulled_bytes_total{source=\"server\",server=\"desk?\"} 2500";
        let metrics = looking.get("/ollana/metrics").text();
        assert_eq!(metrics.lines().any(|it| it == line), way == Way::OneHop, "{metrics}");
        gate.open();
        assert_eq!(pulling.answer_to("POST").status(), 200);
    }
}

/// Servers tell with their version what they did not have to download; what no machine can have
/// saved isn't believed.
#[test]
fn what_the_servers_saved_is_told_in_one_sum() {
    let server = |saved: &'static str| {
        let version = move |head: &support::Head| {
            let body =
                if head.target() == "/api/version" { "{\"version\":\"0.33.0\"}" } else { "{}" };
            let length = body.len();
            let head = format!("Content-Length: {length}\r\nX-Ollana-Saved: {saved}\r\n\r\n{body}");
            Some(format!("HTTP/1.1 200 OK\r\n{head}").into_bytes())
        };
        Fake::start_checked(version, |call| {
            call.send(OK);
        })
    };
    let fakes = ["40000000000", "2", "9000000000000000", "-1", "18446744073709551615"].map(server);
    let chain = Chain::direct(&fakes.each_ref().map(|fake| fake as _), |_| {});
    let mut client = chain.connect();
    let sum = eventually("every server to be up", || {
        let state = state(&mut client);
        let servers = state["servers"].as_array()?;
        servers.iter().all(|server| server["health"] == "ready").then(|| state["shared"].clone())
    });
    assert_eq!((&sum["saved_in_house"], &sum["saved"]), (&json!(40_000_000_002_u64), &json!(0)));
}

#[test]
fn a_broken_answer_is_remembered_without_the_prompt() {
    let fake = Fake::unlike_ollama(|call| {
        call.read_body();
        call.send(ndjson());
        call.send(chunk("{\"response\":\"x\"}\n"));
        call.reset();
    });
    let chain = Way::OneHop.to(&fake);
    let mut client = chain.connect();
    let _ = client.post("/api/generate?secret=1", "{\"prompt\":\"very secret\"}");
    let mut looking = chain.connect();
    let state = eventually("the failure to be noted", || {
        let state = state(&mut looking);
        (state["totals"]["failures"]["broken"] == 1).then_some(state)
    });
    assert_eq!(state["failures"][0]["path"], "/api/generate");
    assert_eq!(state["servers"][0]["failures"], 1);
    assert!(!state.to_string().contains("secret"), "{state}");
}

#[test]
fn the_queue_is_seen_while_it_lasts() {
    let gate = Gate::new();
    let fake = Ollama::start(World { loading: Some(gate.clone()), ..World::with(&["m"]) });
    let chain = Way::OneHop.with(&fake, |settings| settings.limits.max_in_flight = 1);
    let mut clients: Vec<Client> = (0..3).map(|_| chain.connect()).collect();
    clients.iter_mut().for_each(|client| client.send(request("POST", "/api/chat", CHAT)));
    let mut looking = chain.connect();
    let queued = eventually("two to wait", || {
        let state = state(&mut looking);
        (state["queue"]["length"] == 2).then_some(state)
    });
    assert!(queued["queue"]["longest_wait_s"].is_number());
    assert_eq!(queued["servers"][0]["limit"], 1);
    gate.open();
    for client in &mut clients {
        assert_eq!(client.answer_to("POST").status(), 200);
    }
    let state = eventually("the queue to be empty", || {
        let state = state(&mut looking);
        (state["queue"]["length"] == 0).then_some(state)
    });
    assert_eq!(state["queue"]["waits"], 2);
}

#[test]
fn a_point_is_added_every_two_seconds() {
    let fake = Ollama::with(&["alpha"]);
    let chain = Way::OneHop.to(&fake);
    let mut client = chain.connect();
    assert_eq!(client.get("/api/status").status(), 200);
    let points = |state: &Value| state["history"]["requests"].as_array().map_or(0, Vec::len);
    let state = eventually("a second point", || {
        std::thread::sleep(Duration::from_millis(50));
        let state = state(&mut client);
        (points(&state) >= 2).then_some(state)
    });
    let requests: u64 = state["history"]["requests"]
        .as_array()
        .map(|all| all.iter().filter_map(Value::as_u64).sum())
        .unwrap_or_default();
    assert_eq!(requests, 1, "{}", state["history"]);
    let server = state["servers"][0]["history"]["in_flight"].as_array().map_or(0, Vec::len);
    assert_eq!(server, points(&state));
}

/// What `ollana help metrics` says.
const HELP: &str = include_str!("../src/cli/help/metrics.txt");

/// The labels of a metric's lines; a histogram's own `le` is Prometheus' business.
fn labels_of(text: &str, family: &str) -> Option<String> {
    let ends = ["{", "_count{", " "].map(|end| format!("{family}{end}"));
    let line = text.lines().find(|line| ends.iter().any(|end| line.starts_with(end)))?;
    let labels = line.split_once('{').map_or("", |(_, rest)| rest);
    let names = labels.split("\",").filter_map(|label| label.split_once("=\""));
    Some(names.map(|(name, _)| name).collect::<Vec<_>>().join(","))
}

/// Prometheus' own judge, and the table of `ollana help metrics`: every metric is there, with its
/// type and its labels.
#[test]
fn metrics_are_as_prometheus_wants_them_and_the_help_says() {
    let fake = Ollama::with(&["alpha"]);
    let mut texts = Vec::new();
    for way in Way::ALL {
        let chain = way.to(&fake);
        let mut client = chain.connect();
        client.post("/api/generate", "{\"model\":\"m\"}");
        texts.push(client.get("/ollana/metrics").text());
    }
    let rows = HELP.lines().map(str::trim).filter(|line| line.starts_with("ollana_"));
    let rows: Vec<Vec<&str>> = rows.map(|row| row.split_whitespace().collect()).collect();
    let mut told: Vec<String> = rows.iter().map(|row| row[..2].join(" ")).collect();
    let is_type = |line: &str| line.strip_prefix("# TYPE ").map(str::to_owned);
    let mut written: Vec<String> = texts[0].lines().filter_map(is_type).collect();
    told.sort();
    written.sort();
    assert_eq!(told, written, "the help's table and /ollana/metrics");
    for row in &rows {
        let braced = row[2].strip_prefix('{').and_then(|labels| labels.strip_suffix('}'));
        let usual = if row[0].starts_with("ollana_server_") { "server" } else { "" };
        let labels = texts.iter().find_map(|text| labels_of(text, row[0]));
        // What isn't known of the servers here has no line.
        if let Some(labels) = labels {
            assert_eq!(labels, braced.unwrap_or(usual), "labels of {}", row[0]);
        }
    }
    for text in texts {
        let mut command = std::process::Command::new("promtool");
        command.args(["check", "metrics"]).stdin(std::process::Stdio::piped());
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let Ok(mut promtool) = command.spawn() else {
            return println!("skipped: promtool is not installed (Debian: prometheus)");
        };
        let stdin = promtool.stdin.take().expect("a pipe");
        std::io::Write::write_all(&mut { stdin }, text.as_bytes()).expect("promtool reads");
        let output = promtool.wait_with_output().expect("promtool ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{said}");
    }
}

/// The help lists the values of labels.
#[test]
fn the_help_lists_the_values_of_labels() {
    let fake = Ollama::with(&["alpha"]);
    let chain = Way::TwoHops.to(&fake);
    let text = chain.connect().get("/ollana/metrics").text();
    for label in ["kind", "class", "cause", "reason", "direction", "source"] {
        let (start, row) = (format!("{label}=\""), format!("\n  {label}  "));
        let (_, row) = HELP.split_once(&row).expect("a row of the help");
        // It ends where the next row, or a blank line, begins.
        let mut lines = row.split('\n');
        let first = lines.next().unwrap_or_default();
        let more = lines.take_while(|line| line.starts_with("    "));
        let told: Vec<&str> = std::iter::once(first).chain(more).collect();
        let told = told.join(" ");
        let told: Vec<&str> = told.split([' ', ',', ';', ':']).collect();
        let values = text.split(&start).skip(1).filter_map(|rest| rest.split('"').next());
        let missing: Vec<&str> = values.filter(|value| !told.contains(value)).collect();
        assert!(text.contains(&start) && missing.is_empty(), "{label}: {missing:?}");
    }
}

/// A client of this server, which it has found.
fn ready_client(server: &Ollama) -> Process {
    let process = Process::start(&format!(
        "--mode client --listen 127.0.0.1:0 --discovery-port 0 --server {}",
        server.address
    ));
    process.connect_ready();
    process
}

/// What a command prints, and its exit code.
fn run(arguments: &str) -> (String, String, i32) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ollana"));
    clear_environment(command.args(arguments.split_whitespace()));
    let output = command.output().expect("run");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr), output.status.code().unwrap_or(-1))
}

#[test]
fn commands_find_the_daemon_and_say_when_there_is_none() {
    let fake = Ollama::with(&[]);
    let process = ready_client(&fake);
    let listen = format!("--listen {}", process.address());
    let (text, _, code) = run(&format!("status {listen}"));
    assert_eq!(code, 0, "{text}");
    assert!(text.contains(&fake.address.to_string()) && text.contains("0.33.0"), "{text}");
    assert!(!text.contains('\u{1b}'), "no colours without a terminal");
    let (text, _, code) = run(&format!("status --json {listen}"));
    let json: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((code, &json["version"]), (0, &Value::from(1)));
    let (text, _, code) = run(&format!("models {listen}"));
    assert_eq!(code, 0);
    assert!(text.contains("no server that is up has a model"), "{text}");
    let (text, _, code) = run(&format!("models --json {listen}"));
    let json: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((code, &json["models"]), (0, &json!([])));
    // Neither nothing nor an Ollama is taken for a daemon.
    for nobody in [free_tcp_port(), fake.address] {
        for command in ["status", "status --json", "status --watch", "models"] {
            let (text, error, code) = run(&format!("{command} --listen {nobody}"));
            assert_eq!((code, text.as_str()), (1, ""), "{command}");
            assert!(error.contains("no ollana runs on this machine"), "{error}");
        }
    }
    drop(fake);
    eventually("the models of no server", || {
        let (text, _, code) = run(&format!("models {listen}"));
        (code == 0 && text.starts_with("no server is up")).then_some(())
    });
}

/// `ollana status --watch` of this daemon, into a pipe.
fn watch(process: &Process) -> std::process::Child {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ollana"));
    let command = clear_environment(&mut command).args(["status", "--watch", "--listen"]);
    let command = command.arg(process.address().to_string()).stdout(std::process::Stdio::piped());
    command.spawn().expect("ollana runs")
}

#[test]
fn watching_shows_the_state_every_second() {
    let fake = Ollama::with(&[]);
    let process = ready_client(&fake);
    let mut watching = watch(&process);
    let lines = std::io::BufReader::new(watching.stdout.take().expect("its output")).lines();
    let heads = lines.map_while(Result::ok).filter(|line| line.starts_with("SERVER "));
    let seen: Vec<Instant> = heads.map(|_| Instant::now()).take(5).collect();
    let _ = watching.kill().and_then(|()| watching.wait());
    let took = seen[4] - seen[0];
    let pauses: Vec<Duration> = seen.windows(2).map(|two| two[1] - two[0]).collect();
    // A busy machine doesn't make all of them longer.
    assert!(took > Duration::from_secs(3), "{pauses:?}");
    assert!(pauses.iter().min() < Some(&Duration::from_millis(1800)), "{pauses:?}");
}

#[test]
fn watching_ends_when_its_reader_has_seen_enough() {
    let fake = Ollama::with(&[]);
    let process = ready_client(&fake);
    let mut watching = watch(&process);
    let mut line = String::new();
    let mut output = std::io::BufReader::new(watching.stdout.take().expect("its output"));
    assert!(output.read_line(&mut line).is_ok_and(|n| n > 0), "a first line");
    drop(output);
    let deadline = Instant::now() + Duration::from_secs(10);
    while watching.try_wait().expect("its status").is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = watching.kill();
    assert_eq!(watching.wait().expect("its status").code(), Some(0));
}

/// No file of a home, before there is a daemon and after.
#[test]
fn the_doctor_changes_nothing() {
    fn files(folder: &std::path::Path) -> Vec<(std::path::PathBuf, u64, std::time::SystemTime)> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().map_while(Result::ok);
        let of = |entry: std::fs::DirEntry| {
            let (path, meta) = (entry.path(), entry.metadata().expect("a file"));
            let below = if meta.is_dir() { files(&path) } else { Vec::new() };
            let own = (path, meta.len(), meta.modified().expect("a time"));
            std::iter::once(own).chain(below).collect::<Vec<_>>()
        };
        let mut all: Vec<_> = entries.flat_map(of).collect();
        all.sort();
        all
    }
    let home = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("doctor-{}", std::process::id()));
    std::fs::create_dir_all(&home).expect("a folder");
    let fake = Ollama::with(&[]);
    let options = format!(
        "--listen 127.0.0.1:0 --discovery-port 0 --ollama {} --server {} --state-dir {}",
        free_tcp_port(),
        fake.address,
        home.join("state").display()
    );
    let examine = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ollana"));
        let command = clear_environment(&mut command).env("HOME", &home).arg("doctor");
        let output = command.args(options.split(' ')).output().expect("ollana runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // One heading for each of what it says that it examines.
        for area in ["this machine", "Ollama here", "ports", "interfaces", "firewall", "servers"] {
            assert!(text.lines().any(|line| line == area), "{area}: {text}");
        }
    };
    examine();
    assert_eq!(files(&home), [], "on a machine that ollana never ran on");
    let process = Process::start(&format!("--mode client {options}"));
    process.connect_ready();
    // While it runs, it writes itself.
    drop(process);
    let before = files(&home);
    assert!(!before.is_empty(), "a daemon leaves a state");
    examine();
    assert_eq!(files(&home), before);
    std::fs::remove_dir_all(home).expect("it can go");
}

#[test]
fn discover_finds_servers_by_itself() {
    let fake = Ollama::with(&["alpha"]);
    let port = support::free_udp_port();
    let server = Process::start(&format!(
        "--mode server --listen 127.0.0.1:0 --discovery-port {port} --ollama {}",
        fake.address
    ));
    server.connect_ready();
    // No interface of this name: it looks through loopback alone.
    let scan = format!("discover --discovery-port {port} --interface none");
    let begun = Instant::now();
    let (text, error, code) = run(&scan);
    assert!(begun.elapsed() < Duration::from_millis(4500), "{:?}", begun.elapsed());
    assert_eq!(code, 0, "{text}{error}");
    assert!(text.contains(&server.address().to_string()) && text.contains("loopback"), "{text}");
    let (text, _, _) = run(&format!("{scan} --json"));
    let json: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(json["servers"][0]["address"], server.address().to_string());
    assert_eq!(json["servers"][0]["ollama_up"], true);
    drop(server);
    let (_, error, code) = run(&scan);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("nobody answered"), "{error}");
}
