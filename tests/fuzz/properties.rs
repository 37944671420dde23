//! What must hold for every input that comes from the network. Each function panics where it
//! doesn't; shared by the fuzz targets and by `tests/fuzz.rs`.

use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue};
use ollana::access::host::HostRule;
use ollana::discovery::packet::{self, Packet};
use ollana::http::body::{ChunkDecoder, Step};
use ollana::http::fields;
use ollana::http::head::{self, Framing, Head, HeadLimits, Refusal};
use ollana::ollama::endpoints::List;
use ollana::ollama::inventory::{Inventory, merged};
use ollana::ollama::subject::{self, FormScan, Scan};
use ollana::pairing::identity::MAX_NAME;
use ollana::pairing::identity::{Identity, KeyId};
use ollana::pairing::noise::{self, Established, FIRST_BYTE, Introduction, Key, OVERHEAD, Purpose};
use ollana::pairing::stream::Stream;
use ollana::upstream;

/// A datagram is refused, or means the same after it was encoded again, in no more room.
pub(crate) fn datagram(input: &[u8]) {
    let datagram = match packet::decode(input) {
        Err(_) => return,
        Ok(Packet::Legacy) => return assert_eq!(input, packet::encode_legacy()),
        Ok(Packet::V1(datagram)) => datagram,
    };
    assert!((packet::FIXED_LEN..=packet::MAX_LEN).contains(&input.len()));
    assert_eq!(input[6..8], (input.len() as u16).to_be_bytes(), "the length field");
    assert!(input.starts_with(b"LANA\x01") && input[56..64] == [0; 8]);
    assert!(datagram.name.len() <= MAX_NAME && !datagram.name.contains(char::is_control));
    let again = packet::decode(&datagram.encode(packet::PROBE_LEN));
    assert_eq!(again.as_ref(), Ok(&Packet::V1(datagram.clone())));
    let answer = datagram.encode(input.len());
    assert!(answer.len() <= input.len() && answer.len() <= packet::PROBE_LEN, "no amplification");
    let Ok(Packet::V1(short)) = packet::decode(&answer) else { panic!("{answer:02x?}") };
    assert!(datagram.name.starts_with(&short.name));
}

/// A head is refused, or means the same to the next hop; and it doesn't matter in which pieces
/// it comes.
pub(crate) fn head(input: &[u8]) {
    const LIMITS: HeadLimits = HeadLimits { max_bytes: 4096, max_fields: 100 };
    let at_once = head::find_end(input, 0, LIMITS);
    for step in [1, 2, 3, 7, 64, 4096] {
        let in_pieces = find_end_in_pieces(input, step, LIMITS);
        assert_eq!(in_pieces.is_err(), at_once.is_err(), "{in_pieces:?} in pieces of {step}");
        assert!(at_once.is_err() || in_pieces == at_once, "{in_pieces:?} in pieces of {step}");
    }
    let Ok(Some(len)) = at_once else { return };
    let bytes = &input[..len];
    assert!(!bytes.contains(&0));
    let feeds = bytes.iter().filter(|byte| **byte == b'\n').count();
    let ends = bytes.windows(2).filter(|pair| pair == b"\r\n").count();
    let returns = bytes.iter().filter(|byte| **byte == b'\r').count();
    assert_eq!(ends, returns, "a bare CR");
    let Ok(head) = head::parse(bytes, LIMITS) else { return };
    if ends == 0 {
        assert!(bytes.ends_with(b"\n\n"));
        assert_eq!(head.framing, Framing::Empty);
        assert!(!head.fields.contains_key(CONTENT_LENGTH), "a body behind bare line feeds");
    } else {
        assert!(bytes.ends_with(b"\r\n\r\n"));
        assert_eq!(ends, feeds, "a bare LF");
    }
    means_the_same_to_the_next_hop(&head);
}

/// As a connection does it: whatever was looked at before isn't looked at again.
fn find_end_in_pieces(
    input: &[u8],
    step: usize,
    limits: HeadLimits,
) -> Result<Option<usize>, Refusal> {
    let mut scanned = 0;
    while scanned < input.len() {
        let received = input.len().min(scanned + step);
        match head::find_end(&input[..received], scanned, limits) {
            Ok(None) => scanned = received,
            found => return found,
        }
    }
    Ok(None)
}

fn means_the_same_to_the_next_hop(head: &Head) {
    let address = SocketAddr::from(([127, 0, 0, 1], 11434));
    let uri = upstream::build_uri(address, "", &head.target).expect("an accepted target");
    assert_eq!(uri.authority().map(|a| a.as_str()), Some("127.0.0.1:11434"));
    let target = uri.path_and_query().expect("a path").as_str();
    assert_eq!(target, head.target);
    let mut passed_on = head.fields.clone();
    fields::prepare_request(&mut passed_on, &fields::via_value(7));
    for name in [CONTENT_LENGTH, TRANSFER_ENCODING, HOST, http::header::CONNECTION] {
        assert!(!passed_on.contains_key(&name), "{name} was passed on");
    }
    passed_on.insert(HOST, HeaderValue::from_static("127.0.0.1:11434"));
    match head.framing {
        Framing::Empty => None,
        Framing::Length(length) => passed_on.insert(CONTENT_LENGTH, HeaderValue::from(length)),
        Framing::Chunked => {
            passed_on.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"))
        }
    };
    let text = serialise(head.method.as_str(), target, &passed_on);
    let limits = HeadLimits { max_bytes: 1 << 20, max_fields: ollana::http::head::MAX_FIELDS };
    assert_eq!(head::find_end(&text, 0, limits), Ok(Some(text.len())), "one head, no more");
    let again = head::parse(&text, limits).expect("what we write, we accept");
    assert_eq!(again.method, head.method);
    assert_eq!(again.target, head.target);
    assert_eq!(again.framing, head.framing);
    assert_eq!(again.fields, passed_on);
}

fn serialise(method: &str, target: &str, fields: &HeaderMap) -> Vec<u8> {
    let mut text = format!("{method} {target} HTTP/1.1\r\n").into_bytes();
    for (name, value) in fields {
        text.extend_from_slice(name.as_str().as_bytes());
        text.extend_from_slice(b": ");
        text.extend_from_slice(value.as_bytes());
        text.extend_from_slice(b"\r\n");
    }
    text.extend_from_slice(b"\r\n");
    text
}

/// What a decoder makes of a body.
#[derive(Debug, PartialEq, Eq)]
enum Decoded {
    /// Its data, and how many bytes it took.
    Whole(Vec<u8>, usize),
    Unfinished(Vec<u8>),
    Refused(Vec<u8>),
}

/// A chunked body means the same in whatever pieces it comes, and the same as to a decoder that
/// reads it line by line.
pub(crate) fn chunks(input: &[u8]) {
    let at_once = decode_in_pieces(input, usize::MAX);
    for piece in [1, 2, 3, 5, 16, 61] {
        assert_eq!(decode_in_pieces(input, piece), at_once, "in pieces of {piece}");
    }
    let by_lines = decode_by_lines(input);
    if by_lines == at_once {
        return;
    }
    // Ours may see sooner that an unfinished line is wrong: then no end makes it right.
    let (Decoded::Refused(_), Some(Decoded::Unfinished(_))) = (&at_once, Some(&by_lines)) else {
        panic!("{at_once:?}, but line by line {by_lines:?}");
    };
    for end in ["\n", "\r\n", "\r\n\r\n", "0\r\n\r\n", "\r\n0\r\n\r\n", ":\r\n\r\n", ": x\r\n\r\n"]
    {
        let finished = decode_by_lines(&[input, end.as_bytes()].concat());
        assert!(!matches!(finished, Decoded::Whole(..)), "refused, but {end:?} makes it whole");
    }
}

fn decode_in_pieces(input: &[u8], piece: usize) -> Decoded {
    let mut decoder = ChunkDecoder::default();
    let mut data = Vec::new();
    let mut at = 0;
    while at < input.len() {
        let window = &input[at..input.len().min(at.saturating_add(piece))];
        match decoder.step(window) {
            Ok(Step::Data { skip, len }) => {
                assert!(len > 0 && skip + len <= window.len());
                data.extend_from_slice(&window[skip..skip + len]);
                at += skip + len;
            }
            Ok(Step::More) => at += window.len(),
            Ok(Step::End { skip }) => {
                assert!(skip <= window.len());
                return Decoded::Whole(data, at + skip);
            }
            Err(_) => return Decoded::Refused(data),
        }
    }
    Decoded::Unfinished(data)
}

/// RFC 9112 §7.1 with our limits: 15 digits, 255 bytes of size line, 8 KiB of trailers.
fn decode_by_lines(input: &[u8]) -> Decoded {
    let mut data = Vec::new();
    let mut rest = input;
    let mut trailers = None;
    loop {
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            return Decoded::Unfinished(data);
        };
        let (Some(line), after) = (rest[..end].strip_suffix(b"\r"), &rest[end + 1..]) else {
            return Decoded::Refused(data);
        };
        rest = after;
        if let Some(taken) = trailers {
            let taken = taken + end + 1;
            if taken > 8 * 1024 + 1 || (!line.is_empty() && !is_field(line)) {
                return Decoded::Refused(data);
            }
            if line.is_empty() {
                return Decoded::Whole(data, input.len() - rest.len());
            }
            trailers = Some(taken);
            continue;
        }
        match size_of(line) {
            None => return Decoded::Refused(data),
            Some(0) => trailers = Some(0),
            Some(size) => {
                let size = usize::try_from(size).unwrap_or(usize::MAX);
                if rest.len() < size {
                    data.extend_from_slice(rest);
                    return Decoded::Unfinished(data);
                }
                data.extend_from_slice(&rest[..size]);
                rest = &rest[size..];
                match rest {
                    [b'\r', b'\n', after @ ..] => rest = after,
                    [] | [b'\r'] => return Decoded::Unfinished(data),
                    _ => return Decoded::Refused(data),
                }
            }
        }
    }
}

fn size_of(line: &[u8]) -> Option<u64> {
    let end = line.iter().position(|byte| *byte == b';').unwrap_or(line.len());
    let (digits, extension) = line.split_at(end);
    let is_plain = extension.iter().all(|byte| matches!(byte, b'\t' | 0x20..=0x7e));
    let is_short = line.len() <= 255 && digits.len() <= 15;
    let is_size = is_plain && is_short && digits.iter().all(u8::is_ascii_hexdigit);
    let digits = std::str::from_utf8(digits).ok().filter(|_| is_size)?;
    u64::from_str_radix(digits, 16).ok()
}

fn is_field(line: &[u8]) -> bool {
    let is_token = |byte: &u8| byte.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(byte);
    let Some(colon) = line.iter().position(|byte| *byte == b':') else { return false };
    let (name, value) = line.split_at(colon);
    let is_value = value.iter().all(|byte| *byte == b'\t' || (*byte >= 0x20 && *byte != 0x7f));
    !name.is_empty() && name.iter().all(is_token) && is_value
}

/// A `Host` is allowed if, by another reading of it, it is an address or a name of this machine.
pub(crate) fn host(input: &[u8]) {
    const NAMES: [&str; 2] = ["box", "gpu.example.com"];
    let rule = HostRule::new(NAMES.map(str::to_owned));
    let allowed = rule.allows(Some(input));
    assert_eq!(allowed, is_ours(input, &NAMES), "{:?}", String::from_utf8_lossy(input));
    assert_eq!(allowed, rule.allows(Some(&input.to_ascii_uppercase())));
    let with_port = [input, b":1"].concat();
    let has_port = !input.ends_with(b"]") && input.contains(&b':');
    assert!(!allowed || has_port || input.is_empty() || rule.allows(Some(&with_port)));
}

fn is_ours(host: &[u8], names: &[&str]) -> bool {
    if host.is_empty() {
        return true;
    }
    let Ok(host) = std::str::from_utf8(host) else { return false };
    let host = host.to_ascii_lowercase();
    // A bracket closes once; in front of a port there is one colon.
    let (name, port) = match host.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(None) => return false,
        Some(Some((name, ""))) => (name, ""),
        Some(Some((name, port))) if port.starts_with(':') => (name, &port[1..]),
        Some(Some(_)) => return false,
        None if host.matches(':').count() > 1 => return false,
        None => host.split_once(':').unwrap_or((&host, "")),
    };
    let is_bracketed = host.starts_with('[');
    let fits =
        |c: char| c.is_ascii_alphanumeric() || ".-_%".contains(c) || (c == ':' && is_bracketed);
    if !port.chars().all(|c| c.is_ascii_digit()) || name.is_empty() || !name.chars().all(fits) {
        return false;
    }
    let name = name.trim_end_matches('.');
    if let Some((address, zone)) = name.split_once('%') {
        return matches!(address.parse(), Ok(IpAddr::V6(_))) && !zone.is_empty();
    }
    let suffixes = ["localhost", "local", "lan", "home.arpa", "internal"];
    let is_below = |suffix: &str| {
        name.strip_suffix(suffix)
            .and_then(|rest| rest.strip_suffix('.'))
            .is_some_and(|r| !r.is_empty())
    };
    name.parse::<IpAddr>().is_ok()
        || name == "localhost"
        || suffixes.into_iter().any(is_below)
        || names.contains(&name)
}

/// Any body is scanned within bounds, in pieces of any size alike; of a whole one the model is what a
/// parser finds.
pub(crate) fn subject(input: &[u8]) {
    let subject = subject::subject(input);
    for text in [&subject.model, &subject.opening].into_iter().flatten() {
        assert!(text.len() < 2048, "{} bytes of text", text.len());
    }
    let names = &["model", "name", "source"];
    for size in [1, 2, 3, 7, 64] {
        let mut scan = Scan::new(names);
        input.chunks(size).for_each(|piece| scan.push(piece));
        assert_eq!(scan.subject(), subject, "pieces of {size}");
    }
    // Halves of pairs may be read in other ways by us.
    if input.windows(3).any(|escape| escape.eq_ignore_ascii_case(b"\\ud")) {
        return;
    }
    let Ok(serde_json::Value::Object(object)) = serde_json::from_slice(input) else { return };
    let mut told = Vec::new();
    for name in names {
        let is_it = |key: &str| key.to_lowercase().replace('\u{17f}', "s") == **name;
        let mut values = object.iter().filter(|(key, _)| is_it(key)).map(|(_, value)| value);
        match (values.next(), values.next()) {
            (None, _) => {}
            (Some(serde_json::Value::String(text)), None) if text.len() <= 512 => {
                told.extend(Some(text).filter(|text| !text.trim().is_empty()));
            }
            // Ollama refuses what isn't text; and the parser has lost the order of two spellings.
            _ => return,
        }
    }
    assert_eq!(subject.model.as_ref(), told.first().copied());
}

/// Any form is scanned within bounds, in pieces of any size alike.
pub(crate) fn form(input: &[u8]) {
    let scanned = |size: usize| {
        let mut scan = FormScan::new("multipart/form-data; boundary=\"b\"").expect("a form's type");
        input.chunks(size).for_each(|piece| scan.push(piece));
        (scan.model().map(str::to_owned), scan.is_done())
    };
    let whole = scanned(input.len().max(1));
    assert!(whole.0.as_ref().is_none_or(|model| model.len() < 16 * 1024));
    for size in [1, 2, 3, 7, 64] {
        assert_eq!(scanned(size), whole, "pieces of {size}");
    }
}

/// Whatever a server says of its models, the merged list is JSON, in which every entry is one that
/// a server told, and none is there twice.
pub(crate) fn lists(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (one, two) = text.split_once('\0').unwrap_or((&text, ""));
    let inventory = |text: &str| Arc::new(Inventory::new([text, text, text], None));
    let inventories = [inventory(one), inventory(two)];
    for (list, member) in List::ALL.into_iter().zip(["models", "models", "data"]) {
        let text = merged(list, &inventories);
        let parsed: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let entries = parsed[member].as_array().expect("a list");
        let told: Vec<serde_json::Value> = [one, two]
            .iter()
            .filter_map(|text| serde_json::from_str::<serde_json::Value>(text).ok())
            .filter_map(|answer| answer.get(member)?.as_array().cloned())
            .flatten()
            .collect();
        // What isn't JSON as a whole is read entry by entry, and odd characters in it are replaced.
        let is_json = |text: &&str| serde_json::from_str::<serde_json::Value>(text).is_ok();
        if [one, two].iter().all(is_json) {
            assert!(
                entries.len() <= told.len() && entries.iter().all(|entry| told.contains(entry))
            );
        }
        // Alone and beside itself, a server has the same.
        let twice = [Arc::clone(&inventories[0]), Arc::clone(&inventories[0])];
        assert_eq!(merged(list, &twice), merged(list, &twice[..1]));
    }
}

/// What somebody with the key says of himself is refused, or means the same after it was encoded
/// again.
pub(crate) fn introduction(input: &[u8]) {
    for purpose in [Purpose::Requests, Purpose::Pairing] {
        let Some(who) = Introduction::decode(purpose, input) else { continue };
        assert_eq!(input.len(), purpose.introduction_len());
        assert!(input.starts_with(&who.identity.0));
        assert!(who.name.len() <= MAX_NAME && !who.name.contains(char::is_control));
        assert_eq!(Introduction::decode(purpose, &who.encode(purpose)).as_ref(), Some(&who));
    }
}

fn machine(n: u8) -> Introduction {
    Introduction { name: format!("machine {n}"), ..Introduction::of(Identity([n; 16])) }
}

/// Of all messages, a handshake takes one: what the other has sent, as it was sent.
///
/// The first byte of the input tells for what the handshake is, which message is meant, and whether
/// the rest is that message or is laid over the true one.
pub(crate) fn handshake(input: &[u8]) {
    let Some((how, rest)) = input.split_first() else { return };
    let purpose = if how & 1 == 0 { Purpose::Requests } else { Purpose::Pairing };
    let key = Key::new([1; 32]);
    let (caller, hello) = noise::initiate(purpose, &key, &machine(1)).expect("random bytes");
    let (reply, mut there) = noise::respond(purpose, &key, &machine(2), &hello).expect("an answer");
    let is_second = how & 2 == 2;
    let sent = if is_second { &reply } else { &hello };
    let mut message = rest.to_vec();
    if how & 4 == 4 {
        message.iter_mut().zip(sent).for_each(|(byte, sent)| *byte ^= sent);
    }
    let is_true = message == *sent;
    if !is_second {
        let id = purpose.read_id(&message);
        assert!(id.is_none() || message.len() == hello.len() && message[0] == FIRST_BYTE);
        let answered = noise::respond(purpose, &key, &machine(2), &message);
        assert_eq!(answered.is_ok(), is_true, "{answered:?}");
        let Ok((reply, _)) = answered else { return };
        assert_eq!(reply.len(), purpose.reply_len());
        return;
    }
    let greeted = caller.finish(&message);
    assert_eq!(greeted.is_ok(), is_true, "{greeted:?}");
    let Ok(mut here) = greeted else { return };
    let mut record = [0; 4 + OVERHEAD];
    assert_eq!(here.session.seal(b"said", &mut record), Ok(record.len()));
    let plain = there.session.open(&mut record).expect("a record");
    assert_eq!(record[plain], *b"said");
}

/// Both ends of a connection whose near end is a `Stream`.
fn connection(uses_aes: bool) -> (Stream, UnixStream, Established) {
    let key = Key::new([1; 32]);
    let machine = |n| Introduction { has_aes: uses_aes, ..machine(n) };
    let (caller, hello) =
        noise::initiate(Purpose::Requests, &key, &machine(1)).expect("random bytes");
    let (reply, far) =
        noise::respond(Purpose::Requests, &key, &machine(2), &hello).expect("an answer");
    let near = caller.finish(&reply).expect("a session");
    let (socket, peer) = UnixStream::pair().expect("sockets");
    socket.set_nonblocking(true).expect("an option");
    // To a `Stream`, one socket is as good as another.
    let stream = Stream::new(TcpStream::from(OwnedFd::from(socket)));
    stream.encrypt(near.session, KeyId([1; 8]));
    (stream, peer, far)
}

/// Whatever becomes of records on the way, and in whatever pieces they come: a stream gives what was
/// said before the first damage, all of it and nothing else, and an end only if one was said.
///
/// The first byte of the input tells the cipher and how much is read at a time; then come pairs, of
/// what happens and how much of it.
pub(crate) fn records(input: &[u8]) {
    let Some((how, steps)) = input.split_first() else { return };
    let (stream, mut peer, mut far) = connection(how & 1 == 1);
    // What was sealed, where each record of it ends, and what is on the wire instead.
    let (mut sealed, mut said, mut wire, mut delivered) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let room = [16, 100, 5000, 70_000][usize::from(how >> 1 & 3)];
    let mut heard = Heard { text: Vec::new(), end: None, room };
    for step in steps.chunks_exact(2).take(24) {
        let much = usize::from(step[1]);
        let open = wire.len() - delivered;
        match step[0] % 8 {
            kind @ 0..=2 => {
                let len = [much, much * 200, 0][usize::from(kind)];
                let text: Vec<u8> = (0..len).map(|at| (at + said.len()) as u8).collect();
                let mut record = vec![0; len + OVERHEAD];
                far.session.seal(&text, &mut record).expect("room");
                sealed.extend_from_slice(&record);
                wire.extend(record);
                said.push((sealed.len(), text));
            }
            3 if open > 0 => wire[delivered + much % open] ^= 1 << (much % 8),
            4 if open > 0 => wire.truncate(wire.len() - (much % open + 1)),
            5 => wire.extend(vec![step[1]; much]),
            // The last record once more.
            6 => wire.extend_from_slice(
                &sealed[said.iter().rev().nth(1).map_or(0, |(end, _): &(usize, _)| *end)..],
            ),
            _ => {
                let more = open.min(much * 8);
                heard.of(&stream, &mut peer, &wire[delivered..delivered + more]);
                delivered += more;
            }
        }
    }
    for piece in wire[delivered..].chunks(16 * 1024) {
        heard.of(&stream, &mut peer, piece);
    }
    peer.shutdown(Shutdown::Write).expect("said");
    heard.of(&stream, &mut peer, b"");
    let is_same = |at: &usize| wire.get(*at) == sealed.get(*at);
    let damaged = (0..sealed.len()).take_while(is_same).count();
    let intact = said.iter().take_while(|(end, _)| *end <= damaged);
    let (mut expected, mut is_ended) = (Vec::new(), false);
    for (_, text) in intact {
        is_ended |= text.is_empty();
        if is_ended {
            break;
        }
        expected.extend_from_slice(text);
    }
    assert!(heard.text == expected, "{} bytes, not {}", heard.text.len(), expected.len());
    assert_eq!(heard.end, Some(is_ended), "a clean end");
}

/// What came out of a stream.
struct Heard {
    text: Vec<u8>,
    /// Whether it ended, and cleanly.
    end: Option<bool>,
    room: usize,
}

impl Heard {
    /// Reads all that is there behind this piece, which nobody reads who has seen the end.
    fn of(&mut self, stream: &Stream, peer: &mut UnixStream, piece: &[u8]) {
        if self.end.is_none() {
            peer.write_all(piece).expect("delivered");
        }
        loop {
            let (mut seen, mut buffer) = (vec![0; self.room], vec![0; self.room]);
            let shown = stream.peek(&mut seen);
            let read = stream.try_read(&mut buffer);
            let end = match read {
                Ok(Some(n @ 1..)) => {
                    let shown = shown.expect("what is read is shown");
                    assert!(self.end.is_none(), "nothing comes behind the end");
                    assert!(shown > 0 && shown <= n && seen[..shown] == buffer[..shown]);
                    self.text.extend_from_slice(&buffer[..n]);
                    continue;
                }
                Ok(Some(_)) => true,
                Ok(None) => {
                    assert!(shown.is_err_and(|error| error.kind() == ErrorKind::WouldBlock));
                    assert!(stream.is_drained() && self.end.is_none());
                    return;
                }
                Err(_) => false,
            };
            assert!(self.end.is_none_or(|before| before == end), "it ends once");
            self.end = Some(end);
            return;
        }
    }
}
