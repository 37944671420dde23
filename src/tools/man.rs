//! `ollana man`: the man page, made of the tables and texts of the help.

use std::fmt::Write as _;

use crate::cli::commands::COMMANDS;
use crate::cli::topics::TOPICS;

/// The page, for `man -l -` or a file named `ollana.1`.
pub(super) fn page() -> String {
    let mut page = format!(
        ".TH OLLANA 1 \"2026-11-23\" \"ollana {}\" \"User Commands\"\n{START}",
        env!("CARGO_PKG_VERSION")
    );
    page.push_str(".SH COMMANDS\n");
    for command in COMMANDS {
        entry(&mut page, &command.synopsis(), &command.description());
        if !command.switches.is_empty() {
            page.push_str(".RS\n");
            for switch in command.switches {
                entry(&mut page, &format!("--{}", switch.name), switch.text);
            }
            page.push_str(".RE\n");
        }
    }
    for topic in TOPICS {
        let _ = writeln!(page, ".SH {}", escaped(&topic.name.to_uppercase()));
        if topic.options.is_empty() {
            literal(&mut page, topic.text);
            continue;
        }
        let _ = writeln!(page, "{}", escaped(topic.intro));
        for option in topic.options {
            entry(&mut page, &option.usage(), &option.description());
        }
        for (usage, text) in topic.others {
            entry(&mut page, usage, text);
        }
        if !topic.text.is_empty() {
            page.push_str(".PP\n");
            lines(&mut page, topic.text);
        }
    }
    page + END
}

fn entry(page: &mut String, usage: &str, text: &str) {
    let _ = writeln!(page, ".TP\n.B {}\n{}", escaped(usage), escaped(text.trim_end()));
}

/// Text with its own lines and columns. It begins at the left border, so that 80 columns suffice.
fn literal(page: &mut String, text: &str) {
    page.push_str(".in 0\n.nf\n");
    lines(page, text);
    page.push_str(".fi\n.in\n");
}

fn lines(page: &mut String, text: &str) {
    text.lines().for_each(|line| page.push_str(&(escaped(line) + "\n")));
}

/// A line that roff takes as it is.
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
.PP
Methods, paths, headers and bodies pass through as they are, token by token.
With several servers, each request goes to one that has its model; a server that
fails before its answer begins is replaced by another one.
"#;

const END: &str = r#".SH ENVIRONMENT
Every option with a value is a variable too, as
.B OPTIONS
says.
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
    use crate::cli::topics::options;

    #[test]
    fn every_option_and_command_is_in_it() {
        let page = page();
        let shown = |usage: &str| page.matches(&format!(".B {}\n", escaped(usage))).count();
        for option in options() {
            assert_eq!(shown(&option.usage()), 1, "{}", option.usage());
        }
        for command in COMMANDS {
            assert_eq!(shown(&command.synopsis()), 1, "{}", command.synopsis());
            for switch in command.switches {
                assert!(shown(&format!("--{}", switch.name)) > 0, "{}", switch.name);
            }
        }
        for topic in TOPICS {
            assert!(page.contains(&format!(".SH {}\n", topic.name.to_uppercase())));
            assert!(topic.text.lines().all(|line| page.contains(&escaped(line))), "{}", topic.name);
        }
    }

    #[test]
    fn no_text_is_taken_for_a_request() {
        assert_eq!(escaped(".SH x"), "\\&.SH x");
        assert_eq!(escaped("a\\b --c"), "a\\eb \\-\\-c");
    }
}
