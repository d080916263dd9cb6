//! The files that TLS settings name, and what is in them.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::RootCertStore;
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer,
    pem::{self, PemObject},
};
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::{prelude::FromDer as _, revocation_list::CertificateRevocationList};

use super::{
    Validity,
    certificate::name,
    roots::{RootsError, SystemRoots},
};
use crate::{
    config::{Code, Diagnostic, Located, Location, Progress},
    policy::{Pem, Roots, TlsSettings},
};

/// Settings that cannot be carried out. The whole policy is refused.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{location}: cannot read {path}: {source}")]
    Read {
        /// Where the file is named.
        location: Location,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file, or a `Secret` or `ConfigMap`, does not hold what it should.
    #[error("{location}: {path}: {problem}")]
    Content {
        /// Where it is named.
        location: Location,
        /// What it is called.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The roots that this machine trusts cannot be had.
    #[error(transparent)]
    SystemRoots(#[from] RootsError),
    /// rustls refuses the combination.
    #[error("{location}: {problem}")]
    Settings {
        /// The rule's TLS block.
        location: Location,
        /// Why.
        problem: String,
    },
}

impl TlsError {
    /// What there is to say about it, as of all that is wrong with a configuration.
    pub fn diagnostic(&self) -> Diagnostic {
        let (location, message) = match self {
            Self::Read { location, path, source } => {
                (location.clone(), Code::UnreadableFile.because(format!("cannot read {}: {source}", path.display())))
            }
            Self::Content { location, path, problem } => {
                (location.clone(), Code::BadFile.because(format!("{path}: {problem}")))
            }
            Self::Settings { location, problem } => (location.clone(), Code::BadFile.because(problem.as_str())),
            Self::SystemRoots(error) => {
                let code = match error {
                    RootsError::Missing => Code::NoRoots,
                    RootsError::Unread(_) => Code::UnreadableFile,
                };
                (Location::whole(Path::new("this machine")), code.because(error.to_string()))
            }
        };
        Diagnostic::new(location, "", message)
    }
}

/// What is in a file, or in a `Secret` or `ConfigMap`.
type Content = Arc<[u8]>;

/// Contents of files and of the system's store, each read once. What is as it was when it was read the last time is the very same
/// value, so that thousands of rules can be compared by pointer.
#[derive(Debug, Default)]
pub(super) struct Store {
    contents: HashMap<Pem, Content>,
    /// None before they are read.
    system_roots: Option<Result<SystemRoots, RootsError>>,
}

/// Reads into a store what is not there yet.
pub(super) struct Reader<'a> {
    pub store: &'a mut Store,
    /// That of the policy before.
    pub before: &'a Store,
    /// Why something is as it was before.
    pub kept: &'a mut Vec<TlsError>,
    pub progress: &'a Progress,
}

impl Reader<'_> {
    /// What is in there.
    fn content(&mut self, pem: &Located<Pem>) -> Result<Content, TlsError> {
        let Self { store, before, progress, .. } = self;
        if let Some(content) = store.contents.get(&pem.value) {
            return Ok(content.clone());
        }
        let content: Content = match &pem.value {
            Pem::Inline { content, .. } => content.clone(),
            Pem::File(path) => progress
                .at(path, || fs::read(path))
                .map_err(|source| TlsError::Read { location: pem.location.clone(), path: path.clone(), source })?
                .into(),
        };
        let content = before.contents.get(&pem.value).filter(|old| **old == content).cloned().unwrap_or(content);
        store.contents.insert(pem.value.clone(), content.clone());
        Ok(content)
    }

    /// Those from before while they cannot be had: what else a client is made of is to be renewed meanwhile.
    fn system_roots(&mut self) -> Result<Arc<RootCertStore>, RootsError> {
        let Self { store, before, kept, progress } = self;
        let before = before.system_roots.as_ref().and_then(|before| before.as_ref().ok());
        let read = store.system_roots.get_or_insert_with(|| {
            SystemRoots::read(before, progress).or_else(|error| {
                let before = before.ok_or_else(|| error.clone())?;
                kept.push(error.into());
                Ok(before.clone())
            })
        });
        read.as_ref().map(|read| read.roots.clone()).map_err(RootsError::clone)
    }
}

/// What a client is made of besides its settings.
#[derive(Clone, Debug)]
pub(super) struct Material {
    /// Unless the settings name a file, or nothing is verified.
    pub system_roots: Option<Arc<RootCertStore>>,
    /// `caCertificates`.
    pub roots: Option<Content>,
    /// `caCrl`.
    pub crl: Option<Content>,
    /// `clientCertificate` and `privateKey`.
    pub client: Option<(Content, Content)>,
}

impl Material {
    /// Reads what the settings name.
    ///
    /// # Errors
    /// A file cannot be read, or the machine has no roots.
    pub(super) fn read(settings: &TlsSettings, verifies: bool, mut reader: Reader<'_>) -> Result<Self, TlsError> {
        let (system_roots, roots) = match &settings.roots {
            Roots::File(file) => (None, Some(reader.content(file)?)),
            Roots::System if verifies => (Some(reader.system_roots()?), None),
            Roots::System => (None, None),
        };
        let crl = settings.crl.as_ref().map(|file| reader.content(file)).transpose()?;
        let client = match &settings.client {
            None => None,
            Some(identity) => Some((reader.content(&identity.certificate)?, reader.content(&identity.key)?)),
        };
        Ok(Self { system_roots, roots, crl, client })
    }

    /// Whether it is the same. As a rule that is seen by the pointers, at which contents are compared first as well; what could not be
    /// used for a while, and is as it was before, is another value.
    pub(super) fn is(&self, other: &Self) -> bool {
        let Self { system_roots, roots, crl, client } = self;
        let has_same_system_roots = match (system_roots, &other.system_roots) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other) || one.roots == other.roots,
            (None, None) => true,
            _ => false,
        };
        has_same_system_roots && *roots == other.roots && *crl == other.crl && *client == other.client
    }
}

/// Blames a file for its content.
pub(super) fn content(file: &Located<Pem>, problem: String) -> TlsError {
    TlsError::Content { location: file.location.clone(), path: file.value.to_string(), problem }
}

/// A chain of certificates; at least one.
pub(super) fn parse_chain(file: &Located<Pem>, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    parse(file, pem, "certificate")
}

/// Certificates to trust; at least one.
pub(super) fn parse_roots(file: &Located<Pem>, pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in parse_chain(file, pem)? {
        roots
            .add(certificate)
            .map_err(|error| content(file, format!("a certificate that cannot be a root: {error}")))?;
    }
    Ok(roots)
}

/// Revocation lists; at least one.
#[derive(Debug)]
pub(super) struct RevocationLists {
    /// The newest first. Of several that an authority has made for the same certificates only the first is looked at.
    pub lists: Vec<CertRevocationList<'static>>,
    /// The times of these, by the authority.
    pub times: Vec<(String, Validity)>,
    /// What they are called.
    pub place: String,
}

/// Reads revocation lists.
pub(super) fn parse_crls(file: &Located<Pem>, pem: &[u8]) -> Result<RevocationLists, TlsError> {
    let ders: Vec<CertificateRevocationListDer<'static>> = parse(file, pem, "certificate revocation list")?;
    let useless = |error| content(file, format!("a certificate revocation list that cannot be used: {error}"));
    let mut lists = Vec::new();
    for der in &ders {
        let list = OwnedCertRevocationList::from_der(der).map_err(|error| useless(error.to_string()))?;
        let (_, read) = CertificateRevocationList::from_der(der).map_err(|error| useless(error.to_string()))?;
        let (made, replaced) = (read.last_update().timestamp(), read.next_update());
        let validity = replaced.map(|replaced| Validity { not_before: made, not_after: replaced.timestamp() });
        let time = validity.map(|validity| (name(read.issuer()), validity));
        lists.push((made, time, CertRevocationList::Owned(list)));
    }
    lists.sort_by_key(|(made, ..)| Reverse(*made));
    let mut seen = HashSet::new();
    let newest = lists.iter().filter(|(.., list)| {
        let (authority, part) = (list.issuer(), list.issuing_distribution_point());
        !seen.contains(&(authority, None)) && seen.insert((authority, part))
    });
    let times = newest.filter_map(|(_, time, _)| time.clone()).collect();
    let lists = lists.into_iter().map(|(.., list)| list).collect();
    Ok(RevocationLists { lists, times, place: file.value.to_string() })
}

/// A private key.
pub(super) fn parse_key(file: &Located<Pem>, pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem)
        .map_err(|error| content(file, format!("not a private key in PEM: {}", reason(&error))))
}

/// What is wrong, without what is there: it may be a key.
fn reason(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => {
            "a section has no line that ends it; in YAML such a text is written with `|`, which keeps its lines"
                .to_owned()
        }
        pem::Error::IllegalSectionStart { .. } => "the line that begins a section is malformed".to_owned(),
        error => error.to_string(),
    }
}

fn parse<T: PemObject>(file: &Located<Pem>, pem: &[u8], what: &str) -> Result<Vec<T>, TlsError> {
    let found = T::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, pem::Error>>()
        .map_err(|error| content(file, format!("not {what}s in PEM: {}", reason(&error))))?;
    if found.is_empty() { Err(content(file, format!("no {what} in PEM in it"))) } else { Ok(found) }
}
