//! Reading heads.

use std::{mem::MaybeUninit, sync::Arc};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, request, response,
    uri::PathAndQuery,
};

use super::Fault;

/// Fields for which there is room on the stack.
const USUAL_FIELDS: usize = 64;

/// What heads are taken.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The longest head, in bytes.
    pub head: usize,
    /// The most fields.
    pub fields: usize,
}

/// How a head was written. It goes along in the head's extensions, and what has not been changed is sent on in these bytes.
#[derive(Clone, Debug)]
pub struct Verbatim(Arc<Written>);

#[derive(Debug)]
struct Written {
    head: Bytes,
    lines: Vec<Line>,
    /// The target of a request, or the reason phrase of a response.
    first: (u32, u32),
    /// The target as it was read.
    uri: Uri,
}

/// A field's line: where it begins, where its name ends, and where it ends, without the line break.
#[derive(Clone, Copy, Debug)]
struct Line {
    start: u32,
    name: u32,
    end: u32,
}

impl Verbatim {
    /// The lines of the fields, without line breaks, and their names.
    pub fn lines(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let bytes = |from: u32, to: u32| &self.0.head[from as usize..to as usize];
        self.0.lines.iter().map(move |line| (bytes(line.start, line.end), bytes(line.start, line.name)))
    }

    /// The target of a request, unless `uri` is another than that.
    pub fn target_of(&self, uri: &Uri) -> Option<&[u8]> {
        (self.0.uri == *uri).then(|| self.first())
    }

    /// The reason phrase of a response.
    pub fn reason(&self) -> &[u8] {
        self.first()
    }

    fn first(&self) -> &[u8] {
        &self.0.head[self.0.first.0 as usize..self.0.first.1 as usize]
    }
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
            let empty = input.iter().take_while(|byte| b"\r\n".contains(byte)).count();
            let _ = input.split_to(empty);
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
fn end_of_head(bytes: &[u8], from: usize) -> Option<usize> {
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
pub fn request(head: &Bytes, limits: &Limits) -> Result<request::Parts, Fault> {
    let mut few = [const { MaybeUninit::uninit() }; USUAL_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(head, &mut few[..limits.fields.min(USUAL_FIELDS)]) {
        Err(httparse::Error::TooManyHeaders) => {
            let mut many = vec![MaybeUninit::uninit(); limits.fields];
            let mut parsed = httparse::Request::new(&mut []);
            parsed.parse_with_uninit_headers(head, &mut many).map_err(|error| fault(error, limits))?;
            of_request(head, &parsed)
        }
        result => {
            result.map_err(|error| fault(error, limits))?;
            of_request(head, &parsed)
        }
    }
}

/// Reads the head of a response.
///
/// # Errors
/// It is malformed.
pub fn response(head: &Bytes, limits: &Limits) -> Result<response::Parts, Fault> {
    let config = httparse::ParserConfig::default();
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

fn of_request(head: &Bytes, parsed: &httparse::Request<'_, '_>) -> Result<request::Parts, Fault> {
    let (Some(method), Some(target)) = (parsed.method, parsed.path) else { return Err(Fault::NotHttp) };
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = Method::from_bytes(method.as_bytes()).map_err(|_| Fault::NotHttp)?;
    parts.uri = uri(head, target.as_bytes())?;
    parts.version = version(parsed.version);
    let (fields, written) = fields(head, parsed.headers, target.as_bytes(), parts.uri.clone())?;
    parts.headers = fields;
    parts.extensions.insert(written);
    Ok(parts)
}

fn of_response(head: &Bytes, parsed: &httparse::Response<'_, '_>) -> Result<response::Parts, Fault> {
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Fault::NotHttp)?;
    parts.version = version(parsed.version);
    // httparse gives none if it has bytes beyond ASCII.
    let line = head.split(|byte| b"\r\n".contains(byte)).next().unwrap_or_default();
    let reason = line.get("HTTP/1.1 200 ".len()..).unwrap_or_default();
    let (fields, written) = fields(head, parsed.headers, reason, Uri::default())?;
    parts.headers = fields;
    parts.extensions.insert(written);
    Ok(parts)
}

fn version(minor: Option<u8>) -> Version {
    if minor == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 }
}

/// The target as a URI, of which routes see path and query. What is sent on are the bytes that came.
fn uri(head: &Bytes, target: &[u8]) -> Result<Uri, Fault> {
    let bytes = head.slice_ref(target);
    if !target.starts_with(b"/") {
        return Uri::from_maybe_shared(bytes).map_err(|_| Fault::Target);
    }
    // A fragment has no place in a target, but what there is goes on.
    if !target.contains(&b'#')
        && let Ok(path) = PathAndQuery::from_maybe_shared(bytes)
    {
        return Ok(path.into());
    }
    // Some characters a URI has encoded only.
    let mut encoded = String::with_capacity(target.len() + 8);
    for &byte in target {
        if matches!(byte, b'<' | b'>' | b'`' | b'#' | b'\\' | b'^' | b'"' | b'{' | b'}' | 0x80..) {
            encoded.push_str(&format!("%{byte:02X}"));
        } else {
            encoded.push(char::from(byte));
        }
    }
    encoded.parse().map_err(|_| Fault::Target)
}

fn fields(
    head: &Bytes,
    parsed: &[httparse::Header<'_>],
    first: &[u8],
    uri: Uri,
) -> Result<(HeaderMap, Verbatim), Fault> {
    let mut fields = HeaderMap::with_capacity(parsed.len());
    let mut lines: Vec<Line> = Vec::with_capacity(parsed.len());
    let at = |part: &[u8]| (part.as_ptr().addr() - head.as_ptr().addr()) as u32;
    for field in parsed {
        let start = at(field.name.as_bytes());
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Fault::Field)?;
        let value = if field.value.is_empty() {
            HeaderValue::from_static("")
        } else {
            HeaderValue::from_maybe_shared(head.slice_ref(field.value)).map_err(|_| Fault::Field)?
        };
        fields.try_append(name, value).map_err(|_| Fault::Field)?;
        lines.push(Line { start, name: start + field.name.len() as u32, end: 0 });
    }
    let mut next = head.len();
    for line in lines.iter_mut().rev() {
        let text = &head[line.start as usize..next];
        // The last line is followed by the empty one.
        let length = text.iter().rposition(|byte| !b"\r\n".contains(byte)).map_or(0, |last| last + 1);
        line.end = line.start + length as u32;
        next = line.start as usize;
    }
    let first = if first.is_empty() { (0, 0) } else { (at(first), at(first) + first.len() as u32) };
    Ok((fields, Verbatim(Arc::new(Written { head: head.clone(), lines, first, uri }))))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let parts = request(&Bytes::from_static(head.as_bytes()), &LIMITS).expect("a good head");
        let written = parts.extensions.get::<Verbatim>().expect("how it was written");
        written.lines().map(|(line, _)| String::from_utf8_lossy(line).into_owned()).collect()
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
    fn what_a_uri_cannot_have_is_seen_encoded() {
        for (target, seen) in
            [("/a<b>?c=d`e", "/a%3Cb%3E?c=d%60e"), ("/a#b", "/a%23b"), ("/%zz//../a?b=|", "/%zz//../a?b=|")]
        {
            let head = Bytes::from(format!("GET {target} HTTP/1.1\r\n\r\n"));
            let parts = request(&head, &LIMITS).expect("a good head");
            assert_eq!(parts.uri.to_string(), seen);
            assert_eq!(parts.extensions.get::<Verbatim>().expect("there").first(), target.as_bytes());
        }
    }

    #[test]
    fn what_is_malformed_is_said() {
        for (head, fault) in [
            ("GET / HTTP/2.0\r\n\r\n", Fault::NotHttp),
            ("GET /\r\n\r\n", Fault::NotHttp),
            ("GET / HTTP/1.1\r\nA : 1\r\n\r\n", Fault::Field),
            ("GET / HTTP/1.1\r\nA: 1\r\n b\r\n\r\n", Fault::Field),
            ("GET / HTTP/1.1\r\nA: 1\rb\r\n\r\n", Fault::Field),
            ("GET / HTTP/1.1\r\nA: 1\0\r\n\r\n", Fault::Field),
        ] {
            assert_eq!(request(&Bytes::from_static(head.as_bytes()), &LIMITS).err(), Some(fault), "{head:?}");
        }
        for most in [1, 100] {
            let limits = Limits { fields: most, ..LIMITS };
            let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: 1\r\n".repeat(most + 1));
            assert_eq!(request(&Bytes::from(many), &limits).err(), Some(Fault::TooManyFields(most)));
            let some = format!("GET / HTTP/1.1\r\n{}\r\n", "A: 1\r\n".repeat(most));
            assert_eq!(request(&Bytes::from(some), &limits).expect("a good head").headers.len(), most);
        }
    }
}
