//! The scan of a form with files (RFC 7578) for the field that names the model, fed with pieces of
//! any size. It keeps no file: only starts of lines count.

use std::ops::Range;

use memchr::memchr;

/// Start of a line that is kept: a delimiter and a line of a part's head have room in it.
const MAX_LINE: usize = 1024;
/// All lines of one part's head together, or the longest model.
const MAX_TEXT: usize = 4096;

/// How far the scan has come, and what it has found.
#[derive(Clone, Debug)]
pub struct FormScan {
    /// Two hyphens and the boundary.
    delimiter: Vec<u8>,
    place: Place,
    /// The present line as far as it was read.
    line: Vec<u8>,
    /// The lines of the present part's head, or of the model.
    text: Vec<u8>,
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
        let boundary = parameter(content_type, "boundary")?;
        let is_form = media.eq_ignore_ascii_case("multipart/form-data");
        (is_form && (1..MAX_LINE / 2).contains(&boundary.len())).then(|| FormScan {
            delimiter: format!("--{boundary}").into_bytes(),
            place: Place::Elsewhere,
            line: Vec::new(),
            text: Vec::new(),
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
            self.at += end.map_or(piece.len(), |end| end + 1);
            piece = end.map_or(&[], |end| &piece[end + 1..]);
            let behind = self.line.strip_prefix(&self.delimiter[..]).filter(|_| self.is_in_body());
            match behind.map(<[u8]>::trim_ascii_end) {
                // The last one, behind which no line has to end.
                Some([b'-', ..]) => self.end_part(Place::Done),
                Some([]) if end.is_some() => self.end_part(Place::Head),
                _ if end.is_some() => self.end_line(),
                _ => {}
            }
            if end.is_some() {
                self.line.clear();
                self.line_at = self.at;
            }
        }
    }

    fn is_in_body(&self) -> bool {
        matches!(self.place, Place::Elsewhere | Place::Model)
    }

    /// A delimiter ends the present part.
    fn end_part(&mut self, next: Place) {
        let is_model = self.place == Place::Model;
        self.place = if is_model { Place::Done } else { next };
        if is_model {
            self.model = Some(String::from_utf8_lossy(self.text.trim_ascii()).into_owned());
            self.model_at.end = self.line_at;
        }
        self.text.clear();
    }

    /// The end of a line that is no delimiter.
    fn end_line(&mut self) {
        let line = self.line.trim_ascii_end();
        match self.place {
            Place::Head if line.is_empty() => {
                let head = String::from_utf8_lossy(&self.text);
                self.place = if is_model(&head) { Place::Model } else { Place::Elsewhere };
                self.model_at.start = self.at;
                self.text.clear();
            }
            Place::Head | Place::Model => {
                // A line that begins with a blank continues the one before (RFC 5322 §2.2.3).
                let is_new = !line.starts_with(b" ") && !line.starts_with(b"\t");
                let room = MAX_TEXT - self.text.len();
                let separator: &[u8] = if is_new { b"\n" } else { b"" };
                self.text.extend([separator, line].concat().into_iter().take(room));
            }
            Place::Elsewhere | Place::Done => {}
        }
    }
}

/// Whether the head of a part says that it is the field `model`, and no file.
fn is_model(head: &str) -> bool {
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    let mut disposition =
        fields.filter(|(name, _)| name.eq_ignore_ascii_case("content-disposition"));
    disposition.next().is_some_and(|(_, value)| {
        parameter(value, "name").as_deref() == Some("model")
            && ["filename", "filename*"]
                .iter()
                .all(|name| parameter(value, name).is_none_or(|it| it.is_empty()))
    })
}

/// A parameter of a field's value, quoted or not (RFC 2045 §5.1).
fn parameter(field: &str, wanted: &str) -> Option<String> {
    let (_, mut rest) = field.split_once(';')?;
    loop {
        let end = rest.find([';', '='])?;
        let (name, behind) = (rest[..end].trim(), &rest[end + 1..]);
        if rest[end..].starts_with(';') {
            rest = behind;
            continue;
        }
        let (value, behind) = match behind.trim_start().strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let end = behind.find(';').unwrap_or(behind.len());
                (behind[..end].trim().to_owned(), &behind[end..])
            }
        };
        if name.eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        rest = behind;
    }
}

/// A quoted string without its quotes, and what is behind it.
fn unquote(text: &str) -> (String, &str) {
    let (mut value, mut chars) = (String::new(), text.chars());
    while let Some(c) = chars.next() {
        match c {
            '"' => break,
            '\\' => value.extend(chars.next()),
            c => value.push(c),
        }
    }
    (value, chars.as_str())
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
            "form-data; x=\"a;name=\\\"y\"; name=\"mod\\el\"",
            "form-data; flag; name=\"model\"; filename=\"\"",
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
