//! Header fields that concern one connection alone.

use http::{HeaderMap, HeaderName, HeaderValue, Version, header, response};

/// Hop-by-hop whether or not Connection names them (RFC 9110 section 7.6.1). Upgrade goes with them: Java's client
/// offers TLS by it (RFC 2817), which is ours to make. Transfer-Encoding stays: hyper ends and renews the coding, and
/// keeps the field as it was written.
const HOP_BY_HOP: [HeaderName; 5] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::UPGRADE,
];

/// Removes hop-by-hop fields and those that Connection names. What stays keeps its order.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let present = HOP_BY_HOP.iter().any(|name| headers.contains_key(name));
    if !present {
        return;
    }
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        // Framing and routing are not the client's to take away.
        .filter(|name| ![header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING].contains(name))
        .collect();
    let goes = |name: &HeaderName| HOP_BY_HOP.contains(name) || named.contains(name);
    // HeaderMap::remove swaps the last field into the gap.
    let kept = std::mem::replace(headers, HeaderMap::with_capacity(headers.len()));
    let mut last = None;
    for (name, value) in kept {
        if let Some(name) = name {
            last = Some(name);
        }
        if let Some(name) = last.as_ref().filter(|name| !goes(name)) {
            headers.append(name.clone(), value);
        }
    }
}

/// Makes the head of a response what the client should see: what the origin sent, less what concerns the connection to it.
pub fn prepare_response(head: &mut response::Parts) {
    // The version is that of the sender of each hop (RFC 9110 section 2.5); hyper adapts it to an HTTP/1.0 client.
    head.version = Version::HTTP_11;
    if head.headers.contains_key(header::TRANSFER_ENCODING) {
        // The coding has the last word on where the body ends (RFC 9112 section 6.3).
        head.headers.remove(header::CONTENT_LENGTH);
    }
    remove_hop_by_hop(&mut head.headers);
}

/// Makes `host` the one Host field, where the fields' order has it.
pub fn replace_host(headers: &mut HeaderMap, host: &HeaderValue) {
    headers.insert(header::HOST, host.clone());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(before: &[(&'static str, &'static str)], after: &[(&str, &str)]) {
        let mut headers = HeaderMap::new();
        for (name, value) in before {
            headers.append(*name, HeaderValue::from_static(value));
        }
        remove_hop_by_hop(&mut headers);
        let found: Vec<_> =
            headers.iter().map(|(name, value)| (name.as_str(), value.to_str().expect("ASCII values"))).collect();
        assert_eq!(found, after);
    }

    #[test]
    fn what_concerns_the_connection_goes_and_the_rest_keeps_its_order() {
        check(
            &[
                ("host", "a"),
                ("connection", "keep-alive, X-Drop"),
                ("x-a", "1"),
                ("x-drop", "2"),
                ("x-b", "3"),
                ("x-c", "4"),
            ],
            &[("host", "a"), ("x-a", "1"), ("x-b", "3"), ("x-c", "4")],
        );
        check(
            &[("host", "a"), ("upgrade", "TLS/1.2"), ("connection", "Upgrade"), ("te", "trailers"), ("accept", "*/*")],
            &[("host", "a"), ("accept", "*/*")],
        );
        check(
            &[("x-a", "1"), ("x-a", "2"), ("keep-alive", "5"), ("x-b", "3")],
            &[("x-a", "1"), ("x-a", "2"), ("x-b", "3")],
        );
    }

    #[test]
    fn connection_cannot_take_host_or_framing_away() {
        check(
            &[("connection", "host, content-length"), ("host", "a"), ("content-length", "0")],
            &[("host", "a"), ("content-length", "0")],
        );
    }
}
