//! What there is to say about what was seen.

use std::path::Path;

use super::{AddressReport, CertificateReport, ClientCertificate, FailureReport, Outcome, ProbeReport};
use crate::{
    config::{Code, Diagnostic, Location},
    policy::Upstream,
    resolve::ResolverError,
    upstream::Cause,
};

/// Certificates that end sooner are warned of.
const EXPIRES_SOON: i64 = 30;

/// Without the resolver's files nothing can be probed.
pub(super) fn no_resolver(error: &ResolverError) -> Diagnostic {
    let nowhere = Location::whole(Path::new("this machine"));
    finding(nowhere, Code::Unresolved, error.to_string(), "mend the file; nothing was probed")
}

/// Errors and warnings about one upstream.
pub(super) fn findings(upstream: &Upstream, report: &ProbeReport) -> Vec<Diagnostic> {
    let at = |code, reason: String, remedy: &str| finding(upstream.location.clone(), code, reason, remedy);
    let mut found = Vec::new();
    // The agent passes over addresses of the one kind, and takes what is at the others for the host's answer.
    let is_passed_over = |failure: &FailureReport| failure.is_passed_over;
    let is_reached = report.addresses.iter().any(|address| !address.failure.as_ref().is_some_and(is_passed_over));
    for reason in &report.unresolved {
        let code = if report.addresses.is_empty() { Code::Unresolved } else { Code::PartlyUnreachable };
        let remedy = "correct the name, or see to it that the name servers of this machine know it";
        found.push(at(code, reason.clone(), remedy));
    }
    for address in &report.addresses {
        let Some(failure) = &address.failure else {
            found.extend(reservations(address).into_iter().map(|(code, reason, remedy)| at(code, reason, remedy)));
            continue;
        };
        let code = match address.outcome {
            _ if is_reached && failure.cause == Cause::Unroutable => continue,
            _ if is_reached && failure.is_passed_over => Code::PartlyUnreachable,
            Outcome::Unreachable => Code::Unreachable,
            _ => Code::TlsFailed,
        };
        found.push(at(code, failure.details.clone(), remedy(failure.cause)));
    }
    found
}

/// What is to be warned of at an address that requests would be sent to. Alike at all addresses it is said once.
fn reservations(address: &AddressReport) -> Vec<(Code, String, &'static str)> {
    let mut found = Vec::new();
    // Of the others that were sent along nobody takes notice.
    let own = address.certificates.first().filter(|own| !own.verified);
    let counting = own.into_iter().chain(address.certificates.iter().filter(|certificate| certificate.verified));
    for certificate in counting.filter(|certificate| certificate.days_left < EXPIRES_SOON) {
        let CertificateReport { subject, issuer, until, days_left, .. } = certificate;
        let when = match days_left {
            0.. => format!("is valid until {until}: {days_left} more days"),
            _ => format!("expired on {until}, {} days ago", days_left.unsigned_abs()),
        };
        let reason = format!("the certificate {subject}, issued by {issuer}, {when}");
        found.push((Code::ExpiresSoon, reason, "have the origin's operator renew it in time"));
    }
    if address.client_certificate == Some(ClientCertificate::Missing) {
        let reason =
            "the origin asks for a client certificate, and the rule has none: it may answer requests by an error";
        let remedy = "use mode MUTUAL with clientCertificate and privateKey, if the origin requires them";
        found.push((Code::NoClientCertificate, reason.to_owned(), remedy));
    }
    if let Some(mismatch) = &address.unenforced_pins {
        found.push((Code::UnenforcedPins, mismatch.clone(), "correct egress.dev/pins before they are enforced"));
    }
    found
}

fn remedy(cause: Cause) -> &'static str {
    match cause {
        Cause::NoAddress
        | Cause::LeftOut
        | Cause::ConnectionRefused
        | Cause::Unroutable
        | Cause::ConnectTimeout
        | Cause::ConnectFailed => {
            "see whether the origin listens on this port (targetPort), and whether routes, firewalls and network policies let \
             this node get there"
        }
        Cause::OutOfResources => "see what takes this node's descriptors, memory or local ports",
        Cause::TunnelRefused | Cause::TunnelBroken | Cause::TunnelTimeout => {
            "have the proxy allow tunnels from this node to the origin, and see whether targetHost and targetPort are right"
        }
        Cause::CertificateNotYetValid => {
            "set this machine's clock, or have the origin's operator replace the certificate"
        }
        Cause::CertificateExpired
        | Cause::NameConstraints
        | Cause::WrongPurpose
        | Cause::WeakKey
        | Cause::WeakSignature
        | Cause::Revoked
        | Cause::BadCertificate => "have the origin's operator replace the certificate",
        Cause::WrongName => {
            "set sni or subjectAltNames to a name that the certificate has, if it is the right origin's"
        }
        Cause::SelfSigned | Cause::UnknownIssuer => {
            "name the right root in caCertificates, or have the origin's operator send a chain that leads to a trusted one"
        }
        Cause::RevocationUnknown | Cause::CrlExpired => "put a current revocation list of each authority into caCrl",
        Cause::PinMismatch => "if the origin has new keys for a good reason, put the pin of one into egress.dev/pins",
        Cause::KeyMismatch => "have the origin's operator configure the key that belongs to the certificate",
        Cause::TlsVersion | Cause::NoCommonCipher | Cause::NoPostQuantum => {
            "have the origin's operator allow what the rule demands; TLS 1.3 is best"
        }
        Cause::NoCommonProtocol => "have the origin's operator allow h2 or http/1.1 in ALPN",
        Cause::UnknownName => "set sni to the name by which the origin knows itself",
        Cause::ClientCertificateRequired => "use mode MUTUAL with clientCertificate and privateKey",
        Cause::ClientCertificateRefused => "use a client certificate that the origin accepts",
        Cause::NotTls => "let targetPort lead to a port with TLS",
        Cause::Alert
        | Cause::TlsProtocol
        | Cause::HandshakeTimeout
        | Cause::HandshakeReset
        | Cause::HandshakeClosed
        | Cause::HttpIncomplete
        | Cause::HttpProtocol
        | Cause::ConnectionLost
        // No request is sent, so these two do not occur.
        | Cause::Overflow
        | Cause::ResponseTimeout => "ask the origin's operator why; its log may say",
    }
}

fn finding(location: Location, code: Code, reason: String, remedy: &str) -> Diagnostic {
    Diagnostic { location, path: None, code, reason, remedy: Some(remedy.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Certificates, by whether the origin is verified by them and how many days they have left, and what is said of them.
    fn check(certificates: &[(bool, i64)], expected: &[&str]) {
        let certificate = |(number, &(verified, days_left)): (usize, &(bool, i64))| CertificateReport {
            subject: format!("CN={number}"),
            issuer: "CN=authority".to_owned(),
            serial: String::new(),
            names: Vec::new(),
            signature: String::new(),
            not_before: String::new(),
            not_after: String::new(),
            days_left,
            pin: String::new(),
            verified,
            until: "then".to_owned(),
        };
        let address = AddressReport {
            address: ([192, 0, 2, 1], 443).into(),
            outcome: Outcome::Verified,
            failure: None,
            tls: None,
            client_certificate: None,
            unenforced_pins: None,
            certificates: certificates.iter().enumerate().map(certificate).collect(),
        };
        let reasons: Vec<_> = reservations(&address).into_iter().map(|(_, reason, _)| reason).collect();
        let expected: Vec<_> =
            expected.iter().map(|text| text.replacen(' ', ", issued by CN=authority, ", 1)).collect();
        let expected: Vec<_> = expected.iter().map(|text| format!("the certificate {text}")).collect();
        assert_eq!(reasons, expected, "{certificates:?}");
    }

    #[test]
    fn certificates_that_count_are_judged_by_their_time() {
        check(&[(true, 60), (true, 60)], &[]);
        check(&[(true, 9), (true, 60)], &["CN=0 is valid until then: 9 more days"]);
        check(&[(true, 60), (true, 9)], &["CN=1 is valid until then: 9 more days"]);
        // Sent along beside the chain.
        check(&[(true, 60), (false, -1500), (true, 60)], &[]);
        // Nothing is verified.
        check(&[(false, -3), (false, -1500)], &["CN=0 expired on then, 3 days ago"]);
    }
}
