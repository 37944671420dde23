//! The scan of a form with files (RFC 7578) for the field that names the model, fed with pieces of
//! any size. It keeps no file: only starts of lines count.

use std::ops::Range;

use memchr::memchr;

/// Start of a line that is kept: a delimiter and a line of a part's head have room in it.
const MAX_LINE: usize = 1024;
/// All lines of one part's head together, or the longest model.
const MAX_TEXT: usize = 4096;

/// How far the scan has come, and what it has found.
///
/// Of what Go's readers might understand otherwise, nothing is believed: then it ends without a model.
#[derive(Clone, Debug)]
pub struct FormScan {
    /// Two hyphens and the boundary.
    delimiter: Vec<u8>,
    place: Place,
    /// The present line as far as it was read, without its line feed.
    line: Vec<u8>,
    /// The last byte of it, however long it is.
    last: Option<u8>,
    /// Whether a carriage return is in front of the first delimiter's line feed, and of the last line's.
    has_returns: Option<bool>,
    had_return: bool,
    /// The lines of the present part's head, or of the model; and whether they were longer.
    text: Vec<u8>,
    is_cut: bool,
    model: Option<String>,
    /// Where it stands in the body, with the end of its line.
    model_at: Range<usize>,
    /// The position in the body of what is read, and where the present line began.
    at: usize,
    line_at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In front of the first part, or in one that tells nothing.
    Elsewhere,
    Head,
    Model,
    Done,
}

impl FormScan {
    /// `None` if the content type is not a form's.
    pub fn new(content_type: &str) -> Option<Self> {
        let media = content_type.split(';').next()?.trim();
        let parameters = parameters(content_type)?;
        let is_odd = parameters.iter().any(|(name, _)| name.contains('*'));
        let boundary = value(&parameters, "boundary").filter(|_| !is_odd)?;
        let is_form = media.eq_ignore_ascii_case("multipart/form-data");
        (is_form && (1..MAX_LINE / 2).contains(&boundary.len())).then(|| FormScan {
            delimiter: format!("--{boundary}").into_bytes(),
            place: Place::Elsewhere,
            line: Vec::new(),
            last: None,
            has_returns: None,
            had_return: false,
            text: Vec::new(),
            is_cut: false,
            model: None,
            model_at: 0..0,
            at: 0,
            line_at: 0,
        })
    }

    /// What the first field says that is called so, as Go's `http.Request.FormValue` does.
    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// Where that stands in the body: from behind the part's head to the next delimiter.
    pub(crate) fn model_at(&self) -> Option<Range<usize>> {
        self.model.as_ref().map(|_| self.model_at.clone())
    }

    /// Whether nothing that follows could change what was found.
    pub fn is_done(&self) -> bool {
        self.place == Place::Done
    }

    /// Goes on with the next bytes of the body.
    pub fn push(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() && !self.is_done() {
            let end = memchr(b'\n', piece);
            let part = &piece[..end.unwrap_or(piece.len())];
            self.line.extend_from_slice(&part[..part.len().min(MAX_LINE - self.line.len())]);
            self.last = part.last().copied().or(self.last);
            self.at += end.map_or(piece.len(), |end| end + 1);
            piece = end.map_or(&[], |end| &piece[end + 1..]);
            if !self.ends_part(end.is_some()) && end.is_some() {
                self.end_line();
            }
            if end.is_some() {
                self.had_return = self.last.take() == Some(b'\r');
                self.line.clear();
                self.line_at = self.at;
            }
        }
    }

    /// Whether the line is a delimiter, as far as it was read. If so, it ends the present part.
    fn ends_part(&mut self, is_whole: bool) -> bool {
        let is_in_body = matches!(self.place, Place::Elsewhere | Place::Model);
        let behind = self.line.strip_prefix(&self.delimiter[..]).filter(|_| is_in_body);
        let has_return = self.last == Some(b'\r');
        // All lines end in the same way as the first delimiter, or Go sees none here.
        let follows = self.has_returns.is_none_or(|has| has == self.had_return);
        let next = match behind.map(|it| (it, it.strip_suffix(b"\r").unwrap_or(it))) {
            // The last one, behind which no line has to end.
            Some(([b'-', b'-', ..], _)) => follows.then_some(Place::Done),
            Some((_, blank)) if is_whole && blank.iter().all(|c| b" \t".contains(c)) => {
                let is_same = *self.has_returns.get_or_insert(has_return) == has_return;
                (follows && is_same).then_some(Place::Head)
            }
            Some(([b' ' | b'\t' | b'\r', ..], _)) if is_whole => None,
            _ => return false,
        };
        let is_model = self.place == Place::Model && !self.is_cut && next.is_some();
        if is_model {
            self.model = Some(String::from_utf8_lossy(self.text.trim_ascii()).into_owned());
            self.model_at.end = self.line_at;
        }
        self.place = next.filter(|_| self.place != Place::Model).unwrap_or(Place::Done);
        self.text.clear();
        self.is_cut = false;
        true
    }

    /// The end of a line that is no delimiter.
    fn end_line(&mut self) {
        self.is_cut |= self.line.len() == MAX_LINE;
        match self.place {
            Place::Head if matches!(self.line[..], [] | [b'\r']) => {
                let is_model = is_model(&String::from_utf8_lossy(&self.text));
                self.place = match is_model.filter(|_| !self.is_cut) {
                    Some(true) => Place::Model,
                    Some(false) => Place::Elsewhere,
                    None => Place::Done,
                };
                self.model_at.start = self.at;
                self.text.clear();
            }
            Place::Head | Place::Model => {
                let line = self.line.trim_ascii_end();
                // A line that begins with a blank continues the one before (RFC 5322 §2.2.3).
                let is_new = !line.starts_with(b" ") && !line.starts_with(b"\t");
                let separator: &[u8] = if is_new { b"\n" } else { b"" };
                self.is_cut |= self.text.len() + separator.len() + line.len() > MAX_TEXT;
                if !self.is_cut {
                    self.text.extend([separator, line].concat());
                }
            }
            Place::Elsewhere | Place::Done => {}
        }
    }
}

/// Whether the head of a part says that it is the field `model`, and no file; `None` if Go may take it
/// otherwise.
fn is_model(head: &str) -> Option<bool> {
    let field = |wanted: &str| {
        let mut fields = head.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim())
    };
    let disposition = field("content-disposition").unwrap_or_default();
    let kind = disposition.split(';').next().unwrap_or_default().trim_end();
    if !kind.eq_ignore_ascii_case("form-data") {
        return Some(false);
    }
    let parameters = parameters(disposition)?;
    let is_odd = |name: &str| parameters.iter().any(|(known, _)| known.starts_with(name));
    if is_odd("name*") {
        return None;
    }
    if value(&parameters, "name") != Some("model") {
        return Some(false);
    }
    // Go decodes "quoted-printable".
    let is_plain = field("content-transfer-encoding").is_none_or(|it| {
        ["7bit", "8bit", "binary"].iter().any(|plain| it.eq_ignore_ascii_case(plain))
    });
    let is_file = value(&parameters, "filename").is_some_and(|name| !name.is_empty());
    (is_plain && !is_odd("filename*")).then_some(!is_file)
}

/// The parameters of a field's value, with their names in lower case (RFC 2045 §5.1); `None` where not
/// all of it is as it has to be, or a name is there twice.
fn parameters(field: &str) -> Option<Vec<(String, String)>> {
    let mut found: Vec<(String, String)> = Vec::new();
    let mut rest = &field[field.find(';').unwrap_or(field.len())..];
    while !matches!(rest.trim(), "" | ";") {
        let (name, behind) = token(rest.trim_start().strip_prefix(';')?.trim_start())?;
        let behind = behind.trim_start().strip_prefix('=')?.trim_start();
        let (value, behind) = match behind.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => token(behind).map(|(value, behind)| (value.to_owned(), behind))?,
        };
        let name = name.to_ascii_lowercase();
        if found.iter().any(|(known, _)| *known == name) {
            return None;
        }
        found.push((name, value));
        rest = behind;
    }
    Some(found)
}

fn value<'a>(parameters: &'a [(String, String)], wanted: &str) -> Option<&'a str> {
    parameters.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str())
}

/// The word at the beginning, and what is behind it.
fn token(text: &str) -> Option<(&str, &str)> {
    let is_special = |c: char| !c.is_ascii_graphic() || SPECIAL.contains(c);
    let end = text.find(is_special).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

const SPECIAL: &str = "()<>@,;:\\\"/[]?=";

/// A quoted string without its quotes, and what is behind it. As Go does, it takes a backslash in front
/// of a letter for a backslash, because Windows has such paths.
fn unquote(text: &str) -> Option<(String, &str)> {
    let (mut value, mut chars) = (String::new(), text.chars());
    while let Some(c) = chars.next() {
        match c {
            '"' => return Some((value, chars.as_str())),
            '\\' if chars.as_str().starts_with(|c| SPECIAL.contains(c)) => {
                value.extend(chars.next())
            }
            '\r' | '\n' => return None,
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: &str = "multipart/form-data; boundary=b";

    fn in_pieces(content_type: &str, body: &[u8], size: usize) -> FormScan {
        let mut scan = FormScan::new(content_type).expect("a form");
        body.chunks(size).for_each(|piece| scan.push(piece));
        scan
    }

    /// The model by the whole body, and the same by pieces of any size.
    fn model(content_type: &str, body: &[u8]) -> Option<String> {
        let of = |scan: &FormScan| (scan.model.clone(), scan.model_at(), scan.is_done());
        let whole = of(&in_pieces(content_type, body, body.len()));
        for size in 1..body.len() {
            assert_eq!(of(&in_pieces(content_type, body, size)), whole, "{size}");
        }
        let (model, place, _) = whole;
        let text = |place| String::from_utf8_lossy(&body[place]).trim().replace("\r\n", "\n");
        let there = place.map(text);
        assert_eq!(there, model, "where it says");
        model
    }

    fn part(head: &str, content: &str) -> String {
        format!("--b\r\nContent-Disposition: {head}\r\n\r\n{content}\r\n")
    }

    #[test]
    fn the_field_is_found_among_files() {
        let file = part(
            "form-data; name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav",
            "RIFF\0\r\n--\r\n--bb\r\n--c\r\n\n\nname=\"model\"\r\n\r\nno\r\n -- b--\r\n",
        );
        let other = part("form-data; name=\"prompt\"", "model");
        for head in [
            "form-data; name=\"model\"",
            "form-data; name=model",
            "Form-Data;NAME=model",
            "form-data; x=\"a;name=\\\"y\"; name=\"model\"",
            "form-data; name=\"model\"; filename=\"\";",
            "form-data;\r\n\tname=\"model\"",
        ] {
            let field = part(head, "beta");
            for body in [
                format!("{file}{other}{field}--b--\r\n"),
                format!("preamble\r\n{field}{file}--b--"),
            ] {
                assert_eq!(model(TYPE, body.as_bytes()).as_deref(), Some("beta"), "{body:?}");
            }
        }
        // Its end tells that all of it was read.
        assert_eq!(model(TYPE, part("form-data; name=model", "beta").as_bytes()), None);
    }

    #[test]
    fn the_first_field_counts_and_no_file() {
        let field = |name: &str, content: &str| part(&format!("form-data; {name}"), content);
        for (parts, want) in [
            (field("name=model", "a") + &field("name=model", "b"), Some("a")),
            (field("name=model; filename=x", "a") + &field("name=model", "b"), Some("b")),
            (field("name=model", "") + &field("name=model", "b"), Some("")),
            (field("name=models", "a"), None),
            (field("name=Model", "a"), None),
            (part("attachment; name=file", "x") + &field("name=model", "b"), Some("b")),
            (field("name=model", " a\r\n"), Some("a")),
            (field("name=model", "a\r\nb"), Some("a\nb")),
            ("--b--\r\n".to_owned() + &field("name=model", "a"), None),
        ] {
            let body = format!("{parts}--b--\r\n");
            assert_eq!(model(TYPE, body.as_bytes()).as_deref(), want, "{body:?}");
        }
        let bare = "--b  \nContent-disposition:form-data;name=model\n\nbeta\n--b--";
        assert_eq!(model(TYPE, bare.as_bytes()).as_deref(), Some("beta"));
    }

    /// Who writes it so may want Go to read another model than ollana.
    #[test]
    fn what_go_may_read_otherwise_tells_nothing() {
        let ours = part("form-data; name=\"model\"", "local");
        for odd in [
            part("form-data; name=\"x\"; name=\"model\"", "cloud"),
            part("form-data; name*=utf-8''model", "cloud"),
            part("form-data; name*0=mo; name*1=del", "cloud"),
            part("form-data; name=\"model\"; filename*=bad", "cloud"),
            part("form-data; flag; name=\"model\"", "cloud"),
            part("form-data; name=\"model", "cloud"),
            part("form-data; name=\"model\" x", "cloud"),
            part("form-data; name=model\r\nContent-Transfer-Encoding: quoted-printable", "cl=6Fud"),
            part(&format!("form-data; x={}; name=model", "x".repeat(2000)), "cloud"),
            part(&format!("form-data; name=model\r\n{}", "A: b\r\n".repeat(2000)), "cloud"),
            // A delimiter only for those who take any end of a line.
            part("form-data; name=x", "y\n--b\nContent-Disposition: form-data; name=z\n\nc"),
            part("form-data; name=x", "y\n--b--"),
            part("form-data; name=x", "y\r\n--b x"),
            part("form-data; name=x", "y\r\n--b\r"),
        ] {
            let body = format!("{}{odd}{ours}--b--\r\n", part("form-data; name=file", "z"));
            assert_eq!(model(TYPE, body.as_bytes()), None, "{body:?}");
        }
        // A head ends with an empty line, not with a blank one.
        let body =
            "--b\r\nX: y\r\n \r\nContent-Disposition: form-data; name=model\r\n\r\nc\r\n--b--";
        assert_eq!(model(TYPE, body.as_bytes()).as_deref(), Some("c"));
        // Go takes no such parts for fields.
        for other in ["attachment; name=model", "form-data", "form-data; name=\"mod\\el\"", "x"] {
            let body = format!("{}{ours}--b--\r\n", part(other, "cloud"));
            assert_eq!(model(TYPE, body.as_bytes()).as_deref(), Some("local"), "{body:?}");
        }
        for content_type in ["; boundary*=utf-8''b", "; boundary=a", "; x", "; boundary=b; x=\""] {
            assert!(FormScan::new(&format!("{TYPE}{content_type}")).is_none(), "{content_type}");
        }
    }

    #[test]
    fn content_types_of_forms() {
        for content_type in [
            "multipart/form-data; boundary=\"b\"",
            "Multipart/Form-Data;charset=utf-8;Boundary=b",
            "multipart/form-data ; boundary=b ; x=y",
        ] {
            let body = part("form-data; name=model", "beta") + "--b--";
            assert_eq!(model(content_type, body.as_bytes()).as_deref(), Some("beta"));
        }
        for content_type in [
            "",
            "multipart/form-data",
            "multipart/form-data; boundary=",
            "application/json; boundary=b",
        ] {
            assert!(FormScan::new(content_type).is_none(), "{content_type}");
        }
        assert!(FormScan::new(&format!("{TYPE}{}", "b".repeat(1000))).is_none());
    }

    #[test]
    fn memory_stays_bounded() {
        let long = "x".repeat(100_000);
        for body in [
            part("form-data; name=model", &long),
            part(&format!("form-data; x={long}; name=model"), "a"),
            part("form-data; name=file", &long),
            "x\r\n".repeat(10_000),
            format!("--b\r\n{}", "a: b\r\n".repeat(10_000)),
        ] {
            let mut scan = FormScan::new(TYPE).expect("a form");
            scan.push(body.as_bytes());
            scan.push(b"--b--");
            assert!(scan.line.len() <= MAX_LINE && scan.text.len() <= MAX_TEXT);
            assert!(scan.model().is_none_or(|model| model.len() <= MAX_TEXT));
        }
    }
}
