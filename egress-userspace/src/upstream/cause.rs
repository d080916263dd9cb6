//! Why an origin did not answer: one list for the log, the metrics and the Proxy-Status field.

use http::StatusCode;

/// Declares the causes, one to a row: the name, its label, the status of our answer, and the proxy error type.
macro_rules! causes {
    ($( $(#[$attribute:meta])* $name:ident => $label:literal, $status:ident, $error:literal; )*) => {
        /// Why an origin did not answer.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Cause {
            $( $(#[$attribute])* $name, )*
        }

        impl Cause {
            /// All causes.
            pub const ALL: &[Self] = &[$( Self::$name, )*];

            /// The value in the log and of the metric label `cause`.
            pub const fn label(self) -> &'static str {
                match self {
                    $( Self::$name => $label, )*
                }
            }

            /// The status that the application gets.
            pub const fn status(self) -> StatusCode {
                match self {
                    $( Self::$name => StatusCode::$status, )*
                }
            }

            /// The proxy error type (RFC 9209 section 2.3).
            pub const fn proxy_error(self) -> &'static str {
                match self {
                    $( Self::$name => $error, )*
                }
            }
        }
    };
}

causes! {
    /// The name has no known address.
    NoAddress => "no_address", BAD_GATEWAY, "dns_error";
    /// All its addresses are left out for a while.
    LeftOut => "left_out", SERVICE_UNAVAILABLE, "destination_unavailable";
    /// Nobody listens there.
    ConnectionRefused => "connection_refused", BAD_GATEWAY, "connection_refused";
    /// No route leads there.
    Unroutable => "unroutable", BAD_GATEWAY, "destination_ip_unroutable";
    /// TCP took too long.
    ConnectTimeout => "connect_timeout", GATEWAY_TIMEOUT, "connection_timeout";
    /// TCP failed in another way.
    ConnectFailed => "connect_failed", SERVICE_UNAVAILABLE, "destination_unavailable";
    /// The node has no more descriptors, memory or ports for it.
    OutOfResources => "out_of_resources", SERVICE_UNAVAILABLE, "proxy_internal_error";
    /// There is as much under way as settings allow.
    Overflow => "overflow", SERVICE_UNAVAILABLE, "connection_limit_reached";
    /// The response did not come in the time of its route.
    ResponseTimeout => "response_timeout", GATEWAY_TIMEOUT, "http_response_timeout";
    /// The proxy on the way makes no tunnel.
    TunnelRefused => "tunnel_refused", BAD_GATEWAY, "destination_unavailable";
    /// It broke the connection off.
    TunnelBroken => "tunnel_broken", BAD_GATEWAY, "connection_terminated";
    /// It did not answer.
    TunnelTimeout => "tunnel_timeout", GATEWAY_TIMEOUT, "connection_timeout";

    /// A certificate's time is over.
    CertificateExpired => "certificate_expired", BAD_GATEWAY, "tls_certificate_error";
    /// A certificate's time has not come.
    CertificateNotYetValid => "certificate_not_yet_valid", BAD_GATEWAY, "tls_certificate_error";
    /// The certificate is for others.
    WrongName => "wrong_name", BAD_GATEWAY, "tls_certificate_error";
    /// The certificate vouches for itself.
    SelfSigned => "self_signed", BAD_GATEWAY, "tls_certificate_error";
    /// No chain leads to a trusted root.
    UnknownIssuer => "unknown_issuer", BAD_GATEWAY, "tls_certificate_error";
    /// A certificate was revoked.
    Revoked => "revoked", BAD_GATEWAY, "tls_certificate_error";
    /// There is no usable revocation list of a certificate's issuer.
    RevocationUnknown => "revocation_unknown", BAD_GATEWAY, "tls_certificate_error";
    /// A revocation list is out of date.
    CrlExpired => "crl_expired", BAD_GATEWAY, "tls_certificate_error";
    /// An authority vouches for a name that it must not vouch for.
    NameConstraints => "name_constraints", BAD_GATEWAY, "tls_certificate_error";
    /// The certificate is not for servers.
    WrongPurpose => "wrong_purpose", BAD_GATEWAY, "tls_certificate_error";
    /// A key is too short.
    WeakKey => "weak_key", BAD_GATEWAY, "tls_certificate_error";
    /// A certificate is signed by an algorithm that is broken or unknown.
    WeakSignature => "weak_signature", BAD_GATEWAY, "tls_certificate_error";
    /// No key of the chain is one that the rule pins.
    PinMismatch => "pin_mismatch", BAD_GATEWAY, "tls_certificate_error";
    /// The origin has not proved that it holds its certificate's key.
    KeyMismatch => "key_mismatch", BAD_GATEWAY, "tls_certificate_error";
    /// A certificate is wrong in another way.
    BadCertificate => "bad_certificate", BAD_GATEWAY, "tls_certificate_error";

    /// No TLS version in common.
    TlsVersion => "tls_version", BAD_GATEWAY, "tls_protocol_error";
    /// No cipher suite, key exchange or signature algorithm in common.
    NoCommonCipher => "no_common_cipher", BAD_GATEWAY, "tls_protocol_error";
    /// The rule requires a post-quantum key exchange, and the origin has none.
    NoPostQuantum => "no_post_quantum", BAD_GATEWAY, "tls_protocol_error";
    /// No application protocol in common (ALPN).
    NoCommonProtocol => "no_common_protocol", BAD_GATEWAY, "tls_protocol_error";
    /// The origin serves no host of the name that it was asked for.
    UnknownName => "unknown_name", BAD_GATEWAY, "tls_protocol_error";
    /// The origin demands a client certificate, and the rule has none.
    ClientCertificateRequired => "client_certificate_required", BAD_GATEWAY, "tls_protocol_error";
    /// The origin does not take the rule's client certificate.
    ClientCertificateRefused => "client_certificate_refused", BAD_GATEWAY, "tls_protocol_error";
    /// The origin ended TLS by another alert.
    Alert => "alert", BAD_GATEWAY, "tls_alert_received";
    /// What the origin sent is not TLS at all.
    NotTls => "not_tls", BAD_GATEWAY, "tls_protocol_error";
    /// What the origin sent is not TLS as it should be.
    TlsProtocol => "tls_protocol", BAD_GATEWAY, "tls_protocol_error";
    /// TLS took too long.
    HandshakeTimeout => "handshake_timeout", GATEWAY_TIMEOUT, "connection_timeout";
    /// The origin reset the connection during the handshake.
    HandshakeReset => "handshake_reset", BAD_GATEWAY, "connection_terminated";
    /// The origin closed the connection during the handshake.
    HandshakeClosed => "handshake_closed", BAD_GATEWAY, "connection_terminated";

    /// The connection ended before the response was there.
    HttpIncomplete => "http_incomplete", BAD_GATEWAY, "http_response_incomplete";
    /// The response is not HTTP as it should be.
    HttpProtocol => "http_protocol", BAD_GATEWAY, "http_protocol_error";
    /// The connection broke while a request was on it.
    ConnectionLost => "connection_lost", BAD_GATEWAY, "connection_terminated";
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn labels_are_distinct_and_stand_at_the_place_of_their_cause() {
        let labels: HashSet<_> = Cause::ALL.iter().map(|cause| cause.label()).collect();
        assert_eq!(labels.len(), Cause::ALL.len());
        assert!(Cause::ALL.iter().enumerate().all(|(index, cause)| *cause as usize == index));
    }
}
