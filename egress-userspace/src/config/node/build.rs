//! A parser's events to nodes: anchors and merge keys are carried out, keys are text and each is there once.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    path::Path,
    sync::Arc,
};

use granit_parser::{Event, Parser, ScalarStyle, Span, Tag, options};

use super::{Entry, Node, Value, scalar};
use crate::config::Location;

/// How deep nodes may be nested. Nothing that egress reads comes near, and what walks a tree does so by recursion.
const DEPTH: usize = 64;
/// How many nodes aliases may stand for in one document: a few of them that refer to each other can stand for billions.
const ALIASED: usize = 1_000_000;
/// Maps of up to this many keys are searched for one by going through them.
const FEW: usize = 32;

/// Why a document is not one.
pub(super) struct Fault {
    pub(super) location: Location,
    pub(super) message: String,
}

/// Adds the documents of a text to `documents`, but for empty ones. `before` is the number of lines before it.
pub(super) fn build<'t>(
    text: &'t str,
    file: &Arc<Path>,
    before: u32,
    documents: &mut Vec<Node<'t>>,
) -> Result<(), Fault> {
    let options = options! { emit_comments: false, block_nesting_limit: DEPTH, flow_nesting_limit: DEPTH };
    let at = |line: usize| Location { file: file.clone(), line: before + u32::try_from(line).unwrap_or(0) };
    let mut builder = Builder::default();
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) =
            event.map_err(|error| Fault { location: at(error.marker().line()), message: error.info() })?;
        let location = at(span.start.line());
        builder.take(event, &span, &location).map_err(|message| Fault { location, message })?;
    }
    documents.extend(builder.roots.into_iter().filter(|root| !matches!(root.value, Value::Null)));
    Ok(())
}

#[derive(Default)]
struct Builder<'t> {
    roots: Vec<Node<'t>>,
    /// Lists and maps whose ends have not come, the innermost last.
    open: Vec<Open<'t>>,
    /// What aliases can stand for, by the parser's numbers.
    anchors: HashMap<usize, Node<'t>>,
    /// How many nodes aliases stood for.
    aliased: usize,
}

struct Open<'t> {
    location: Location,
    /// 0 if it has none.
    anchor: usize,
    content: Content<'t>,
}

enum Content<'t> {
    List(Vec<Node<'t>>),
    Map(Map<'t>),
}

#[derive(Default)]
struct Map<'t> {
    entries: Vec<Entry<'t>>,
    /// The key whose value comes next.
    key: Option<(Location, Key<'t>)>,
    /// The keys, once they are many.
    keys: HashSet<Cow<'t, str>>,
    /// What `<<` brings in.
    merged: Vec<Entry<'t>>,
}

enum Key<'t> {
    Text(Cow<'t, str>),
    /// `<<`, as in YAML 1.1 and Kubernetes.
    Merge,
}

impl<'t> Builder<'t> {
    fn take(&mut self, event: Event<'t>, span: &Span, location: &Location) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, anchor, tag) => self.scalar(text, style, anchor, tag.as_deref(), location),
            Event::SequenceStart(_, anchor, tag) => {
                self.start(Content::List(Vec::new()), anchor, tag.as_deref(), location)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.start(Content::Map(Map::default()), anchor, tag.as_deref(), location)
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => self.alias(anchor, location),
            Event::DocumentEnd => {
                self.anchors.clear();
                Ok(())
            }
            Event::StreamStart | Event::StreamEnd | Event::DocumentStart(..) => Ok(()),
            // No others were asked for.
            other => Err(format!("{other:?} at column {} is not expected", span.start.col() + 1)),
        }
    }

    fn scalar(
        &mut self,
        text: Cow<'t, str>,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<&Tag>,
        location: &Location,
    ) -> Result<(), String> {
        if let Some(Open { content: Content::Map(map), .. }) = self.open.last_mut()
            && map.key.is_none()
        {
            let key = match &*text {
                "<<" if style == ScalarStyle::Plain && tag.is_none() => Key::Merge,
                _ => Key::Text(text.clone()),
            };
            if anchor != 0 {
                self.anchors.insert(anchor, Node { location: location.clone(), value: Value::String(text) });
            }
            return map.expect(key, location);
        }
        let value = scalar::resolve(text, style, tag)?;
        self.add(Node { location: location.clone(), value }, anchor)
    }

    fn start(
        &mut self,
        content: Content<'t>,
        anchor: usize,
        tag: Option<&Tag>,
        location: &Location,
    ) -> Result<(), String> {
        let expected = match &content {
            Content::List(_) => "seq",
            Content::Map(_) => "map",
        };
        if let Some(tag) = tag.filter(|tag| tag.core_suffix() != Some(expected) && tag.original() != "!") {
            return Err(scalar::foreign(tag));
        }
        if let Some(Open { content: Content::Map(Map { key: None, .. }), .. }) = self.open.last() {
            return Err("the key of a map is not a text".to_owned());
        }
        if self.open.len() >= DEPTH {
            return Err(too_deep());
        }
        self.open.push(Open { location: location.clone(), anchor, content });
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        // The parser ends only what it has started.
        let Some(Open { location, anchor, content }) = self.open.pop() else { return Ok(()) };
        let value = match content {
            Content::List(items) => Value::List(items),
            Content::Map(map) => Value::Map(map.finish()),
        };
        self.add(Node { location, value }, anchor)
    }

    fn alias(&mut self, anchor: usize, location: &Location) -> Result<(), String> {
        let Some(meant) = self.anchors.get(&anchor) else {
            return Err("the alias stands for what it is in itself".to_owned());
        };
        let (nodes, depth) = size(meant);
        self.aliased += nodes;
        if self.aliased > ALIASED {
            return Err(format!("the aliases of this document stand for more than {ALIASED} values"));
        }
        if self.open.len() + depth > DEPTH {
            return Err(too_deep());
        }
        // The line to blame is that of the alias, not that of the anchor, which may be right where it is.
        let node = Node { location: location.clone(), value: meant.value.clone() };
        match (self.open.last_mut(), node.value) {
            (Some(Open { content: Content::Map(map), .. }), Value::String(key)) if map.key.is_none() => {
                map.expect(Key::Text(key), location)
            }
            (Some(Open { content: Content::Map(Map { key: None, .. }), .. }), _) => {
                Err("the key of a map is not a text".to_owned())
            }
            (_, value) => self.add(Node { location: node.location, value }, 0),
        }
    }

    /// Puts a node where it belongs.
    fn add(&mut self, mut node: Node<'t>, anchor: usize) -> Result<(), String> {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            None => self.roots.push(node),
            Some(Open { content: Content::List(items), .. }) => items.push(node),
            Some(Open { content: Content::Map(map), .. }) => match map.key.take() {
                Some((location, Key::Text(key))) => {
                    // A block starts at the line that names it, not at its first field.
                    if let Value::List(_) | Value::Map(_) = node.value {
                        node.location = location.clone();
                    }
                    map.entries.push(Entry { location, key, value: node });
                }
                Some((_, Key::Merge)) => return map.merge(node),
                // A node without a key before it is a key, and was taken for one.
                None => {}
            },
        }
        Ok(())
    }
}

impl<'t> Map<'t> {
    /// Takes a key, whose value comes next.
    fn expect(&mut self, key: Key<'t>, location: &Location) -> Result<(), String> {
        if let Key::Text(key) = &key
            && !self.is_new(key.clone())
        {
            return Err(format!("duplicate mapping key `{key}` is not allowed here"));
        }
        self.key = Some((location.clone(), key));
        Ok(())
    }

    fn is_new(&mut self, key: Cow<'t, str>) -> bool {
        if self.entries.len() < FEW {
            return self.entries.iter().all(|entry| entry.key != key);
        }
        if self.keys.is_empty() {
            self.keys.extend(self.entries.iter().map(|entry| entry.key.clone()));
        }
        self.keys.insert(key)
    }

    fn merge(&mut self, node: Node<'t>) -> Result<(), String> {
        match node.value {
            Value::Map(entries) => self.merged.extend(entries),
            Value::List(maps) => {
                for map in maps {
                    let Value::Map(entries) = map.value else { return Err(not_to_merge(&map.value)) };
                    self.merged.extend(entries);
                }
            }
            other => return Err(not_to_merge(&other)),
        }
        Ok(())
    }

    /// Its own entries, then those that were merged in and that it, or one merged before, does not have.
    fn finish(mut self) -> Vec<Entry<'t>> {
        for entry in std::mem::take(&mut self.merged) {
            if self.is_new(entry.key.clone()) {
                self.entries.push(entry);
            }
        }
        self.entries
    }
}

fn not_to_merge(value: &Value<'_>) -> String {
    format!("<< takes a map or a list of maps, and this is {value}")
}

fn too_deep() -> String {
    format!("this is nested more than {DEPTH} levels deep")
}

/// How many nodes there are in a node, and how deep.
fn size(node: &Node<'_>) -> (usize, usize) {
    let inner: &mut dyn Iterator<Item = &Node<'_>> = match &node.value {
        Value::List(items) => &mut items.iter(),
        Value::Map(entries) => &mut entries.iter().map(|entry| &entry.value),
        _ => return (1, 0),
    };
    inner.map(size).fold((1, 1), |(nodes, depth), (more, deeper)| (nodes + more, depth.max(deeper + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The documents in a short form, with lines; or the fault.
    fn shown(text: &str) -> String {
        let mut documents = Vec::new();
        match build(text, &Arc::from(Path::new("f")), 0, &mut documents) {
            Ok(()) => documents.iter().map(show).collect::<Vec<_>>().join(" "),
            Err(fault) => format!("{}: {}", fault.location, fault.message),
        }
    }

    fn show(node: &Node<'_>) -> String {
        let line = node.location.line;
        match &node.value {
            Value::List(items) => format!("{line}[{}]", items.iter().map(show).collect::<Vec<_>>().join(" ")),
            Value::Map(entries) => {
                let entry = |entry: &Entry<'_>| format!("{}@{}={}", entry.key, entry.location.line, show(&entry.value));
                format!("{line}{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(" "))
            }
            Value::Null => format!("{line}null"),
            Value::Bool(value) => format!("{line}{value}"),
            Value::Integer(value) => format!("{line}#{value}"),
            Value::Float(value) => format!("{line}#{value:?}"),
            Value::String(value) => format!("{line}'{value}'"),
        }
    }

    #[test]
    fn nodes_know_their_lines() {
        for (text, expected) in [
            ("", ""),
            ("~", ""),
            ("a: 1\nb:\n- x\n-\n  y: |\n   p\n   q\n", "1{a@1=1#1 b@2=2[3'x' 5{y@5=6'p\nq\n'}]}"),
            ("a:\n  b:\n   c: 'on'\nd:", "1{a@1=1{b@2=2{c@3=3'on'}} d@4=4null}"),
            ("{a: [1, {b: c}],\n \"d\": true}", "1{a@1=1[1#1 1{b@1=1'c'}] d@2=2true}"),
            ("a\n...\nb\n", "1'a' 3'b'"),
            ("80: x\n? y\n: z\n", "1{80@1=1'x' y@2=3'z'}"),
            (
                "a: !!str 80\nb: !!int '80'\nc: !!float 1\nd: ! 1\ne: !!map {}",
                "1{a@1=1'80' b@2=2#80 c@3=3#1.0 d@4=4'1' e@5=5{}}",
            ),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn aliases_are_on_the_line_that_has_them() {
        for (text, expected) in [
            ("a: &x 1\nb: *x", "1{a@1=1#1 b@2=2#1}"),
            ("a: &x\n  c: 1\nb:\n- *x", "1{a@1=1{c@2=2#1} b@3=3[4{c@2=2#1}]}"),
            ("&k a: 1\nb: *k\n*k : 2", "f:3: duplicate mapping key `a` is not allowed here"),
            ("a: &x 1\na2: &x 2\nb: *x", "1{a@1=1#1 a2@2=2#2 b@3=3#2}"),
            ("a: &x [*x]", "f:1: the alias stands for what it is in itself"),
            ("a: *x", "f:1: while parsing node, found unknown anchor"),
            ("a: &x 1\n---\nb: *x", "f:3: while parsing node, found unknown anchor"),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn maps_are_merged() {
        for (text, expected) in [
            ("a: &x {p: 1, q: 2}\nb:\n  <<: *x\n  p: 3\n", "1{a@1=1{p@1=1#1 q@1=1#2} b@2=2{p@4=4#3 q@1=1#2}}"),
            (
                "a: &x {p: 1}\nb: &y {p: 2, q: 3}\nc: {<<: [*x, *y]}",
                "1{a@1=1{p@1=1#1} b@2=2{p@2=2#2 q@2=2#3} c@3=3{p@1=1#1 q@2=2#3}}",
            ),
            ("'<<': 1", "1{<<@1=1#1}"),
            ("<<: 1", "f:1: << takes a map or a list of maps, and this is the number 1"),
            ("<<: [{a: 1}, b]", "f:1: << takes a map or a list of maps, and this is the text \"b\""),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn refused() {
        let deep = format!("a: {}", "[".repeat(DEPTH + 1));
        let many: String = (0..2 * FEW).map(|number| format!("k{number}: 1\n")).collect();
        let laughs: String =
            (1..12).map(|n| format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 9].join(", "))).collect();
        let nested: String = (1..80).map(|n| format!("a{n}: &a{n} [*a{}]\n", n - 1)).collect();
        for (text, expected) in [
            ("[a]: 1", "f:1: the key of a map is not a text"),
            ("x: &x [a]\n*x : 1", "f:2: the key of a map is not a text"),
            ("a: !red 1", "f:1: the tag !red means nothing here; remove it"),
            ("a: !!binary aGk=", "f:1: the tag !!binary means nothing here; remove it"),
            ("a: !!int x", "f:1: the value is not what its tag !!int says; remove one of them"),
            ("a: !!seq {}", "f:1: the tag !!seq means nothing here; remove it"),
            (&deep, "f:1: recursion limit exceeded"),
            (&format!("{many}k3: 2"), "f:65: duplicate mapping key `k3` is not allowed here"),
            (&format!("a0: &a0 x\n{laughs}"), "f:8: the aliases of this document stand for more than 1000000 values"),
            (&format!("a0: &a0 x\n{nested}"), "f:65: this is nested more than 64 levels deep"),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }
}
