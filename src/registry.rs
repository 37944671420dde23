//! Which connections exist: limits in all and per source, and how they are told to end.

use std::collections::HashMap;
use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::socket;

/// Why a connection isn't let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// Too many in all: 503.
    Total,
    /// Too many from this address: 429.
    Source,
}

/// All connections of a proxy.
#[derive(Debug)]
pub struct Registry {
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
    is_draining: bool,
}

#[derive(Debug)]
struct Connection {
    stream: Arc<TcpStream>,
    source: IpAddr,
    is_busy: Arc<AtomicBool>,
}

impl Table {
    /// Closes the oldest idle connection of the source that has the most, so that nobody can keep
    /// others out by holding connections without a request. False when all are busy.
    fn evict_idle(&mut self) -> bool {
        let weight = |c: &Connection| self.per_source.get(&c.source).copied().unwrap_or(0);
        let victim = self
            .connections
            .iter()
            .filter(|(_, connection)| !connection.is_busy.load(SeqCst))
            .max_by_key(|(number, connection)| (weight(connection), std::cmp::Reverse(**number)))
            .map(|(number, _)| *number);
        let Some(victim) = victim.and_then(|number| self.remove(number)) else { return false };
        let _ = victim.stream.shutdown(Shutdown::Both);
        true
    }

    fn remove(&mut self, number: u64) -> Option<Connection> {
        let connection = self.connections.remove(&number)?;
        if let Some(count) = self.per_source.get_mut(&connection.source) {
            *count -= 1;
            if *count == 0 {
                self.per_source.remove(&connection.source);
            }
        }
        Some(connection)
    }
}

/// A connection's place; dropping it frees the place.
#[derive(Debug)]
pub struct Entry {
    registry: Arc<Registry>,
    number: u64,
    is_busy: Arc<AtomicBool>,
}

impl Registry {
    /// With these limits; loopback has none per source.
    pub fn new(max_total: usize, max_per_source: usize) -> Self {
        Registry {
            table: Mutex::new(Table::default()),
            changed: Condvar::new(),
            max_total,
            max_per_source,
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a connection in.
    ///
    /// # Errors
    /// [`Full`] says which limit is reached.
    pub fn enter(self: &Arc<Self>, stream: &Arc<TcpStream>, source: IpAddr) -> Result<Entry, Full> {
        let mut table = self.table();
        let source = source.to_canonical();
        let is_full = table.connections.len() >= self.max_total;
        if table.is_draining || (is_full && !table.evict_idle()) {
            return Err(Full::Total);
        }
        let count = table.per_source.entry(source).or_default();
        if !source.is_loopback() && *count >= self.max_per_source {
            return Err(Full::Source);
        }
        *count += 1;
        let number = table.next;
        table.next += 1;
        let is_busy = Arc::new(AtomicBool::new(false));
        let connection =
            Connection { stream: Arc::clone(stream), source, is_busy: Arc::clone(&is_busy) };
        table.connections.insert(number, connection);
        Ok(Entry { registry: Arc::clone(self), number, is_busy })
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
                let _ = connection.stream.shutdown(Shutdown::Both);
            }
        }
    }

    /// Cuts every connection so that no client takes its answer for whole.
    pub fn cut(&self) {
        for connection in self.table().connections.values() {
            socket::reset_on_close(&connection.stream);
            // Its worker takes that for the client's leaving and closes. Shutting down our own side
            // would send a FIN, which is how an answer without framing ends.
            let _ = connection.stream.shutdown(Shutdown::Read);
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
    /// A request has begun. False when the connection was already told to end.
    pub fn set_busy(&self) -> bool {
        // Under the table's lock, so that a drain either sees it busy or has closed it.
        let table = self.registry.table();
        self.is_busy.store(true, SeqCst);
        !table.is_draining
    }

    /// The request is over.
    pub fn set_idle(&self) {
        let table = self.registry.table();
        self.is_busy.store(false, SeqCst);
        if let Some(connection) = table.connections.get(&self.number).filter(|_| table.is_draining)
        {
            let _ = connection.stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut table = self.registry.table();
        // An evicted one is gone already.
        drop(table.remove(self.number));
        self.registry.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn idle_connections_give_way_busy_ones_do_not() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = listener.local_addr().expect("address");
        let registry = Arc::new(Registry::new(3, 3));
        let enter = |source: u8| {
            let stream = Arc::new(TcpStream::connect(address).expect("connect"));
            registry.enter(&stream, IpAddr::from([10, 0, 0, source]))
        };
        let hoarder = [enter(1).expect("room"), enter(1).expect("room")];
        let other = enter(2).expect("room");
        let third = enter(3).expect("an idle one of the source with the most gives way");
        assert_eq!(registry.len(), 3);
        drop(hoarder);
        assert_eq!(registry.len(), 2, "the evicted one is not counted twice");
        let last = enter(4).expect("room");
        assert!([&other, &third, &last].iter().all(|entry| entry.set_busy()));
        assert_eq!(enter(5).expect_err("all are busy"), Full::Total);
    }
}
