//! Mutations of valid inputs against the properties of `tests/fuzz/properties.rs`: a short fuzzing run on
//! any compiler. The same seed gives the same inputs.
//!
//! - `OLLANA_FUZZ_SEED=n` starts elsewhere; a failure prints the seed and the input;
//! - `OLLANA_FUZZ_CASES=n` tries so many per target;
//! - `OLLANA_FUZZ_SEEDS=dir` makes the test `seeds` write the valid inputs for `cargo fuzz`.

use std::fmt::Write as _;

#[path = "fuzz/properties.rs"]
mod properties;

const HEADS: &[&[u8]] = &[
    b"GET / HTTP/1.0\nHost: localhost\nA: b\n\n",
    b"GET http://[fe80::1%eth0]:1/a?b=\"c\" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /api/tags?x=%20&y=|{} HTTP/1.0\r\nConnection: keep-alive\r\n\r\nrest",
    b"OPTIONS * HTTP/1.1\r\nHost: [::1]:11434\r\nOrigin: http://x\r\n\r\n",
    b"POST /api/chat HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n",
    b"POST /v1/messages HTTP/1.1\r\nhost:a\r\nContent-Length: 12\r\nX-A: 1\r\nx-a:  2 \r\nX: \xe9\r\n\r\n",
    b"DELETE /api/delete HTTP/1.1\r\nHost: a\r\nConnection: close, x-hop\r\nX-Hop: 1\r\nVia: 1.1 b\r\n\r\n",
    b"HEAD /api/blobs/sha256:00 HTTP/1.1\r\nHost:\r\nX-Empty:\r\nTE: trailers\r\nUpgrade: h2c\r\n\r\n",
];
const BODIES: &[&[u8]] = &[
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5;a=\"b\" ;c\r\nhello\r\n00006\r\n world\r\n0\r\nX: y\r\nZ: \xe9\r\n\r\nGET / HTTP/1.1\r\n",
    b"0\r\n\r\n",
    b"1\r\na\r\n1\r\nb\r\n1F\r\n0123456789012345678901234567890\r\n000;x\r\nA:\r\n\r\n",
    b"80\r\n0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\
      0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\r\n0\r\n\r\n",
];
const HOSTS: &[&[u8]] = &[
    b"localhost:11434",
    b"[fe80::1%25eth0]:11434",
    b"[::1]:1",
    b"192.168.1.5",
    b"box.",
    b"GPU.example.com:443",
    b"a.b.home.arpa",
    b"pi.local",
    b"evil.com",
];
const SUBJECTS: &[&[u8]] = &[
    br#"{"model":"llama3.2:1b","messages":[{"role":"user","content":"hi \u00e9\n"}],"stream":true}"#,
    br#"{"name":"old","keep_alive":"0s","options":{"a":[1,2.5e3,null]},"prompt":"x"}"#,
    br#"{"images":["AAAA"],"model":"m","keep_alive":0,"system":"be nice"}"#,
    br#"{"Model":"a","x":["\\\"",{"model":"b"}],"MODEL":"c","\u006eame":"d","source":""}"#,
];
const FORMS: &[&[u8]] = &[
    b"--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n\0\r\n--\r\n\
      --b\r\ncontent-disposition: form-data;\r\n name=model\r\n\r\nm:1b\r\n--b--\r\n",
    b"x\n--b \nContent-Disposition:form-data;name=\"mod\\el\"\n\nm\n--b--",
];
const LISTS: &[&[u8]] = &[
    b"{\"models\":[{\"name\":\"a:latest\",\"model\":\"a:latest\",\"digest\":\"1\",\"modified_at\":\"2026\"},\
      {\"name\":\"b\"}]}\0{\"models\":[{\"name\":\"a:latest\",\"digest\":\"1\"}]}",
    b"{\"object\":\"list\",\"data\":[{\"id\":\"a\",\"created\":5}]}\0{\"data\":[{\"id\":\"a\"},{\"id\":\"b\",\"created\":-1e9}]}",
    b"{\"models\":[1,null,[],{},{\"name\":{}},{\"model\":\"\\u0000\\ud83d\\ude00\"}]}",
];
/// Pieces that mean something to one of the readers.
const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\r",
    b"\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b"chunked",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 5\r\n",
    b"Host: b\r\n",
    b"Connection: host\r\n",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"ffffffffffffffff",
    b"100-continue",
    b"\x7f",
    b"\xff",
    b"[",
    b"]",
    b".local",
    b"127.0.0.1",
    b"\"",
    b"\\",
    b"\\u0022",
    b"{",
    b"}",
    b"\"model\":",
    b"--b",
    b"; name=\"model\"",
    b"\"Model\":\"m\",",
    b"null",
    b"#",
    b"http://",
    b"*",
    b"%00",
    b"+",
    b"-",
];

fn datagrams() -> Vec<Vec<u8>> {
    use ollana::discovery::packet::{Datagram, Kind, PROBE_LEN, encode_legacy};
    use ollana::ollama::version::OllamaVersion;
    use ollana::pairing::identity::Identity;
    let of = |kind, name: &str| Datagram {
        kind,
        nonce: *b"0123456789abcdef",
        sender: Identity(*b"ABCDEFGHIJKLMNOP"),
        http_port: 11435,
        flags: 17,
        capabilities: 0,
        version: OllamaVersion::parse("0.13.1"),
        in_flight: 7,
        instance: 0xDEAD_BEEF,
        name: name.to_owned(),
        key: None,
    };
    vec![
        encode_legacy().to_vec(),
        of(Kind::Probe, "").encode(PROBE_LEN),
        of(Kind::Announce, "b\u{e4}r").encode(PROBE_LEN),
        of(Kind::Goodbye, "a name of some length").encode(80),
    ]
}

fn introductions() -> Vec<Vec<u8>> {
    use ollana::pairing::identity::Identity;
    use ollana::pairing::noise::{Introduction, Purpose};
    let who = Introduction { name: "b\u{e4}r".to_owned(), ..Introduction::of(Identity([7; 16])) };
    [Purpose::Requests, Purpose::Pairing].map(|purpose| who.encode(purpose)).to_vec()
}

/// Nothing laid over each of the true messages, and something else in the place of each.
fn handshakes() -> Vec<Vec<u8>> {
    use ollana::pairing::noise::Purpose;
    let lengths = |purpose: Purpose| [purpose.hello_len(), purpose.reply_len()];
    let all = [lengths(Purpose::Requests), lengths(Purpose::Pairing)];
    let of = |how: u8| {
        let len = all[usize::from(how & 1)][usize::from(how >> 1 & 1)];
        let mut message = vec![0; 1 + len];
        message[0] = how;
        if how < 4 {
            message[1..5].copy_from_slice(&[0xF5, b'L', b'N', 1 + (how & 1)]);
        }
        message
    };
    (0..8).map(of).collect()
}

/// See `properties::records`.
const RECORDS: &[&[u8]] = &[
    b"\x00\x00\x05\x07\x03\x00\x00\x01\xff\x07\x10\x02\x00",
    b"\x03\x00\x01\x00\x02\x07\xff\x00\x03\x03\x11\x02\x00",
    b"\x05\x01\xff\x01\xff\x07\xff\x04\x00\x00\x09\x02\x00",
    b"\x06\x00\x20\x06\x00\x02\x00",
    b"\x07\x00\x20\x02\x00\x05\x30\x00\x10",
    b"\x02\x01\x30\x07\x01\x07\x01\x07\x01",
];

fn owned(inputs: &[&[u8]]) -> Vec<Vec<u8>> {
    inputs.iter().map(|input| input.to_vec()).collect()
}

/// xorshift64*: good enough to pick bytes, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `n`, which is at least 1.
    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }
}

fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut input = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(input.len() + 1);
        let end = at + random.below(input.len() - at + 1).min(1 + random.below(32));
        let byte = (random.next() >> 40) as u8;
        match random.below(8) {
            0 if at < input.len() => input[at] = byte,
            1 if at < input.len() => input[at] ^= 1 << random.below(8),
            2 => drop(input.drain(at..end)),
            3 => {
                let copy = input[at..end].repeat(1 + random.below(3));
                input.splice(at..at, copy).for_each(drop);
            }
            4 => {
                let other = &seeds[random.below(seeds.len())];
                input.truncate(at);
                input.extend_from_slice(&other[random.below(other.len() + 1)..]);
            }
            5 => input.truncate(at),
            6 if random.below(50) == 0 => input.splice(at..at, vec![byte; 5000]).for_each(drop),
            _ => {
                let word = WORDS[random.below(WORDS.len())];
                let replaced = if random.below(2) == 0 { at..at } else { at..end };
                input.splice(replaced, word.iter().copied()).for_each(drop);
            }
        }
    }
    input
}

/// Says which input it was when a property panics.
struct Culprit<'a> {
    seed: u64,
    case: u64,
    input: &'a [u8],
}

impl Drop for Culprit<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut hex = String::new();
            for byte in self.input {
                let _ = write!(hex, "{byte:02x}");
            }
            let text = String::from_utf8_lossy(self.input);
            eprintln!("OLLANA_FUZZ_SEED={} case {}: {text:?}\nhex {hex}", self.seed, self.case);
        }
    }
}

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn fuzz(cases: u64, seeds: &[Vec<u8>], property: fn(&[u8])) {
    let seed = variable("OLLANA_FUZZ_SEED", 0x5EED);
    // Zero would stay zero.
    let mut random = Random(seed.max(1));
    for input in seeds {
        property(input);
    }
    for case in 0..variable("OLLANA_FUZZ_CASES", cases) {
        let input = mutate(&mut random, seeds);
        let _culprit = Culprit { seed, case, input: &input };
        property(&input);
    }
}

#[test]
fn datagrams_mean_one_thing_or_nothing() {
    fuzz(100_000, &datagrams(), properties::datagram);
}

#[test]
fn heads_mean_the_same_to_the_next_hop_or_nothing() {
    fuzz(60_000, &owned(HEADS), properties::head);
}

#[test]
fn chunks_mean_the_same_in_all_pieces_or_nothing() {
    fuzz(80_000, &owned(BODIES), properties::chunks);
}

#[test]
fn hosts_are_ours_by_two_readings() {
    fuzz(100_000, &owned(HOSTS), properties::host);
}

#[test]
fn bodies_tell_their_model_within_bounds() {
    fuzz(80_000, &owned(SUBJECTS), properties::subject);
}

#[test]
fn forms_tell_their_model_within_bounds() {
    fuzz(40_000, &owned(FORMS), properties::form);
}

#[test]
fn merged_lists_are_json_and_say_nothing_new() {
    fuzz(20_000, &owned(LISTS), properties::lists);
}

#[test]
fn introductions_mean_one_thing_or_nothing() {
    fuzz(100_000, &introductions(), properties::introduction);
}

#[test]
fn handshakes_take_one_message_only() {
    fuzz(1_000, &handshakes(), properties::handshake);
}

#[test]
fn records_give_what_was_said_up_to_the_first_damage() {
    fuzz(3_000, &owned(RECORDS), properties::records);
}

#[test]
fn seeds() {
    let Some(folder) = std::env::var_os("OLLANA_FUZZ_SEEDS").map(std::path::PathBuf::from) else {
        return;
    };
    for (target, inputs) in [
        ("datagram", datagrams()),
        ("head", owned(HEADS)),
        ("chunks", owned(BODIES)),
        ("host", owned(HOSTS)),
        ("subject", owned(SUBJECTS)),
        ("form", owned(FORMS)),
        ("lists", owned(LISTS)),
        ("introduction", introductions()),
        ("handshake", handshakes()),
        ("records", owned(RECORDS)),
    ] {
        let folder = folder.join(target);
        std::fs::create_dir_all(&folder).expect("a folder for seeds");
        for (number, input) in inputs.iter().enumerate() {
            std::fs::write(folder.join(number.to_string()), input).expect("a seed");
        }
    }
}
