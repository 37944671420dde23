//! The scan of a JSON body, fed with pieces of any size. No byte is looked at twice, and strings are
//! bounded, whatever the body holds.
//!
//! It takes what Go's decoder takes (`encoding/json`): members in any case, the last of several, and
//! nothing behind the object's end. It doesn't validate: what is no JSON, Ollama refuses.

use std::ops::Range;

use memchr::memchr2;

use super::{Subject, from_line};
use crate::ollama::model_name::ModelName;

/// Members that may name a model.
const MAX_NAMES: usize = 3;
pub(super) const OPENING: usize = 256;

/// How far the scan has come, and what it has found.
#[derive(Clone, Debug)]
pub struct Scan {
    /// Members that name the model, the first one first.
    names: &'static [&'static str],
    named: [Option<String>; MAX_NAMES],
    /// Where their values stand.
    places: [Range<usize>; MAX_NAMES],
    /// The position in the body: of the byte that is read, and where the present string began.
    at: usize,
    begun: usize,
    /// Its model and its `FROM` line are put in at the end.
    found: Subject,
    from_line: Option<String>,
    /// By where they were: in messages, in one of the texts, or in a list of their own.
    images: [bool; 3],
    /// Bytes of text in messages, and in other texts.
    written: [u64; 2],
    state: State,
    depth: usize,
    /// The top-level member whose value comes; none in front of a key.
    member: Option<Member>,
    nested: Nested,
    /// What the string is that is being read.
    role: Role,
    /// What is kept of it, or of a number.
    text: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In front of the object.
    Start,
    /// Outside of strings.
    Between,
    String,
    /// Behind a backslash.
    Escape,
    /// Within the digits of `\u`: how many are missing, and what the others say.
    Unicode(u8, u32),
    /// Behind the object, or there is none.
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Member {
    /// One that names the model, by its rank.
    Name(usize),
    From,
    Modelfile,
    KeepAlive,
    /// A text that opens a conversation.
    Text,
    /// The text without which a generate only loads or unloads its model.
    Prompt,
    Messages,
    Images,
    Tools,
    Options,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// A top-level key, or a string within a member that may be one.
    Key,
    Value,
    /// The first text of a conversation.
    Opening,
    /// Another one.
    Text,
    /// What a part of a message is.
    Type,
    /// Nothing that matters.
    Other,
}

impl Role {
    /// Bytes of it that are kept.
    fn room(self) -> usize {
        match self {
            // No key and no type that matters is as long.
            Role::Key | Role::Type => 16,
            Role::Value => 512,
            // Enough to tell a conversation from others.
            Role::Opening => OPENING,
            Role::Text | Role::Other => 0,
        }
    }
}

/// Within a member that holds others: whether the last token was a name that matters, or what belongs
/// to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nested {
    Other,
    Name(Key),
    Value(Key),
}

/// Names within members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Text,
    Type,
    Images,
    NumCtx,
}

impl Scan {
    /// A scan in front of a body, in which these members name the model; the first one counts.
    pub fn new(names: &'static [&'static str]) -> Self {
        Scan {
            names,
            named: Default::default(),
            places: Default::default(),
            at: 0,
            begun: 0,
            found: Subject::default(),
            from_line: None,
            images: [false; 3],
            written: [0; 2],
            state: State::Start,
            depth: 0,
            member: None,
            nested: Nested::Other,
            role: Role::Other,
            text: Vec::new(),
        }
    }

    /// Whether nothing that follows could change what was found.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The model that has been named so far.
    pub fn model(&self) -> Option<&str> {
        self.named.iter().flatten().next().map(String::as_str)
    }

    /// What was found so far.
    pub fn subject(&self) -> Subject {
        let base = self.found.base.clone().or_else(|| self.from_line.clone());
        let rank = self.named.iter().position(Option::is_some);
        Subject {
            model: self.model().map(str::to_owned),
            model_at: rank.map(|rank| self.places[rank].clone()),
            base,
            has_images: self.images.contains(&true),
            text_bytes: self.written.iter().sum(),
            ..self.found.clone()
        }
    }

    /// Goes on with the next bytes of the body.
    pub fn push(&mut self, mut piece: &[u8]) {
        let end = self.at + piece.len();
        while let Some((&byte, behind)) = piece.split_first() {
            self.at = end - piece.len();
            piece = match self.state {
                State::String => self.within_string(piece),
                State::Done => return,
                _ => {
                    self.step(byte);
                    behind
                }
            };
        }
        self.at = end;
    }

    fn step(&mut self, byte: u8) {
        match self.state {
            State::Start => match byte {
                b' ' | b'\t' | b'\r' | b'\n' => {}
                b'{' => (self.state, self.depth) = (State::Between, 1),
                _ => self.state = State::Done,
            },
            State::Between => self.between(byte),
            State::Escape => match byte {
                b'u' => self.state = State::Unicode(4, 0),
                b'b' => self.keep_escaped(b"\x08"),
                b'f' => self.keep_escaped(b"\x0c"),
                b'n' => self.keep_escaped(b"\n"),
                b'r' => self.keep_escaped(b"\r"),
                b't' => self.keep_escaped(b"\t"),
                other => self.keep_escaped(&[other]),
            },
            State::Unicode(missing, code) => {
                let code = code << 4 | char::from(byte).to_digit(16).unwrap_or(0);
                self.state = State::Unicode(missing - 1, code);
                if missing == 1 {
                    let c = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
                    self.keep_escaped(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
            }
            State::String | State::Done => {}
        }
    }

    fn between(&mut self, byte: u8) {
        let is_number = byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => return,
            b'"' => return self.begin_string(),
            b':' => {
                if let Nested::Name(key) = self.nested {
                    return self.nested = Nested::Value(key);
                }
            }
            b'[' if self.nested == Nested::Value(Key::Images) => return self.depth += 1,
            b'{' | b'[' => {
                self.depth += 1;
                self.found.has_tools |= (self.depth, self.member) == (3, Some(Member::Tools));
                self.found.has_messages |= (self.depth, self.member) == (3, Some(Member::Messages));
            }
            b'}' | b']' => self.depth -= 1,
            b',' if self.depth == 1 => self.member = None,
            _ if is_number && (self.depth, self.member) == (1, Some(Member::KeepAlive)) => {
                self.role = Role::Value;
                self.keep(&[byte]);
                // In seconds, of which Ollama takes nanoseconds.
                let number = self.number();
                self.found.unloads = number.is_some_and(|time| (0.0..1e-9).contains(&time));
            }
            _ if is_number && self.nested == Nested::Value(Key::NumCtx) => {
                self.role = Role::Value;
                self.keep(&[byte]);
                let number = self.number().filter(|number| (1.0..1e15).contains(number));
                self.found.num_ctx = number.map(|number| number as u64);
                return;
            }
            _ => {}
        }
        self.nested = Nested::Other;
        if self.depth == 0 {
            self.state = State::Done;
        }
    }

    fn begin_string(&mut self) {
        self.begun = self.at;
        self.state = State::String;
        self.text.clear();
        self.role = match (self.depth, self.member) {
            (1, None) => Role::Key,
            (1, Some(member @ (Member::Text | Member::Prompt))) => {
                self.found.has_prompt |= member == Member::Prompt; // Its end may not come.
                self.text_role()
            }
            (1, Some(Member::Name(_) | Member::From | Member::Modelfile | Member::KeepAlive)) => {
                Role::Value
            }
            (1, Some(_)) => Role::Other,
            (_, Some(Member::Images)) => self.image(2),
            (_, Some(member @ (Member::Messages | Member::Text | Member::Prompt))) => match self
                .nested
            {
                Nested::Value(Key::Text) if member == Member::Messages => self.text_role(),
                Nested::Value(Key::Text) => Role::Text,
                Nested::Value(Key::Type) => Role::Type,
                Nested::Value(Key::Images) => self.image(usize::from(member != Member::Messages)),
                _ => Role::Key,
            },
            (_, Some(Member::Tools)) if self.nested == Nested::Value(Key::Type) => Role::Value,
            (_, Some(Member::Tools)) | (2, Some(Member::Options)) => Role::Key,
            _ => Role::Other,
        };
    }

    fn text_role(&self) -> Role {
        if self.found.opening.is_some() { Role::Text } else { Role::Opening }
    }

    fn image(&mut self, place: usize) -> Role {
        self.images[place] = true;
        Role::Other
    }

    fn number(&self) -> Option<f64> {
        std::str::from_utf8(&self.text).ok()?.parse().ok()
    }

    /// Goes on in a string to its next character that means something; returns what is behind that.
    fn within_string<'a>(&mut self, piece: &'a [u8]) -> &'a [u8] {
        let end = memchr2(b'"', b'\\', piece).unwrap_or(piece.len());
        if matches!(self.role, Role::Opening | Role::Text) {
            self.written[usize::from(self.member != Some(Member::Messages))] += end as u64;
        }
        self.keep(&piece[..end]);
        match piece.get(end) {
            Some(b'"') => self.end_string(self.begun..self.at + end + 1),
            Some(_) => self.state = State::Escape,
            None => {}
        }
        piece.get(end + 1..).unwrap_or_default()
    }

    fn keep_escaped(&mut self, bytes: &[u8]) {
        self.state = State::String;
        self.keep(bytes);
    }

    fn keep(&mut self, mut bytes: &[u8]) {
        let (role, most) = (self.role, self.role.room());
        while !bytes.is_empty() && self.text.len() < most {
            let kept = bytes.split_off(..bytes.len().min(most - self.text.len()));
            self.text.extend_from_slice(kept.unwrap_or_default());
            if role == Role::Value && self.text.len() == most && self.text.trim_ascii().is_empty() {
                // Blanks around a name don't count, however many there are.
                self.text.clear();
            }
        }
        if self.text.len() == OPENING && self.role == Role::Opening {
            // The rest of the text tells no more, and may not come.
            self.take_opening();
        }
    }

    fn take_opening(&mut self) {
        self.found.opening = Some(self.taken());
        self.text.clear();
        self.role = Role::Text;
    }

    fn taken(&self) -> String {
        String::from_utf8_lossy(&self.text).into_owned()
    }

    fn end_string(&mut self, place: Range<usize>) {
        self.state = State::Between;
        self.nested = Nested::Other;
        if (self.depth, self.member) == (1, Some(Member::Prompt)) {
            self.found.has_prompt = place.len() > 2;
        }
        match (self.role, self.member) {
            // An empty system text opens nothing: the next one tells conversations apart.
            (Role::Opening, _) if self.text.is_empty() => {}
            (Role::Opening, _) => self.take_opening(),
            (Role::Key, None) => self.member = Some(self.key()),
            (Role::Key, Some(member)) => {
                self.nested = self.nested_key(member).map_or(Nested::Other, Nested::Name);
            }
            (Role::Type, Some(member)) => {
                let is_image = matches!(&self.text[..], b"image" | b"image_url" | b"input_image");
                self.images[usize::from(member != Member::Messages)] |= is_image;
            }
            (Role::Value, Some(member)) => self.take_value(member, place),
            _ => {}
        }
        self.text.clear();
    }

    /// The key that was read within this member, if its value matters. Those of options, Go takes as
    /// they are.
    fn nested_key(&mut self, member: Member) -> Option<Key> {
        if member != Member::Options {
            self.text.make_ascii_lowercase();
        }
        match (&self.text[..], member) {
            (b"num_ctx", Member::Options) => Some(Key::NumCtx),
            (_, Member::Options) => None,
            (b"type", _) => Some(Key::Type),
            (_, Member::Tools) => None,
            (b"content" | b"text", _) => Some(Key::Text),
            (b"images", _) => Some(Key::Images),
            _ => None,
        }
    }

    fn take_value(&mut self, member: Member, place: Range<usize>) {
        let told = Some(self.taken()).filter(|text| !text.trim().is_empty());
        match member {
            Member::Name(rank) => {
                let is_cloud = |name: ModelName| name.is_cloud();
                // Of a longer text than any name has, the end isn't known.
                self.found.names_cloud |= self.text.len() >= Role::Value.room()
                    || told.as_deref().and_then(ModelName::parse).is_some_and(is_cloud);
                (self.named[rank], self.places[rank]) = (told, place);
            }
            Member::Tools => {
                self.found.searches_web |=
                    told.is_some_and(|kind| kind.trim().starts_with("web_search"));
            }
            Member::From => self.found.base = told,
            Member::Modelfile => self.from_line = told.as_deref().and_then(from_line),
            // `0`, `0s`, `0h0m`: no digit that isn't zero.
            Member::KeepAlive => {
                let mut digits = self.text.iter().filter(|byte| byte.is_ascii_digit());
                self.found.unloads = digits.next() == Some(&b'0') && digits.all(|d| *d == b'0');
            }
            Member::Text | Member::Prompt | Member::Messages => {}
            Member::Images | Member::Options | Member::Other => {}
        }
    }

    /// What the key names that has been read. Go takes keys in any case by Unicode's folding, in
    /// which two characters beyond ASCII are letters of ours.
    fn key(&mut self) -> Member {
        if !self.text.is_ascii() {
            self.text = self.taken().replace('\u{17f}', "s").replace('\u{212a}', "k").into_bytes();
        }
        self.text.make_ascii_lowercase();
        let is_key = |name: &&str| name.as_bytes() == self.text;
        if let Some(rank) = self.names.iter().position(is_key) {
            return Member::Name(rank);
        }
        match &self.text[..] {
            b"from" => Member::From,
            b"modelfile" => Member::Modelfile,
            b"keep_alive" => Member::KeepAlive,
            b"system" | b"input" => Member::Text,
            b"prompt" => Member::Prompt,
            // Of several, the last counts.
            b"messages" => {
                (self.images[0], self.written[0]) = (false, 0);
                self.found.has_messages = false;
                Member::Messages
            }
            b"images" => {
                self.images[2] = false;
                Member::Images
            }
            b"tools" => {
                self.found.has_tools = false;
                Member::Tools
            }
            b"options" => Member::Options,
            _ => Member::Other,
        }
    }
}
