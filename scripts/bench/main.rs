//! `make bench`: Ollana beside nginx and HAProxy on one machine, against the same stand-in for
//! Ollama, in the same minutes.
//!
//! ```text
//!  load ──────────────────────────────────────► upstream    direct
//!  load ──► ollana server ────────────────────► upstream    one hop   (also nginx, haproxy)
//!  load ──► ollana client ──► ollana server ──► upstream    two hops  (also nginx, haproxy)
//! ```
//!
//! Every measurement is taken on all of these one after the other, in an order that changes, and
//! again in every round with new processes. The table shows medians, and beside them medians of
//! the ratios of neighbours: a machine that is busy with other things moves the first but hardly
//! the second. Nothing outside 127.0.0.0/8 is talked to.
//!
//! Six minutes on an idle machine. Options, behind `cargo bench --bench bench --`: `--quick` (a
//! minute and a half), `--full` (1 GiB each way, an upload of 4 GiB, instructions per request), `--rounds N`,
//! `--only PART,…` (of those in `run.rs`), `--without nginx,haproxy`, `--paired` (also two
//! hops with a key between them), `--times`, `--page` (everything, and README.md beside this file
//! and its plots are written anew), `--redraw` (only that, of the last results). For proxies that
//! somebody else has started (`original.sh`): `--serve ADDRESS` (be the stand-in for Ollama there),
//! `--direct ADDRESS` (it is there), `--through NAME=ADDRESS=PID,…` (a way to it). Variables:
//! `OLLANA_BENCH_BIN`, another ollana to measure; `OLLANA_BENCH_OTHER`, one to compare it with;
//! `OLLANA_BENCH_STATIC`, a static build, for the idle memory.
//!
//! `make bench-arm` counts instructions under qemu-user instead, with the same load and upstream:
//! `--arm`, from `scripts/bench/arm.sh`.

#[cfg(target_os = "linux")]
#[path = "."]
mod linux {
    mod answers;
    mod arm;
    mod arm_table;
    mod bulk;
    mod children;
    mod choosing;
    mod events;
    mod instructions;
    mod load;
    mod managed;
    mod measure;
    mod page;
    mod parts;
    mod plot;
    mod proxies;
    pub(crate) mod run;
    mod streams;
    mod table;
    mod upstream;
}

fn main() -> std::process::ExitCode {
    #[cfg(target_os = "linux")]
    return linux::run::main();
    #[cfg(not(target_os = "linux"))]
    {
        eprintln!("the benchmark counts on epoll and /proc, so it runs on Linux only");
        std::process::ExitCode::SUCCESS
    }
}
