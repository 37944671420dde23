use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::thread;

use super::*;
use crate::config::Timing;
use crate::pairing::key_files::update;
use crate::pairing::keyring::Keyring;
use crate::pairing::noise::Key;
use crate::pairing::peers::{self, Peer};
use crate::system::random;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// What a busy machine adds to any time.
const SLACK: Duration = ms(3000);

/// A server that does the same with every connection.
fn serve(each: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let each = each.clone();
            thread::spawn(move || each(stream));
        }
    });
    address
}

fn ollama(version: Duration, lists: Duration) -> SocketAddr {
    serve(answers(version, move || lists))
}

/// Answers as Ollama does, each request after the pause for its path.
fn answers(
    version: Duration,
    lists: impl Fn() -> Duration + Clone + Send + 'static,
) -> impl Fn(TcpStream) + Clone + Send + 'static {
    move |mut stream| {
        let mut head = Vec::new();
        let mut byte = [0];
        while matches!(stream.read(&mut byte), Ok(1)) {
            head.push(byte[0]);
            if head.ends_with(b"\r\n\r\n") {
                let is_version = head.starts_with(b"GET /api/version ");
                thread::sleep(if is_version { version } else { lists() });
                let body = match is_version {
                    true => "{\"version\":\"0.9.9\"}",
                    false => "{\"models\":[{\"name\":\"m\"}]}",
                };
                let head_of = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                let _ = stream.write_all((head_of + body).as_bytes());
                head.clear();
            }
        }
    }
}

/// A check with lists, and how long it took.
fn check(keyring: Keyring, at: SocketAddr, time: CheckTime) -> (CheckResult, Duration) {
    check_by(&Upstream::new(&Timing::default(), &Arc::new(keyring)), at, time)
}

fn check_by(upstream: &Upstream, at: SocketAddr, time: CheckTime) -> (CheckResult, Duration) {
    let start = Instant::now();
    let target = Target::Address(at);
    let check = Check { target: &target, local: None, wants_inventory: true, time };
    (check.run(upstream), start.elapsed())
}

#[test]
fn checkers_ask_for_lists_on_the_same_connection() {
    const CHECKERS: usize = 5;
    let (count, answers) = (Arc::new(AtomicUsize::new(0)), answers(ms(0), || ms(0)));
    let counted = Arc::clone(&count);
    let target = Target::Address(serve(move |stream| {
        counted.fetch_add(1, SeqCst);
        answers(stream);
    }));
    let upstream = Upstream::for_checkers(&Timing::default(), &Arc::new(Keyring::none()));
    for upstream in vec![upstream; CHECKERS] {
        let time = CheckTime::of(ms(5000));
        let check = Check { target: &target, local: None, wants_inventory: true, time };
        let result = thread::scope(|scope| scope.spawn(|| check.run(&upstream)).join());
        assert!(matches!(result, Ok(CheckResult::Healthy { inventory: Some(_), .. })));
    }
    // Each check has one of its own.
    assert_eq!(count.load(SeqCst), CHECKERS + 1);
}

#[test]
fn slow_lists_do_not_make_a_check_late() {
    let at = ollama(ms(0), ms(5000));
    let (result, took) = check(Keyring::none(), at, CheckTime::of(ms(4500)));
    assert!(matches!(result, CheckResult::Healthy { inventory: None, .. }), "{result:?}");
    assert!(took < LISTS_IN_PASSING + SLACK, "{took:?}");
    // Nor on a connection that was used before, which has to prove that it still leads there.
    let pause = Arc::new(AtomicU64::new(0));
    let lists = Arc::clone(&pause);
    let at = serve(answers(ms(0), move || ms(lists.load(SeqCst))));
    let upstream = Upstream::new(&Timing::default(), &Arc::new(Keyring::none()));
    let apart = CheckTime { lists: Some(ms(20_000)), ..CheckTime::of(ms(4500)) };
    let (result, _) = check_by(&upstream, at, apart);
    assert!(matches!(result, CheckResult::Healthy { inventory: Some(_), .. }), "{result:?}");
    pause.store(5000, SeqCst);
    let (result, took) = check_by(&upstream, at, CheckTime::of(ms(4500)));
    assert!(matches!(result, CheckResult::Healthy { inventory: None, .. }), "{result:?}");
    assert!(took < LISTS_IN_PASSING + SLACK, "{took:?}");
    // Nor does one slow answer after the other.
    let at = ollama(ms(400), ms(400));
    let (result, took) = check(Keyring::none(), at, CheckTime::of(ms(1000)));
    assert!(matches!(result, CheckResult::Healthy { inventory: None, .. }), "{result:?}");
    assert!(took < ms(1000) + SLACK, "{took:?}");
    // Asked for apart, they may take their time.
    let (result, _) = check(Keyring::none(), at, apart);
    let CheckResult::Healthy { inventory: Some(inventory), .. } = result else {
        panic!("{result:?}");
    };
    assert!(inventory.is_known(), "{:?}", inventory.problem());
}

#[test]
fn a_check_has_one_deadline_whatever_the_server_does() {
    // A byte of an answer now and then, be it framing of which ureq sees nothing.
    let chunks =
        |begun: &str| format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{begun}");
    for (begun, drops) in [
        (String::new(), "HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n"),
        (chunks(""), "0"),
        (chunks("1"), " "),
        (chunks("1;"), "x"),
        (chunks("0\r\nX: "), "x"),
    ] {
        let what = begun.clone() + drops;
        let drop_by_drop = serve(move |mut stream| {
            let _ = stream.write_all(begun.as_bytes());
            for byte in drops.bytes().cycle().take(100) {
                thread::sleep(ms(100));
                if stream.write_all(&[byte]).is_err() {
                    return;
                }
            }
        });
        let (result, took) = check(Keyring::none(), drop_by_drop, CheckTime::of(ms(600)));
        assert!(matches!(result, CheckResult::Silent(_)), "{what:?}: {result:?}");
        assert!(took < ms(600) + SLACK, "{what:?}: {took:?}");
    }
    // Every handshake is heard, and refused after a while: another key is tried on a new connection.
    let dir =
        std::env::temp_dir().join(format!("ollana-check-{:?}", random::<8>().expect("random")));
    for n in 1..=8 {
        let (name, key) = (format!("m{n}"), Key::new([n; 32]));
        let peer =
            Peer { name, identity: Some(Identity([n; 16])), key, added: 0, is_confirmed: true };
        update(&dir, |all| peers::add(all, peer)).expect("a key");
    }
    let keyring = Keyring::open(Identity([0; 16]), Some(&dir), None, None).expect("keys");
    let refuses = serve(|mut stream| {
        let _ = stream.read(&mut [0; 512]);
        thread::sleep(ms(1000));
    });
    let (result, took) = check(keyring, refuses, CheckTime::of(ms(600)));
    assert!(!matches!(result, CheckResult::Healthy { .. }), "{result:?}");
    assert!(took < ms(600) + SLACK, "{took:?}");
    fs::remove_dir_all(&dir).expect("removed");
}

#[test]
fn of_several_ways_the_best_that_is_open_is_asked() {
    let open = [(); 2].map(|()| serve(drop));
    let closed = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port");
    for (ways, want) in [
        (vec![open[0], open[1]], vec![open[0], open[1]]),
        (vec![closed, open[1]], vec![open[1]]),
        (vec![open[1], closed], vec![open[1]]),
        (vec![closed, closed], vec![closed]),
    ] {
        let found = knock(&ways, ms(5000));
        // What is worse may come too late to be told.
        assert!(want.starts_with(&found) && !found.is_empty(), "{ways:?}: {found:?}");
    }
}

/// `localhost` leads to two addresses, and a server needn't be on the first.
#[test]
fn a_name_with_several_addresses_leads_to_the_one_that_answers() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else { return };
    let port = listener.local_addr().expect("its address").port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 512]);
            let body = "{\"version\":\"0.9.9\"}";
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all((head + body).as_bytes());
        }
    });
    let upstream = Upstream::new(&Timing::default(), &Arc::new(Keyring::none()));
    let target = Target::Name(ServerName { host: "localhost".to_owned(), port });
    let time = CheckTime::of(ms(5000));
    let check = Check { target: &target, local: None, wants_inventory: false, time };
    let result = check.run(&upstream);
    assert!(
        matches!(&result, CheckResult::Healthy { address, .. } if address.is_ipv6()),
        "{result:?}"
    );
}
