//! `ollana man`: the man page, made of the tables and texts of the help.

use std::fmt::Write as _;

use crate::cli::commands::COMMANDS;
use crate::cli::topics::TOPICS;

const START: &str = include_str!("man/start.roff");
const END: &str = include_str!("man/end.roff");

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
                entry(&mut page, &switch.usage(), switch.text);
            }
            page.push_str(".RE\n");
        }
    }
    for topic in TOPICS {
        let _ = writeln!(page, ".SH {}", escaped(&topic.name.to_uppercase()));
        if topic.options.is_empty() {
            // It begins at the left border, so that 80 columns suffice.
            page.push_str(".in 0\n.nf\n");
            lines(&mut page, topic.text);
            page.push_str(".fi\n.in\n");
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

fn lines(page: &mut String, text: &str) {
    text.lines().for_each(|line| page.push_str(&(escaped(line) + "\n")));
}

/// A line that roff takes as it is.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    // At the start of a line these would be requests.
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

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
                assert!(shown(&switch.usage()) > 0, "{}", switch.name);
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
