//! Texts that requests are matched by.

use std::{
    fmt,
    hash::{Hash, Hasher},
};

use regex::Regex;

use super::{
    Code, Errors,
    decode::{Decode, Fields},
    node::Node,
};

/// What a text must be like.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TextMatch {
    /// The same.
    Exact(Box<str>),
    /// The start of it.
    Prefix(Box<str>),
    /// An expression that describes all of it.
    Regex(Pattern),
}

impl TextMatch {
    /// Whether `text` is like this; `ignore_case` leaves expressions alone, as in Istio.
    pub fn matches(&self, text: &str, ignore_case: bool) -> bool {
        let same = |part: &[u8], wanted: &str| {
            if ignore_case { part.eq_ignore_ascii_case(wanted.as_bytes()) } else { part == wanted.as_bytes() }
        };
        match self {
            Self::Exact(wanted) => same(text.as_bytes(), wanted),
            Self::Prefix(wanted) => text.as_bytes().get(..wanted.len()).is_some_and(|start| same(start, wanted)),
            Self::Regex(pattern) => pattern.is_match(text),
        }
    }
}

/// A compiled expression. Its syntax is that of RE2, and its cost linear in the text.
#[derive(Clone)]
pub struct Pattern {
    source: Box<str>,
    regex: Regex,
}

impl Pattern {
    /// An expression that must describe all of a text.
    ///
    /// # Errors
    /// It is not one.
    pub fn whole(source: &str) -> Result<Self, regex::Error> {
        let regex = of_ascii(source);
        // By itself first: `a)(b` makes sense only between the parentheses.
        Regex::new(&regex)?;
        Ok(Self { source: source.into(), regex: Regex::new(&format!("^(?:{regex})$"))? })
    }

    /// An expression that is looked for within a text.
    ///
    /// # Errors
    /// It is not one.
    pub fn part(source: &str) -> Result<Self, regex::Error> {
        Ok(Self { source: source.into(), regex: Regex::new(&of_ascii(source))? })
    }

    /// Whether it describes `text`.
    pub fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// The expression as it is written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The expression, for replacing.
    pub fn regex(&self) -> &Regex {
        &self.regex
    }
}

impl Hash for Pattern {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.regex.as_str().hash(state);
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.regex.as_str() == other.regex.as_str()
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.source, f)
    }
}

/// A [`TextMatch`], or `{}`, which asks only that there be a text, as does `regex: "*"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionalMatch(pub Option<TextMatch>);

impl Decode for TextMatch {
    fn decode(node: &Node, path: &str, errors: &mut Errors) -> Option<Self> {
        let matcher = OptionalMatch::decode(node, path, errors)?.0;
        if matcher.is_none() {
            let mut fields = Fields::of(node, path, errors)?;
            let regex: Option<String> = fields.given("regex", errors)?;
            let message = match regex {
                // Here Istio takes it for an expression, and it is none.
                Some(_) => "\"*\" is not a regular expression; leave this out, or write .*, if all will do".into(),
                None => Code::MissingField.because("there is nothing to compare with; give exact, prefix or regex"),
            };
            errors.push(node.location.clone(), path, message);
        }
        matcher
    }
}

impl Decode for OptionalMatch {
    fn decode(node: &Node, path: &str, errors: &mut Errors) -> Option<Self> {
        let mut fields = Fields::of(node, path, errors)?;
        let exact: Option<String> = fields.given("exact", errors)?;
        let prefix: Option<String> = fields.given("prefix", errors)?;
        let regex: Option<String> = fields.given("regex", errors)?;
        fields.finish(&[], errors);
        let matcher = match (exact, prefix, regex) {
            (None, None, None) => Ok(None),
            (Some(text), None, None) => Ok(Some(TextMatch::Exact(text.into()))),
            (None, Some(text), None) => Ok(Some(TextMatch::Prefix(text.into()))),
            // Which is no expression: Istio's word for whatever there is.
            (None, None, Some(source)) if source == "*" => Ok(None),
            (None, None, Some(source)) => Pattern::whole(&source).map(|pattern| Some(TextMatch::Regex(pattern))),
            _ => {
                let message = Code::Contradiction.because("exact, prefix and regex exclude each other; choose one");
                errors.push(node.location.clone(), path, message);
                return None;
            }
        };
        match matcher {
            Ok(matcher) => Some(Self(matcher)),
            Err(error) => {
                errors.push(node.location.clone(), path, why_no_expression(&error));
                None
            }
        }
    }
}

/// What there is in the brackets of an expression, as far as ranges go by it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum InBrackets {
    /// Nothing that could begin a range.
    Other,
    /// What could.
    Literal,
    /// The dash after that.
    Range,
}

/// An expression in which digits, letters and spaces are those of ASCII, as in RE2. To the crate they are those of Unicode.
fn of_ascii(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let (mut depth, mut last) = (0_usize, InBrackets::Other);
    let mut chars = source.chars();
    while let Some(c) = chars.next() {
        let escaped = if c == '\\' { chars.next() } else { None };
        // No such ends a range. That is for the crate to say, which would take what is put here for a range that ends at a bracket.
        let ends_range = depth > 0 && last == InBrackets::Range;
        last = match (c, escaped, last) {
            ('[', ..) => {
                depth += 1;
                InBrackets::Other
            }
            (']', ..) => {
                depth = depth.saturating_sub(1);
                InBrackets::Other
            }
            ('-', _, InBrackets::Literal) => InBrackets::Range,
            (_, Some('d' | 'D' | 'w' | 'W' | 's' | 'S'), _) | (_, _, InBrackets::Range) => InBrackets::Other,
            ('^', _, InBrackets::Other) => InBrackets::Other,
            _ => InBrackets::Literal,
        };
        match escaped.filter(|_| !ends_range) {
            Some('d') => result.push_str("[0-9]"),
            Some('D') => result.push_str("[^0-9]"),
            Some('w') => result.push_str("[0-9A-Za-z_]"),
            Some('W') => result.push_str("[^0-9A-Za-z_]"),
            Some('s') => result.push_str(r"[\t\n\f\r\x20]"),
            Some('S') => result.push_str(r"[^\t\n\f\r\x20]"),
            Some('b') => result.push_str(r"(?-u:\b)"),
            _ => {
                result.push(c);
                result.extend(escaped);
            }
        }
    }
    result
}

/// What is wrong with an expression, on one line.
pub(super) fn why_no_expression(error: &regex::Error) -> String {
    if let regex::Error::CompiledTooBig(limit) = error {
        return format!(
            "the expression takes more than {limit} bytes of memory; write a simpler one, such as with * in place of a long {{1,255}}"
        );
    }
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    format!("not a regular expression: {}; write one in the syntax of RE2", last.trim_start_matches("error: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_matched_as_in_istio() {
        let [exact, prefix] = [TextMatch::Exact("/News".into()), TextMatch::Prefix("/News".into())];
        let regex = TextMatch::Regex(Pattern::whole("/News|/a.c").expect("an expression"));
        for (matcher, text, ignore_case, expected) in [
            (&exact, "/News", false, true),
            (&exact, "/news", false, false),
            (&exact, "/news", true, true),
            (&exact, "/News/x", true, false),
            (&prefix, "/Newspaper", false, true),
            (&prefix, "/nEWS", true, true),
            (&prefix, "/New", true, false),
            (&prefix, "/Né", true, false),
            (&regex, "/News", false, true),
            (&regex, "/abc", false, true),
            // All of the text, whatever the alternatives are.
            (&regex, "/Newsx", false, false),
            (&regex, "x/abc", false, false),
            (&regex, "/abc\n", false, false),
            (&regex, "/news", true, false),
        ] {
            assert_eq!(matcher.matches(text, ignore_case), expected, "{matcher:?} {text} {ignore_case}");
        }
        Pattern::whole("a)(b").expect_err("unbalanced");
    }

    #[test]
    fn expressions_are_those_of_re2() {
        for (expression, text, expected) in [
            (r"/\d+", "/42", true),
            (r"/\d+", "/٤٢", false),
            (r"/\w{1,255}", "/News_1", true),
            (r"/\w+", "/Né", false),
            (r"/\W", "/é", true),
            (r"/\S\s", "/é ", true),
            (r"/\s", "/\u{a0}", false),
            // Within brackets, where RE2 takes a `-` after one of these for itself.
            (r"/[\w-.]+", "/a-b.c", true),
            (r"/[^\d]", "/1", false),
            (r"/[\D]", "/a", true),
            (r"/\bé", "/é", false),
            (r"/a\b.*", "/a b", true),
            // What is escaped is meant.
            (r"/\\d", r"/\d", true),
            (r"/\\d", "/1", false),
            // All else is about Unicode.
            ("/.", "/é", true),
            (r"/\pL", "/é", true),
        ] {
            let pattern = Pattern::whole(expression).expect(expression);
            assert_eq!(pattern.is_match(text), expected, "{expression} {text}");
        }
        // No class ends a range.
        for expression in [r"/[\w.-\d]+", r"[+-\d]", r"[^.-\D]"] {
            Pattern::whole(expression).expect_err(expression);
        }
        assert!(Pattern::whole(r"[a-z-\d]+").is_ok_and(|pattern| pattern.is_match("b-1")));
        let error = Pattern::whole(r"(\pL{1,200}){1,200}").expect_err("too big");
        assert!(why_no_expression(&error).contains("bytes of memory; write a simpler one"), "{error}");
    }
}
