//! What to say of a certificate that cannot be verified. Nothing is decided here: that it is refused is certain.

use rustls::{CertificateError, Error, crypto::WebPkiSupportedAlgorithms};
use rustls_pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use webpki::{CertRevocationList, EndEntityCert, spki_for_anchor};

use super::{
    certificate::{Facts, MIN_RSA_BITS, date, is_signed_by, listed, unix_date},
    refusal::Refusal,
    verify::{Expected, Presented},
};
use crate::upstream::Cause;

impl Presented<'_> {
    /// All of them, the origin's own first.
    fn all(&self) -> impl Iterator<Item = &CertificateDer<'_>> {
        std::iter::once(self.end_entity).chain(self.intermediates)
    }
}

impl Expected {
    /// What is wrong with a certificate that cannot be verified, and what it says of itself.
    pub(super) fn explain(
        &self,
        error: &webpki::Error,
        presented: &Presented<'_>,
        algorithms: &WebPkiSupportedAlgorithms,
        now: UnixTime,
    ) -> Refusal {
        let facts: Vec<Facts> = presented.all().filter_map(Facts::read).collect();
        let Some(own) = facts.first() else {
            return Refusal::new(Cause::BadCertificate, format!("the origin's certificate cannot be read: {error}"));
        };
        let (cause, text) = out_of_time(error, &facts, own, now)
            .or_else(|| self.revocation(error, presented, &facts, own, now))
            .or_else(|| self.namesake(error, presented, algorithms, &facts))
            .unwrap_or_else(|| self.chain(error, &facts, own));
        Refusal::new(cause, text)
    }

    /// What revocation lists have to do with it.
    fn revocation(
        &self,
        error: &webpki::Error,
        presented: &Presented<'_>,
        facts: &[Facts],
        own: &Facts,
        now: UnixTime,
    ) -> Option<(Cause, String)> {
        use webpki::Error;
        let file = &self.crls.as_ref()?.place;
        Some(match error {
            Error::CertRevoked => {
                let revoked = presented.all().filter(|der| self.is_revoked(der)).find_map(Facts::read);
                let serial = &revoked.as_ref().unwrap_or(own).serial;
                let which = called(facts, facts.iter().find(|facts| facts.serial == *serial).unwrap_or(own));
                (Cause::Revoked, format!("{which} is revoked: {file} lists its serial number {serial}"))
            }
            Error::UnknownRevocationStatus => {
                let unknown = presented.all().filter(|der| !self.has_crl_for(der)).filter_map(Facts::read);
                let issuers: Vec<_> = unknown.filter(|facts| !facts.is_self_issued).map(|facts| facts.issuer).collect();
                let issuers = listed(&issuers, ", nor of ");
                let text =
                    format!("{file} has no revocation list of {issuers}; one of each authority of the chain is needed");
                (Cause::RevocationUnknown, text)
            }
            Error::CrlExpired { next_update, .. } => {
                let (due, today) = (unix_date(*next_update), unix_date(now));
                let text = format!(
                    "a revocation list in {file} was to be replaced by {due}, and now is {today}; get a new one"
                );
                (Cause::CrlExpired, text)
            }
            Error::InvalidCrlSignatureForPublicKey | Error::IssuerNotCrlSigner => {
                let text = format!("a revocation list in {file} is not signed as it should be: {error}");
                (Cause::RevocationUnknown, text)
            }
            _ => return None,
        })
    }

    /// An authority that is trusted, but by another key than the one that has signed: as one that was made anew, under its
    /// old name.
    fn namesake(
        &self,
        error: &webpki::Error,
        presented: &Presented<'_>,
        algorithms: &WebPkiSupportedAlgorithms,
        facts: &[Facts],
    ) -> Option<(Cause, String)> {
        use webpki::Error;
        let is_about_signature = matches!(
            error,
            Error::InvalidSignatureForPublicKey | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)
        );
        // What is signed by a short key is not verified by the right one either.
        if !is_about_signature || facts.iter().any(Facts::has_weak_key) {
            return None;
        }
        let last = presented.all().find(|der| {
            let keys = self.keys_of_issuer(der);
            !keys.is_empty() && !keys.iter().any(|key| is_signed_by(der, key, algorithms))
        })?;
        let issuer = Facts::read(last)?.issuer;
        let text = format!(
            "the chain of {} ends at {issuer}, and an authority of that name is {}, but has another key; to trust this \
             one as well, name it in caCertificates",
            called(facts, facts.first()?),
            self.trust.place,
        );
        Some((Cause::UnknownIssuer, text))
    }

    /// The keys of the trusted roots that have the name of a certificate's issuer.
    fn keys_of_issuer(&self, der: &CertificateDer<'_>) -> Vec<SubjectPublicKeyInfoDer<'static>> {
        let Ok(certificate) = EndEntityCert::try_from(der) else { return Vec::new() };
        let roots = self.trust.roots.roots.iter().filter(|root| root.subject.as_ref() == certificate.issuer());
        roots.map(spki_for_anchor).collect()
    }

    /// What else there is about a chain, or about the lack of one.
    fn chain(&self, error: &webpki::Error, facts: &[Facts], own: &Facts) -> (Cause, String) {
        use webpki::Error;
        let called_own = called(facts, own);
        match error {
            Error::CaUsedAsEndEntity => {
                let text = "is that of an authority (basicConstraints CA:TRUE), which a server must not show as its own, \
                            not even if it is named in caCertificates";
                (Cause::BadCertificate, format!("{called_own} {text}"))
            }
            Error::UnknownIssuer if own.is_self_issued => {
                let place = &self.trust.place;
                let text = format!(
                    "{called_own} vouches for itself, and is not {place}; to trust it, name it in caCertificates"
                );
                (Cause::SelfSigned, text)
            }
            Error::UnknownIssuer => (Cause::UnknownIssuer, self.unknown_issuer(facts, own)),
            Error::NameConstraintViolation => {
                let text = format!(
                    "{called_own} is for {}, and an authority of its chain must not vouch for such names (name \
                     constraints)",
                    own.names(),
                );
                (Cause::NameConstraints, text)
            }
            Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => {
                let text = format!("{called_own} is not for servers: its extended key usage lacks serverAuth");
                (Cause::WrongPurpose, text)
            }
            Error::UnsupportedSignatureAlgorithmContext(_)
            | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)
            | Error::InvalidSignatureForPublicKey => bad_signature(error, facts, own),
            error => (Cause::BadCertificate, format!("{called_own} cannot be verified: {error}")),
        }
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

    fn is_revoked(&self, certificate: &CertificateDer<'_>) -> bool {
        let Ok(certificate) = EndEntityCert::try_from(certificate) else { return false };
        let lists = |list: &&CertRevocationList<'_>| matches!(list.find_serial(certificate.serial()), Ok(Some(_)));
        self.crls_of(&certificate).any(|list| lists(&list))
    }

    fn has_crl_for(&self, certificate: &CertificateDer<'_>) -> bool {
        EndEntityCert::try_from(certificate).is_ok_and(|certificate| self.crls_of(&certificate).next().is_some())
    }

    /// The lists of the authority that has issued a certificate.
    fn crls_of(&self, certificate: &EndEntityCert<'_>) -> impl Iterator<Item = &CertRevocationList<'static>> {
        let lists = self.crls.iter().flat_map(|crls| &crls.lists);
        lists.filter(|list| list.issuer() == certificate.issuer())
    }
}

/// A certificate that is not valid at this time. The error tells only the time, not whose it is.
fn out_of_time(error: &webpki::Error, facts: &[Facts], own: &Facts, now: UnixTime) -> Option<(Cause, String)> {
    let seconds = |time: &UnixTime| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let today = unix_date(now);
    match error {
        webpki::Error::CertExpired { not_after, .. } => {
            let not_after = seconds(not_after);
            let which = called(facts, facts.iter().find(|facts| facts.not_after == not_after).unwrap_or(own));
            Some((Cause::CertificateExpired, format!("{which} expired on {}; now is {today}", date(not_after))))
        }
        webpki::Error::CertNotValidYet { not_before, .. } => {
            let not_before = seconds(not_before);
            let which = called(facts, facts.iter().find(|facts| facts.not_before == not_before).unwrap_or(own));
            let text =
                format!("{which} is not valid before {}; now is {today}, by this machine's clock", date(not_before));
            Some((Cause::CertificateNotYetValid, text))
        }
        _ => None,
    }
}

/// A signature in the chain that cannot be verified: by which algorithm, or by how short a key?
fn bad_signature(error: &webpki::Error, facts: &[Facts], own: &Facts) -> (Cause, String) {
    if let Some(weak) = facts.iter().find(|facts| facts.has_weak_key()) {
        return (Cause::WeakKey, weak_key(&called(facts, weak), weak));
    }
    let unsupported = matches!(error, webpki::Error::UnsupportedSignatureAlgorithmContext(_));
    // Those that have never been secure, or are not any more, are the ones that are not supported.
    // What vouches for itself is trusted or not, whatever it is signed by.
    let mut signed = facts.iter().filter(|facts| !facts.is_self_issued);
    let weak = signed.find(|facts| ["sha1", "md5", "md2"].iter().any(|hash| is_by(facts, hash)));
    match weak.or(unsupported.then_some(own)) {
        Some(weak) => {
            let text = format!("{} is signed by {}, which is not accepted", called(facts, weak), weak.signature);
            (Cause::WeakSignature, text)
        }
        None => {
            (Cause::BadCertificate, format!("the chain of {} is not signed as it says: {error}", called(facts, own)))
        }
    }
}

fn is_by(facts: &Facts, hash: &str) -> bool {
    facts.signature.to_ascii_lowercase().contains(hash)
}

/// The certificate is for others than those expected.
pub(super) fn wrong_name(presented: &Presented<'_>, expected: &[ServerName<'_>]) -> Refusal {
    let expected = listed(&expected.iter().map(ServerName::to_str).collect::<Vec<_>>(), " or ");
    let text = match Facts::read(presented.end_entity) {
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

/// What it means that the handshake is not signed as it should be by the key of the certificate; `error` itself if that is
/// not about the key.
pub(super) fn unproven(error: Error, certificate: &CertificateDer<'_>) -> Result<Error, Refusal> {
    let Some(own) = Facts::read(certificate) else { return Ok(error) };
    match error {
        _ if own.has_weak_key() => {
            let called = format!("the origin's certificate ({})", own.subject);
            Err(Refusal::new(Cause::WeakKey, weak_key(&called, &own)))
        }
        Error::InvalidCertificate(CertificateError::BadSignature) => {
            let text = format!("the origin does not hold the key of its certificate ({})", own.subject);
            Err(Refusal::new(Cause::KeyMismatch, text))
        }
        other => Ok(other),
    }
}

/// A certificate by whom it is for and from.
fn called(all: &[Facts], one: &Facts) -> String {
    let whose =
        if all.first().is_some_and(|own| std::ptr::eq(own, one)) { "certificate" } else { "authority's certificate" };
    format!("the origin's {whose} ({}, issued by {})", one.subject, one.issuer)
}
