//! The completions in the shells that are here, the man page in the readers that are here, and the
//! help in a pager.

use std::io::Write;
use std::process::{Command, Output, Stdio};

fn ollana(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_ollana")).args(arguments).env_clear().output();
    let output = output.expect("run ollana");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// Runs a program with this as its standard input; `None` where it isn't installed.
fn feed(program: &[&str], input: &str) -> Option<Output> {
    let child = Command::new(program[0])
        .args(&program[1..])
        .env("TERM", "dumb")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        println!("skipped: {} is not installed", program[0]);
        return None;
    };
    let mut stdin = child.stdin.take().expect("its standard input");
    stdin.write_all(input.as_bytes()).expect("fed");
    drop(stdin);
    Some(child.wait_with_output().expect("its end"))
}

fn assert_silent(program: &[&str], input: &str) {
    if let Some(output) = feed(program, input) {
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && told.is_empty(), "{program:?}: {output:?}");
    }
}

/// What bash offers for these words, the last of which is being written.
fn bash_offers(words: &[&str]) -> Option<Vec<String>> {
    let words: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    let script = format!(
        "{}\n[[ $(complete -p ollana) == 'complete -F _ollana ollana' ]] || exit 3\n\
         compopt() {{ :; }}\nCOMP_WORDS=({})\nCOMP_CWORD={}\n_ollana\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
        ollana(&["completions", "bash"]),
        words.join(" "),
        words.len() - 1
    );
    let output = feed(&["bash", "--norc", "-u"], &script)?;
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    Some(text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

#[test]
fn bash_completes() {
    for (words, want) in [
        (&["ollana", "--mo"][..], &["--mode"][..]),
        (&["ollana", "--mode", ""], &["auto", "client", "server", "both"]),
        (&["ollana", "--mode", "s"], &["server"]),
        (&["ollana", "--mode", "=", "b"], &["both"]),
        (&["ollana", "--mode", "="], &["auto", "client", "server", "both"]),
        (&["ollana", "--log-format", "j"], &["json"]),
        (&["ollana", "--listen", ""], &[]),
        (&["ollana", "comp"], &["completions"]),
        (&["ollana", "completions", ""], &["bash", "zsh", "fish"]),
        (&["ollana", "help", "l"], &["limits"]),
        (&["ollana", "takeover", "--und"], &["--undo"]),
        (&["ollana", "pull", "--from", ""], &["internet", "any"]),
        (&["ollana", "serve", "--und"], &[]),
        (&["ollana", "serve", "--dae"], &["--daemon"]),
        (&["ollana", "--log-file", "/etc/pass"], &["/etc/passwd"]),
        (&["ollana", "--state-dir", "/et"], &["/etc"]),
    ] {
        let Some(mut offers) = bash_offers(words) else { return };
        offers.retain(|offer| want.contains(&offer.as_str()) || !offer.starts_with("/etc/passwd"));
        assert_eq!(offers, want, "{words:?}");
    }
}

#[test]
fn every_shell_reads_its_script() {
    assert_silent(&["bash", "--norc", "-n"], &ollana(&["completions", "bash"]));
    assert_silent(&["zsh", "-n"], &ollana(&["completions", "zsh"]));
    assert_silent(&["fish", "--no-execute"], &ollana(&["completions", "fish"]));
    assert_silent(&["shellcheck", "--shell=bash", "-"], &ollana(&["completions", "bash"]));
}

#[test]
fn fish_and_zsh_complete() {
    let script = format!(
        "{}\ncomplete -C 'ollana --mode '\ncomplete -C 'ollana takeover --und'\n",
        ollana(&["completions", "fish"])
    );
    if let Some(output) = feed(&["fish", "--no-config"], &script) {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for want in ["auto", "client", "server", "both", "--undo"] {
            assert!(text.lines().any(|line| line.starts_with(want)), "{want}: {output:?}");
        }
    }
    let script = format!(
        "autoload -U compinit && compinit -u -D\n{}\nprint -r -- $_comps[ollana]\n",
        ollana(&["completions", "zsh"])
    );
    if let Some(output) = feed(&["zsh", "-f"], &script) {
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "_ollana", "{output:?}");
    }
}

#[test]
fn the_man_page_reads_well() {
    let page = ollana(&["man"]);
    assert_silent(&["man", "--warnings", "-l", "-"], &page);
    assert_silent(&["mandoc", "-T", "lint", "-W", "warning"], &page);
}

#[test]
fn an_unknown_shell_is_told() {
    for arguments in [&["completions"][..], &["completions", "tcsh"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_ollana")).args(arguments).output();
        let output = output.expect("run ollana");
        assert_eq!(output.status.code(), Some(2));
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains("bash, zsh or fish"), "{told}");
    }
}

/// On a terminal of ten lines; `script` (util-linux) makes one.
#[test]
fn long_texts_go_through_a_pager() {
    let on_a_terminal = |pager: &str, page: &str| {
        let program = env!("CARGO_BIN_EXE_ollana");
        let line = format!("stty rows 10 cols 80; PAGER='{pager}' {program} {page}");
        let output = feed(&["script", "-qec", &line, "/dev/null"], "")?;
        Some(String::from_utf8_lossy(&output.stdout).replace('\r', ""))
    };
    let page = ollana(&["help", "limits"]);
    assert!(page.lines().count() > 10, "{page}");
    let Some(counted) = on_a_terminal("grep -c .", "help limits") else { return };
    assert_eq!(counted.trim(), page.lines().count().to_string());
    for none in ["", "/nowhere/less"] {
        assert_eq!(on_a_terminal(none, "help limits").as_deref(), Some(page.as_str()), "{none:?}");
    }
    let short = ollana(&["help", "peers"]);
    assert_eq!(on_a_terminal("grep -c .", "help peers").as_deref(), Some(short.as_str()));
}
