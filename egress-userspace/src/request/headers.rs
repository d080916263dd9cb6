//! Header fields that concern one connection alone.

use http::{HeaderName, HeaderValue, Version, header, uri::Authority};

use crate::head::{Fields, Names, ResponseHead};

/// Hop-by-hop whether or not Connection names them (RFC 9110 section 7.6.1). Transfer-Encoding stays: `http1` ends and
/// renews the coding, and keeps the field as it was written.
const HOP_BY_HOP: Names = Names::new(&["connection", "keep-alive", "proxy-connection", "te", "upgrade"]);
/// Those of them that it does not take to switch protocols.
const NOT_OF_SWITCH: Names = Names::new(&["keep-alive", "proxy-connection", "te"]);
/// What Connection says that is no name, as no field may have it (RFC 9112 section 12.1), and names that are not the client's to
/// take away, as framing and routing rest on them.
const NOT_NAMED: Names = Names::new(&["close", "host", "content-length", "transfer-encoding", "expect"]);

/// Whether a request asks to switch to a protocol that can be passed on, such as WebSocket.
pub fn asks_to_switch(fields: &Fields) -> bool {
    protocols(fields).is_some()
}

/// Whether a request has credentials by which many servers take all that follows on the connection for authenticated: those of
/// NTLM, and of Negotiate (RFC 4559 section 6).
pub fn authenticates_connection(fields: &Fields) -> bool {
    let schemes = fields.get_all(&header::AUTHORIZATION).filter_map(|value| value.split(|byte| *byte == b' ').next());
    let mut schemes = schemes.map(<[u8]>::to_ascii_lowercase);
    schemes.any(|scheme| [&b"ntlm"[..], b"negotiate"].contains(&&scheme[..]))
}

/// Whether a request of this version says that its client takes trailers (RFC 9110 section 10.1.4), which HTTP/1.0 has not.
pub fn takes_trailers(version: Version, fields: &Fields) -> bool {
    version > Version::HTTP_10 && says(fields, &header::TE, "trailers")
}

/// Whether the connection can go on after a message of this version (RFC 9112 section 9.3).
pub fn keeps_alive(version: Version, fields: &Fields) -> bool {
    let connection_says = |option| says(fields, &header::CONNECTION, option);
    !connection_says("close") && (version >= Version::HTTP_11 || connection_says("keep-alive"))
}

/// Removes hop-by-hop fields and those that Connection names, except for what it takes to switch protocols.
pub fn remove_hop_by_hop(fields: &mut Fields) {
    if !fields.may_have_any(&HOP_BY_HOP) {
        return;
    }
    let mut named = Vec::new();
    for value in fields.get_all(&header::CONNECTION) {
        named.extend(members(value).filter(|option| !HOP_BY_HOP.has(option) && !NOT_NAMED.has(option)));
    }
    let order =
        |one: &[u8], other: &[u8]| one.iter().map(u8::to_ascii_lowercase).cmp(other.iter().map(u8::to_ascii_lowercase));
    named.sort_unstable_by(|one, other| order(one, other));
    if !named.is_empty() {
        let stays = |name: &[u8]| named.binary_search_by(|one| order(one, name)).is_err();
        let stay: Vec<bool> = fields.iter().map(|(name, _)| stays(name)).collect();
        let mut stay = stay.into_iter();
        fields.retain(|_, _| stay.next().unwrap_or_default());
    }
    let protocols = protocols(fields);
    fields.remove_any(if protocols.is_some() { &NOT_OF_SWITCH } else { &HOP_BY_HOP });
    if let Some(protocols) = protocols {
        fields.set(&header::CONNECTION, &HeaderValue::from_static("Upgrade"));
        fields.set(&header::UPGRADE, &protocols);
    }
}

/// The protocols of an Upgrade field that Connection names, less those that are not the other end's business: TLS, which
/// Java's client offers (RFC 2817), is ours to make, and HTTP/2 is agreed on by ALPN.
fn protocols(fields: &Fields) -> Option<HeaderValue> {
    if !fields.contains(&header::UPGRADE) || !says(fields, &header::CONNECTION, "upgrade") {
        return None;
    }
    let ours = |protocol: &[u8]| {
        let protocol = protocol.to_ascii_lowercase();
        protocol.starts_with(b"tls/") || protocol == b"h2c" || protocol == b"h2" || protocol.starts_with(b"http/")
    };
    let all = fields.get_all(&header::UPGRADE).flat_map(members);
    let kept: Vec<&[u8]> = all.filter(|protocol| !ours(protocol)).collect();
    (!kept.is_empty()).then(|| HeaderValue::from_bytes(&kept.join(&b", "[..])).ok())?
}

/// Whether a list field has this member.
fn says(fields: &Fields, name: &HeaderName, member: &str) -> bool {
    fields.get_all(name).any(|value| members(value).any(|other| other.eq_ignore_ascii_case(member.as_bytes())))
}

/// The members of a list (RFC 9110 section 5.6.1).
fn members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
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

/// The same for one before the final response, which has no content.
pub fn prepare_interim(head: &mut ResponseHead) {
    head.fields.remove(&header::TRANSFER_ENCODING);
    head.fields.remove(&header::CONTENT_LENGTH);
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
