//! How names of fields are written that come without a case, over HTTP/2 or from us: applications that have never met another
//! spelling look for what HTTP/1.1 servers send.

use bytes::BytesMut;
use http::HeaderName;

/// Writes a name as is usual in HTTP/1.1: with a capital at the beginning of each word, but for those that are known by
/// another spelling, above all as registered (IANA, Hypertext Transfer Protocol Field Name Registry).
pub fn put(name: &HeaderName, out: &mut BytesMut) {
    let name = name.as_str();
    if let Some(spelling) = of_its_own(name) {
        return out.extend_from_slice(spelling.as_bytes());
    }
    let start = out.len();
    out.extend_from_slice(name.as_bytes());
    let mut begins = true;
    for byte in &mut out[start..] {
        if begins {
            byte.make_ascii_uppercase();
        }
        begins = *byte == b'-';
    }
}

fn of_its_own(name: &str) -> Option<&'static str> {
    Some(match name {
        "a-im" => "A-IM",
        "accept-ch" => "Accept-CH",
        "alpn" => "ALPN",
        "cdn-cache-control" => "CDN-Cache-Control",
        "cdn-loop" => "CDN-Loop",
        "content-id" => "Content-ID",
        "content-md5" => "Content-MD5",
        "critical-ch" => "Critical-CH",
        "dasl" => "DASL",
        "dav" => "DAV",
        "dnt" => "DNT",
        "dpop" => "DPoP",
        "dpop-nonce" => "DPoP-Nonce",
        "ediint-features" => "EDIINT-Features",
        "etag" => "ETag",
        "http2-settings" => "HTTP2-Settings",
        "im" => "IM",
        "mime-version" => "MIME-Version",
        "nel" => "NEL",
        "odata-entityid" => "OData-EntityId",
        "odata-isolation" => "OData-Isolation",
        "odata-maxversion" => "OData-MaxVersion",
        "odata-version" => "OData-Version",
        "p3p" => "P3P",
        "sec-gpc" => "Sec-GPC",
        "sec-websocket-accept" => "Sec-WebSocket-Accept",
        "sec-websocket-extensions" => "Sec-WebSocket-Extensions",
        "sec-websocket-key" => "Sec-WebSocket-Key",
        "sec-websocket-protocol" => "Sec-WebSocket-Protocol",
        "sec-websocket-version" => "Sec-WebSocket-Version",
        "slug" => "SLUG",
        "soapaction" => "SOAPAction",
        "sourcemap" => "SourceMap",
        "te" => "TE",
        "ttl" => "TTL",
        "www-authenticate" => "WWW-Authenticate",
        "x-ua-compatible" => "X-UA-Compatible",
        "x-xss-protection" => "X-XSS-Protection",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_as_is_usual() {
        for written in [
            "Content-Type",
            "ETag",
            "X-A",
            "Www",
            "WWW-Authenticate",
            "X-Request-Id",
            "Sec-WebSocket-Accept",
            "X--Y",
            "Te_x",
        ] {
            let mut out = BytesMut::new();
            put(&HeaderName::from_bytes(written.as_bytes()).expect("a name"), &mut out);
            assert_eq!(out, written.as_bytes());
        }
    }
}
