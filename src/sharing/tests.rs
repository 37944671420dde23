use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Instant;

use ring::digest::{SHA256, digest};

use super::source::Source;
use super::*;
use crate::system::{Hex, lock};

const PATIENCE: Duration = Duration::from_secs(20);
const DIGEST: &str = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

fn bytes(size: usize) -> Vec<u8> {
    (0..size as u64).map(|at| (at * at % 251) as u8).collect()
}

/// What a machine does with a GET, behind the head that it is asked for: the offset to begin at.
type Gives = dyn Fn(&mut TcpStream, u64) + Send + Sync;

struct Machine {
    neighbour: Neighbour,
    /// The offsets of the GETs that came.
    gets: Arc<Mutex<Vec<u64>>>,
}

/// A machine that says by HEAD that it has so many bytes, and gives them in its way.
fn machine(
    name: &str,
    size: u64,
    gives: impl Fn(&mut TcpStream, u64) + Send + Sync + 'static,
) -> Machine {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let neighbour = Neighbour { name: name.to_owned(), address: listener.local_addr().unwrap() };
    let gets = Arc::<Mutex<Vec<u64>>>::default();
    let (seen, gives) = (Arc::clone(&gets), Arc::<Box<Gives>>::new(Box::new(gives)));
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (seen, gives) = (Arc::clone(&seen), Arc::clone(&gives));
            thread::spawn(move || serve(stream, size, &seen, &*gives));
        }
    });
    Machine { neighbour, gets }
}

fn serve(mut stream: TcpStream, size: u64, seen: &Mutex<Vec<u64>>, gives: &Gives) {
    stream.set_nodelay(true).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let first = lines.next().unwrap_or_default();
    assert!(first.contains("/ollana/blobs/sha256:"), "{first}");
    let fields: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let range = fields.iter().find_map(|line| line.strip_prefix("range: bytes="));
    let at: u64 = range.map_or(0, |range| range.trim_end_matches('-').parse().unwrap());
    let part = match at {
        0 => "200 OK\r\n".to_owned(),
        _ => format!("206 Partial Content\r\ncontent-range: bytes {at}-{}/{size}\r\n", size - 1),
    };
    let head = format!("HTTP/1.1 {part}content-length: {}\r\n\r\n", size - at);
    if first.starts_with("GET") {
        lock(seen).push(at);
        stream.write_all(head.as_bytes()).unwrap();
        gives(&mut stream, at);
    } else {
        stream.write_all(head.as_bytes()).unwrap();
    }
}

/// Gives everything up to this offset, then closes.
fn up_to(end: usize) -> impl Fn(&mut TcpStream, u64) + Send + Sync {
    move |stream, at| {
        let _ = stream.write_all(&bytes(end)[at as usize..]);
    }
}

#[derive(Debug)]
struct House(Mutex<Vec<Neighbour>>);

impl Neighbours for House {
    fn look(&self) -> Vec<Neighbour> {
        lock(&self.0).clone()
    }
}

fn house(machines: &[&Machine]) -> (Sharing, Arc<House>) {
    let all = machines.iter().map(|machine| machine.neighbour.clone()).collect();
    let house = Arc::new(House(Mutex::new(all)));
    let sharing = Sharing::new(
        Arc::clone(&house) as Arc<dyn Neighbours>,
        Timing::default(),
        Arc::new(Keyring::none()),
    );
    (sharing, house)
}

/// What machines give that don't lie.
fn blob(size: usize) -> Blob {
    let digest = Hex(digest(&SHA256, &bytes(size)).as_ref()).to_string();
    Blob::new(&format!("sha256:{digest}"), size as u64).unwrap()
}

/// All that a source brings, and whether its channel closed behind it.
fn read(source: &Source) -> Vec<u8> {
    let (mut all, until) = (Vec::new(), Instant::now() + PATIENCE);
    while let Ok(piece) = source.next(LOOK) {
        assert!(Instant::now() < until, "only {} bytes", all.len());
        if let Some(piece) = piece {
            all.extend_from_slice(&piece.bytes);
            source.reuse(piece);
        }
    }
    all
}

#[test]
fn only_whole_digests_in_ollamas_spelling_are_asked_for() {
    assert_eq!(Blob::new(DIGEST, 1).unwrap().short(), "001122334455");
    for bad in [
        "",
        "sha256:",
        "sha256:00",
        &DIGEST[7..],
        &DIGEST.replace(':', "-"),
        &format!("{DIGEST}0"),
        &DIGEST.to_uppercase().replace("SHA", "sha"),
        "sha256:../../../../../../../../../../../../../../../../../../../../etc/pass",
    ] {
        assert_eq!(Blob::new(bad, 1), None, "{bad}");
    }
}

#[test]
fn neighbours_are_called_by_their_name_or_address() {
    let it = Neighbour { name: "Desk".to_owned(), address: "10.0.0.7:11435".parse().unwrap() };
    for name in ["desk", "Desk", "10.0.0.7", "10.0.0.7:11435"] {
        assert!(it.is_called(name), "{name}");
    }
    for name in ["", "des", "10.0.0.8", "10.0.0.7:1", "desk:11435"] {
        assert!(!it.is_called(name), "{name}");
    }
}

/// The donors die one after the other; what one has begun, the next one ends.
#[test]
fn the_next_donor_goes_on_where_the_last_one_died() {
    let size = 3_000_000;
    let dies = machine("dies", size as u64, up_to(1_234_567));
    let (sharing, house) = house(&[&dies]);
    let mut seek = sharing.seek(blob(size), Donors::Anybody).unwrap();
    let source = seek.found_within(PATIENCE).expect("a source");
    assert_eq!(&*source.donor, "dies");
    let whole = machine("whole", size as u64, up_to(size));
    lock(&house.0).push(whole.neighbour.clone());
    assert!(read(&source) == bytes(size), "other bytes");
    let from = lock(&whole.gets).clone();
    assert!(matches!(from[..], [at] if at > 0 && at <= 1_234_567), "{from:?}");
}

/// Neighbours may be looked for again when the only known one dies.
#[test]
fn the_next_donor_may_be_found_a_moment_later() {
    let size = 1_000_000;
    let dies = machine("dies", size as u64, up_to(500_000));
    let (sharing, house) = house(&[&dies]);
    let source = sharing.seek(blob(size), Donors::Anybody).unwrap().found_within(PATIENCE).unwrap();
    let late = machine("late", size as u64, up_to(size));
    let joins = late.neighbour.clone();
    let gets = Arc::clone(&dies.gets);
    let joining = thread::spawn(move || {
        let until = Instant::now() + PATIENCE;
        while lock(&gets).len() < 2 && Instant::now() < until {
            thread::sleep(LOOK);
        }
        thread::sleep(10 * LOOK);
        lock(&house.0).push(joins);
    });
    assert!(read(&source) == bytes(size), "other bytes");
    assert_eq!(lock(&late.gets)[..], [500_000]);
    joining.join().unwrap();
}

#[test]
fn too_few_bytes_come_where_nobody_is_left() {
    let dies = machine("dies", 1_000_000, up_to(500_000));
    let (sharing, _) = house(&[&dies]);
    // It has come as far each time, and the rest never comes.
    let source =
        sharing.seek(blob(1_000_000), Donors::Anybody).unwrap().found_within(PATIENCE).unwrap();
    assert_eq!(read(&source).len(), 500_000);
    assert_eq!(lock(&dies.gets).len(), 2, "once more, where it had stopped");
}

/// A machine that gives a little of it each time could keep a pull for ever.
#[test]
fn a_donor_that_dies_again_and_again_is_left() {
    let drops = machine("drops", 1_000_000, |stream, at| {
        let _ = stream.write_all(&bytes(at as usize + 1000)[at as usize..]);
    });
    let (sharing, _) = house(&[&drops]);
    let source =
        sharing.seek(blob(1_000_000), Donors::Anybody).unwrap().found_within(PATIENCE).unwrap();
    assert_eq!(read(&source).len(), 3000);
    assert_eq!(lock(&drops.gets)[..], [0, 1000, 2000]);
}

#[test]
fn a_pause_is_waited_for() {
    let slow = machine("slow", 300_000, |stream, _| {
        for piece in bytes(300_000).chunks(100_000) {
            thread::sleep(Duration::from_millis(200));
            let _ = stream.write_all(piece);
        }
    });
    let (sharing, _) = house(&[&slow]);
    let source =
        sharing.seek(blob(300_000), Donors::Anybody).unwrap().found_within(PATIENCE).unwrap();
    assert!(read(&source) == bytes(300_000), "other bytes");
    assert_eq!(lock(&slow.gets).len(), 1);
}

/// One with another size, none that is called so, none at all: the search goes on until there is one.
#[test]
fn it_is_asked_again_until_somebody_has_it() {
    let other = machine("other", 999, up_to(999));
    let (sharing, house) = house(&[&other]);
    let mut seek = sharing.seek(blob(1000), Donors::Named("Desk".to_owned())).unwrap();
    let unmeant = machine("unmeant", 1000, up_to(1000));
    lock(&house.0).push(unmeant.neighbour.clone());
    assert!(seek.found_within(Duration::from_millis(300)).is_none());
    let desk = machine("desk", 1000, up_to(1000));
    lock(&house.0).push(desk.neighbour.clone());
    let source = seek.found_within(PATIENCE).expect("a source");
    assert_eq!((&*source.donor, read(&source) == bytes(1000)), ("desk", true));
    assert!(lock(&unmeant.gets).is_empty() && lock(&other.gets).is_empty());
}

#[test]
fn the_only_one_may_be_slow() {
    let size = 240_000;
    let slow = machine("slow", size as u64, move |stream, at| {
        for piece in bytes(size)[at as usize..].chunks(10_000) {
            thread::sleep(Duration::from_millis(460));
            let _ = stream.write_all(piece);
        }
    });
    let (sharing, _) = house(&[&slow]);
    let named = Donors::Named("slow".to_owned());
    let source = sharing.seek(blob(size), named).unwrap().found_within(PATIENCE).unwrap();
    assert!(read(&source) == bytes(size), "other bytes");
    assert_eq!(lock(&slow.gets).len(), 1, "it wasn't left");
}

/// It breaks off again and again, once with nothing, and takes long to go on where Ollama has to push
/// what came before.
#[test]
fn the_only_one_that_has_it_is_waited_for() {
    let size = 500_000;
    let has_failed = AtomicBool::new(false);
    let breaks = machine("breaks", size as u64, move |stream, at| {
        if at == 100_000 {
            thread::sleep(Duration::from_secs(11));
        }
        if at != 200_000 || has_failed.swap(true, SeqCst) {
            up_to(at as usize + 100_000)(stream, at);
        }
    });
    let (sharing, _) = house(&[&breaks]);
    let only = Donors::Only(breaks.neighbour.address, String::new());
    let source = sharing.seek(blob(size), only).unwrap().found_within(PATIENCE).unwrap();
    assert!(read(&source) == bytes(size), "other bytes");
    assert_eq!(lock(&breaks.gets)[..], [0, 100_000, 200_000, 200_000, 300_000, 400_000]);
}

/// What it said before it went tells nothing any more.
#[test]
fn the_only_one_that_went_is_not_waited_for_as_if_it_gave_to_others() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 1000]);
            let _ = stream.write_all(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n");
        }
    });
    let (sharing, house) = house(&[]);
    lock(&house.0).push(Neighbour { name: "busy".to_owned(), address });
    let seek = sharing.seek(blob(7), Donors::Only(address, String::new())).unwrap();
    let says = |want: Refusal| {
        let until = Instant::now() + PATIENCE;
        while seek.refusal() != Some(want.clone()) {
            assert!(Instant::now() < until, "{:?}", seek.refusal());
            thread::sleep(LOOK);
        }
    };
    says(Refusal::Busy);
    lock(&house.0).clear();
    says(Refusal::Other("it is not up".to_owned()));
}

/// Whether it is dropped before or behind the first byte, the donor sees that at once.
#[test]
fn what_nobody_wants_ends_at_once() {
    let (ended, left) = crossbeam_channel::unbounded();
    let holds = machine("holds", 1 << 20, move |stream, _| {
        stream.write_all(&[7; 1000]).unwrap();
        let start = Instant::now();
        let _ = stream.read(&mut [0]);
        let _ = ended.send(start.elapsed());
    });
    let (sharing, _) = house(&[&holds]);
    for waits in [true, false] {
        let mut seek = sharing.seek(blob(1 << 20), Donors::Anybody).unwrap();
        let source = seek.found_within(PATIENCE).expect("a source");
        if waits {
            while source.next(LOOK).unwrap().is_none() {}
        }
        drop(source);
        let time = left.recv_timeout(PATIENCE).expect("the donor's connection to end");
        assert!(time < Duration::from_secs(5), "{time:?}");
    }
}

#[test]
fn the_number_of_blobs_under_way_is_limited() {
    let (sharing, _) = house(&[]);
    let mut seeks: Vec<_> =
        (0..100).filter_map(|_| sharing.seek(blob(1), Donors::Anybody)).collect();
    assert_eq!(seeks.len(), MOST);
    seeks.clear();
    let until = Instant::now() + PATIENCE;
    while sharing.seek(blob(1), Donors::Anybody).is_none() {
        assert!(Instant::now() < until, "the places come back");
        thread::sleep(Duration::from_millis(2));
    }
}

/// An Ollama that reads the whole blob and answers so.
fn ollama(answer: &'static str) -> (SocketAddr, Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (got, body) = bounded(1);
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut length = 0;
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
            if let Some(told) = line.strip_prefix("content-length: ") {
                length = told.trim().parse().unwrap();
            }
            line.clear();
        }
        let mut body = Vec::new();
        let _ = reader.take(length).read_to_end(&mut body);
        got.send(body).unwrap();
        let _ = stream.write_all(answer.as_bytes());
    });
    (address, body)
}

#[test]
fn ollama_gets_the_blob_and_says_what_it_thinks_of_it() {
    let size = 2_000_000;
    let donor = machine("donor", size as u64, up_to(size));
    let (sharing, _) = house(&[&donor]);
    let full =
        "HTTP/1.1 500 Internal\r\ncontent-length: 28\r\n\r\n{\"error\":\"no space is left\"}";
    for (answer, says) in [
        ("HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n", None),
        ("", Some("closed early")),
        (full, Some("no space is left")),
    ] {
        let source =
            sharing.seek(blob(size), Donors::Anybody).unwrap().found_within(PATIENCE).unwrap();
        let (address, body) = ollama(answer);
        let put = sharing.put(source, (address, "")).unwrap();
        assert!(body.recv_timeout(PATIENCE).unwrap() == bytes(size), "other bytes");
        let ended = put.ended_within(PATIENCE).expect("its end");
        match says {
            None => assert_eq!(ended, Ok(())),
            Some(says) => assert!(ended.as_ref().is_err_and(|why| why.contains(says)), "{ended:?}"),
        }
        assert_eq!((put.given(), &*put.donor()), (size as u64, "donor"));
    }
}

/// Of wrong bytes, Ollama doesn't get all, and who gave them isn't asked again, but by whom nobody else
/// will do.
#[test]
fn wrong_bytes_do_not_come_to_their_end() {
    let size = 2_000_000;
    let lies = machine("lies", size as u64, move |stream, at| {
        let mut wrong = bytes(size);
        wrong[1_000_000] ^= 1;
        let _ = stream.write_all(&wrong[at as usize..]);
    });
    let (sharing, _) = house(&[&lies]);
    let source = sharing.seek(blob(size), Donors::Anybody).unwrap().found_within(PATIENCE).unwrap();
    let (address, body) = ollama("");
    let put = sharing.put(source, (address, "")).unwrap();
    assert!(body.recv_timeout(PATIENCE).unwrap().len() < size);
    let why = put.ended_within(PATIENCE).expect("its end").unwrap_err();
    assert!(why.contains("digest mismatch") && !put.was_whole(), "{why}");
    let address = lies.neighbour.address;
    let mut seek = sharing.seek(blob(size), Donors::Anybody).unwrap();
    assert!(seek.found_within(Duration::from_millis(1500)).is_none());
    for donors in [Donors::Named("lies".to_owned()), Donors::Only(address, String::new())] {
        assert!(sharing.seek(blob(size), donors).unwrap().found_within(PATIENCE).is_some());
    }
    lock(&sharing.lapses).clear();
    // A cable that was out once is no reason not to ask again.
    sharing.remember(address, Lapse::Slow);
    assert!(!sharing.is_shunned(address));
    sharing.remember(address, Lapse::Slow);
    assert!(sharing.is_shunned(address));
    for port in 1..=1000 {
        sharing.remember(SocketAddr::new(address.ip(), port), Lapse::Wrong);
    }
    assert_eq!(lock(&sharing.lapses).len(), MOST_LAPSES);
}

/// The body's bytes run out before its length: Ollama must not take it for whole.
#[test]
fn ollama_sees_a_body_that_is_cut_short() {
    let dies = machine("dies", 1_000_000, up_to(300_000));
    let (sharing, _) = house(&[&dies]);
    let source =
        sharing.seek(blob(1_000_000), Donors::Anybody).unwrap().found_within(PATIENCE).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let put = sharing.put(source, (listener.local_addr().unwrap(), "")).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let mut got = Vec::new();
    let end = stream.read_to_end(&mut got);
    assert!(end.is_err() || got.len() < 1_000_000, "{end:?}");
    let why = put.ended_within(PATIENCE).expect("its end").unwrap_err();
    assert!(why.contains("nobody is left"), "{why}");
}
