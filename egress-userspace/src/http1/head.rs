//! Reading heads.

use std::mem::MaybeUninit;

use bytes::{Buf as _, Bytes, BytesMut};
use http::{Method, StatusCode, Version};

use super::{Fault, target::uri};
use crate::head::{Fields, Line, RequestHead, ResponseHead};

/// Fields for which there is room on the stack.
const USUAL_FIELDS: usize = 64;

/// The longest name of a field, in bytes: as long as `http` has them, as they may have to be said in HTTP/2.
const MAX_NAME: usize = u16::MAX as usize;

/// What heads are taken.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The longest head, in bytes.
    pub head: usize,
    /// The most fields.
    pub fields: usize,
}

/// A head that is being read.
#[derive(Debug, Default)]
pub struct Head {
    /// How much of it has been looked through for its end.
    scanned: usize,
}

impl Head {
    /// Takes a whole head off the beginning of `input`, once it is there.
    ///
    /// # Errors
    /// It is longer than `limit`.
    pub fn take(&mut self, input: &mut BytesMut, limit: usize) -> Result<Option<Bytes>, Fault> {
        if self.scanned == 0 {
            // Empty lines before a message are to be ignored (RFC 9112 section 2.2).
            let empty = input.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            input.advance(empty);
        }
        if input.is_empty() {
            return Ok(None);
        }
        let end = end_of_head(input, self.scanned);
        if end.unwrap_or(input.len()) > limit {
            return Err(Fault::HeadTooLong(limit));
        }
        // The end may have begun already.
        self.scanned = input.len().saturating_sub(3);
        let Some(end) = end else { return Ok(None) };
        self.scanned = 0;
        Ok(Some(input.split_to(end).freeze()))
    }
}

/// Where the empty line ends that ends a head. A lone LF ends a line too (RFC 9112 section 2.2).
pub(super) fn end_of_head(bytes: &[u8], from: usize) -> Option<usize> {
    memchr::memchr_iter(b'\n', &bytes[from..]).map(|at| from + at).find_map(|at| match bytes.get(at + 1)? {
        b'\n' => Some(at + 2),
        b'\r' if bytes.get(at + 2) == Some(&b'\n') => Some(at + 3),
        _ => None,
    })
}

/// Reads the head of a request.
///
/// # Errors
/// It is malformed.
pub fn request(head: &Bytes, limits: &Limits) -> Result<RequestHead, Fault> {
    match read_request(head, head, limits) {
        Err(Fault::NotHttp) => read_request(&in_ascii(head).ok_or(Fault::NotHttp)?, head, limits),
        read => read,
    }
}

/// Whether more can make the head of a request of what has come of it. Its end may never come: who speaks another protocol waits for
/// an answer.
pub fn may_be_request(begun: &[u8]) -> bool {
    let may_be = |text: &[u8]| !is_other(httparse::Request::new(&mut []).parse(text));
    may_be(begun) || in_ascii(begun).is_some_and(|text| may_be(&text))
}

/// The same for a response.
pub fn may_be_response(begun: &[u8]) -> bool {
    !is_other(httparse::Response::new(&mut []).parse(begun))
}

/// Whether the first line is none of HTTP. What follows it is looked at once it is there as a whole.
fn is_other(parsed: httparse::Result<usize>) -> bool {
    use httparse::Error::{Status, Token, Version};
    matches!(parsed, Err(Status | Token | Version))
}

/// A head whose target is no text, as httparse takes no other, with a letter in the place of each byte there that is not ASCII.
fn in_ascii(head: &[u8]) -> Option<Vec<u8>> {
    let line = &head[..memchr::memchr(b'\n', head).unwrap_or(head.len())];
    let target = memchr::memchr(b' ', line)?..memchr::memrchr(b' ', line)?;
    if head[target.clone()].is_ascii() {
        return None;
    }
    let mut text = head.to_vec();
    text[target].iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'x');
    Some(text)
}

/// Reads a head in a text that has everything at the same place.
fn read_request(text: &[u8], head: &Bytes, limits: &Limits) -> Result<RequestHead, Fault> {
    let mut few = [const { MaybeUninit::uninit() }; USUAL_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(text, &mut few[..limits.fields.min(USUAL_FIELDS)]) {
        Err(httparse::Error::TooManyHeaders) => {
            let mut many = vec![MaybeUninit::uninit(); limits.fields];
            let mut parsed = httparse::Request::new(&mut []);
            parsed.parse_with_uninit_headers(text, &mut many).map_err(|error| fault(error, limits))?;
            of_request(text, head, &parsed)
        }
        result => {
            result.map_err(|error| fault(error, limits))?;
            of_request(text, head, &parsed)
        }
    }
}

/// Reads the head of a response.
///
/// # Errors
/// It is malformed.
pub fn response(head: &Bytes, limits: &Limits) -> Result<ResponseHead, Fault> {
    let mut config = httparse::ParserConfig::default();
    config.allow_spaces_after_header_name_in_responses(true);
    let mut few = [const { MaybeUninit::uninit() }; USUAL_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    match config.parse_response_with_uninit_headers(&mut parsed, head, &mut few[..limits.fields.min(USUAL_FIELDS)]) {
        Err(httparse::Error::TooManyHeaders) => {
            let mut many = vec![MaybeUninit::uninit(); limits.fields];
            let mut parsed = httparse::Response::new(&mut []);
            config
                .parse_response_with_uninit_headers(&mut parsed, head, &mut many)
                .map_err(|error| fault(error, limits))?;
            of_response(head, &parsed)
        }
        result => {
            result.map_err(|error| fault(error, limits))?;
            of_response(head, &parsed)
        }
    }
}

fn fault(error: httparse::Error, limits: &Limits) -> Fault {
    match error {
        httparse::Error::TooManyHeaders => Fault::TooManyFields(limits.fields),
        httparse::Error::HeaderName | httparse::Error::HeaderValue | httparse::Error::NewLine => Fault::Field,
        httparse::Error::Status | httparse::Error::Token | httparse::Error::Version => Fault::NotHttp,
    }
}

fn of_request(text: &[u8], head: &Bytes, parsed: &httparse::Request<'_, '_>) -> Result<RequestHead, Fault> {
    let (Some(method), Some(path)) = (parsed.method, parsed.path) else { return Err(Fault::NotHttp) };
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| Fault::NotHttp)?;
    let target = &head[at(text, path.as_bytes())..][..path.len()];
    let uri = uri(head, target, &method)?;
    let is_so_written = uri.path_and_query().is_some_and(|path| path.as_str().as_bytes() == target);
    let request = RequestHead::new(method, uri, version(parsed.version), fields(text, head, parsed.headers)?);
    Ok(if is_so_written { request } else { request.written_as(head.slice_ref(target)) })
}

fn of_response(head: &Bytes, parsed: &httparse::Response<'_, '_>) -> Result<ResponseHead, Fault> {
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Fault::NotHttp)?;
    let usual = status.canonical_reason();
    let reason = (parsed.reason != usual).then(|| {
        // httparse gives none if it has bytes beyond ASCII.
        let line = head.split(|byte| b"\r\n".contains(byte)).next().unwrap_or_default();
        Bytes::copy_from_slice(line.get("HTTP/1.1 200 ".len()..).unwrap_or_default())
    });
    Ok(ResponseHead { status, version: version(parsed.version), reason, fields: fields(head, head, parsed.headers)? })
}

fn version(minor: Option<u8>) -> Version {
    if minor == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 }
}

/// Where a part of a text begins.
fn at(text: &[u8], part: &[u8]) -> usize {
    part.as_ptr().addr() - text.as_ptr().addr()
}

/// The fields, in the lines that httparse has found in a text that has them at the same place.
pub(super) fn fields(text: &[u8], head: &Bytes, parsed: &[httparse::Header<'_>]) -> Result<Fields, Fault> {
    let mut lines = Vec::with_capacity(parsed.len());
    for field in parsed {
        let start = at(text, field.name.as_bytes());
        let colon = start + field.name.len();
        if field.name.len() > MAX_NAME {
            return Err(Fault::Field);
        }
        // The blanks that some servers have here go no further (RFC 9112 section 5.1).
        if head[colon] != b':' {
            lines.push(Line::new(field.name.as_bytes(), field.value));
            continue;
        }
        // An empty value is somewhere else.
        let value = if field.value.is_empty() {
            (colon, colon)
        } else {
            (at(text, field.value), at(text, field.value) + field.value.len())
        };
        // Before the line's end there can be blanks.
        let rest = &head[value.1..];
        let length = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')).unwrap_or(rest.len());
        lines.push(Line::at(start, colon, value, value.1 + length));
    }
    Ok(Fields::new(head.clone(), lines))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::{self, target::MAX};

    const LIMITS: Limits = Limits { head: 1024, fields: 100 };

    fn taken(bytes: &[u8], piece: usize) -> Result<Option<(usize, usize)>, Fault> {
        let (mut head, mut input) = (Head::default(), BytesMut::new());
        for piece in bytes.chunks(piece) {
            input.extend_from_slice(piece);
            if let Some(taken) = head.take(&mut input, LIMITS.head)? {
                return Ok(Some((taken.len(), input.len())));
            }
        }
        Ok(None)
    }

    #[test]
    fn a_head_ends_with_an_empty_line_however_it_comes() {
        for piece in [1, 2, 3, 100] {
            for end in ["\r\n\r\n", "\n\n", "\r\n\n", "\n\r\n"] {
                let bytes = format!("\r\n\nGET / HTTP/1.1\r\nA: 1{end}");
                let length = bytes.len() - 3;
                assert_eq!(taken(bytes.as_bytes(), piece), Ok(Some((length, 0))), "{bytes:?} by {piece}");
            }
            assert_eq!(taken(b"GET / HTTP/1.1\r\nA: 1\r\n", piece), Ok(None));
        }
        assert_eq!(taken(&[b'x'; 1025], 1025), Err(Fault::HeadTooLong(1024)));
    }

    fn lines(head: &'static str) -> Vec<String> {
        let head = request(&Bytes::from_static(head.as_bytes()), &LIMITS).expect("a good head");
        head.fields.lines().map(|line| String::from_utf8_lossy(line).into_owned()).collect()
    }

    #[test]
    fn lines_are_kept_as_they_were_written() {
        assert_eq!(
            lines("GET / HTTP/1.1\r\nHOST:a\r\nX-Empty:\r\nx-blank: \r\nX-Odd:   b, c \t\r\n\r\n"),
            ["HOST:a", "X-Empty:", "x-blank: ", "X-Odd:   b, c \t"],
        );
        assert_eq!(lines("GET / HTTP/1.1\nHost: a\nB: 2\n\n"), ["Host: a", "B: 2"]);
    }

    #[test]
    fn blanks_before_a_colon_are_removed_from_responses() {
        let head = Bytes::from_static(b"HTTP/1.1 200 OK\r\nServer : x\r\nA: 1\r\nContent-Length\t : 5 \r\nB :\r\n\r\n");
        let mut head = response(&head, &LIMITS).expect("a good head");
        assert_eq!(http1::of_response(head.status, &mut head.fields, false), Ok(http1::Framing::Length(5)));
        let mut written = BytesMut::new();
        head.fields.write(&mut written);
        assert_eq!(written, &b"Server: x\r\nA: 1\r\nContent-Length: 5\r\nB: \r\n"[..]);
        let coded = Bytes::from_static(b"HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n");
        let mut head = response(&coded, &LIMITS).expect("a good head");
        assert_eq!(http1::of_response(head.status, &mut head.fields, false), Err(Fault::LengthAndCoding));
        assert!(response(&Bytes::from_static(b"HTTP/1.1 200 OK\r\n A: 1\r\n\r\n"), &LIMITS).is_err());
    }

    #[test]
    fn what_a_uri_cannot_have_is_seen_encoded() {
        for (target, seen) in [
            ("*", "*"),
            ("/a<b>?c=d`e", "/a%3Cb%3E?c=d%60e"),
            ("/a?b#c", "/a?b"),
            ("/%zz//../a?b=|", "/%zz//../a?b=|"),
            ("http://h/a<b>?c=d`e#f", "http://h/a%3Cb%3E?c=d%60e"),
            ("http://h?a<b", "http://h/?a%3Cb"),
            ("http://h:80/a?b#c", "http://h:80/a?b"),
        ] {
            let head = Bytes::from(format!("GET {target} HTTP/1.1\r\n\r\n"));
            let head = request(&head, &LIMITS).expect("a good head");
            assert_eq!(head.uri().to_string(), seen);
            assert_eq!(head.target(), target.as_bytes());
            let mut same = head.clone();
            same.set_uri(seen.parse().expect("a target"));
            assert_eq!(same.target(), target.as_bytes(), "a rewrite that changes nothing");
        }
    }

    #[test]
    fn what_cannot_become_http_is_seen_at_once() {
        let heads: [&[u8]; 3] =
            [b"GET /a HTTP/1.1\r\nA: 1\r\n", b"M-SEARCH * HTTP/1.0\nA: 1", b"GET http://h/caf\xe9?\xff HTTP/1.1\r\n"];
        for head in heads {
            assert!((0..=head.len()).all(|length| may_be_request(&head[..length])), "{head:?}");
        }
        for other in
            [&b"\x16\x03\x01"[..], b"SSH-2.0-x\r\n", b"EHLO x\r\n", b"GET /\r\n", b"GET /\xe9 FTP", b"G\xe9T / "]
        {
            assert!(!may_be_request(other), "{other:?}");
        }
        for head in [&b"HTTP/1.1 200 OK\r\nA : 1\r\n"[..], b"HTTP/1.0 404\nA", b"HTTP/1.1 200 \xe9\r\n"] {
            assert!((0..=head.len()).all(|length| may_be_response(&head[..length])), "{head:?}");
        }
        for other in [&b"220 mail ESMTP\r\n"[..], b"SSH-2.0-x\r\n", b"HTTP/2", b"HTTP/1.1 two"] {
            assert!(!may_be_response(other), "{other:?}");
        }
    }

    #[test]
    fn targets_need_not_be_text() {
        let head = |line: &[u8]| Bytes::from([line, b"\r\nA: \xe9\r\n\r\n"].concat());
        for (target, seen) in [(&b"/caf\xe9?\xff"[..], "/caf%E9?%FF"), (b"http://h/caf\xe9", "http://h/caf%E9")] {
            let head = request(&head(&[b"GET ", target, b" HTTP/1.1"].concat()), &LIMITS).expect("a good head");
            assert_eq!((head.uri().to_string().as_str(), head.target()), (seen, target));
            assert_eq!(head.fields.lines().collect::<Vec<_>>(), [b"A: \xe9"]);
        }
        for line in
            [&b"G\xe9T / HTTP/1.1"[..], b"GET /\xe9 b HTTP/1.1", b"GET /\xe9 HTTP/1.\xe9", b"GET /\xe9", b"\xe9"]
        {
            assert_eq!(request(&head(line), &LIMITS).err(), Some(Fault::NotHttp), "{line:?}");
        }
        assert_eq!(request(&head(b"GET \xe9 HTTP/1.1"), &LIMITS).err(), Some(Fault::Target));
    }

    #[test]
    fn what_is_malformed_is_said() {
        for (head, fault) in [
            ("GET / HTTP/2.0\r\n\r\n", Fault::NotHttp),
            ("GET /\r\n\r\n", Fault::NotHttp),
            ("GET index.html HTTP/1.1\r\n\r\n", Fault::Target),
            ("GET a.example:80 HTTP/1.1\r\n\r\n", Fault::Target),
            ("GET http://a<b>/ HTTP/1.1\r\n\r\n", Fault::Target),
            ("GET http:///a<b> HTTP/1.1\r\n\r\n", Fault::Target),
            ("GET a/http://b/c<d> HTTP/1.1\r\n\r\n", Fault::Target),
            ("GET / HTTP/1.1\r\nA : 1\r\n\r\n", Fault::Field),
            ("GET / HTTP/1.1\r\nA: 1\r\n b\r\n\r\n", Fault::Field),
            ("GET / HTTP/1.1\r\nA: 1\rb\r\n\r\n", Fault::Field),
            ("GET / HTTP/1.1\r\nA: 1\0\r\n\r\n", Fault::Field),
        ] {
            assert_eq!(request(&Bytes::from_static(head.as_bytes()), &LIMITS).err(), Some(fault), "{head:?}");
        }
        let long = |length: usize| Bytes::from(format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(length - 1)));
        assert!(request(&long(MAX), &LIMITS).is_ok());
        assert_eq!(request(&long(MAX + 1), &LIMITS).err(), Some(Fault::TargetTooLong(MAX)));
        for most in [1, 100] {
            let limits = Limits { fields: most, ..LIMITS };
            let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: 1\r\n".repeat(most + 1));
            assert_eq!(request(&Bytes::from(many), &limits).err(), Some(Fault::TooManyFields(most)));
            let some = format!("GET / HTTP/1.1\r\n{}\r\n", "A: 1\r\n".repeat(most));
            assert_eq!(request(&Bytes::from(some), &limits).expect("a good head").fields.iter().count(), most);
        }
    }
}
