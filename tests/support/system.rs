//! What differs between systems, in the one form that the tests use.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{SocketAddrV4, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use super::fake::Closed;

#[cfg(unix)]
pub use unix::*;
#[cfg(windows)]
pub use windows::*;

/// Leaves a program nothing of this environment but what its system itself needs.
pub fn clear_environment(command: &mut Command) -> &mut Command {
    command.env_clear();
    // Without the first one, Windows has no sockets; Wine finds itself by its own.
    let is_needed =
        |name: &str| name.eq_ignore_ascii_case("SystemRoot") || name.starts_with("WINE");
    if cfg!(windows) {
        command.envs(std::env::vars().filter(|(name, _)| is_needed(name)));
    }
    command
}

/// Has reading end when another thread shuts the stream down. Where nothing wakes the reader, it comes
/// back by itself again and again, with [`TimedOut`](io::ErrorKind::TimedOut).
pub(super) fn sees_shutdown(stream: &TcpStream) {
    if cfg!(windows) {
        stream.set_read_timeout(Some(Duration::from_millis(100))).expect("an option");
    }
}

/// Waits until the peer has closed its half or everything, and reads nothing; `None` if that takes
/// longer.
#[cfg(target_os = "linux")]
pub(super) fn closed(stream: &TcpStream, within: Duration) -> Option<Closed> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
    let within = Timespec::try_from(within).expect("a time");
    if poll(&mut fds, Some(&within)).expect("poll") == 0 {
        return None;
    }
    let is_reset = fds[0].revents().intersects(PollFlags::ERR);
    Some(if is_reset { Closed::Reset } else { Closed::Eof })
}

/// The same where an end shows only once everything before it was read. Under Wine, the table of the
/// kernel below tells it before.
#[cfg(not(target_os = "linux"))]
pub(super) fn closed(stream: &TcpStream, within: Duration) -> Option<Closed> {
    let deadline = std::time::Instant::now() + within;
    loop {
        stream.set_nonblocking(true).expect("an option");
        let seen = stream.peek(&mut [0]);
        stream.set_nonblocking(false).expect("an option");
        match seen {
            Ok(0) => return Some(Closed::Eof),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Some(Closed::Reset),
            Ok(_) if closed_behind(stream).is_some() => return closed_behind(stream),
            _ if std::time::Instant::now() >= deadline => return None,
            _ => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn closed_behind(stream: &TcpStream) -> Option<Closed> {
    const CLOSE_WAIT: &str = "08";
    let own = stream.local_addr().ok()?.port();
    let Ok(peer) = stream.peer_addr().map(|it| it.port()) else { return Some(Closed::Reset) };
    match row(own, peer)? {
        None => Some(Closed::Reset),
        Some([state, _]) if state == CLOSE_WAIT => Some(Closed::Eof),
        Some(_) => None,
    }
}

/// A socket's state and queues in the kernel's table under Wine; `None` where there is no such table.
#[cfg(not(target_os = "linux"))]
fn row(local: u16, remote: u16) -> Option<Option<[String; 2]>> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let row = table.lines().find_map(|line| {
        let mut columns = line.split_whitespace().skip(1);
        let [from, to, state, queues] = std::array::from_fn(|_| columns.next().unwrap_or_default());
        let fits = |address: &str, port| address.ends_with(&format!(":{port:04X}"));
        (fits(from, local) && fits(to, remote)).then(|| [state, queues].map(ToOwned::to_owned))
    });
    Some(row)
}

/// Bytes that one socket has still to send, and that its program has still to read; none if it is
/// gone. The kernel is asked for this socket alone (sock_diag(7)): its whole table takes longer with
/// each connection that ended a minute ago.
#[cfg(target_os = "linux")]
pub(super) fn queues_of(local: SocketAddrV4, remote: SocketAddrV4) -> (usize, usize) {
    use std::io::Read;

    use socket2::{Socket, Type};

    const NETLINK: i32 = 16;
    const SOCK_DIAG: i32 = 4;
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const REQUEST: u16 = 1;
    let [inet, tcp] = [2, 6];
    let any = [0xff; 4];
    let mut ask = Vec::new();
    ask.extend(72u32.to_ne_bytes());
    ask.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    ask.extend(REQUEST.to_ne_bytes());
    ask.extend([0; 8]);
    ask.extend([inet, tcp, 0, 0]);
    ask.extend(any); // states
    ask.extend(local.port().to_be_bytes());
    ask.extend(remote.port().to_be_bytes());
    for end in [local, remote] {
        ask.extend(end.ip().octets());
        ask.extend([0; 12]);
    }
    ask.extend([0; 4]); // the interface
    ask.extend([any, any].concat()); // the cookie
    let protocol = Some(SOCK_DIAG.into());
    let mut socket = Socket::new(NETLINK.into(), Type::RAW, protocol).expect("a netlink socket");
    socket.send(&ask).expect("a question to the kernel");
    let mut told = [0; 1024];
    let n = socket.read(&mut told).expect("what the kernel knows of a socket");
    let kind = u16::from_ne_bytes([told[4], told[5]]);
    if kind != SOCK_DIAG_BY_FAMILY || n < 80 {
        let error = i32::from_ne_bytes(told[16..20].try_into().expect("four bytes"));
        assert_eq!(io::Error::from_raw_os_error(-error).kind(), io::ErrorKind::NotFound, "{error}");
        return (0, 0);
    }
    // Where the socket is gone, the kernel tells of the one that listens at its port.
    const LISTEN: u8 = 10;
    if told[17] == LISTEN {
        return (0, 0);
    }
    let size = |at: usize| u32::from_ne_bytes(told[at..at + 4].try_into().expect("four bytes"));
    (size(76) as usize, size(72) as usize)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn queues_of(local: SocketAddrV4, remote: SocketAddrV4) -> (usize, usize) {
    let size = |text: &str| usize::from_str_radix(text, 16).unwrap_or(0);
    let row = row(local.port(), remote.port()).flatten().unwrap_or_default();
    row[1].split_once(':').map_or((0, 0), |(sending, reading)| (size(sending), size(reading)))
}

#[cfg(unix)]
mod unix {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};

    use rustix::process::{Pid, Resource, Rlimit, getrlimit, kill_process, setrlimit};

    use super::*;

    pub use rustix::process::Signal;
    pub use std::os::unix::fs::symlink;

    /// Of a program that lets Ctrl-C end it: a signal has no code.
    pub fn ctrl_c_code() -> Option<i32> {
        None
    }

    /// Of an ollana that is told a second time to end, by [`Signal::TERM`]; so a shell names a death by it.
    pub const SECOND_TERM_CODE: i32 = 128 + 15;

    /// Lets this program have as many descriptors as it may: a crowd needs more than the 1,024 of many
    /// shells.
    pub fn raise_descriptors() {
        let maximum = getrlimit(Resource::Nofile).maximum;
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }

    pub fn send_signal(child: &Child, signal: Signal) {
        kill_process(Pid::from_child(child), signal).expect("send a signal");
    }

    /// A program can be sent every signal by itself.
    pub fn with_signals(command: &mut Command) -> &mut Command {
        command
    }

    /// Whether Ctrl-C is nothing to this run and what it starts: so it is behind a shell's `&`.
    pub fn ignores_ctrl_c() -> bool {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        ignored.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).is_ok_and(|m| m & 2 != 0))
    }

    pub fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    /// A new file that only this user may read.
    pub fn private_file(path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
    }

    /// Copies a program. Another process does it: what this one has open for writing can't be run, and
    /// children of other threads have it open too, until they run programs of their own.
    pub fn copy_program(from: &Path, to: &Path) {
        let words = ["-D", "-m", "755"];
        let done = Command::new("install").args(words).arg(from).arg(to).status();
        assert!(done.is_ok_and(|status| status.success()), "no program {}", to.display());
    }

    /// Makes a script.
    pub fn script(to: &Path, text: &str) {
        let source = to.with_extension("text");
        std::fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
        std::fs::write(&source, text).expect("a script");
        copy_program(&source, to);
        std::fs::remove_file(source).expect("its source");
    }

    /// Lets others read what is in a folder.
    pub fn open_to_others(folder: &Path) -> io::Result<()> {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))
    }

    pub fn host_name() -> String {
        rustix::system::uname().nodename().to_string_lossy().into_owned()
    }
}

#[cfg(windows)]
mod windows {
    use std::os::windows::process::CommandExt;

    use super::*;

    pub use std::os::windows::fs::symlink_file as symlink;

    /// The nearest that Windows has: what a console tells its programs.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Signal(&'static str);

    /// Of a program that lets Ctrl-C end it (STATUS_CONTROL_C_EXIT); Wine 8 says 0.
    pub fn ctrl_c_code() -> Option<i32> {
        const CONTROL_C_EXIT: i32 = 0xC000_013A_u32.cast_signed();
        Some(if std::env::var_os("WINEPREFIX").is_some() { 0 } else { CONTROL_C_EXIT })
    }

    /// Of an ollana that is told a second time to end.
    pub const SECOND_TERM_CODE: i32 = 130;

    impl Signal {
        pub const INT: Signal = Signal("ctrl-c");
        pub const TERM: Signal = Signal("ctrl-c");
        pub const HUP: Signal = Signal("");
        pub const KILL: Signal = Signal("kill");
    }

    pub fn raise_descriptors() {}

    /// By `scripts/windows/console.c`, which `make windows` builds.
    pub fn send_signal(child: &Child, signal: Signal) {
        let teller =
            std::env::var("OLLANA_TEST_CONSOLE").expect("OLLANA_TEST_CONSOLE: see make windows");
        let status = Command::new(teller).args([&child.id().to_string(), signal.0]).status();
        assert!(status.expect("it runs").success(), "{signal:?}");
    }

    /// A program with a console of its own, so that what is told there reaches nobody else.
    pub fn with_signals(command: &mut Command) -> &mut Command {
        const CREATE_NO_WINDOW: u32 = 0x0800_0000;
        command.creation_flags(CREATE_NO_WINDOW)
    }

    pub fn ignores_ctrl_c() -> bool {
        false
    }

    pub fn is_root() -> bool {
        false
    }

    /// Files are as private as the folder of this user that they are in.
    pub fn private_file(path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(true).open(path)
    }

    pub fn open_to_others(_: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub fn host_name() -> String {
        std::env::var("COMPUTERNAME").expect("this computer's name")
    }
}
