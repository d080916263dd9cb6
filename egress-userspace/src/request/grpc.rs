//! Responses of our own to gRPC, whose clients look for a status of their own and do not read texts.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, Version, header};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::head::{RequestHead, Response};

/// What `grpc-message` encodes (gRPC over HTTP/2, Responses).
const ENCODED: &AsciiSet = &CONTROLS.add(b'%');

const STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Whether a request is a call of gRPC.
pub(super) fn asks(request: &RequestHead) -> bool {
    // That of gRPC-Web begins in the same way.
    let is_grpc = |kind: &[u8]| {
        kind.strip_prefix(b"application/grpc")
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
    };
    request.version == Version::HTTP_2 && request.fields.get(&header::CONTENT_TYPE).is_some_and(is_grpc)
}

/// Says to a client of gRPC what a response says, unless that has a status of gRPC already: in fields alone ("Trailers-Only").
/// Redirects mean nothing to it either.
pub(super) fn told(response: Response<Bytes>) -> Response<Bytes> {
    if response.head.fields.contains(&STATUS) {
        return response;
    }
    let Response { mut head, body } = response;
    let text = String::from_utf8_lossy(&body);
    let message = utf8_percent_encode(text.trim_end(), ENCODED).to_string();
    let fields = &mut head.fields;
    fields.remove(&header::CONTENT_LENGTH);
    fields.set(&header::CONTENT_TYPE, &HeaderValue::from_static("application/grpc"));
    fields.set(&STATUS, &code(head.status).into());
    if let Ok(message) = HeaderValue::try_from(message) {
        fields.set(&HeaderName::from_static("grpc-message"), &message);
    }
    head.status = StatusCode::OK;
    Response { head, body: Bytes::new() }
}

/// The status of gRPC for one of HTTP ("HTTP to gRPC Status Code Mapping" of the gRPC documentation).
fn code(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::Fields;

    #[test]
    fn only_grpc_itself_is_told_so() {
        let asks_by = |kind: &'static str| {
            let mut fields = Fields::default();
            fields.append(&header::CONTENT_TYPE, &HeaderValue::from_static(kind));
            let mut head = RequestHead::get("/", fields);
            head.version = Version::HTTP_2;
            asks(&head)
        };
        assert!(["application/grpc", "application/grpc+proto", "application/grpc; a=b"].into_iter().all(asks_by));
        assert!(!["application/grpc-web", "application/grpc-web-text", "application/json"].into_iter().any(asks_by));
    }

    #[test]
    fn a_status_and_a_message_say_what_a_response_says() {
        let body = Bytes::from("100 % gone: \u{e9}\n");
        let told = told(Response { head: StatusCode::BAD_GATEWAY.into(), body });
        assert_eq!(told.head.status, StatusCode::OK);
        let field = |name| told.head.fields.text(&HeaderName::from_static(name));
        assert_eq!(field("grpc-status"), Some("14"));
        assert_eq!(field("grpc-message"), Some("100 %25 gone: %C3%A9"));
        assert!(told.body.is_empty());
    }
}
