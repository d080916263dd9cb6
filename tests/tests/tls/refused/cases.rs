//! Everything that is wrong with an origin's TLS, made with the tools that origins are made of.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Result, ensure};
use harness::pki::{Identity, Pki};

use super::case::{Case, Origin};

/// The serial number that the revocation list has.
pub const REVOKED: u64 = 4711;

const SIMPLE: &str = "{mode: SIMPLE}";
const WITH_CRL: &str = "{mode: SIMPLE, caCrl: crl.pem}";
const MUTUAL: &str = "{mode: MUTUAL, clientCertificate: foreign.crt, privateKey: foreign.key}";
const MIN_TLS: &str = "egress.dev/min-tls: '1.3'";
const POST_QUANTUM: &str = "egress.dev/require-post-quantum: 'true'";
const PINS: &str = "egress.dev/pins: sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

const CERTIFICATE: &str = "tls_certificate_error";
const ALERT: &str = "tls_alert_received";
const PROTOCOL: &str = "tls_protocol_error";

const fn case(
    host: &'static str,
    origin: Origin,
    error: &'static str,
    cause: &'static str,
    says: &'static [&'static str],
) -> Case {
    Case { host, origin, tls: SIMPLE, annotations: "", status: 502, error, cause, says }
}

const fn certificate(
    host: &'static str,
    make: fn(&Pki, &str) -> Result<Identity>,
    cause: &'static str,
    says: &'static [&'static str],
) -> Case {
    case(host, Origin::Nginx(make), CERTIFICATE, cause, says)
}

const fn openssl(
    host: &'static str,
    arguments: &'static [&'static str],
    error: &'static str,
    cause: &'static str,
    says: &'static [&'static str],
) -> Case {
    case(host, Origin::OpenSsl(own, arguments), error, cause, says)
}

fn own(pki: &Pki, host: &str) -> Result<Identity> {
    pki.server(&[host])
}

pub const CASES: [Case; 37] = [
    certificate(
        "expired.example",
        |pki, host| pki.expired(&[host]),
        "certificate_expired",
        &["(CN=expired.example, issued by CN=egress test authority: trusted)", "expired on 2020-01-01 00:00:00 UTC"],
    ),
    certificate(
        "early.example",
        |pki, host| pki.not_yet_valid(&[host]),
        "certificate_not_yet_valid",
        &["not valid before 2124-01-01 00:00:00 UTC"],
    ),
    certificate(
        "wrong.example",
        |pki, _| pki.server(&["right.example", "203.0.113.9"]),
        "wrong_name",
        &["not valid for wrong.example, but for right.example, 203.0.113.9"],
    ),
    certificate(
        "two.deep.wild.example",
        |pki, _| pki.server(&["*.wild.example"]),
        "wrong_name",
        &["not valid for two.deep.wild.example, but for *.wild.example"],
    ),
    certificate(
        "nameless.example",
        Pki::without_names,
        "wrong_name",
        &["CN=nameless.example", "names no host in its subjectAltName", "a common name does not count"],
    ),
    certificate(
        "self-signed.example",
        |pki, host| pki.self_signed(&[host]),
        "self_signed",
        &["CN=self-signed.example", "vouches for itself", "caCertificates"],
    ),
    certificate(
        "own-authority.example",
        |pki, host| pki.self_signed_authority(&[host]),
        "bad_certificate",
        &["is that of an authority", "not even if it is named in caCertificates"],
    ),
    certificate(
        "untrusted.example",
        |pki, host| pki.untrusted(&[host]),
        "unknown_issuer",
        &["ends at CN=egress test authority: untrusted", "not among this machine's", "caCertificates"],
    ),
    certificate(
        "renewed.example",
        |pki, host| pki.by_namesake(&[host]),
        "unknown_issuer",
        &["ends at CN=egress test authority: trusted, and an authority of that name is among", "has another key"],
    ),
    certificate(
        "incomplete.example",
        |pki, host| pki.without_intermediate(&[host]),
        "unknown_issuer",
        &["breaks off at CN=egress test authority: intermediate", "must send the intermediate certificates"],
    ),
    Case {
        tls: WITH_CRL,
        ..certificate(
            "revoked.example",
            |pki, host| pki.numbered(&[host], REVOKED),
            "revoked",
            &["CN=revoked.example", "is revoked: ", "/crl.pem lists its serial number 12:67"],
        )
    },
    Case {
        tls: "{mode: SIMPLE, caCrl: old-crl.pem}",
        ..certificate("old-crl.example", own, "crl_expired", &["/old-crl.pem", "replaced by 2020-01-01 00:00:00 UTC"])
    },
    Case {
        tls: "{mode: SIMPLE, caCrl: foreign-crl.pem}",
        ..certificate(
            "no-crl.example",
            own,
            "revocation_unknown",
            &["/foreign-crl.pem has no revocation list of CN=egress test authority: trusted; one of each"],
        )
    },
    // Of each authority of the chain there must be a list.
    Case {
        tls: WITH_CRL,
        ..certificate(
            "half-crl.example",
            |pki, host| pki.by_intermediate(&[host]),
            "revocation_unknown",
            &["/crl.pem has no revocation list of CN=egress test authority: intermediate; one of each"],
        )
    },
    certificate(
        "constrained.example",
        |pki, host| pki.by_constrained(&[host]),
        "name_constraints",
        &["issued by CN=egress test authority: constrained", "for constrained.example", "name constraints"],
    ),
    Case {
        annotations: PINS,
        ..certificate(
            "pinned.example",
            own,
            "pin_mismatch",
            &[
                "none of the keys of the origin's chain is pinned",
                "has sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            ],
        )
    },
    case(
        "clear.example",
        Origin::NginxInClear,
        PROTOCOL,
        "not_tls",
        &["HTTP in clear", "400 Bad Request", "targetPort"],
    ),
    case(
        "weak-key.example",
        Origin::OpenSsl(|pki, host| pki.by_openssl(host, "rsa:1024", "sha256"), &["-cipher", "ALL:@SECLEVEL=0"]),
        CERTIFICATE,
        "weak_key",
        &["CN=weak-key.example", "RSA key of 1024 bits", "less than 2048"],
    ),
    case(
        "sha1.example",
        Origin::OpenSsl(|pki, host| pki.by_openssl(host, "rsa:2048", "sha1"), &["-cipher", "ALL:@SECLEVEL=0"]),
        CERTIFICATE,
        "weak_signature",
        &["CN=sha1.example", "is signed by ecdsa-with-SHA1"],
    ),
    case(
        "another-key.example",
        Origin::OpenSsl(|pki, host| pki.with_another_key(&[host]), &[]),
        CERTIFICATE,
        "key_mismatch",
        &["does not hold the key of its certificate (CN=another-key.example)"],
    ),
    case(
        "another-key-tls12.example",
        Origin::OpenSsl(|pki, host| pki.with_another_key(&[host]), &["-tls1_2"]),
        CERTIFICATE,
        "key_mismatch",
        &["does not hold the key of its certificate"],
    ),
    openssl(
        "tls10.example",
        &["-tls1", "-cipher", "ALL:@SECLEVEL=0"],
        ALERT,
        "tls_version",
        &["speaks neither TLS 1.2 nor TLS 1.3"],
    ),
    openssl(
        "tls11.example",
        &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
        ALERT,
        "tls_version",
        &["speaks neither TLS 1.2 nor TLS 1.3"],
    ),
    // One that has never heard of supported_versions, and answers what it can.
    case(
        "very-old.example",
        Origin::Raw(|stream| answer(stream, &[&[22, 3, 1, 0, 42, 2, 0, 0, 38, 3, 1], &[0; 32], &[0, 0, 47, 0]])),
        PROTOCOL,
        "tls_version",
        &["speaks neither TLS 1.2 nor TLS 1.3 (it answered in TLS 1.0)"],
    ),
    Case {
        annotations: MIN_TLS,
        ..openssl(
            "tls12.example",
            &["-tls1_2"],
            ALERT,
            "tls_version",
            &["does not speak TLS 1.3", "egress.dev/min-tls requires"],
        )
    },
    case(
        "rsa-exchange.example",
        Origin::OpenSsl(|pki, host| pki.by_openssl(host, "rsa:2048", "sha256"), &["-tls1_2", "-cipher", "kRSA"]),
        ALERT,
        "no_common_cipher",
        &["or serves no host of this name", "sent the alert handshake_failure", "RSA key exchange", "are not used"],
    ),
    openssl(
        "cbc.example",
        &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA"],
        ALERT,
        "no_common_cipher",
        &["no cipher suite or key exchange in common", "CBC"],
    ),
    Case {
        annotations: POST_QUANTUM,
        ..openssl(
            "classical.example",
            &["-groups", "X25519:P-256"],
            ALERT,
            "no_post_quantum",
            &["offered no post-quantum key exchange", "egress.dev/require-post-quantum", "X25519MLKEM768"],
        )
    },
    Case {
        annotations: POST_QUANTUM,
        ..openssl(
            "classical-tls12.example",
            &["-tls1_2"],
            ALERT,
            "no_post_quantum",
            &["offered no post-quantum key exchange", "does not even speak TLS 1.3"],
        )
    },
    openssl(
        "demanding.example",
        &["-Verify", "1", "-CAfile", "@CLIENT_CA@", "-tls1_3"],
        ALERT,
        "client_certificate_required",
        &["requires a client certificate (alert certificate_required)", "MUTUAL"],
    ),
    openssl(
        "demanding-tls12.example",
        &["-Verify", "1", "-CAfile", "@CLIENT_CA@", "-tls1_2"],
        ALERT,
        "client_certificate_required",
        &["requires a client certificate (alert handshake_failure)", "MUTUAL"],
    ),
    Case {
        tls: MUTUAL,
        ..openssl(
            "choosy.example",
            &["-Verify", "1", "-verify_return_error", "-CAfile", "@CLIENT_CA@", "-tls1_3"],
            ALERT,
            "client_certificate_refused",
            &["does not accept the client certificate of the rule (alert unknown_ca)"],
        )
    },
    Case {
        tls: MUTUAL,
        ..openssl(
            "choosy-tls12.example",
            &["-Verify", "1", "-verify_return_error", "-CAfile", "@CLIENT_CA@", "-tls1_2"],
            ALERT,
            "client_certificate_refused",
            &["does not accept the client certificate of the rule (alert unknown_ca)"],
        )
    },
    case(
        "choosing-nothing.example",
        Origin::Raw(|stream| answer(stream, &[&[21, 3, 3, 0, 2, 2, 49]])),
        ALERT,
        "alert",
        &["by the alert access_denied, before it had chosen anything: it may not serve this name or this client"],
    ),
    case(
        "reset.example",
        Origin::Raw(|stream| {
            answer(stream.try_clone()?, &[&[22, 3, 3, 0, 122, 2, 0, 0, 118, 3, 3]])?;
            Ok(socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?)
        }),
        "connection_terminated",
        "handshake_reset",
        &["broke during the TLS handshake", "it sent 11 bytes, and no complete ServerHello"],
    ),
    case(
        "mail.example",
        Origin::Raw(|stream| answer(stream, &[b"220 mail.example ESMTP\r\n"])),
        PROTOCOL,
        "not_tls",
        &["does not speak TLS on this port; it sent \"220 mail.example ESMTP\""],
    ),
    // It takes the full ten seconds, so it comes last and is asked first.
    Case {
        status: 504,
        ..case(
            "stalled.example",
            Origin::Raw(|mut stream| {
                std::io::copy(&mut stream, &mut std::io::sink())?;
                Ok(())
            }),
            "connection_timeout",
            "handshake_timeout",
            &["did not finish the TLS handshake within 10 s; it sent nothing"],
        )
    },
];

/// Reads some of the ClientHello, and answers.
fn answer(mut stream: TcpStream, parts: &[&[u8]]) -> Result<()> {
    let count = stream.read(&mut [0; 16 * 1024])?;
    ensure!(count > 0, "no ClientHello");
    Ok(stream.write_all(&parts.concat())?)
}
