//! Heads of HTTP/1: they are found at the same place however they come, what is written again is read as the same, and what is
//! read from their fields holds together.

#![no_main]

use std::iter;

use bytes::{Bytes, BytesMut};
use egress::{
    head::{Fields, RequestHead, ResponseHead, ascii},
    http1::{self, Fault, Framing, Head, Limits},
    request::{
        headers::{keeps_alive, remove_hop_by_hop},
        host::RequestHost,
        rewrite::{drop_secure, lead_back},
    },
};
use egress_fuzz::pieces;
use http::{HeaderName, Version, header};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits { head: 2048, fields: 100 };
/// For what was written by us, which is longer.
const AMPLE: Limits = Limits { head: 16 * LIMITS.head, ..LIMITS };

fuzz_target!(|bytes: &[u8]| {
    let taken = take(iter::once(bytes), LIMITS.head);
    let in_pieces = take(pieces(bytes), LIMITS.head);
    assert_eq!(taken.as_ref().map(|(head, _)| head), in_pieces.as_ref().map(|(head, _)| head));
    let Ok((Some(head), _)) = taken else { return };
    if let Ok(head) = http1::request(&head, &LIMITS) {
        check_request(head);
    }
    if let Ok(head) = http1::response(&head, &LIMITS) {
        check_response(head.clone(), false);
        check_response(head, true);
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

fn listed(fields: &Fields) -> Vec<(&[u8], &[u8])> {
    fields.iter().collect()
}

fn check_request(mut head: RequestHead) {
    check_lines(&head.fields);
    let host = RequestHost::of(&head);
    if let Ok(host) = host {
        check_host(&host);
    }
    let Ok(framing) = http1::of_request(head.version, &mut head.fields) else { return };
    check_framing(&head.fields, framing);
    assert!(framing != Framing::Close, "nobody closes a connection to end a request");
    for _ in 0..2 {
        let mut written = BytesMut::new();
        http1::request_head(&head, &[], &mut written);
        let mut again = http1::request(&whole(&written), &AMPLE).expect("what we write can be read");
        assert_eq!(again.method, head.method);
        assert_eq!(again.uri(), head.uri());
        assert_eq!(listed(&again.fields), listed(&head.fields));
        assert_eq!(http1::of_request(again.version, &mut again.fields), Ok(framing));
        let mut same = BytesMut::new();
        http1::request_head(&again, &[], &mut same);
        assert_eq!(same, written);
        // Once more without what concerns the connection alone.
        check_hop_by_hop(&mut head.fields);
    }
}

fn check_response(mut head: ResponseHead, is_head: bool) {
    check_lines(&head.fields);
    let Ok(framing) = http1::of_response(head.status, &mut head.fields, is_head) else { return };
    if is_head || http1::is_bare(head.status) {
        assert_eq!(framing, Framing::Length(0));
    } else {
        check_framing(&head.fields, framing);
    }
    for _ in 0..2 {
        let mut written = BytesMut::new();
        http1::response_head(&head, Version::HTTP_11, &[], &mut written);
        let mut again = http1::response(&whole(&written), &AMPLE).expect("what we write can be read");
        assert_eq!(again.status, head.status);
        assert_eq!(again.reason, head.reason);
        assert_eq!(listed(&again.fields), listed(&head.fields));
        assert_eq!(http1::of_response(again.status, &mut again.fields, is_head), Ok(framing));
        let mut same = BytesMut::new();
        http1::response_head(&again, Version::HTTP_11, &[], &mut same);
        assert_eq!(same, written);
        check_hop_by_hop(&mut head.fields);
        check_rewritten(&mut head.fields);
    }
}

/// How the fields were written is what they say, by names that HTTP/2 can say as well.
fn check_lines(fields: &Fields) {
    assert_eq!(fields.lines().count(), fields.iter().count());
    for (line, (name, value)) in fields.lines().zip(fields.iter()) {
        assert!(!line.iter().any(|byte| b"\r\n".contains(byte)), "{line:?} is one line");
        let written = line.strip_prefix(name).and_then(|rest| rest.strip_prefix(b":")).expect("a colon after the name");
        assert_eq!(written.trim_ascii(), value);
        let same = fields.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        let name = HeaderName::from_bytes(name).expect("a name");
        assert!(fields.get_all(&name).eq(same), "{line:?}");
    }
}

/// Nobody can see another end of the content.
fn check_framing(fields: &Fields, framing: Framing) {
    let length: Vec<_> = fields.get_all(&header::CONTENT_LENGTH).collect();
    let coding: Vec<_> = fields.get_all(&header::TRANSFER_ENCODING).collect();
    assert!(length.is_empty() || coding.is_empty(), "both say where the content ends");
    match framing {
        Framing::Chunked => {
            // Lists may have empty members (RFC 9110 section 5.6.1).
            let codings = coding.iter().flat_map(|value| value.split(|byte| *byte == b','));
            let last = codings.map(<[u8]>::trim_ascii).rfind(|coding| !coding.is_empty());
            assert!(last.is_some_and(|last| last.eq_ignore_ascii_case(b"chunked")));
        }
        Framing::Length(0) => {}
        Framing::Length(announced) => {
            assert_eq!(length.len(), 1);
            assert_eq!(ascii(length[0]).expect("digits").trim().parse(), Ok(announced));
            assert_eq!(http1::announced(fields), Some(announced));
        }
        Framing::Close => assert!(length.is_empty()),
    }
}

fn check_host(host: &RequestHost) {
    let name = host.as_str();
    assert!(!name.is_empty() && !name.ends_with('.') && !name.contains(['@', '/', '?', '#']), "{name:?}");
    assert_eq!(name, name.to_ascii_lowercase());
    assert_eq!(RequestHost::parse(name.as_bytes()).as_ref().map(RequestHost::as_str), Some(name));
}

fn check_hop_by_hop(fields: &mut Fields) {
    let _ = keeps_alive(Version::HTTP_11, fields);
    remove_hop_by_hop(fields);
    let once = fields.clone();
    remove_hop_by_hop(fields);
    assert_eq!(listed(fields), listed(&once));
    for name in [header::TE, HeaderName::from_static("keep-alive")] {
        assert!(!fields.contains(&name));
    }
    assert_eq!(fields.contains(&header::CONNECTION), fields.contains(&header::UPGRADE));
}

/// What is led back to us has another scheme, and cookies reach clients that speak HTTP in clear.
fn check_rewritten(fields: &mut Fields) {
    let before = fields.clone();
    lead_back(fields, |_| false);
    assert_eq!(listed(fields), listed(&before));
    lead_back(fields, |_| true);
    if let (Some(old), Some(new)) = (before.get(&header::LOCATION), fields.get(&header::LOCATION))
        && old != new
    {
        // Beyond its authority it can be in any encoding.
        assert!(old.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"https://")), "{old:?}");
        assert!(new.starts_with(b"http://"), "{new:?}");
    }
    drop_secure(fields);
    let once = fields.clone();
    drop_secure(fields);
    assert_eq!(listed(fields), listed(&once));
}
