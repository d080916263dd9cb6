//! A tree of nodes to the shapes of resources, strictly: a field is known, or known and refused, or unknown.
//!
//! Everything that is wrong is recorded and decoding goes on, so that the user sees all of it at once.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Code, Errors, Located, Location, Message,
    node::{Entry, Node, Value},
};

/// What can be made of a node.
pub(super) trait Decode: Sized {
    /// The value of `node`, which is at `path`; `None` when `errors` now say why there is none.
    fn decode(node: &Node, path: &str, errors: &mut Errors) -> Option<Self>;

    /// The value of a field that is not there; `None` when it has to be.
    fn absent() -> Option<Self> {
        None
    }

    /// Whether an empty text is as good as none where there need be none, as it is in Istio.
    const EMPTY_IS_ABSENT: bool = false;
}

/// Declares the shape of a map: one line per field, `"key" => field: Type`, and the fields of Istio's that are refused.
/// A field may be left out if its type is an `Option` or a collection.
macro_rules! shape {
    (
        $(#[$attribute:meta])*
        pub struct $name:ident {
            $( $(#[$field_attribute:meta])* $key:literal => $field:ident: $type:ty, )*
        }
        refused [$($refused:literal),* $(,)?]
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            $( $(#[$field_attribute])* pub $field: $type, )*
        }

        impl $crate::config::decode::Decode for $name {
            fn decode(
                node: &$crate::config::node::Node,
                path: &str,
                errors: &mut $crate::config::Errors,
            ) -> Option<Self> {
                let mut fields = $crate::config::decode::Fields::of(node, path, errors)?;
                $( let $field = fields.take($key, errors); )*
                fields.finish(&[$($refused),*], errors);
                Some(Self { $( $field: $field?, )* })
            }
        }
    };
}
pub(super) use shape;

/// The fields of a map, of which the known ones are taken and what is left is refused.
pub(super) struct Fields<'n> {
    location: &'n Location,
    path: &'n str,
    entries: &'n [Entry<'n>],
    known: Vec<&'static str>,
}

impl<'n> Fields<'n> {
    /// The fields of `node`.
    pub(super) fn of(node: &'n Node<'n>, path: &'n str, errors: &mut Errors) -> Option<Self> {
        let Value::Map(entries) = &node.value else {
            wrong_type(node, path, "a map", errors);
            return None;
        };
        Some(Self { location: &node.location, path, entries, known: Vec::new() })
    }

    /// The node of a field. As in Kubernetes, a field without a value is not there.
    pub(super) fn node(&mut self, key: &'static str) -> Option<&'n Node<'n>> {
        self.known.push(key);
        let entry = self.entries.iter().find(|entry| entry.key == key)?;
        (!matches!(entry.value.value, Value::Null)).then_some(&entry.value)
    }

    /// Whether a field is written, be it without a value.
    pub(super) fn is_written(&self, key: &str) -> bool {
        self.entries.iter().any(|entry| entry.key == key)
    }

    /// The value of a field; `None` when `errors` now say why there is none.
    pub(super) fn take<T: Decode>(&mut self, key: &'static str, errors: &mut Errors) -> Option<T> {
        match self.node(key) {
            Some(node) => T::decode(node, &self.path_of(key), errors),
            None => T::absent().or_else(|| {
                errors.push(
                    self.location.clone(),
                    &self.path_of(key),
                    Code::MissingField.because("this field is required"),
                );
                None
            }),
        }
    }

    /// The value of a field that is there, be it empty.
    pub(super) fn given<T: Decode>(&mut self, key: &'static str, errors: &mut Errors) -> Option<Option<T>> {
        match self.node(key) {
            Some(node) => T::decode(node, &self.path_of(key), errors).map(Some),
            None => Some(None),
        }
    }

    /// Knows fields and has no use for them.
    pub(super) fn ignore(&mut self, keys: &[&'static str]) {
        self.known.extend(keys);
    }

    /// Refuses by name whatever has not been taken.
    pub(super) fn finish(self, refused: &[&'static str], errors: &mut Errors) {
        for entry in self.entries.iter().filter(|entry| !self.known.contains(&&*entry.key)) {
            let message = if refused.contains(&&*entry.key) {
                Code::Unsupported.because("Istio has this field, egress does not implement it; remove it")
            } else {
                Code::UnknownField.because(match closest(&entry.key, self.known.iter().chain(refused)) {
                    Some(meant) => format!("unknown field; did you mean `{meant}`?"),
                    None => format!("unknown field; the fields known here are {}", self.known.join(", ")),
                })
            };
            errors.push(entry.location.clone(), &self.path_of(&entry.key), message);
        }
    }

    fn path_of(&self, key: &str) -> String {
        join(self.path, key)
    }
}

/// Says that a node is not what it has to be.
pub(super) fn wrong_type(node: &Node, path: &str, expected: &str, errors: &mut Errors) {
    let message = format!("expected {expected}, found {}", node.value);
    errors.push(node.location.clone(), path, Code::WrongType.because(message));
}

/// The path of a field within the map at `path`.
pub(super) fn join(path: &str, key: &str) -> String {
    if key.contains(['.', '/']) {
        format!("{path}[{key:?}]")
    } else if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// The candidate that a typo may have been meant as.
pub(super) fn closest<'c>(typo: &str, candidates: impl Iterator<Item = &'c &'static str>) -> Option<&'static str> {
    candidates
        .map(|candidate| (distance(&typo.to_ascii_lowercase(), &candidate.to_ascii_lowercase()), *candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().div_ceil(3).min(3))
        .min()
        .map(|(_, candidate)| candidate)
}

/// The number of letters to insert, delete or replace to make `b` of `a` (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

impl<T: Decode> Decode for Option<T> {
    fn decode(node: &Node, path: &str, errors: &mut Errors) -> Option<Self> {
        match &node.value {
            Value::String(text) if T::EMPTY_IS_ABSENT && text.is_empty() => Some(None),
            _ => T::decode(node, path, errors).map(Some),
        }
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}

impl<T: Decode> Decode for Located<T> {
    fn decode(node: &Node, path: &str, errors: &mut Errors) -> Option<Self> {
        let value = T::decode(node, path, errors)?;
        Some(Self { value, location: node.location.clone(), path: Arc::from(path) })
    }

    const EMPTY_IS_ABSENT: bool = T::EMPTY_IS_ABSENT;
}

impl<T: Decode> Decode for Vec<T> {
    fn decode(node: &Node, path: &str, errors: &mut Errors) -> Option<Self> {
        let Value::List(items) = &node.value else {
            wrong_type(node, path, "a list", errors);
            return None;
        };
        // Every item is decoded before the first bad one spoils the list.
        let items: Vec<Option<T>> = (0..)
            .zip(items)
            .map(|(index, item): (usize, _)| T::decode(item, &format!("{path}[{index}]"), errors))
            .collect();
        items.into_iter().collect()
    }

    fn absent() -> Option<Self> {
        Some(Self::new())
    }
}

impl<T: Decode> Decode for BTreeMap<String, T> {
    fn decode(node: &Node, path: &str, errors: &mut Errors) -> Option<Self> {
        let fields = Fields::of(node, path, errors)?;
        let entries: Vec<Option<(String, T)>> = fields
            .entries
            .iter()
            .map(|Entry { key, value, .. }| {
                T::decode(value, &fields.path_of(key), errors).map(|value| (key.to_string(), value))
            })
            .collect();
        entries.into_iter().collect()
    }

    fn absent() -> Option<Self> {
        Some(Self::new())
    }
}

/// What is of no concern to egress, whatever it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anything;

impl Decode for Anything {
    fn decode(_: &Node, _: &str, _: &mut Errors) -> Option<Self> {
        Some(Self)
    }
}

/// What is written as a single text.
pub(super) trait Text: Sized {
    /// Whether it can be what nobody else must know, so that messages say nothing of it.
    const IS_SECRET: bool = false;

    /// Whether an empty one is as good as none.
    const EMPTY_IS_ABSENT: bool = false;

    /// The value, or what is wrong with the text.
    fn parse(text: &str) -> Result<Self, Message>;
}

impl<T: Text> Decode for T {
    const EMPTY_IS_ABSENT: bool = <T as Text>::EMPTY_IS_ABSENT;

    fn decode(node: &Node, path: &str, errors: &mut Errors) -> Option<Self> {
        let message = match &node.value {
            Value::String(text) => match T::parse(text) {
                Ok(value) => return Some(value),
                Err(message) => message,
            },
            other => {
                let found = if T::IS_SECRET { other.kind() } else { other.to_string().into() };
                let unquoted = |remedy: &str| Code::WrongType.because(format!("expected text, found {found}{remedy}"));
                match other.in_quotes().map(|text| T::parse(&text)) {
                    Some(Ok(_)) => unquoted("; put it in quotes if it is meant"),
                    // Quotes would not help.
                    Some(Err(message)) => message,
                    None => unquoted(""),
                }
            }
        };
        errors.push(node.location.clone(), path, message);
        None
    }
}

/// A value that is of use only where TLS is originated: what egress does not have is as good as any other until then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IfUsed<T>(pub Result<T, Message>);

impl<T: Text> Text for IfUsed<T> {
    const IS_SECRET: bool = T::IS_SECRET;

    fn parse(text: &str) -> Result<Self, Message> {
        match T::parse(text) {
            Err(message) if message.is_unsupported() => Ok(Self(Err(message))),
            parsed => parsed.map(|value| Self(Ok(value))),
        }
    }
}

/// One of Istio's enumerations: the values egress knows, and those it refuses by name and why.
pub(super) fn choose<T: Copy>(text: &str, known: &[(&'static str, T)], refused: &[(&str, &str)]) -> Result<T, Message> {
    if let Some((_, value)) = known.iter().find(|(name, _)| *name == text) {
        return Ok(*value);
    }
    if let Some((_, why)) = refused.iter().find(|(name, _)| *name == text) {
        return Err(Code::Unsupported.because(format!("Istio has {text}, egress does not implement it: {why}")));
    }
    let names: Vec<&'static str> = known.iter().map(|(name, _)| *name).collect();
    match closest(text, names.iter()) {
        Some(meant) => Err(format!("unknown value {text:?}; did you mean {meant}?").into()),
        None => Err(format!("unknown value {text:?}; use {}", names.join(", ")).into()),
    }
}
