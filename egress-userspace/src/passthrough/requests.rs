//! Finds requests for configured hosts in what a client sends, without changing a byte of it.
//!
//! Deliberately lenient (RFC 9112 section 2.2): what some server could take for a request for a configured host must not
//! pass for something else.

use std::str;

use http::HeaderValue;

use crate::request::host::RequestHost;

/// Longest head of a request. One that is longer is refused: nobody can say whose it is.
const MAX_HEAD: usize = 256 * 1024;
/// Longest method; the registered ones have 17 characters at most.
const MAX_METHOD: usize = 32;
/// Longest line with the size of a chunk, extensions included.
const MAX_CHUNK_LINE: usize = 4096;

/// What may be done with bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// This many can go on.
    Forward(usize),
    /// It takes more to say whose they are.
    Undecided,
    /// A request for a configured host begins here.
    Configured,
    /// A request begins here of which nobody can say whose it is, or where it ends.
    Doubtful(&'static str),
}

/// Follows the requests on one connection, from the client's first byte on.
pub struct Requests<F> {
    state: State,
    is_configured: F,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// At the beginning of a request, or of something else.
    Start,
    /// Within content of which this many bytes are left.
    Content(u64),
    /// Before the size of a chunk.
    ChunkSize,
    /// Within a chunk, of which this many bytes are left, its line break included.
    Chunk(u64),
    /// Among the lines that end chunked content.
    Trailers,
    /// Not HTTP/1.
    Opaque,
}

impl<F: Fn(&str) -> bool> Requests<F> {
    /// Nothing has been seen yet. `is_configured` is asked for host names in lower case, without port and trailing dots.
    pub fn new(is_configured: F) -> Self {
        Self { state: State::Start, is_configured }
    }

    /// Whether there will be no request any more, as it is another protocol.
    pub fn are_over(&self) -> bool {
        self.state == State::Opaque
    }

    /// Says what may be done with `bytes`, all that has come and was not yet let go on.
    pub fn next(&mut self, bytes: &[u8]) -> Next {
        if bytes.is_empty() {
            return Next::Undecided;
        }
        match self.state {
            State::Opaque => Next::Forward(bytes.len()),
            State::Start => self.start(bytes),
            State::Content(left) | State::Chunk(left) => {
                let some = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                let left = left - some as u64;
                self.state = match (&self.state, left) {
                    (State::Content(_), 0) => State::Start,
                    (State::Content(_), left) => State::Content(left),
                    (_, 0) => State::ChunkSize,
                    (_, left) => State::Chunk(left),
                };
                Next::Forward(some)
            }
            State::ChunkSize => self.chunk_size(bytes),
            State::Trailers => match line(bytes) {
                Some((text, length)) => {
                    if text.is_empty() {
                        self.state = State::Start;
                    }
                    Next::Forward(length)
                }
                None => limited(bytes, MAX_HEAD, "the trailers of a request are too long"),
            },
        }
    }

    /// Says what may be done with `bytes` when nothing comes after them: half a head may name a configured host.
    pub fn end(&self, bytes: &[u8]) -> Next {
        match (&self.state, request_line(bytes)) {
            (State::Start, RequestLine::Yes | RequestLine::Incomplete) if bytes.contains(&b' ') => {
                Next::Doubtful("a request broke off before it was clear whose it is")
            }
            _ => Next::Forward(bytes.len()),
        }
    }

    fn start(&mut self, bytes: &[u8]) -> Next {
        // Empty lines before a request are to be ignored (RFC 9112 section 2.2).
        let empty = bytes.iter().take_while(|byte| b"\r\n".contains(byte)).count();
        if empty > 0 {
            return Next::Forward(empty);
        }
        match request_line(bytes) {
            RequestLine::No => {
                self.state = State::Opaque;
                return Next::Forward(bytes.len());
            }
            // Each of its requests has a host of its own, which only who serves them can see.
            RequestLine::Http2 => return Next::Configured,
            RequestLine::Incomplete => return limited(bytes, MAX_HEAD, "the first line of a request is too long"),
            RequestLine::Yes => {}
        }
        let Some(head) = Head::parse(bytes) else {
            return limited(bytes, MAX_HEAD, "the head of a request is too long");
        };
        for host in head.hosts() {
            match host {
                Some(host) if (self.is_configured)(&host) => return Next::Configured,
                Some(_) => {}
                None => return Next::Doubtful("the Host of a request is not a host name"),
            }
        }
        match head.content() {
            Ok(state) => self.state = state,
            Err(reason) => return Next::Doubtful(reason),
        }
        Next::Forward(head.length)
    }

    fn chunk_size(&mut self, bytes: &[u8]) -> Next {
        let Some((text, length)) = line(bytes) else {
            return limited(bytes, MAX_CHUNK_LINE, "the size of a chunk is too long");
        };
        let digits = text.split(|byte| b"; \t".contains(byte)).next().unwrap_or_default();
        let size = str::from_utf8(digits).ok().and_then(|digits| u64::from_str_radix(digits, 16).ok());
        self.state = match size {
            Some(0) => State::Trailers,
            Some(size) if size < u64::MAX - 2 => State::Chunk(size + 2),
            _ => return Next::Doubtful("the size of a chunk is not a number"),
        };
        Next::Forward(length)
    }
}

fn limited(bytes: &[u8], limit: usize, reason: &'static str) -> Next {
    if bytes.len() < limit { Next::Undecided } else { Next::Doubtful(reason) }
}

/// The first line without its end, and its length with it. A lone LF ends a line too (RFC 9112 section 2.2).
fn line(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some((bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]), end + 1))
}

/// Whether bytes begin with the first line of an HTTP/1 request.
enum RequestLine {
    Yes,
    No,
    Incomplete,
    /// The first line of HTTP/2 (RFC 9113 section 3.4).
    Http2,
}

fn request_line(bytes: &[u8]) -> RequestLine {
    let method = bytes.iter().take(MAX_METHOD + 1).take_while(|byte| is_token(**byte)).count();
    match bytes.get(method) {
        Some(b' ' | b'\t') if (1..=MAX_METHOD).contains(&method) => {}
        None if method <= MAX_METHOD => return RequestLine::Incomplete,
        _ => return RequestLine::No,
    }
    match line(bytes) {
        Some((text, _)) => {
            let version = text.trim_ascii_end().rsplit(u8::is_ascii_whitespace).next().unwrap_or_default();
            match version.to_ascii_uppercase() {
                version if version.starts_with(b"HTTP/1.") => RequestLine::Yes,
                version if version == b"HTTP/2.0" => RequestLine::Http2,
                _ => RequestLine::No,
            }
        }
        None if bytes.iter().any(|byte| byte.is_ascii_control() && !b"\r\t".contains(byte)) => RequestLine::No,
        None => RequestLine::Incomplete,
    }
}

/// A character of a method (RFC 9110 section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The head of a request.
struct Head<'a> {
    lines: Vec<&'a [u8]>,
    length: usize,
}

impl<'a> Head<'a> {
    /// None if its end has not come yet.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (mut lines, mut length) = (Vec::new(), 0);
        loop {
            let (text, some) = line(&bytes[length..])?;
            length += some;
            if text.is_empty() {
                return Some(Self { lines, length });
            }
            lines.push(text);
        }
    }

    /// The values of all fields of this name.
    fn values(&self, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
        self.lines.iter().skip(1).filter_map(move |line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            line[..colon].trim_ascii().eq_ignore_ascii_case(name.as_bytes()).then(|| line[colon + 1..].trim_ascii())
        })
    }

    /// Every host that it could be for: those of Host fields, and that of an absolute target. None for what is not a host.
    fn hosts(&self) -> impl Iterator<Item = Option<String>> {
        let target = self.lines.first().and_then(|line| line.split(u8::is_ascii_whitespace).nth(1)).unwrap_or_default();
        let authority = target.windows(3).position(|window| window == b"://").map(|at| {
            let rest = &target[at + 3..];
            let end = rest.iter().position(|byte| b"/?#".contains(byte)).unwrap_or(rest.len());
            &rest[..end]
        });
        let values = self.values("host").chain(authority);
        // Without a host it is for none that is configured.
        values.filter(|value| !value.is_empty()).map(|value| {
            let host = RequestHost::parse(&HeaderValue::from_bytes(value).ok()?)?;
            Some(host.as_str().to_owned())
        })
    }

    /// How its content is delimited (RFC 9112 section 6.3).
    fn content(&self) -> Result<State, &'static str> {
        let chunked = self.values("transfer-encoding").any(|value| value.to_ascii_lowercase().ends_with(b"chunked"));
        if chunked {
            return Ok(State::ChunkSize);
        }
        if self.values("transfer-encoding").next().is_some() {
            return Err("the content of a request has no end");
        }
        let mut lengths = self.values("content-length").flat_map(|value| value.split(|byte| *byte == b','));
        let parse = |value: &[u8]| str::from_utf8(value.trim_ascii()).ok().and_then(|text| text.parse::<u64>().ok());
        let Some(first) = lengths.next() else { return Ok(State::Start) };
        let first = parse(first).ok_or("the Content-Length of a request is not a number")?;
        if lengths.any(|other| parse(other) != Some(first)) {
            return Err("a request has several Content-Lengths");
        }
        Ok(if first == 0 { State::Start } else { State::Content(first) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: &str = "GET / HTTP/1.1\r\nHost: other.example\r\n\r\n";
    const OURS: &str = "GET / HTTP/1.1\r\nHost: edition.cnn.com\r\n\r\n";

    /// What goes on, and why it ended, if the bytes come in pieces of that size.
    fn follow(bytes: &[u8], piece: usize) -> (usize, Next) {
        let mut requests = Requests::new(|host: &str| host == "edition.cnn.com");
        let (mut sent, mut come) = (0, 0);
        loop {
            match requests.next(&bytes[sent..come]) {
                Next::Forward(count) => sent += count,
                Next::Undecided if come < bytes.len() => come = bytes.len().min(come + piece),
                end => return (sent, end),
            }
        }
    }

    fn check(before: &str, from: &str, expected: &Next) {
        let all = [before, from].concat();
        for piece in [1, 2, 7, all.len().max(1)] {
            assert_eq!(follow(all.as_bytes(), piece), (before.len(), follow(from.as_bytes(), from.len()).1), "{all:?}");
            assert_eq!(&follow(all.as_bytes(), piece).1, expected, "{all:?}");
        }
    }

    #[test]
    fn requests_for_other_hosts_go_on_with_their_content() {
        let undecided = &Next::Undecided;
        check(OTHER, "", undecided);
        check("\r\n\nGET /x HTTP/1.0\nHOST : other.example\n\n", "", undecided);
        check("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nGET /", "", undecided);
        check(
            "PUT / HTTP/1.1\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n5;a=b\r\nGET /\r\n0\r\nTrailer: x\r\n\r\n",
            "",
            undecided,
        );
        check("POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "GET / HT", undecided);
    }

    #[test]
    fn a_request_for_a_configured_host_is_found_wherever_it_begins() {
        let before = [
            "",
            OTHER,
            "POST / HTTP/1.1\r\nHost: other.example\r\nContent-Length: 3\r\n\r\nabc",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            "GET /chat HTTP/1.1\r\nHost: other.example\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        ];
        let forms = [
            OURS,
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "GET / HTTP/1.1\nhost:EDITION.cnn.com.:80\n\n",
            "GET / HTTP/1.1\r\nHost : edition.cnn.com\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: other.example\r\nHost: edition.cnn.com\r\n\r\n",
            "GET http://edition.cnn.com/x HTTP/1.1\r\nHost: other.example\r\n\r\n",
            "GET http://edition.cnn.com HTTP/1.0\r\n\r\n",
            "GET  / http/1.1 \r\nbad header\r\nHost: edition.cnn.com\r\n\r\n",
        ];
        for before in before {
            for form in forms {
                check(before, form, &Next::Configured);
            }
        }
    }

    #[test]
    fn what_is_not_http_goes_on_for_good() {
        for text in [
            "SSH-2.0-OpenSSH_9.2\r\n",
            "EHLO mail.example\r\n",
            "PING\r\n",
            "\x16\x03\x01\0\u{1}",
            "GET /\r\n",
            "get\0",
        ] {
            check(&[text, OURS].concat(), "", &Next::Undecided);
        }
    }

    #[test]
    fn half_a_request_goes_nowhere_and_half_of_something_else_does() {
        let end = |bytes: &[u8]| Requests::new(|_: &str| false).end(bytes);
        for half in [
            "GET /secret HTTP/1.1\r\nHost: edition.cnn.com\r\nCookie: x\r\n",
            "GET /secret",
            "GET /secret HTTP/1.1\r\n",
        ] {
            assert!(matches!(end(half.as_bytes()), Next::Doubtful(_)), "{half:?}");
        }
        for other in ["PING", "PING\r\n", "SSH-2.0-x\r\n", "\x16\x03"] {
            assert_eq!(end(other.as_bytes()), Next::Forward(other.len()), "{other:?}");
        }
    }

    #[test]
    fn what_nobody_can_tell_the_end_of_goes_nowhere() {
        for (text, sent, reason) in [
            ("GET / HTTP/1.1\r\nHost: two words\r\n\r\n", 0, "the Host of a request is not a host name"),
            ("POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", 0, "the Content-Length of a request is not a number"),
            ("POST / HTTP/1.1\r\nContent-Length: 1, 2\r\n\r\n", 0, "a request has several Content-Lengths"),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 0, "the content of a request has no end"),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 47, "the size of a chunk is not a number"),
        ] {
            assert_eq!(follow(text.as_bytes(), 3), (sent, Next::Doubtful(reason)), "{text:?}");
        }
        let long = ["GET / HTTP/1.1\r\nX: ", &"x".repeat(MAX_HEAD)].concat();
        assert_eq!(follow(long.as_bytes(), 65536), (0, Next::Doubtful("the head of a request is too long")));
    }
}
