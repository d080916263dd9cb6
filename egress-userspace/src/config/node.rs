//! YAML text to a tree in which every node knows its line.
//!
//! Serde's derived shapes stop at the first thing they do not like. A tree lets [`super::decode`] go on and report
//! all of it at once, and it does not care whether it was read from YAML or JSON. Text that the file has as it is meant is not
//! copied.

mod build;
mod scalar;

use std::{borrow::Cow, fmt};

use super::{Code, Errors, Location};

/// Texts of more bytes are not quoted: a key in a file that is taken for a configuration has no business in logs.
const QUOTED: usize = 64;

/// A value and the line it is on.
#[derive(Clone, Debug)]
pub(super) struct Node<'t> {
    pub(super) location: Location,
    pub(super) value: Value<'t>,
}

/// What YAML can say.
#[derive(Clone, Debug)]
pub(super) enum Value<'t> {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    String(Cow<'t, str>),
    List(Vec<Node<'t>>),
    Map(Vec<Entry<'t>>),
}

/// One `key: value` of a map.
#[derive(Clone, Debug)]
pub(super) struct Entry<'t> {
    pub(super) location: Location,
    pub(super) key: Cow<'t, str>,
    pub(super) value: Node<'t>,
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("nothing"),
            Self::Bool(value) => write!(f, "the boolean {value}"),
            Self::Integer(value) => write!(f, "the number {value}"),
            Self::Float(value) => write!(f, "the number {value}"),
            Self::String(value) if value.len() <= QUOTED => write!(f, "the text {value:?}"),
            _ => f.write_str(&self.kind()),
        }
    }
}

impl Value<'_> {
    /// What it would be as a text, if quotes would make it one.
    pub(super) fn in_quotes(&self) -> Option<String> {
        match self {
            Self::Bool(value) => Some(value.to_string()),
            Self::Integer(value) => Some(value.to_string()),
            Self::Float(value) => Some(value.to_string()),
            Self::Null | Self::String(_) | Self::List(_) | Self::Map(_) => None,
        }
    }

    /// What kind of value it is, with nothing of what it says.
    pub(super) fn kind(&self) -> Cow<'static, str> {
        match self {
            Self::Null => "nothing".into(),
            Self::Bool(_) => "a boolean".into(),
            Self::Integer(_) | Self::Float(_) => "a number".into(),
            Self::String(text) => format!("a text of {} characters", text.chars().count()).into(),
            Self::List(_) => "a list".into(),
            Self::Map(_) => "a map".into(),
        }
    }
}

/// The documents of a text, which has `before` lines of its file before it. One that is not YAML is an error, and the
/// others are still read.
pub(super) fn parse<'t>(text: &'t str, file: &Location, before: u32, errors: &mut Errors) -> Vec<Node<'t>> {
    let mut nodes = Vec::new();
    for (first, document) in split(text, 0) {
        if let Err(fault) = build::build(document, &file.file, before + first, &mut nodes) {
            errors.push(fault.location, "", Code::Syntax.because(fault.message));
        }
    }
    nodes
}

/// The documents of a stream, each with the number of lines before it; or several of them together, of so many bytes at
/// least.
///
/// Markers count only at the start of a line, where YAML 1.2 (9.1.4) forbids them within scalars. The marker stays with
/// the document it starts, as `--- {a: b}` is a document.
pub(super) fn split(text: &str, least: usize) -> Vec<(u32, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut parts = Vec::new();
    let (mut start, mut first, mut offset, mut has_content) = (0, 0, 0, false);
    for (number, line) in (0..).zip(text.split_inclusive('\n')) {
        let marker =
            line.strip_prefix("---").is_some_and(|rest| rest.trim_start().len() < rest.len() || rest.is_empty());
        if marker && has_content && offset - start >= least {
            parts.push((first, &text[start..offset]));
            (start, first, has_content) = (offset, number, false);
        }
        // Comments and directives before a marker belong to the document that the marker starts.
        has_content = has_content
            || !line.trim_start().is_empty() && !line.trim_start().starts_with('#') && !line.starts_with('%');
        offset += line.len();
    }
    if has_content {
        parts.push((first, &text[start..]));
    }
    parts
}
