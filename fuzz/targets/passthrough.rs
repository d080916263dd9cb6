//! Requests in bytes that are passed on: they are found where the parsers find them that serve configured hosts, so that no
//! byte of a request for a configured host goes on, and none of another's is held back.

#![no_main]

use std::iter;

use bytes::BytesMut;
use egress::{
    http1::{Decoder, Head, Limits, Progress, of_request, request},
    passthrough::requests::{Next, Requests},
    request::host::RequestHost,
};
use egress_fuzz::pieces;
use http::header;
use libfuzzer_sys::fuzz_target;

/// The configured host.
const OURS: &str = "cnn.com";
const LIMITS: Limits = Limits { head: 64 * 1024, fields: 100 };
/// What begins with a longer word is not taken for a request.
const MAX_METHOD: usize = 32;

fuzz_target!(|bytes: &[u8]| {
    let whole = follow(iter::once(bytes));
    assert_eq!(follow(pieces(bytes)), whole);
    let (sent, end) = whole;
    check_requests(bytes, sent, &end);
    if end == Next::Undecided {
        check_end(bytes, sent);
    }
});

/// How many bytes go on, and what keeps the rest back.
fn follow<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (usize, Next) {
    let mut requests =
        Requests::new(|host: &str, port: Option<u16>| host == OURS && port.is_none_or(|port| port == 80));
    let (mut come, mut sent) = (Vec::new(), 0);
    let mut pieces = pieces.peekable();
    loop {
        match requests.next(&come[sent..]) {
            Next::Forward(count) => {
                assert!((1..=come.len() - sent).contains(&count), "what goes on has come, and it is something");
                sent += count;
            }
            Next::Undecided if pieces.peek().is_some() => come.extend(pieces.next().into_iter().flatten()),
            end => return (sent, end),
        }
    }
}

/// Goes through the requests as they would be served, for as long as they are well-formed.
fn check_requests(bytes: &[u8], sent: usize, end: &Next) {
    let mut input = BytesMut::from(bytes);
    while let Ok(Some(text)) = Head::default().take(&mut input, LIMITS.head) {
        let (start, after) = (bytes.len() - input.len() - text.len(), bytes.len() - input.len());
        let Ok(mut head) = request(&text, &LIMITS) else { return };
        let Ok(framing) = of_request(head.version, &mut head.fields) else { return };
        if head.method.as_str().len() > MAX_METHOD {
            return;
        }
        let could_be_ours = head.fields.get_all(&header::HOST).any(|host| {
            let host = RequestHost::parse(host);
            host.is_none_or(|host| host.as_str() == OURS)
        });
        // A tunnel can lead to another port, and whoever may go on in HTTP/2 is served like a configured host.
        let (is_tunnel, may_switch) =
            (head.method == "CONNECT", head.fields.get_all(&header::UPGRADE).next().is_some());
        match RequestHost::of(&head) {
            Ok(host) if host.as_str() == OURS && !is_tunnel => {
                assert!(sent <= start, "{} bytes of a request for a configured host go on", sent - start);
                assert!(matches!(end, Next::Configured | Next::Doubtful(_)));
                return;
            }
            Ok(_) if !could_be_ours && !may_switch && !is_tunnel => {
                assert!(sent >= after, "a request for another host is held back: {end:?}");
            }
            _ => {}
        }
        if sent < after {
            return;
        }
        let mut content = Decoder::new(framing);
        loop {
            match content.decode(&mut input) {
                Ok(Progress::Data(_) | Progress::Trailers(_)) => {}
                Ok(Progress::End) => break,
                Ok(Progress::More) | Err(_) => return,
            }
        }
        assert!(sent >= bytes.len() - input.len(), "the content of a request for another host is held back: {end:?}");
    }
}

/// What nobody could decide on goes nowhere at the end if it could have become a request for a configured host.
fn check_end(bytes: &[u8], sent: usize) {
    let completed = [bytes, b"\r\n\r\n"].concat();
    if let (position, Next::Configured) = follow(iter::once(&completed[..])) {
        assert_eq!(position, sent);
        let mut requests = Requests::new(|_: &str, _| false);
        assert!(matches!(requests.end(&bytes[sent..]), Next::Doubtful(_)));
        assert_eq!(requests.next(&[]), Next::Undecided);
    }
}
