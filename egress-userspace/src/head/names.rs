//! How names of fields are written that come without a case, over HTTP/2 or from us: applications that have never met another
//! spelling look for what HTTP/1.1 servers send.

use bytes::BytesMut;
use http::HeaderName;

/// Writes a name as is usual in HTTP/1.1: with a capital at the beginning of each word, but for those that are registered with
/// another spelling (IANA, Hypertext Transfer Protocol Field Name Registry), or are known by one.
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
        "alpn" => "ALPN",
        "cdn-cache-control" => "CDN-Cache-Control",
        "cdn-loop" => "CDN-Loop",
        "content-id" => "Content-ID",
        "content-md5" => "Content-MD5",
        "dav" => "DAV",
        "dnt" => "DNT",
        "dpop" => "DPoP",
        "dpop-nonce" => "DPoP-Nonce",
        "etag" => "ETag",
        "mime-version" => "MIME-Version",
        "nel" => "NEL",
        "p3p" => "P3P",
        "sec-gpc" => "Sec-GPC",
        "sec-websocket-accept" => "Sec-WebSocket-Accept",
        "sec-websocket-extensions" => "Sec-WebSocket-Extensions",
        "sec-websocket-key" => "Sec-WebSocket-Key",
        "sec-websocket-protocol" => "Sec-WebSocket-Protocol",
        "sec-websocket-version" => "Sec-WebSocket-Version",
        "soapaction" => "SOAPAction",
        "sourcemap" => "SourceMap",
        "te" => "TE",
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
