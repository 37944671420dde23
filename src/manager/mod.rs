//! The Manager: the thread that owns the pool of servers, and those that serve it.
//!
//! ```text
//!  discovery ─┐                       ┌─► health check jobs (liveness)
//!  liveness  ─┼─► mailbox ─► Manager ─┼─► leases to the proxy's workers
//!  workers   ─┘   (bounded)           └─► Presence, read by the discovery's responder
//! ```
//!
//! | file | what it owns |
//! |---|---|
//! | `pool/` | the state of the servers and the choice for a request; pure |
//! | `queue` | requests that wait for a server; pure |
//! | `thread` | the Manager's thread: it decides, and never does I/O |
//! | `mailbox` | how other threads reach it: events, leases, questions |
//! | `fast_path` | leases without asking, while there is no choice |
//! | `presence` | what other threads may know without asking |
//! | `liveness` | the ticker, and the checkers that do the Manager's jobs |
//! | `store`, `wake` | what is remembered over restarts; how to wake a machine |
//!
//! The room knows nothing of proxies, packets and the status page. Sending an event never waits for
//! an answer; asking for a lease does, on a reply channel of its own.

pub(crate) mod fast_path;
pub mod liveness;
mod mailbox;
pub mod pool;
mod presence;
pub mod queue;
pub(crate) mod store;
mod thread;
pub(crate) mod wake;

pub use liveness::{CheckJob, Job};
pub use mailbox::{Inventories, Lease, Mailbox};
pub use presence::Presence;
pub use queue::{Patience, Refused};
pub use store::Memory;
pub use thread::Handle;

pub(crate) use mailbox::Snapshot;
pub(crate) use presence::About;
