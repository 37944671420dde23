//! Cloud models and accounts.

use std::net::SocketAddr;
use std::time::Duration;

use ollana::config::Settings;
use ollana::serve::Daemon;
use serde_json::{Value, json};

use crate::support::{
    Account, Answer, Chain, Client, Model, Ollama, Way, World, client_settings, eventually,
    lan_address, post, request, server_settings, start, wire,
};

const STUB: &str = "gpt-oss:120b-cloud";
/// The stub's other names.
const SPELLINGS: [&str; 3] = [STUB, "gpt-oss:120b:cloud", "GPT-OSS:120B-Cloud"];

/// A machine with `alpha`, and with the stub or without it.
fn machine(has_stub: bool, account: Account) -> Ollama {
    let mut world = World { account, ..World::with(&["alpha"]) };
    world.models.extend(has_stub.then(|| Model::cloud(STUB)));
    Ollama::start(world)
}

/// A client in front of these machines once it knows them all, asking the Ollamas themselves and by
/// way of their server proxies. Its checks come rarely from then on.
fn each_way(ollamas: &[&Ollama], test: impl Fn(&Chain)) {
    let tweak = |settings: &mut Settings| {
        settings.timing.health_interval = Duration::from_secs(60);
    };
    for is_direct in [true, false] {
        let chain = match is_direct {
            true => Chain::direct(ollamas, tweak),
            false => Chain::start(Way::TwoHops, ollamas, tweak),
        };
        eventually("all servers and their models to be known", || {
            let state = chain.connect().get("/ollana/status").json();
            let is_known =
                |server: &Value| server["health"] == "ready" && server["model_count"] != 0;
            state["servers"].as_array()?.iter().all(is_known).then_some(())
        });
        test(&chain);
    }
}

/// What may be asked of a cloud model.
fn uses(model: &str) -> Vec<Vec<u8>> {
    let all = json!({
        "model": model, "max_tokens": 5, "stream": false, "input": "hi", "prompt": "hi",
        "messages": [{"role": "user", "content": "hi"}],
    });
    let mut uses: Vec<Vec<u8>> = [
        "/api/chat",
        "/api/generate",
        "/api/embed",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
    ]
    .iter()
    .map(|path| post(path, all.to_string()))
    .collect();
    uses.push(post("/api/show", json!({ "model": model }).to_string()));
    uses.push(request("GET", &format!("/v1/models/{model}"), ""));
    uses
}

fn first_line(request: &[u8]) -> String {
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    String::from_utf8_lossy(line).into_owned()
}

/// How many requests of an Ollama have been for this path.
fn served(ollama: &Ollama, path: &str) -> usize {
    ollama.served().iter().filter(|served| served.path == path).count()
}

#[test]
fn servers_that_list_the_stub_come_first() {
    for order in [[false, true], [true, false]] {
        let ollamas = order.map(|has_stub| machine(has_stub, Account::SignedIn));
        each_way(&[&ollamas[0], &ollamas[1]], |chain| {
            for model in SPELLINGS {
                for use_ in uses(model) {
                    let answer = chain.connect().ask(&use_);
                    assert_eq!(answer.status(), 200, "{model} {}", first_line(&use_));
                }
            }
        });
        let [with, without] = if order[0] { [0, 1] } else { [1, 0] };
        assert_eq!(ollamas[without].served().len(), 0, "{:?}", ollamas[without].served());
        assert_eq!(ollamas[with].served().len(), 2 * 3 * 10);
    }
}

#[test]
fn a_cloud_model_that_nobody_lists_runs_anywhere() {
    let ollamas = [false, false].map(|has_stub| machine(has_stub, Account::SignedIn));
    each_way(&[&ollamas[0], &ollamas[1]], |chain| {
        for use_ in uses("other:cloud") {
            assert_eq!(chain.connect().ask(&use_).status(), 200, "{}", first_line(&use_));
        }
    });
}

#[test]
fn what_changes_a_stub_goes_to_its_owner() {
    for order in [[false, true], [true, false]] {
        for model in SPELLINGS {
            let ollamas = order.map(|has_stub| machine(has_stub, Account::SignedIn));
            let owner = &ollamas[usize::from(order[1])];
            each_way(&[&ollamas[0], &ollamas[1]], |chain| {
                let named = json!({ "model": model }).to_string();
                let copied = json!({"source": STUB, "destination": "mine"}).to_string();
                for (method, path, body) in [
                    ("POST", "/api/push", &named),
                    ("POST", "/api/copy", &copied),
                    ("DELETE", "/api/delete", &named),
                ] {
                    let answer = chain.connect().ask(request(method, path, body));
                    // That nobody may push under another spelling, Ollama says itself.
                    let is_spelled = path == "/api/push" && model.ends_with(":cloud");
                    let is_done = answer.status() == 200 || is_spelled;
                    assert!(is_done, "{model} {path}: {}", answer.text());
                }
                owner.change(|world| world.models = vec![Model::cloud(STUB)]);
            });
            let other = &ollamas[usize::from(order[0])];
            assert_eq!(other.served(), [], "they went to the other one");
            assert_eq!(owner.served().len(), 6);
        }
    }
}

#[test]
fn a_server_whose_account_does_not_do_is_passed_over() {
    // Two that don't do, and the last one of the four does.
    let [a, b, c] = [true, false, false].map(|has_stub| machine(has_stub, Account::SignedOut));
    let d = machine(false, Account::SignedIn);
    c.change(|world| {
        world.account = Account::SignedIn;
        world.cloud_disabled = true;
    });
    each_way(&[&a, &b, &c, &d], |chain| {
        for use_ in uses(STUB) {
            let answer = chain.connect().ask(&use_);
            assert_eq!(answer.status(), 200, "{}: {}", first_line(&use_), answer.text());
        }
    });
    // It is remembered for a while.
    for (ollama, refusal) in [(&a, 401), (&b, 401), (&c, 403)] {
        let refused = ollama.served().iter().filter(|served| served.status == refusal).count();
        assert!(refused <= 2, "{:?}", ollama.served());
    }
    assert_eq!(a.served()[0].status, 401);
    assert!(d.served().len() >= 2 * 8, "{:?}", d.served());
}

#[test]
fn who_may_be_signed_in_again_is_asked_when_nobody_else_does() {
    let ollamas = [true, false].map(|has_stub| machine(has_stub, Account::SignedOut));
    each_way(&[&ollamas[0], &ollamas[1]], |chain| {
        let chat = json!({"model": STUB, "messages": [{"role": "user"}]}).to_string();
        let ask = || chain.connect().post("/api/chat", &chat);
        ollamas.iter().for_each(|ollama| ollama.change(|w| w.account = Account::SignedOut));
        let answer = ask();
        assert_eq!(answer.status(), 401);
        assert!(answer.text().contains("signin_url"), "this machine's user may sign it in");
        for ollama in &ollamas {
            ollama.change(|world| world.account = Account::SignedIn);
            assert_eq!(ask().status(), 200);
            ollama.change(|world| world.account = Account::SignedOut);
        }
    });
}

#[test]
fn a_stub_of_another_name_is_a_cloud_model_too() {
    let mine = || Model { name: "mine:latest".to_owned(), ..Model::cloud(STUB) };
    let ollamas = [Account::SignedOut, Account::SignedIn]
        .map(|account| Ollama::start(World { models: vec![mine()], account, ..World::default() }));
    each_way(&[&ollamas[0], &ollamas[1]], |chain| {
        let chat = json!({"model": "mine", "messages": [{"role": "user"}]}).to_string();
        for _ in 0..4 {
            assert_eq!(chain.connect().post("/api/chat", &chat).status(), 200);
        }
    });
}

/// A server proxy, and what another machine of the LAN is answered: by it, or by a client proxy of
/// its own in front of it.
struct Server {
    daemon: Daemon,
    client: Option<Daemon>,
}

const HOPS: [Way; 2] = [Way::OneHop, Way::TwoHops];

impl Server {
    fn start(way: Way, ollama: &Ollama, tweak: impl Fn(&mut Settings)) -> Self {
        let mut settings = server_settings(ollama.address);
        tweak(&mut settings);
        let daemon = start(&settings);
        let client = (way == Way::TwoHops)
            .then(|| start(&client_settings(&[wire(daemon.addresses()[0]).expect("a wire")])));
        Server { daemon, client }
    }

    fn address(&self) -> SocketAddr {
        self.daemon.addresses()[0]
    }

    fn lan(&self, request: impl AsRef<[u8]>) -> Option<Answer> {
        let from = lan_address()?;
        let mut client = match &self.client {
            Some(client) => Client::connect(client.addresses()[0]),
            None => Client::connect_from(from, self.address()).expect("a connection"),
        };
        Some(client.ask(request))
    }
}

#[test]
fn other_machines_hear_of_the_account_what_a_cloud_model_needs() {
    HOPS.into_iter().for_each(hears_of_the_account);
}

fn hears_of_the_account(way: Way) {
    let ollama = machine(true, Account::SignedIn);
    let server = Server::start(way, &ollama, |_| {});
    let me = || {
        server
            .lan(request("POST", "/api/me", ""))
            .map(|answer| (answer.status(), answer.json(), answer.head.has("content-length")))
    };
    let Some((status, told, _)) = me() else { return };
    assert_eq!((status, &told["plan"]), (200, &json!("pro")));
    // Without a name, Ollama's programs take the account for signed out. This one is the machine's.
    let members: Vec<&String> = told.as_object().expect("an object").keys().collect();
    assert_eq!(members, ["name", "plan"]);
    assert!(!told.to_string().to_lowercase().contains("somebody"), "{told}");
    ollama.change(|world| world.account = Account::SignedOut);
    assert_eq!(
        me().map(|(status, told, _)| (status, told)),
        Some((401, json!({"error": "unauthorized"})))
    );
    let chat = json!({"model": STUB, "messages": [{"role": "user"}]}).to_string();
    for path in ["/api/chat", "/v1/chat/completions", "/v1/messages"] {
        let answer = server.lan(post(path, &chat)).expect("an answer");
        assert_eq!(answer.status(), 401, "{path}");
        assert!(!answer.text().contains("http"), "{path}: who signs in is up to the owner");
    }
    ollama.change(|world| world.account = Account::Offline);
    assert_eq!(
        me().map(|(status, told, _)| (status, told)),
        Some((503, json!({"error": "account unavailable"})))
    );
    // This machine's own programs get all of it.
    ollama.change(|world| world.account = Account::SignedIn);
    let own = Client::connect(server.address()).post("/api/me", "");
    assert_eq!(own.json()["email"], "somebody@example.org");
    for (method, path) in [("POST", "/api/signout"), ("GET", "/api/me"), ("GET", "/api/usage")] {
        let refused = server.lan(request(method, path, "")).expect("an answer");
        assert!(matches!(refused.status(), 403..=405), "{method} {path}: {}", refused.text());
    }
    assert_eq!(served(&ollama, "/api/signout") + served(&ollama, "/api/usage"), 0);
}

#[test]
fn who_am_i_is_asked_of_a_server_that_is_signed_in() {
    for order in [[0, 1], [1, 0]] {
        let accounts = [Account::SignedOut, Account::SignedIn];
        let ollamas = order.map(|n: usize| machine(n == 0, accounts[n]));
        each_way(&[&ollamas[0], &ollamas[1]], |chain| {
            let answer = chain.connect().post("/api/me", "");
            assert_eq!((answer.status(), &answer.json()["plan"]), (200, &json!("pro")));
        });
    }
    let ollamas = [Account::Offline, Account::SignedIn].map(|account| machine(true, account));
    each_way(&[&ollamas[0], &ollamas[1]], |chain| {
        assert_eq!(chain.connect().post("/api/me", "").status(), 200);
    });
}

/// What `ollama run x:cloud` asks before its first prompt.
#[test]
fn the_official_program_starts_with_a_cloud_model() {
    HOPS.into_iter().for_each(starts_with_a_cloud_model);
}

fn starts_with_a_cloud_model(way: Way) {
    let ollama = machine(false, Account::SignedIn);
    let server = Server::start(way, &ollama, |_| {});
    let show = json!({"model": "qwen3:cloud"}).to_string();
    for (method, path, body) in [
        ("HEAD", "/", ""),
        ("POST", "/api/show", show.as_str()),
        ("GET", "/api/tags", ""),
        ("POST", "/api/me", ""),
    ] {
        let Some(answer) = server.lan(request(method, path, body)) else { return };
        assert_eq!(answer.status(), 200, "{method} {path}: {}", answer.text());
    }
}

#[test]
fn pulls_that_say_where_the_model_runs_are_of_ollamas_registry() {
    HOPS.into_iter().for_each(pulls_from_ollamas_registry);
}

fn pulls_from_ollamas_registry(way: Way) {
    let ollama = machine(false, Account::SignedIn);
    let server = Server::start(way, &ollama, |settings| settings.policy.pull = true);
    for (model, status) in [
        ("gpt-oss:120b:cloud", 200),
        ("gpt-oss:cloud", 200),
        ("me/x:7b:Local", 200),
        ("x:local", 200),
        ("a:b:c", 403),
        ("hf.co/a/b:7b:local", 403),
        ("a:b:c:local", 403),
    ] {
        let body = json!({"model": model, "stream": false}).to_string();
        let Some(answer) = server.lan(post("/api/pull", body)) else { return };
        assert_eq!(answer.status(), status, "{model}: {}", answer.text());
    }
    let tags = Client::connect(ollama.address).get("/api/tags").text();
    assert!(tags.contains("\"gpt-oss:120b-cloud\"") && tags.contains("\"me/x:7b\""), "{tags}");
}

#[test]
fn tokens_are_counted_for_everybody_and_again_elsewhere() {
    let coming = || Ollama::start(World { is_coming: true, ..World::with(&["alpha"]) });
    const COUNTS: [&str; 3] = [
        "/v1/chat/completions/input_tokens",
        "/v1/responses/input_tokens",
        "/v1/messages/count_tokens",
    ];
    let ollama = coming();
    let body = json!({"model": "alpha", "messages": []}).to_string();
    for way in HOPS {
        let server = Server::start(way, &ollama, |_| {});
        for path in COUNTS {
            let Some(answer) = server.lan(post(path, &body)) else { return };
            assert_eq!(answer.text(), "{\"input_tokens\":11}", "{way:?} {path}");
        }
    }
    // The first one dies of it; the second one has the model too.
    let dying = coming();
    dying.change(|world| {
        for path in COUNTS {
            world.script.insert(
                path.to_owned(),
                std::sync::Arc::new(|call| {
                    call.read_body();
                    call.close();
                }),
            );
        }
    });
    each_way(&[&dying, &ollama], |chain| {
        for path in COUNTS {
            let answer = chain.connect().post(path, &body);
            assert_eq!(answer.text(), "{\"input_tokens\":11}", "{path}");
        }
    });
}

/// Requests for a local model that have the web searched, if the model wants to.
fn searches(model: &str) -> [Vec<u8>; 2] {
    let body = |kind: &str| {
        json!({
            "model": model, "max_tokens": 5, "input": "hi",
            "messages": [{"role": "user", "content": "hi"}],
            "tools": [{"type": "function", "name": "x"}, {"type": kind, "name": "web_search"}],
        })
    };
    [
        post("/v1/messages", body("web_search_20250305").to_string()),
        post("/v1/responses", body("web_search").to_string()),
    ]
}

#[test]
fn an_owner_can_keep_the_account() {
    HOPS.into_iter().for_each(keeps_the_account);
}

fn keeps_the_account(way: Way) {
    let ollama = machine(true, Account::SignedIn);
    let mine = Model { name: "mine:latest".to_owned(), ..Model::cloud(STUB) };
    ollama.change(|world| world.models.push(mine));
    let server = Server::start(way, &ollama, |settings| settings.policy.cloud = false);
    if lan_address().is_none() {
        return;
    }
    let mut all: Vec<Vec<u8>> = Vec::new();
    for model in SPELLINGS.into_iter().chain(["other:cloud", "mine"]) {
        // What Ollama tells of a stub by its name, it knows itself.
        let tells = |use_: &Vec<u8>| model == "mine" && !first_line(use_).contains("/v1/models");
        all.extend(uses(model).into_iter().filter(|use_| model != "mine" || tells(use_)));
    }
    all.extend(searches("alpha"));
    all.push(post("/api/me", ""));
    for body in [
        // Ollama looks for a cloud's model before it decodes the body, then takes the last name.
        r#"{"model":"x:cloud","Model":"alpha","messages":[{}]}"#,
        r#"{"Model":"alpha","mod\u0065l":"x:cloud","messages":[{}]}"#,
        &format!(r#"{{"messages":[{{"content":"{}"}}],"model":"x:cloud"}}"#, "x".repeat(200_000)),
    ] {
        all.push(post("/v1/chat/completions", body));
    }
    let packed = ruzstd::encoding::compress_to_vec(
        br#"{"messages":[{}],"model":"x:cloud"}"#.as_slice(),
        ruzstd::encoding::CompressionLevel::Fastest,
    );
    for (path, body) in [
        ("/v1/responses", &packed[..]),
        // There, Ollama decodes nothing.
        ("/api/chat", br#"{"messages":[{}],"model":"x:cloud"}"#),
    ] {
        let request = post(path, body);
        let split = request.windows(2).position(|two| two == b"\r\n").expect("a line") + 2;
        let field = b"Content-Encoding: zstd\r\n".as_slice();
        all.push([&request[..split], field, &request[split..]].concat());
    }
    for request in &all {
        let answer = server.lan(request).expect("an answer");
        let line = first_line(request);
        assert_eq!(answer.status(), 403, "{line}: {}", answer.text());
        assert!(answer.text().contains("--cloud on"), "{line}: {}", answer.text());
        assert_eq!(answer.head.one("x-ollana-error").as_deref(), Some("policy"), "{line}");
    }
    assert_eq!(ollama.served(), []);
    // What runs on this machine is for everybody; tools of the client's own are its own affair.
    let tools = json!([{"type": "function", "function": {"name": "web_search"}}]);
    let chat = json!({"model": "alpha", "messages": [{"role": "user"}], "tools": tools});
    let mut local = uses("alpha");
    local.push(post("/v1/chat/completions", chat.to_string()));
    for request in &local {
        let answer = server.lan(request).expect("an answer");
        assert_eq!(answer.status(), 200, "{}: {}", first_line(request), answer.text());
    }
    // And this machine's own programs keep everything.
    for request in all.iter().filter(|request| !first_line(request).contains("/api/chat")) {
        let answer = Client::connect(server.address()).ask(request);
        assert_eq!(answer.status(), 200, "{}: {}", first_line(request), answer.text());
    }
}

#[test]
fn other_machines_search_the_web_unless_the_owner_keeps_the_account() {
    HOPS.into_iter().for_each(searches_the_web);
}

fn searches_the_web(way: Way) {
    let ollama = machine(false, Account::SignedIn);
    let server = Server::start(way, &ollama, |_| {});
    for request in searches("alpha") {
        let Some(answer) = server.lan(request) else { return };
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    assert!(ollama.served().iter().all(|served| served.used_account));
}
