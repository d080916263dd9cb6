//! Header fields that concern one connection alone.

use http::{HeaderName, HeaderValue, Version, header, uri::Authority};

use crate::head::{self, Fields, ResponseHead};

/// Hop-by-hop whether or not Connection names them (RFC 9110 section 7.6.1). Transfer-Encoding stays: `http1` ends and
/// renews the coding, and keeps the field as it was written.
const HOP_BY_HOP: [&str; 5] = ["connection", "keep-alive", "proxy-connection", "te", "upgrade"];
/// What Connection says that is no name, and names that are not the client's to take away, as framing and routing rest on them.
const NOT_NAMED: [&str; 4] = ["close", "host", "content-length", "transfer-encoding"];

/// Whether a request asks to switch to a protocol that can be passed on, such as WebSocket.
pub fn asks_to_switch(fields: &Fields) -> bool {
    protocols(fields).is_some()
}

/// Whether a request says that its client takes trailers (RFC 9110 section 10.1.4).
pub fn takes_trailers(fields: &Fields) -> bool {
    tokens(fields, &header::TE).any(|coding| coding.eq_ignore_ascii_case("trailers"))
}

/// Whether the connection can go on after a message of this version (RFC 9112 section 9.3).
pub fn keeps_alive(version: Version, fields: &Fields) -> bool {
    let says = |option: &str| tokens(fields, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case(option));
    if version >= Version::HTTP_11 { !says("close") } else { says("keep-alive") && !says("close") }
}

/// Makes chunks the last of the transfer codings.
pub fn end_in_chunks(fields: &mut Fields) {
    let last = fields.get_all(&header::TRANSFER_ENCODING).last();
    let coding = last.and_then(head::ascii).and_then(|value| value.rsplit(',').next());
    if !coding.is_some_and(|coding| coding.trim().eq_ignore_ascii_case("chunked")) {
        fields.append(&header::TRANSFER_ENCODING, &HeaderValue::from_static("chunked"));
    }
}

/// Removes hop-by-hop fields and those that Connection names, except for what it takes to switch protocols.
pub fn remove_hop_by_hop(fields: &mut Fields) {
    let is_one_of = |names: &[&str], name: &[u8]| names.iter().any(|one| name.eq_ignore_ascii_case(one.as_bytes()));
    let mut named: Vec<Vec<u8>> = tokens(fields, &header::CONNECTION)
        .map(str::as_bytes)
        .filter(|option| !is_one_of(&HOP_BY_HOP, option) && !is_one_of(&NOT_NAMED, option))
        .map(<[u8]>::to_ascii_lowercase)
        .collect();
    named.sort_unstable();
    let protocols = protocols(fields);
    let switches = protocols.is_some();
    fields.retain(|name, _| {
        let stays = switches && is_one_of(&["connection", "upgrade"], name);
        (stays || !is_one_of(&HOP_BY_HOP, name))
            && (named.is_empty() || named.binary_search(&name.to_ascii_lowercase()).is_err())
    });
    if let Some(protocols) = protocols {
        fields.set(&header::CONNECTION, &HeaderValue::from_static("Upgrade"));
        fields.set(&header::UPGRADE, &protocols);
    }
}

/// The protocols of an Upgrade field that Connection names, less those that are not the other end's business: TLS, which
/// Java's client offers (RFC 2817), is ours to make, and HTTP/2 is agreed on by ALPN.
fn protocols(fields: &Fields) -> Option<HeaderValue> {
    if !tokens(fields, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade")) {
        return None;
    }
    let ours = |protocol: &str| {
        let protocol = protocol.to_ascii_lowercase();
        protocol.starts_with("tls/") || protocol == "h2c" || protocol == "h2" || protocol.starts_with("http/")
    };
    let kept: Vec<&str> = tokens(fields, &header::UPGRADE).filter(|protocol| !ours(protocol)).collect();
    (!kept.is_empty()).then(|| HeaderValue::from_str(&kept.join(", ")).ok())?
}

/// The members of a list field (RFC 9110 section 5.6.1).
fn tokens<'a>(fields: &'a Fields, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = fields.get_all(name).filter_map(head::ascii);
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// Makes the head of a response what the client should see: what the origin sent, less what concerns the connection to it.
pub fn prepare_response(head: &mut ResponseHead) {
    // The version is that of the sender of each hop (RFC 9110 section 2.5); `http1` adapts it to an HTTP/1.0 client.
    head.version = Version::HTTP_11;
    if head.fields.contains(&header::TRANSFER_ENCODING) {
        // The coding has the last word on where the body ends (RFC 9112 section 6.3).
        head.fields.remove(&header::CONTENT_LENGTH);
    }
    remove_hop_by_hop(&mut head.fields);
}

/// Makes `host` the one Host field, where the fields' order has it.
pub fn replace_host(fields: &mut Fields, host: &Authority) {
    // An authority is a value of a field.
    if let Ok(value) = HeaderValue::from_str(host.as_str()) {
        fields.set(&header::HOST, &value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(before: &[(&str, &str)], after: &[(&str, &str)]) {
        let mut fields = Fields::of(before);
        remove_hop_by_hop(&mut fields);
        assert_eq!(fields.listed(), after);
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
