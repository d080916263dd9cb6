//! Whom we talk to: every check of an origin's certificate, and what to say of one that fails.

use std::{cell::RefCell, fmt, path::PathBuf, sync::Arc};

use aws_lc_rs::digest::{SHA256, digest};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationOptions, RevocationOptionsBuilder,
    VerifiedPath, spki_for_anchor,
};

use super::{
    certificate::{Facts, MIN_RSA_BITS, date, shown, unix_date},
    refusal::Refusal,
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
    /// Where nothing of its chain may be, and the file that they are from. There must be a current one of each authority of
    /// the chain, as with Envoy.
    pub crls: Option<(Vec<CertRevocationList<'static>>, PathBuf)>,
    /// Of these keys the chain must have one.
    pub pins: Vec<Pin>,
    /// Or else the connection is not used.
    pub enforces_pins: bool,
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

/// The certificates that an origin has shown, its own first.
struct Shown<'a> {
    end_entity: &'a CertificateDer<'a>,
    intermediates: &'a [CertificateDer<'a>],
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
        let shown = Shown { end_entity, intermediates };
        match expected.verify(&self.algorithms, &shown, asked, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(refusal) => Err(as_rustls(refusal)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
            .map_err(|error| unproven(error, certificate))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
            .map_err(|error| unproven(error, certificate))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl PeerVerifier {
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
        shown: &Shown<'_>,
        asked: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Refusal> {
        let explain = |error| self.explain(error, shown, now);
        let certificate = EndEntityCert::try_from(shown.end_entity).map_err(explain)?;
        let seen = RefCell::new(Vec::new());
        let check = |path: &VerifiedPath<'_>| {
            if self.enforces_pins { self.check_pins(path, &seen) } else { Ok(()) }
        };
        let chain = self.verify_chain(algorithms, &certificate, shown.intermediates, now, &check);
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
        let mut result = Ok(());
        for name in names {
            result = certificate.verify_is_valid_for_subject_name(name);
            if !matches!(result, Err(webpki::Error::CertNotValidForName(_))) {
                break;
            }
        }
        match result {
            Ok(()) => Ok(()),
            Err(webpki::Error::CertNotValidForName(_)) => Err(wrong_name(shown, names)),
            Err(error) => Err(explain(error)),
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
        let crls: Vec<_> = self.crls.iter().flat_map(|(crls, _)| crls).collect();
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
        let authorities = path.intermediate_certificates().map(|authority| authority.subject_public_key_info());
        let keys = std::iter::once(own).chain(authorities).chain([spki_for_anchor(path.anchor())]);
        let pins: Vec<Pin> = keys.map(|key| pin(&key)).collect();
        if pins.iter().any(|pin| self.pins.contains(pin)) {
            return Ok(());
        }
        *seen.borrow_mut() = pins;
        Err(webpki::Error::CertDistrusted)
    }

    /// What is wrong with a certificate that cannot be verified, and what it says of itself.
    fn explain(&self, error: webpki::Error, shown: &Shown<'_>, now: UnixTime) -> Refusal {
        use webpki::Error;
        let facts: Vec<Facts> =
            std::iter::once(shown.end_entity).chain(shown.intermediates).filter_map(Facts::read).collect();
        let Some(own) = facts.first() else {
            return Refusal::new(Cause::BadCertificate, format!("the origin's certificate cannot be read: {error}"));
        };
        let crl_file = self.crls.as_ref().map(|(_, file)| file.display().to_string()).unwrap_or_default();
        let today = unix_date(now);
        // The certificate at fault, of which the error tells only a property.
        let which = |is_it: &dyn Fn(&&Facts) -> bool| called(&facts, facts.iter().find(is_it).unwrap_or(own));
        let (cause, text) = match error {
            Error::CertExpired { not_after, .. } => {
                let not_after = i64::try_from(not_after.as_secs()).unwrap_or(i64::MAX);
                let which = which(&|facts| facts.not_after == not_after);
                (Cause::CertificateExpired, format!("{which} expired on {}; now is {today}", date(not_after)))
            }
            Error::CertNotValidYet { not_before, .. } => {
                let not_before = i64::try_from(not_before.as_secs()).unwrap_or(i64::MAX);
                let which = which(&|facts| facts.not_before == not_before);
                let text = format!(
                    "{which} is not valid before {}; now is {today}, by this machine's clock",
                    date(not_before)
                );
                (Cause::CertificateNotYetValid, text)
            }
            Error::CaUsedAsEndEntity => {
                let cause = if own.is_self_issued { Cause::SelfSigned } else { Cause::BadCertificate };
                let text =
                    "is that of an authority (basicConstraints CA:TRUE), which a server must not show as its own";
                (cause, format!("{} {text}", called(&facts, own)))
            }
            Error::UnknownIssuer if own.is_self_issued => {
                let text = format!(
                    "{} vouches for itself, and is not {}; to trust it, name it in caCertificates",
                    called(&facts, own),
                    self.trust.place,
                );
                (Cause::SelfSigned, text)
            }
            Error::UnknownIssuer => (Cause::UnknownIssuer, self.unknown_issuer(&facts, own)),
            Error::CertRevoked => {
                let text = format!(
                    "{} (serial number {}), or an authority of its chain, is revoked by a list in {crl_file}",
                    called(&facts, own),
                    own.serial,
                );
                (Cause::Revoked, text)
            }
            Error::UnknownRevocationStatus => {
                let issuers: Vec<_> = facts.iter().map(|facts| facts.issuer.as_str()).collect();
                let text = format!(
                    "{crl_file} has no revocation list of an authority of the origin's chain; one of each is needed: {}",
                    issuers.join("; "),
                );
                (Cause::RevocationUnknown, text)
            }
            Error::CrlExpired { next_update, .. } => {
                let due = unix_date(next_update);
                let text = format!(
                    "a revocation list in {crl_file} was to be replaced by {due}, and now is {today}; get a new one"
                );
                (Cause::CrlExpired, text)
            }
            Error::InvalidCrlSignatureForPublicKey | Error::IssuerNotCrlSigner => {
                let text = format!("a revocation list in {crl_file} is not signed as it should be: {error}");
                (Cause::RevocationUnknown, text)
            }
            Error::NameConstraintViolation => {
                let text = format!(
                    "{} is for {}, and an authority of its chain must not vouch for such names (name constraints)",
                    called(&facts, own),
                    own.names(),
                );
                (Cause::NameConstraints, text)
            }
            Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => {
                let text =
                    format!("{} is not for servers: its extended key usage lacks serverAuth", called(&facts, own));
                (Cause::WrongPurpose, text)
            }
            Error::UnsupportedSignatureAlgorithmContext(_)
            | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)
            | Error::InvalidSignatureForPublicKey => self.bad_signature(&error, &facts, own),
            error => (Cause::BadCertificate, format!("{} cannot be verified: {error}", called(&facts, own))),
        };
        Refusal::new(cause, text)
    }

    fn unknown_issuer(&self, facts: &[Facts], own: &Facts) -> String {
        // Up the chain as far as the origin has shown it.
        let mut last = own;
        for _ in facts {
            let issuer = facts.iter().find(|facts| facts.subject == last.issuer && !facts.is_self_issued);
            last = issuer.unwrap_or(last);
        }
        let own = called(facts, own);
        if facts.iter().any(|facts| facts.subject == last.issuer) {
            return format!(
                "the chain of {own} ends at {}, which is not {}; to trust it, name it in caCertificates",
                last.issuer, self.trust.place,
            );
        }
        format!(
            "the chain of {own} breaks off at {}, which is neither {} nor shown by the origin: it must send the \
             intermediate certificates as well, or the root is to be named in caCertificates",
            last.issuer, self.trust.place,
        )
    }

    /// A signature in the chain that cannot be verified: by which algorithm, or by how short a key?
    fn bad_signature(&self, error: &webpki::Error, facts: &[Facts], own: &Facts) -> (Cause, String) {
        if let Some(weak) = facts.iter().find(|facts| facts.has_weak_key()) {
            return (Cause::WeakKey, weak_key(&called(facts, weak), weak));
        }
        let unsupported = matches!(error, webpki::Error::UnsupportedSignatureAlgorithmContext(_));
        // Those that have never been secure, or are not any more, are the ones that are not supported.
        let weak = facts.iter().find(|facts| ["sha1", "md5", "md2"].iter().any(|hash| is_by(facts, hash)));
        match weak.or(unsupported.then_some(own)) {
            Some(weak) => {
                let text = format!("{} is signed by {}, which is not accepted", called(facts, weak), weak.signature);
                (Cause::WeakSignature, text)
            }
            None => (
                Cause::BadCertificate,
                format!("the chain of {} is not signed as it says: {error}", called(facts, own)),
            ),
        }
    }
}

fn is_by(facts: &Facts, hash: &str) -> bool {
    facts.signature.to_ascii_lowercase().contains(hash)
}

/// Revocation is checked for all of the chain but its root, and lists that are out of date do not count; nothing is if there
/// are no lists.
fn revocation<'a>(crls: &'a [&'a CertRevocationList<'a>]) -> Option<RevocationOptions<'a>> {
    let builder = RevocationOptionsBuilder::new(crls).ok()?;
    Some(builder.with_expiration_policy(ExpirationPolicy::Enforce).build())
}

fn wrong_name(shown_: &Shown<'_>, expected: &[ServerName<'_>]) -> Refusal {
    let expected: Vec<_> = expected.iter().map(|name| shown(&name.to_str())).collect();
    let expected = expected.join(" or ");
    let text = match Facts::read(shown_.end_entity) {
        Some(own) if own.names.is_empty() => format!(
            "the origin's certificate ({}) names no host in its subjectAltName, so it is not valid for {expected}; a \
             common name does not count (RFC 9525)",
            own.subject,
        ),
        Some(own) => format!(
            "the origin's certificate is not valid for {expected}, but for {}; if that is who it should be, say so in \
             subjectAltNames",
            own.names(),
        ),
        None => format!("the origin's certificate is not valid for {expected}"),
    };
    Refusal::new(Cause::WrongName, text)
}

fn weak_key(called: &str, facts: &Facts) -> String {
    let bits = facts.rsa_bits.unwrap_or_default();
    format!("{called} has an RSA key of {bits} bits, and less than {MIN_RSA_BITS} are not accepted")
}

/// The handshake is not signed by the key of the certificate.
fn unproven(error: Error, certificate: &CertificateDer<'_>) -> Error {
    let Some(own) = Facts::read(certificate) else { return error };
    let called = format!("the origin's certificate ({})", own.subject);
    as_rustls(if own.has_weak_key() {
        Refusal::new(Cause::WeakKey, weak_key(&called, &own))
    } else {
        let text = format!("the origin does not hold the key of its certificate ({}): {error}", own.subject);
        Refusal::new(Cause::KeyMismatch, text)
    })
}

/// A certificate by whom it is for and from.
fn called(all: &[Facts], one: &Facts) -> String {
    let whose =
        if all.first().is_some_and(|own| std::ptr::eq(own, one)) { "certificate" } else { "authority's certificate" };
    format!("the origin's {whose} ({}, issued by {})", one.subject, one.issuer)
}

fn pin(key: &[u8]) -> Pin {
    let mut pin = [0; 32];
    pin.copy_from_slice(digest(&SHA256, key).as_ref());
    Pin(pin)
}

/// The refusal in the form in which it comes through the handshake.
fn as_rustls(refusal: Refusal) -> Error {
    CertificateError::Other(OtherError(Arc::new(refusal))).into()
}
