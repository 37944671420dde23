//! Which connections exist: limits in all and per source, and how they are told to end.
//!
//! A source is an IPv4 address or an IPv6 network of 64 bits, in which a machine may have any address.
//!
//! No source may have more places than are left free: one alone gets half of the places, two get a
//! third each, nine a tenth. (Dynamic thresholds, as switches share their buffers: Choudhury and
//! Hahne, 1998.) So some sources that take all they can get leave room for one more, but a dozen of
//! them leave none. Then whichever source holds more than the newcomer, most of all first, gives up
//! the connection that has been without a request for longest. If all have requests, it gives up one
//! whose body comes more slowly than [`DRIP`], so that a few bytes now and then don't keep a place. A
//! request that has come is never cut for that.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, Shutdown};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::pace::Rate;
use crate::counters::{ConnectionCounts, Usage};
use crate::net::socket;
use crate::pairing::stream::Stream;
use crate::system::lock;

/// Places beyond the limit, for programs that look at the state while all others are taken.
const RESERVE: usize = 4;
/// Connections that gave way and whose workers haven't seen it yet: what there may be beyond the limit.
const MAX_LEAVING: usize = 64;

/// A body that comes more slowly may give way: a bad radio link brings some times as much.
pub(super) const DRIP: Rate = Rate { bytes: 2 << 10, time: Duration::from_secs(8) };

/// Which limit keeps a connection out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    Total,
    Source,
}

#[derive(Debug)]
pub(crate) struct Connections {
    table: Mutex<Table>,
    changed: Condvar,
    max_total: usize,
    max_per_source: usize,
    process: Process,
}

/// What all proxies of a process may have together, those of earlier roles too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process {
    /// As many connections as it has descriptors and memory for.
    pub(crate) max: usize,
    pub(crate) taken: &'static AtomicUsize,
}

#[derive(Debug, Default)]
struct Table {
    connected: HashMap<u64, Connected>,
    per_source: HashMap<IpAddr, usize>,
    next: u64,
    reserve_taken: usize,
    leaving: usize,
    is_draining: bool,
}

#[derive(Debug)]
struct Connected {
    stream: Arc<Stream>,
    address: IpAddr,
    is_reserve: bool,
    stage: Stage,
    body: Arc<Body>,
    /// Numbers of the table count on; this is the one of its last request's end.
    since: u64,
}

/// Until when a request's body may be waited for without giving way; `None` while it isn't waited for.
#[derive(Debug, Default)]
struct Body(Mutex<Option<Instant>>);

impl Body {
    fn is_slow(&self, now: Instant) -> bool {
        lock(&self.0).is_some_and(|until| now >= until)
    }
}

/// What a connection is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Idle,
    /// Some of a request's head has come.
    Head,
    Request,
    /// It gave way to another one.
    Leaving,
}

/// A connection's place; dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Place {
    connections: Arc<Connections>,
    body: Arc<Body>,
    number: u64,
    source: IpAddr,
    is_reserve: bool,
}

/// Where an address counts.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) if !address.is_loopback() => {
            Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into()
        }
        address => address,
    }
}

#[cfg(test)]
impl Process {
    pub(crate) fn of_its_own(max: usize) -> Self {
        Process { max, taken: Box::leak(Box::default()) }
    }
}

impl Connections {
    /// With these limits; loopback has none per source.
    pub(crate) fn new(max_total: usize, max_per_source: usize, process: Process) -> Self {
        Connections {
            table: Mutex::new(Table::default()),
            changed: Condvar::new(),
            max_total,
            max_per_source,
            process,
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    /// Lets a connection in, if need be in the place of another one; one of this machine to a reserved
    /// place, if there is no other.
    pub(crate) fn enter(
        self: &Arc<Self>,
        stream: &Arc<Stream>,
        address: IpAddr,
    ) -> Result<Place, Full> {
        let mut table = self.table();
        let source = source(address);
        let taken = table.connected.len() - table.reserve_taken - table.leaving;
        let left = self.process.max.saturating_sub(self.process.taken.load(SeqCst));
        let free = self.max_total.saturating_sub(taken).min(left);
        let count = table.per_source.get(&source).copied().unwrap_or(0);
        let is_limited = !source.is_loopback();
        let has_all = is_limited && count >= self.max_per_source;
        let mut is_reserve = false;
        if table.is_draining {
            return Err(Full::Total);
        }
        if (free == 0 || has_all || is_limited && count >= free)
            && !table.make_room(source, address, has_all)
        {
            is_reserve = free == 0 && !is_limited && table.reserve_taken < RESERVE;
            if !is_reserve {
                return Err(if free == 0 { Full::Total } else { Full::Source });
            }
        }
        *table.per_source.entry(source).or_default() += 1;
        table.reserve_taken += usize::from(is_reserve);
        let number = table.count();
        let (stream, stage) = (Arc::clone(stream), Stage::Idle);
        let body = Arc::<Body>::default();
        let since = number;
        let connected =
            Connected { stream, address, is_reserve, stage, body: Arc::clone(&body), since };
        table.connected.insert(number, connected);
        self.process.taken.fetch_add(1, SeqCst);
        Ok(Place { connections: Arc::clone(self), body, number, source, is_reserve })
    }

    pub(crate) fn len(&self) -> usize {
        self.table().connected.len()
    }

    /// Whether connections are to end after the exchange under way.
    pub(crate) fn is_draining(&self) -> bool {
        self.table().is_draining
    }

    /// Lets no more in and closes those that are idle.
    pub(crate) fn drain(&self) {
        let mut table = self.table();
        table.is_draining = true;
        for idle in table.connected.values().filter(|connected| connected.stage == Stage::Idle) {
            let _ = idle.stream.socket().shutdown(Shutdown::Both);
        }
    }

    /// Closes those of which a request began to come, but hasn't come.
    pub(crate) fn end_headless(&self) {
        for headless in self.table().connected.values().filter(|it| it.stage == Stage::Head) {
            // Its worker takes that for the client's leaving and closes.
            let _ = headless.stream.socket().shutdown(Shutdown::Read);
        }
    }

    /// Cuts every connection so that no client takes its answer for whole.
    pub(crate) fn cut(&self) {
        for connected in self.table().connected.values() {
            socket::reset_on_close(connected.stream.socket());
            // Its worker takes that for the client's leaving and closes. Shutting down our own side
            // would send a FIN, which is how an answer without framing ends.
            let _ = connected.stream.socket().shutdown(Shutdown::Read);
        }
    }

    /// Waits until all have ended; false when the time is up before.
    pub(crate) fn wait_empty(&self, timeout: Duration) -> bool {
        let has_some = |table: &mut Table| !table.connected.is_empty();
        let waited = self.changed.wait_timeout_while(self.table(), timeout, has_some);
        waited.is_ok_and(|(_, waited)| !waited.timed_out())
    }
}

impl ConnectionCounts for Connections {
    fn usage(&self) -> Usage {
        let Connections { max_total, max_per_source, .. } = *self;
        let table = self.table();
        let others = table.per_source.iter().filter(|(source, _)| !source.is_loopback());
        Usage {
            connections: table.connected.len(),
            most_of_one: others.map(|(_, count)| *count).max().unwrap_or(0),
            max: max_total,
            max_per_source,
        }
    }
}

impl Place {
    /// Whether it is beyond the limit, so that it may only look at the state.
    pub(crate) fn is_reserve(&self) -> bool {
        self.is_reserve
    }

    /// A request has begun to come. False when the connection was already told to end.
    pub(crate) fn begin_head(&self) -> bool {
        let mut table = self.connections.table();
        table.moves_to(self.number, Stage::Head);
        !table.is_draining
    }

    /// The head of a request has come. False when the connection has just given way to another one.
    pub(crate) fn begin_request(&self) -> bool {
        self.connections.table().moves_to(self.number, Stage::Request)
    }

    /// Its body is waited for, and the connection may give way from then on; or it isn't any more.
    pub(super) fn await_body(&self, until: Option<Instant>) {
        *lock(&self.body.0) = until;
    }

    /// The request is over.
    pub(crate) fn set_idle(&self) {
        let mut table = self.connections.table();
        table.moves_to(self.number, Stage::Idle);
        let (since, is_draining) = (table.count(), table.is_draining);
        if let Some(connected) = table.connected.get_mut(&self.number) {
            connected.since = since;
            if is_draining {
                let _ = connected.stream.socket().shutdown(Shutdown::Both);
            }
        }
    }
}

impl Table {
    fn count(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn leave(&mut self, source: &IpAddr) {
        if let Some(count) = self.per_source.get_mut(source) {
            *count -= 1;
            if *count == 0 {
                self.per_source.remove(source);
            }
        }
    }

    /// False for a connection that gave way.
    fn moves_to(&mut self, number: u64, stage: Stage) -> bool {
        let connected = self.connected.get_mut(&number);
        connected.filter(|it| it.stage != Stage::Leaving).map(|it| it.stage = stage).is_some()
    }

    /// Ends a connection without a request, or else one whose request hardly comes, for the sake of a
    /// newcomer who has fewer, if there is one; within the newcomer's own source only, if that may have no more.
    fn make_room(&mut self, own: IpAddr, address: IpAddr, is_own_full: bool) -> bool {
        if self.leaving >= MAX_LEAVING {
            return false;
        }
        let mut of_address: HashMap<IpAddr, usize> = HashMap::new();
        for connected in self.connected.values().filter(|it| it.stage != Stage::Leaving) {
            *of_address.entry(connected.address).or_default() += 1;
        }
        let of_source = |source: &IpAddr| self.per_source.get(source).copied().unwrap_or(0);
        let held = |it: &Connected| (of_source(&source(it.address)), of_address[&it.address]);
        let newcomer = (of_source(&own), of_address.get(&address).copied().unwrap_or(0));
        let has_more = |it: &Connected| match held(it) {
            // Without an own one, any of the same network that has one.
            (_, more) if source(it.address) == own => {
                more > newcomer.1 + usize::from(newcomer.1 > 0)
            }
            (more, _) => !is_own_full && more > newcomer.0 + 1,
        };
        let now = Instant::now();
        let may_go = |it: &Connected| match it.stage {
            Stage::Idle | Stage::Head => true,
            Stage::Request => it.body.is_slow(now),
            Stage::Leaving => false,
        };
        let mut candidates: Vec<(&u64, &Connected)> = self
            .connected
            .iter()
            .filter(|(_, it)| may_go(it) && !it.is_reserve && has_more(it))
            .collect();
        candidates.sort_by_key(|(_, it)| (it.stage == Stage::Request, Reverse(held(it)), it.since));
        // What has come and wasn't read yet may be a request, or its end.
        let is_silent =
            |stream: &Stream| socket::unread(stream.socket()) == 0 && stream.is_drained();
        let found = candidates.into_iter().find(|(_, it)| is_silent(&it.stream));
        let Some(number) = found.map(|(number, _)| *number) else { return false };
        if let Some(connected) = self.connected.get_mut(&number) {
            let (stage, whose) = (connected.stage, connected.address);
            log::debug!("a connection gave way addr={whose} stage={stage:?} for={address}");
            connected.stage = Stage::Leaving;
            // Its worker takes that for the client's leaving and closes.
            let _ = connected.stream.socket().shutdown(Shutdown::Read);
            let source = source(connected.address);
            self.leave(&source);
            self.leaving += 1;
        }
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.connections.table();
        let connected = table.connected.remove(&self.number);
        table.reserve_taken -= usize::from(self.is_reserve);
        match connected.map(|connected| connected.stage) {
            Some(Stage::Leaving) => table.leaving -= 1,
            _ => table.leave(&self.source),
        }
        self.connections.process.taken.fetch_sub(1, SeqCst);
        self.connections.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn stream() -> Arc<Stream> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        Arc::new(Stream::new(TcpStream::connect(address).expect("a connection")))
    }

    /// Takes all places that these sources can get; how many each has.
    fn fill(
        connections: &Arc<Connections>,
        stream: &Arc<Stream>,
        sources: &[IpAddr],
    ) -> Vec<Vec<Place>> {
        let mut held: Vec<Vec<Place>> = sources.iter().map(|_| Vec::new()).collect();
        loop {
            let mut is_over = true;
            for (source, held) in sources.iter().zip(&mut held) {
                if let Ok(place) = connections.enter(stream, *source) {
                    held.push(place);
                    is_over = false;
                }
            }
            if is_over {
                return held;
            }
        }
    }

    #[test]
    fn whoever_takes_all_he_can_get_leaves_room_for_others() {
        let stream = stream();
        for (greedy, share) in [(1, 1024), (2, 683), (9, 205), (200, 11)] {
            let connections =
                Arc::new(Connections::new(2048, 1024, Process::of_its_own(usize::MAX)));
            let sources: Vec<IpAddr> = (0..greedy).map(|n| IpAddr::from([10, 0, 0, n])).collect();
            let held = fill(&connections, &stream, &sources);
            assert!(held.iter().all(|held| held.len() <= share), "{greedy} sources");
            let left = 2048 - connections.len();
            assert!(left >= 2048 / (usize::from(greedy) + 1) - 1, "{greedy}: {left} left");
            let most_of_one = held.iter().map(Vec::len).max().unwrap_or(0);
            let (max, max_per_source) = (2048, 1024);
            let usage = Usage { connections: connections.len(), most_of_one, max, max_per_source };
            assert_eq!(connections.usage(), usage);
            let full = connections.enter(&stream, sources[0]).err();
            assert_eq!(full, Some(Full::Source));
            let honest = IpAddr::from([10, 0, 1, 1]);
            let place = connections.enter(&stream, honest).expect("room for one more");
            drop((place, held));
            assert!(connections.len() == 0);
        }
    }

    /// Connections whose other ends are kept, so that nothing but giving way ends them.
    fn pairs(count: usize) -> Vec<(Arc<Stream>, TcpStream)> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let pair = || {
            let far = TcpStream::connect(address).expect("a connection");
            let (near, _) = listener.accept().expect("its other end");
            (Arc::new(Stream::new(near)), far)
        };
        (0..count).map(|_| pair()).collect()
    }

    /// Whether a connection was told to end.
    fn was_ended(stream: &Stream) -> bool {
        stream.socket().set_nonblocking(true).expect("non-blocking");
        matches!(stream.socket().peek(&mut [0]), Ok(0))
    }

    #[test]
    fn whoever_holds_most_gives_up_what_waits_longest_and_no_request() {
        use std::io::Write;
        let connections = Arc::new(Connections::new(10, 10, Process::of_its_own(usize::MAX)));
        let pairs = pairs(16);
        let enter = |pairs: &[(Arc<Stream>, TcpStream)], at: usize, n: u8| {
            connections.enter(&pairs[at].0, IpAddr::from([10, 0, 0, n]))
        };
        let ended = |pairs: &[(Arc<Stream>, TcpStream)]| -> Vec<usize> {
            (0..7).filter(|at| was_ended(&pairs[*at].0)).collect()
        };
        let most: Vec<Place> = (0..4).map(|at| enter(&pairs, at, 1).expect("a place")).collect();
        let more: Vec<Place> = (4..7).map(|at| enter(&pairs, at, 2).expect("a place")).collect();
        let place = |at: usize, n: u8| enter(&pairs, at, n).expect("a place");
        let others = [place(7, 3), place(8, 4), place(9, 5)];
        // One has a request under way, of one a request has arrived, one was used since.
        assert!(most[0].begin_head() && most[0].begin_request());
        most[2].set_idle();
        assert!(most[3].begin_head());
        (&pairs[1].1).write_all(b"G").expect("sent");
        let six = place(10, 6);
        assert_eq!(ended(&pairs), [3], "the one with most");
        assert!(!most[3].begin_request() && connections.usage().most_of_one == 3);
        let seven = place(11, 7);
        assert_eq!(ended(&pairs), [3, 4], "of two with as many, what waits longest");
        let eight = place(12, 8);
        assert_eq!(ended(&pairs), [2, 3, 4]);
        // Those with two have a request under way or at hand, or just as many as the newcomer.
        assert!(more[1].begin_request() && more[2].begin_request());
        for n in [1, 2, 6, 9] {
            assert_eq!(enter(&pairs, 13, n).err(), Some(Full::Total), "{n}");
        }
        // What was read is no whole request.
        pairs[1].0.try_read(&mut [0; 9]).expect("read");
        let nine = place(13, 9);
        assert_eq!(ended(&pairs), [1, 2, 3, 4]);
        assert!(most[0].begin_request() && connections.len() == 14);
        drop((most, more, others, six, seven, eight, nine));
        assert_eq!((connections.len(), connections.table().leaving), (0, 0));
        assert!(connections.table().per_source.is_empty());
    }

    #[test]
    fn a_body_that_drips_gives_way_where_all_have_requests() {
        use std::io::Write;
        let connections = Arc::new(Connections::new(7, 7, Process::of_its_own(usize::MAX)));
        let pairs = pairs(12);
        let enter = |at: usize, n: u8| connections.enter(&pairs[at].0, [10, 0, 0, n].into());
        let ended = || (0..7).filter(|at| was_ended(&pairs[*at].0)).collect::<Vec<usize>>();
        let place = |at: usize, n: u8| enter(at, n).expect("a place");
        let most: Vec<Place> = (0..3).map(|at| place(at, 1)).collect();
        let more: Vec<Place> = (3..5).map(|at| place(at, 2)).collect();
        let others = [place(5, 3), place(6, 4)];
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let (slow, fast) = (Some(now), Some(now + 600 * second));
        most.iter().for_each(|place| assert!(place.begin_head() && place.begin_request()));
        assert!(more[0].begin_request() && others.iter().all(Place::begin_request));
        most.iter().chain(&others).for_each(|place| place.await_body(slow));
        (&pairs[0].1).write_all(b"x").expect("sent");
        let six = place(7, 5);
        assert_eq!(ended(), [3 + 1], "an idle one of fewer comes first");
        let seven = place(8, 6);
        assert_eq!(ended(), [1, 4], "of those that hold most, one of which nothing is to be read");
        // All others have come, come fast enough, or are of somebody who has as few.
        for (until, want) in [(None, false), (fast, false), (slow, true)] {
            most[2].await_body(until);
            assert_eq!(enter(9, 7).is_ok(), want, "{until:?}");
        }
        assert_eq!(ended(), [1, 2, 4]);
        drop((most, more, others, six, seven));
        assert_eq!((connections.len(), connections.table().leaving), (0, 0));
    }

    #[test]
    fn an_ipv6_network_counts_as_one_in_which_everybody_gets_a_place() {
        let connections = Arc::new(Connections::new(8, 6, Process::of_its_own(usize::MAX)));
        let pairs = pairs(9);
        let address =
            |network: u16, host: u16| IpAddr::from([0xfd00, 0, 0, network, 0, 0, 0, host]);
        let enter = |at: usize, address| connections.enter(&pairs[at].0, address);
        // Each made-up address has one; the network has no more than its limit of what is free.
        let held: Vec<Place> =
            (0..4).map(|n| enter(n.into(), address(1, n)).expect("a place")).collect();
        let place = enter(4, address(1, 9)).expect("a place in turn");
        assert!(was_ended(&pairs[0].0) && connections.usage().most_of_one == 4);
        assert_eq!(enter(5, address(1, 9)).err(), Some(Full::Source), "has as many as any");
        assert!(enter(5, address(2, 1)).is_ok());
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().expect("an address");
        assert_eq!(source(mapped), IpAddr::from([10, 0, 0, 1]));
        drop((held, place));
        assert_eq!(connections.len(), 0);
    }

    #[test]
    fn this_machine_may_have_all_places_and_a_few_to_look_at_the_state() {
        let (stream, connections) =
            (stream(), Arc::new(Connections::new(8, 2, Process::of_its_own(usize::MAX))));
        let held = fill(&connections, &stream, &[IpAddr::from([127, 0, 0, 1])]);
        assert_eq!(held[0].len(), 8 + RESERVE);
        assert!(held[0].last().is_some_and(Place::is_reserve));
        assert!(held[0].iter().all(Place::begin_request));
        assert_eq!(
            connections.enter(&stream, IpAddr::from([10, 0, 0, 1])).err(),
            Some(Full::Total)
        );
    }

    #[test]
    fn what_a_process_may_have_its_proxies_have_together() {
        let (stream, process) = (stream(), Process::of_its_own(10));
        let [old, new] = [(); 2].map(|()| Arc::new(Connections::new(8, 8, process)));
        let enter = |connections: &Arc<Connections>, n: u8| {
            connections.enter(&stream, IpAddr::from([10, 0, 0, n]))
        };
        let mut held: Vec<Place> = (0..7).map(|n| enter(&old, n).expect("a place")).collect();
        held.iter().for_each(|place| assert!(place.begin_head() && place.begin_request()));
        let more: Vec<Place> = (0..3).map(|n| enter(&new, n).expect("a place")).collect();
        more.iter().for_each(|place| assert!(place.begin_head() && place.begin_request()));
        assert_eq!(enter(&new, 9).err(), Some(Full::Total), "3 of 8, but 10 of 10");
        held.pop();
        drop(enter(&new, 9).expect("what the other one gave back"));
        drop((held, more));
        assert_eq!(process.taken.load(SeqCst), 0);
    }
}
