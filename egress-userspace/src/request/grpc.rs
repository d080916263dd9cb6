//! Responses of our own to gRPC, whose clients look for a status of their own and do not read texts.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, Version, header, request};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

/// What `grpc-message` encodes (gRPC over HTTP/2, Responses).
const ENCODED: &AsciiSet = &CONTROLS.add(b'%');

/// Whether a request is a call of gRPC.
pub(super) fn asks(request: &request::Parts) -> bool {
    request.version == Version::HTTP_2
        && request
            .headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Says to a client of gRPC what a response says: in fields alone ("Trailers-Only"). Redirects mean nothing to it either.
pub(super) fn told(response: Response<Bytes>) -> Response<Bytes> {
    let (mut head, text) = response.into_parts();
    let text = String::from_utf8_lossy(&text);
    let message = utf8_percent_encode(text.trim_end(), ENCODED).to_string();
    let fields = &mut head.headers;
    fields.remove(header::CONTENT_LENGTH);
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    fields.insert(HeaderName::from_static("grpc-status"), code(head.status).into());
    if let Ok(message) = HeaderValue::try_from(message) {
        fields.insert(HeaderName::from_static("grpc-message"), message);
    }
    head.status = StatusCode::OK;
    Response::from_parts(head, Bytes::new())
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

    #[test]
    fn a_status_and_a_message_say_what_a_response_says() {
        let mut response = Response::new(Bytes::from("100 % gone: \u{e9}\n"));
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        let told = told(response);
        assert_eq!(told.status(), StatusCode::OK);
        assert_eq!(told.headers()["grpc-status"], "14");
        assert_eq!(told.headers()["grpc-message"], "100 %25 gone: %C3%A9");
        assert!(told.body().is_empty());
    }
}
