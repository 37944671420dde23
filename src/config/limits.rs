//! Intervals, time-outs, counts and sizes, each with its reason.

use std::time::Duration;

/// Intervals and time-outs.
#[derive(Clone, Debug)]
pub struct Timing {
    /// Between two discovery probes; ± 10 % jitter, so that machines that start together don't
    /// stay in step.
    pub probe_interval: Duration,
    /// Between two health checks of one backend.
    pub health_interval: Duration,
    /// A health check without an answer by then has failed.
    pub health_timeout: Duration,
    /// TCP connect to an upstream: a LAN answers in milliseconds, and the kernel repeats a lost SYN
    /// after 1 s.
    pub connect_timeout: Duration,
    /// Whole request head, from its first byte.
    pub head_timeout: Duration,
    /// Idle keep-alive connection: above the 90 s of Go's HTTP client, so that it closes first and
    /// no request meets our closing.
    pub idle_timeout: Duration,
    /// Request body without a new byte from the client.
    pub body_timeout: Duration,
    /// Peer that reads nothing of what is sent to it.
    pub stall_timeout: Duration,
    /// A request waits for a server that is just being checked: one health check's time.
    pub wait_timeout: Duration,
    /// A request waits while all servers that could answer it are busy.
    pub queue_timeout: Duration,
    /// A request waits for a machine that was woken for it.
    pub wake_timeout: Duration,
    /// Streams may finish after SIGTERM.
    pub drain_timeout: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            probe_interval: Duration::from_secs(5),
            health_interval: Duration::from_secs(1),
            health_timeout: Duration::from_millis(1500),
            connect_timeout: Duration::from_millis(1300),
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(120),
            body_timeout: Duration::from_secs(60),
            stall_timeout: Duration::from_secs(120),
            wait_timeout: Duration::from_millis(1500),
            queue_timeout: Duration::from_secs(60),
            wake_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// Counts, and sizes in bytes.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Successful health checks in a row before a backend gets work.
    pub rise: u32,
    /// Unanswered health checks in a row before it gets none; a refused one counts at once.
    pub fall: u32,
    /// Client connections in all; each has a thread.
    pub max_connections: usize,
    /// Client connections from one remote address; loopback is exempt.
    pub max_connections_per_source: usize,
    /// Size of a request head.
    pub max_head: usize,
    /// Fields in a request head.
    pub max_fields: usize,
    /// Size of a request body that is kept for another try.
    pub replay_limit: usize,
    /// Size of all kept bodies together.
    pub replay_budget: usize,
    /// Servers in the pool.
    pub max_servers: usize,
    /// Requests that one server gets at once; 0: learned from its busy answers.
    pub max_in_flight: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            rise: 1,
            fall: 2,
            max_connections: 2048,
            max_connections_per_source: 1024,
            max_head: 64 << 10,
            max_fields: 100,
            replay_limit: 4 << 20,
            replay_budget: 64 << 20,
            max_servers: 64,
            max_in_flight: 0,
        }
    }
}
