use std::fs;
#[cfg(unix)]
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::system::{Hex, random};

struct Store(PathBuf);

impl Store {
    fn new() -> Self {
        let name = format!("ollana-library-{}", Hex(&random::<8>().unwrap()));
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(dir.join("blobs")).unwrap();
        Store(dir)
    }

    fn library(&self) -> Library {
        Library::at(vec![self.0.clone()])
    }

    fn blob(&self, digit: char, bytes: &[u8]) -> String {
        let hex = digit.to_string().repeat(64);
        fs::write(self.0.join(format!("blobs/sha256-{hex}")), bytes).unwrap();
        format!("sha256:{hex}")
    }

    fn manifest(&self, place: &str, text: &str) -> PathBuf {
        let path = self.0.join("manifests").join(place);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const A: &str = "registry.ollama.ai/library/a/latest";

fn layer(digest: &str, size: usize, more: &str) -> String {
    format!(r#"{{"mediaType":"m","digest":"{digest}","size":{size}{more}}}"#)
}

fn manifest(config: &str, layers: &[String]) -> String {
    let layers = layers.join(",");
    format!(
        r#"{{"schemaVersion":2,"mediaType":"t","config":{},"layers":[{layers}]}}"#,
        layer(config, 1, "")
    )
}

fn digest(text: &str) -> Digest {
    Digest::parse(text).unwrap()
}

/// A machine that asks at once would have to ask again a second later.
#[test]
fn a_model_that_has_just_come_is_there_soon() {
    let store = Store::new();
    let library = store.library();
    let name = store.blob('d', b"12345");
    assert_eq!(library.origin(&digest(&name)), None);
    store.manifest(A, &manifest(&name, &[layer(&name, 5, "")]));
    let start = Instant::now();
    while library.origin(&digest(&name)).is_none() {
        assert!(start.elapsed() < AGE, "it takes as long as for what is known");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Before Ollama writes the manifest; what it has only begun has another name.
#[test]
fn layers_of_a_pull_are_had_once_they_are_whole() {
    let store = Store::new();
    let library = store.library();
    let name = format!("sha256:{}", "c".repeat(64));
    library.note_pulled(&name, 5);
    library.note_pulled("sha256:../x", 5);
    let is_there = || library.open(&digest(&name)).map(|blob| blob.size);
    assert_eq!((library.origin(&digest(&name)), is_there()), (Some(Origin::Pulled), None));
    store.blob('c', b"12345");
    assert_eq!(is_there(), Some(5));
    store.blob('c', b"123456");
    assert_eq!(is_there(), None, "another size");
    // What a manifest says counts more.
    store.manifest(A, &manifest(&name, &[layer(&name, 6, r#","from":"/x""#)]));
    let library = store.library();
    library.note_pulled(&name, 5);
    assert_eq!(library.origin(&digest(&name)), Some(Origin::Made));
    for number in 0..2 * MOST_PULLED {
        library.note_pulled(&format!("sha256:{number:064x}"), 1);
    }
    assert_eq!(lock(&library.pulled).len(), MOST_PULLED);
}

#[test]
fn a_blob_is_had_while_a_manifest_names_it() {
    let store = Store::new();
    let (config, named) = (store.blob('0', b"0"), store.blob('a', b"12345"));
    let unnamed = store.blob('b', b"12345");
    let path = store.manifest(A, &manifest(&config, &[layer(&named, 5, "")]));
    let library = store.library();
    let blob = library.open(&digest(&named)).unwrap();
    assert_eq!((blob.size, blob.file.metadata().unwrap().len()), (5, 5));
    assert_eq!(library.origin(&digest(&named)), Some(Origin::Pulled));
    assert!(library.open(&digest(&config)).is_some());
    assert!(library.open(&digest(&unnamed)).is_none());
    assert_eq!(library.look(), Ok(1));
    fs::remove_file(path).unwrap();
    *lock(&library.read) = None;
    assert!(library.open(&digest(&named)).is_none(), "its model was removed");
    assert_eq!(library.look(), Ok(0));
}

#[test]
fn what_was_made_here_is_told_apart() {
    let store = Store::new();
    let config = store.blob('0', b"0");
    let [own, shared] = ['a', 'b'].map(|digit| store.blob(digit, b"12345"));
    let from = r#","from":"/home/me/\"secret\"/model.gguf""#;
    let made = manifest(&config, &[layer(&own, 5, from), layer(&shared, 5, "")]);
    store.manifest("registry.ollama.ai/library/made/latest", &made);
    let pulled = manifest(&shared, &[]);
    store.manifest("hf.co/me/pulled/q4", &pulled);
    let library = store.library();
    let origin = |text: &str| library.origin(&digest(text));
    assert_eq!(origin(&own), Some(Origin::Made));
    assert_eq!(origin(&config), Some(Origin::Made));
    assert_eq!(library.origin(&digest(&shared)), Some(Origin::Pulled), "of a pulled model as well");
    let of = |name: &str| without_paths(&library.manifest(&ModelName::parse(name).unwrap())?);
    let want = manifest(&config, &[layer(&own, 5, ""), layer(&shared, 5, "")]);
    assert_eq!(String::from_utf8(of("Made").unwrap()).unwrap(), want);
    assert_eq!(of("hf.co/me/pulled:q4"), Some(pulled.into_bytes()), "byte by byte");
    assert_eq!(of("other"), None);
}

#[cfg(unix)] // Making a link takes a right on Windows.
#[test]
fn nothing_leads_out_of_the_store() {
    let (store, outside) = (Store::new(), Store::new());
    let secret = outside.blob('a', b"12345");
    let text = manifest(&secret, &[layer(&secret, 5, "")]);
    let real = outside.manifest(A, &text);
    let blob = |digit: char| {
        (
            store.0.join(format!("blobs/sha256-{}", digit.to_string().repeat(64))),
            format!("sha256:{}", digit.to_string().repeat(64)),
        )
    };
    // A link in the place of a blob.
    let (path, linked) = blob('b');
    symlink(&real, &path).unwrap();
    // A folder, and what would make a reader wait.
    let (path, folder) = blob('c');
    fs::create_dir(path).unwrap();
    let (path, fifo) = blob('d');
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    // One that isn't whole.
    let short = store.blob('e', b"123");
    let all = [&linked, &folder, &fifo, &short];
    store.manifest(A, &manifest(&short, &all.map(|it| layer(it, 5, ""))));
    // Links in the place of a manifest and of the folders on the way to one.
    symlink(&real, store.0.join("manifests/registry.ollama.ai/library/a/linked")).unwrap();
    symlink(outside.0.join("manifests/registry.ollama.ai"), store.0.join("manifests/hf.co"))
        .unwrap();
    fs::copy(outside.0.join(format!("blobs/sha256-{}", "a".repeat(64))), blob('a').0).unwrap();
    let library = store.library();
    for text in all.into_iter().chain([&secret]) {
        assert!(library.open(&digest(text)).is_none(), "{text}");
    }
    assert_eq!(library.look(), Ok(1));
    // All blobs are elsewhere.
    fs::remove_dir_all(store.0.join("blobs")).unwrap();
    symlink(outside.0.join("blobs"), store.0.join("blobs")).unwrap();
    store.manifest(A, &text);
    *lock(&library.read) = None;
    assert!(library.look().is_err());
    assert!(library.open(&digest(&secret)).is_none());
}

#[test]
fn manifests_of_nonsense_name_nothing() {
    let store = Store::new();
    let named = store.blob('a', b"12345");
    let good = layer(&named, 5, "");
    let odd = [
        String::new(),
        "null".to_owned(),
        "[]".to_owned(),
        "\u{0}".to_owned(),
        format!(r#"{{"layers":{good}}}"#),
        format!(r#"{{"layers":[[{good}]]}}"#),
        format!(r#"{{"layers":[{}]}}"#, layer(&named.replace(':', "-"), 5, "")),
        format!(r#"{{"layers":[{}]}}"#, layer(&named.to_uppercase(), 5, "")),
        format!(r#"{{"layers":[{}]}}"#, layer(&format!("{named}/../a"), 5, "")),
        format!(r#"{{"layers":[{{"digest":"{named}"}}]}}"#),
        format!(r#"{{"layers":[{{"digest":"{named}","size":-5}}]}}"#),
        format!(r#"{{"layers":[{{"digest":"{named}","size":"5"}}]}}"#),
        format!(r#"{{"layers":[{}]}}"#, vec![good.clone(); 5000].join(",")),
        format!("{}{}", "[".repeat(100_000), good),
        format!(r#"{{"layers":[{good}],"x":"{}"}}"#, "x".repeat(300_000)),
    ];
    for (at, text) in odd.iter().enumerate() {
        store.manifest(&format!("registry.ollama.ai/library/a/{at}"), text);
    }
    // At another depth, and hidden.
    let whole = manifest(&named, std::slice::from_ref(&good));
    for place in ["a", "h/a", "h/n/a", "h/n/m/t/a", "h/n/m/.a", ".h/n/m/t"] {
        store.manifest(place, &whole);
    }
    let library = store.library();
    assert_eq!(library.origin(&digest(&named)), None);
    assert_eq!(Library::at(vec![store.0.join("nowhere")]).origin(&digest(&named)), None);
}

#[test]
fn what_was_made_here_without_saying_of_what_is_told_apart_too() {
    let store = Store::new();
    let (config, layers) = (store.blob('0', b"0"), [store.blob('a', b"12345")]);
    let text = manifest(&config, &layers.each_ref().map(|digest| layer(digest, 5, "")));
    let path = store.manifest(A, &format!("{text}\n"));
    let library = store.library();
    let of = |library: &Library| {
        *lock(&library.read) = None;
        library.origin(&digest(&layers[0]))
    };
    assert_eq!(of(&library), Some(Origin::Made), "converted, or quantized");
    fs::write(&path, &text).unwrap();
    assert_eq!(of(&library), Some(Origin::Pulled));
    fs::write(&path, format!("{{ \"layers\": [{}] }}\n", layer(&layers[0], 5, ""))).unwrap();
    assert_eq!(of(&library), Some(Origin::Pulled), "a registry that writes lines");
}

#[test]
fn a_manifest_keeps_all_but_the_paths() {
    let layers = r#"{"mediaType":"t","digest":"d","size":1,"from":"/p","name":"a.b"}"#;
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"m","config":{{"mediaType":"c","digest":"e","size":2}},"layers":[{layers}],"runner":"mlx"}}"#
    );
    for end in ["", "\n"] {
        let told = manifests::without_paths(format!("{text}{end}").as_bytes()).unwrap();
        let want = format!("{}{end}", text.replace(r#","from":"/p""#, ""));
        assert_eq!(String::from_utf8(told).unwrap(), want);
    }
    for nonsense in ["", "1", "{}", r#"{"layers":1}"#, r#"{"manifests":[]}"#] {
        assert_eq!(manifests::without_paths(nonsense.as_bytes()), None, "{nonsense}");
    }
    let odd = r#"{"layers":[{"from":1},2]}"#.as_bytes();
    let told = manifests::without_paths(odd).unwrap();
    assert!(
        serde_json::from_slice::<serde_json::Value>(&told)
            .is_ok_and(|it| it["layers"][0] == serde_json::json!({}))
    );
}

#[cfg(unix)]
#[test]
fn newer_stores_have_links_to_manifests_among_their_blobs() {
    let (store, outside) = (Store::new(), Store::new());
    let (config, old) = (store.blob('0', b"0"), store.blob('a', b"12345"));
    let [new, listed, within] = ['b', 'c', 'd'].map(|digit| store.blob(digit, b"12345"));
    let of = |layers: &[&String]| {
        manifest(&config, &layers.iter().map(|it| layer(it, 5, "")).collect::<Vec<_>>())
    };
    let link = |at: &str, to: &str| {
        let path = store.0.join("manifests-v2").join(at);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(to, path).unwrap();
    };
    let name = |digest: &str| digest.replace(':', "-");
    // The same name is older in the other folder.
    store.manifest(A, &of(&[&old]));
    let text = store.blob('1', of(&[&new]).as_bytes());
    link(A, &format!("../../../../blobs/{}", name(&text)));
    // One that lists another, and has one within.
    let child = store.blob('2', of(&[&listed]).as_bytes());
    let list = format!(
        r#"{{"mediaType":"l","manifests":[{{"mediaType":"m","digest":"{child}"}},{}]}}"#,
        of(&[&within])
    );
    let list = store.blob('3', list.as_bytes());
    link("registry.ollama.ai/library/list/latest", &format!("/elsewhere/{}", name(&list)));
    // Links to what is no blob of this store.
    let secret = outside.blob('e', b"12345");
    let text = outside.blob('4', of(&[&secret]).as_bytes());
    link("h/n/outside/t", outside.0.join("blobs").join(name(&text)).to_str().unwrap());
    let path = outside.manifest(A, &of(&[&secret]));
    link("h/n/linked/t", path.to_str().unwrap());
    link("h/n/nowhere/t", &name(&format!("sha256:{}", "f".repeat(64))));

    let library = store.library();
    for digest_of in [&old, &new, &listed, &within] {
        assert_eq!(library.origin(&digest(digest_of)), Some(Origin::Pulled), "{digest_of}");
    }
    assert_eq!(library.origin(&digest(&secret)), None);
    let of_name = |name: &str| library.manifest(&ModelName::parse(name).unwrap());
    assert_eq!(of_name("a"), Some(of(&[&new]).into_bytes()));
    assert_eq!(of_name("list").and_then(|text| without_paths(&text)), None);
    assert_eq!(library.look(), Ok(2));
}

#[test]
fn names_of_blobs_are_strict() {
    let hex = "0123456789abcdef".repeat(4);
    assert!(Digest::parse(&format!("sha256:{hex}")).is_some());
    for bad in [
        String::new(),
        hex.clone(),
        format!("sha256-{hex}"),
        format!("SHA256:{hex}"),
        format!("sha512:{hex}"),
        format!("sha256:{}", hex.to_uppercase()),
        format!("sha256:{}", &hex[1..]),
        format!("sha256:{hex}0"),
        format!("sha256:{hex}-partial"),
        format!("sha256:../{}", &hex[3..]),
        format!("sha256:{}\u{e9}", &hex[2..]),
        format!(" sha256:{hex}"),
    ] {
        assert_eq!(Digest::parse(&bad), None, "{bad:?}");
    }
}

#[test]
fn a_store_that_cannot_be_read_says_so() {
    let store = Store::new();
    let late = Library::at(vec![store.0.join("none"), store.0.join("late")]);
    assert!(late.look().unwrap_err().contains("there is no such folder"), "nowhere yet");
    assert!(late.problem().is_some());
    fs::create_dir(store.0.join("late")).unwrap();
    assert_eq!((late.look(), late.problem()), (Ok(0), None), "Ollama has made it");
    fs::remove_dir(store.0.join("blobs")).unwrap();
    assert_eq!(store.library().look(), Ok(0), "as new");
    fs::write(store.0.join("blobs"), "no folder").unwrap();
    let error = store.library().look().unwrap_err();
    assert!(
        error.contains(store.0.to_str().unwrap()) && error.contains("OLLAMA_MODELS"),
        "{error}"
    );
    fs::remove_file(store.0.join("blobs")).unwrap();
    #[cfg(unix)]
    if !rustix::process::geteuid().is_root() {
        fs::create_dir(store.0.join("manifests")).unwrap();
        fs::set_permissions(store.0.join("manifests"), fs::Permissions::from_mode(0o0)).unwrap();
        assert!(store.library().look().is_err());
    }
}
