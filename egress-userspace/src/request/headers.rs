//! Header fields that concern one connection alone.

use http::{HeaderMap, HeaderName, HeaderValue, Version, header, response};

/// Hop-by-hop whether or not Connection names them (RFC 9110 section 7.6.1). Transfer-Encoding stays: `http1` ends and
/// renews the coding, and keeps the field as it was written.
const HOP_BY_HOP: [HeaderName; 5] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::UPGRADE,
];

/// Whether a request asks to switch to a protocol that can be passed on, such as WebSocket.
pub fn asks_to_switch(headers: &HeaderMap) -> bool {
    protocols(headers).is_some()
}

/// Whether a request says that its client takes trailers (RFC 9110 section 10.1.4).
pub fn takes_trailers(headers: &HeaderMap) -> bool {
    tokens(headers, &header::TE).any(|coding| coding.eq_ignore_ascii_case("trailers"))
}

/// Whether the connection can go on after a message of this version (RFC 9112 section 9.3).
pub fn keeps_alive(version: Version, headers: &HeaderMap) -> bool {
    let says = |option: &str| tokens(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case(option));
    if version >= Version::HTTP_11 { !says("close") } else { says("keep-alive") && !says("close") }
}

/// Makes chunks the last of the transfer codings.
pub fn end_in_chunks(headers: &mut HeaderMap) {
    let last = headers.get_all(header::TRANSFER_ENCODING).iter().next_back();
    let coding = last.and_then(|value| value.to_str().ok()).and_then(|value| value.rsplit(',').next());
    if !coding.is_some_and(|coding| coding.trim().eq_ignore_ascii_case("chunked")) {
        headers.append(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// Removes hop-by-hop fields and those that Connection names, except for what it takes to switch protocols. What stays
/// keeps its order.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let present = HOP_BY_HOP.iter().any(|name| headers.contains_key(name));
    if !present {
        return;
    }
    let named: Vec<HeaderName> = tokens(headers, &header::CONNECTION)
        // The usual options name none.
        .filter(|option| headers.contains_key(*option))
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
        // Framing and routing are not the client's to take away.
        .filter(|name| ![header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING].contains(name))
        .collect();
    let goes = |name: &HeaderName| HOP_BY_HOP.contains(name) || named.contains(name);
    let mut protocols = protocols(headers);
    let mut connection = protocols.as_ref().map(|_| HeaderValue::from_static("Upgrade"));
    // HeaderMap::remove swaps the last field into the gap.
    let kept = std::mem::replace(headers, HeaderMap::with_capacity(headers.len()));
    let mut last = None;
    for (name, value) in kept {
        if let Some(name) = name {
            last = Some(name);
        }
        let Some(name) = last.clone() else { continue };
        let value = match &name {
            name if *name == header::CONNECTION => connection.take(),
            name if *name == header::UPGRADE => protocols.take(),
            name => (!goes(name)).then_some(value),
        };
        if let Some(value) = value {
            headers.append(name, value);
        }
    }
}

/// The protocols of an Upgrade field that Connection names, less those that are not the other end's business: TLS, which
/// Java's client offers (RFC 2817), is ours to make, and HTTP/2 is agreed on by ALPN.
fn protocols(headers: &HeaderMap) -> Option<HeaderValue> {
    if !tokens(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade")) {
        return None;
    }
    let ours = |protocol: &str| {
        let protocol = protocol.to_ascii_lowercase();
        protocol.starts_with("tls/") || protocol == "h2c" || protocol == "h2" || protocol.starts_with("http/")
    };
    let kept: Vec<&str> = tokens(headers, &header::UPGRADE).filter(|protocol| !ours(protocol)).collect();
    (!kept.is_empty()).then(|| HeaderValue::from_str(&kept.join(", ")).ok())?
}

/// The members of a list field (RFC 9110 section 5.6.1).
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// Makes the head of a response what the client should see: what the origin sent, less what concerns the connection to it.
pub fn prepare_response(head: &mut response::Parts) {
    // The version is that of the sender of each hop (RFC 9110 section 2.5); `http1` adapts it to an HTTP/1.0 client.
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
