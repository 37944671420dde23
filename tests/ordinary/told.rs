//! Requests go where Ollama tells that they are done well.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use ollana::config::Settings;
use serde_json::{Value, json};

use crate::support::{Call, Chain, Model, Ollama, Way, World, eventually, post};

/// A client in front of two machines in both orders, asking the Ollamas themselves and by way of
/// their server proxies, once it knows what they have. Its checks come rarely from then on.
fn each_way(worlds: [World; 2], test: impl Fn(&Chain, [&Ollama; 2])) {
    let tweak = |settings: &mut Settings| {
        settings.timing.health_interval = Duration::from_secs(60);
    };
    for is_direct in [true, false] {
        for is_turned in [false, true] {
            let ollamas = worlds.clone().map(Ollama::start);
            let mut order = [&ollamas[0], &ollamas[1]];
            if is_turned {
                order.reverse();
            }
            let chain = match is_direct {
                true => Chain::direct(&order, tweak),
                false => Chain::start(Way::TwoHops, &order, tweak),
            };
            eventually("all servers and their models to be known", || {
                let state = chain.connect().get("/ollana/status").json();
                let is_known =
                    |server: &Value| server["health"] == "ready" && server["model_count"] != 0;
                state["servers"].as_array()?.iter().all(is_known).then_some(())
            });
            test(&chain, [&ollamas[0], &ollamas[1]]);
        }
    }
}

fn loaded(world: World) -> World {
    World { loaded: vec!["alpha:latest".to_owned()], ..world }
}

#[test]
fn a_model_that_is_wholly_on_a_card_answers() {
    let split = loaded(World { card: 1 << 20, ..World::with(&["alpha"]) });
    let whole = loaded(World::with(&["alpha"]));
    each_way([split, whole], |chain, [split, whole]| {
        for path in ["/api/chat", "/v1/chat/completions"] {
            let body = json!({"model": "alpha", "messages": [{"role": "user", "content": path}]});
            let answer = chain.connect().ask(post(path, body.to_string()));
            assert_eq!(answer.status(), 200, "{}", answer.text());
        }
        assert_eq!(split.served(), []);
        assert_eq!(whole.served().len(), 2);
    });
}

/// A machine on which the model can do this, and is loaded or not.
fn able(capabilities: &[&'static str], is_loaded: bool) -> World {
    let model = Model { capabilities: capabilities.to_vec(), ..Model::local("alpha") };
    let world = World { models: vec![model], ..World::default() };
    if is_loaded { loaded(world) } else { world }
}

#[test]
fn tools_and_images_go_where_the_model_can_do_them() {
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    let image = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}});
    let claude = json!({"type": "image", "source": {"type": "base64", "data": "AAAA"}});
    let talk = |content: Value| json!([{"role": "user", "content": content}]);
    let with_tools = |path| {
        let long = talk(json!("x".repeat(100_000)));
        (path, json!({"model": "alpha", "max_tokens": 9, "messages": long, "tools": tools}))
    };
    let shown = |parts| json!({"model": "alpha", "max_tokens": 9, "messages": talk(parts)});
    let seen = json!([{"role": "user", "content": "x", "images": ["AAAA"]}]);
    for (word, uses) in [
        ("tools", ["/api/chat", "/v1/chat/completions", "/v1/messages"].map(with_tools).to_vec()),
        (
            "vision",
            vec![
                ("/api/chat", json!({"model": "alpha", "messages": seen})),
                ("/api/generate", json!({"model": "alpha", "prompt": "x", "images": ["AAAA"]})),
                ("/v1/chat/completions", shown(json!([{"type": "text", "text": "x"}, image]))),
                ("/v1/messages", shown(json!([claude]))),
            ],
        ),
    ] {
        let worlds = [able(&["completion"], true), able(&["completion", word], false)];
        each_way(worlds, |chain, [unable, able]| {
            for (at, (path, body)) in uses.iter().enumerate() {
                let answer = chain.connect().ask(post(path, body.to_string()));
                assert_eq!(answer.status(), 200, "{word} {path}: {}", answer.text());
                assert_eq!((unable.served().len(), able.served().len()), (0, at + 1), "{path}");
            }
        });
    }
}

#[test]
fn where_nobody_is_able_ollama_says_so() {
    let worlds = [able(&["completion"], true), able(&["completion", "vision"], false)];
    each_way(worlds, |chain, _| {
        let body = json!({
            "model": "alpha", "messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}],
        });
        let answer = chain.connect().ask(post("/api/chat", body.to_string()));
        assert_eq!(answer.status(), 400);
        let error = "registry.ollama.ai/library/alpha:latest does not support tools";
        assert_eq!(answer.json()["error"], error);
    });
}

#[test]
fn a_long_prompt_or_a_set_context_goes_where_it_fits() {
    let small = loaded(World { context_length: 4096, ..World::with(&["alpha"]) });
    let large = loaded(World { context_length: 32_768, ..World::with(&["alpha"]) });
    each_way([small, large], |chain, [small, large]| {
        let talk = |length: usize| json!([{"role": "user", "content": "word ".repeat(length / 5)}]);
        let long = json!({"model": "alpha", "messages": talk(40_000)});
        let set = json!({"model": "alpha", "prompt": "x", "options": {"num_ctx": 32_768}});
        for (path, body) in
            [("/api/chat", &long), ("/v1/chat/completions", &long), ("/api/generate", &set)]
        {
            let answer = chain.connect().ask(post(path, body.to_string()));
            assert_eq!(answer.status(), 200, "{path}: {}", answer.text());
        }
        assert_eq!((small.served().len(), large.served().len()), (0, 3));
        let set = json!({"model": "alpha", "prompt": "x", "options": {"num_ctx": 4096}});
        assert_eq!(chain.connect().ask(post("/api/generate", set.to_string())).status(), 200);
        assert_eq!((small.served().len(), large.served().len()), (1, 3));
    });
}

/// The path of a request of the daemons' own.
const STATUS: &str = "/api/status";

#[test]
fn cloud_models_go_where_the_cloud_is_not_disabled() {
    let world = |cloud_disabled| World {
        models: vec![Model::local("alpha"), Model::cloud("gpt-oss:120b-cloud")],
        cloud_disabled,
        ..World::default()
    };
    each_way([world(true), world(false)], |chain, [disabled, enabled]| {
        let state = chain.connect().get("/ollana/status").json();
        let told = |server: &Value| server["cloud"].as_bool();
        let mut clouds: Vec<_> =
            state["servers"].as_array().expect("servers").iter().map(told).collect();
        clouds.sort();
        assert_eq!(clouds, [Some(false), Some(true)]);
        let body = json!({"model": "gpt-oss:120b-cloud", "messages": [{"role": "user"}]});
        for path in ["/api/chat", "/v1/chat/completions"] {
            let answer = chain.connect().ask(post(path, body.to_string()));
            assert_eq!(answer.status(), 200, "{path}: {}", answer.text());
        }
        assert_eq!((disabled.served().len(), enabled.served().len()), (0, 2));
    });
    each_way([world(true), world(true)], |chain, _| {
        let body = json!({"model": "gpt-oss:120b-cloud", "messages": [{"role": "user"}]});
        let answer = chain.connect().ask(post("/api/chat", body.to_string()));
        assert_eq!(answer.status(), 403);
        assert!(answer.text().contains("ollama cloud is disabled"), "{}", answer.text());
    });
}

#[test]
fn who_knows_nothing_of_the_status_is_not_asked_for_it() {
    let ask = |version: &str, models: Vec<Model>| {
        let ollama =
            Ollama::start(World { version: version.to_owned(), models, ..World::default() });
        let asked = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&asked);
        ollama.change(|world| {
            let script = move |call: &mut Call<'_>| {
                seen.store(true, SeqCst);
                call.as_ollama(&World::default());
            };
            world.script.insert(STATUS.to_owned(), Arc::new(script));
        });
        let chain = Chain::direct(&[&ollama], |settings: &mut Settings| {
            // Lists are asked for where there is a choice.
            settings
                .servers
                .push(ollana::config::ServerName { host: "127.0.0.1".to_owned(), port: 1 });
        });
        eventually("models to be known", || {
            let state = chain.connect().get("/ollana/status").json();
            (state["servers"][0]["model_count"] == 1).then_some(())
        });
        asked.load(SeqCst)
    };
    let stub = || vec![Model::cloud("gpt-oss:120b-cloud")];
    assert!(ask("0.16.2", stub()));
    assert!(!ask("0.16.1", stub()));
    assert!(!ask("0.33.0", vec![Model::local("alpha")]));
}
