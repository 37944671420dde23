//! Thousands of made-up requests and answers, each sent to the fake directly and through the
//! daemons: the Ollama and the client must see the same both times.
//!
//! What may differ is what a hop owns: Host, Via, X-Ollana-Server, the fields that Connection names,
//! and the framing of an answer whose length nobody declared.

mod support;

use std::collections::{BTreeMap, HashSet};

use support::{Answer, Call, Client, End, Fake, Head, Random, Record, Way, chunk};

const CASES: u64 = 2000;

/// Fields that concern one hop alone, or that a hop adds.
const OWN: &[&str] = &[
    "host",
    "via",
    "x-ollana-server",
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "content-length",
];

/// End-to-end fields: the values of each name in order.
type Fields = BTreeMap<String, Vec<Vec<u8>>>;

fn end_to_end(head: &Head) -> Fields {
    let named: HashSet<String> = head
        .all("connection")
        .iter()
        .flat_map(|value| value.split(','))
        .map(|token| token.trim().to_ascii_lowercase())
        .collect();
    let mut fields = Fields::new();
    for (name, value) in &head.fields {
        if !OWN.contains(&name.as_str()) && !named.contains(name) {
            fields.entry(name.clone()).or_default().push(value.clone());
        }
    }
    fields
}

/// What the Ollama must see alike.
#[derive(Debug, PartialEq)]
struct Seen {
    start: [String; 3],
    fields: Fields,
    length: Option<usize>,
    is_chunked: bool,
    body: Vec<u8>,
}

impl Seen {
    fn of(record: Record) -> Self {
        let mut start = record.head.start.clone();
        start[2] = String::new(); // An HTTP/1.0 client's request is passed on as 1.1.
        Seen {
            start,
            fields: end_to_end(&record.head),
            length: record.head.length(),
            is_chunked: record.head.is_chunked(),
            body: record.body,
        }
    }
}

/// What the client must see alike.
#[derive(Debug, PartialEq)]
struct Got {
    status: u16,
    fields: Fields,
    length: Option<usize>,
    body: Vec<u8>,
    end: End,
}

impl Got {
    fn of(answer: &Answer) -> Self {
        // The body's own length is compared with the body; what HEAD and 304 declare stays.
        let has_body = !answer.body.is_empty();
        Got {
            status: answer.status(),
            fields: end_to_end(&answer.head),
            length: answer.head.length().filter(|_| !has_body).filter(|length| *length > 0),
            body: answer.body.clone(),
            end: answer.end,
        }
    }
}

fn token(random: &mut Random) -> String {
    const CHARACTERS: &[u8] = b"abcXYZ019!#$%&'*+-.^_`|~";
    let mut text = String::from("X-");
    (0..1 + random.below(12)).for_each(|_| text.push(char::from(*random.pick(CHARACTERS))));
    text
}

fn value(random: &mut Random) -> Vec<u8> {
    let len = match random.below(20) {
        0 => 0,
        1 => 2000,
        _ => random.below(40),
    };
    let mut value: Vec<u8> = (0..len)
        .map(|_| match random.below(12) {
            0 => b' ',
            1 => b'\t',
            2 => 0x80 + random.below(128) as u8,
            _ => 0x21 + random.below(94) as u8,
        })
        .collect();
    // Blanks around a value aren't part of it.
    value = value.trim_ascii().to_vec();
    value
}

/// Field lines of all sorts; about one in four concerns this hop alone.
fn fields(random: &mut Random, out: &mut Vec<u8>) {
    let mut names: Vec<String> = Vec::new();
    for _ in 0..random.below(12) {
        let name = match random.below(8) {
            0 if !names.is_empty() => random.pick(&names).to_ascii_lowercase(),
            1 => random.pick(&["Accept", "Cookie", "User-Agent", "Referer"]).to_string(),
            2 => random.pick(&["Keep-Alive", "Proxy-Connection", "TE", "Upgrade"]).to_string(),
            _ => token(random),
        };
        out.extend_from_slice(format!("{name}:{}", random.pick(&[" ", "", "  ", "\t"])).as_bytes());
        out.extend_from_slice(&value(random));
        out.extend_from_slice(b"\r\n");
        names.push(name);
    }
    if random.is_one_in(4) && !names.is_empty() {
        let line = format!("Connection: {}, x-none\r\n", random.pick(&names));
        out.extend_from_slice(line.as_bytes());
    }
}

fn body(random: &mut Random) -> Vec<u8> {
    let len = match random.below(30) {
        0 => 150_000,
        1..=3 => random.below(20_000),
        _ => random.below(500),
    };
    random.bytes(len)
}

fn chunks(random: &mut Random, mut body: &[u8], out: &mut Vec<u8>) {
    while !body.is_empty() {
        let most = body.len().min(1 << random.below(16));
        let n = 1 + random.below(most);
        out.extend_from_slice(&chunk(&body[..n]));
        body = &body[n..];
    }
    out.extend_from_slice(b"0\r\n\r\n");
}

fn target(random: &mut Random) -> String {
    const CHARACTERS: &[u8] = b"abz09/?&=%-._~!$'()*+,;:@{}|[]";
    let known = ["/api/chat", "/api/pull", "/v1/chat/completions", "/api/blobs/sha256:0", "/"];
    let mut text = match random.below(3) {
        0 => random.pick(&known).to_string(),
        _ => "/".to_owned(),
    };
    (0..random.below(40)).for_each(|_| text.push(char::from(*random.pick(CHARACTERS))));
    // Other spellings of a known path are redirected.
    let path = text.split('?').next().unwrap_or_default();
    let plain = path.trim_end_matches(['/', '.']);
    if path == "/" || path == plain { text } else { text.replacen(path, &format!("{plain}/x"), 1) }
}

/// A request, and its method.
fn request(case: u64) -> (String, Vec<u8>) {
    let mut random = Random::new(case);
    let methods = ["GET", "POST", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "FROB"];
    let method = *random.pick(&methods);
    let version = if random.is_one_in(12) { "1.0" } else { "1.1" };
    let target = target(&mut random);
    let mut out =
        format!("{method} {target} HTTP/{version}\r\nHost: 127.0.0.1\r\nCase: {case}\r\n");
    let mut head = Vec::new();
    fields(&mut random, &mut head);
    let body = body(&mut random);
    let framing = if method == "HEAD" { 0 } else { random.below(3) };
    let mut bytes = Vec::new();
    match (framing, version) {
        (1, _) | (2, "1.0") => {
            out.push_str(&format!("Content-Length: {}\r\n", body.len()));
            bytes = body;
        }
        (2, _) => {
            out.push_str("Transfer-Encoding: chunked\r\n");
            chunks(&mut random, &body, &mut bytes);
        }
        _ => {}
    }
    (method.to_owned(), [out.as_bytes(), &head, b"\r\n", &bytes].concat())
}

/// The answer that belongs to a case: its bytes, and whether the connection ends with it.
fn answer(case: u64, is_head: bool) -> (Vec<u8>, bool) {
    let mut random = Random::new(case ^ 0xA5A5_A5A5);
    let statuses = ["200 OK", "200 OK", "200 OK", "201 Created", "204 No Content", "206 Part"];
    let others = ["301 Moved", "304 Not Modified", "404 Not Found", "418 Tea", "500 Oops"];
    let status = if random.is_one_in(3) { *random.pick(&others) } else { *random.pick(&statuses) };
    let mut out = Vec::new();
    if random.is_one_in(10) {
        out.extend_from_slice(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n");
    }
    out.extend_from_slice(format!("HTTP/1.1 {status}\r\n").as_bytes());
    fields(&mut random, &mut out);
    let body = body(&mut random);
    let is_bodyless = is_head || status.starts_with("204") || status.starts_with("304");
    let framing = if status.starts_with("204") { 3 } else { random.below(3) };
    match framing {
        0 => {
            out.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
            if !is_bodyless {
                out.extend_from_slice(&body);
            }
        }
        1 => {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            if !is_bodyless {
                chunks(&mut random, &body, &mut out);
            }
        }
        2 if !is_bodyless => {
            out.extend_from_slice(b"\r\n");
            out.extend_from_slice(&body);
            return (out, true);
        }
        _ => out.extend_from_slice(b"\r\n"),
    }
    (out, random.is_one_in(10))
}

/// Sends bytes in pieces, so that they don't always arrive as they were written.
fn in_pieces(random: &mut Random, mut bytes: &[u8], mut send: impl FnMut(&[u8])) {
    while !bytes.is_empty() {
        let n = if random.is_one_in(3) { 1 + random.below(bytes.len()) } else { bytes.len() };
        send(&bytes[..n]);
        bytes = &bytes[n..];
    }
}

fn script(call: &mut Call<'_>) {
    let case = call.head.one("case").and_then(|case| case.parse().ok()).expect("a case's number");
    call.read_body();
    let (bytes, ends) = answer(case, call.head.method() == "HEAD");
    let mut random = Random::new(case ^ 0x5A5A);
    in_pieces(&mut random, &bytes, |piece| {
        call.send(piece);
    });
    if ends {
        call.close();
    }
}

/// Sends all cases one after the other, on kept connections where they are kept.
fn run(address: std::net::SocketAddr, fake: &Fake) -> Vec<(Seen, Got)> {
    let mut client = Client::connect(address);
    let mut results = Vec::new();
    for case in 0..CASES {
        let (method, bytes) = request(case);
        let index = fake.count();
        let mut random = Random::new(case ^ 0x3C3C);
        in_pieces(&mut random, &bytes, |piece| client.send(piece));
        let answer = client.answer_to(&method);
        let got = Got::of(&answer);
        assert_eq!(
            fake.count(),
            index + 1,
            "case {case}: {method} reached the Ollama how often? {}",
            answer.text()
        );
        results.push((Seen::of(fake.request(index)), got));
        let (_, closes) = self::answer(case, method == "HEAD");
        let is_old = bytes.windows(10).take(100).any(|ten| ten == b" HTTP/1.0\r");
        let says_close = answer.head.all("connection").iter().any(|value| value == "close");
        if closes || is_old || says_close {
            client = Client::connect(address);
        }
    }
    results
}

#[test]
fn the_daemons_change_nothing_that_is_not_theirs() {
    let fake = Fake::unlike_ollama(script);
    let direct = run(fake.address, &fake);
    for way in Way::ALL {
        let fake = Fake::unlike_ollama(script);
        let chain = way.to(&fake);
        let through = run(chain.address(), &fake);
        for (case, (direct, through)) in direct.iter().zip(&through).enumerate() {
            assert_eq!(through.1, direct.1, "{way:?} case {case}: the client, through and direct");
            let (mut through, direct) = (&through.0, &direct.0);
            let adjusted;
            // A POST without a body gets the length that says so.
            if direct.length.is_none() && through.length == Some(0) && !direct.is_chunked {
                adjusted = Seen {
                    length: None,
                    start: through.start.clone(),
                    fields: through.fields.clone(),
                    is_chunked: false,
                    body: through.body.clone(),
                };
                through = &adjusted;
            }
            assert_eq!(through, direct, "{way:?} case {case}: the Ollama, through and direct");
        }
    }
}
