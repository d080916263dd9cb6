//! What the user has written: files of Istio resources, and hosts named on the command line.
//!
//! ```text
//! Texts -> node (a tree of lines) -> decode (shapes, strictly) -> Document
//! ```
//! A [`Document`] is free of contradictions in itself. What several of them mean together is the business of
//! [`crate::policy`].

use std::path::{Path, PathBuf};

pub use self::{
    cidr::{Cidr, InvalidCidr},
    decode::IfUsed,
    diagnostic::{Code, Diagnostic, Errors, Message, Severity},
    host::{HostName, HostPattern, InvalidHostName, parents},
    location::{Located, Location},
    progress::Progress,
    read::{Documents, Fingerprint, Texts},
    resource::{Foreign, Metadata, Unread},
    text_match::{OptionalMatch, Pattern, TextMatch},
};

pub mod annotations;
pub mod backend_tls_policy;
mod cidr;
mod decode;
pub mod destination_rule;
mod diagnostic;
mod host;
mod location;
mod node;
mod progress;
mod read;
mod resource;
pub mod service_entry;
mod short_form;
pub mod store;
#[cfg(test)]
mod tests;
mod text_match;
pub mod traffic_policy;
pub mod values;
pub mod virtual_service;

use self::{
    backend_tls_policy::BackendTlsPolicy, destination_rule::DestinationRule, service_entry::ServiceEntry, store::Store,
    virtual_service::VirtualService,
};

/// Where configuration comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file, or a directory of which every `.yaml`, `.yml` and `.json` file is read.
    Path(PathBuf),
    /// `--host NAME`: TLS from port 80 to port 443 of a host.
    Host(HostPattern),
}

/// One resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its first line.
    pub location: Location,
    /// Its name.
    pub metadata: Metadata,
    /// What it says.
    pub resource: Resource,
}

/// The `spec` of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Which hosts there are.
    ServiceEntry(Box<ServiceEntry>),
    /// How they are spoken to.
    DestinationRule(Box<DestinationRule>),
    /// What becomes of requests for them.
    VirtualService(VirtualService),
    /// How TLS is spoken to them, in the words of the Gateway API.
    BackendTlsPolicy(Box<BackendTlsPolicy>),
    /// Certificates and keys.
    Secret(Store),
    /// Certificates.
    ConfigMap(Store),
    /// One of Istio's that is for others.
    Foreign(Foreign),
}

/// Reads all sources. Everything that is wrong with any of them is reported at once, and then nothing of them is used.
pub fn load(sources: &[Source], progress: &Progress) -> Result<Vec<Document>, Errors> {
    Texts::read(sources, progress).parse_alone().map(Documents::into_vec)
}

/// The documents of a text; `file` is what errors name as its place.
pub fn parse(text: &str, file: &Path) -> Result<Vec<Document>, Errors> {
    Texts::of(text, file).parse_alone().map(Documents::into_vec)
}
