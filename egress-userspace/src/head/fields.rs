//! The fields of a head.

mod looked_for;

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue};

pub use self::looked_for::Names;
use self::looked_for::{Name, is_same, mark};
use super::names;

/// Fields in their order, repeated ones included. They are few, so they are looked through rather than hashed.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    /// What most of them are written in.
    text: Bytes,
    lines: Vec<Line>,
    /// A bit for each mark of the names that there are, or were: most that are looked for are not there.
    marks: u64,
}

/// One field's line: `Name: value`, without the line break. Positions are in bytes.
#[derive(Clone, Debug)]
pub struct Line {
    /// What it is written in, if not in the text of all.
    own: Option<Box<[u8]>>,
    start: u32,
    /// The end of the name.
    colon: u32,
    /// The value, without the blanks around it.
    value: (u32, u32),
    end: u32,
    /// That of the name, by which others are told from it at once.
    mark: u8,
    /// Whether nobody on the way may put it into a table (RFC 7541 section 7.1.3).
    is_secret: bool,
}

impl Line {
    /// A line from `start` to `end` of the text of all; there is a colon at `colon`.
    pub fn at(start: usize, colon: usize, value: (usize, usize), end: usize) -> Self {
        let [start, colon, first, last, end] = [start, colon, value.0, value.1, end].map(|at| at as u32);
        Self { own: None, start, colon, value: (first, last), end, mark: 0, is_secret: false }
    }

    /// A line that is written anew.
    pub fn new(name: &[u8], value: &[u8]) -> Self {
        let (colon, end) = (name.len(), name.len() + 2 + value.len());
        let own = Some([name, b": ", value].concat().into());
        Self { own, mark: mark(name), ..Self::at(0, colon, (colon + 2, end), end) }
    }

    fn part<'a>(&'a self, text: &'a [u8], from: u32, to: u32) -> &'a [u8] {
        &self.own.as_deref().unwrap_or(text)[from as usize..to as usize]
    }

    fn name<'a>(&'a self, text: &'a [u8]) -> &'a [u8] {
        self.part(text, self.start, self.colon)
    }

    fn value<'a>(&'a self, text: &'a [u8]) -> &'a [u8] {
        self.part(text, self.value.0, self.value.1)
    }

    fn is(&self, text: &[u8], name: &Name<'_>) -> bool {
        self.mark == name.mark && is_same(self.name(text), name.text)
    }
}

impl Fields {
    /// The lines of a text.
    pub fn new(text: Bytes, mut lines: Vec<Line>) -> Self {
        let mut marks = 0;
        for line in &mut lines {
            line.mark = mark(line.name(&text));
            marks |= 1 << line.mark;
        }
        Self { text, lines, marks }
    }

    /// How long those are together that have come, in bytes.
    pub fn size(&self) -> usize {
        self.text.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.lines.iter().map(|line| (line.name(&self.text), line.value(&self.text)))
    }

    /// The same, with whether nobody on the way may put it into a table (RFC 7541 section 7.1.3).
    pub fn marked(&self) -> impl Iterator<Item = (&[u8], &[u8], bool)> {
        self.lines.iter().map(|line| (line.name(&self.text), line.value(&self.text), line.is_secret))
    }

    /// The lines as they are written, without line breaks.
    pub fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.lines.iter().map(|line| line.part(&self.text, line.start, line.end))
    }

    /// Writes the lines, with line breaks. Those that came one after the other go at once.
    pub fn write(&self, out: &mut BytesMut) {
        let mut lines = self.lines.iter().peekable();
        while let Some(line) = lines.next() {
            let mut end = line.end;
            let follows = |next: &Line, end: u32| {
                next.own.is_none() && self.text.get(end as usize..next.start as usize) == Some(b"\r\n")
            };
            while line.own.is_none()
                && let Some(next) = lines.next_if(|next| follows(next, end))
            {
                end = next.end;
            }
            out.extend_from_slice(line.part(&self.text, line.start, end));
            out.extend_from_slice(b"\r\n");
        }
    }

    /// The values of all fields of this name.
    pub fn get_all<'a>(&'a self, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
        let name = Name::new(name);
        let lines = if self.may_have(&name) { &self.lines[..] } else { &[] };
        lines.iter().filter(move |line| line.is(&self.text, &name)).map(|line| line.value(&self.text))
    }

    fn may_have(&self, name: &Name<'_>) -> bool {
        self.marks & 1 << name.mark != 0
    }

    /// Whether there may be fields of these names.
    pub fn may_have_any(&self, names: &Names) -> bool {
        self.marks & names.marks != 0
    }

    /// The value of the first field of this name.
    #[inline]
    pub fn get(&self, name: &HeaderName) -> Option<&[u8]> {
        let name = Name::new(name);
        if self.may_have(&name) { self.find(&name) } else { None }
    }

    fn find(&self, name: &Name<'_>) -> Option<&[u8]> {
        let line = self.lines.iter().find(|line| line.is(&self.text, name))?;
        Some(line.value(&self.text))
    }

    /// The same, if it is ASCII.
    pub fn text(&self, name: &HeaderName) -> Option<&str> {
        ascii(self.get(name)?)
    }

    /// Whether there is a field of this name.
    pub fn contains(&self, name: &HeaderName) -> bool {
        self.get(name).is_some()
    }

    /// Keeps those whose name and value `stays` says yes to.
    pub fn retain(&mut self, mut stays: impl FnMut(&[u8], &[u8]) -> bool) {
        self.lines.retain(|line| stays(line.name(&self.text), line.value(&self.text)));
    }

    /// Removes all of this name.
    pub fn remove(&mut self, name: &HeaderName) {
        let name = Name::new(name);
        if self.may_have(&name) {
            self.lines.retain(|line| !line.is(&self.text, &name));
        }
    }

    /// Removes all of these names.
    pub fn remove_any(&mut self, names: &Names) {
        self.lines.retain(|line| !names.may_have(line.mark) || !names.has(line.name(&self.text)));
    }

    /// Makes this the one field of its name, in the place and with the name of the first that there was, and with one blank before
    /// the value. Nobody on the way may put it into a table if that is so of either.
    pub fn set(&mut self, name: &HeaderName, value: &HeaderValue) {
        let (looked_for, mut found) = (Name::new(name), false);
        self.lines.retain(|line| !line.is(&self.text, &looked_for) || !std::mem::replace(&mut found, true));
        match self.lines.iter_mut().find(|line| line.is(&self.text, &looked_for)) {
            Some(line) => {
                let is_secret = line.is_secret || value.is_sensitive();
                *line = Line { is_secret, ..Line::new(line.name(&self.text), value.as_bytes()) }
            }
            None => self.append(name, value),
        }
    }

    /// Adds a field after all others.
    pub fn append(&mut self, name: &HeaderName, value: &HeaderValue) {
        let mut written = BytesMut::with_capacity(name.as_str().len());
        names::put(name.as_str().as_bytes(), &mut written);
        let line = Line { is_secret: value.is_sensitive(), ..Line::new(&written, value.as_bytes()) };
        self.marks |= 1 << line.mark;
        self.lines.push(line);
    }

    /// Changes the values of this name to which `other` gives another.
    pub fn change(&mut self, name: &HeaderName, other: impl Fn(&[u8]) -> Option<HeaderValue>) {
        let name = Name::new(name);
        for line in self.lines.iter_mut().filter(|line| line.is(&self.text, &name)) {
            let value = line.value(&self.text);
            if let Some(other) = other(value).filter(|other| other.as_bytes() != value) {
                *line = Line { is_secret: line.is_secret, ..Line::new(line.name(&self.text), other.as_bytes()) };
            }
        }
    }
}

/// A value as a text, if it is ASCII.
pub fn ascii(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value).ok().filter(|text| text.is_ascii())
}

/// Fields that come one by one, to be written as in HTTP/1.1.
pub struct Builder {
    text: BytesMut,
    lines: Vec<Line>,
}

impl Builder {
    /// None yet. There is room for as many as are usual.
    pub fn new() -> Self {
        Self { text: BytesMut::with_capacity(512), lines: Vec::with_capacity(16) }
    }

    /// Adds one after all others, whose name is written as usual. `is_secret` says that nobody on the way may put it into a table.
    pub fn push(&mut self, name: &[u8], value: &[u8], is_secret: bool) {
        let start = self.text.len();
        self.text.extend_from_slice(name);
        let colon = self.text.len();
        self.text.extend_from_slice(b": ");
        let first = self.text.len() + value.len() - value.trim_ascii_start().len();
        self.text.extend_from_slice(value);
        let end = self.text.len();
        let last = first + value.trim_ascii().len();
        self.lines.push(Line { is_secret, ..Line::at(start, colon, (first, last), end) });
        // Nobody sees it, but they are written as one.
        self.text.extend_from_slice(b"\r\n");
    }

    /// Those that have come.
    pub fn finish(self) -> Fields {
        Fields::new(self.text.freeze(), self.lines)
    }
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
impl Fields {
    /// Fields with these names and values.
    pub fn of(list: &[(&str, &str)]) -> Self {
        let lines = list.iter().map(|(name, value)| Line::new(name.as_bytes(), value.as_bytes()));
        Self::new(Bytes::new(), lines.collect())
    }

    /// Names and values as texts.
    pub fn listed(&self) -> Vec<(&str, &str)> {
        self.iter().map(|(name, value)| (ascii(name).expect("ASCII"), ascii(value).expect("ASCII"))).collect()
    }
}

#[cfg(test)]
mod tests {
    use http::header;

    use super::*;

    fn value(text: &'static str) -> HeaderValue {
        HeaderValue::from_static(text)
    }

    #[test]
    fn names_are_found_in_any_case_and_kept_in_their_own() {
        let mut fields = Fields::of(&[("HOST", "a"), ("X-A", "1"), ("accept", "*/*"), ("x-a", "2")]);
        let name = HeaderName::from_static("x-a");
        assert_eq!(fields.get(&header::HOST), Some(&b"a"[..]));
        assert_eq!(fields.get_all(&name).collect::<Vec<_>>(), [b"1", b"2"]);
        fields.set(&name, &value("3"));
        fields.set(&header::VIA, &value("b"));
        fields.append(&name, &value("4"));
        assert_eq!(fields.listed(), [("HOST", "a"), ("X-A", "3"), ("accept", "*/*"), ("Via", "b"), ("X-A", "4")]);
        fields.remove(&name);
        assert_eq!(fields.listed(), [("HOST", "a"), ("accept", "*/*"), ("Via", "b")]);
    }

    #[test]
    fn names_that_are_looked_for_together_are_told_from_others_of_the_same_mark() {
        const NAMES: Names = Names::new(&["te", "x-a"]);
        let mut fields = Fields::of(&[("TE", "1"), ("X-B", "2"), ("x-A", "3"), ("Host", "a")]);
        assert!(fields.may_have_any(&NAMES) && NAMES.has(b"Te") && !NAMES.has(b"x-b") && !NAMES.has(b""));
        fields.remove_any(&NAMES);
        assert_eq!(fields.listed(), [("X-B", "2"), ("Host", "a")]);
        assert!(!Fields::of(&[("Host", "a")]).may_have_any(&NAMES));
    }

    #[test]
    fn values_are_changed_where_they_differ() {
        let text = Bytes::from_static(b"A:  1\r\na:2 \r\n");
        let mut fields = Fields::new(text, vec![Line::at(0, 1, (4, 5), 5), Line::at(7, 8, (9, 10), 11)]);
        let name = HeaderName::from_static("a");
        fields.change(&name, |_| Some(value("2")));
        assert_eq!(fields.lines().collect::<Vec<_>>(), [&b"A: 2"[..], b"a:2 "]);
        assert_eq!(fields.listed(), [("A", "2"), ("a", "2")]);
    }
}
