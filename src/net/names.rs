//! Machines as people name them: the addresses to connect to.
//!
//! No caller waits for a name server longer than it wants to, and none for another's name: each name
//! is looked up on a thread of its own, of which there are few. What was found is kept; while it is
//! looked up anew, and while that fails, the last known addresses are used.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, ToSocketAddrs};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::interfaces;
use crate::system::{lock, spawn_vital};

/// Addresses are used without a further look for so long: a machine that moved is found soon.
const FRESH: Duration = Duration::from_secs(5);
/// And while no look succeeds, for so long: a name server may be out of order for a night.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// Lookups at once. Those of names that were slow before leave half of them to others.
const MAX_LOOKUPS: usize = 16;
/// A lookup that takes longer is slow, which is logged.
const SLOW: Duration = Duration::from_secs(2);
/// A name server of the LAN answers in milliseconds: one that did so last time is waited for so long,
/// so that a machine that was off and has another address now is found at the first look.
const PROMPT: Duration = Duration::from_millis(100);
/// Names remembered. They come from settings, so there are few.
const MAX_NAMES: usize = 128;

type Found = io::Result<Vec<SocketAddr>>;

static SYSTEM: Resolver<fn(&str) -> Found> = Resolver::new(ask_system);

fn ask_system(host: &str) -> Found {
    Ok((host, 0).to_socket_addrs()?.collect())
}

/// The addresses behind a name or an address (without brackets), IPv4 first, as Ollama listens on
/// that unless told otherwise. At least one; else a sentence about why not. A name that was never
/// found is waited for up to `patience`.
///
/// A link-local address (`fe80::…`) is one of a machine on one of our links. Which link, a zone says
/// behind `%` (RFC 4007): an interface's name or number. Without one, all links are tried.
pub(crate) fn resolve(
    host: &str,
    port: u16,
    patience: Duration,
) -> Result<Vec<SocketAddr>, String> {
    let found = match (split_zone(host), host.parse()) {
        (Some((ip, zone)), _) => {
            let index = interfaces::index_of(zone)
                .ok_or_else(|| format!("there is no network interface {zone} with an address"))?;
            vec![SocketAddrV6::new(ip, port, 0, index).into()]
        }
        (None, Ok(ip)) => vec![SocketAddr::new(ip, port)],
        // No name server is to be asked for that (RFC 6761 §6.3).
        _ if host.eq_ignore_ascii_case("localhost") => {
            vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]
        }
        _ => {
            let found = SYSTEM.resolve(host, patience);
            found.map_err(|reason| format!("can't resolve {host}: {reason}"))?
        }
    };
    let with_port = |mut address: SocketAddr| {
        address.set_port(port);
        on_each_link(address)
    };
    let mut addresses: Vec<SocketAddr> = found.into_iter().flat_map(with_port).collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    if addresses.is_empty() {
        return Err(format!("{host} has no address that can be reached from here"));
    }
    Ok(addresses)
}

struct Resolver<L> {
    lookup: L,
    names: Mutex<BTreeMap<String, Name>>,
    /// Some lookup has ended.
    ended: Condvar,
}

#[derive(Default)]
struct Name {
    known: Option<(Instant, Vec<SocketAddr>)>,
    /// When the lookup under way began.
    began: Option<Instant>,
    /// When the last one ended.
    ended: Option<Instant>,
    /// What became of that, if it failed.
    failure: Option<String>,
    /// Whether the last one took long.
    is_slow: bool,
    /// Whether it was logged that the name can't be looked up.
    is_told: bool,
    used: Option<Instant>,
}

impl<L> Resolver<L>
where
    L: Fn(&str) -> Found + Sync,
{
    const fn new(lookup: L) -> Self {
        Resolver { lookup, names: Mutex::new(BTreeMap::new()), ended: Condvar::new() }
    }

    fn resolve(&'static self, host: &str, patience: Duration) -> Result<Vec<SocketAddr>, String> {
        let asked = Instant::now();
        let mut names = lock(&self.names);
        make_room(&mut names, host);
        loop {
            let now = Instant::now();
            let under_way = names.values().filter(|name| name.began.is_some()).count();
            let name = names.entry(host.to_owned()).or_default();
            name.used = Some(now);
            name.known.take_if(|(at, _)| now.saturating_duration_since(*at) > KEPT);
            let most = if name.is_slow { MAX_LOOKUPS / 2 } else { MAX_LOOKUPS };
            if name.is_due(asked, now) && under_way < most {
                self.start(host, now, name)?;
            }
            let patience = match name.known {
                None => patience,
                Some(_) if name.began.is_some() && name.is_prompt() => patience.min(PROMPT),
                Some(_) => Duration::ZERO,
            };
            // Nobody waits for a lookup that has taken that long already.
            let since = name.began.unwrap_or(asked);
            let left = (since + patience).saturating_duration_since(now);
            if let Some((_, addresses)) = &name.known
                && left.is_zero()
            {
                let addresses = addresses.clone();
                name.tell(host, now);
                return Ok(addresses);
            }
            if let Some(failure) = &name.failure
                && name.known.is_none()
                && name.ended.is_some_and(|at| at >= asked)
            {
                return Err(failure.clone());
            }
            if left.is_zero() {
                return Err(match name.began {
                    Some(began) => no_answer(now.saturating_duration_since(began)),
                    None => "the name server didn't answer other names yet".to_owned(),
                });
            }
            let waited = self.ended.wait_timeout(names, left);
            names = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// If no thread can be had, that is what became of the lookup.
    fn start(&'static self, host: &str, now: Instant, name: &mut Name) -> Result<(), String> {
        let own = host.to_owned();
        let started = spawn_vital("resolver", move || {
            let found = (self.lookup)(&own);
            if let Some(name) = lock(&self.names).get_mut(&own) {
                name.finish(&own, Instant::now(), found);
            }
            self.ended.notify_all();
        });
        match started {
            Ok(_) => name.began = Some(now),
            Err(_) if name.known.is_some() => {}
            Err(error) => return Err(error.to_string()),
        }
        Ok(())
    }
}

impl Name {
    /// Whether to look it up, for one who asked at a time.
    fn is_due(&self, asked: Instant, now: Instant) -> bool {
        let is_over = |ended: Instant| match self.known {
            Some(_) => now.saturating_duration_since(ended) >= FRESH,
            None => ended < asked,
        };
        self.began.is_none() && self.ended.is_none_or(is_over)
    }

    fn is_prompt(&self) -> bool {
        !self.is_slow && self.failure.is_none()
    }

    fn finish(&mut self, host: &str, now: Instant, found: Found) {
        let took = self.began.take().map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.is_slow = took >= SLOW;
        self.ended = Some(now);
        self.failure = match found {
            Ok(addresses) if !addresses.is_empty() => {
                self.known = Some((now, addresses));
                if std::mem::take(&mut self.is_told) {
                    log::info!("name found again name={host:?}");
                }
                return self.failure = None;
            }
            Ok(_) => Some("it has no address".to_owned()),
            Err(error) => {
                let text = error.to_string();
                // std's own words before the system's.
                let reason = text.strip_prefix("failed to lookup address information: ");
                let reason = reason.unwrap_or(&text);
                Some(match self.is_slow {
                    true => format!("{reason}, after {:.1} s", took.as_secs_f64()),
                    false => reason.to_owned(),
                })
            }
        };
    }

    /// Logs once that the last known addresses have to do.
    fn tell(&mut self, host: &str, now: Instant) {
        let waited = self.began.map(|began| now.saturating_duration_since(began));
        let slow = waited.filter(|waited| *waited >= SLOW).map(no_answer);
        if let Some(reason) = self.failure.clone().or(slow)
            && !std::mem::replace(&mut self.is_told, true)
        {
            log::warn!(
                "name not found, its last known address is used name={host:?} reason={reason:?}"
            );
        }
    }
}

fn no_answer(waited: Duration) -> String {
    format!("the name server didn't answer in {:.1} s", waited.as_secs_f64())
}

/// Makes room for a name by forgetting the one that was used longest ago.
fn make_room(names: &mut BTreeMap<String, Name>, host: &str) {
    if names.len() < MAX_NAMES || names.contains_key(host) {
        return;
    }
    let unused = names.iter().filter(|(_, name)| name.began.is_none());
    let oldest = unused.min_by_key(|(_, name)| name.used).map(|(host, _)| host.clone());
    oldest.map(|host| names.remove(&host));
}

fn split_zone(host: &str) -> Option<(Ipv6Addr, &str)> {
    let (ip, zone) = host.split_once('%')?;
    Some((ip.parse().ok()?, zone))
}

fn on_each_link(address: SocketAddr) -> Vec<SocketAddr> {
    match address {
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() && v6.scope_id() == 0 => {
            let on = |index| SocketAddrV6::new(*v6.ip(), v6.port(), 0, index).into();
            interfaces::links().into_iter().map(on).collect()
        }
        _ => vec![address],
    }
}

/// An address as another machine is told it: a zone means something on this one alone (RFC 6874 §1).
pub(crate) fn without_zone(address: SocketAddr) -> SocketAddr {
    SocketAddr::from((address.ip(), address.port()))
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::IpAddr;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use crossbeam_channel::{Receiver, unbounded};

    use super::*;

    #[test]
    fn zones_name_interfaces() {
        let (name, number) = interfaces::any_number().expect("an interface");
        let shown = SocketAddr::from(SocketAddrV6::new("fe80::1".parse().unwrap(), 7, 0, number));
        let want = Ok(vec![shown]);
        assert_eq!(resolve(&format!("fe80::1%{name}"), 7, SLOW), want);
        assert_eq!(resolve(&format!("fe80::1%{number}"), 7, SLOW), want);
        for zone in ["nosuch0", "4000000000", "-1"] {
            let error = resolve(&format!("fe80::1%{zone}"), 7, SLOW).unwrap_err();
            assert_eq!(error, format!("there is no network interface {zone} with an address"));
        }
        assert_eq!(shown.to_string().parse(), Ok(shown));
        assert_eq!(without_zone(shown).to_string(), "[fe80::1]:7");
    }

    #[test]
    fn addresses_resolve_to_themselves() {
        for host in ["127.0.0.1", "::1", "10.0.0.9"] {
            let ip: IpAddr = host.parse().unwrap();
            assert_eq!(resolve(host, 7, Duration::ZERO), Ok(vec![SocketAddr::from((ip, 7))]));
        }
        let localhost = resolve("localhost", 7, Duration::ZERO).expect("no lookup");
        assert_eq!(localhost, ["127.0.0.1:7".parse().unwrap(), "[::1]:7".parse().unwrap()]);
        let error = resolve("no such name", 7, PATIENCE).unwrap_err();
        assert!(error.starts_with("can't resolve no such name: "), "{error}");
        assert!(!error.contains("lookup address information"), "{error}");
    }

    /// A name server whose answers come when told, one after the other, for each name.
    type Answers = BTreeMap<String, Receiver<Found>>;
    type FakeResolver = Resolver<Box<dyn Fn(&str) -> Found + Send + Sync>>;

    const PATIENCE: Duration = Duration::from_secs(20);
    const MOMENT: Duration = Duration::from_millis(50);

    fn fake(answers: Answers) -> (&'static FakeResolver, &'static AtomicUsize) {
        let asked: &AtomicUsize = Box::leak(Box::default());
        let lookup = move |host: &str| {
            asked.fetch_add(1, SeqCst);
            answers[host].recv().unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
        };
        (Box::leak(Box::new(Resolver::new(Box::new(lookup) as Box<_>))), asked)
    }

    fn address(last: u8) -> Vec<SocketAddr> {
        vec![SocketAddr::from(([10, 0, 0, last], 0))]
    }

    impl FakeResolver {
        /// Has a name's last lookup be older.
        fn age(&self, host: &str, by: Duration) {
            let mut names = lock(&self.names);
            let name = names.get_mut(host).unwrap();
            name.ended = name.ended.map(|at| at - by);
            name.known.iter_mut().for_each(|(at, _)| *at -= by);
        }

        fn under_way(&self) -> usize {
            lock(&self.names).values().filter(|name| name.began.is_some()).count()
        }

        fn wait_until(&self, host: &str, what: impl Fn(&Name) -> bool) {
            let deadline = Instant::now() + PATIENCE;
            while !what(&lock(&self.names)[host]) {
                assert!(Instant::now() < deadline, "the lookup of {host} didn't come so far");
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn a_name_server_that_hangs_holds_up_nobody_for_long() {
        let (answer, answers) = unbounded();
        let (resolver, asked) = fake([("dead".to_owned(), answers)].into());
        let start = Instant::now();
        let error = resolver.resolve("dead", MOMENT).unwrap_err();
        assert!(error.starts_with("the name server didn't answer in 0."), "{error}");
        assert!(start.elapsed() >= MOMENT);
        // The lookup has had its time: nobody waits for it again.
        let start = Instant::now();
        for _ in 0..100 {
            assert!(resolver.resolve("dead", MOMENT).is_err());
        }
        assert!(start.elapsed() < 20 * MOMENT, "{:?}", start.elapsed());
        answer.send(Ok(address(1))).unwrap();
        assert_eq!(resolver.resolve("dead", PATIENCE), Ok(address(1)), "late is not lost");
        assert_eq!(asked.load(SeqCst), 1, "and it was the only one");
    }

    #[test]
    fn known_addresses_do_while_a_lookup_hangs_or_fails() {
        let (answer, answers) = unbounded();
        let (resolver, asked) = fake([("a".to_owned(), answers)].into());
        answer.send(Ok(address(1))).unwrap();
        assert_eq!(resolver.resolve("a", PATIENCE), Ok(address(1)));
        assert_eq!(resolver.resolve("a", Duration::ZERO), Ok(address(1)));
        assert_eq!(asked.load(SeqCst), 1, "it is fresh");
        resolver.age("a", FRESH);
        let start = Instant::now();
        for _ in 0..100 {
            assert_eq!(resolver.resolve("a", PATIENCE), Ok(address(1)), "beside a hanging lookup");
        }
        assert!(start.elapsed() < 20 * PROMPT, "{:?}", start.elapsed());
        answer.send(Err(io::Error::other("no such name"))).unwrap();
        resolver.wait_until("a", |name| name.failure.is_some());
        assert_eq!(resolver.resolve("a", PATIENCE), Ok(address(1)));
        assert_eq!(asked.load(SeqCst), 2, "a name server that fails isn't asked at once again");
        assert!(lock(&resolver.names)["a"].is_told);
        // The machine has moved.
        answer.send(Ok(address(2))).unwrap();
        resolver.age("a", FRESH);
        assert_eq!(resolver.resolve("a", PATIENCE), Ok(address(1)), "nobody waits");
        resolver.wait_until("a", |name| name.began.is_none());
        assert_eq!(resolver.resolve("a", PATIENCE), Ok(address(2)));
        assert!(!lock(&resolver.names)["a"].is_told);
        // And back, while its name server is prompt.
        let mut moves = (3..23).map(|last| {
            resolver.age("a", FRESH);
            answer.send(Ok(address(last))).unwrap();
            let found = resolver.resolve("a", PATIENCE) == Ok(address(last));
            resolver.wait_until("a", |name| name.began.is_none());
            found
        });
        assert!(moves.any(|found| found), "not even on a busy machine at the first look");
        // For ever, they aren't believed.
        resolver.age("a", KEPT + SLOW);
        answer.send(Err(io::Error::other("no such name"))).unwrap();
        assert_eq!(resolver.resolve("a", PATIENCE), Err("no such name".to_owned()));
        answer.send(Ok(Vec::new())).unwrap();
        assert_eq!(resolver.resolve("a", PATIENCE), Err("it has no address".to_owned()));
        answer.send(Ok(address(3))).unwrap();
        assert_eq!(resolver.resolve("a", PATIENCE), Ok(address(3)), "a failure isn't kept");
    }

    #[test]
    fn names_that_hang_leave_lookups_to_others() {
        let dead: Vec<String> = (0..=MAX_LOOKUPS).map(|n| format!("d{n}")).collect();
        let (senders, receivers): (Vec<_>, Vec<_>) = dead.iter().map(|_| unbounded()).unzip();
        let (answer, answers) = unbounded();
        let mut all: Answers = dead.iter().cloned().zip(receivers).collect();
        all.insert("good".to_owned(), answers);
        let (resolver, _) = fake(all);
        answer.send(Ok(address(1))).unwrap();
        // A new name waits at most for the lookups that nothing was known of.
        for host in &dead {
            assert!(resolver.resolve(host, Duration::ZERO).is_err());
        }
        assert_eq!(resolver.under_way(), MAX_LOOKUPS);
        let error = resolver.resolve("good", MOMENT).unwrap_err();
        assert_eq!(error, "the name server didn't answer other names yet");
        lock(&resolver.names).values_mut().for_each(|name| {
            name.began = name.began.map(|began| began - SLOW);
        });
        drop(senders);
        for host in &dead[..MAX_LOOKUPS] {
            resolver.wait_until(host, |name| name.is_slow);
        }
        assert_eq!(resolver.resolve("good", PATIENCE), Ok(address(1)));
    }

    #[test]
    fn names_that_were_slow_take_half_of_the_lookups() {
        let names: Vec<String> = (0..2 * MAX_LOOKUPS).map(|n| format!("d{n}")).collect();
        let (_held, gate) = unbounded::<()>();
        let lookup = move |_: &str| gate.recv().map(|()| Vec::new()).map_err(io::Error::other);
        let resolver: &FakeResolver =
            Box::leak(Box::new(Resolver::new(Box::new(lookup) as Box<_>)));
        for host in &names {
            lock(&resolver.names).insert(host.clone(), Name { is_slow: true, ..Name::default() });
        }
        for host in &names {
            assert!(resolver.resolve(host, Duration::ZERO).is_err());
        }
        assert_eq!(resolver.under_way(), MAX_LOOKUPS / 2);
    }

    #[test]
    fn so_many_names_are_remembered() {
        let lookup = |_: &str| Ok(address(1));
        let resolver: &FakeResolver =
            Box::leak(Box::new(Resolver::new(Box::new(lookup) as Box<_>)));
        for n in 0..2 * MAX_NAMES {
            assert_eq!(resolver.resolve("used", PATIENCE), Ok(address(1)));
            assert_eq!(resolver.resolve(&format!("n{n}"), PATIENCE), Ok(address(1)));
        }
        let names = lock(&resolver.names);
        assert_eq!(names.len(), MAX_NAMES);
        assert!(names.contains_key("used"));
    }
}
