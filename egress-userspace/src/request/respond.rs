//! Errors that we answer ourselves, with a Proxy-Status field (RFC 9209) and a text that a person understands.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use rustls::AlertDescription;
use sfv::{Integer, ItemSerializer, StringRef, TokenRef, key_ref, string_ref, token_ref};

use crate::{
    body::{BodyError, Content, ResponseBody},
    head::{Response, ResponseHead},
    http1::{self, Fault},
    limits::Beyond,
    telemetry::access_log::{Outcome, Record},
    upstream::{Cause, ExchangeError, UpstreamError, tls::alert_name},
};

/// Why a request is not answered by its origin.
#[derive(Debug)]
pub struct ProxyError {
    status: StatusCode,
    /// The proxy error type (RFC 9209 section 2.3).
    kind: &'static TokenRef,
    /// The alert by which the origin ended TLS.
    alert: Option<AlertDescription>,
    details: String,
    outcome: Outcome,
    /// Why the origin did not answer; none if it was not asked.
    cause: Option<Cause>,
}

impl ProxyError {
    /// The request itself is at fault.
    pub fn bad_request(details: &str) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            kind: token_ref("http_request_error"),
            alert: None,
            details: details.to_owned(),
            outcome: Outcome::Refused,
            cause: None,
        }
    }

    /// The host falls under a wildcard's rule, but no certificate can be for it.
    pub fn unverifiable_host() -> Self {
        Self::bad_request("the request's Host is not a name that a certificate can be verified for")
    }

    /// The request cannot be read.
    pub fn malformed(fault: Fault) -> Self {
        let details = match fault {
            Fault::HeadTooLong(_) => format!("{fault} (--max-head-bytes)"),
            Fault::TooManyFields(_) => format!("{fault} (--max-head-fields)"),
            _ => format!("the request is malformed: {fault}"),
        };
        Self { status: http1::server::status(fault), ..Self::bad_request(&details) }
    }

    /// The content of the request does not come to its end.
    pub fn broken_content(error: &BodyError) -> Self {
        match error {
            BodyError::Broken(ExchangeError::Http1(http1::Error::Fault(fault))) => Self::malformed(*fault),
            error => Self::bad_request(&format!("the content of the request: {error}")),
        }
    }

    /// The request does not come to its end.
    pub fn late() -> Self {
        Self {
            status: StatusCode::REQUEST_TIMEOUT,
            ..Self::bad_request("the head of the request did not come to its end in time (--head-timeout)")
        }
    }

    /// Neither does the client send anything for so long, nor does the origin answer: who is to blame depends on whether any of
    /// the content is still to come.
    pub fn stalled(limit: Duration, content: &Content) -> Self {
        if content.is_complete() || content.has_unread() {
            let what =
                if content.is_complete() { "no response" } else { "nothing taken of the request, and no response," };
            let details = format!("{what} within {limit:?} (--idle-timeout)");
            return Self { details, ..Self::timeout(limit) };
        }
        let details = format!("nothing more came of the request's content for {limit:?} (--idle-timeout)");
        Self { status: StatusCode::REQUEST_TIMEOUT, ..Self::bad_request(&details) }
    }

    /// There are too many connections.
    pub fn too_many(why: Beyond) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: token_ref("connection_limit_reached"),
            ..Self::bad_request(&why.to_string())
        }
    }

    /// There is no room for the head of the response: what the request has asked for may be done.
    pub fn too_much_answered(why: Beyond) -> Self {
        let details = format!("the origin has answered, but there is no room for the head of the response: {why}");
        Self { details, outcome: Outcome::Failed, ..Self::too_many(why) }
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
            kind: token_ref(Cause::HttpProtocol.proxy_error()),
            alert: None,
            details: "the origin switched protocols (101) without being asked to".to_owned(),
            outcome: Outcome::Failed,
            cause: Some(Cause::HttpProtocol),
        }
    }

    /// The origin compresses content on its way though nobody has said that it may (RFC 9112 section 7.4).
    pub fn unknown_coding() -> Self {
        let details = "the response has a transfer coding, which neither HTTP/1.0 nor HTTP/2 knows".to_owned();
        Self { details, ..Self::unasked_switch() }
    }

    /// A client of HTTP/2 asks for a protocol that is none of ours to pass on (RFC 9220 section 3).
    pub fn unknown_protocol() -> Self {
        Self {
            status: StatusCode::NOT_IMPLEMENTED,
            ..Self::bad_request("of the protocols that :protocol can name, WebSocket alone is passed on")
        }
    }

    /// A request for a WebSocket is answered with a page, by the origin or by a route. In HTTP/2 its status would say that it is
    /// agreed to (RFC 8441 section 5).
    pub fn no_web_socket(answered: StatusCode, by_origin: bool) -> Self {
        let details = format!("a request for a WebSocket was answered with {} rather than 101", answered.as_u16());
        if by_origin {
            return Self { details, ..Self::unasked_switch() };
        }
        Self { status: StatusCode::NOT_IMPLEMENTED, ..Self::bad_request(&details) }
    }

    /// The route's time is over.
    pub fn timeout(limit: Duration) -> Self {
        Self {
            status: StatusCode::GATEWAY_TIMEOUT,
            kind: token_ref("http_response_timeout"),
            alert: None,
            details: format!("no response within the {limit:?} that the VirtualService gives it"),
            outcome: Outcome::Failed,
            cause: Some(Cause::ResponseTimeout),
        }
    }

    /// A defect of ours.
    pub fn internal() -> Self {
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            kind: token_ref("proxy_internal_error"),
            alert: None,
            details: "a request was to be sent twice; please report this".to_owned(),
            outcome: Outcome::Failed,
            cause: None,
        }
    }

    /// Notes in the record of the request what it comes to.
    pub fn note(self, record: &mut Record) {
        record.respond(self.status, self.outcome);
        record.failed(self.details, self.cause);
    }

    /// The response to what is no request, and has no record.
    pub fn unrecorded(self) -> Response<ResponseBody> {
        self.response().map(ResponseBody::unrecorded)
    }

    /// The response.
    pub fn response(&self) -> Response<Bytes> {
        let text = format!("egress could not forward this request: {}\n", self.details);
        let proxy_status = self.proxy_status();
        let mut head = ResponseHead::from(self.status);
        head.fields.append(&header::CONTENT_TYPE, &HeaderValue::from_static("text/plain; charset=utf-8"));
        head.fields.append(&HeaderName::from_static("proxy-status"), &proxy_status);
        Response { head, body: text.into() }
    }

    fn proxy_status(&self) -> HeaderValue {
        // Strings of structured fields are printable ASCII (RFC 9651 section 3.3.3).
        let details: String = self.details.chars().map(|c| if (' '..='~').contains(&c) { c } else { '?' }).collect();
        let mut item = ItemSerializer::new().bare_item(token_ref("egress")).parameter(key_ref("error"), self.kind);
        if let Some(alert) = self.alert {
            let name = alert_name(alert);
            item = item
                .parameter(key_ref("alert-id"), Integer::from(u8::from(alert)))
                .parameter(key_ref("alert-message"), StringRef::from_str(&name).unwrap_or(string_ref("")));
        }
        let details = StringRef::from_str(&details).unwrap_or(string_ref(""));
        let serialized = item.parameter(key_ref("details"), details).finish();
        HeaderValue::try_from(serialized).unwrap_or(HeaderValue::from_static("egress"))
    }
}

impl From<&UpstreamError> for ProxyError {
    fn from(error: &UpstreamError) -> Self {
        let (cause, alert) = (error.cause(), error.alert());
        // Whatever an alert is about, that it came by one is what is said of it (RFC 9209 section 2.3.21).
        let kind = if alert.is_some() { "tls_alert_received" } else { cause.proxy_error() };
        Self {
            status: cause.status(),
            kind: token_ref(kind),
            alert,
            details: error.to_string(),
            outcome: Outcome::Failed,
            cause: Some(cause),
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
