//! What certificates say about themselves, in words for people. Nothing is decided by them.

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime};
use webpki::RawPublicKeyEntity;
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    objects::{oid_registry, oid2sn},
    prelude::FromDer as _,
    public_key::PublicKey,
    time::ASN1Time,
    x509::{AlgorithmIdentifier, X509Name},
};

use super::verify::pin;
use crate::policy::Pin;

/// Shortest RSA keys that are verified, in bits: what rustls's provider takes.
pub const MIN_RSA_BITS: usize = 2048;
/// Names of a certificate that are listed; the rest is counted.
const MAX_NAMES: usize = 5;
/// Characters of what a certificate says in one field that are shown: it is in the hands of whoever made it.
const MAX_LENGTH: usize = 100;

/// What a certificate says.
#[derive(Debug)]
pub struct Facts {
    /// Whom it is for.
    pub subject: String,
    /// Who vouches for it.
    pub issuer: String,
    /// The serial number in hexadecimal.
    pub serial: String,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
    /// The names in subjectAltName that a host can be verified by.
    pub names: Vec<String>,
    /// The length of an RSA key in bits.
    pub rsa_bits: Option<usize>,
    /// The algorithm that it is signed by.
    pub signature: String,
    /// Whether subject and issuer are the same.
    pub is_self_issued: bool,
    /// The hash of its public key.
    pub pin: Pin,
}

impl Facts {
    /// Reads a certificate; None if it is not one.
    pub fn read(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names = certificate.subject_alternative_name().ok().flatten();
        let names = names.iter().flat_map(|names| &names.value.general_names);
        let rsa_bits = match certificate.public_key().parsed() {
            Ok(PublicKey::RSA(key)) => Some(key.key_size()),
            _ => None,
        };
        Some(Self {
            subject: name(certificate.subject()),
            issuer: name(certificate.issuer()),
            serial: shown(&certificate.raw_serial_as_string()),
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
            names: names.filter_map(host).collect(),
            rsa_bits,
            signature: algorithm(&certificate.signature_algorithm),
            is_self_issued: certificate.subject().as_raw() == certificate.issuer().as_raw(),
            pin: pin(certificate.public_key().raw),
        })
    }

    /// Whether its key is too short to verify anything by.
    pub fn has_weak_key(&self) -> bool {
        self.rsa_bits.is_some_and(|bits| bits < MIN_RSA_BITS)
    }

    /// The names, as far as there is room for them.
    pub fn names(&self) -> String {
        if self.names.is_empty() { "no host at all".to_owned() } else { listed(&self.names, ", ") }
    }
}

/// What has its time, after which it is of no use.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dated {
    /// What origins are shown.
    Certificate,
    /// What those are looked up in for whom this authority vouches.
    RevocationList(String),
}

/// The time of a certificate, or of a revocation list, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Its beginning.
    pub not_before: i64,
    /// Its end.
    pub not_after: i64,
}

impl Validity {
    /// That of the one of a chain that ends first; None if nothing of it can be read.
    pub fn of(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let read = chain.iter().filter_map(|der| X509Certificate::from_der(der).ok());
        let times = read.map(|(_, certificate)| Self {
            not_before: certificate.validity().not_before.timestamp(),
            not_after: certificate.validity().not_after.timestamp(),
        });
        times.min_by_key(|time| time.not_after)
    }
}

/// Whether a certificate is signed by this key.
pub fn is_signed_by(
    der: &CertificateDer<'_>,
    key: &SubjectPublicKeyInfoDer<'_>,
    algorithms: &WebPkiSupportedAlgorithms,
) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return false };
    let Ok(key) = RawPublicKeyEntity::try_from(key) else { return false };
    let (text, signature) = (certificate.tbs_certificate.as_ref(), certificate.signature_value.as_ref());
    algorithms.all.iter().any(|algorithm| key.verify_signature(*algorithm, text, signature).is_ok())
}

/// Names with `separator` between them, of which there can be too many to be shown.
pub fn listed<S: AsRef<str>>(names: &[S], separator: &str) -> String {
    let first: Vec<_> = names.iter().take(MAX_NAMES).map(|name| shown(name.as_ref())).collect();
    let more = match names.len().saturating_sub(MAX_NAMES) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    first.join(separator) + &more
}

/// A point in time, in seconds since 1970, as `2031-05-01 12:00:00 UTC`.
pub fn date(seconds: i64) -> String {
    date_and_time(seconds, " ", " UTC")
}

/// The same for machines (RFC 3339): `2031-05-01T12:00:00Z`.
pub fn rfc3339(seconds: i64) -> String {
    date_and_time(seconds, "T", "Z")
}

fn date_and_time(seconds: i64, between: &str, zone: &str) -> String {
    match ASN1Time::from_timestamp(seconds).map(|time| time.to_datetime()) {
        Ok(time) => format!(
            "{:04}-{:02}-{:02}{between}{:02}:{:02}:{:02}{zone}",
            time.year(),
            u8::from(time.month()),
            time.day(),
            time.hour(),
            time.minute(),
            time.second()
        ),
        Err(_) => format!("second {seconds} of 1970"),
    }
}

/// The same for a time as verification has it.
pub fn unix_date(time: UnixTime) -> String {
    date(time.as_secs().try_into().unwrap_or(i64::MAX))
}

/// What others have written, made fit to be shown: of one line, and not too long.
pub fn shown(text: &str) -> String {
    let clean = |c: char| if c.is_control() { '?' } else { c };
    let mut shown: String = text.chars().take(MAX_LENGTH).map(clean).collect();
    if text.chars().nth(MAX_LENGTH).is_some() {
        shown += "...";
    }
    shown
}

/// Whom a certificate or a revocation list names.
pub fn name(name: &X509Name<'_>) -> String {
    match name.to_string() {
        empty if empty.is_empty() => "nobody".to_owned(),
        text => shown(&text),
    }
}

fn host(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(v4) => Some(std::net::Ipv4Addr::from(v4).to_string()),
            Err(_) => <[u8; 16]>::try_from(*bytes).ok().map(|v6| std::net::Ipv6Addr::from(v6).to_string()),
        },
        _ => None,
    }
}

fn algorithm(algorithm: &AlgorithmIdentifier<'_>) -> String {
    match (oid2sn(&algorithm.algorithm, oid_registry()), algorithm.algorithm.to_id_string().as_str()) {
        (Ok(name), _) => name.to_owned(),
        // RFC 3279 section 2.2.3; the library's registry lacks it.
        (Err(_), "1.2.840.10045.4.1") => "ecdsa-with-SHA1".to_owned(),
        (Err(_), number) => number.to_owned(),
    }
}
