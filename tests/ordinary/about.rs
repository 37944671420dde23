//! What a request is about, wherever it says so: two servers, `alpha` only on one of them, `beta`
//! only on the other one, in both orders, with one hop and with two.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use ollana::config::{ModeChoice, Settings};
use ollana::ollama::model_name::ModelName;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use crate::support::{
    Answer, Call, Chain, Client, Model, Ollama, PATIENCE, Script, Way, World, chunk,
    client_settings, eventually, post, request, server_settings, start,
};

/// What a client is told besides; the servers of `alpha` and of `beta` by name.
type Rule = fn(&mut Settings, alpha: String, beta: String);

struct House {
    alpha: Ollama,
    beta: Ollama,
    chain: Chain,
    name: String,
}

/// With one hop and with two, in clear and encrypted, in both orders of the servers.
fn houses(worlds: [World; 2], rule: Rule) -> impl Iterator<Item = House> {
    let ways = [(true, false), (true, true), (false, false), (false, true)];
    ways.into_iter().map(move |(is_direct, is_turned)| {
        let [alpha, beta] = worlds.clone().map(Ollama::start);
        let tweak = |settings: &mut Settings| {
            settings.timing.health_interval = Duration::from_millis(100);
            if settings.mode == ModeChoice::Client {
                let mut names: Vec<_> = settings.servers.iter().map(|it| it.to_string()).collect();
                if is_turned {
                    names.reverse();
                }
                rule(settings, names[0].clone(), names[1].clone());
            }
        };
        let both = if is_turned { [&beta, &alpha] } else { [&alpha, &beta] };
        let chain = match is_direct {
            true => Chain::direct(&both, tweak),
            false if is_turned => Chain::start(Way::Paired, &both, tweak),
            false => Chain::start(Way::TwoHops, &both, tweak),
        };
        let name = format!("direct: {is_direct}, turned: {is_turned}");
        let house = House { alpha, beta, chain, name };
        eventually("both servers' models to be known", || {
            let status = house.chain.connect().get("/ollana/status").json();
            let servers = status["servers"].as_array()?.clone();
            let known = servers.iter().filter(|server| server["models"].is_array());
            (known.count() == 2).then_some(())
        });
        house
    })
}

const LACKS: &str = r#"{"error":"model 'big:120b-cloud' not found"}"#;

fn alpha_and_beta(rule: Rule) -> impl Iterator<Item = House> {
    houses([World::with(&["alpha"]), with_beta()], rule)
}

/// One that sees, as some of its requests have images.
fn with_beta() -> World {
    let mut world = World::with(&["beta"]);
    world.models[0].capabilities.push("vision");
    world
}

impl House {
    fn ask(&self, bytes: &[u8]) -> Answer {
        self.chain.connect().ask(bytes)
    }

    /// Requests that came: to the server of `alpha`, and to that of `beta`.
    fn asked(&self) -> [usize; 2] {
        [&self.alpha, &self.beta].map(|ollama| ollama.count())
    }
}

fn zstd(path: &str, body: &str) -> Vec<u8> {
    let body = compress_to_vec(body.as_bytes(), CompressionLevel::Fastest);
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Encoding: zstd\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body].concat()
}

/// What a path answers instead of Ollama.
fn says(status: &'static str, body: &'static str) -> Script {
    Arc::new(move |call| {
        call.read_body();
        call.answer(status, "application/json", body);
    })
}

/// As curl sends it: `-F file=@a.wav -F model=beta`.
fn form(model: &str, size: usize) -> Vec<u8> {
    let border = "------------------------d74496d66958873e";
    let audio = "RIFF\r\n\0\0--\r\n".repeat(size / 12);
    let body = format!(
        "--{border}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n{audio}\r\n\
         --{border}\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n\
         --{border}--\r\n"
    );
    let head = format!(
        "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\n\
         Content-Type: multipart/form-data; boundary={border}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    (head + &body).into_bytes()
}

fn chunked(path: &str, body: &str) -> Vec<u8> {
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    let pieces = body.as_bytes().chunks(1000).flat_map(chunk);
    head.into_bytes().into_iter().chain(pieces).chain(*b"0\r\n\r\n").collect()
}

/// Requests that only the server with `beta` can serve.
fn about_beta() -> Vec<(&'static str, Vec<u8>)> {
    let (s, image) = ("s".repeat(70_000), "iVBORw0KGgo/+A==".repeat(6_400));
    let late = |start: &str| format!("{start},\"model\":\"beta\"}}");
    let said = format!("\"messages\":[{{\"role\":\"user\",\"content\":\"{}\"}}]", &s[..66_000]);
    let messages = late(&format!("{{\"max_tokens\":5,\"system\":\"{s}\",\"messages\":[]"));
    let chat = late(&format!("{{{said}"));
    let embed = late(&format!("{{\"input\":\"{s}\""));
    let seen = "\"messages\":[{\"role\":\"user\",\"content\":\"what?\",\"images\":[\"";
    let picture = late(&format!("{{{seen}{image}\"]}}]"));
    let album = late(&format!("{{{seen}{}\"]}}]", image.repeat(60)));
    let twice = format!("{{\"model\":\"alpha\",{said},\"model\":\"beta\"}}");
    let hi = "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]";
    let mut rows = vec![
        ("messages", post("/v1/messages", messages)),
        ("chat completions", post("/v1/chat/completions", &chat)),
        ("chunks", chunked("/v1/chat/completions", &chat)),
        ("embeddings", post("/v1/embeddings", embed)),
        ("an image", post("/api/chat", picture)),
        ("six megabytes of images", post("/api/chat", album)),
        ("zstd", zstd("/v1/responses", r#"{"model":"beta","input":"hi"}"#)),
        ("much zstd", zstd("/v1/chat/completions", &chat)),
        ("a form", form("beta", 300_000)),
        ("another case", post("/api/generate", r#"{"Model":"beta"}"#)),
        (
            "the last of two",
            post("/api/chat", format!("{{\"model\":\"alpha\",\"model\":\"beta\",{hi}}}")),
        ),
        ("the last of two, far away", post("/api/chat", twice)),
        ("both names", post("/api/show", r#"{"model":"beta","name":"alpha"}"#)),
        ("no name", post("/api/show", r#"{"name":"beta","model":""}"#)),
        (
            "what is copied",
            post("/api/copy", r#"{"model":"alpha","source":"beta","destination":"x"}"#),
        ),
    ];
    for model in ["beta:local", "beta:latest:local", "Beta:Latest:LOCAL"] {
        let named = format!("{{\"model\":\"{model}\"}}");
        let chat = format!("{{\"model\":\"{model}\",{hi}}}");
        let copy = format!("{{\"source\":\"{model}\",\"destination\":\"x\"}}");
        let unload = format!("{{\"model\":\"{model}\",\"keep_alive\":0}}");
        rows.extend([
            ("show with a suffix", post("/api/show", &named)),
            ("chat with a suffix", post("/api/chat", chat)),
            ("a model of the list", request("GET", &format!("/v1/models/{model}"), "")),
            ("unloading", post("/api/generate", unload)),
            ("copying", post("/api/copy", copy)),
            ("deleting", request("DELETE", "/api/delete", named)),
        ]);
    }
    rows
}

#[test]
fn every_request_reaches_the_owner_of_its_model() {
    for house in alpha_and_beta(|_, _, _| {}) {
        for (what, bytes) in about_beta() {
            let before = house.asked();
            let answer = house.ask(&bytes);
            let name = format!("{what}, {}: {}", house.name, answer.text());
            assert_eq!(house.asked(), [before[0], before[1] + 1], "{name}");
            // Ollama's copy knows no suffixes, and `messages` takes no empty list.
            let served = house.beta.wait_served(before[1] + 1).pop().expect("what was served");
            assert_eq!(answer.status(), served.status, "{name}");
            let is_odd = matches!(what, "copying" | "messages");
            assert!(answer.status() == 200 || is_odd, "{name}");
            // What was deleted is there again, and known.
            house.beta.change(|world| world.models = with_beta().models);
            if what == "deleting" {
                eventually("the model to be listed", || {
                    house.chain.connect().get("/api/tags").text().contains("beta").then_some(())
                });
            }
        }
    }
}

fn beta() -> ModelName {
    ModelName::parse("beta").expect("a name")
}

#[test]
fn every_request_obeys_a_ban() {
    // Both servers have the model, and only `alpha`'s may run it.
    let worlds = [World::with(&["alpha", "beta"]), World::with(&["alpha", "beta"])];
    for house in houses(worlds, |settings, _, banned| settings.bans.push((beta(), banned))) {
        for (what, bytes) in about_beta() {
            house.ask(&bytes);
            assert_eq!(house.beta.count(), 0, "{what}, {}", house.name);
            house.alpha.change(|world| world.models = World::with(&["alpha", "beta"]).models);
        }
    }
    // The only one that has it may not.
    for house in alpha_and_beta(|settings, _, banned| settings.bans.push((beta(), banned))) {
        for (what, bytes) in about_beta() {
            let status = house.ask(&bytes).status();
            let asked = house.asked();
            assert_eq!((status, asked), (503, [0, 0]), "{what}, {}", house.name);
        }
    }
}

#[test]
fn every_request_obeys_a_pin() {
    let worlds = [World::with(&["alpha", "beta"]), World::with(&["alpha", "beta"])];
    for house in houses(worlds, |settings, _, pinned| settings.pins.push((beta(), pinned))) {
        for (what, bytes) in about_beta() {
            house.ask(&bytes);
            assert_eq!(house.alpha.count(), 0, "{what}, {}", house.name);
            house.beta.change(|world| world.models = World::with(&["alpha", "beta"]).models);
        }
    }
}

#[test]
fn every_request_hears_that_its_owner_is_away() {
    for mut house in alpha_and_beta(|_, _, _| {}) {
        house.beta.kill();
        let show = post("/api/show", r#"{"model":"beta"}"#);
        eventually("the server to be away", || (house.ask(&show).status() == 503).then_some(()));
        for (what, bytes) in about_beta() {
            let answer = house.ask(&bytes);
            let name = format!("{what}, {}: {}", house.name, answer.text());
            assert!(answer.status() == 503 && answer.text().contains("beta"), "{name}");
            assert_eq!(house.alpha.count(), 0, "{name}");
        }
    }
}

#[test]
fn a_model_that_no_list_has_is_looked_for_everywhere() {
    let hidden = || {
        let mut world = World::with(&["beta"]);
        world.raw_lists.insert("/api/tags".to_owned(), r#"{"models":[]}"#.to_owned());
        world
    };
    for house in houses([World::with(&["alpha"]), hidden()], |_, _, _| {}) {
        for path in ["/api/show", "/api/chat", "/api/generate", "/api/embed", "/api/embeddings"] {
            found(&house, &post(path, BODY));
        }
        for path in ["chat/completions", "completions", "embeddings", "responses", "messages"] {
            found(&house, &post(&format!("/v1/{path}"), BODY));
        }
        found(&house, &request("GET", "/v1/models/beta", ""));
        found(&house, &form("beta", 300_000));
        // Nothing that changes models is asked for twice.
        let before = house.asked();
        house.ask(&request("DELETE", "/api/delete", BODY));
        assert_eq!(house.asked().iter().sum::<usize>(), before.iter().sum::<usize>() + 1);
    }
}

const BODY: &str = r#"{"model":"beta","prompt":"a","input":"a","max_tokens":1,"messages":[{"role":"user","content":"a"}]}"#;

fn found(house: &House, bytes: &[u8]) {
    let before = house.asked();
    let answer = house.ask(bytes);
    let name = format!("{}: {}", house.name, String::from_utf8_lossy(&bytes[..40]));
    assert_eq!(answer.status(), 200, "{name}: {}", answer.text());
    let [alpha, beta] = house.asked();
    assert!(alpha <= before[0] + 1 && beta == before[1] + 1, "{name}");
}

#[test]
fn a_model_that_nobody_has_is_404_in_the_end() {
    for house in alpha_and_beta(|_, _, _| {}) {
        for (n, path) in ["/api/chat", "/v1/messages", "/api/show"].into_iter().enumerate() {
            let answer = house.ask(&post(path, BODY.replace("beta", "gamma")));
            let name = format!("{path}, {}", house.name);
            assert_eq!(answer.status(), 404, "{name}");
            assert!(
                answer.text().contains("gamma") && answer.text().contains("not found"),
                "{name}"
            );
            assert_eq!(house.asked(), [n + 1, n + 1], "{name}: each was asked once");
        }
        let status = house.chain.connect().get("/ollana/status").json();
        assert_eq!(status["failures"].as_array().map(Vec::len), Some(0), "{status}");
        for server in status["servers"].as_array().expect("servers") {
            assert_eq!((&server["health"], &server["failures"]), (&"ready".into(), &0.into()));
        }
    }
}

/// Half of a body is on its way, by the name that it began with, when another one comes.
#[test]
fn what_names_another_model_late_goes_to_its_owner() {
    for house in alpha_and_beta(|_, _, _| {}) {
        let body = BODY.replacen("beta", "alpha", 1);
        let (begun, rest) = (&body[..body.len() - 1], ",\"stream\":false,\"model\":\"beta\"}");
        let length = begun.len() + rest.len();
        let mut client = house.chain.connect();
        client.send(format!(
            "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{begun}"
        ));
        house.alpha.wait("half a body", |state| {
            state.records.iter().any(|it| it.body == begun.as_bytes()).then_some(())
        });
        client.send(rest);
        let answer = client.answer_to("POST");
        assert_eq!(
            (answer.status(), &answer.json()["model"]),
            (200, &"beta".into()),
            "{}",
            house.name
        );
        assert_eq!(house.beta.whole_request(0).body, format!("{begun}{rest}").into_bytes());
        assert!(!house.alpha.request(0).is_whole, "{}", house.name);
    }
}

#[test]
fn a_conversation_goes_where_its_model_is() {
    for house in alpha_and_beta(|_, _, _| {}) {
        let turn = |model: &str, more: &str| {
            let said = format!(r#""messages":[{{"role":"user","content":"hi{more}"}}]"#);
            post("/api/chat", format!(r#"{{{said},"stream":false,"model":"{model}"}}"#))
        };
        for (n, more) in ["", &"!".repeat(70_000)].into_iter().enumerate() {
            for model in ["alpha", "beta"] {
                let answer = house.ask(&turn(model, more)).json();
                assert_eq!(answer["model"], *model, "{}", house.name);
            }
            assert_eq!(house.asked(), [n + 1, n + 1], "{}", house.name);
        }
    }
}

#[test]
fn a_body_beyond_all_memory_is_passed_on() {
    let worlds = [World::with(&["beta"]), World::with(&["beta"])];
    let poor: Rule = |settings, _, _| {
        settings.limits.replay_budget = 200_000;
        settings.limits.replay_limit = 100_000;
    };
    for house in houses(worlds, poor) {
        let image = "A".repeat(500_000);
        let early =
            BODY.replacen('{', &format!("{{\"model\":\"beta\",\"images\":[\"{image}\"],"), 1);
        let late = BODY.replacen('{', &format!("{{\"images\":[\"{image}\"],"), 1);
        for body in [early, late] {
            let answer = house.ask(&post("/api/chat", &body));
            assert_eq!(answer.status(), 200, "{}: {}", house.name, answer.text());
        }
        // Another name, too late to be sent elsewhere.
        let body =
            BODY.replacen('{', &format!("{{\"model\":\"alpha\",\"images\":[\"{image}\"],"), 1);
        let answer = house.ask(&post("/api/chat", &body));
        assert_eq!(answer.status(), 400, "{}: {}", house.name, answer.text());
        assert!(answer.text().contains("names its model too late"), "{}", answer.text());
    }
}

#[test]
fn a_body_beyond_all_memory_hears_no_404_from_who_lacks_its_model() {
    let poor: Rule = |settings, alpha, _| {
        settings.limits.replay_budget = 200_000;
        settings.preferred = vec![alpha];
    };
    for house in alpha_and_beta(poor) {
        let image = "A".repeat(500_000);
        let late = format!("{{\"images\":[\"{image}\"],\"model\":\"beta\",\"messages\":[]}}");
        let answer = house.ask(&post("/api/chat", late));
        let told = format!("{}: {} {}", house.name, answer.status(), answer.text());
        assert!(told.contains(": 503 ") && told.contains("--replay-budget"), "{told}");
        assert_eq!(house.asked(), [1, 0], "{told}");
    }
}

#[test]
fn a_transcription_is_asked_for_again_however_large() {
    // Of those that ask, every other one is left.
    let calls = Arc::new(AtomicUsize::new(0));
    let act = move |call: &mut Call<'_>| match calls.fetch_add(1, SeqCst) % 2 {
        0 => {
            call.read_body();
            call.close();
        }
        _ => call.as_ollama(&World::with(&["beta"])),
    };
    let mut world = World::with(&["beta"]);
    world.script.insert("/v1/audio/transcriptions".to_owned(), Arc::new(act));
    for house in houses([world.clone(), world], |_, _, _| {}) {
        for (n, size) in [300_000, 6_000_000].into_iter().enumerate() {
            let answer = house.ask(&form("beta", size));
            assert_eq!(answer.status(), 200, "{}: {}", house.name, answer.text());
            assert_eq!(house.asked().iter().sum::<usize>(), 2 * (n + 1), "{}", house.name);
        }
    }
}

#[test]
fn zstd_that_needs_too_much_is_passed_on_as_it_is() {
    for house in alpha_and_beta(|_, _, _| {}) {
        // A window of 16 MiB, and a block that isn't whole.
        let packed = [&[0x28, 0xb5, 0x2f, 0xfd, 0, 14 << 3][..], &[1, 2, 3]].concat();
        let head = format!(
            "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: zstd\r\n\
             Content-Length: {}\r\n\r\n",
            packed.len()
        );
        let answer = house.ask(&[head.as_bytes(), &packed].concat());
        assert_eq!(answer.status(), 400, "{}: {}", house.name, answer.text());
        let record = [&house.alpha, &house.beta].into_iter().find(|it| it.count() == 1);
        let record = record.expect("one that was asked").request(0);
        assert_eq!(
            (record.body, record.head.one("content-encoding")),
            (packed, Some("zstd".into()))
        );
    }
}

/// `ollama launch codex`: what isn't a model of Ollama's goes on to OpenAI, with the credentials of the
/// program's user and by files of the machine.
#[test]
fn what_ollama_takes_from_its_own_machine_goes_to_no_other() {
    let [own, other] = [(); 2].map(|()| Ollama::with(&["alpha"]));
    let asks = || {
        [("GET", "/api/codex/_health"), ("POST", "/api/codex/v1/responses")]
            .map(|(method, path)| request(method, path, r#"{"model":"gpt-5","input":"x"}"#))
    };
    let served = |ollama: &Ollama| {
        ollama.served().iter().filter(|served| served.path.starts_with("/api/codex/")).count()
    };
    for chain in [Chain::direct(&[&other], |_| {}), Chain::start(Way::Paired, &[&other], |_| {})] {
        for ask in asks() {
            assert_eq!(chain.connect().ask(ask).status(), 404, "as if there were no such path");
        }
    }
    let mut settings = server_settings(own.address);
    settings.mode = ModeChoice::Both;
    settings.share = vec!["127.0.0.1:0".parse().expect("an address")];
    settings.servers = client_settings(&[other.address]).servers;
    let daemon = start(&settings);
    for ask in asks() {
        Client::connect(daemon.addresses()[0]).ask(ask);
    }
    assert_eq!((served(&own), served(&other)), (2, 0));
    assert!(daemon.stop(PATIENCE), "no stream was left");
}

/// An Ollama of an earlier version says of a cloud's model that it has none of that name, and so does one
/// whose list is out of date.
#[test]
fn what_the_owner_says_is_not_hidden_by_one_that_lacks_the_model() {
    const STUB: &str = "big:120b-cloud";
    let mut older = World::with(&["alpha"]);
    older.script.insert("/api/chat".to_owned(), says("404 Not Found", LACKS));
    let owner = World { models: vec![Model::cloud(STUB)], ..World::with(&[]) };
    for mut house in houses([older, owner], |_, _, _| {}) {
        let chat = post("/api/chat", format!("{{\"model\":\"{STUB}\",\"messages\":[]}}"));
        for (status, body) in [
            ("401 Unauthorized", r#"{"error":"unauthorized","signin_url":"https://x"}"#),
            ("403 Forbidden", r#"{"error":"this model requires a subscription"}"#),
            ("429 Too Many Requests", r#"{"error":"you have reached your weekly usage limit"}"#),
            ("503 Service Unavailable", r#"{"error":"account unavailable"}"#),
        ] {
            house.beta.change(|world| {
                world.script.insert("/api/chat".to_owned(), says(status, body));
            });
            let before = house.asked();
            let answer = house.ask(&chat);
            let told = format!("{} {}", answer.status(), answer.text());
            assert_eq!(told, format!("{} {body}", &status[..3]), "{}", house.name);
            let asked = [0, 1].map(|n| house.asked()[n] - before[n]);
            assert_eq!(asked, [1, 1], "{}: {status}", house.name);
        }
        // It dies of it; and then it is away.
        house.beta.change(|world| {
            let dies = |call: &mut Call<'_>| {
                call.read_body();
                call.close();
            };
            world.script.insert("/api/chat".to_owned(), Arc::new(dies));
        });
        let answer = house.ask(&chat);
        assert_eq!(answer.status(), 502, "{}: {}", house.name, answer.text());
        assert!(answer.text().contains("closed early"), "{}: {}", house.name, answer.text());
        house.beta.kill();
        eventually("it to be away", || {
            let answer = house.ask(&chat);
            let is_away = answer.status() == 503 && answer.text().contains("which is away");
            is_away.then_some(())
        });
    }
}

#[test]
fn a_path_that_only_the_newer_ollama_has_is_asked_for_there() {
    let mut older = World::with(&["beta"]);
    for path in ["/v1/messages", "/v1/responses"] {
        older.script.insert(path.to_owned(), says("404 Not Found", "404 page not found"));
    }
    for house in houses([older, with_beta()], |settings, older, _| settings.preferred = vec![older])
    {
        for (path, body) in [
            (
                "/v1/messages",
                r#"{"model":"beta","max_tokens":5,"messages":[{"role":"user","content":"x"}]}"#,
            ),
            ("/v1/responses", r#"{"model":"beta","input":"hi"}"#),
        ] {
            let answer = house.chain.connect().post(path, body);
            assert_eq!(answer.status(), 200, "{} {path}: {}", house.name, answer.text());
        }
        let [older, newer] = house.asked();
        assert!(older > 0 && newer == 2, "{}: {older}, {newer}", house.name);
        // That one has the model nevertheless.
        house.beta.change(|world| world.models.clear());
        let answer = house.chain.connect().post("/api/chat", r#"{"model":"beta","messages":[]}"#);
        assert_eq!(answer.status(), 200, "{}: {}", house.name, answer.text());
    }
}
