//! The real binary's log: to a file that is rotated, to a disk that is full, as JSON, and what a
//! request leaves in it.

mod support;

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use support::{Client, Fake, Process, Signal, eventually, is_root, post, symlink};

/// A folder of this test's own.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ollana-logs-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder");
        Folder(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn fake() -> Fake {
    Fake::unlike_ollama(|call| {
        call.read_body();
        call.answer("200 OK", "text/plain", "hello");
    })
}

fn start(fake: &Fake, address: &str, more: &str) -> Process {
    let process = Process::start(&format!(
        "--mode server --listen {address} --discovery-port 0 --ollama {} {more}",
        fake.address
    ));
    // Its log may be elsewhere, so that it can't say when it is ready.
    eventually("it to listen", || std::net::TcpStream::connect(address).ok());
    process
}

/// An address that nobody has; a log that goes elsewhere can't tell which one it got.
fn free() -> String {
    support::free_tcp_port().to_string()
}

fn text(path: &std::path::Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn a_rotated_file_is_opened_anew() {
    let folder = Folder::new("rotated");
    let (log, old) = (folder.file("ollana.log"), folder.file("ollana.log.1"));
    let fake = fake();
    let address = free();
    let mut process =
        start(&fake, &address, &format!("--log-level debug --log-file {}", log.display()));
    let mut client = Client::connect(address.parse().expect("an address"));
    eventually("an answer", || (client.get("/before").status() == 200).then_some(()));
    eventually("its line", || text(&log).contains("\"/before\"").then_some(()));
    fs::rename(&log, &old).expect("rotated");
    // Until it is told, it goes on with the old file.
    client.get("/between");
    eventually("its line", || text(&old).contains("\"/between\"").then_some(()));
    assert!(!log.exists());
    process.signal(Signal::HUP);
    eventually("the new file", || log.exists().then_some(()));
    let size = text(&old).len();
    client.get("/after");
    eventually("its line", || text(&log).contains("\"/after\"").then_some(()));
    assert_eq!(text(&old).len(), size, "nothing more in the old one");
    // A place that can't be had: the present file is kept, and says so.
    fs::rename(&log, &old).expect("rotated");
    fs::create_dir(&log).expect("a folder in its place");
    process.signal(Signal::HUP);
    eventually("the complaint", || text(&old).contains("cannot reopen the log file").then_some(()));
    assert_eq!(process.log(), "", "nothing of it goes to stderr");
    process.signal(Signal::TERM);
    assert_eq!(process.exit().code(), Some(0));
    assert!(text(&old).contains("stopped cut=false"));
}

/// A long one that somebody has removed is begun anew, and where it can't be, ollana goes on.
#[test]
fn a_long_file_that_is_gone_is_made_again() {
    let (folder, fake, address) = (Folder::new("gone"), fake(), free());
    let place = folder.file("logs");
    let log = place.join("ollana.log");
    fs::create_dir(&place).expect("a folder");
    let process =
        start(&fake, &address, &format!("--log-level debug --log-file {}", log.display()));
    let mut client = Client::connect(address.parse().expect("an address"));
    let lengthen = || {
        let file = fs::File::options().write(true).open(&log).expect("the log");
        file.set_len(11_000_000).expect("a long file");
    };
    lengthen();
    fs::remove_file(&log).expect("removed");
    client.get("/removed");
    eventually("its line", || text(&log).contains("/removed").then_some(()));
    lengthen();
    let mut held = fs::File::open(&log).expect("the log");
    held.seek(SeekFrom::End(0)).expect("its end");
    fs::remove_dir_all(&place).expect("removed");
    client.get("/nowhere");
    let mut said = String::new();
    eventually("the complaint", || {
        held.read_to_string(&mut said).expect("the log");
        said.contains("cannot reopen the log file").then_some(())
    });
    fs::create_dir(&place).expect("a folder");
    process.signal(Signal::HUP);
    eventually("the new file", || log.exists().then_some(()));
    assert_eq!(process.log(), "", "nothing of it goes to stderr");
}

/// Where nobody rotates it, a log takes no more than twice 10 MB.
#[test]
fn a_long_file_is_put_aside() {
    let folder = Folder::new("long");
    let (log, old) = (folder.file("ollana.log"), folder.file("ollana.log.1"));
    let long = "x".repeat(9_999) + "\n";
    let fake = fake();
    let log_to = |log: &std::path::Path, address: &str| {
        start(&fake, address, &format!("--log-level debug --log-file {}", log.display()))
    };
    fs::write(&old, "older").expect("an older file");
    fs::write(&log, long.repeat(999)).expect("a long file");
    let address = free();
    let process = log_to(&log, &address);
    let mut client = Client::connect(address.parse().expect("an address"));
    let path = |n: usize| format!("/{n}-{}", "y".repeat(400));
    let requests = 150;
    (0..requests).for_each(|n| drop(client.get(&path(n))));
    let last = format!("\"/{}-", requests - 1);
    eventually("the last line", || text(&log).contains(&last).then_some(()));
    let both = [text(&old), text(&log)];
    assert!((9_990_000..10_010_000).contains(&both[0].len()), "{} bytes", both[0].len());
    assert!(both[1].len() < 200_000 && !both[1].contains('x'), "{} bytes", both[1].len());
    let ends = both.each_ref().map(|it| it.rsplit("x\n").next().expect("an end"));
    for n in 0..requests {
        let lines: usize = ends.iter().map(|it| it.matches(&format!("\"/{n}-")).count()).sum();
        assert_eq!(lines, 1, "request {n}");
    }
    assert_eq!(process.log(), "", "nothing of it goes to stderr");
    drop(process);
    // Where it can't be renamed it goes on, and that is said once.
    fs::remove_file(&old).expect("removed");
    fs::create_dir_all(old.join("folder")).expect("a folder in its place");
    fs::write(&log, long.repeat(1000)).expect("a long file");
    let address = free();
    let process = log_to(&log, &address);
    let mut client = Client::connect(address.parse().expect("an address"));
    (0..9).for_each(|n| drop(client.get(&path(n))));
    eventually("the last line", || text(&log).contains("\"/8-").then_some(()));
    assert_eq!(text(&log).matches("cannot rename the log file").count(), 1);
    drop(process);
    // What a link leads to, perhaps a device, is somebody else's.
    #[cfg(unix)]
    {
        let link = folder.file("link");
        symlink(&log, &link).expect("a link");
        let address = free();
        let _process = log_to(&link, &address);
        Client::connect(address.parse().expect("an address")).get("/through-the-link");
        eventually("its line", || text(&log).contains("/through-the-link").then_some(()));
        assert!(link.is_symlink() && !folder.file("link.1").exists());
        assert_eq!(text(&log).matches("cannot rename the log file").count(), 1);
    }
}

/// `systemctl kill -s HUP` on a service that logs to the journal: it must not end, because a
/// service manager takes that for a clean end and leaves it so.
#[test]
fn without_a_file_a_hang_up_changes_nothing() {
    let fake = fake();
    let process = start(&fake, &free(), "");
    let mut client = process.connect_ready();
    for _ in 0..3 {
        process.signal(Signal::HUP);
        assert_eq!(client.get("/").status(), 200);
    }
    process.signal(Signal::TERM);
    process.line("stopped cut=false");
}

#[test]
fn a_full_disk_costs_lines_and_no_request() {
    let folder = Folder::new("full");
    let (log, place) = (folder.file("ollana.log"), folder.file("place.log"));
    symlink("/dev/full", &log).expect("a link");
    let fake = fake();
    let address = free();
    let process =
        start(&fake, &address, &format!("--log-level debug --log-file {}", log.display()));
    let mut client = Client::connect(address.parse().expect("an address"));
    eventually("an answer", || (client.get("/").status() == 200).then_some(()));
    for _ in 0..100 {
        assert_eq!(client.get("/full").text(), "hello");
    }
    fs::remove_file(&log).expect("removed");
    symlink(&place, &log).expect("a link");
    process.signal(Signal::HUP);
    eventually("the new file", || place.exists().then_some(()));
    client.get("/room");
    let line = eventually("the number of lost lines", || {
        let text = text(&place);
        text.lines().find(|line| line.contains("log lines lost")).map(str::to_owned)
    });
    let lost = line.split("lines=").nth(1).and_then(|n| n.trim().parse::<usize>().ok());
    client.get("/later");
    eventually("the next lines", || text(&place).contains("\"/later\"").then_some(()));
    assert_eq!(text(&place).matches("log lines lost").count(), 1);
    // What was still in the queue when there was room again isn't lost.
    let kept = text(&place).matches("\"/full\"").count();
    assert!(kept < 100 && lost.is_some_and(|lost| lost + kept >= 100), "{kept} kept, {line}");
}

/// A disk that gets full in the middle of a line, and has room again later.
#[test]
fn every_line_is_whole_on_a_disk_that_was_full() {
    if !is_root() {
        return println!("skipped: a small disk takes root");
    }
    let folder = Folder::new("small");
    let mount = format!(
        "mount -t tmpfs -o size=64k none {0} && head -c 57344 /dev/zero >{0}/filler && exec \"$0\" \"$@\"",
        folder.0.display()
    );
    let fake = fake();
    let address = free();
    let process = Process::within(
        &["unshare", "-m", "sh", "-c", &mount],
        &format!(
            "--mode server --listen {address} --discovery-port 0 --ollama {} --log-level debug \
             --log-format json --log-file {}",
            fake.address,
            folder.file("ollana.log").display()
        ),
    );
    eventually("it to listen", || {
        assert!(!process.log().contains("denied"), "{}", process.log());
        std::net::TcpStream::connect(&address).ok()
    });
    let mut client = Client::connect(address.parse().expect("an address"));
    for _ in 0..200 {
        client.get(&format!("/{}", "x".repeat(150)));
    }
    let inside = |name: &str| {
        PathBuf::from(process.path("root"))
            .join(folder.file(name).strip_prefix("/").expect("absolute"))
    };
    assert_eq!(fs::metadata(inside("filler")).expect("the filler").len(), 57344);
    eventually("the disk to be full", || {
        fs::OpenOptions::new()
            .append(true)
            .open(inside("filler"))
            .and_then(|mut file| std::io::Write::write(&mut file, &[0; 4096]))
            .is_err()
            .then_some(())
    });
    fs::remove_file(inside("filler")).expect("room again");
    let told = eventually("the number of lost lines", || {
        client.get("/room");
        let text = text(&inside("ollana.log"));
        text.contains("log lines lost").then_some(text)
    });
    // The last one may be on its way.
    let (whole, _) = told.rsplit_once('\n').expect("lines");
    for line in whole.lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line}");
    }
}

#[test]
fn json_lines_hold_whatever_was_sent() {
    let fake = fake();
    let process = Process::start(&format!(
        "--mode server --listen 127.0.0.1:0 --discovery-port 0 --ollama {} --log-level debug \
         --log-format json",
        fake.address
    ));
    let ready = process.line("\"message\":\"ready\"");
    let ready: serde_json::Value = serde_json::from_str(&ready).expect("JSON");
    assert_eq!((&ready["level"], &ready["mode"]), (&"info".into(), &"server".into()));
    let address = ready["listen"].as_str().and_then(|text| text.parse().ok()).expect("an address");
    let mut client = Client::connect(address);
    eventually("an answer", || (client.get("/").status() == 200).then_some(()));
    let path = "/a\\\"b'%0a{}";
    let body = "x".repeat(1234);
    client.send(post(&format!("{path}?prompt=secret"), &body));
    assert_eq!(client.answer_to("POST").status(), 200);
    let line = process.line("\"up\":1234");
    let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    for (key, value) in [
        ("message", "request".into()),
        ("level", "debug".into()),
        ("method", "POST".into()),
        ("path", path.into()),
        ("status", 200.into()),
        ("down", 5.into()),
    ] as [(&str, serde_json::Value); 6]
    {
        assert_eq!(line[key], value, "{line}");
    }
    for key in ["ttfb_ms", "duration_ms"] {
        assert!(line[key].is_u64(), "{line}");
    }
    assert!(line["server"].is_string(), "{line}");
    for line in process.log().lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line}");
    }
    assert!(!process.log().contains("secret"));
}

#[test]
fn systemds_journal_gets_levels_and_no_second_time() {
    let fake = fake();
    let stream = "JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec \"$0\" \"$@\"";
    for (shell, start) in [(stream, "<6>ready mode=server "), ("exec \"$0\" \"$@\"", "20")] {
        let process = Process::within(
            &["sh", "-c", shell],
            &format!(
                "--mode server --listen 127.0.0.1:0 --discovery-port 0 --ollama {}",
                fake.address
            ),
        );
        let line = process.line("ready mode=server");
        assert!(line.starts_with(start), "{line}");
    }
}

#[test]
fn prompts_and_long_values_stay_out_of_the_log() {
    let fake = fake();
    let process = Process::start(&format!(
        "--mode server --listen 127.0.0.1:0 --discovery-port 0 --ollama {} --log-level debug",
        fake.address
    ));
    let mut client = process.connect_ready();
    client.send(post("/api/generate?q=secret1", "{\"model\":\"m\",\"prompt\":\"secret2\"}"));
    client.answer_to("POST");
    client.get(&format!("/{}", "y".repeat(3000)));
    let line = process.line("\"/yyy");
    assert!(line.len() < 400, "{} bytes: {line}", line.len());
    let line = process.line("\"/api/generate\"");
    assert!(line.contains("request method=\"POST\" path=\"/api/generate\" status=200"), "{line}");
    assert!(line.contains(" up=32 down=5 ttfb_ms="), "{line}");
    assert!(!process.log().contains("secret"), "{}", process.log());
}

#[test]
fn a_log_file_that_cannot_be_had_ends_it_with_a_reason() {
    for path in ["/nowhere/at/all.log", "/"] {
        let mut process = Process::start(&format!("--listen 127.0.0.1:0 --log-file {path}"));
        assert_eq!(process.exit().code(), Some(1));
        let path = std::path::absolute(path).expect("a path");
        process.line(&format!("cannot open the log file {}", path.display()));
    }
    let mut process = Process::start("--log-level trace");
    assert_eq!(process.exit().code(), Some(2));
    process.line("trace: expected off, error, warn, info or debug");
}
