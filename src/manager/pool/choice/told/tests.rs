//! Scenarios over the pure pool: what a request needs, and what servers tell of their models.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::CLEARLY_BUSIER;
use crate::manager::pool::tests::World;
use crate::manager::pool::{BackendId, NoPick, Wanted};
use crate::ollama::facts::Capabilities;
use crate::ollama::inventory::Inventory;
use crate::ollama::model_name::ModelName;

/// A server that has the model `a` with these capabilities; `null`: it doesn't say. In memory with
/// this context, in tokens; 0: it doesn't say.
fn server(capabilities: Value, context: Option<u64>) -> Arc<Inventory> {
    let tags = json!({"models": [{
        "name": "a", "capabilities": capabilities, "details": {"context_length": 131_072},
    }]});
    let mut loaded: Vec<Value> = Vec::new();
    loaded.extend(context.map(|context| json!({"name": "a", "context_length": context})));
    let ps = json!({ "models": loaded });
    Arc::new(Inventory::new([&tags.to_string(), &ps.to_string(), ""], None))
}

fn able() -> Value {
    json!(["completion", "tools", "vision"])
}

fn unable() -> Value {
    json!(["completion"])
}

fn a() -> Wanted {
    Wanted { model: ModelName::parse("a"), ..Wanted::default() }
}

fn with_tools() -> Wanted {
    Wanted { abilities: Capabilities::TOOLS, ..a() }
}

fn world(servers: &[&Arc<Inventory>]) -> (World, Vec<BackendId>) {
    let inventories: Vec<_> = servers.iter().map(|it| Some(Arc::clone(it))).collect();
    World::with_models(&inventories)
}

/// Where a request goes that comes alone.
fn goes(w: &mut World, wanted: &Wanted) -> Result<BackendId, NoPick> {
    let id = w.choose(wanted)?;
    w.done(id);
    Ok(id)
}

#[test]
fn a_request_goes_where_the_model_can_do_it() {
    let (with, without) = (server(able(), None), server(unable(), Some(4096)));
    let vision = Wanted { abilities: Capabilities::VISION, ..a() };
    for wanted in [with_tools(), vision] {
        let (mut w, ids) = world(&[&without, &with]);
        assert_eq!(goes(&mut w, &a()), Ok(ids[0]), "where it is loaded");
        assert_eq!(goes(&mut w, &wanted), Ok(ids[1]));
        // What Ollama would refuse isn't worth being done at once.
        for _ in 0..=CLEARLY_BUSIER {
            assert_eq!(w.choose(&wanted), Ok(ids[1]));
        }
        w.pool.rules.max_in_flight = 1;
        assert_eq!(w.choose(&wanted), Err(NoPick::Busy));
        assert!(w.choose(&a()).is_ok());
        w.down(ids[1]);
        assert_eq!(goes(&mut w, &wanted), Err(NoPick::Busy), "Ollama's own answer, in its turn");
        w.done(ids[0]);
        assert_eq!(goes(&mut w, &wanted), Ok(ids[0]), "Ollama's own answer");
    }
    let both = Capabilities::TOOLS.with(Capabilities::VISION, true);
    let (mut w, ids) = world(&[&server(json!(["tools"]), None), &with]);
    assert_eq!(goes(&mut w, &Wanted { abilities: both, ..a() }), Ok(ids[1]));
}

#[test]
fn what_is_not_told_rules_nothing_out() {
    let silent = |context| server(json!(null), context);
    let (mut w, ids) = world(&[&server(unable(), Some(4096)), &silent(None)]);
    assert_eq!(goes(&mut w, &with_tools()), Ok(ids[1]), "it may be able");
    let (mut w, ids) = world(&[&silent(None), &server(able(), None)]);
    assert_eq!(goes(&mut w, &with_tools()), Ok(ids[1]), "it is able");
    for _ in 0..CLEARLY_BUSIER {
        assert_eq!(w.choose(&with_tools()), Ok(ids[1]));
    }
    assert_eq!(w.choose(&with_tools()), Ok(ids[0]), "clearly busier");
    let (mut w, ids) = world(&[&server(able(), None), &silent(Some(4096))]);
    assert_eq!(goes(&mut w, &with_tools()), Ok(ids[1]), "where it is loaded");
    let (mut w, ids) = world(&[&server(unable(), None), &server(unable(), Some(4096))]);
    assert_eq!(goes(&mut w, &with_tools()), Ok(ids[1]), "neither is able");
}

#[test]
fn a_long_prompt_goes_where_it_fits() {
    let (small, large) = (server(able(), Some(4096)), server(able(), Some(32_768)));
    let long = |tokens| Wanted { tokens, ..a() };
    let (mut w, ids) = world(&[&small, &large]);
    assert_eq!(goes(&mut w, &long(4096)), Ok(ids[0]));
    assert_eq!(goes(&mut w, &long(4097)), Ok(ids[1]));
    assert_eq!(goes(&mut w, &long(40_000)), Ok(ids[0]), "it fits nowhere");
    for _ in 0..=CLEARLY_BUSIER {
        assert_eq!(w.choose(&long(5000)), Ok(ids[1]), "an answer to half a prompt is no good");
    }
    // With what context another server would load it isn't known.
    let (mut w, ids) = world(&[&server(able(), None), &small]);
    assert_eq!(goes(&mut w, &long(5000)), Ok(ids[1]));
    let (mut w, ids) = world(&[&small, &server(able(), Some(0))]);
    assert_eq!(goes(&mut w, &long(5000)), Ok(ids[1]), "it doesn't say");
}

#[test]
fn a_context_that_is_set_goes_where_the_model_is_loaded_with_it() {
    let servers = [4096, 32_768, 131_072].map(|context| server(able(), Some(context)));
    let set = |num_ctx| Wanted { num_ctx: Some(num_ctx), tokens: 1, ..a() };
    let (mut w, ids) = world(&[&servers[0], &servers[1], &servers[2]]);
    assert_eq!(goes(&mut w, &set(4096)), Ok(ids[0]));
    assert_eq!(goes(&mut w, &set(32_768)), Ok(ids[1]));
    assert_eq!(goes(&mut w, &set(1_000_000)), Ok(ids[2]), "more than it was trained for");
    assert_eq!(goes(&mut w, &set(8192)), Ok(ids[0]), "it is loaded anew wherever that is");
    for _ in 0..CLEARLY_BUSIER {
        assert_eq!(w.choose(&set(32_768)), Ok(ids[1]));
    }
    assert_eq!(w.choose(&set(32_768)), Ok(ids[0]), "clearly busier");
}

#[test]
fn a_cloud_model_goes_where_the_cloud_is_not_disabled() {
    let stub = |cloud| {
        let tags = r#"{"models":[{"name":"x:cloud","remote_host":"https://ollama.com"}]}"#;
        let mut inventory = Inventory::new([tags, "", ""], None);
        inventory.cloud = cloud;
        Arc::new(inventory)
    };
    let wanted = Wanted { model: ModelName::parse("x:cloud"), ..Wanted::default() };
    for (clouds, want) in [
        ([Some(false), Some(true)], 1),
        ([Some(false), None], 1),
        ([None, Some(true)], 0),
        ([Some(true), None], 0),
        ([Some(false), Some(false)], 0),
    ] {
        let (mut w, ids) = world(&[&stub(clouds[0]), &stub(clouds[1])]);
        assert_eq!(goes(&mut w, &wanted), Ok(ids[want]), "{clouds:?}");
    }
    // One that has the stub, but keeps from the cloud, comes after one without it.
    let (mut w, ids) = world(&[&stub(Some(false)), &server(able(), None)]);
    assert_eq!(goes(&mut w, &wanted), Ok(ids[1]));
    assert_eq!(goes(&mut w, &a()), Ok(ids[1]));
}
