//! Which connections exist: limits in all and per source, and how they are told to end.
//!
//! No source may have more places than are left free, so however many sources take all that they
//! can get, and keep it, there is room for one more: one alone gets half of them, two get a third
//! each, nine a tenth. (Dynamic thresholds, as switches share their buffers: Choudhury and Hahne,
//! 1998.)

use std::collections::HashMap;
use std::net::{IpAddr, Shutdown};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::net::socket;
use crate::pairing::stream::Stream;
use crate::system::lock;

/// Places beyond the limit, for those who look at the state while all others are taken.
const RESERVE: usize = 4;

/// Why a connection isn't let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// Too many in all: 503.
    Total,
    /// Too many from this address: 429.
    Source,
}

/// How many places are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Connections now.
    pub connections: usize,
    /// Of these, the most that one other machine has.
    pub most_of_one: usize,
    /// Places in all.
    pub max: usize,
    /// Places that one other machine may have, if as many are free.
    pub max_per_source: usize,
}

/// All connections of a proxy.
#[derive(Debug)]
pub struct Connections {
    table: Mutex<Table>,
    changed: Condvar,
    max_total: usize,
    max_per_source: usize,
}

#[derive(Debug, Default)]
struct Table {
    connections: HashMap<u64, Connection>,
    per_source: HashMap<IpAddr, usize>,
    next: u64,
    reserve_taken: usize,
    is_draining: bool,
}

#[derive(Debug)]
struct Connection {
    stream: Arc<Stream>,
    is_busy: Arc<AtomicBool>,
}

/// A connection's place; dropping it frees the place.
#[derive(Debug)]
pub struct Entry {
    connections: Arc<Connections>,
    number: u64,
    source: IpAddr,
    is_busy: Arc<AtomicBool>,
    is_reserve: bool,
}

impl Connections {
    /// With these limits; loopback has none per source.
    pub fn new(max_total: usize, max_per_source: usize) -> Self {
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

    /// Lets a connection in; one of this machine to a place of the reserve, if there is no other.
    ///
    /// # Errors
    /// [`Full`] says which limit is reached.
    pub fn enter(self: &Arc<Self>, stream: &Arc<Stream>, source: IpAddr) -> Result<Entry, Full> {
        let mut table = self.table();
        let source = source.to_canonical();
        let taken = table.connections.len() - table.reserve_taken;
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
        let is_busy = Arc::new(AtomicBool::new(false));
        let connection = Connection { stream: Arc::clone(stream), is_busy: Arc::clone(&is_busy) };
        table.connections.insert(number, connection);
        Ok(Entry { connections: Arc::clone(self), number, source, is_busy, is_reserve })
    }

    /// How many places are taken.
    pub fn usage(&self) -> Usage {
        let Connections { max_total, max_per_source, .. } = *self;
        let table = self.table();
        let others = table.per_source.iter().filter(|(source, _)| !source.is_loopback());
        Usage {
            connections: table.connections.len(),
            most_of_one: others.map(|(_, count)| *count).max().unwrap_or(0),
            max: max_total,
            max_per_source,
        }
    }

    /// Connections now.
    pub fn len(&self) -> usize {
        self.table().connections.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether connections are to end after the exchange under way.
    pub fn is_draining(&self) -> bool {
        self.table().is_draining
    }

    /// Lets no more in and closes those that are idle.
    pub fn drain(&self) {
        let mut table = self.table();
        table.is_draining = true;
        for connection in table.connections.values() {
            if !connection.is_busy.load(SeqCst) {
                let _ = connection.stream.socket().shutdown(Shutdown::Both);
            }
        }
    }

    /// Cuts every connection so that no client takes its answer for whole.
    pub fn cut(&self) {
        for connection in self.table().connections.values() {
            socket::reset_on_close(connection.stream.socket());
            // Its worker takes that for the client's leaving and closes. Shutting down our own side
            // would send a FIN, which is how an answer without framing ends.
            let _ = connection.stream.socket().shutdown(Shutdown::Read);
        }
    }

    /// Waits until all have ended; false when the time is up before.
    pub fn wait_empty(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut table = self.table();
        while !table.connections.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            table = self
                .changed
                .wait_timeout(table, left)
                .map_or_else(|e| e.into_inner().0, |(table, _)| table);
        }
        true
    }
}

impl Entry {
    /// Whether it is beyond the limit, so that it may only look at the state.
    pub fn is_reserve(&self) -> bool {
        self.is_reserve
    }

    /// A request has begun. False when the connection was already told to end.
    pub fn set_busy(&self) -> bool {
        // Under the table's lock, so that a drain either sees it busy or has closed it.
        let table = self.connections.table();
        self.is_busy.store(true, SeqCst);
        !table.is_draining
    }

    /// The request is over.
    pub fn set_idle(&self) {
        let table = self.connections.table();
        self.is_busy.store(false, SeqCst);
        if let Some(connection) = table.connections.get(&self.number).filter(|_| table.is_draining)
        {
            let _ = connection.stream.socket().shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut table = self.connections.table();
        table.connections.remove(&self.number);
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
    ) -> Vec<Vec<Entry>> {
        let mut held: Vec<Vec<Entry>> = sources.iter().map(|_| Vec::new()).collect();
        loop {
            let mut is_over = true;
            for (source, held) in sources.iter().zip(&mut held) {
                if let Ok(entry) = connections.enter(stream, *source) {
                    held.push(entry);
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
            let entry = connections.enter(&stream, honest).expect("room for one more");
            drop((entry, held));
            assert!(connections.is_empty());
        }
    }

    #[test]
    fn this_machine_may_have_all_places_and_a_few_to_look_at_the_state() {
        let (stream, connections) = (stream(), Arc::new(Connections::new(8, 2)));
        let held = fill(&connections, &stream, &[IpAddr::from([127, 0, 0, 1])]);
        assert_eq!(held[0].len(), 8 + RESERVE);
        assert!(held[0].last().is_some_and(Entry::is_reserve));
        assert_eq!(
            connections.enter(&stream, IpAddr::from([10, 0, 0, 1])).err(),
            Some(Full::Total)
        );
    }
}
