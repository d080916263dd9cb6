//! What there is to say about a configuration.

use std::fmt;

use super::{Located, Location};

/// Whether a configuration can be used in spite of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// It cannot.
    Error,
    /// It can, but probably does not mean what its author meant.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// Declares [`Code`]: what it means in one line for each, and its number and name for good.
macro_rules! codes {
    ($( #[doc = $meaning:literal] $variant:ident = $id:literal $name:literal, )*) => {
        /// What kind of thing is wrong. Numbers and names are stable; `EG02` are warnings, all others errors.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $( #[doc = $meaning] $variant, )*
        }

        impl Code {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Such as `EG0101`.
            pub fn id(self) -> &'static str {
                match self { $( Self::$variant => $id, )* }
            }

            /// What it is about, as a sentence.
            pub fn meaning(self) -> &'static str {
                match self { $( Self::$variant => $meaning.trim_ascii_start(), )* }
            }

            /// Such as `unknown-field`.
            pub fn name(self) -> &'static str {
                match self { $( Self::$variant => $name, )* }
            }
        }
    };
}

codes! {
    /// A file cannot be read, or a directory not listed.
    Unreadable = "EG0001" "unreadable",
    /// A document is not YAML.
    Syntax = "EG0002" "not-yaml",
    /// A value is of another type.
    WrongType = "EG0003" "wrong-type",
    /// A required field is absent.
    MissingField = "EG0004" "missing-field",
    /// A field that nobody knows.
    UnknownField = "EG0005" "unknown-field",
    /// A field or value of Istio's, or of the Gateway API's, that egress does not have.
    Unsupported = "EG0006" "unsupported",
    /// A kind of resource that egress does not have.
    UnknownKind = "EG0007" "unknown-kind",
    /// A value that the field cannot have.
    InvalidValue = "EG0008" "invalid-value",
    /// The same thing twice in one document.
    Duplicate = "EG0009" "duplicate",
    /// Fields of one document that contradict each other.
    Contradiction = "EG0010" "contradiction",
    /// An `egress.dev/` annotation that nobody knows, or on the wrong kind of resource.
    UnknownAnnotation = "EG0011" "unknown-annotation",

    /// Two documents that say the same thing in different ways.
    Conflict = "EG0101" "conflicting-resources",
    /// A host that no `ServiceEntry` has, or not with this port.
    UnknownDestination = "EG0102" "unknown-destination",
    /// A subset that no `DestinationRule` defines, or that no endpoint is in.
    UnknownSubset = "EG0103" "unknown-subset",
    /// A `Secret` or `ConfigMap` that no file has, or that has not what is needed.
    UnknownCredential = "EG0104" "unknown-credential",
    /// Requests of a host with TLS origination would leave in clear.
    ClearText = "EG0105" "clear-text",
    /// TLS cannot be originated for what a port speaks.
    WrongProtocol = "EG0106" "wrong-protocol",
    /// The kernel has room for a few ports of each name.
    TooManyPorts = "EG0107" "too-many-ports",

    /// A warning of no kind of its own.
    Questionable = "EG0201" "questionable",
    /// TLS is not originated although it looks as if it should be.
    NotOriginated = "EG0202" "not-originated",
    /// A `DestinationRule` or a part of one that does nothing.
    UnusedDestinationRule = "EG0203" "unused-destination-rule",
    /// TLS is originated to the port that the application connects to.
    SamePort = "EG0204" "same-port",
    /// A port that is TLS by itself.
    AlreadyTls = "EG0205" "already-tls",
    /// `insecureSkipVerify`.
    Unverified = "EG0206" "unverified",
    /// `sni` without `subjectAltNames`, which turns verification of the name off in Istio.
    SniWithoutNames = "EG0207" "sni-without-subject-alt-names",
    /// `credentialName` without what Istio needs beside it.
    Credential = "EG0208" "credential-name",
    /// `resolution: NONE` for a host that has a name.
    ResolutionNone = "EG0209" "resolution-none",
    /// Of two wildcards one has some of the other's hosts.
    OverlappingWildcards = "EG0210" "overlapping-wildcards",
    /// A route that no request reaches.
    NeverMatches = "EG0211" "never-matches",
    /// A field that is understood, and has no effect outside of Kubernetes or of a mesh.
    NoEffect = "EG0212" "no-effect",
    /// Several resources were made one.
    Merged = "EG0213" "merged",
    /// A `VirtualService` that does nothing.
    UnusedVirtualService = "EG0214" "unused-virtual-service",
    /// A port for TLS that is spoken to in clear.
    ClearTextPort = "EG0215" "clear-text-to-tls-port",
    /// A certificate of an origin that was probed ends within weeks.
    ExpiresSoon = "EG0251" "expires-soon",
    /// Some of the addresses of an origin are of no use.
    PartlyUnreachable = "EG0252" "partly-unreachable",
    /// An origin asks for a client certificate, and the rule has none.
    NoClientCertificate = "EG0253" "no-client-certificate",
    /// An origin has none of the pinned keys, and pins are only to be reported.
    UnenforcedPins = "EG0254" "unenforced-pins",

    /// A file that a rule names cannot be read.
    UnreadableFile = "EG0301" "unreadable-file",
    /// A file that a rule names does not hold what it should.
    BadFile = "EG0302" "bad-file",
    /// This machine trusts nobody.
    NoRoots = "EG0303" "no-root-certificates",

    /// The name of an origin that was probed has no addresses.
    Unresolved = "EG0401" "unresolved",
    /// There is no connection to an origin.
    Unreachable = "EG0402" "unreachable",
    /// TLS with an origin cannot be made, or it is not who it should be.
    TlsFailed = "EG0403" "tls-failed",
}

impl Code {
    /// Whether a configuration of which this is said can be used.
    pub fn severity(self) -> Severity {
        if self.id().starts_with("EG02") { Severity::Warning } else { Severity::Error }
    }

    /// Says so in a [`Message`], and why.
    pub fn because(self, text: impl Into<String>) -> Message {
        Message { code: self, text: text.into() }
    }
}

/// What is wrong and, after the last semicolon, what to do about it: `the list is empty; name at least one host`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    code: Code,
    text: String,
}

impl Message {
    /// Whether it is about what Istio has and egress does not.
    pub(super) fn is_unsupported(&self) -> bool {
        self.code == Code::Unsupported
    }
}

impl From<String> for Message {
    fn from(text: String) -> Self {
        Code::InvalidValue.because(text)
    }
}

impl From<&str> for Message {
    fn from(text: &str) -> Self {
        Code::InvalidValue.because(text)
    }
}

/// One thing to say about a configuration. Displays as `rules.yaml:14: spec.ports[0].number: what is wrong; what to do`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Diagnostic {
    /// The line at fault.
    pub location: Location,
    /// The field at fault, such as `spec.ports[0].number`; absent when it is the document or the file.
    pub path: Option<String>,
    /// What kind of thing it is.
    pub code: Code,
    /// What is wrong.
    pub reason: String,
    /// What to do about it, where that is not plain.
    pub remedy: Option<String>,
}

impl Diagnostic {
    /// About a place; `path` is empty where there is no field to blame.
    pub fn new(location: Location, path: &str, message: impl Into<Message>) -> Self {
        let Message { code, text } = message.into();
        let (reason, remedy) = match text.rsplit_once("; ") {
            Some((reason, remedy)) => (reason.to_owned(), Some(remedy.to_owned())),
            None => (text, None),
        };
        Self { location, path: (!path.is_empty()).then(|| path.to_owned()), code, reason, remedy }
    }

    /// Whether the configuration can be used in spite of it.
    pub fn severity(&self) -> Severity {
        self.code.severity()
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.location)?;
        if let Some(path) = &self.path {
            write!(f, "{path}: ")?;
        }
        f.write_str(&self.reason)?;
        match &self.remedy {
            Some(remedy) => write!(f, "; {remedy}"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong with a configuration, in the order of files and lines; displays one error per line.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
pub struct Errors(Vec<Diagnostic>);

impl Errors {
    /// Blames the value at a place.
    pub fn at<T>(&mut self, place: &Located<T>, message: impl Into<Message>) {
        self.push(place.location.clone(), &place.path, message);
    }

    /// Blames a line, and the field on it unless `path` is empty.
    pub fn push(&mut self, location: Location, path: &str, message: impl Into<Message>) {
        self.0.push(Diagnostic::new(location, path, message));
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
    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.0.iter()
    }

    /// Whether a field is refused as one that egress does not have.
    pub fn is_unsupported(&self, path: &str) -> bool {
        self.0.iter().any(|error| error.code == Code::Unsupported && error.path.as_deref() == Some(path))
    }

    /// How many errors there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

impl Extend<Diagnostic> for Errors {
    fn extend<I: IntoIterator<Item = Diagnostic>>(&mut self, errors: I) {
        self.0.extend(errors);
    }
}

impl FromIterator<Diagnostic> for Errors {
    fn from_iter<I: IntoIterator<Item = Diagnostic>>(errors: I) -> Self {
        Self(errors.into_iter().collect())
    }
}

impl IntoIterator for Errors {
    type Item = Diagnostic;
    type IntoIter = std::vec::IntoIter<Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn codes_are_told_apart() {
        let ids: HashSet<_> = Code::ALL.iter().map(|code| code.id()).collect();
        let names: HashSet<_> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!((ids.len(), names.len()), (Code::ALL.len(), Code::ALL.len()));
        assert!(ids.iter().all(|id| id.len() == 6 && id.starts_with("EG")));
    }
}
