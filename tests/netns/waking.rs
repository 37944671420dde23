//! Machines that sleep and are woken.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::basics::works;
use super::daemon::Daemon;
use super::http::{Call, send};
use super::lan::{Host, Lan};
use super::ollama::{Ollama, all_lines};
use super::watch::{judge, limits, takes, until};

/// A held request waits for this long at most in these tests.
const HELD: Duration = Duration::from_secs(3);

fn chat(host: &Host, model: &str) -> Call {
    let body = format!("{{\"model\":\"{model}\",\"messages\":[]}}");
    send(host, "POST", "/api/chat", &body).expect("sent")
}

/// The address of a host's card, as the kernel says it.
fn hardware_address(host: &Host) -> [u8; 6] {
    let shown = host.output(&["-o", "link", "show", "eth0"]);
    let text = shown.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    let text = text.unwrap_or_else(|| panic!("{shown}"));
    let bytes: Vec<u8> =
        text.split(':').map(|digits| u8::from_str_radix(digits, 16).expect("hex")).collect();
    bytes.try_into().expect("six bytes")
}

#[test]
fn a_sleeping_server_is_woken_and_its_request_held() {
    let Some(mut lan) = Lan::new(1) else { return };
    let [server, client] = [1, 2].map(|_| lan.host(&[("eth0", 0)]));
    let ollama = Ollama::start(&server, "gpu");
    let server_daemon = Daemon::start(&server, &[]);
    let address = server.address(0).to_string();
    let args = ["--wake", address.as_str(), "--wake-timeout", "20s"];
    let mut daemon = Daemon::start(&client, &args);
    takes("found", limits::FOUND, || works(&client));
    let remembered = client.dir().join("ollana/wake.json");
    until("the hardware address on disk", Duration::from_secs(5), || {
        remembered.exists().then_some(())
    });
    // The machine sleeps; its card listens.
    drop((ollama, server_daemon));
    let card = server.run(|| UdpSocket::bind("0.0.0.0:9")).expect("its card");
    card.set_read_timeout(Some(Duration::from_secs(10))).expect("a deadline");
    // What is known of it outlives a restart.
    daemon.signal(Signal::TERM);
    assert!(daemon.wait().success());
    let daemon = Daemon::start(&client, &args);
    let held = chat(&client, "gpu");
    let mut packet = [0; 200];
    let length = card.recv(&mut packet).expect("a wake-up call");
    let mut wanted = vec![0xFF; 6];
    wanted.extend(hardware_address(&server).repeat(16));
    assert_eq!(&packet[..length], wanted);
    assert_eq!(daemon.count("sent a Wake-on-LAN packet"), 1, "not one per look");
    // Lists don't wake anybody, and don't wait. What can be woken is listed.
    let start = Instant::now();
    let list = send(&client, "GET", "/api/tags", "").expect("sent").answer().expect("an answer");
    assert!(list.status == 200 && list.body.contains("gpu"), "{list:?}");
    judge("a list while a machine wakes up", start.elapsed(), limits::REFUSING);
    let _ollama = Ollama::start(&server, "gpu");
    let _server_daemon = Daemon::start(&server, &[]);
    assert_eq!(held.answer().expect("an answer").body, all_lines("gpu"));
}

#[test]
fn a_server_that_does_not_wake_up_is_an_error_in_time() {
    let Some(mut lan) = Lan::new(1) else { return };
    let client = lan.host(&[("eth0", 0)]);
    let args = ["--wake", "02:00:00:00:00:01", "--wake-timeout", "3s"];
    let daemon = Daemon::start(&client, &args);
    let start = Instant::now();
    let answers = [1, 2].map(|_| chat(&client, "gpu"));
    for answer in answers {
        let answer = answer.answer().expect("an answer");
        assert!(answer.is_error(503) && answer.body.contains("Wake-on-LAN packet"), "{answer:?}");
    }
    assert!(start.elapsed() >= HELD, "{:?}", start.elapsed());
    judge("held", start.elapsed(), HELD + Duration::from_secs(1));
    assert_eq!(daemon.count("sent a Wake-on-LAN packet"), 1, "one for both");
}
