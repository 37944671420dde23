use std::fs;
use std::path::PathBuf;

use super::*;
use crate::system::random;

fn folder() -> PathBuf {
    std::env::temp_dir().join(format!("ollana-state-{:?}", random::<8>().unwrap()))
}

fn inventory(models: &[&str]) -> Arc<Inventory> {
    let tags: Value = models
        .iter()
        .map(|name| json!({ "model": name, "size": 7, "details": {"parameter_size": "8B"} }))
        .collect();
    let openai: Value = models.iter().map(|name| json!({ "id": name })).collect();
    let (tags, openai) = (json!({ "models": tags }), json!({ "data": openai }));
    Arc::new(Inventory::new([&tags.to_string(), "", &openai.to_string()], None))
}

fn had(models: &[&str], ago: u64) -> Had {
    let given = Some(parse_host_port("nas:11434", 1).unwrap());
    let ago = Duration::from_secs(ago);
    Had { models: inventory(models), given, ago, stamp: None, is_newcomer: true }
}

fn known(identity: Option<Identity>, is_present: bool, had: Option<Had>) -> Known {
    let name = "d\"esk".to_owned();
    Known { identity, name, address: "10.0.0.7:11435".parse().unwrap(), is_present, had }
}

#[test]
fn servers_are_recalled_and_junk_is_not() {
    let dir = folder();
    assert_eq!(recall(&dir), []);
    let servers = [known(Some(Identity([0xA7; 16])), true, None), known(None, false, None)];
    remember(&dir, &servers);
    assert_eq!(recall(&dir), servers);
    for junk in ["", "{}", "[{\"address\":\"x\",\"name\":\"\"}]", "[1]"] {
        fs::write(dir.join("servers.json"), junk).unwrap();
        assert_eq!(recall(&dir), [], "{junk}");
    }
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn what_they_had_is_recalled_with_its_time() {
    let dir = folder();
    remember(&dir, &[known(None, false, Some(had(&["a", "b"], 5000)))]);
    let recalled = recall(&dir).remove(0).had.expect("what it had");
    assert!((5000..5010).contains(&recalled.ago.as_secs()), "{:?}", recalled.ago);
    let stamp = recalled.stamp.expect("a time");
    let models = recalled.models.models();
    assert_eq!((models[0].label.as_str(), models[0].size, models[1].label.as_str()), ("a", 7, "b"));
    assert_eq!(merged(List::OpenAi, &[recalled.models]).matches("\"id\"").count(), 2);
    assert!(recalled.is_newcomer && recalled.given.is_some_and(|given| given.host == "nas"));
    // Recalled by a machine whose clock stands in 1970, and written down again.
    let again = line(&known(None, false, Some(Had { stamp: Some(stamp), ..had(&[], 0) })), 60);
    assert!(again.ends_with(&format!("{SEEN}{stamp}}}")), "{again}");
    // Written by a clock that ran ahead, or wasn't set.
    for wrong in ["99999999999", "60", "-1", "null", "\"x\"", "1e300"] {
        let text = fs::read_to_string(dir.join("servers.json")).unwrap();
        let text = text.replace(&stamp.to_string(), wrong);
        fs::write(dir.join("servers.json"), text).unwrap();
        let had = recall(&dir).remove(0).had.expect("what it had");
        assert_eq!(had.ago, Duration::ZERO, "{wrong} counts as now");
        remember(&dir, &[known(None, false, Some(Had { stamp: Some(stamp), ..had }))]);
    }
    fs::remove_dir_all(&dir).unwrap();
}

/// Whatever a server's lists hold comes back as it was, and takes no more room.
#[test]
fn lists_are_kept_as_a_server_writes_them() {
    let dir = folder();
    let numbers = vec!["1e15"; 90_000].join(",\n\r\t ");
    let odd = format!(
        r#"{{"models":[{{"name":"a,\"seen\":1}}","x":[{numbers}],"seen":3}},{{"name":"b","x":1e999,
        "y":"\ud800\u0000"}}]}}"#
    );
    let mut depths = vec![odd];
    depths.extend([1, 31, 32, 33, 124, 125, 126, 127, 128].map(|depth| {
        let (open, close) = ("[".repeat(depth - 1), "]".repeat(depth - 1));
        format!(r#"{{"models":[{{"name":"deep","x":{open}{close}}},{{"name":"c"}}]}}"#)
    }));
    for list in &depths {
        let models = Arc::new(Inventory::new([list, "", ""], None).on_disk(4 << 20));
        let odd = known(None, true, Some(Had { models, ..had(&[], 0) }));
        let all = [known(Some(Identity([7; 16])), true, Some(had(&["good"], 9))), odd];
        remember(&dir, &all);
        let length = fs::metadata(dir.join(SERVERS)).unwrap().len();
        let bytes = all.iter().map(|it| it.had.as_ref().map_or(0, |had| had.models.bytes()));
        assert!(length < 1500 + bytes.sum::<usize>() as u64, "{length} bytes: {list:.200}");
        let recalled = recall(&dir);
        assert_eq!(recalled.len(), 2, "{list:.200}");
        for (recalled, known) in recalled.iter().zip(&all) {
            let models = |known: &Known| known.had.as_ref().map(|had| had.models.models());
            assert_eq!(models(recalled), models(known), "{list:.200}");
            assert_eq!(recalled.identity, known.identity);
        }
        let first = files::stamp(&dir.join(SERVERS));
        remember(&dir, &recalled);
        assert_eq!(files::stamp(&dir.join(SERVERS)), first, "the same again: {list:.200}");
    }
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_line_that_can_not_be_read_costs_no_other() {
    let dir = folder();
    let all: Vec<Known> = (1..4u8).map(|n| known(Some(Identity([n; 16])), true, None)).collect();
    remember(&dir, &all);
    let text = fs::read_to_string(dir.join(SERVERS)).unwrap();
    let second = lines(&text).nth(1).unwrap();
    let deep = format!("{{\"name\":{}{}}}", "[".repeat(200), "]".repeat(200));
    for bad in ["", "{", "7", "[1]", "}],{\"x\":", "\0\0", &deep, &second[..second.len() / 2]] {
        fs::write(dir.join(SERVERS), text.replace(second, bad)).unwrap();
        assert_eq!(recall(&dir), [all[0].clone(), all[2].clone()], "{bad:?}");
        remember(&dir, &all);
        assert_eq!(recall(&dir), all, "written anew: {bad:?}");
    }
    fs::write(dir.join(SERVERS), b"\xff\xfe").unwrap();
    assert_eq!(recall(&dir), []);
    remember(&dir, &all);
    assert_eq!(recall(&dir), all, "what is no text is replaced");
    // What is there, and can't be read at the moment, isn't replaced by less.
    fs::remove_file(dir.join(SERVERS)).unwrap();
    fs::create_dir(dir.join(SERVERS)).unwrap();
    assert_eq!(recall(&dir), []);
    write(&dir, &all).unwrap_err();
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn the_file_of_an_older_version_is_read() {
    let dir = folder();
    fs::create_dir_all(&dir).unwrap();
    let old = r#"[{"address":"10.0.0.7:11435","identity":null,"name":"old","present":true},
        {"address":"10.0.0.8:11435","given":null,"identity":"07070707070707070707070707070707",
        "models":[{"name":"a","size":7}],"name":"desk","new":false,"openai":[{"id":"a"}],
        "present":true,"seen":1790000000}]"#;
    fs::write(dir.join(SERVERS), old.replace('\n', "")).unwrap();
    let recalled = recall(&dir);
    assert_eq!((recalled.len(), &recalled[0].had), (2, &None));
    assert_eq!(recalled[1].identity, Some(Identity([7; 16])));
    let had = recalled[1].had.clone().expect("what it had");
    assert_eq!((had.models.models()[0].size, had.stamp), (7, Some(1_790_000_000)));
    assert!(merged(List::OpenAi, &[had.models]).contains("\"id\""));
    remember(&dir, &recalled);
    assert_eq!(lines(&text(&dir, SERVERS).unwrap()).count(), 2);
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn hardware_addresses_of_all_who_learn_are_kept() {
    let dir = folder();
    let keeper = Keeper::start().unwrap();
    let all: Vec<Macs> = (0..2).map(|_| Macs::recall(dir.clone(), Arc::clone(&keeper))).collect();
    std::thread::scope(|scope| {
        for n in 0..16u8 {
            let macs = &all[usize::from(n % 2)];
            scope.spawn(move || {
                macs.learn(vec![("moved".to_owned(), Mac([n; 6]))]);
                macs.learn(vec![(n.to_string(), Mac([n; 6]))]);
            });
        }
    });
    assert_eq!(all[1].of("7"), Some(Mac([7; 6])));
    drop((all, keeper));
    let macs = Macs::recall(dir.clone(), Keeper::start().unwrap());
    for n in 0..16 {
        assert_eq!(macs.of(&n.to_string()), Some(Mac([n; 6])));
    }
    assert!(macs.of("moved").is_some());
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn the_daemon_that_came_last_is_remembered() {
    let dir = folder();
    let keeper = Keeper::start().unwrap();
    let memory = || Memory::new(dir.clone(), Arc::clone(&keeper));
    let (old, new) = (memory(), memory());
    new.keep(vec![known(None, true, None)]);
    old.keep(Vec::new());
    drop((old, new, keeper));
    assert_eq!(recall(&dir), [known(None, true, None)]);
    fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn the_disk_is_spared() {
    let dir = folder();
    let file = dir.join("servers.json");
    let write = |models: &[&str], ago| {
        remember(&dir, &[known(None, true, Some(had(models, ago)))]);
        files::stamp(&file)
    };
    let first = write(&["a"], 0);
    assert_eq!(write(&["a"], 300), first, "nothing but the time has changed");
    assert_ne!(write(&["a"], 700), first);
    let second = write(&["a"], 700);
    assert_ne!(write(&["a", "b"], 700), second);
    fs::remove_dir_all(&dir).unwrap();
}
