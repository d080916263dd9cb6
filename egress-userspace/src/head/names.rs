//! How names of fields are written that come without a case, over HTTP/2 or from us: applications that have never met another
//! spelling look for what HTTP/1.1 servers send.

use bytes::BytesMut;

/// Writes a name, which is in lower case, as is usual in HTTP/1.1: with a capital at the beginning of each word, but for those that are known by
/// another spelling, above all as registered (IANA, Hypertext Transfer Protocol Field Name Registry).
pub fn put(name: &[u8], out: &mut BytesMut) {
    if let Some(spelling) = of_its_own(name) {
        return out.extend_from_slice(spelling.as_bytes());
    }
    let start = out.len();
    out.extend_from_slice(name);
    let mut begins = true;
    for byte in &mut out[start..] {
        if begins {
            byte.make_ascii_uppercase();
        }
        begins = *byte == b'-';
    }
}

fn of_its_own(name: &[u8]) -> Option<&'static str> {
    Some(match name {
        b"a-im" => "A-IM",
        b"accept-ch" => "Accept-CH",
        b"alpn" => "ALPN",
        b"cdn-cache-control" => "CDN-Cache-Control",
        b"cdn-loop" => "CDN-Loop",
        b"content-id" => "Content-ID",
        b"content-md5" => "Content-MD5",
        b"critical-ch" => "Critical-CH",
        b"dasl" => "DASL",
        b"dav" => "DAV",
        b"dnt" => "DNT",
        b"dpop" => "DPoP",
        b"dpop-nonce" => "DPoP-Nonce",
        b"ediint-features" => "EDIINT-Features",
        b"etag" => "ETag",
        b"http2-settings" => "HTTP2-Settings",
        b"im" => "IM",
        b"mime-version" => "MIME-Version",
        b"nel" => "NEL",
        b"odata-entityid" => "OData-EntityId",
        b"odata-isolation" => "OData-Isolation",
        b"odata-maxversion" => "OData-MaxVersion",
        b"odata-version" => "OData-Version",
        b"p3p" => "P3P",
        b"sec-gpc" => "Sec-GPC",
        b"sec-websocket-accept" => "Sec-WebSocket-Accept",
        b"sec-websocket-extensions" => "Sec-WebSocket-Extensions",
        b"sec-websocket-key" => "Sec-WebSocket-Key",
        b"sec-websocket-protocol" => "Sec-WebSocket-Protocol",
        b"sec-websocket-version" => "Sec-WebSocket-Version",
        b"slug" => "SLUG",
        b"soapaction" => "SOAPAction",
        b"sourcemap" => "SourceMap",
        b"te" => "TE",
        b"ttl" => "TTL",
        b"www-authenticate" => "WWW-Authenticate",
        b"x-ua-compatible" => "X-UA-Compatible",
        b"x-xss-protection" => "X-XSS-Protection",
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
            put(written.to_ascii_lowercase().as_bytes(), &mut out);
            assert_eq!(out, written.as_bytes());
        }
    }
}
