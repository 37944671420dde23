//! Which connections exist: limits in all and per source, and how they are told to end.
//!
//! No source may have more places than are left free. So however many sources take all that they
//! can get, and keep it, there is room for one more: one alone gets half of the places, two get a
//! third each, nine a tenth. (Dynamic thresholds, as switches share their buffers: Choudhury and
//! Hahne, 1998.)

use std::collections::HashMap;
use std::net::{IpAddr, Shutdown};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crate::counters::{ConnectionCounts, Usage};
use crate::net::socket;
use crate::pairing::stream::Stream;
use crate::system::lock;

/// Places beyond the limit, for programs that look at the state while all others are taken.
const RESERVE: usize = 4;

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
}

#[derive(Debug, Default)]
struct Table {
    connected: HashMap<u64, Connected>,
    per_source: HashMap<IpAddr, usize>,
    next: u64,
    reserve_taken: usize,
    is_draining: bool,
}

#[derive(Debug)]
struct Connected {
    stream: Arc<Stream>,
    is_busy: bool,
}

/// A connection's place; dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Place {
    connections: Arc<Connections>,
    number: u64,
    source: IpAddr,
    is_reserve: bool,
}

impl Connections {
    /// With these limits; loopback has none per source.
    pub(crate) fn new(max_total: usize, max_per_source: usize) -> Self {
        Connections {
            table: Mutex::new(Table::default()),
            changed: Condvar::new(),
            max_total,
            max_per_source,
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    /// Lets a connection in; one of this machine to a reserved place, if there is no other.
    pub(crate) fn enter(
        self: &Arc<Self>,
        stream: &Arc<Stream>,
        source: IpAddr,
    ) -> Result<Place, Full> {
        let mut table = self.table();
        let source = source.to_canonical();
        let taken = table.connected.len() - table.reserve_taken;
        let free = self.max_total.saturating_sub(taken);
        let is_full = free == 0;
        let is_reserve = is_full && source.is_loopback() && table.reserve_taken < RESERVE;
        if table.is_draining || (is_full && !is_reserve) {
            return Err(Full::Total);
        }
        let count = table.per_source.entry(source).or_default();
        if !source.is_loopback() && *count >= self.max_per_source.min(free) {
            return Err(Full::Source);
        }
        *count += 1;
        table.reserve_taken += usize::from(is_reserve);
        let number = table.next;
        table.next += 1;
        let connected = Connected { stream: Arc::clone(stream), is_busy: false };
        table.connected.insert(number, connected);
        Ok(Place { connections: Arc::clone(self), number, source, is_reserve })
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
        for idle in table.connected.values().filter(|connected| !connected.is_busy) {
            let _ = idle.stream.socket().shutdown(Shutdown::Both);
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

    /// A request has begun. False when the connection was already told to end.
    pub(crate) fn set_busy(&self) -> bool {
        let mut table = self.connections.table();
        if let Some(connected) = table.connected.get_mut(&self.number) {
            connected.is_busy = true;
        }
        !table.is_draining
    }

    /// The request is over.
    pub(crate) fn set_idle(&self) {
        let mut table = self.connections.table();
        let is_draining = table.is_draining;
        if let Some(connected) = table.connected.get_mut(&self.number) {
            connected.is_busy = false;
            if is_draining {
                let _ = connected.stream.socket().shutdown(Shutdown::Both);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.connections.table();
        table.connected.remove(&self.number);
        table.reserve_taken -= usize::from(self.is_reserve);
        if let Some(count) = table.per_source.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                table.per_source.remove(&self.source);
            }
        }
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
            let connections = Arc::new(Connections::new(2048, 1024));
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

    #[test]
    fn this_machine_may_have_all_places_and_a_few_to_look_at_the_state() {
        let (stream, connections) = (stream(), Arc::new(Connections::new(8, 2)));
        let held = fill(&connections, &stream, &[IpAddr::from([127, 0, 0, 1])]);
        assert_eq!(held[0].len(), 8 + RESERVE);
        assert!(held[0].last().is_some_and(Place::is_reserve));
        assert_eq!(
            connections.enter(&stream, IpAddr::from([10, 0, 0, 1])).err(),
            Some(Full::Total)
        );
    }
}
