//! The Proxy-Status field (RFC 9209), read by somebody else than who wrote it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

/// One member of the field: who speaks, and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyStatus {
    /// The proxy.
    pub proxy: String,
    /// `error`, `details` and others; tokens and strings alike.
    pub parameters: BTreeMap<String, String>,
}

impl ProxyStatus {
    /// Reads a field with one member, which must be a token with parameters (RFC 8941 section 3.1.2).
    pub fn parse(field: &str) -> Result<Self> {
        let (proxy, mut rest) = token(field);
        ensure!(!proxy.is_empty(), "no token at the beginning of {field:?}");
        let mut parameters = BTreeMap::new();
        while !rest.is_empty() {
            let parameter = rest.strip_prefix(';').with_context(|| format!("not a parameter: {rest:?}"))?;
            let (key, value) =
                parameter.trim_start_matches(' ').split_once('=').context("a parameter without value")?;
            let is_key = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-.*".contains(c);
            ensure!(key.starts_with(|c: char| c.is_ascii_lowercase()) && key.chars().all(is_key), "bad key {key:?}");
            let (value, after) = match value.strip_prefix('"') {
                Some(quoted) => string(quoted)?,
                None => {
                    let (value, after) = token(value);
                    (value.to_owned(), after)
                }
            };
            ensure!(parameters.insert(key.to_owned(), value).is_none(), "{key} is there twice");
            rest = after;
        }
        Ok(Self { proxy: proxy.to_owned(), parameters })
    }

    /// A parameter; empty if it is not there.
    pub fn get(&self, key: &str) -> &str {
        self.parameters.get(key).map(String::as_str).unwrap_or_default()
    }
}

fn token(text: &str) -> (&str, &str) {
    let is_token = |c: char| c.is_ascii_alphanumeric() || ":/!#$%&'*+-.^_`|~".contains(c);
    text.split_at(text.find(|c| !is_token(c)).unwrap_or(text.len()))
}

/// The string up to the closing quote, and what follows it.
fn string(text: &str) -> Result<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match characters.next() {
                Some((_, escaped @ ('"' | '\\'))) => value.push(escaped),
                _ => bail!("a bad escape in {text:?}"),
            },
            ' '..='~' => value.push(character),
            other => bail!("{other:?} cannot be in a string"),
        }
    }
    bail!("a string without end: {text:?}")
}
