//! What the user has written: files of Istio resources, and hosts named on the command line.
//!
//! ```text
//! text -> node (a tree of lines) -> decode (shapes, strictly) -> Document
//! ```
//! A [`Document`] is free of contradictions in itself. What several of them mean together is the business of
//! [`crate::policy`].

use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub use self::{
    cidr::{Cidr, InvalidCidr},
    diagnostic::{Code, Diagnostic, Errors, Message, Severity},
    host::{HostName, HostPattern, InvalidHostName, parents},
    location::{Located, Location},
    resource::Metadata,
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
}

/// Reads all sources. Everything that is wrong with any of them is reported at once, and then nothing of them is used.
pub fn load(sources: &[Source]) -> Result<Vec<Document>, Errors> {
    let mut errors = Errors::default();
    let mut documents = Vec::new();
    for source in sources {
        match source {
            Source::Path(path) => load_path(path, &mut documents, &mut errors),
            Source::Host(host) => documents.extend(short_form::documents(host)),
        }
    }
    errors.or(documents)
}

/// The documents of a text; `file` is what errors name as its place.
pub fn parse(text: &str, file: &Path) -> Result<Vec<Document>, Errors> {
    let mut errors = Errors::default();
    let mut documents = Vec::new();
    read(text, &Location::whole(file), &mut documents, &mut errors);
    errors.or(documents)
}

fn load_path(path: &Path, documents: &mut Vec<Document>, errors: &mut Errors) {
    let files = if path.is_dir() { list(path) } else { Ok(vec![path.to_owned()]) };
    let files = files.unwrap_or_else(|error| {
        let message = format!("cannot list the directory: {error}");
        errors.push(Location::whole(path), "", Code::Unreadable.because(message));
        Vec::new()
    });
    for file in files {
        match fs::read_to_string(&file) {
            Ok(text) => read(&text, &Location::whole(file), documents, errors),
            Err(error) => {
                let message = format!("cannot read the file: {error}");
                errors.push(Location::whole(file), "", Code::Unreadable.because(message));
            }
        }
    }
}

/// The configuration files of a directory in the order of their names.
///
/// In a mounted ConfigMap these are symbolic links into `..data`, which itself, as all that starts with a dot, is
/// not one.
fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let is_config =
            path.extension().is_some_and(|ending| ["yaml", "yml", "json"].iter().any(|known| ending == *known));
        // A link that leads nowhere stays in the list, so that reading it fails by name.
        if is_config && !is_hidden && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(text: &str, file: &Location, documents: &mut Vec<Document>, errors: &mut Errors) {
    for node in node::parse(text, file, 0, errors) {
        resource::decode(&node, documents, errors);
    }
}
