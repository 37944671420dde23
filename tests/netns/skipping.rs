//! Without the right to make namespaces, the tests say so and pass.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::support::copy_program;

/// A user that owns nothing.
const NOBODY: u32 = 65534;

#[test]
fn without_root_one_line_says_why() {
    let own = std::env::current_exe().expect("this program");
    // Where everybody may run it.
    let copy = std::env::temp_dir().join(format!("ollana-netns-{}-copy", std::process::id()));
    copy_program(&own, &copy);
    let mut command = Command::new(&copy);
    command.args(["netns::basics", "--test-threads=2"]).current_dir("/");
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = command.output();
    fs::remove_file(&copy).expect("removed");
    let output = output.expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("skipped: they need root"), "{said}");
}
