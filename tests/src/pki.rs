//! Certificates of the test's own: an authority that the agent and the clients trust, and one that they do not.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// The authorities of one test and a directory for what they sign.
#[derive(Debug)]
pub struct Pki {
    dir: PathBuf,
    trusted: Authority,
    untrusted: Authority,
    clients: Authority,
    issued: AtomicUsize,
}

impl Pki {
    /// Makes the authorities and writes their certificates into `dir`.
    pub fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            trusted: Authority::create(dir, "trusted")?,
            untrusted: Authority::create(dir, "untrusted")?,
            clients: Authority::create(dir, "clients")?,
            issued: AtomicUsize::new(0),
        })
    }

    /// The authority to be put into `SSL_CERT_FILE`.
    pub fn ca_file(&self) -> &Path {
        &self.trusted.pem
    }

    /// The authority that nobody trusts by default.
    pub fn untrusted_ca_file(&self) -> &Path {
        &self.untrusted.pem
    }

    /// The authority of client certificates.
    pub fn client_ca_file(&self) -> &Path {
        &self.clients.pem
    }

    /// The certificate of the authority of client certificates.
    pub fn client_ca(&self) -> CertificateDer<'static> {
        self.clients.certificate.clone()
    }

    /// A server's certificate, good for these names and addresses.
    pub fn server(&self, names: &[&str]) -> Result<Identity> {
        self.issue(&self.trusted, &server_params(names)?)
    }

    /// A server's certificate that expired long ago.
    pub fn expired(&self, names: &[&str]) -> Result<Identity> {
        let mut params = server_params(names)?;
        params.not_before = date_time_ymd(2019, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 1);
        self.issue(&self.trusted, &params)
    }

    /// A server's certificate that is not valid yet.
    pub fn not_yet_valid(&self, names: &[&str]) -> Result<Identity> {
        let mut params = server_params(names)?;
        params.not_before = date_time_ymd(2124, 1, 1);
        params.not_after = date_time_ymd(2125, 1, 1);
        self.issue(&self.trusted, &params)
    }

    /// A server's certificate that vouches for itself.
    pub fn self_signed(&self, names: &[&str]) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let certificate = server_params(names)?.self_signed(&key)?;
        self.write(&key, &certificate, "")
    }

    /// A server's certificate from the authority that nobody trusts.
    pub fn untrusted(&self, names: &[&str]) -> Result<Identity> {
        self.issue(&self.untrusted, &server_params(names)?)
    }

    /// A client's certificate with this common name.
    pub fn client(&self, name: &str) -> Result<Identity> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(&self.clients, &params)
    }

    fn issue(&self, authority: &Authority, params: &CertificateParams) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &authority.issuer)?;
        self.write(&key, &certificate, &fs::read_to_string(&authority.pem)?)
    }

    fn write(&self, key: &KeyPair, certificate: &Certificate, chain: &str) -> Result<Identity> {
        let stem = format!("{:02}", self.issued.fetch_add(1, Ordering::Relaxed));
        let identity = Identity {
            certificate_file: self.dir.join(format!("{stem}.crt")),
            key_file: self.dir.join(format!("{stem}.key")),
            public_key: key.subject_public_key_info(),
            certificate: certificate.der().clone(),
            key: key.serialize_der(),
        };
        fs::write(&identity.certificate_file, certificate.pem() + chain)?;
        fs::write(&identity.key_file, key.serialize_pem())?;
        Ok(identity)
    }
}

/// A certificate with its key, in memory and as PEM files.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate, followed by its authority's.
    pub certificate_file: PathBuf,
    /// The private key.
    pub key_file: PathBuf,
    /// The DER of the public key (SubjectPublicKeyInfo): what a pin is the hash of.
    pub public_key: Vec<u8>,
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Identity {
    /// What rustls takes.
    pub fn for_rustls(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (vec![self.certificate.clone()], PrivatePkcs8KeyDer::from(self.key.clone()).into())
    }
}

#[derive(Debug)]
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: PathBuf,
}

impl Authority {
    fn create(dir: &Path, name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, format!("egress test authority: {name}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        let pem = dir.join(format!("ca-{name}.crt"));
        fs::write(&pem, certificate.pem()).with_context(|| format!("writing {}", pem.display()))?;
        Ok(Self { certificate: certificate.der().clone(), issuer: Issuer::new(params, key), pem })
    }
}

fn server_params(names: &[&str]) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
    params.distinguished_name.push(DnType::CommonName, names.first().copied().unwrap_or("nobody"));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}
