//! Intervals, time-outs, counts and sizes, each with its reason.

use std::time::Duration;

with_defaults! {
    /// Intervals and time-outs.
    pub struct Timing {
        /// Between two discovery probes; ± 10 % jitter, so that machines that start together don't
        /// stay in step.
        probe_interval: Duration = Duration::from_secs(5),
        /// Between two health checks of one server.
        health_interval: Duration = Duration::from_secs(1),
        /// A health check without an answer by then has failed.
        health_timeout: Duration = Duration::from_millis(1500),
        /// TCP connect to an upstream: a LAN answers in milliseconds, and the kernel repeats a lost
        /// SYN after 1 s.
        connect_timeout: Duration = Duration::from_millis(1300),
        /// The same to the only server that can do a request, as long as it isn't known to be down: on
        /// a bad radio link the kernel needs several SYNs.
        patient_connect_timeout: Duration = Duration::from_secs(15),
        /// Whole request head, from its first byte.
        head_timeout: Duration = Duration::from_secs(10),
        /// Idle keep-alive connection: above the 90 s of Go's HTTP client, so that it closes first
        /// and no request meets our closing.
        idle_timeout: Duration = Duration::from_secs(120),
        /// Request body without a new byte from the client.
        body_timeout: Duration = Duration::from_secs(60),
        /// Peer that reads nothing of what is sent to it.
        stall_timeout: Duration = Duration::from_secs(120),
        /// Answer to a read whose client has ended its side: it waits, or it is gone, which nothing
        /// tells before something is sent to it. A stopped server must not gather those of a program
        /// that gives up and asks again.
        half_closed_timeout: Duration = Duration::from_secs(30),
        /// A request waits for a server that is just being checked: one health check's time.
        wait_timeout: Duration = Duration::from_millis(1500),
        /// A request waits while all servers that could answer it are busy.
        queue_timeout: Duration = Duration::from_secs(60),
        /// A request waits for a machine that was woken for it.
        wake_timeout: Duration = Duration::from_secs(60),
        /// Streams may finish after SIGTERM.
        drain_timeout: Duration = Duration::from_secs(30),
    }
}

with_defaults! {
    /// Counts, and sizes in bytes.
    pub struct Limits {
        /// Successful health checks in a row before a server gets work.
        rise: u32 = 1,
        /// Unanswered health checks in a row before it gets none; a refused one counts at once.
        fall: u32 = 2,
        /// Client connections in all; each has a thread.
        max_connections: usize = 2048,
        /// Client connections from one remote address; loopback is exempt.
        max_connections_per_source: usize = 1024,
        /// Size of a request head.
        max_head: usize = 64 << 10,
        /// Fields in a request head.
        max_fields: usize = 100,
        /// Size of a request body that is kept for another try.
        replay_limit: usize = 4 << 20,
        /// Size of all kept bodies together.
        replay_budget: usize = 64 << 20,
        /// Servers in the pool.
        max_servers: usize = 64,
        /// Inferences that one server gets at once; 0: learned when its Ollama is overloaded.
        max_in_flight: u32 = 0,
    }
}
