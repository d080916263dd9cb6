//! Why TLS with an origin was given up: a cause, and a text that names what the origin offered.

use std::{io, time::Duration};

use rustls::{
    AlertDescription, CertificateError, CipherSuite, Error, InvalidMessage, PeerIncompatible, PeerMisbehaved,
};

use super::{certificate::shown, witness::Seen};
use crate::{policy::TlsVersion, upstream::Cause};

/// Why TLS with an origin was given up.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// What it is counted as.
    pub cause: Cause,
    /// The alert by which the origin ended it, if it did.
    pub alert: Option<AlertDescription>,
    text: String,
}

/// What origins are offered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    pub min_version: TlsVersion,
    pub post_quantum: bool,
    pub client_certificate: bool,
}

impl Refusal {
    /// One without an alert.
    pub(super) fn new(cause: Cause, text: String) -> Self {
        Self { cause, alert: None, text }
    }

    /// Of a handshake that failed by `error` after the origin had sent `seen`.
    pub(super) fn of_handshake(error: &io::Error, seen: &Seen, offer: Offer) -> Self {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        let Some(inner) = inner else { return Self::broken(error, seen) };
        let (cause, text) = match inner {
            Error::InvalidCertificate(CertificateError::Other(other)) => {
                return match other.0.downcast_ref::<Self>() {
                    Some(refusal) => refusal.clone(),
                    None => {
                        Self::new(Cause::BadCertificate, format!("the origin's certificate cannot be read: {other}"))
                    }
                };
            }
            Error::AlertReceived(alert) => return Self::of_alert(*alert, seen, offer),
            Error::InvalidCertificate(error) => {
                (Cause::BadCertificate, format!("the origin's certificate cannot be verified: {error}"))
            }
            Error::NoCertificatesPresented => (Cause::BadCertificate, "the origin showed no certificate".to_owned()),
            _ if !seen.looks_like_tls() => (Cause::NotTls, not_tls(seen)),
            Error::PeerIncompatible(
                PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled,
            )
            | Error::InvalidMessage(InvalidMessage::UnknownProtocolVersion)
            | Error::PeerMisbehaved(PeerMisbehaved::SelectedUnusableCipherSuiteForVersion) => version(seen, offer),
            Error::PeerMisbehaved(PeerMisbehaved::SelectedUnofferedCipherSuite) => {
                let chosen = seen.server_hello().map(|hello| cipher(hello.cipher)).unwrap_or_default();
                (Cause::NoCommonCipher, format!("the origin chose the cipher suite {chosen}, which it was not offered"))
            }
            Error::PeerIncompatible(PeerIncompatible::NoKxGroupsInCommon)
            | Error::PeerMisbehaved(
                PeerMisbehaved::SelectedUnofferedKxGroup
                | PeerMisbehaved::WrongGroupForKeyShare
                | PeerMisbehaved::IllegalHelloRetryRequestWithUnofferedNamedGroup,
            ) => no_common_cipher("chose a key exchange that it was not offered", false, offer),
            Error::PeerMisbehaved(PeerMisbehaved::SelectedUnofferedApplicationProtocol) => {
                (Cause::NoCommonProtocol, "the origin chose an application protocol that it was not offered".to_owned())
            }
            error => (Cause::TlsProtocol, format!("the origin does not speak TLS as it should: {error}")),
        };
        Self::new(cause, text)
    }

    /// Of a connection that the origin ended by TLS after the handshake. With TLS 1.3 that is when it tells what it thinks of a
    /// client's certificate, or of its absence.
    pub fn of_ended(error: &Error, client_certificate: bool) -> Self {
        match error {
            Error::AlertReceived(alert) => {
                let (cause, text) = client_certificate_text(*alert, client_certificate).unwrap_or_else(|| {
                    (Cause::Alert, format!("the origin ended it by the alert {}", alert_name(*alert)))
                });
                Self { cause, alert: Some(*alert), text }
            }
            error => Self::new(Cause::TlsProtocol, format!("what came over TLS cannot be read: {error}")),
        }
    }

    /// Of a handshake that did not come to its end in time.
    pub(super) fn of_timeout(limit: Duration, seen: &Seen) -> Self {
        let text =
            format!("the origin did not finish the TLS handshake within {} s; {}", limit.as_secs(), what_came(seen));
        Self::new(Cause::HandshakeTimeout, text)
    }

    fn of_alert(alert: AlertDescription, seen: &Seen, offer: Offer) -> Self {
        use AlertDescription as A;
        let (cause, text) = match alert {
            A::ProtocolVersion => version(seen, offer),
            A::HandshakeFailure | A::InsufficientSecurity if !seen.asks_for_certificate() => {
                // Many answer by this, too, that serve no host of the name: before they choose anything.
                let or_name = alert == A::HandshakeFailure && seen.server_hello().is_none();
                no_common_cipher(&format!("sent the alert {}", alert_name(alert)), or_name, offer)
            }
            A::UnrecognisedName => {
                (Cause::UnknownName, "the origin serves no host of this name (alert unrecognized_name)".to_owned())
            }
            A::NoApplicationProtocol => {
                let text =
                    "the origin speaks none of the offered application protocols (alert no_application_protocol)";
                (Cause::NoCommonProtocol, text.to_owned())
            }
            _ => {
                let text = format!("the origin ended the handshake by the alert {}", alert_name(alert));
                match client_certificate_text(alert, offer.client_certificate) {
                    Some(about_client) if seen.server_hello().is_some() => about_client,
                    // It had not asked for one yet.
                    Some(_) => {
                        let more = "before it had chosen anything: it may not serve this name or this client";
                        (Cause::Alert, format!("{text}, {more}"))
                    }
                    None => (Cause::Alert, text),
                }
            }
        };
        Self { cause, alert: Some(alert), text }
    }

    fn broken(error: &io::Error, seen: &Seen) -> Self {
        let came = what_came(seen);
        if error.kind() == io::ErrorKind::UnexpectedEof {
            let text = format!("the origin closed the connection during the TLS handshake; {came}");
            return Self::new(Cause::HandshakeClosed, text);
        }
        let text = format!("the connection broke during the TLS handshake: {error}; {came}");
        Self::new(Cause::HandshakeReset, text)
    }
}

/// No version in common. With post-quantum key exchange required, that is the reason why there is none.
fn version(seen: &Seen, offer: Offer) -> (Cause, String) {
    // The record that an alert comes in has a version as well, but mostly the same one, whatever the origin speaks.
    let chosen = seen.server_hello().map(|hello| format!(" (it answered in {})", version_name(hello.version)));
    let chosen = chosen.unwrap_or_default();
    if offer.post_quantum {
        let text = format!(
            "the origin offered no post-quantum key exchange, which egress.dev/require-post-quantum requires: it does not \
             even speak TLS 1.3{chosen}"
        );
        return (Cause::NoPostQuantum, text);
    }
    let text = match offer.min_version {
        TlsVersion::V13 => format!("the origin does not speak TLS 1.3{chosen}, which egress.dev/min-tls requires"),
        TlsVersion::V12 => format!(
            "the origin speaks neither TLS 1.2 nor TLS 1.3{chosen}; older versions are broken and never used (RFC 8996)"
        ),
    };
    (Cause::TlsVersion, text)
}

/// Nothing in common by what the origin does, or, with `or_name`, possibly no such host there.
fn no_common_cipher(what: &str, or_name: bool, offer: Offer) -> (Cause, String) {
    let or_name = if or_name { ", or serves no host of this name" } else { "" };
    if offer.post_quantum {
        let text = format!(
            "the origin offered no post-quantum key exchange, which egress.dev/require-post-quantum requires{or_name}: offered \
             X25519MLKEM768 and SecP256r1MLKEM768 alone, it {what}"
        );
        return (Cause::NoPostQuantum, text);
    }
    let old = match offer.min_version {
        TlsVersion::V13 => "",
        TlsVersion::V12 => {
            " and, for TLS 1.2, ECDHE with the same ciphers; RSA key exchange, finite-field DHE and CBC are not used"
        }
    };
    let text = format!(
        "the origin has no cipher suite or key exchange in common{or_name}: it {what}. It was offered AES-GCM and \
         ChaCha20-Poly1305 with X25519MLKEM768, X25519, P-256 or P-384{old}"
    );
    (Cause::NoCommonCipher, text)
}

/// What an alert means that can only be about the client's certificate.
fn client_certificate_text(alert: AlertDescription, shown: bool) -> Option<(Cause, String)> {
    use AlertDescription as A;
    let is_about_it = matches!(
        alert,
        A::CertificateRequired
            | A::HandshakeFailure
            | A::NoCertificate
            | A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::UnknownCA
            | A::AccessDenied
    );
    let name = alert_name(alert);
    is_about_it.then(|| match shown {
        true => {
            let text = format!("the origin does not accept the client certificate of the rule (alert {name})");
            (Cause::ClientCertificateRefused, text)
        }
        false => {
            let text = format!(
                "the origin requires a client certificate (alert {name}), and the rule has none; use mode MUTUAL with one"
            );
            (Cause::ClientCertificateRequired, text)
        }
    })
}

fn not_tls(seen: &Seen) -> String {
    let line = shown(&seen.first_line());
    if seen.is_http() {
        format!("the origin speaks HTTP in clear on this port ({line:?}); let targetPort lead to one with TLS")
    } else {
        format!("the origin does not speak TLS on this port; it sent {line:?}")
    }
}

fn what_came(seen: &Seen) -> String {
    match (seen.count(), seen.server_hello()) {
        (0, _) => "it sent nothing".to_owned(),
        (count, None) => format!("it sent {count} bytes, and no complete ServerHello"),
        (count, Some(_)) => format!("it sent a ServerHello, {count} bytes in all"),
    }
}

fn version_name(version: u16) -> String {
    match version {
        0x0300 => "SSL 3.0".to_owned(),
        0x0301 => "TLS 1.0".to_owned(),
        0x0302 => "TLS 1.1".to_owned(),
        0x0303 => "TLS 1.2".to_owned(),
        other => format!("version {other:#06x}"),
    }
}

fn cipher(number: u16) -> String {
    CipherSuite::from(number).as_str().map_or_else(|| format!("{number:#06x}"), ToOwned::to_owned)
}

/// The alert's name in RFC 8446 section 6, or its number.
pub fn alert_name(alert: AlertDescription) -> String {
    use AlertDescription as A;
    let name = match alert {
        A::CloseNotify => "close_notify",
        A::UnexpectedMessage => "unexpected_message",
        A::BadRecordMac => "bad_record_mac",
        A::RecordOverflow => "record_overflow",
        A::HandshakeFailure => "handshake_failure",
        A::NoCertificate => "no_certificate",
        A::BadCertificate => "bad_certificate",
        A::UnsupportedCertificate => "unsupported_certificate",
        A::CertificateRevoked => "certificate_revoked",
        A::CertificateExpired => "certificate_expired",
        A::CertificateUnknown => "certificate_unknown",
        A::IllegalParameter => "illegal_parameter",
        A::UnknownCA => "unknown_ca",
        A::AccessDenied => "access_denied",
        A::DecodeError => "decode_error",
        A::DecryptError => "decrypt_error",
        A::ProtocolVersion => "protocol_version",
        A::InsufficientSecurity => "insufficient_security",
        A::InternalError => "internal_error",
        A::InappropriateFallback => "inappropriate_fallback",
        A::UserCanceled => "user_canceled",
        A::MissingExtension => "missing_extension",
        A::UnsupportedExtension => "unsupported_extension",
        A::UnrecognisedName => "unrecognized_name",
        A::BadCertificateStatusResponse => "bad_certificate_status_response",
        A::UnknownPSKIdentity => "unknown_psk_identity",
        A::CertificateRequired => "certificate_required",
        A::NoApplicationProtocol => "no_application_protocol",
        A::EncryptedClientHelloRequired => "ech_required",
        other => return format!("number {}", u8::from(other)),
    };
    name.to_owned()
}
