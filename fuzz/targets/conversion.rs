//! Heads from one version of HTTP to the other: whoever reads what we write finds the same fields, one end of the content, and nothing
//! that nobody wrote. The first byte says what comes: a request (`q`) or a response (`r`) of HTTP/2, whose fields are a line each,
//! `name:value`, with a zero for a line's end, so that values can have any other byte; or one of HTTP/1, as it is (`Q`, `R`).

#![no_main]

use bytes::{Bytes, BytesMut};
use egress::{
    conversation::translate,
    head::{Fields, RequestHead, ResponseHead},
    http1::{self, Framing, Head, Limits},
    http2::{Asked, Role, hpack},
    request::{self, headers, host::RequestHost, web_socket},
    upstream::http1::framing,
};
use egress_fuzz::ends::{End, Ends, asked};
use http::{HeaderName, HeaderValue, Method, StatusCode, Version, header, uri::PathAndQuery};
use libfuzzer_sys::fuzz_target;

/// A block goes in one frame (RFC 9113 section 4.2).
const LONGEST: usize = 8 * 1024;
const LIMITS: Limits = Limits { head: 2 * LONGEST, fields: 100 };
/// For what was written by us, which is longer.
const AMPLE: Limits = Limits { head: 8 * LIMITS.head, fields: 2 * LIMITS.fields };
/// What each end says first: no settings. A client says the preface before (RFC 9113 section 3.4).
const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const ACCEPT: HeaderName = header::SEC_WEBSOCKET_ACCEPT;

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, bytes)) = bytes.split_first() else { return };
    if bytes.len() > LONGEST {
        return;
    }
    match first {
        b'q' => {
            check_request(bytes, false);
            check_request(bytes, true);
        }
        b'r' => {
            check_response(bytes, &Method::GET);
            check_response(bytes, &Method::HEAD);
            check_agreement(bytes);
        }
        b'Q' => {
            let Some(mut head) = taken(bytes).and_then(|head| http1::request(&head, &LIMITS).ok()) else { return };
            if http1::of_request(head.version, &mut head.fields).is_ok() {
                check_request_back(head);
            }
        }
        b'R' => {
            let Some(mut head) = taken(bytes).and_then(|head| http1::response(&head, &LIMITS).ok()) else { return };
            if http1::of_response(head.status, &mut head.fields, false).is_ok() {
                check_response_back(head);
            }
        }
        _ => {}
    }
});

/// A request of HTTP/2 goes to an origin of HTTP/1.1. It may have content, unless it `is_all`.
fn check_request(lines: &[u8], is_all: bool) {
    let mut server = End::new(Role::Server, AMPLE);
    server.say(&[PREFACE, SETTINGS, &heads(lines, is_all)].concat());
    let Some((requested, ..)) = server.accept() else { return };
    let (protocol, written) = (requested.protocol.clone(), requested.fields.clone());
    let (mut head, fault) = translate(requested);
    if fault.is_some() || head.method == Method::CONNECT && protocol.is_none() {
        return;
    }
    let Ok(host) = RequestHost::of(&head) else { return };
    assert_eq!(listed(&head.fields), as_one_has_them(&written));
    let key = match protocol.as_deref() {
        Some(b"websocket") => web_socket::ask_in_http1(&mut head),
        Some(_) => return,
        None => None,
    };
    request::prepare(&mut head, &host);
    let (framing, more) = framing(&head, is_all || key.is_some());
    let mut written = BytesMut::new();
    http1::request_head(&head, more, &mut written);
    let mut again = http1::request(&whole(&written), &AMPLE).expect("what we write can be read");
    assert_eq!((&again.method, again.uri()), (&head.method, head.uri()));
    assert_eq!(again.target(), head.target());
    let mut expected = listed(&head.fields);
    expected.extend(more.iter().map(|(name, value)| (named(name.as_bytes()), value.as_bytes().to_vec())));
    assert_eq!(listed(&again.fields), expected);
    assert_eq!(http1::of_request(again.version, &mut again.fields), Ok(framing));
    assert_eq!(RequestHost::of(&again).ok(), Some(host));
    check_framing(&again.fields, framing);
    // It asks for what it has asked for, and for nothing else.
    assert_eq!(headers::asks_to_switch(&again.fields), key.is_some());
    if let Some(key) = key {
        assert_eq!(web_socket::key(&again), Some(key.as_bytes()));
        assert_eq!(framing, Framing::Length(0), "its content is the other protocol's");
        for name in [header::CONNECTION, header::UPGRADE, header::SEC_WEBSOCKET_KEY] {
            assert_eq!(again.fields.get_all(&name).count(), 1);
        }
    }
    check_request_back(again);
}

/// A request of HTTP/1 goes to an origin of HTTP/2.
fn check_request_back(mut head: RequestHead) {
    let Ok(host) = RequestHost::of(&head) else { return };
    if head.method == Method::CONNECT {
        return;
    }
    request::prepare(&mut head, &host);
    let key = web_socket::key(&head);
    let asked = Asked {
        method: &head.method,
        scheme: "https",
        authority: host.authority().as_str(),
        path: head.uri().path_and_query().map_or("/", PathAndQuery::as_str),
        protocol: key.map(|_| web_socket::PROTOCOL),
        fields: &head.fields,
        left_out: key.map(|_| &web_socket::LEFT_OUT),
        trailers: false,
    };
    let mut ends = Ends::new(AMPLE);
    let (_reader, _writer) = ends.client.connection.link().ask(&asked, false);
    ends.run();
    let (requested, ..) = ends.server.accept().expect("what we write can be read");
    assert_eq!(requested.fault, None);
    assert_eq!(requested.protocol.is_some(), key.is_some());
    assert_eq!(requested.method, if key.is_some() { Method::CONNECT } else { head.method.clone() });
    let (again, fault) = translate(requested);
    assert_eq!(fault, None);
    assert_eq!(again.uri().path_and_query().map(PathAndQuery::as_str), Some(asked.path));
    assert_eq!(RequestHost::of(&again).ok(), Some(host.clone()));
    let stays = |name: &HeaderName| {
        let of_web_socket = [header::CONTENT_LENGTH, header::SEC_WEBSOCKET_KEY];
        *name != header::HOST && !is_of_http1(name) && !(key.is_some() && of_web_socket.contains(name))
    };
    let mut expected = vec![(header::HOST, host.authority().as_str().as_bytes().to_vec())];
    expected.extend(as_one_has_them(&head.fields).into_iter().filter(|(name, _)| stays(name)));
    assert_eq!(listed(&again.fields), expected);
}

/// A response of HTTP/2 goes to a client of HTTP/1.1 that has sent this method.
fn check_response(lines: &[u8], method: &Method) {
    let Some(mut head) = responded(lines, method, None) else { return };
    let mut before = listed(&head.fields);
    before.retain(|(name, _)| *name != header::TE);
    headers::prepare_response(&mut head);
    assert_eq!(listed(&head.fields), before, "there is nothing else of the connection in it");
    let is_bare = *method == Method::HEAD || http1::is_bare(head.status);
    let framing = match http1::announced(&head.fields) {
        _ if is_bare => Framing::Length(0),
        Some(length) => Framing::Length(length),
        None => {
            http1::end_in_chunks(&mut head.fields);
            Framing::Chunked
        }
    };
    let again = check_written(&head, *method == Method::HEAD, framing);
    if !is_bare {
        check_framing(&again.fields, framing);
    }
}

/// One that agrees to a WebSocket is one of HTTP/1.1 that does.
fn check_agreement(lines: &[u8]) {
    let Some(mut head) = responded(lines, &Method::GET, Some(web_socket::PROTOCOL)) else { return };
    if !head.status.is_success() {
        return;
    }
    let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
    web_socket::agree(&mut head, key.as_bytes());
    headers::prepare_response(&mut head);
    let mut again = check_written(&head, false, Framing::Length(0));
    assert_eq!(again.status, StatusCode::SWITCHING_PROTOCOLS);
    assert!(headers::asks_to_switch(&again.fields) && !again.fields.contains(&header::CONTENT_LENGTH));
    let expected = [
        (header::CONNECTION, &b"Upgrade"[..]),
        (header::UPGRADE, b"websocket"),
        // RFC 6455 section 1.3 has it for this key.
        (ACCEPT, b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
    ];
    for (name, value) in expected {
        assert!(again.fields.get_all(&name).eq([value]), "{name}");
    }
    assert!(web_socket::agree_in_http2(&mut again, &key));
    assert!(again.status == StatusCode::OK && !again.fields.contains(&ACCEPT));
}

/// Gives what whoever reads it finds, which is the same.
fn check_written(head: &ResponseHead, is_head: bool, framing: Framing) -> ResponseHead {
    let mut written = BytesMut::new();
    http1::response_head(head, Version::HTTP_11, &[], &mut written);
    let mut again = http1::response(&whole(&written), &AMPLE).expect("what we write can be read");
    assert_eq!(again.status, head.status);
    assert_eq!(listed(&again.fields), listed(&head.fields));
    assert_eq!(http1::of_response(again.status, &mut again.fields, is_head), Ok(framing));
    again
}

/// A response of HTTP/1 goes to a client of HTTP/2.
fn check_response_back(mut head: ResponseHead) {
    headers::prepare_response(&mut head);
    // What is coded otherwise HTTP/2 cannot say; what is interim or switches protocols goes other ways.
    if http1::is_coded(&head.fields) || head.status.is_informational() {
        return;
    }
    let mut ends = Ends::new(AMPLE);
    let fields = Fields::default();
    let (reader, _writer) = ends.client.connection.link().ask(&asked(&Method::GET, None, &fields), false);
    ends.run();
    let (_, _reader, writer) = ends.server.accept().expect("it was asked");
    if writer.respond(&head, false).is_err() {
        return;
    }
    ends.run();
    let again = ends.client.head(&reader).expect("what we write can be read");
    assert_eq!(again.status, head.status);
    let expected = listed(&head.fields).into_iter().filter(|(name, _)| !is_of_http1(name));
    assert_eq!(listed(&again.fields), expected.collect::<Vec<_>>());
}

/// Names and values, without the blanks around these, which are none of them.
fn listed(fields: &Fields) -> Vec<(HeaderName, Vec<u8>)> {
    fields.iter().map(|(name, value)| (named(name), trimmed(value))).collect()
}

fn named(name: &[u8]) -> HeaderName {
    HeaderName::from_bytes(name).expect("a name")
}

/// As who serves HTTP/1 has the fields of a request: without what is said otherwise there, or twice, and with one field of cookies.
fn as_one_has_them(fields: &Fields) -> Vec<(HeaderName, Vec<u8>)> {
    let mut all = listed(fields);
    let hosts: Vec<_> = all.iter().filter(|(name, _)| *name == header::HOST).map(|(_, host)| host.clone()).collect();
    if let [first, second] = &hosts[..]
        && (first == second || RequestHost::is_same(first, second))
    {
        let last = all.iter().rposition(|(name, _)| *name == header::HOST).expect("there are two");
        all.remove(last);
    }
    let is_cookie = |(name, _): &(HeaderName, Vec<u8>)| *name == header::COOKIE;
    let cookies: Vec<_> = fields.get_all(&header::COOKIE).collect();
    if let (Some(first), true) = (all.iter().position(is_cookie), cookies.len() > 1) {
        all[first].1 = trimmed(&cookies.join(&b"; "[..]));
        let mut at = 0..;
        all.retain(|field| at.next() == Some(first) || !is_cookie(field));
    }
    all
}

fn trimmed(value: &[u8]) -> Vec<u8> {
    value.trim_ascii().to_vec()
}

/// Only HTTP/1 has them (RFC 9113 section 8.2.2).
fn is_of_http1(name: &HeaderName) -> bool {
    ["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"].contains(&name.as_str())
}

/// Nobody can see another end of the content.
fn check_framing(fields: &Fields, framing: Framing) {
    let count = |name| fields.get_all(&name).count();
    let (lengths, codings) = (count(header::CONTENT_LENGTH), count(header::TRANSFER_ENCODING));
    match framing {
        Framing::Chunked => assert_eq!((lengths, codings), (0, 1)),
        Framing::Length(0) => assert!(lengths <= 1 && codings == 0),
        Framing::Length(_) => assert_eq!((lengths, codings), (1, 0)),
        Framing::Close => panic!("nobody is told so"),
    }
}

/// The head at the beginning.
fn taken(bytes: &[u8]) -> Option<Bytes> {
    Head::default().take(&mut BytesMut::from(bytes), LIMITS.head).ok().flatten()
}

/// What was written is one head and nothing else.
fn whole(written: &BytesMut) -> Bytes {
    let mut input = written.clone();
    let head = Head::default().take(&mut input, AMPLE.head).ok().flatten().expect("what we write has an end");
    assert!(input.is_empty(), "something follows the head: {written:?}");
    head
}

/// A HEADERS frame (RFC 9113 section 6.2) with these fields.
fn heads(lines: &[u8], is_all: bool) -> Vec<u8> {
    let (mut encoder, mut block) = (hpack::Encoder::new(), BytesMut::new());
    encoder.begin(&mut block);
    for line in lines.split(|byte| *byte == 0).filter(|line| !line.is_empty()) {
        // Names that say something themselves begin with a colon.
        let colon = line.iter().skip(1).position(|byte| *byte == b':').map_or(line.len(), |at| at + 1);
        encoder.field(&line[..colon], line.get(colon + 1..).unwrap_or_default(), &mut block);
    }
    let length = u32::try_from(block.len()).expect("it is short").to_be_bytes();
    let flags = if is_all { 5 } else { 4 };
    [&length[1..], &[1, flags, 0, 0, 0, 1], &block].concat()
}

/// What comes to a client of HTTP/2 that has asked so.
fn responded(lines: &[u8], method: &Method, protocol: Option<&'static str>) -> Option<ResponseHead> {
    let mut client = End::new(Role::Client, AMPLE);
    client.say(SETTINGS);
    let fields = Fields::default();
    let (reader, _writer) = client.connection.link().ask(&asked(method, protocol, &fields), false);
    client.run();
    client.say(&heads(lines, false));
    client.head(&reader)
}
