//! Errors that we answer ourselves, with a Proxy-Status field (RFC 9209) and a text that a person understands.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use rustls::Error as TlsError;
use sfv::{ItemSerializer, StringRef, TokenRef, key_ref, string_ref, token_ref};

use crate::{
    body::ResponseBody,
    telemetry::access_log::{Outcome, Record},
    upstream::{UpstreamError, http2_error},
};

/// Why a request is not answered by its origin.
#[derive(Debug)]
pub struct ProxyError {
    status: StatusCode,
    /// The proxy error type (RFC 9209 section 2.3).
    kind: &'static TokenRef,
    details: String,
    outcome: Outcome,
}

impl ProxyError {
    /// The request itself is at fault.
    pub fn bad_request(details: &str) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            kind: token_ref("http_request_error"),
            details: details.to_owned(),
            outcome: Outcome::Refused,
        }
    }

    /// The host falls under a wildcard's rule, but no certificate can be for it.
    pub fn unverifiable_host() -> Self {
        Self::bad_request("the request's Host is not a name that a certificate can be verified for")
    }

    /// CONNECT asks for a tunnel, which a transparent proxy does not make.
    pub fn connect_method() -> Self {
        Self {
            status: StatusCode::METHOD_NOT_ALLOWED,
            ..Self::bad_request("CONNECT is for forward proxies, and this is none")
        }
    }

    /// The origin switches protocols though nobody asked it to.
    pub fn unasked_switch() -> Self {
        Self {
            status: StatusCode::BAD_GATEWAY,
            kind: token_ref("http_protocol_error"),
            details: "the origin switched protocols (101) without being asked to".to_owned(),
            outcome: Outcome::Failed,
        }
    }

    /// A defect of ours.
    pub fn internal() -> Self {
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            kind: token_ref("proxy_internal_error"),
            details: "a request was to be sent twice; please report this".to_owned(),
            outcome: Outcome::Failed,
        }
    }

    /// The response, which completes the record.
    pub fn respond(self, mut record: Record) -> Response<ResponseBody> {
        let text = format!("egress could not forward this request: {}\n", self.details);
        record.respond(self.status, self.outcome);
        let proxy_status = self.proxy_status();
        record.error(self.details);
        let mut response = Response::new(ResponseBody::message(Bytes::from(text), record));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(HeaderName::from_static("proxy-status"), proxy_status);
        response
    }

    fn proxy_status(&self) -> HeaderValue {
        // Strings of structured fields are printable ASCII (RFC 9651 section 3.3.3).
        let details: String = self.details.chars().map(|c| if (' '..='~').contains(&c) { c } else { '?' }).collect();
        let serialized = ItemSerializer::new()
            .bare_item(token_ref("egress"))
            .parameter(key_ref("error"), self.kind)
            .parameter(key_ref("details"), StringRef::from_str(&details).unwrap_or(string_ref("")))
            .finish();
        HeaderValue::try_from(serialized).unwrap_or(HeaderValue::from_static("egress"))
    }
}

impl From<&UpstreamError> for ProxyError {
    fn from(error: &UpstreamError) -> Self {
        let (status, kind) = classify(error);
        Self { status, kind, details: error.to_string(), outcome: Outcome::Failed }
    }
}

/// Status and error type by RFC 9209 section 2.3.
fn classify(error: &UpstreamError) -> (StatusCode, &'static TokenRef) {
    let (status, kind) = status_and_kind(error);
    (status, token_ref(kind))
}

fn status_and_kind(error: &UpstreamError) -> (StatusCode, &'static str) {
    use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut};
    match error {
        UpstreamError::NoAddress => (StatusCode::BAD_GATEWAY, "dns_error"),
        UpstreamError::Connect { source, .. } => match source.kind() {
            ConnectionRefused => (StatusCode::BAD_GATEWAY, "connection_refused"),
            HostUnreachable | NetworkUnreachable => (StatusCode::BAD_GATEWAY, "destination_ip_unroutable"),
            TimedOut => (StatusCode::GATEWAY_TIMEOUT, "connection_timeout"),
            _ => (StatusCode::SERVICE_UNAVAILABLE, "destination_unavailable"),
        },
        UpstreamError::ConnectTimeout { .. } | UpstreamError::TlsTimeout { .. } => {
            (StatusCode::GATEWAY_TIMEOUT, "connection_timeout")
        }
        UpstreamError::Tls { source, .. } | UpstreamError::TlsEnded { source, .. } => match source {
            TlsError::InvalidCertificate(_) | TlsError::NoCertificatesPresented => {
                (StatusCode::BAD_GATEWAY, "tls_certificate_error")
            }
            TlsError::AlertReceived(_) => (StatusCode::BAD_GATEWAY, "tls_alert_received"),
            _ => (StatusCode::BAD_GATEWAY, "tls_protocol_error"),
        },
        UpstreamError::TlsBroken { .. } => (StatusCode::BAD_GATEWAY, "connection_terminated"),
        UpstreamError::Http { source, .. } => {
            let http2 = http2_error(source);
            if source.is_incomplete_message() || http2.is_some_and(h2::Error::is_remote) {
                (StatusCode::BAD_GATEWAY, "http_response_incomplete")
            } else if source.is_parse() || http2.is_some_and(h2::Error::is_library) {
                (StatusCode::BAD_GATEWAY, "http_protocol_error")
            } else {
                (StatusCode::BAD_GATEWAY, "connection_terminated")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_type_and_the_details_are_a_structured_field() {
        let error = ProxyError::bad_request("say \"what\" — and why");
        assert_eq!(error.proxy_status(), r#"egress;error=http_request_error;details="say \"what\" ? and why""#,);
    }
}
