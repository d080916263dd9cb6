//! Heads of HTTP/1: they are found at the same place however they come, what is written again is read as the same, and what is
//! read from their fields holds together.

#![no_main]

use std::iter;

use bytes::{Bytes, BytesMut};
use egress::{
    http1::{self, Fault, Framing, Head, Limits, Verbatim},
    request::{
        headers::{keeps_alive, remove_hop_by_hop},
        host::RequestHost,
        rewrite::{drop_secure, lead_back},
    },
};
use egress_fuzz::pieces;
use http::{HeaderMap, HeaderValue, Version, header, request, response};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits { head: 2048, fields: 100 };
/// For what was written by us, which is longer.
const AMPLE: Limits = Limits { head: 16 * LIMITS.head, ..LIMITS };

fuzz_target!(|bytes: &[u8]| {
    let taken = take(iter::once(bytes), LIMITS.head);
    let in_pieces = take(pieces(bytes), LIMITS.head);
    assert_eq!(taken.as_ref().map(|(head, _)| head), in_pieces.as_ref().map(|(head, _)| head));
    let Ok((Some(head), _)) = taken else { return };
    if let Ok(parts) = http1::request(&head, &LIMITS) {
        check_request(parts);
    }
    if let Ok(parts) = http1::response(&head, &LIMITS) {
        check_response(&parts, false);
        check_response(&parts, true);
    }
});

/// The head, if it comes to its end, and how many bytes are left of the piece in which it does.
fn take<'a>(pieces: impl Iterator<Item = &'a [u8]>, limit: usize) -> Result<(Option<Bytes>, usize), Fault> {
    let (mut head, mut input) = (Head::default(), BytesMut::new());
    for piece in pieces {
        input.extend_from_slice(piece);
        if let Some(head) = head.take(&mut input, limit)? {
            return Ok((Some(head), input.len()));
        }
    }
    Ok((None, input.len()))
}

/// What was written is one head and nothing else.
fn whole(written: &BytesMut) -> Bytes {
    match take(iter::once(&written[..]), AMPLE.head) {
        Ok((Some(head), 0)) => head,
        other => panic!("{written:?} is read as {other:?}"),
    }
}

fn check_request(mut parts: request::Parts) {
    check_lines(&parts.headers, parts.extensions.get());
    let host = RequestHost::of(&parts);
    if let Ok(host) = host {
        check_host(&host);
    }
    let Ok(framing) = http1::of_request(&mut parts) else { return };
    check_framing(&parts.headers, framing);
    assert!(framing != Framing::Close, "nobody closes a connection to end a request");
    for _ in 0..2 {
        let mut written = BytesMut::new();
        http1::request_head(&parts, &[], &mut written);
        let mut again = http1::request(&whole(&written), &AMPLE).expect("what we write can be read");
        assert_eq!(again.method, parts.method);
        assert_eq!(again.uri, parts.uri);
        assert_eq!(again.headers, parts.headers);
        assert_eq!(http1::of_request(&mut again), Ok(framing));
        let mut same = BytesMut::new();
        http1::request_head(&again, &[], &mut same);
        assert_eq!(same, written);
        // Once more without what concerns the connection alone.
        check_hop_by_hop(&mut parts.headers);
    }
}

fn check_response(parts: &response::Parts, is_head: bool) {
    check_lines(&parts.headers, parts.extensions.get());
    let mut parts = parts.clone();
    let Ok(framing) = http1::of_response(&mut parts, is_head) else { return };
    if is_head || http1::is_bare(parts.status) {
        assert_eq!(framing, Framing::Length(0));
    } else {
        check_framing(&parts.headers, framing);
    }
    for _ in 0..2 {
        let mut written = BytesMut::new();
        http1::response_head(&parts, Version::HTTP_11, &[], &mut written);
        let mut again = http1::response(&whole(&written), &AMPLE).expect("what we write can be read");
        assert_eq!(again.status, parts.status);
        assert_eq!(again.headers, parts.headers);
        let reason = |parts: &response::Parts| parts.extensions.get::<Verbatim>().map(|it| it.reason().to_vec());
        assert_eq!(reason(&again), reason(&parts));
        assert_eq!(http1::of_response(&mut again, is_head), Ok(framing));
        let mut same = BytesMut::new();
        http1::response_head(&again, Version::HTTP_11, &[], &mut same);
        assert_eq!(same, written);
        check_hop_by_hop(&mut parts.headers);
        check_rewritten(&mut parts.headers);
    }
}

/// How the fields were written is what they say.
fn check_lines(fields: &HeaderMap, written: Option<&Verbatim>) {
    let written = written.expect("heads that are read come with their bytes");
    assert_eq!(written.lines().count(), fields.len());
    for (line, name) in written.lines() {
        assert!(!line.iter().any(|byte| b"\r\n".contains(byte)), "{line:?} is one line");
        let value = line.strip_prefix(name).and_then(|rest| rest.strip_prefix(b":")).expect("a colon after the name");
        let values = fields.get_all(header::HeaderName::from_bytes(name).expect("a name"));
        assert!(values.iter().any(|known| known.as_bytes() == value.trim_ascii()), "{line:?} is in the map");
    }
}

/// Nobody can see another end of the content.
fn check_framing(fields: &HeaderMap, framing: Framing) {
    let (length, coding) = (fields.get_all(header::CONTENT_LENGTH), fields.get_all(header::TRANSFER_ENCODING));
    assert!(length.iter().next().is_none() || coding.iter().next().is_none(), "both say where the content ends");
    match framing {
        Framing::Chunked => {
            // Lists may have empty members (RFC 9110 section 5.6.1).
            let codings = coding.iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
            let last = codings.map(<[u8]>::trim_ascii).rfind(|coding| !coding.is_empty());
            assert!(last.is_some_and(|last| last.eq_ignore_ascii_case(b"chunked")));
        }
        Framing::Length(0) => {}
        Framing::Length(announced) => {
            let values: Vec<_> = length.iter().collect();
            assert_eq!(values.len(), 1);
            assert_eq!(values[0].to_str().expect("digits").trim().parse(), Ok(announced));
            assert_eq!(http1::announced(fields), Some(announced));
        }
        Framing::Close => assert!(length.iter().next().is_none()),
    }
}

fn check_host(host: &RequestHost) {
    let name = host.as_str();
    assert!(!name.is_empty() && !name.ends_with('.') && !name.contains(['@', '/', '?', '#']), "{name:?}");
    assert_eq!(name, name.to_ascii_lowercase());
    let value = HeaderValue::from_str(name).expect("a host is text");
    assert_eq!(RequestHost::parse(&value).as_ref().map(RequestHost::as_str), Some(name));
}

fn check_hop_by_hop(fields: &mut HeaderMap) {
    let _ = keeps_alive(Version::HTTP_11, fields);
    remove_hop_by_hop(fields);
    let once = fields.clone();
    remove_hop_by_hop(fields);
    assert_eq!(*fields, once);
    for name in [header::TE, header::HeaderName::from_static("keep-alive")] {
        assert!(!fields.contains_key(name));
    }
    assert_eq!(fields.contains_key(header::CONNECTION), fields.contains_key(header::UPGRADE));
}

/// What is led back to us has another scheme, and cookies reach clients that speak HTTP in clear.
fn check_rewritten(fields: &mut HeaderMap) {
    let before = fields.clone();
    lead_back(fields, |_| false);
    assert_eq!(*fields, before);
    lead_back(fields, |_| true);
    if let (Some(old), Some(new)) = (before.get(header::LOCATION), fields.get(header::LOCATION))
        && old != new
    {
        let (old, new) = (old.to_str().expect("a URI"), new.to_str().expect("a URI"));
        assert!(old.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://")), "{old:?}");
        assert!(new.starts_with("http://"), "{new:?}");
    }
    drop_secure(fields);
    let once = fields.clone();
    drop_secure(fields);
    assert_eq!(*fields, once);
}
