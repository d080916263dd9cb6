//! Certificates of the test's own: an authority that the agent and the clients trust, and one that they do not.

mod revocation;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PublicKeyData, SerialNumber, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::process::Command;

/// The authorities of one test and a directory for what they sign.
#[derive(Debug)]
pub struct Pki {
    dir: PathBuf,
    trusted: Authority,
    untrusted: Authority,
    clients: Authority,
    intermediate: Authority,
    constrained: Authority,
    issued: AtomicUsize,
}

impl Pki {
    /// Makes the authorities and writes their certificates into `dir`.
    pub fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let trusted = Authority::create(dir, "trusted")?;
        let constraints = NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("permitted.example".to_owned())],
            excluded_subtrees: Vec::new(),
        };
        Ok(Self {
            dir: dir.to_owned(),
            intermediate: Authority::below(&trusted, dir, "intermediate", None)?,
            constrained: Authority::below(&trusted, dir, "constrained", Some(constraints))?,
            trusted,
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

    /// The authority below the trusted one.
    pub fn intermediate_file(&self) -> &Path {
        &self.intermediate.pem
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

    /// A server's certificate that expires in so many days, less a minute: however quick a test is, the last day is not whole.
    pub fn expiring(&self, names: &[&str], days: u32) -> Result<Identity> {
        self.expiring_in(names, days * Duration::from_secs(24 * 60 * 60) - Duration::from_secs(60))
    }

    /// A server's certificate that expires after this time, in whole seconds.
    pub fn expiring_in(&self, names: &[&str], validity: Duration) -> Result<Identity> {
        let mut params = server_params(names)?;
        params.not_after = (SystemTime::now() + validity).into();
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

    /// A server's certificate with a serial number to revoke it by.
    pub fn numbered(&self, names: &[&str], serial: u64) -> Result<Identity> {
        let mut params = server_params(names)?;
        params.serial_number = Some(SerialNumber::from(serial));
        self.issue(&self.trusted, &params)
    }

    /// A server's certificate that vouches for itself as that of an authority, as `openssl req -x509` makes them.
    pub fn self_signed_authority(&self, names: &[&str]) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let mut params = server_params(names)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        self.write(&key, &params.self_signed(&key)?, "")
    }

    /// A server's certificate from an authority that has the name of the trusted one, but another key.
    pub fn by_namesake(&self, names: &[&str]) -> Result<Identity> {
        let (authority, key) = (KeyPair::generate()?, KeyPair::generate()?);
        let params = Authority::params("trusted")?;
        let shown = params.self_signed(&authority)?.pem();
        let certificate = server_params(names)?.signed_by(&key, &Issuer::new(params, authority))?;
        self.write(&key, &certificate, &shown)
    }

    /// A server's certificate with an extension that everybody must understand, and nobody knows.
    pub fn with_unknown_extension(&self, names: &[&str]) -> Result<Identity> {
        let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
        extension.set_criticality(true);
        let mut params = server_params(names)?;
        params.custom_extensions.push(extension);
        self.issue(&self.trusted, &params)
    }

    /// A server's certificate from an authority below the one that is trusted.
    pub fn by_intermediate(&self, names: &[&str]) -> Result<Identity> {
        self.issue(&self.intermediate, &server_params(names)?)
    }

    /// The same, but without the certificate of that authority in its file.
    pub fn without_intermediate(&self, names: &[&str]) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let certificate = server_params(names)?.signed_by(&key, &self.intermediate.issuer)?;
        self.write(&key, &certificate, "")
    }

    /// Such a certificate, with one in between that has nothing to do with it, and expired long ago.
    pub fn beside_expired(&self, names: &[&str]) -> Result<Identity> {
        let stray = fs::read_to_string(self.expired(&["stray.example"])?.certificate_file)?;
        let key = KeyPair::generate()?;
        let certificate = server_params(names)?.signed_by(&key, &self.intermediate.issuer)?;
        self.write(&key, &certificate, &(stray + &fs::read_to_string(&self.intermediate.pem)?))
    }

    /// A server's certificate from an authority that may vouch for permitted.example alone.
    pub fn by_constrained(&self, names: &[&str]) -> Result<Identity> {
        self.issue(&self.constrained, &server_params(names)?)
    }

    /// A server's certificate that has its name as common name alone.
    pub fn without_names(&self, common_name: &str) -> Result<Identity> {
        let mut params = server_params(&[])?;
        params.distinguished_name.push(DnType::CommonName, common_name);
        self.issue(&self.trusted, &params)
    }

    /// A server's certificate whose key file has another private key beside the right public one: openssl compares only the
    /// latter when it loads them. The file is in DER.
    pub fn with_another_key(&self, names: &[&str]) -> Result<Identity> {
        self.server(names).and_then(Self::another_key)
    }

    /// The same for a certificate that there is.
    pub fn another_key(mut identity: Identity) -> Result<Identity> {
        /// What precedes the private key of 32 bytes (RFC 5915 section 3).
        const BEFORE: [u8; 5] = [2, 1, 1, 4, 32];
        let other = KeyPair::generate()?.serialize_der();
        let place = |key: &[u8]| {
            let found =
                key.windows(BEFORE.len()).position(|window| window == BEFORE).context("no private key in it")?;
            Ok::<_, anyhow::Error>(found + BEFORE.len()..found + BEFORE.len() + 32)
        };
        let (to, from) = (place(&identity.key)?, place(&other)?);
        identity.key[to].copy_from_slice(&other[from]);
        identity.key_file.set_extension("der");
        fs::write(&identity.key_file, &identity.key)?;
        Ok(identity)
    }

    /// A server's certificate made by openssl: with a key that is asked for as `rsa:1024`, signed by a digest such as `sha1`.
    pub fn by_openssl(&self, name: &str, key: &str, digest: &str) -> Result<Identity> {
        let stem = format!("{:02}", self.issued.fetch_add(1, Ordering::Relaxed));
        let file = |ending: &str| self.dir.join(format!("{stem}.{ending}"));
        // Without this the machine's own configuration makes an authority of it.
        fs::write(file("cnf"), "[req]\ndistinguished_name=dn\n[dn]\n")?;
        Command::new("openssl")
            .args(["req", "-x509", "-nodes", "-days", "30", "-newkey", key, &format!("-{digest}")])
            .args(["-subj", &format!("/CN={name}"), "-addext", &format!("subjectAltName=DNS:{name}")])
            .arg("-config")
            .arg(file("cnf"))
            .arg("-CA")
            .arg(&self.trusted.pem)
            .arg("-CAkey")
            .arg(&self.trusted.key_file)
            .arg("-keyout")
            .arg(file("key"))
            .arg("-out")
            .arg(file("crt"))
            .run()?
            .success()
            .context("openssl is missing or refuses")?;
        Ok(Identity {
            certificate_file: file("crt"),
            key_file: file("key"),
            public_key: Vec::new(),
            certificate: CertificateDer::from(Vec::new()),
            key: Vec::new(),
        })
    }

    /// A client's certificate with this common name.
    pub fn client(&self, name: &str) -> Result<Identity> {
        self.issue(&self.clients, &client_params(name)?)
    }

    /// A client's certificate with this common name that expires after this time, in whole seconds.
    pub fn client_expiring_in(&self, name: &str, validity: Duration) -> Result<Identity> {
        let mut params = client_params(name)?;
        params.not_after = (SystemTime::now() + validity).into();
        self.issue(&self.clients, &params)
    }

    /// A client's certificate from an authority that no server asks for.
    pub fn foreign_client(&self, name: &str) -> Result<Identity> {
        self.issue(&self.untrusted, &client_params(name)?)
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
    key_file: PathBuf,
}

impl Authority {
    fn create(dir: &Path, name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let params = Self::params(name)?;
        let certificate = params.self_signed(&key)?;
        Self::write(dir, name, params, &certificate, key)
    }

    fn below(parent: &Self, dir: &Path, name: &str, constraints: Option<NameConstraints>) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = Self::params(name)?;
        params.name_constraints = constraints;
        let certificate = params.signed_by(&key, &parent.issuer)?;
        Self::write(dir, name, params, &certificate, key)
    }

    fn params(name: &str) -> Result<CertificateParams> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, format!("egress test authority: {name}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(params)
    }

    fn write(
        dir: &Path,
        name: &str,
        params: CertificateParams,
        certificate: &Certificate,
        key: KeyPair,
    ) -> Result<Self> {
        let [pem, key_file] = ["crt", "key"].map(|ending| dir.join(format!("ca-{name}.{ending}")));
        fs::write(&pem, certificate.pem()).with_context(|| format!("writing {}", pem.display()))?;
        fs::write(&key_file, key.serialize_pem())?;
        Ok(Self { certificate: certificate.der().clone(), issuer: Issuer::new(params, key), pem, key_file })
    }
}

fn client_params(name: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn server_params(names: &[&str]) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
    params.distinguished_name.push(DnType::CommonName, names.first().copied().unwrap_or("nobody"));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}
