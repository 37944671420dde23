//! `ollana takeover`, with a stand-in for systemd that keeps units as it would.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use super::daemon::Daemon;
use super::http::get;
use super::lan::{Host, Lan};
use super::ollama::Ollama;
use super::watch::until;
use crate::support::script;

const PATIENCE: Duration = Duration::from_secs(40);

/// Runs `ollana` as systemd would; of Ollama it only says where it has to be. Each unit has an
/// EnvironmentFile of its own, in front of those of its drop-ins; files win over Environment=, later
/// ones over earlier ones, and one that is missing fails the start (systemd.exec(5)). With a file
/// `broken` Ollama doesn't start where it is moved to, with a file `gone` it isn't installed, and a file
/// `options` has those of ollana.service.
const SYSTEMCTL: &str = r#"#!/bin/sh
echo "$*" >> "$DIR/calls"
units=/etc/systemd/system
fail() { echo "$1" >&2; exit 1; }
in_drop_ins() { sed -n "s/^$2=//p" "$units/$1.d/"*.conf 2>/dev/null; }
setting() {
    in_drop_ins "$1" Environment
    for file in "-/etc/default/${1%.service}" $(in_drop_ins "$1" EnvironmentFile); do
        case $file in -*) [ -e "${file#-}" ] || continue ;; esac
        sed '/^#/d' "${file#-}" || fail "Failed to load environment files"
    done
}
stop_ollana() {
    [ -e "$DIR/pid" ] || return 0
    kill "$(cat "$DIR/pid")"; wait_gone "$(cat "$DIR/pid")"; rm "$DIR/pid"
}
wait_gone() { while kill -0 "$1" 2>/dev/null; do sleep 0.02; done; }
start_ollana() {
    set=$(setting ollana.service) || exit 1
    env $set "$OLLANA" serve $(cat "$DIR/options" 2>/dev/null) >/dev/null 2>&1 &
    echo $! > "$DIR/pid"
}
case "$*" in
"show -p ExecStart --value ollana.service")
    echo "{ path=$OLLANA ; argv[]=$OLLANA serve $(cat "$DIR/options" 2>/dev/null) ; pid=0 }" ;;
"show -p LoadState --value ollama.service")
    if [ -e "$DIR/gone" ]; then echo not-found; else echo loaded; fi ;;
"show "*) echo loaded ;;
*ollama.service)
    [ ! -e "$DIR/gone" ] || fail "Unit ollama.service not found."
    set=$(setting ollama.service) || exit 1
    at=$(echo "$set" | sed -n '$s/^OLLAMA_HOST=//p'); at=${at:-127.0.0.1:11434}
    if [ -e "$DIR/broken" ] && [ "$at" != 127.0.0.1:11434 ]; then
        fail "Job for ollama.service failed."
    fi
    echo "$at" > "$DIR/at.new"; mv "$DIR/at.new" "$DIR/at" ;;
"restart ollana.service") stop_ollana; start_ollana ;;
"start ollana.service") start_ollana ;;
"stop ollana.service") stop_ollana ;;
esac
"#;

/// In a mount namespace of its own, where /etc has nothing but what administrators have set.
const STORY: &str = r#"
mount -t tmpfs none /etc && cd "$DIR" || exit 1
mkdir /etc/default
echo OLLANA_MODE=server > /etc/default/ollana
echo OLLAMA_HOST=127.0.0.1:11434 > /etc/default/ollama
step() { name=$1; shift; "$@" </dev/null >"$name.out" 2>&1; echo $? >"$name.code"; }
left() { ls -R /etc/systemd > "left-$1.out" 2>/dev/null; }
systemctl restart ollama.service
systemctl start ollana.service
step ask "$OLLANA" takeover
step none "$OLLANA" takeover --undo --yes
echo --mode server > options
step option "$OLLANA" takeover --yes
left option
rm options
touch broken
step broken "$OLLANA" takeover --yes
left broken
rm broken
step take "$OLLANA" takeover --yes
touch taken
n=0; while [ ! -e go ] && [ $n -lt 2000 ]; do sleep 0.02; n=$((n+1)); done
step again "$OLLANA" takeover --yes
step undo "$OLLANA" takeover --undo --yes
left undo
touch undone
n=0; while [ ! -e go-on ] && [ $n -lt 2000 ]; do sleep 0.02; n=$((n+1)); done
cd /etc/systemd/system
mkdir ollama.service.d ollana.service.d
printf '[Service]\nEnvironment=OLLAMA_HOST=127.0.0.1:11438\n' > ollama.service.d/zz-ollana-takeover.conf
printf '[Service]\nEnvironment=OLLANA_MODE=both\n' > ollana.service.d/zz-ollana-takeover.conf
cp -r . "$DIR/older"
cd "$DIR"
step older "$OLLANA" takeover --undo --yes
left older
cp -r older/* /etc/systemd/system
touch gone
step gone "$OLLANA" takeover --undo --yes
left gone
step without "$OLLANA" takeover --yes
systemctl stop ollana.service
exit 0
"#;

struct Story<'a>(&'a Path);

impl Story<'_> {
    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap_or_default()
    }

    /// Neither a takeover's files nor their folders.
    fn left_nothing(&self, name: &str) {
        let left = self.text(&format!("left-{name}.out"));
        assert!(!left.contains("zz-ollana") && !left.contains(".service.d"), "{name}: {left}");
    }

    fn ended(&self, name: &str, code: &str, with: &str) {
        let text = self.text(&format!("{name}.out"));
        assert_eq!(self.text(&format!("{name}.code")).trim(), code, "{name}: {text}");
        assert!(text.contains(with), "{name}: {text}");
        assert!(text.lines().all(|line| line.chars().count() <= 200), "{name}: {text}");
    }
}

/// Puts the stand-in for Ollama where the stand-in for systemd says.
fn follow(host: &Host, dir: &Path, is_over: &AtomicBool) {
    let mut present: Option<(String, Ollama)> = None;
    while !is_over.load(SeqCst) {
        let at = fs::read_to_string(dir.join("at")).unwrap_or_default();
        let at = at.trim();
        if !at.is_empty() && present.as_ref().is_none_or(|(old, _)| old != at) {
            drop(present.take());
            let is_free = || host.run(|| std::net::TcpListener::bind(at).is_ok());
            until("Ollama's port to be free", PATIENCE, || is_free().then_some(()));
            present = Some((at.to_owned(), Ollama::listen(host, at, "own")));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Ends the follower, whatever becomes of the test.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn ollama_makes_room_for_the_pooled_view_and_comes_back() {
    let Some(mut lan) = Lan::new(1) else { return };
    let [far, here] = [1, 2].map(|_| lan.host(&[("eth0", 0)]));
    let _far_ollama = Ollama::start(&far, "far");
    let _far_daemon = Daemon::start(&far, &[]);
    let dir = here.dir();
    let systemctl = dir.join("systemctl");
    script(&systemctl, SYSTEMCTL);
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", STORY])
        .env("PATH", format!("{}:{path}", dir.display()))
        .env("DIR", dir)
        .env("OLLANA", env!("CARGO_BIN_EXE_ollana"))
        .env("OLLANA_STATE_DIR", dir.join("state"))
        .stdin(Stdio::null());
    let mut shell = here.run(|| command.spawn()).expect("unshare runs");
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| follow(&here, dir, &is_over));
        let _over = Over(&is_over);
        let story = Story(dir);
        until("the takeover", PATIENCE, || dir.join("taken").exists().then_some(()));
        story.ended("ask", "1", "--yes goes ahead");
        assert!(story.text("ask.out").contains("restart  ollama.service"));
        story.ended("none", "1", "nothing to undo");
        story.ended("option", "1", "starts ollana with --mode, which wins over");
        story.left_nothing("option");
        story.ended("broken", "1", "back as it was");
        story.left_nothing("broken");
        story.ended("take", "0", "done");
        println!("{}", story.text("take.out"));
        until("both models at Ollama's port", PATIENCE, || {
            let body = get(&here, "/api/tags").map(|answer| answer.body).unwrap_or_default();
            (body.contains("own") && body.contains("far")).then_some(())
        });
        fs::write(dir.join("go"), "").expect("written");
        until("the end of the takeover", PATIENCE, || dir.join("undone").exists().then_some(()));
        story.ended("again", "1", "done already");
        story.ended("undo", "0", "done");
        story.left_nothing("undo");
        let body = get(&here, "/api/tags").expect("Ollama itself").body;
        assert!(body.contains("own") && !body.contains("far"), "{body}");
        fs::write(dir.join("go-on"), "").expect("written");
        let ended = until("the end", PATIENCE, || shell.try_wait().expect("its state"));
        assert!(ended.0.success());
        for name in ["older", "gone"] {
            story.ended(name, "0", "done");
            story.left_nothing(name);
        }
        assert!(!story.text("gone.out").contains("restart ollama"), "{}", story.text("gone.out"));
        story.ended("without", "1", "systemd runs no ollama.service here");
    });
}
