//! YAML text to a tree in which every node knows its line.
//!
//! Serde's derived shapes stop at the first thing they do not like. A tree lets [`super::decode`] go on and report
//! all of it at once, and it does not care whether it was read from YAML or JSON.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{DuplicateKeyPolicy, Spanned, UserMessageFormatter};

use super::{Code, Errors, Location};

/// A value and the line it is on.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) location: Location,
    pub(super) value: Value,
}

/// What YAML can say.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    String(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One `key: value` of a map.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) location: Location,
    pub(super) key: String,
    pub(super) value: Node,
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("nothing"),
            Self::Bool(value) => write!(f, "the boolean {value}"),
            Self::Integer(value) => write!(f, "the number {value}"),
            Self::Float(value) => write!(f, "the number {value}"),
            Self::String(value) => write!(f, "the text {value:?}"),
            Self::List(_) => f.write_str("a list"),
            Self::Map(_) => f.write_str("a map"),
        }
    }
}

/// The documents of a file. A document that is not YAML is an error, and the others are still read.
pub(super) fn parse(text: &str, file: &Location, errors: &mut Errors) -> Vec<Node> {
    let mut nodes = Vec::new();
    for (before, document) in documents(text) {
        let at = |line: u64| Location { line: before + u32::try_from(line).unwrap_or(0), ..file.clone() };
        let options = serde_saphyr::options! {
            duplicate_keys: DuplicateKeyPolicy::Error,
            strict_booleans: true,
            with_snippet: false,
        };
        match serde_saphyr::from_str_with_options::<Spanned<RawValue>>(document, options) {
            Ok(Spanned { value: RawValue::Null, .. }) => {}
            Ok(root) => nodes.push(locate(root, &at)),
            Err(error) => {
                let location = at(error.location().map_or(1, |location| location.line()));
                errors.push(location, "", Code::Syntax.because(describe(&error)));
            }
        }
    }
    nodes
}

/// The documents of a stream, each with the number of lines before it.
///
/// Markers count only at the start of a line, where YAML 1.2 (9.1.4) forbids them within scalars. The marker stays with
/// the document it starts, as `--- {a: b}` is a document.
fn documents(text: &str) -> Vec<(u32, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let (mut start, mut first, mut offset, mut has_content) = (0, 0, 0, false);
    for (number, line) in (0..).zip(text.split_inclusive('\n')) {
        let marker =
            line.strip_prefix("---").is_some_and(|rest| rest.trim_start().len() < rest.len() || rest.is_empty());
        if marker && has_content {
            documents.push((first, &text[start..offset]));
            (start, first, has_content) = (offset, number, false);
        }
        // Comments and directives before a marker belong to the document that the marker starts.
        has_content |= !line.trim_start().is_empty() && !line.trim_start().starts_with('#') && !line.starts_with('%');
        offset += line.len();
    }
    if has_content {
        documents.push((first, &text[start..]));
    }
    documents
}

/// The parser's message without its own idea of the line, which does not know of earlier documents.
fn describe(error: &serde_saphyr::Error) -> String {
    let message = error.without_snippet().render_with_formatter(&UserMessageFormatter);
    match message.rsplit_once(" at line ") {
        Some((message, _)) => message.to_owned(),
        None => message,
    }
}

/// A value as the parser hands it over.
enum RawValue {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    String(String),
    List(Vec<Spanned<Self>>),
    Map(Vec<(Spanned<String>, Spanned<Self>)>),
}

fn locate(Spanned { value, referenced, .. }: Spanned<RawValue>, at: &impl Fn(u64) -> Location) -> Node {
    let value = match value {
        RawValue::Null => Value::Null,
        RawValue::Bool(value) => Value::Bool(value),
        RawValue::Integer(value) => Value::Integer(value),
        RawValue::Float(value) => Value::Float(value),
        RawValue::String(value) => Value::String(value),
        RawValue::List(items) => Value::List(items.into_iter().map(|item| locate(item, at)).collect()),
        RawValue::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(key, value)| {
                    let location = at(key.referenced.line());
                    let mut value = locate(value, at);
                    // A block starts at the line that names it, not at its first field.
                    if let Value::List(_) | Value::Map(_) = value.value {
                        value.location = location.clone();
                    }
                    Entry { location, key: key.value, value }
                })
                .collect(),
        ),
    };
    Node { location: at(referenced.line()), value }
}

impl<'de> Deserialize<'de> for RawValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = RawValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<RawValue, E> {
        Ok(RawValue::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<RawValue, E> {
        Ok(RawValue::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<RawValue, E> {
        Ok(RawValue::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<RawValue, E> {
        Ok(RawValue::Integer(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<RawValue, E> {
        Ok(RawValue::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<RawValue, E> {
        Ok(RawValue::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<RawValue, E> {
        Ok(RawValue::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<RawValue, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(RawValue::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<RawValue, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(RawValue::Map(map))
    }
}
