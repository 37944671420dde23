//! "Did you mean": the name that a word is most likely a misspelling of.

/// What is put behind a message about `word`, if one of the names is most likely meant; `start` is
/// written in front of that name.
pub(crate) fn did_you_mean<'a>(
    word: &str,
    start: &str,
    names: impl IntoIterator<Item = &'a str>,
) -> String {
    let meant = nearest(word, names);
    meant.map(|name| format!("; did you mean {start}{name}?")).unwrap_or_default()
}

/// Words of other programs, and ours for the same. By its letters, "uninstall" is near to its opposite.
const SYNONYMS: [(&str, &str); 3] =
    [("uninstall", "remove"), ("deinstall", "remove"), ("reinstall", "install")];

/// The nearest name, if at most a third of its letters, or of a synonym's, would have to be changed.
fn nearest<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let spellings = names.into_iter().flat_map(|name| {
        let synonyms = SYNONYMS.into_iter().filter(move |(_, ours)| *ours == name);
        synonyms.map(|(theirs, _)| theirs).chain([name]).map(move |spelling| (spelling, name))
    });
    let measured = spellings.map(|(spelling, name)| (distance(word, spelling), spelling, name));
    let (distance, spelling, name) = measured.min_by_key(|(distance, ..)| *distance)?;
    (distance * 3 <= spelling.len()).then_some(name)
}

/// Letters to insert, delete or replace, or neighbours to swap, to get from one word to the other
/// (optimal string alignment).
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=to.len()).collect()];
    for i in 1..=from.len() {
        let mut row = vec![i];
        for j in 1..=to.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(from[i - 1] != to[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[from.len()][to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_counted() {
        for (from, to, want) in [
            ("", "", 0),
            ("abc", "", 3),
            ("satus", "status", 1),
            ("hepl", "help", 1),
            ("limts", "limits", 1),
            ("modles", "models", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!((distance(from, to), distance(to, from)), (want, want), "{from} {to}");
        }
    }

    #[test]
    fn only_a_likely_name_is_meant() {
        let names = ["status", "serve", "man", "help"];
        assert_eq!(nearest("stats", names), Some("status"));
        assert_eq!(nearest("server", names), Some("serve"));
        assert_eq!(nearest("mna", names), Some("man"));
        for other in ["", "list", "run", "m", "frobnicate"] {
            assert_eq!(nearest(other, names), None, "{other}");
        }
        assert_eq!(nearest("x", []), None);
    }

    #[test]
    fn the_opposite_is_not_meant() {
        let names = ["install", "remove", "status", "firewall"];
        for word in ["uninstall", "unistall", "uninstal", "deinstall"] {
            assert_eq!(nearest(word, names), Some("remove"), "{word}");
        }
        for word in ["instal", "intsall", "reinstall"] {
            assert_eq!(nearest(word, names), Some("install"), "{word}");
        }
    }
}
