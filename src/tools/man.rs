//! `ollana man`: the man page, made from the help text and the tables.

use std::fmt::Write as _;

use crate::cli::describe::{self, Entry};

/// The page, for `man -l -` or a file named `ollana.1`.
pub(super) fn page() -> String {
    let [options, commands, service, access, limits] = describe::help_entries();
    let mut page = format!(
        ".TH OLLANA 1 \"2026-11-23\" \"ollana {}\" \"User Commands\"\n",
        env!("CARGO_PKG_VERSION")
    );
    page.push_str(START);
    page.push_str(".SH COMMANDS\n");
    list(&mut page, &commands);
    page.push_str(".SH OPTIONS\n");
    let is_option = |entry: &&Entry| entry.head.starts_with('-');
    let options: Vec<Entry> = options.iter().filter(is_option).cloned().collect();
    list(&mut page, &options);
    page.push_str(".SH AS A SERVICE\n");
    list(&mut page, &service);
    page.push_str(".SH WHAT OTHER MACHINES MAY DO\n");
    list(&mut page, &access);
    page.push_str(".SH INTERVALS, TIME-OUTS AND LIMITS\n");
    page.push_str("Times are written 250ms, 5s or 2m, sizes 4096, 64k or 4m.\n");
    list(&mut page, &limits);
    page.push_str(END);
    page
}

fn list(page: &mut String, entries: &[Entry]) {
    for entry in entries {
        let _ = writeln!(page, ".TP\n.B {}\n{}", escaped(entry.head), escaped(&entry.text));
    }
}

/// Text that roff takes as it is.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    // At the start of a line these would be requests.
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

const START: &str = r#".SH NAME
ollana \- Ollama over LAN
.SH SYNOPSIS
.B ollana
.RI [ COMMAND ]
.RI [ OPTION " ...]"
.SH DESCRIPTION
Lets every unmodified Ollama program on this machine use the Ollama servers of
the local network.
Where an Ollama answers on this machine, ollana shares it (server mode): it
listens on TCP port 11435 and answers the discovery on UDP port 11436.
Elsewhere it finds such servers by UDP broadcast and answers on Ollama's own
port, 127.0.0.1:11434 and [::1]:11434 (client mode).
.PP
Methods, paths, headers and bodies pass through as they are, token by token.
With several servers, each request goes to one that has its model; a server that
fails before its answer begins is replaced by another one.
"#;

const END: &str = r#".SH ENVIRONMENT
Every option with a value is a variable too:
.B \-\-log\-level debug
is
.BR OLLANA_LOG_LEVEL=debug .
Lists take commas; options win over variables.
.TP
.B OLLAMA_HOST
Where this machine's Ollama is, if that is an address of this machine.
.TP
.BR NOTIFY_SOCKET ", " WATCHDOG_USEC ", " STATE_DIRECTORY ", " RUNTIME_DIRECTORY
As systemd sets them.
.TP
.B NO_COLOR
No colours.
.SH FILES
.TP
.I /etc/default/ollana
Variables for the service.
.TP
.IR $XDG_STATE_HOME/ollana " or " ~/.local/state/ollana
The server's identity and the servers of the last run; a service has them in
.IR /var/lib/ollana .
.SH SIGNALS
.TP
.BR SIGTERM ", " SIGINT
Let nobody new in, let streams finish for up to 30 s, end. A second one ends it
at once.
.TP
.B SIGHUP
Open the log file anew. Without one, end if started from a terminal.
.SH EXIT STATUS
0: stopped by a signal, or done. 1: it couldn't be done, or
.B ollana doctor
found something wrong. 2: the command line can't be followed.
.SH EXAMPLES
.TP
.B ollana
Share this machine's Ollama, or use the LAN's.
.TP
.B ollana \-\-server 192.168.7.20
Use a server that broadcasts don't reach, too.
.TP
.B ollana doctor
Find out why it doesn't work.
.SH SEE ALSO
.UR https://ollama.com
Ollama
.UE
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_and_command_is_in_it() {
        let page = page();
        for option in describe::options() {
            assert!(page.contains(&escaped(&format!("--{}", option.name))), "{}", option.name);
        }
        for command in describe::commands() {
            assert!(page.contains(&format!(".B {}", command.name)), "{}", command.name);
            for switch in command.switches {
                assert!(page.contains(&escaped(&format!("--{switch}"))), "{switch}");
            }
        }
    }

    #[test]
    fn no_text_is_taken_for_a_request() {
        assert_eq!(escaped(".SH x"), "\\&.SH x");
        assert_eq!(escaped("a\\b --c"), "a\\eb \\-\\-c");
    }
}
