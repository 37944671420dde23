//! Single events: how soon a proxy listens, finds a server, passes a hang-up on, fails over.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::children::{Child, Failable, ask, free_address};
use super::measure::now_ns;
use super::proxies::{Family, Role};
use super::upstream::{Event, Upstream};

/// No single event takes longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a request waits or streams before its client hangs up.
const BEFORE_HANGUP: Duration = Duration::from_millis(5);

/// Milliseconds from the start of a program until it accepts a connection.
pub(crate) fn time_to_listen(family: &Family, dir: &Path, target: SocketAddr) -> Failable<f64> {
    let listen = free_address()?;
    let args = family.arguments(dir, Role::Server, listen, target)?;
    let start = Instant::now();
    let child = Child::start_directly(dir, &family.program, &args)?;
    while TcpStream::connect(listen).is_err() {
        if start.elapsed() > PATIENCE {
            return Err(format!("{} does not listen: {}", family.name, child.log_text()).into());
        }
        thread::sleep(Duration::from_micros(100));
    }
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// Milliseconds from the start of a server and then a client, which know nothing of each other,
/// until the client passes a request on.
pub(crate) fn time_to_discover(family: &Family, dir: &Path, target: SocketAddr) -> Failable<f64> {
    let port = UdpSocket::bind(("127.0.0.1", 0))?.local_addr()?.port().to_string();
    let (near, far) = (free_address()?, free_address()?);
    let arguments = |role, listen: SocketAddr| -> Failable<Vec<String>> {
        let mut args = family.arguments(dir, role, listen, target)?;
        if role == Role::Client {
            let at = args.iter().position(|arg| arg == "--server").ok_or("no --server")?;
            args.drain(at..at + 2);
            args.extend(["--interface".to_owned(), "lo".to_owned()]);
        }
        let at = args.iter().position(|arg| arg == "--discovery-port").ok_or("no port")?;
        args[at + 1].clone_from(&port);
        Ok(args)
    };
    let server = arguments(Role::Server, near)?;
    let client = arguments(Role::Client, far)?;
    let start = Instant::now();
    let _server = Child::start_directly(dir, &family.program, &server)?;
    let client = Child::start_directly(dir, &family.program, &client)?;
    while !matches!(ask(far), Ok(true)) {
        if start.elapsed() > PATIENCE {
            return Err(format!("no server is found: {}", client.log_text()).into());
        }
        thread::sleep(Duration::from_micros(200));
    }
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

fn post(address: SocketAddr, query: &str) -> Failable<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let head = format!(
        "POST /api/generate?{query} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{{}}"
    );
    stream.write_all(head.as_bytes())?;
    Ok(stream)
}

/// Microseconds between a client's hang-up and the end of its connection at the upstream, while
/// it waits for the first byte or, if `streaming`, between two tokens.
pub(crate) fn time_to_cancel(
    upstream: &Upstream,
    address: SocketAddr,
    streaming: bool,
) -> Failable<f64> {
    let own = now_ns();
    let mut stream = if streaming {
        let mut stream = post(address, &format!("tokens=100000&gap_us=20000&id={own}"))?;
        let mut seen = [0; 4096];
        let mut text = String::new();
        while !text.contains("\"t\":") {
            match stream.read(&mut seen)? {
                0 => return Err("a stream broke off".into()),
                n => text.push_str(&String::from_utf8_lossy(&seen[..n])),
            }
        }
        stream
    } else {
        let stream = post(address, &format!("hang={own}"))?;
        wait_for(upstream, own, |event| matches!(event, Event::Arrived { .. }))?;
        stream
    };
    thread::sleep(BEFORE_HANGUP);
    // Whatever came in the meantime is read, or the close would be a reset.
    stream.set_nonblocking(true)?;
    while matches!(stream.read(&mut [0; 4096]), Ok(n) if n > 0) {}
    let hung_up = now_ns();
    drop(stream);
    match wait_for(upstream, own, |event| matches!(event, Event::Left { .. }))? {
        Event::Left { at_ns, .. } => Ok(at_ns.saturating_sub(hung_up) as f64 / 1e3),
        Event::Arrived { .. } => Err("an unexpected event".into()),
    }
}

fn wait_for(upstream: &Upstream, own: u64, wanted: impl Fn(&Event) -> bool) -> Failable<Event> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let event = upstream.events.recv_timeout(left).map_err(|_| "the upstream was not told")?;
        let (Event::Arrived { id, .. } | Event::Left { id, .. }) = event;
        if id == own && wanted(&event) {
            return Ok(event);
        }
    }
}

/// Milliseconds from the death of the server that has a request, before its first byte, until
/// the client has the answer from another server.
pub(crate) fn time_to_fail_over(family: &Family, dir: &Path, upstream: &Upstream) -> Failable<f64> {
    let mut servers = Vec::new();
    let mut named = Vec::new();
    for place in ["/a", "/b"] {
        let listen = free_address()?;
        let mut args = family.arguments(dir, Role::Server, listen, upstream.address)?;
        // Each asks the upstream under a path of its own, so that it can be told apart.
        let at = args.iter().position(|arg| arg == "--ollama").ok_or("no --ollama")?;
        args[at + 1].push_str(place);
        let mut child = Child::start(dir, &family.program, &args)?;
        child.wait_ready(listen)?;
        servers.push((place, child));
        named.extend(["--server".to_owned(), listen.to_string()]);
    }
    let far = free_address()?;
    let mut args = family.arguments(dir, Role::Client, far, upstream.address)?;
    let at = args.iter().position(|arg| arg == "--server").ok_or("no --server")?;
    args.splice(at..at + 2, named);
    let mut client = Child::start(dir, &family.program, &args)?;
    client.wait_ready(far)?;
    // Until both are known to be well.
    thread::sleep(Duration::from_millis(50));

    let own = now_ns();
    let mut stream = post(far, &format!("once={own}"))?;
    let arrived = wait_for(upstream, own, |event| matches!(event, Event::Arrived { .. }))?;
    let Event::Arrived { target, .. } = arrived else { return Err("unexpected".into()) };
    thread::sleep(BEFORE_HANGUP);
    let victim = servers.iter_mut().find(|(place, _)| target.starts_with(place));
    let (_, victim) = victim.ok_or("an unknown server was asked")?;
    let start = Instant::now();
    victim.kill();
    let mut answer = [0; 4096];
    let n = stream.read(&mut answer)?;
    let elapsed = start.elapsed();
    if !answer[..n].starts_with(b"HTTP/1.1 200") {
        let text = String::from_utf8_lossy(&answer[..n]).into_owned();
        return Err(format!("no failover, but {text:?}; {}", client.log_text()).into());
    }
    Ok(elapsed.as_secs_f64() * 1e3)
}
