//! Services of the operating system and of std, each in the one form that this program uses. Every
//! room may use this one, and it knows of none.

pub(crate) mod bytes;
pub(crate) mod files;
pub(crate) mod keeper;
mod os;

use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

pub use self::os::keep_one_heap;
pub(crate) use self::os::{
    SERVICE_DIR, address_space, host_name, is_memory_limited, is_stderr, leave_session,
    leave_terminal, most_descriptors, neighbours, time_since_boot, time_slept, user,
    without_console,
};

/// Virtual size of a thread's stack in bytes where address space is scarce; only touched pages are
/// resident.
pub(crate) const THREAD_STACK: usize = 256 * 1024;
/// The same where it is plenty. glibc keeps 40 MB of the stacks of threads that have ended, each with
/// six pages in use: of larger ones it keeps fewer.
const ROOMY_STACK: usize = 2 << 20;

/// Fails only where the system has no random source.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

/// Writes a line to standard error. Where that fails, nobody is left to be told; `eprintln!` would
/// panic.
pub fn to_stderr(line: &str) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// `1.3 GB`: powers of ten, as Ollama writes sizes.
pub(crate) fn size_text(mut n: f64) -> String {
    let mut units = ["kB", "MB", "GB", "TB"].into_iter();
    let mut unit = "B";
    while n >= 999.5
        && let Some(larger) = units.next()
    {
        (n, unit) = (n / 1000.0, larger);
    }
    let digits = usize::from(unit != "B" && n < 9.95);
    format!("{n:.digits$} {unit}")
}

/// Locks a mutex. A panic of another thread that held it doesn't count: every critical section of
/// ours leaves its data whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Set by the first signal that ends the process: nothing is to be waited for any more.
pub(crate) fn stop_flag() -> &'static Arc<AtomicBool> {
    static STOP: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
    &STOP
}

pub(crate) fn is_stopping() -> bool {
    stop_flag().load(SeqCst)
}

/// Starts a thread. The name shows in `top -H` and in the log.
pub(crate) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    static STACK: LazyLock<usize> = LazyLock::new(|| {
        let is_roomy = cfg!(target_pointer_width = "64") && !is_memory_limited();
        if is_roomy { ROOMY_STACK } else { THREAD_STACK }
    });
    Builder::new().name(name.to_owned()).stack_size(*STACK).spawn(run)
}

/// The exit code of a process that ended because of a thread that it can't do without.
const THREAD_FAILED: i32 = 70;

/// The same for a thread that the process can't do without: if it panics, the process ends, and its
/// service manager starts it again. A daemon without its Manager would accept requests and answer
/// none for ever.
pub(crate) fn spawn_vital(
    name: &'static str,
    run: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    spawn(name, move || {
        let _vital = Vital(name);
        #[cfg(debug_assertions)]
        if std::env::var(PLANTED).is_ok_and(|planted| planted == name) {
            std::panic::resume_unwind(Box::new("planted"));
        }
        run();
    })
}

/// For tests, in builds for tests only: the name of a vital thread that is to panic.
#[cfg(debug_assertions)]
const PLANTED: &str = "OLLANA_TEST_PANIC";

struct Vital(&'static str);

impl Drop for Vital {
    fn drop(&mut self) {
        if std::thread::panicking() {
            log::error!("ending, because the thread {:?} failed: please report it", self.0);
            log::logger().flush();
            std::process::exit(THREAD_FAILED);
        }
    }
}

/// For `map_err`: the error as text, behind what failed.
pub(crate) fn failed<E: fmt::Display>(what: impl fmt::Display) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error}")
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) struct Hex<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Reads exactly `2 * N` hexadecimal digits of either case; `None` for anything else.
pub(crate) fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    (text.len() == 2 * N).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_and_bytes_are_each_others_inverse() {
        let bytes = [0, 0x0f, 0xa7, 0xff];
        assert_eq!(Hex(&bytes).to_string(), "000fa7ff");
        assert_eq!(parse_hex("000fA7ff"), Some(bytes));
        for bad in ["", "00", "000fa7f", "000fa7ff0", "000fa7fg", "+00fa7ff", "0é0fa7f"] {
            assert_eq!(parse_hex::<4>(bad), None, "{bad}");
        }
    }

    /// Planted in a process of its own: this test, run again.
    #[cfg(debug_assertions)]
    #[test]
    fn a_vital_thread_that_panics_ends_the_process() {
        if std::env::var_os(PLANTED).is_some() {
            let thread = spawn_vital("ticker", || ());
            let _ = thread.unwrap().join();
            return;
        }
        let name = "system::tests::a_vital_thread_that_panics_ends_the_process";
        let again = |planted| {
            let mut again = std::process::Command::new(std::env::current_exe().unwrap());
            again.args(["--exact", name]).env(PLANTED, planted).output().unwrap().status.code()
        };
        assert_eq!(again("ticker"), Some(THREAD_FAILED));
        assert_eq!(again("another"), Some(0), "and its end ends nothing");
    }

    #[test]
    fn a_lock_outlives_a_panic() {
        let mutex = Mutex::new(1);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _guard = lock(&mutex);
            panic!("on purpose");
        }));
        assert!(panicked.is_err());
        assert_eq!(*lock(&mutex), 1);
    }
}
