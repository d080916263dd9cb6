//! What is wrong with a configuration.

use std::fmt;

use super::{Located, Location};

/// One thing that is wrong, where, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub struct Error {
    /// The line at fault.
    pub location: Location,
    /// The field at fault, such as `spec.ports[0].number`; absent when it is the document or the file.
    pub path: Option<String>,
    /// What is wrong with it.
    pub message: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.location)?;
        if let Some(path) = &self.path {
            write!(f, "{path}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// Everything that is wrong with a configuration, in the order of files and lines; displays one error per line.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
pub struct Errors(Vec<Error>);

impl Errors {
    /// Blames the value at a place.
    pub fn at<T>(&mut self, place: &Located<T>, message: impl Into<String>) {
        self.push(place.location.clone(), &place.path, message);
    }

    /// Blames a line, and the field on it unless `path` is empty.
    pub fn push(&mut self, location: Location, path: &str, message: impl Into<String>) {
        let path = (!path.is_empty()).then(|| path.to_owned());
        self.0.push(Error { location, path, message: message.into() });
    }

    /// `value` if nothing is wrong, otherwise everything that is.
    pub fn or<T>(mut self, value: T) -> Result<T, Self> {
        if self.0.is_empty() {
            return Ok(value);
        }
        self.0.sort();
        self.0.dedup();
        Err(self)
    }

    /// The errors, in the order of files and lines.
    pub fn iter(&self) -> impl Iterator<Item = &Error> {
        self.0.iter()
    }

    /// How many errors there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

/// Something that is allowed but probably not what the author meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Warning {
    /// The line that gave rise to it.
    pub location: Location,
    /// What to know, and what to do about it.
    pub text: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.location, self.text)
    }
}
