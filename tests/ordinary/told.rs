//! Requests go where Ollama tells that they are done well.

use std::time::Duration;

use ollana::config::Settings;
use serde_json::{Value, json};

use crate::support::{Chain, Ollama, Way, World, eventually, post};

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
