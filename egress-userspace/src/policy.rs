//! What the configuration means: which hosts get TLS, to where, and how it is verified.
//!
//! Pure: no file is read and no name resolved here. A [`Policy`] is immutable, has nothing left to check, and is
//! swapped as a whole.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use foldhash::HashSet;
use rustls_pki_types::ServerName;

pub use self::{http::*, upstream::*};
pub use crate::config::{
    Cidr, HostName, HostPattern, Located, Location, Pattern, TextMatch,
    annotations::{Pin, PinsMode, Requirements, TlsVersion},
    parents,
    service_entry::EndpointAddress,
};
use crate::config::{Diagnostic, Document, Errors, Severity};

mod compile;
mod http;
#[cfg(test)]
mod tests;
mod upstream;

/// The rules in force. The default has none, and so leaves all traffic as it is.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// In the order of host and port.
    rules: Vec<Arc<Rule>>,
    /// In the order of host and port.
    exceptions: Vec<Exception>,
}

/// A port of a host that a rule for a wildcard is not for: what is sent there is left in clear, as the user says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exception {
    /// The host, or hosts.
    pub host: HostPattern,
    /// The port that the application connects to.
    pub port: u16,
    /// The `tls` block that says so.
    pub location: Location,
}

/// What becomes of requests for one port of one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The host, or hosts, that the request is for.
    pub host: HostPattern,
    /// The port that the application connects to.
    pub port: u16,
    /// Addresses by which applications reach the host, besides those that its name resolves to.
    pub addresses: Vec<Cidr>,
    /// Where the host is served, if not under its own name: who knows that may connect there, on the same port.
    pub endpoints: Vec<EndpointAddress>,
    /// Where its routes lead, each once.
    pub upstreams: Vec<Arc<Upstream>>,
    /// In order: the first that a request matches counts.
    pub routes: Vec<HttpRoute>,
    /// The `VirtualService` that has the routes, or the `tls` block that asks for the only one.
    pub location: Location,
}

impl Rule {
    /// An upstream of one of its routes.
    pub fn upstream(&self, index: UpstreamIndex) -> &Arc<Upstream> {
        // A rule's routes name no others.
        &self.upstreams[index.0]
    }

    /// Whether some of the addresses by which applications can reach it are known without any name server.
    pub fn is_located(&self) -> bool {
        let is_address = |endpoint: &EndpointAddress| matches!(endpoint, EndpointAddress::Ip(_));
        !self.addresses.is_empty() || self.endpoints.iter().any(is_address)
    }

    /// The names of its endpoints, as hosts, with its port.
    pub fn endpoint_names(&self) -> impl Iterator<Item = (HostPattern, u16)> {
        let names = self.endpoints.iter().filter_map(EndpointAddress::name);
        names.map(|name| (HostPattern::Exact(name.clone()), self.port))
    }
}

/// How TLS is spoken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    /// The name to ask for, if the user gives one.
    pub sni: Option<HostName>,
    /// What to verify.
    pub verify: Verify,
    /// Whom to trust.
    pub roots: Roots,
    /// The PEM file of what these have revoked, if that is to be looked at.
    pub crl: Option<Located<Pem>>,
    /// Who we are, if the server wants to know.
    pub client: Option<ClientIdentity>,
    /// What there must be besides: versions, pins, key exchange.
    pub requirements: Requirements,
}

/// What is verified of a server's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verify {
    /// That it is trusted and valid for one of these names; there is at least one.
    Names(Vec<ServerName<'static>>),
    /// That it is trusted and valid for the request's host.
    Host,
    /// Nothing, as the user has asked for in so many words.
    Skip,
}

/// The certificate authorities that are trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// Those of the operating system.
    System,
    /// Those in a PEM file.
    File(Located<Pem>),
}

/// Who we are, to servers that want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientIdentity {
    /// The certificate chain.
    pub certificate: Located<Pem>,
    /// The private key.
    pub key: Located<Pem>,
}

/// Something in PEM (RFC 7468); displays as what it is called.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Pem {
    /// In a file, which is read when routes are built.
    File(PathBuf),
    /// In a `Secret` or `ConfigMap`.
    Inline {
        /// Which one, and its key.
        name: Arc<str>,
        /// What is there.
        content: Arc<[u8]>,
    },
}

impl Pem {
    /// The file that it is in, if it is in one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Inline { .. } => None,
        }
    }
}

impl fmt::Display for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Inline { name, .. } => f.write_str(name),
        }
    }
}

/// Keys have no business in logs.
impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TlsSettings {
    /// The same, with what annotations ask for.
    fn requiring(self, requirements: Requirements) -> Self {
        Self { requirements, ..self }
    }

    /// Whether they are the same, be they written somewhere else.
    fn is_like(&self, other: &Self) -> bool {
        fn same(one: &Located<Pem>, other: &Located<Pem>) -> bool {
            one.value == other.value
        }
        let Self { sni, verify, roots, crl, client, requirements } = self;
        let same_roots = match (roots, &other.roots) {
            (Roots::System, Roots::System) => true,
            (Roots::File(one), Roots::File(other)) => same(one, other),
            (Roots::System, Roots::File(_)) | (Roots::File(_), Roots::System) => false,
        };
        let same_crl = match (crl, &other.crl) {
            (Some(one), Some(other)) => same(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        let same_client = match (client, &other.client) {
            (Some(one), Some(other)) => same(&one.certificate, &other.certificate) && same(&one.key, &other.key),
            (one, other) => one.is_none() && other.is_none(),
        };
        let same_rest = *sni == other.sni && *verify == other.verify && *requirements == other.requirements;
        same_roots && same_crl && same_client && same_rest
    }

    /// The name that the servers of `host` are asked for, whatever requests are for. None if that is the host of the request, as
    /// it is sent there.
    pub fn server_name<'a>(&'a self, host: &'a HostPattern) -> Option<&'a HostName> {
        match (&self.sni, &self.verify, host) {
            (Some(name), ..) => Some(name),
            // Who lists names does not expect that of each request.
            (None, Verify::Names(_), HostPattern::Exact(name)) => Some(name),
            (None, Verify::Names(_), HostPattern::Wildcard(_)) | (None, Verify::Host | Verify::Skip, _) => None,
        }
    }

    /// The files that it names.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let roots = match &self.roots {
            Roots::System => None,
            Roots::File(file) => Some(file),
        };
        let client = self.client.iter().flat_map(|client| [&client.certificate, &client.key]);
        roots.into_iter().chain(&self.crl).chain(client).filter_map(|pem| pem.value.file())
    }
}

impl Policy {
    /// The policy that the documents ask for together, and what to tell their author.
    pub fn compile<'d>(documents: impl IntoIterator<Item = &'d Document>) -> Result<(Self, Vec<Diagnostic>), Errors> {
        let (policy, diagnostics) = Self::analyze(documents);
        if diagnostics.iter().any(|diagnostic| diagnostic.severity() == Severity::Error) {
            return Err(diagnostics.into_iter().filter(|found| found.severity() == Severity::Error).collect());
        }
        Ok((policy, diagnostics))
    }

    /// The same, with all that there is to say even if some of it is an error; the policy is then of no use but to be
    /// looked at.
    pub fn analyze<'d>(documents: impl IntoIterator<Item = &'d Document>) -> (Self, Vec<Diagnostic>) {
        let (rules, mut exceptions, diagnostics) = compile::compile(documents);
        exceptions.sort();
        (Self { exceptions, ..Self::from_iter(rules) }, diagnostics)
    }

    /// Whether whatever has a rule in `other` has one here, too, and there is no exception here from a rule there.
    pub fn covers(&self, other: &Self) -> bool {
        let mut own = self.rules.iter();
        let has_rules = other.rules.iter().all(|rule| {
            let place = (&rule.host, rule.port);
            own.find(|own| (&own.host, own.port) >= place).is_some_and(|own| (&own.host, own.port) == place)
        });
        let is_new = |own: &&Exception| {
            let place = (&own.host, own.port);
            other.exceptions.binary_search_by(|other| (&other.host, other.port).cmp(&place)).is_err()
        };
        let mut new = self.exceptions.iter().filter(is_new).peekable();
        if !has_rules || new.peek().is_none() {
            return has_rules;
        }
        let wildcards = other.rules.iter().filter(|rule| !rule.host.is_exact());
        let wildcards: HashSet<_> = wildcards.map(|rule| (rule.host.name().as_str(), rule.port)).collect();
        let mut places = new.flat_map(|own| parents(own.host.name().as_str()).map(|parent| (parent, own.port)));
        !places.any(|place| wildcards.contains(&place))
    }

    /// All rules in the order of host and port.
    pub fn rules(&self) -> impl ExactSizeIterator<Item = &Arc<Rule>> {
        self.rules.iter()
    }

    /// What the rules for wildcards are not for, in the order of host and port.
    pub fn exceptions(&self) -> &[Exception] {
        &self.exceptions
    }
}

impl FromIterator<Rule> for Policy {
    fn from_iter<I: IntoIterator<Item = Rule>>(rules: I) -> Self {
        let mut rules: Vec<_> = rules.into_iter().map(Arc::new).collect();
        rules.sort_by(|a, b| (&a.host, a.port).cmp(&(&b.host, b.port)));
        Self { rules, exceptions: Vec::new() }
    }
}
