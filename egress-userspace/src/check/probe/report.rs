//! What was seen, for people and for machines.

use std::{fmt, net::SocketAddr};

use serde::{Serialize, Serializer};

use super::super::Place;
use crate::upstream::{
    Cause, TlsInfo, UpstreamError,
    tls::{Facts, date, listed, rfc3339},
};

const SECONDS_OF_A_DAY: i64 = 24 * 60 * 60;

/// What was seen of one upstream.
#[derive(Debug, Serialize)]
pub struct ProbeReport {
    /// The host, or a wildcard that was not probed.
    pub host: String,
    /// The rules that lead there, as `http://host:port`.
    pub rules: Vec<String>,
    /// The `tls` block.
    pub location: Place,
    /// The name that was asked for (SNI).
    pub server_name: Option<String>,
    /// Where the tunnel leads, if there is one: the addresses are the proxy's then.
    pub tunnel: Option<String>,
    /// Why nothing was done.
    pub not_probed: Option<String>,
    /// Names, or families of their addresses, that could not be resolved, and why.
    pub unresolved: Vec<String>,
    /// Each address.
    pub addresses: Vec<AddressReport>,
}

/// What was seen at one address.
#[derive(Debug, Serialize)]
pub struct AddressReport {
    /// Where it was connected to.
    pub address: SocketAddr,
    /// In short.
    pub outcome: Outcome,
    /// Why requests would not be sent there.
    pub failure: Option<FailureReport>,
    /// What TLS agreed on, also with an origin whose certificate is refused.
    pub tls: Option<TlsReport>,
    /// Whether the origin asks who we are; absent where there was no handshake.
    pub client_certificate: Option<ClientCertificate>,
    /// The mismatch of pins, where those are only to be reported.
    pub unenforced_pins: Option<String>,
    /// The origin's certificate, and those that it has sent along.
    pub certificates: Vec<CertificateReport>,
}

/// What would become of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// They would be sent: the origin is who it should be.
    Verified,
    /// They would be sent, to whoever it is: the rule has `insecureSkipVerify`.
    Unverified,
    /// TLS cannot be made, or the origin is not who it should be.
    Refused,
    /// There is no connection.
    Unreachable,
}

/// Why requests would not be sent, as the agent answers them.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct FailureReport {
    /// As in the log and the metrics.
    #[serde(serialize_with = "label")]
    pub cause: Cause,
    /// The proxy error type (RFC 9209 section 2.3).
    pub error: &'static str,
    /// The text in `Proxy-Status` and the log.
    pub details: String,
    /// Whether the agent would go on to the next address.
    #[serde(skip)]
    pub is_passed_over: bool,
}

/// What TLS agreed on.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct TlsReport {
    /// Such as `TLSv1.3`.
    pub version: &'static str,
    /// Such as `X25519MLKEM768`.
    pub key_exchange: &'static str,
    /// Whether that withstands quantum computers.
    pub post_quantum: bool,
    /// Such as `TLS13_AES_128_GCM_SHA256`.
    pub cipher: &'static str,
    /// The application protocol that the origin has picked, such as `h2`; none if it knows no ALPN.
    pub alpn: Option<String>,
}

/// What an origin wants to know of its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientCertificate {
    /// Nothing.
    NotAskedFor,
    /// It got what it had asked for.
    Shown,
    /// The rule has none to show.
    Missing,
}

/// What a certificate says.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct CertificateReport {
    /// Whom it is for.
    pub subject: String,
    /// Who vouches for it.
    pub issuer: String,
    /// The serial number in hexadecimal.
    pub serial: String,
    /// The hosts that it is valid for.
    pub names: Vec<String>,
    /// The algorithm that it is signed by.
    pub signature: String,
    /// From when on it is valid (RFC 3339).
    pub not_before: String,
    /// Until when (RFC 3339).
    pub not_after: String,
    /// Whole days until then; negative once it is over.
    pub days_left: i64,
    /// Its key as `egress.dev/pins` has it.
    pub pin: String,
    /// Whether it is on the chain by which the origin is verified. Others may have been sent along.
    pub verified: bool,
    /// `not_after` for people.
    #[serde(skip)]
    pub until: String,
}

impl AddressReport {
    /// An address that there is no connection to.
    pub(super) fn unreachable(address: SocketAddr, error: &UpstreamError) -> Self {
        Self {
            address,
            outcome: Outcome::Unreachable,
            failure: Some(error.into()),
            tls: None,
            client_certificate: None,
            unenforced_pins: None,
            certificates: Vec::new(),
        }
    }
}

impl From<&UpstreamError> for FailureReport {
    fn from(error: &UpstreamError) -> Self {
        let cause = error.cause();
        let is_unconnected = matches!(error, UpstreamError::Connect { .. } | UpstreamError::ConnectTimeout { .. });
        Self {
            cause,
            error: cause.proxy_error(),
            details: error.to_string(),
            is_passed_over: is_unconnected || error.is_of_address(),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn label<S: Serializer>(cause: &Cause, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(cause.label())
}

impl TlsReport {
    pub(super) fn new(agreed: &TlsInfo, alpn: Option<String>) -> Self {
        let TlsInfo { version, cipher, group, .. } = *agreed;
        Self { version, key_exchange: group, post_quantum: agreed.is_post_quantum(), cipher, alpn }
    }
}

impl CertificateReport {
    /// `now` in seconds since 1970.
    pub(super) fn new(facts: Facts, verified: bool, now: i64) -> Self {
        Self {
            subject: facts.subject,
            issuer: facts.issuer,
            serial: facts.serial,
            names: facts.names,
            signature: facts.signature,
            not_before: rfc3339(facts.not_before),
            not_after: rfc3339(facts.not_after),
            days_left: facts.not_after.saturating_sub(now).div_euclid(SECONDS_OF_A_DAY),
            pin: facts.pin.to_string(),
            verified,
            until: date(facts.not_after),
        }
    }
}

impl fmt::Display for ProbeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "probe of {}", self.host)?;
        if let Some(name) = self.server_name.as_ref().filter(|name| **name != self.host) {
            write!(f, ", asked for as {name}")?;
        }
        if let Some(tunnel) = &self.tunnel {
            write!(f, ", through a tunnel to {tunnel}")?;
        }
        write!(f, ", for {}", self.rules.join(", "))?;
        if let Some(reason) = &self.not_probed {
            return write!(f, "\n    not probed: {reason}");
        }
        for reason in &self.unresolved {
            write!(f, "\n    {reason}")?;
        }
        let mut shown: Vec<&AddressReport> = Vec::new();
        for report in &self.addresses {
            write!(f, "\n    {report}")?;
            match shown.iter().find(|earlier| earlier.certificates == report.certificates) {
                _ if report.certificates.is_empty() => {}
                Some(earlier) => write!(f, "\n        the certificates of {}", earlier.address)?,
                None => {
                    for certificate in &report.certificates {
                        write!(f, "\n        {certificate}")?;
                    }
                    shown.push(report);
                }
            }
        }
        Ok(())
    }
}

/// All but the certificates.
impl fmt::Display for AddressReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = match self.outcome {
            Outcome::Verified => "verified",
            Outcome::Unverified => "NOT VERIFIED, as the rule has it",
            Outcome::Refused => "refused",
            Outcome::Unreachable => "unreachable",
        };
        write!(f, "{}: {outcome}", self.address)?;
        if let Some(FailureReport { cause, details, .. }) = &self.failure {
            write!(f, " ({}): {details}", cause.label())?;
        }
        if let Some(tls) = &self.tls {
            write!(f, "\n        {tls}")?;
        }
        match self.client_certificate {
            None | Some(ClientCertificate::NotAskedFor) => Ok(()),
            Some(ClientCertificate::Shown) => write!(f, "\n        asks for a client certificate, and got the rule's"),
            Some(ClientCertificate::Missing) => {
                write!(f, "\n        asks for a client certificate, and the rule has none")
            }
        }
    }
}

impl fmt::Display for TlsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, key_exchange, post_quantum, cipher, alpn } = self;
        let kind = if *post_quantum { "post-quantum" } else { "not post-quantum" };
        write!(f, "{version}, {key_exchange} ({kind}), {cipher}, ")?;
        match alpn {
            Some(alpn) => write!(f, "ALPN {alpn}"),
            None => write!(f, "no ALPN"),
        }
    }
}

impl fmt::Display for CertificateReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { subject, issuer, names, until, days_left, pin, .. } = self;
        write!(f, "{subject}, issued by {issuer}")?;
        if !names.is_empty() {
            write!(f, "\n            for {}", listed(names, ", "))?;
        }
        write!(f, "\n            until {until} ")?;
        match days_left {
            0.. => write!(f, "({days_left} days left)")?,
            _ => write!(f, "({} days ago)", days_left.unsigned_abs())?,
        }
        write!(f, "\n            pin {pin}")
    }
}
