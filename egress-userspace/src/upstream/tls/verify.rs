//! Whom we talk to: every check of an origin's certificate, and what to say of one that fails.

use std::{cell::RefCell, fmt, sync::Arc};

use aws_lc_rs::digest::{SHA256, digest};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{
        WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature, verify_tls13_signature_with_raw_key,
    },
};
use rustls_pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RawPublicKeyEntity, RevocationOptions,
    RevocationOptionsBuilder, VerifiedPath, spki_for_anchor,
};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use super::{
    explain::{unproven, wrong_name},
    material::RevocationLists,
    refusal::Refusal,
    sessions::Sessions,
};
use crate::{policy::Pin, upstream::Cause};

/// Pins that are listed in a text; the rest is counted.
const MAX_PINS: usize = 4;

/// Verifies origins.
#[derive(Debug)]
pub(super) struct PeerVerifier {
    pub algorithms: WebPkiSupportedAlgorithms,
    /// None by `insecureSkipVerify`: any certificate is taken, though its holder must prove to have the key.
    pub expected: Option<Expected>,
}

/// What a certificate must be.
#[derive(Debug)]
pub(super) struct Expected {
    /// Where its chain must end.
    pub trust: Trust,
    /// Of these it must be valid for one, whatever was sent as SNI; if there are none, for the name that was.
    pub names: Option<Vec<ServerName<'static>>>,
    /// Where nothing of its chain may be. There must be a current one of each authority of the chain, as with Envoy.
    pub crls: Option<RevocationLists>,
    /// Of these keys the chain must have one.
    pub pins: Vec<Pin>,
    /// Or else the connection is not used.
    pub enforces_pins: bool,
    /// Told of whom it was verified to be, so that it is that for no longer than its certificate says.
    pub sessions: Arc<Sessions>,
}

/// Trusted roots, and what they are called: they are `place`.
#[derive(Debug)]
pub(super) struct Trust {
    pub roots: Arc<RootCertStore>,
    pub place: String,
}

/// A verified origin that has none of the pinned keys.
#[derive(Debug)]
pub struct PinMismatch {
    expected: Vec<Pin>,
    seen: Vec<Pin>,
}

impl fmt::Display for PinMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |pins: &[Pin]| {
            let listed: Vec<_> = pins.iter().take(MAX_PINS).map(ToString::to_string).collect();
            let more = pins.len().checked_sub(MAX_PINS).filter(|more| *more > 0);
            listed.join(", ") + &more.map(|more| format!(" and {more} more")).unwrap_or_default()
        };
        write!(
            f,
            "none of the keys of the origin's chain is pinned: it has, from its own to the root's, {}, and \
             egress.dev/pins has {}",
            list(&self.seen),
            list(&self.expected),
        )
    }
}

/// The certificates that an origin has shown.
pub(super) struct Presented<'a> {
    /// Its own.
    pub end_entity: &'a CertificateDer<'a>,
    /// What is to lead from there to a root.
    pub intermediates: &'a [CertificateDer<'a>],
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        asked: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(expected) = &self.expected else { return Ok(ServerCertVerified::assertion()) };
        let presented = Presented { end_entity, intermediates };
        match expected.verify(&self.algorithms, &presented, asked, now) {
            Ok(()) => {
                expected.sessions.verified(asked, &presented, now);
                Ok(ServerCertVerified::assertion())
            }
            Err(refusal) => Err(as_rustls(refusal)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = match self.bare_key(certificate) {
            Some(key) => verify_tls12_signature_with_raw_key(message, &key, signed, &self.algorithms),
            None => verify_tls12_signature(message, certificate, signed, &self.algorithms),
        };
        verified.map_err(|error| unproven(error, certificate).unwrap_or_else(as_rustls))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verified = match self.bare_key(certificate) {
            Some(key) => verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms),
            None => verify_tls13_signature(message, certificate, signed, &self.algorithms),
        };
        verified.map_err(|error| unproven(error, certificate).unwrap_or_else(as_rustls))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl PeerVerifier {
    /// The key of a certificate that is of a kind that is never verified, such as one of version 1, where nothing else of it
    /// counts.
    fn bare_key(&self, certificate: &CertificateDer<'_>) -> Option<SubjectPublicKeyInfoDer<'static>> {
        if self.expected.is_some() || EndEntityCert::try_from(certificate).is_ok() {
            return None;
        }
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        Some(certificate.public_key().raw.to_vec().into())
    }

    /// Of the certificates that an origin has shown those by which it is verified, from its own on; none if it is not.
    pub(super) fn path(&self, presented: &[CertificateDer<'_>], now: UnixTime) -> Vec<CertificateDer<'static>> {
        let (Some(expected), Some((end_entity, intermediates))) = (&self.expected, presented.split_first()) else {
            return Vec::new();
        };
        let Ok(certificate) = EndEntityCert::try_from(end_entity) else { return Vec::new() };
        let (found, seen) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
        let check = |path: &VerifiedPath<'_>| {
            if expected.enforces_pins {
                expected.check_pins(path, &seen)?;
            }
            let authorities = path.intermediate_certificates().map(webpki::Cert::der);
            *found.borrow_mut() =
                std::iter::once(end_entity.clone()).chain(authorities).map(CertificateDer::into_owned).collect();
            Ok(())
        };
        let verified = expected.verify_chain(&self.algorithms, &certificate, intermediates, now, &check);
        verified.map(|()| found.take()).unwrap_or_default()
    }

    /// What to report of an origin that was verified: that it has none of the pinned keys, though they are not enforced.
    pub(super) fn unenforced_pins(&self, presented: &[CertificateDer<'_>], now: UnixTime) -> Option<PinMismatch> {
        let expected =
            self.expected.as_ref().filter(|expected| !expected.pins.is_empty() && !expected.enforces_pins)?;
        let (end_entity, intermediates) = presented.split_first()?;
        let certificate = EndEntityCert::try_from(end_entity).ok()?;
        let seen = RefCell::new(Vec::new());
        let pinned = expected
            .verify_chain(&self.algorithms, &certificate, intermediates, now, &|path| expected.check_pins(path, &seen));
        // It was verified without pins a moment ago: only they can be what is wrong now.
        let seen = seen.into_inner();
        (pinned.is_err() && !seen.is_empty()).then(|| PinMismatch { expected: expected.pins.clone(), seen })
    }
}

impl Expected {
    fn verify(
        &self,
        algorithms: &WebPkiSupportedAlgorithms,
        presented: &Presented<'_>,
        asked: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Refusal> {
        let explain = |error| self.explain(&error, presented, algorithms, now);
        let certificate = EndEntityCert::try_from(presented.end_entity).map_err(explain)?;
        let seen = RefCell::new(Vec::new());
        let check = |path: &VerifiedPath<'_>| {
            if self.enforces_pins { self.check_pins(path, &seen) } else { Ok(()) }
        };
        let chain = self.verify_chain(algorithms, &certificate, presented.intermediates, now, &check);
        let seen = seen.into_inner();
        match chain {
            Ok(()) => {}
            // A chain was good but for its keys.
            Err(_) if !seen.is_empty() => {
                let mismatch = PinMismatch { expected: self.pins.clone(), seen };
                return Err(Refusal::new(Cause::PinMismatch, mismatch.to_string()));
            }
            Err(error) => return Err(explain(error)),
        }
        let asked = [asked.to_owned()];
        let names = self.names.as_deref().unwrap_or(&asked);
        let mut results = names.iter().map(|name| certificate.verify_is_valid_for_subject_name(name));
        // The first that is not just another name.
        match results.find(|result| !matches!(result, Err(webpki::Error::CertNotValidForName(_)))) {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(explain(error)),
            None => Err(wrong_name(presented, names)),
        }
    }

    /// Looks for a chain to a trusted root that `check` has nothing against.
    fn verify_chain(
        &self,
        algorithms: &WebPkiSupportedAlgorithms,
        certificate: &EndEntityCert<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        check: &dyn Fn(&VerifiedPath<'_>) -> Result<(), webpki::Error>,
    ) -> Result<(), webpki::Error> {
        let crls: Vec<_> = self.crls.iter().flat_map(|crls| &crls.lists).collect();
        let usage = KeyUsage::server_auth();
        let roots = &self.trust.roots.roots;
        let revocation = revocation(&crls);
        certificate
            .verify_for_usage(algorithms.all, roots, intermediates, now, usage, revocation, Some(check))
            .map(drop)
    }

    /// Whether a chain has a pinned key: that of the origin, of an authority, or of the root (RFC 7469 section 2.6). Only
    /// those of the verified chain count, since an origin can show any others beside it. What there is goes to `seen`.
    fn check_pins(&self, path: &VerifiedPath<'_>, seen: &RefCell<Vec<Pin>>) -> Result<(), webpki::Error> {
        if self.pins.is_empty() {
            return Ok(());
        }
        let own = path.end_entity().subject_public_key_info();
        let authorities = path.intermediate_certificates().map(webpki::Cert::subject_public_key_info);
        let keys = std::iter::once(own).chain(authorities).chain([spki_for_anchor(path.anchor())]);
        let pins: Vec<Pin> = keys.map(|key| pin(&key)).collect();
        if pins.iter().any(|pin| self.pins.contains(pin)) {
            return Ok(());
        }
        *seen.borrow_mut() = pins;
        Err(webpki::Error::CertDistrusted)
    }
}

/// Revocation is checked for all of the chain but its root, and lists that are out of date do not count; nothing is if there
/// are no lists.
fn revocation<'a>(crls: &'a [&'a CertRevocationList<'a>]) -> Option<RevocationOptions<'a>> {
    let builder = RevocationOptionsBuilder::new(crls).ok()?;
    Some(builder.with_expiration_policy(ExpirationPolicy::Enforce).build())
}

/// What rustls has for TLS 1.3 alone. Of the algorithms that a scheme stands for one is that of the key.
fn verify_tls12_signature_with_raw_key(
    message: &[u8],
    key: &SubjectPublicKeyInfoDer<'_>,
    signed: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let known = algorithms.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
    let possible = known.map(|(_, algorithms)| *algorithms).unwrap_or_default();
    let key = RawPublicKeyEntity::try_from(key).map_err(|_| CertificateError::BadEncoding)?;
    match possible.iter().any(|algorithm| key.verify_signature(*algorithm, message, signed.signature()).is_ok()) {
        true => Ok(HandshakeSignatureValid::assertion()),
        false => Err(CertificateError::BadSignature.into()),
    }
}

/// The pin of a key: the hash of its DER (RFC 7469 section 2.4).
pub(super) fn pin(key: &[u8]) -> Pin {
    let mut pin = [0; 32];
    pin.copy_from_slice(digest(&SHA256, key).as_ref());
    Pin(pin)
}

/// The refusal in the form in which it comes through the handshake.
fn as_rustls(refusal: Refusal) -> Error {
    CertificateError::Other(OtherError(Arc::new(refusal))).into()
}
