//! DNS names: of hosts, and patterns of them.

use std::{borrow::Borrow, fmt, iter, net::IpAddr, str::FromStr, sync::Arc};

use rustls_pki_types::{DnsName, ServerName};

/// A DNS name: lower case, no trailing dot, no port, no wildcard.
///
/// As it is the key of the policy's table, a `&str` that is normalised the same way finds it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(Arc<str>);

/// Why a text is not a [`HostName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidHostName(String);

impl HostName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as TLS wants it, for SNI and to verify a certificate.
    pub fn to_server_name(&self) -> ServerName<'static> {
        // `from_str` let only names in that this accepts.
        ServerName::DnsName(DnsName::try_from(self.0.to_string()).expect("a host name is a DNS name"))
    }
}

impl FromStr for HostName {
    type Err = InvalidHostName;

    fn from_str(text: &str) -> Result<Self, InvalidHostName> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        match why_invalid(text, &name) {
            Some(reason) => Err(InvalidHostName(reason)),
            None => Ok(Self(name.into())),
        }
    }
}

/// Names the mistake that a user most likely made.
fn why_invalid(text: &str, name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("the host name is empty".to_owned());
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        let host = rest.split(['/', ':']).next().unwrap_or(rest);
        return Some(format!("{text:?} is a URL; drop the scheme {scheme:?} and write `{host}`"));
    }
    if text.parse::<IpAddr>().is_ok() {
        return Some(format!("{text:?} is an IP address where a host name is wanted"));
    }
    if let Some((host, _)) = text.split_once('/') {
        return Some(format!("{text:?} contains a path or a namespace; a host name such as `{host}` is wanted"));
    }
    if let Some((host, port)) = text.split_once(':')
        && port.bytes().all(|byte| byte.is_ascii_digit())
    {
        return Some(format!("{text:?} contains a port; write `{host}` and give the port in its own field"));
    }
    if text.contains('*') {
        return Some(format!("{text:?} contains a wildcard where the name of one host is wanted"));
    }
    if text.contains(char::is_whitespace) {
        return Some(format!("{text:?} contains a space"));
    }
    if !text.is_ascii() {
        return Some(format!("{text:?} is not ASCII; write the name in its punycode form (xn--...)"));
    }
    if name.len() > 253 {
        return Some(format!("the host name has {} characters; DNS allows 253", name.len()));
    }
    name.split('.')
        .find_map(|label| why_invalid_label(text, label))
        .or_else(|| DnsName::try_from(name).is_err().then(|| format!("{text:?} is not a DNS name")))
}

fn why_invalid_label(text: &str, label: &str) -> Option<String> {
    if label.is_empty() {
        return Some(format!("{text:?} has an empty label (two dots in a row, or one at the start)"));
    }
    if label.len() > 63 {
        return Some(format!("the label {label:?} has {} characters; DNS allows 63", label.len()));
    }
    if label.starts_with('-') || label.ends_with('-') {
        return Some(format!("{text:?} has a label that starts or ends with a hyphen"));
    }
    // The underscore is no letter of host names, but legacy ones have it, and TLS libraries let it pass.
    let stray = label.chars().find(|char| !char.is_ascii_alphanumeric() && !matches!(char, '-' | '_'))?;
    Some(format!("{text:?} contains {stray:?}, which no host name can"))
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl AsRef<str> for HostName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for HostName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The names that a name is below of, longest first: `b.c` and `c` for `a.b.c`.
pub fn parents(name: &str) -> impl Iterator<Item = &str> {
    iter::successors(Some(name), |name| Some(name.split_once('.')?.1)).skip(1)
}

/// A host of a `ServiceEntry` or `DestinationRule`: a name, or `*.` and the name that all of them end in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// `edition.cnn.com`
    Exact(HostName),
    /// `*.cnn.com`, without the `*.`.
    Wildcard(HostName),
}

impl HostPattern {
    /// The name, or what comes after the `*.`.
    pub fn name(&self) -> &HostName {
        match self {
            Self::Exact(name) | Self::Wildcard(name) => name,
        }
    }

    /// Whether it is the name of one host.
    pub fn is_exact(&self) -> bool {
        matches!(self, Self::Exact(_))
    }

    /// Whether it can be a service of a cluster, or stand for such alone, of which no `ServiceEntry` need say that it is there.
    pub fn may_be_of_mesh(&self) -> bool {
        let name = self.name().as_str();
        let last = name.rsplit('.').next().unwrap_or(name);
        self.is_exact() && last == name || name.contains(".svc.") || ["svc", "local"].contains(&last)
    }

    /// Whether all names that `other` stands for are among those that this one stands for.
    pub fn covers(&self, other: &Self) -> bool {
        match self {
            Self::Exact(_) => self == other,
            Self::Wildcard(suffix) => {
                self == other || parents(other.name().as_str()).any(|parent| parent == suffix.as_str())
            }
        }
    }
}

impl FromStr for HostPattern {
    type Err = InvalidHostName;

    fn from_str(text: &str) -> Result<Self, InvalidHostName> {
        if text == "*" {
            return Err(InvalidHostName("`*` would be every host there is; name the hosts".to_owned()));
        }
        let name = text.strip_prefix("*.");
        if name.unwrap_or(text).contains('*') {
            let reason = format!(
                "{text:?}: a wildcard stands for all of the first label and nothing else, as in `*.example.com`"
            );
            return Err(InvalidHostName(reason));
        }
        match name {
            Some(suffix) => suffix.parse().map(Self::Wildcard),
            None => text.parse().map(Self::Exact),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "{name}"),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised() {
        for (text, name) in [
            ("edition.cnn.com", "edition.cnn.com"),
            ("Edition.CNN.com.", "edition.cnn.com"),
            ("localhost", "localhost"),
            ("legacy_host.example.com", "legacy_host.example.com"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ] {
            let host: HostName = text.parse().expect(text);
            assert_eq!(host.as_str(), name);
            assert_eq!(host.to_server_name().to_str(), name);
        }
    }

    #[test]
    fn a_wildcard_covers_what_is_below_its_name() {
        let covers = |pattern: &str, other: &str| {
            let [pattern, other] = [pattern, other].map(|text| text.parse::<HostPattern>().expect(text));
            pattern.covers(&other)
        };
        for below in ["www.a.com", "x.www.a.com", "*.www.a.com", "*.a.com"] {
            assert!(covers("*.a.com", below), "{below}");
        }
        for other in ["a.com", "ba.com", "www.b.com", "*.com"] {
            assert!(!covers("*.a.com", other), "{other}");
        }
        assert!(covers("a.com", "A.com.") && !covers("a.com", "*.a.com"));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, reason) in [
            ("", "the host name is empty"),
            (".", "the host name is empty"),
            ("http://a.com/x", "\"http://a.com/x\" is a URL; drop the scheme \"http\" and write `a.com`"),
            ("a.com:80", "\"a.com:80\" contains a port; write `a.com` and give the port in its own field"),
            ("203.0.113.7", "\"203.0.113.7\" is an IP address where a host name is wanted"),
            ("::1", "\"::1\" is an IP address where a host name is wanted"),
            ("ns/a.com", "\"ns/a.com\" contains a path or a namespace; a host name such as `ns` is wanted"),
            ("a b.com", "\"a b.com\" contains a space"),
            ("a..com", "\"a..com\" has an empty label (two dots in a row, or one at the start)"),
            ("-a.com", "\"-a.com\" has a label that starts or ends with a hyphen"),
            ("a@b.com", "\"a@b.com\" contains '@', which no host name can"),
            ("bücher.example", "\"bücher.example\" is not ASCII; write the name in its punycode form (xn--...)"),
            ("1.2.3.400", "\"1.2.3.400\" is not a DNS name"),
        ] {
            let error = text.parse::<HostName>().expect_err(text);
            assert_eq!(error.to_string(), reason);
        }
        for long in ["a".repeat(64), "a.".repeat(128)] {
            long.parse::<HostName>().expect_err("too long");
        }
    }
}
