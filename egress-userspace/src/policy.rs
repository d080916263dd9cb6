//! What the configuration means: which hosts get TLS, to where, and how it is verified.
//!
//! Pure: no file is read and no name resolved here. A [`Policy`] is immutable, has nothing left to check, and is
//! swapped as a whole.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls_pki_types::ServerName;

pub use crate::config::{
    Cidr, HostName, HostPattern, Located, Location, Warning,
    annotations::{Pin, PinsMode, Requirements, TlsVersion},
    destination_rule::ClientIdentity,
    parents,
    service_entry::EndpointAddress,
};
use crate::config::{Document, Errors};

mod compile;
#[cfg(test)]
mod tests;

/// The rules in force. The default has none, and so leaves all traffic as it is.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// In the order of host and port.
    rules: Vec<Arc<Rule>>,
}

/// TLS for one port of one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The host, or hosts, that the request is for.
    pub host: HostPattern,
    /// The port that the application connects to.
    pub port: u16,
    /// The port to connect to in its stead.
    pub target_port: u16,
    /// Addresses by which applications reach the host, besides those that its name resolves to.
    pub addresses: Vec<Cidr>,
    /// Where to connect to.
    pub upstream: Upstream,
    /// How to speak TLS there.
    pub tls: TlsSettings,
    /// The `tls` block that asks for it.
    pub location: Location,
}

/// Where a rule's requests are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// To the target port of the rule's host, resolved.
    Resolve(HostName),
    /// To one of these; there is at least one.
    Endpoints(Vec<Endpoint>),
    /// To the target port of the address that the application connected to.
    Original,
}

/// One place that serves a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: EndpointAddress,
    /// Its port.
    pub port: u16,
}

/// How TLS is spoken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    /// The name to ask for; if absent, the request's host.
    pub sni: Option<HostName>,
    /// What to verify.
    pub verify: Verify,
    /// Whom to trust.
    pub roots: Roots,
    /// The PEM file of what these have revoked, if that is to be looked at.
    pub crl: Option<Located<PathBuf>>,
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
    File(Located<PathBuf>),
}

impl TlsSettings {
    /// The files that it names.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let roots = match &self.roots {
            Roots::System => None,
            Roots::File(file) => Some(file),
        };
        let client = self.client.iter().flat_map(|client| [&client.certificate, &client.key]);
        roots.into_iter().chain(&self.crl).chain(client).map(|file| file.value.as_path())
    }
}

impl Policy {
    /// The policy that the documents ask for together, and what to tell their author.
    pub fn compile(documents: &[Document]) -> Result<(Self, Vec<Warning>), Errors> {
        let (rules, warnings) = compile::compile(documents)?;
        Ok((Self::from_iter(rules), warnings))
    }

    /// All rules in the order of host and port.
    pub fn rules(&self) -> impl ExactSizeIterator<Item = &Arc<Rule>> {
        self.rules.iter()
    }
}

impl FromIterator<Rule> for Policy {
    fn from_iter<I: IntoIterator<Item = Rule>>(rules: I) -> Self {
        let mut rules: Vec<_> = rules.into_iter().map(Arc::new).collect();
        rules.sort_by(|a, b| (&a.host, a.port).cmp(&(&b.host, b.port)));
        Self { rules }
    }
}
