//! Where in the user's configuration something was said.

use std::{
    fmt,
    ops::Deref,
    path::{Path, PathBuf},
    sync::Arc,
};

/// A line of a configuration source; displays as `rules.yaml:14`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The file, or `--host NAME` for resources that the command line made.
    pub file: Arc<Path>,
    /// 1-based; 0 when the place is the source as a whole.
    pub line: u32,
}

impl Location {
    /// The source as a whole.
    pub fn whole(file: impl Into<Arc<Path>>) -> Self {
        Self { file: file.into(), line: 0 }
    }

    /// `path` as the author of this place meant it: relative to the directory of the file it is written in.
    pub fn resolve(&self, path: &Path) -> PathBuf {
        self.file.parent().map_or_else(|| path.to_owned(), |directory| directory.join(path))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        Ok(())
    }
}

/// A value together with the place it was written at, so that whoever finds fault with it later can name that place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// The line it is on.
    pub location: Location,
    /// The path of the field within its document, such as `spec.ports[0].number`.
    pub path: Arc<str>,
}

impl<T> Located<T> {
    /// A value at a place that has no fields to point at.
    pub fn new(value: T, location: Location) -> Self {
        Self { value, location, path: Arc::from("") }
    }

    /// Another value at the same place.
    pub fn with<U>(&self, value: U) -> Located<U> {
        Located { value, location: self.location.clone(), path: Arc::clone(&self.path) }
    }
}

impl<T> Deref for Located<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}
