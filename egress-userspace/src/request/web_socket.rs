//! WebSocket over HTTP/2 (RFC 8441), of which the other end knows nothing.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderValue, Method, StatusCode, Version, header};

use crate::head::{Names, RequestHead, ResponseHead};

/// What of a handshake HTTP/2 can have, but must not. A length of 0 would be one of what follows, too (RFC 9113 section 8.1.1).
pub const LEFT_OUT: Names = Names::new(&["content-length", "sec-websocket-key"]);

/// Its name.
pub const PROTOCOL: &str = "websocket";
/// Proves that a server has understood the handshake of HTTP/1.1 (RFC 6455 section 1.3).
const PROOF: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The key of a request that asks for a WebSocket and for nothing else (RFC 6455 section 4.1).
pub fn key(head: &RequestHead) -> Option<&[u8]> {
    let upgrade = head.fields.get(&header::UPGRADE)?;
    let asks = head.method == Method::GET && upgrade.eq_ignore_ascii_case(PROTOCOL.as_bytes());
    head.fields.get(&header::SEC_WEBSOCKET_KEY).filter(|_| asks)
}

/// Says in HTTP/1.1 that the origin has agreed, to a client with this key.
pub fn agree(head: &mut ResponseHead, key: &[u8]) {
    head.status = StatusCode::SWITCHING_PROTOCOLS;
    let fields = &mut head.fields;
    fields.remove(&header::CONTENT_LENGTH);
    fields.set(&header::UPGRADE, &HeaderValue::from_static(PROTOCOL));
    fields.set(&header::CONNECTION, &HeaderValue::from_static("Upgrade"));
    if let Ok(accept) = HeaderValue::try_from(accept(key)) {
        fields.set(&header::SEC_WEBSOCKET_ACCEPT, &accept);
    }
}

/// Makes a request that asks for a WebSocket in HTTP/2 ask in HTTP/1.1, with the key that this gives. Its content is the other protocol's.
pub fn ask_in_http1(head: &mut RequestHead) -> Option<HeaderValue> {
    let key = HeaderValue::try_from(BASE64_STANDARD.encode(fastrand::u128(..).to_ne_bytes())).ok()?;
    head.method = Method::GET;
    head.version = Version::HTTP_11;
    head.fields.remove(&header::CONTENT_LENGTH);
    head.fields.set(&header::CONNECTION, &HeaderValue::from_static("Upgrade"));
    head.fields.set(&header::UPGRADE, &HeaderValue::from_static(PROTOCOL));
    head.fields.set(&header::SEC_WEBSOCKET_KEY, &key);
    Some(key)
}

/// Says in HTTP/2 that the origin has agreed. Gives whether it has proved that it understands.
pub fn agree_in_http2(head: &mut ResponseHead, key: &HeaderValue) -> bool {
    head.status = StatusCode::OK;
    head.fields.remove(&header::CONTENT_LENGTH);
    let proves = head.fields.get(&header::SEC_WEBSOCKET_ACCEPT) == Some(accept(key.as_bytes()).as_bytes());
    head.fields.remove(&header::SEC_WEBSOCKET_ACCEPT);
    proves
}

/// What a server answers to a key (RFC 6455 section 4.2.2).
fn accept(key: &[u8]) -> String {
    BASE64_STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, PROOF.as_bytes()].concat()))
}

#[cfg(test)]
mod tests {
    use http::Uri;

    use super::*;
    use crate::head::Fields;

    #[test]
    fn a_key_is_answered_as_its_client_expects() {
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn only_what_asks_for_a_web_socket_alone_has_a_key() {
        let has_key = |method: &str, upgrade: &str| {
            let fields = Fields::of(&[("upgrade", upgrade), ("sec-websocket-key", "x")]);
            let method = method.parse().expect("a method");
            key(&RequestHead::new(method, Uri::default(), Version::HTTP_11, fields)).is_some()
        };
        assert!(has_key("GET", "websocket") && has_key("GET", "WebSocket"));
        assert!(!has_key("POST", "websocket") && !has_key("GET", "websocket, other") && !has_key("GET", "other"));
        assert!(key(&RequestHead::get("/", Fields::of(&[("upgrade", "websocket")]))).is_none());
    }
}
