//! `ollana service` with stand-ins for the programs that each system has for it, below a root of its
//! own. Only builds for tests have such a root.
#![cfg(debug_assertions)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{self, eventually};

/// Every stand-in: it notes its call, then does a little of what the program does.
const START: &str = "#!/bin/sh\necho \"${0##*/} $*\" >>\"$ROOT/calls\"\nstate=\"$ROOT/state\"\n";
const SYSTEMCTL: &str = r#"
case "$*" in
*restart*ollana*) [ ! -e "$ROOT/broken" ] || { echo "Job for ollana.service failed." >&2; exit 1; }
    : >"$state" ;;
*disable*) rm -f "$state" ;;
*is-active*) [ -e "$state" ] ;;
*show-environment*) [ ! -e "$ROOT/no-bus" ] ;;
esac
"#;
const LAUNCHCTL: &str = r#"
case $1 in
bootstrap) [ ! -e "$state" ] || { echo "Bootstrap failed: 5" >&2; exit 5; }; : >"$state" ;;
bootout) rm "$state" ;;
print) [ -e "$state" ] || exit 113; printf 'org.ollana.ollana = {\n\tstate = running\n}\n' ;;
esac
"#;
const REG: &str = r#"
case $1 in
add) printf '%s' "$8" >"$state" ;;
query) [ -e "$state" ] || exit 1; printf '\r\n%s\r\n    Ollana    REG_SZ    %s\r\n\r\n' "$2" "$(cat "$state")" ;;
delete) rm "$state" ;;
esac
"#;
const TASKLIST: &str = r#"
pid=${2#PID eq }
case $(sed -n 's/^State:.//p' "/proc/$pid/status" 2>/dev/null) in
Z* | '') echo 'INFO: No tasks are running which match the specified criteria.' ;;
*) printf '"%s.exe","%s","Console","1","9,000 K"\r\n' "$(cat "/proc/$pid/comm")" "$pid" ;;
esac
"#;
const ID: &str = r#"[ "$1" != ollana ] && exec /usr/bin/id "$@""#;
const NETSH: &str = r#"
[ -e "$ROOT/administrator" ] || { echo; echo "The requested operation requires elevation."; exit 1; }
"#;
const RC_SERVICE: &str = r#"
case $2 in restart) : >"$state" ;; stop) rm "$state" ;; status) [ -e "$state" ] ;; esac
"#;

/// Ports belong to a zone; what is permanent counts after a reload. A change that changes nothing
/// succeeds.
const FIREWALL_CMD: &str = r#"
[ -e "$ROOT/firewalld" ] || { echo "not running" >&2; exit 252; }
zone=public kind=runtime
for option; do
    case $option in --zone=*) zone=${option#*=} ;; --permanent) kind=permanent ;; esac
done
[ -d "$ROOT/firewalld/$zone" ] || { echo "Error: INVALID_ZONE: $zone" >&2; exit 112; }
ports=$ROOT/firewalld/$zone/$kind
[ -e "$ports" ] || : >"$ports"
for option; do
    case $option in
    --state | --permanent | --zone=*) ;;
    --get-default-zone) echo public ;;
    --get-zone-of-interface=*)
        place=$(echo "$ROOT"/firewalld/*/"interface-${option#*=}")
        [ -e "$place" ] || { echo "no zone" >&2; exit 2; }
        place=${place%/*}
        echo "${place##*/}" ;;
    --list-all) echo "$zone (active)"; cat "$ROOT/firewalld/$zone/target" ;;
    --query-port=*) grep -qx "port=${option#*=}" "$ports" || { echo no; exit 1; } ;;
    --add-*) echo "${option#--add-}" >>"$ports" ;;
    --remove-*) left=$(grep -vx "${option#--remove-}" "$ports"); echo "$left" >"$ports" ;;
    --reload)
        for ports in "$ROOT"/firewalld/*/permanent; do cp "$ports" "${ports%/*}/runtime"; done ;;
    *) echo "unrecognized arguments: $option" >&2; exit 2 ;;
    esac
done
"#;

struct Host {
    root: PathBuf,
    /// System and user, as the program is to take them.
    who: String,
}

impl Host {
    /// With a program in /usr/local/bin.
    fn new(name: &str, system: &str, user: u32) -> Self {
        let name = format!("service-{}-{name}", std::process::id());
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let host = Host { root, who: format!("{system} {user}") };
        for folder in ["usr/local/bin", "home/me", "etc", "fake"] {
            fs::create_dir_all(host.root.join(folder)).expect("a folder");
        }
        host.link("usr/local/bin/ollana");
        for (name, script) in [
            ("systemctl", SYSTEMCTL),
            ("launchctl", LAUNCHCTL),
            ("reg", REG),
            ("tasklist", TASKLIST),
            ("id", ID),
            ("netsh", NETSH),
            ("rc-service", RC_SERVICE),
            ("rc-update", ""),
            ("update-rc.d", ""),
            ("useradd", ""),
            ("usermod", ""),
            ("chown", ""),
            ("ufw", ""),
            ("firewall-cmd", FIREWALL_CMD),
            ("taskkill", "kill -9 \"$3\""),
        ] {
            support::script(&host.root.join("fake").join(name), &format!("{START}{script}"));
        }
        host
    }

    fn link(&self, path: &str) {
        let (program, path) = (env!("CARGO_BIN_EXE_ollana"), self.root.join(path));
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        if fs::hard_link(program, &path).is_err() {
            support::copy_program(Path::new(program), &path);
        }
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }

    fn text(&self, path: &str) -> String {
        let path = self.root.join(path);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// What stand-ins were called with since this was asked last.
    fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.root.join("calls")).unwrap_or_default();
        let _ = fs::remove_file(self.root.join("calls"));
        let asks = [
            "is-active",
            "show-environment",
            "print",
            "query",
            "tasklist",
            "id ",
            "--state",
            "--get-",
            "--list-all",
            "ollana status",
        ];
        let is_asking = |call: &&str| asks.iter().any(|ask| call.contains(ask));
        calls.lines().filter(|call| !is_asking(call)).map(str::to_owned).collect()
    }

    /// Every file but the stand-ins' and what a daemon keeps, with its text.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        fn walk(folder: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
            for entry in fs::read_dir(folder).expect("a folder").flatten() {
                let path = entry.path();
                // Scripts in /etc are called so, too.
                let is_program = path.ends_with("bin/ollana") || path.ends_with("me/ollana");
                if path.is_dir() {
                    walk(&path, found);
                } else if is_program {
                    found.insert(path, Vec::new());
                } else {
                    found.insert(path.clone(), fs::read(path).expect("a file"));
                }
            }
        }
        let mut found = BTreeMap::new();
        for folder in ["etc", "usr", "home", "Library"] {
            if self.root.join(folder).exists() {
                walk(&self.root.join(folder), &mut found);
            }
        }
        found.retain(|path, _| !path.to_string_lossy().contains("/.local/state/"));
        found
    }

    /// firewalld with a zone that has these interfaces.
    fn zone(&self, name: &str, target: &str, interfaces: &[&str]) {
        self.write(&format!("firewalld/{name}/target"), &format!("  target: {target}\n"));
        for interface in interfaces {
            self.write(&format!("firewalld/{name}/interface-{interface}"), "");
        }
    }

    fn run_from(&self, program: &str, arguments: &str) -> (Option<i32>, String) {
        self.run_command(program, &format!("service {arguments}"))
    }

    fn run_command(&self, program: &str, words: &str) -> (Option<i32>, String) {
        self.run_words(program, &words.split_whitespace().collect::<Vec<_>>())
    }

    fn run_words(&self, program: &str, words: &[&str]) -> (Option<i32>, String) {
        self.ended(Command::new(self.root.join(program)).args(words))
    }

    /// Runs a command where the stand-ins are: its code, and what it says.
    fn ended(&self, command: &mut Command) -> (Option<i32>, String) {
        let path = std::env::var("PATH").unwrap_or_default();
        let output = command
            .env_clear()
            .env("PATH", format!("{}:{path}", self.root.join("fake").display()))
            .env("ROOT", &self.root)
            .env("HOME", self.root.join("home/me"))
            .env("OLLANA_TEST_HOST", format!("{} {}", self.who, self.root.display()))
            .envs(
                ["run", "state", "log"]
                    .map(|name| (format!("OLLANA_{}", name.to_uppercase()), self.root.join(name))),
            )
            .env("OLLANA_PROGRAM", self.root.join("usr/local/bin/ollana"))
            // What install.sh heeds.
            .env("PREFIX", self.root.join("usr/local"))
            .env("OLLANA", self.root.join("home/me/ollana"))
            .current_dir(&self.root)
            .stdin(Stdio::null())
            .output()
            .expect("it runs");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    }

    fn run(&self, arguments: &str) -> (Option<i32>, String) {
        self.run_from("usr/local/bin/ollana", arguments)
    }

    /// A run that ends with this code and says all of this.
    fn says(&self, arguments: &str, code: i32, parts: &[&str]) -> String {
        let (got, text) = self.run(arguments);
        assert_eq!(got, Some(code), "{arguments}: {text}");
        let one_line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in parts {
            assert!(one_line.contains(part), "{arguments}: no {part:?} in {text}");
        }
        text
    }

    /// What holds on every system: a dry run changes nothing, a second installation neither, and a
    /// removal leaves what was there before.
    fn installs_and_removes(&self, options: &str, manager: &str) {
        let before = self.files();
        self.says("status", 1, &[&format!("manager {manager}"), "installed no"]);
        let dry =
            self.says(&format!("install --dry-run {options}"), 0, &["starts /usr/local/bin/"]);
        self.says("remove", 0, &["not installed"]);
        assert_eq!(self.calls(), [] as [&str; 0]);
        assert_eq!(self.files(), before);
        let done = self.says(&format!("install {options}"), 0, &["ollana runs."]);
        assert!(done.starts_with(&dry), "{dry}\nand then\n{done}");
        let (installed, calls) = (self.files(), self.calls());
        self.says(
            "status",
            0,
            &[
                "program /usr/local/bin/ollana",
                "running yes",
                concat!("version ollana ", env!("CARGO_PKG_VERSION")),
            ],
        );
        self.says(&format!("install {options}"), 0, &["ollana runs."]);
        assert_eq!(self.files(), installed, "a second installation");
        assert!(self.calls().last() == calls.last(), "it is started anew");
        self.says("remove --dry-run", 0, &[]);
        assert_eq!(self.calls(), [] as [&str; 0]);
        self.says("remove", 0, &["removed; keys and what ollana remembers are left"]);
        assert_eq!(self.files(), before, "after the removal");
        self.says("status", 1, &["installed no"]);
        self.calls();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

const OPTIONS: &str = "--server=PC --pin a=b --key-file key -- --prefer $HOME";

fn systemd(name: &str, user: u32) -> Host {
    let host = Host::new(&format!("systemd-{name}"), "linux", user);
    fs::create_dir_all(host.root.join("run/systemd/system")).expect("a folder");
    host
}

#[test]
fn root_has_systemd_start_it() {
    let host = systemd("root", 0);
    fs::create_dir_all(host.root.join("etc/polkit-1/rules.d")).expect("a folder");
    host.installs_and_removes(OPTIONS, "systemd");
    host.says(&format!("install {OPTIONS}"), 0, &[]);
    let unit = host.text("etc/systemd/system/ollana.service");
    let key = host.root.join("key");
    let start = format!(
        "ExecStart=/usr/local/bin/ollana serve --server=PC --pin=a=b --key-file={} --prefer=$$HOME\n",
        key.display()
    );
    assert!(unit.contains(&start) && unit.contains("DynamicUser=yes"), "{unit}");
    assert!(host.text("etc/polkit-1/rules.d/ollana.rules").contains("inhibit-block-sleep"));
    let generator = host.root.join("etc/systemd/system-generators/ollana");
    assert_ne!(fs::metadata(generator).expect("a file").permissions().mode() & 0o111, 0);
    assert_eq!(
        host.calls(),
        [
            "systemctl daemon-reload",
            "systemctl enable --quiet ollana.service",
            "systemctl restart ollana.service",
        ]
    );
    // Variables that somebody has set stay.
    host.write("etc/default/ollana", "OLLANA_MODE=client\n");
    host.says("install", 0, &[]);
    host.says("remove", 0, &[]);
    assert_eq!(host.text("etc/default/ollana"), "OLLANA_MODE=client\n");
    assert!(!host.root.join("etc/systemd/system/ollana.service").exists());
}

/// A reader that leaves (`| head -1`) ends nothing half-way. Where there is no room for what is said, the
/// code tells.
#[test]
fn nothing_is_done_by_half_because_nobody_reads() {
    let host = systemd("unread", 0);
    host.write("etc/ufw/ufw.conf", "ENABLED=yes\n");
    let run = |action: &str, output: Stdio| {
        let mut command = Command::new(host.root.join("usr/local/bin/ollana"));
        let (code, text) = host.ended(command.args(["service", action]).stdout(output));
        (code, text, host.calls().last().cloned())
    };
    for (action, last) in [
        ("install", "systemctl restart ollana.service"),
        ("status", ""),
        ("firewall", "ufw allow proto udp from any port 11436"),
        ("remove", "systemctl daemon-reload"),
    ] {
        let (code, text, call) = run(action, support::unread());
        assert_eq!((code, text.as_str()), (Some(0), ""), "{action}");
        assert_eq!(call.unwrap_or_default(), last, "{action}");
        if action == "remove" {
            host.says("install", 0, &["ollana runs."]);
        }
        let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        let (code, text, call) = run(action, full.into());
        assert_eq!(code, Some(1), "{action}: {text}");
        assert!(text.contains("some of what it said is lost: cannot write: No space"), "{text}");
        assert_eq!(call.unwrap_or_default(), last, "{action}");
    }
}

/// Without an ollana, Ollama has to be where programs look for it.
#[test]
fn a_removal_gives_ollamas_port_back() {
    const MOVED: &str = "etc/systemd/system/ollama.service.d/zz-ollana-takeover.conf";
    let host = systemd("moved", 0);
    let before = host.files();
    host.says("install", 0, &[]);
    for file in ["ollama.service.d/zz-ollana-takeover", "ollana.service.d/zz-ollana-takeover"] {
        host.write(&format!("etc/systemd/system/{file}.conf"), "");
        host.write(&format!("etc/systemd/system/{file}.env"), "");
    }
    host.calls();
    let shown = format!("remove {}", host.root.join(MOVED).display());
    let plan = ["run systemctl daemon-reload", "run systemctl try-restart ollama.service"];
    host.says("remove --dry-run", 0, &[&shown, plan[0], plan[1]]);
    host.says("remove", 0, &[&shown, plan[0], plan[1]]);
    assert_eq!(
        host.calls(),
        [
            "systemctl disable --now --quiet ollana.service",
            "systemctl daemon-reload",
            "systemctl try-restart ollama.service",
        ]
    );
    assert_eq!(host.files(), before);
    for folder in ["ollama.service.d", "ollana.service.d"] {
        assert!(!host.root.join("etc/systemd/system").join(folder).exists(), "{folder}");
    }
    // A takeover needs no service of ollana's, and others have drop-ins too.
    host.write("etc/systemd/system/ollama.service.d/override.conf", "");
    let before = host.files();
    host.write(MOVED, "");
    host.says("remove", 0, &[&shown]);
    assert_eq!(host.files(), before);
    assert_eq!(host.calls(), ["systemctl daemon-reload", "systemctl try-restart ollama.service"]);
    // A package's ollana goes on.
    host.write("lib/systemd/system/ollana.service", "");
    host.write(MOVED, "");
    host.says("remove", 0, &["not installed"]);
    assert!(host.root.join(MOVED).exists());
}

#[test]
fn what_cannot_be_installed_says_why_and_changes_nothing() {
    let host = systemd("not", 0);
    host.link("home/me/ollana");
    let before = host.files();
    let (code, text) = host.run_from("home/me/ollana", "install");
    assert!(code == Some(1) && text.contains("don't see /home/me/ollana"), "{text}");
    for (arguments, code, why) in [
        ("", 2, "install, remove, status or firewall"),
        ("start", 2, "install, remove, status or firewall"),
        ("install --nope", 2, "unknown option --nope"),
        ("install -- --mode sideways", 2, "auto, client, server or both"),
        ("install -- serve", 2, "service does not take \"serve\""),
        ("install --daemon", 2, "service does not take --daemon"),
        ("uninstall", 2, "did you mean remove?"),
        ("install --undo", 2, "what undoes it is: ollana service remove"),
        ("install --undo --dry-run", 2, "service install does not take --undo"),
        ("remove --undo", 2, "service remove does not take --undo"),
        ("status --undo", 2, "service status does not take --undo"),
    ] {
        host.says(arguments, code, &[why]);
    }
    assert_eq!(host.files(), before);
    host.write("broken", "");
    host.says(
        "install",
        1,
        &["systemctl restart ollana.service failed: Job for ollana.service failed"],
    );
    host.says("remove", 0, &[]);
    host.write("lib/systemd/system/ollana.service", "ExecStart=/usr/bin/ollana serve\n");
    host.says("install", 1, &["a package has installed", "systemctl enable --now ollana"]);
    assert_eq!(host.files(), before);
    let nobody = Host::new("nobody", "linux", 1000);
    nobody.write("no-bus", "");
    nobody.says(
        "install",
        1,
        &["knows no service manager of this machine (linux)", "serve --daemon"],
    );
    fs::create_dir_all(nobody.root.join("etc/init.d")).expect("a folder");
    nobody.says("install", 1, &["services are root's here: use sudo"]);
}

#[test]
fn a_user_has_the_own_systemd_start_it() {
    let host = systemd("user", 1000);
    host.installs_and_removes(OPTIONS, "systemd --user");
    host.says("install --mode client", 0, &["loginctl enable-linger"]);
    let unit = host.text("home/me/.config/systemd/user/ollana.service");
    assert!(unit.contains("ExecStart=/usr/local/bin/ollana serve --mode=client\n"), "{unit}");
    assert!(!unit.contains("DynamicUser") && unit.contains("WantedBy=default.target"), "{unit}");
    assert_eq!(host.calls()[1], "systemctl --user enable --quiet ollana.service");
    host.says("remove", 0, &[]);
    host.write("etc/systemd/system/ollana.service", "");
    host.says("install", 1, &["the system runs ollana already"]);
}

#[test]
fn openrc_starts_it_as_a_user_of_its_own() {
    let host = Host::new("openrc", "linux", 0);
    host.write("sbin/openrc-run", "");
    host.write("etc/group", "root:x:0:\nollama:x:990:\n");
    host.installs_and_removes(OPTIONS, "openrc");
    host.says("install --prefer it's", 0, &[]);
    let script = host.root.join("etc/init.d/ollana");
    assert_ne!(fs::metadata(&script).expect("a file").permissions().mode() & 0o111, 0);
    assert_eq!(
        &host.calls()[1..],
        [
            "usermod -a -G ollama ollana",
            "rc-update add ollana default",
            "rc-service ollana restart",
        ]
    );
    // As openrc-run reads it, and then the words as supervise-daemon gets them.
    let line = ". \"$0\"; eval \"set -- $command_args\"; printf '%s\\n' \"$command\" \"$@\"";
    let output = Command::new("sh").args(["-c", line]).arg(&script).output().expect("sh");
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    let words: Vec<&str> = words.lines().collect();
    assert_eq!((words[0], words[1]), ("/usr/local/bin/ollana", "serve"));
    assert_eq!(words.last(), Some(&"--prefer=it's"));
}

/// The script is the real one, and so is what it starts.
#[test]
fn a_sysv_script_starts_and_stops_it() {
    let host = Host::new("sysv", "linux", 0);
    fs::create_dir_all(host.root.join("etc/init.d")).expect("a folder");
    let options = "--mode client --listen 127.0.0.1:0 --discovery-port 0";
    host.installs_and_removes(options, "sysv");
    let log = host.text("log/ollana.log");
    assert_eq!(log.matches("ready mode=client").count(), 2, "{log}");
    assert_eq!(log.matches("stopped cut=false").count(), 2, "{log}");
}

/// Where launchd isn't, Python reads its file, and launchd.plist(5) knows the keys.
#[test]
fn launchd_starts_it() {
    for (user, place, domain, home) in [
        (0, "Library/LaunchDaemons", "system", false),
        (501, "home/me/Library/LaunchAgents", "gui/501", true),
    ] {
        let host = Host::new(&format!("launchd-{user}"), "macos", user);
        host.installs_and_removes(OPTIONS, "launchd");
        host.says("install --prefer <&>", 0, &[]);
        let plist = format!("{place}/org.ollana.ollana.plist");
        assert_eq!(
            &host.calls()[usize::from(!home)..],
            [
                format!("launchctl bootout {domain}/org.ollana.ollana"),
                format!("launchctl enable {domain}/org.ollana.ollana"),
                format!("launchctl bootstrap {domain} {}", host.root.join(&plist).display()),
            ]
        );
        assert!(host.text(&plist).contains("&lt;&amp;&gt;"));
        let Some(words) = super::launchd_words(&host.root.join(plist)) else { continue };
        assert_eq!(words[..2], ["/usr/local/bin/ollana", "serve"]);
        assert_eq!(words.last().map(String::as_str), Some("--prefer=<&>"));
        assert_eq!(words.iter().any(|word| word == "--state-dir=/var/db/ollana"), !home);
        let log = words.iter().find(|word| word.starts_with("--log-file=")).expect("a log");
        assert!(log.ends_with("/ollana.log"), "{log}");
    }
}

/// The process is the real one: it ends well when its number's file is gone.
#[test]
fn windows_starts_it_at_log_in() {
    let host = Host::new("log-in", "windows", 0);
    let options = "-- --mode client --listen 127.0.0.1:0 --discovery-port 0";
    host.installs_and_removes(options, "log-in");
    let log = host.text("home/me/.local/state/ollana/ollana.log");
    assert_eq!(log.matches("ready mode=client").count(), 2, "{log}");
    assert_eq!(log.matches("stopped cut=false").count(), 2, "{log}");
    host.says(&format!("install {options}"), 0, &[]);
    let calls = host.calls();
    assert!(calls[0].starts_with(r"reg add HKCU\Software\Microsoft\Windows\CurrentVersion\Run"));
    let line = "conhost.exe --headless /usr/local/bin/ollana serve --at-log-in --mode=client \
                --listen=127.0.0.1:0 --discovery-port=0";
    assert_eq!(host.text("state"), line);
    // A number in the file may be another program's by now.
    let pid = host.text("home/me/.local/state/ollana/service.pid");
    host.write("home/me/.local/state/ollana/service.pid", "1\n");
    host.says("status", 1, &["installed HKCU", "running no"]);
    fs::remove_file(host.root.join("home/me/.local/state/ollana/service.pid")).expect("a file");
    eventually("the end of what was started", || {
        let status = fs::read_to_string(format!("/proc/{}/status", pid.trim()));
        status.map_or(Some(()), |status| status.contains("State:\tZ").then_some(()))
    });
    host.says("remove", 0, &["removed"]);
    let long = "--server ".to_owned() + &"x".repeat(200);
    host.says(&format!("install {long}"), 1, &["at most 260 characters", "setx OLLANA_SERVER PC"]);
}

/// Options that mean something to a shell, a unit, XML or the C runtime, each in its own way.
const ODD: &[&str] = &[
    "--prefer=a b",
    "--prefer=it's",
    "--prefer=\"q\" %h $HOME $$",
    "--prefer=a\\b\\",
    "--prefer=<&>&amp;",
    "--prefer= two  blanks \\",
];

/// An upgrade names no options.
#[test]
fn an_installation_without_options_keeps_those_that_there_are() {
    let plain = |system: &str, user: u32| Host::new(&format!("kept-{system}-{user}"), system, user);
    let [openrc, sysv] =
        ["openrc", "sysv"].map(|name| Host::new(&format!("kept-{name}"), "linux", 0));
    openrc.write("sbin/openrc-run", "");
    fs::create_dir_all(sysv.root.join("etc/init.d")).expect("a folder");
    let [root, user] = [0, 1000].map(|user| systemd(&format!("kept-{user}"), user));
    let [mac, agent, windows] =
        [("macos", 0), ("macos", 501), ("windows", 0)].map(|(s, u)| plain(s, u));
    let common = ["--mode=client", "--listen=127.0.0.1:0", "--discovery-port=0"];
    for host in [root, user, openrc, sysv, mac, agent, windows] {
        // The stand-in for the registry has it in a file of its own.
        let installed = || (host.files(), fs::read(host.root.join("state")).ok());
        let install = |options: &[&str]| {
            let words = [&["service", "install"][..], options].concat();
            let (code, text) = host.run_words("usr/local/bin/ollana", &words);
            assert_eq!(code, Some(0), "{}: {text}", host.who);
            (installed(), text)
        };
        let (with_options, text) = install(&[&common[..], ODD].concat());
        assert!(!text.contains("it had"), "{}: {text}", host.who);
        let (kept, text) = install(&[]);
        assert!(kept == with_options, "{}: other files than before: {text}", host.who);
        assert!(text.contains("with the options that it had"), "{}: {text}", host.who);
        // Options replace all of those before, and a removal forgets them.
        let (replaced, _) = install(&common);
        assert!(replaced != kept, "{}", host.who);
        host.says("remove", 0, &["removed"]);
        assert!(install(&common).0 == replaced, "{}", host.who);
        host.says("remove", 0, &["removed"]);
        assert!(!host.says("install --dry-run", 0, &["starts"]).contains("it had"), "{}", host.who);
    }
}

#[test]
fn an_option_that_cannot_be_kept_is_named_and_nothing_is_changed() {
    let host = systemd("not-kept", 0);
    host.says("install --mode client --prefer PC", 0, &[]);
    let unit = host.text("etc/systemd/system/ollana.service").replace("--prefer", "--favour");
    host.write("etc/systemd/system/ollana.service", &unit);
    host.calls();
    let before = host.files();
    host.says(
        "install",
        1,
        &["can't be kept (--mode=client --favour=PC): unknown option --favour", "install OPTION"],
    );
    assert_eq!(host.files(), before);
    assert_eq!(host.calls(), [] as [&str; 0]);
    host.says("install --mode client", 0, &["ollana runs."]);
}

/// Where a release is unpacked, programs may not be run: /tmp is often mounted so.
#[test]
fn install_sh_asks_a_program_that_cannot_be_run_where_it_is_once_it_is_installed() {
    let host = systemd("noexec", 0);
    let [unpacked, place] = ["home/me/ollana", "usr/local/bin/ollana"].map(|it| host.root.join(it));
    fs::remove_file(&place).expect("it can go");
    fs::copy(env!("CARGO_BIN_EXE_ollana"), &unpacked).expect("a copy");
    fs::set_permissions(&unpacked, fs::Permissions::from_mode(0o644)).expect("a mode");
    let mut command = Command::new("sh");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/install.sh")).arg("--yes");
    let (code, text) = host.ended(&mut command);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("if it knows the init system; it is asked once installed"), "{text}");
    assert!(text.contains("ollana runs."), "{text}");
    assert!(host.root.join("etc/systemd/system/ollana.service").exists());
}

#[test]
fn firewalls_are_opened_and_closed_again() {
    let linux = systemd("firewall", 0);
    linux.says("firewall", 0, &["no firewall that ollana knows", "TCP 11435, UDP 11436"]);
    linux.write("etc/ufw/ufw.conf", "ENABLED=yes\n");
    linux.zone("public", "default", &[]);
    linux.says("firewall --dry-run", 0, &["run ufw allow 11435/tcp"]);
    assert_eq!(linux.calls(), [] as [&str; 0]);
    linux.says("firewall --listen 0.0.0.0:9", 0, &["lets in TCP 9, UDP 11436"]);
    assert_eq!(
        linux.calls(),
        [
            "ufw allow 9/tcp",
            "ufw allow 11436/udp",
            "ufw allow proto udp from any port 11436",
            "firewall-cmd --permanent --zone=public --add-port=9/tcp --add-port=11436/udp \
             --add-source-port=11436/udp",
            "firewall-cmd --reload",
        ]
    );
    linux.says("firewall --undo", 0, &[]);
    assert_eq!(linux.calls()[..2], ["ufw delete allow 11435/tcp", "ufw delete allow 11436/udp"]);
    // Without the discovery, nobody asks over UDP.
    linux.says("firewall --discovery-port 0", 0, &["lets in TCP 11435"]);
    assert_eq!(
        linux.calls(),
        [
            "ufw allow 11435/tcp",
            "firewall-cmd --permanent --zone=public --add-port=11435/tcp",
            "firewall-cmd --reload",
        ]
    );
    // Every address that others reach counts, each port once.
    for (options, want) in [
        ("--listen 0.0.0.0:9 --listen [::]:9 --listen 127.0.0.1:8", "TCP 9, UDP 11436"),
        ("--listen 10.0.0.1:8 --listen 10.0.0.2:9", "TCP 8, TCP 9, UDP 11436"),
        ("--mode both --listen 127.0.0.1:11437", "TCP 11435, UDP 11436"),
        ("--mode both --listen 127.0.0.1:11437 --share 0.0.0.0:9", "TCP 9, UDP 11436"),
        ("--mode client", "UDP 11436"),
    ] {
        linux.says(&format!("firewall {options}"), 0, &[&format!("lets in {want}, and UDP from")]);
        let tcp: Vec<String> =
            linux.calls().into_iter().filter(|call| call.ends_with("/tcp")).collect();
        let opened = tcp.iter().filter_map(|call| call.strip_prefix("ufw allow "));
        let opened = opened.map(|port| format!("TCP {}, ", port.trim_end_matches("/tcp")));
        assert_eq!(opened.collect::<String>() + "UDP 11436", want);
    }
    let own = "firewall --listen 127.0.0.1:9 --discovery-port 0";
    linux.says(own, 0, &["nothing has to come in"]);
    assert_eq!(linux.calls(), [] as [&str; 0]);
    let user = systemd("no-root", 1000);
    user.write("etc/ufw/ufw.conf", "ENABLED=yes\n");
    user.says("firewall", 1, &["run ufw allow 11435/tcp", "this takes root: use sudo"]);
    assert_eq!(user.calls(), [] as [&str; 0]);

    let windows = Host::new("netsh", "windows", 0);
    let rule = "netsh advfirewall firewall add rule name=ollana dir=in action=allow \
                program=/usr/local/bin/ollana profile=private,domain enable=yes";
    windows.says("firewall", 1, &[rule, "failed: The requested operation requires elevation"]);
    windows.write("administrator", "");
    windows.calls();
    windows.says("firewall", 0, &["lets in what is for /usr/local/bin/ollana"]);
    let [own, program] = ["name=ollana", "name=all dir=in program=/usr/local/bin/ollana"]
        .map(|which| format!("netsh advfirewall firewall delete rule {which}"));
    assert_eq!(windows.calls(), [own.as_str(), &program, rule]);
    windows.says("firewall --undo", 0, &[]);
    let macos = Host::new("socketfilterfw", "macos", 501);
    macos.says("firewall", 1, &["socketfilterfw --unblockapp /usr/local/bin/ollana", "use sudo"]);
}

#[test]
fn a_firewall_is_opened_at_the_ports_of_the_installed_service() {
    let host = systemd("ports", 0);
    host.write("etc/ufw/ufw.conf", "ENABLED=yes\n");
    host.says("install --listen=0.0.0.0:12000 --discovery-port=12001", 0, &[]);
    host.calls();
    for (arguments, verb) in [("firewall", "allow"), ("firewall --undo", "delete allow")] {
        host.says(arguments, 0, &["TCP 12000, UDP 12001, and UDP from port 12001"]);
        let rules = ["12000/tcp", "12001/udp", "proto udp from any port 12001"];
        assert_eq!(host.calls(), rules.map(|rule| format!("ufw {verb} {rule}")));
    }
    // Options replace all of them, as they do at an installation, but not its variables.
    host.says("firewall --listen 0.0.0.0:9", 0, &["lets in TCP 9, UDP 11436"]);
    let unit = "etc/systemd/system/ollana.service";
    host.write(unit, &host.text(unit).replace("--discovery-port", "--discovery-gate"));
    host.says("firewall", 1, &["unknown option --discovery-gate"]);
    host.says("remove", 0, &[]);
    // A package's service has all of its options from there.
    let set = "# OLLANA_MODE=client\nOLLANA_LISTEN=0.0.0.0:1\nOLLANA_LISTEN=\"0.0.0.0:12000\"\n";
    host.write("etc/default/ollana", set);
    host.says("firewall", 0, &["lets in TCP 12000, UDP 11436"]);
    host.says("install --discovery-port=12001", 0, &[]);
    host.says("firewall", 0, &["lets in TCP 12000, UDP 12001"]);
    host.says("firewall --discovery-port 9", 0, &["lets in TCP 12000, UDP 9"]);
    // What a takeover sets wins: --mode both listens for programs, and the LAN has the usual port.
    let set = "OLLANA_MODE=both\nOLLANA_OLLAMA=http://127.0.0.1:11438";
    host.write("etc/systemd/system/ollana.service.d/zz-ollana-takeover.env", set);
    host.says("firewall", 0, &["lets in TCP 11435, TCP 12000, UDP 12001"]);
    host.says("remove", 0, &["ollana service firewall --undo"]);

    // A user's service has no such variables, and who has none sees root's.
    let user = systemd("ports-user", 1000);
    user.write("etc/ufw/ufw.conf", "ENABLED=yes\n");
    user.write("etc/default/ollana", "OLLANA_LISTEN=0.0.0.0:12000\n");
    user.says("firewall", 1, &["lets in TCP 12000", "use sudo ollana service firewall"]);
    user.says("install --discovery-port=12001", 0, &[]);
    let told = "use sudo ollana service firewall --undo --discovery-port=12001";
    user.says("firewall --undo", 1, &["TCP 11435, UDP 12001", told]);
    // A firewall of programs takes no ports, so none is looked for.
    let macos = Host::new("ports-macos", "macos", 0);
    macos.says("install --discovery-port=12001", 0, &[]);
    let place = "Library/LaunchDaemons/org.ollana.ollana.plist";
    let list = macos.text(place);
    macos.write(place, &list.replace("--discovery-port", "--discovery-gate"));
    macos.says("firewall --dry-run", 0, &["lets in what is for /usr/local/bin/ollana"]);
}

#[test]
fn firewalld_is_opened_in_the_zones_of_the_lan() {
    let host = systemd("zones", 0);
    host.zone("public", "default", &[]);
    host.zone("home", "default", &["eth7", "eth8"]);
    host.zone("trusted", "ACCEPT", &["wlan7"]);
    let port = "--discovery-port 12436";
    let options = format!("--interface eth7 --interface eth8 --interface wlan7 {port}");
    let doctor = |options: &str| {
        let command = format!("doctor --json --mode server {options}");
        let (_, text) = host.run_command("usr/local/bin/ollana", &command);
        let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let findings = report["findings"].as_array().expect("findings").iter();
        let texts = findings.map(|finding| format!("{}: {}", finding["text"], finding["fix"]));
        let texts = texts.map(|text| text.replace('"', ""));
        texts.filter(|text| text.starts_with("firewalld")).collect::<Vec<_>>()
    };
    let shut = |zone: &str| {
        format!(
            "firewalld (zone {zone}) is on and doesn't let TCP 11435 and UDP 12436 in: firewall-cmd \
             --permanent --zone={zone} --add-port=11435/tcp --add-port=12436/udp && \
             firewall-cmd --reload"
        )
    };
    let open = |zone: &str| format!("firewalld (zone {zone}) lets the ports through: null");
    assert_eq!(doctor(&options), [shut("home"), open("trusted")]);
    let both = "--mode both --listen 127.0.0.1:11437";
    assert_eq!(doctor(&format!("{options} {both}")), [shut("home"), open("trusted")]);
    let at_9 = shut("home").replace("11435", "9");
    assert_eq!(doctor(&format!("{options} {both} --share 0.0.0.0:9")), [at_9, open("trusted")]);
    // An interface of no zone is in the default one.
    assert_eq!(doctor(&format!("--interface eth9 {port}")), [shut("public")]);
    host.calls();
    let change = |verb: &str, zone: &str| {
        format!(
            "firewall-cmd --permanent --zone={zone} --{verb}-port=11435/tcp \
             --{verb}-port=12436/udp --{verb}-source-port=12436/udp"
        )
    };
    let reload = "firewall-cmd --reload".to_owned();
    host.says(&format!("firewall {options}"), 0, &["lets in TCP 11435, UDP 12436"]);
    assert_eq!(host.calls(), [change("add", "home"), change("add", "trusted"), reload.clone()]);
    assert_eq!(doctor(&options), [open("home"), open("trusted")]);
    assert_eq!(doctor(&format!("--interface eth9 {port}")), [shut("public")]);
    host.calls();
    host.says(&format!("firewall --undo {options}"), 0, &["takes the rules away"]);
    let undone = ["home", "trusted", "public"].map(|zone| change("remove", zone));
    assert_eq!(host.calls(), [&undone[..], &[reload]].concat());
    assert_eq!(doctor(&options), [shut("home"), open("trusted")]);
}
