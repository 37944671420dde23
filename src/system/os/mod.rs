//! What differs between operating systems about files, clocks and limits. Nothing else in this room
//! asks which one it runs on.
//!
//! On Windows, files have no modes: who may read one is inherited from its folder, and what is below
//! a user's profile is for that user, administrators and the system alone.

#[cfg(unix)]
mod unix;
#[cfg(windows)]
#[allow(missing_docs)] // They are the other systems'.
mod windows;

#[cfg(unix)]
pub use unix::*;
#[cfg(windows)]
pub use windows::*;

/// What a command of the system prints; nothing if it fails.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn output_of(program: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(program).args(arguments).output();
    output.map(|it| String::from_utf8_lossy(&it.stdout).into_owned()).unwrap_or_default()
}

/// A file or folder in a [`Folder`].
pub(crate) struct Entry {
    pub(crate) name: std::ffi::OsString,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Folder,
    Other,
    /// Some file systems don't tell.
    Unknown,
}

/// What the system is told about bytes of a file that are read.
#[derive(Clone, Copy)]
pub(crate) enum Advice {
    /// One after the other, once.
    Sequential,
    /// Not again.
    DontNeed,
}
