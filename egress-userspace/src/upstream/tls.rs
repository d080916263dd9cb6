//! From a rule's TLS settings to a client that verifies what they say.

use std::{fs, io, path::PathBuf, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, ServerName, UnixTime,
    pem::{self, PemObject as _},
};

use crate::{
    config::{Located, Location},
    policy::{HostPattern, Roots, TlsSettings, Verify},
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
    /// A file does not hold what it should.
    #[error("{location}: {path}: {problem}")]
    Content {
        /// Where the file is named.
        location: Location,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// There are no trusted roots on this machine.
    #[error("no root certificates found; install the package ca-certificates, or set SSL_CERT_FILE or SSL_CERT_DIR")]
    NoSystemRoots,
    /// rustls refuses the combination.
    #[error("{location}: {problem}")]
    Settings {
        /// The rule's TLS block.
        location: Location,
        /// Why.
        problem: String,
    },
}

/// The contents of the files that TLS settings name, so that a change of a file is seen as a change.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Material {
    roots: Option<Vec<u8>>,
    client: Option<(Vec<u8>, Vec<u8>)>,
}

impl Material {
    /// Reads the files.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub fn read(settings: &TlsSettings) -> Result<Self, TlsError> {
        let roots = match &settings.roots {
            Roots::System => None,
            Roots::File(path) => Some(read(path)?),
        };
        let client = match &settings.client {
            None => None,
            Some(identity) => Some((read(&identity.certificate)?, read(&identity.key)?)),
        };
        Ok(Self { roots, client })
    }
}

fn read(path: &Located<PathBuf>) -> Result<Vec<u8>, TlsError> {
    fs::read(&path.value).map_err(|source| TlsError::Read {
        location: path.location.clone(),
        path: path.value.clone(),
        source,
    })
}

/// The roots that this machine trusts: those of SSL_CERT_FILE or SSL_CERT_DIR where set, else the system's.
///
/// # Errors
/// There are none.
pub fn system_roots() -> Result<Arc<RootCertStore>, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "a root certificate could not be loaded");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() { Err(TlsError::NoSystemRoots) } else { Ok(Arc::new(roots)) }
}

/// Has the random number generator gather its entropy for the current thread, which takes it some 30 ms: the first
/// request should not wait for that.
pub fn warm_up() {
    // A failure comes back with the first handshake, where somebody can be told.
    let _ = aws_lc_rs::default_provider().secure_random.fill(&mut [0]);
}

/// How to originate TLS for one rule.
#[derive(Clone, Debug)]
pub struct Originator {
    /// Shared by all connections of the rule, for the sake of session resumption.
    pub config: Arc<ClientConfig>,
    /// Whom to ask for (SNI); None for whomever the request is for.
    server_name: Option<ServerName<'static>>,
}

impl Originator {
    /// Builds the client for `host`'s settings, whose files have been read to `material`.
    ///
    /// # Errors
    /// A file is not what it should be: no certificate in it, or a key that does not match.
    pub fn build(
        host: &HostPattern,
        settings: &TlsSettings,
        material: &Material,
        location: &Location,
        system_roots: &Arc<RootCertStore>,
    ) -> Result<Self, TlsError> {
        let refused = |problem: String| TlsError::Settings { location: location.clone(), problem };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| refused(error.to_string()))?;
        let expected = match &settings.verify {
            Verify::Skip => None,
            Verify::Names(_) | Verify::Host => {
                let roots = match (&settings.roots, &material.roots) {
                    (Roots::File(path), Some(pem)) => Arc::new(parse_roots(path, pem)?),
                    _ => system_roots.clone(),
                };
                let chain = WebPkiServerVerifier::builder_with_provider(roots, provider.clone())
                    .build()
                    .map_err(|error| refused(error.to_string()))?;
                let names = match &settings.verify {
                    Verify::Names(names) => Some(names.clone()),
                    Verify::Host | Verify::Skip => None,
                };
                Some(Expected { chain, names })
            }
        };
        let verifier = Arc::new(PeerVerifier { provider, expected });
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let mut config = match (&settings.client, &material.client) {
            (Some(identity), Some((certificate, key))) => {
                let chain = parse_chain(&identity.certificate, certificate)?;
                let key = PrivateKeyDer::from_pem_slice(key)
                    .map_err(|error| content(&identity.key, format!("not a private key in PEM: {error}")))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| {
                    content(
                        &identity.key,
                        format!("does not go with {}: {error}", identity.certificate.value.display()),
                    )
                })?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let server_name = match (&settings.sni, host) {
            (Some(name), _) | (None, HostPattern::Exact(name)) => Some(name.to_server_name()),
            (None, HostPattern::Wildcard(_)) => None,
        };
        Ok(Self { config: Arc::new(config), server_name })
    }

    /// Whom to ask for, for a request to `host` (lower case, no port, no trailing dot). None if TLS has no such name.
    pub fn server_name(&self, host: &str) -> Option<ServerName<'static>> {
        match &self.server_name {
            Some(name) => Some(name.clone()),
            None => ServerName::try_from(host.trim_matches(['[', ']'])).ok().map(|name| name.to_owned()),
        }
    }
}

fn content(file: &Located<PathBuf>, problem: String) -> TlsError {
    TlsError::Content { location: file.location.clone(), path: file.value.clone(), problem }
}

fn parse_chain(file: &Located<PathBuf>, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, pem::Error>>()
        .map_err(|error| content(file, format!("not certificates in PEM: {error}")))?;
    if chain.is_empty() { Err(content(file, "no certificate in PEM in it".into())) } else { Ok(chain) }
}

fn parse_roots(file: &Located<PathBuf>, pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in parse_chain(file, pem)? {
        roots
            .add(certificate)
            .map_err(|error| content(file, format!("a certificate that cannot be a root: {error}")))?;
    }
    Ok(roots)
}

/// Verifies origins.
#[derive(Debug)]
struct PeerVerifier {
    provider: Arc<CryptoProvider>,
    /// None by `insecureSkipVerify`: any certificate is taken, though its holder must prove to have the key.
    expected: Option<Expected>,
}

/// What a certificate must be: of a trusted chain, and valid for at least one of the names, whatever was sent as SNI; for
/// the name that was, if there are none.
#[derive(Debug)]
struct Expected {
    chain: Arc<WebPkiServerVerifier>,
    names: Option<Vec<ServerName<'static>>>,
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        asked: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(Expected { chain, names }) = &self.expected else { return Ok(ServerCertVerified::assertion()) };
        let mut result = Err(Error::InvalidCertificate(CertificateError::NotValidForName));
        for name in names.as_deref().unwrap_or(&[asked.to_owned()]) {
            result = chain.verify_server_cert(end_entity, intermediates, name, ocsp_response, now);
            match &result {
                Err(Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                )) => {}
                _ => break,
            }
        }
        result
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
