//! Finds requests for configured hosts in what a client sends, without changing a byte of it.
//!
//! Deliberately lenient (RFC 9112 section 2.2): what some server could take for a request for a configured host must not
//! pass for something else.

use http::{HeaderName, HeaderValue, Version, header};

use crate::{
    head::Fields,
    http1::{self, Fault, Framing},
    request::host::RequestHost,
};

/// Longest head of a request. One that is longer is refused: nobody can say whose it is.
const MAX_HEAD: usize = 256 * 1024;
/// Longest method; the registered ones have 17 characters at most.
const MAX_METHOD: usize = 32;
/// Longest line with the size of a chunk, extensions included.
const MAX_CHUNK_LINE: usize = 4096;

const NO_END: &str = "the content of a request has no end";
const ODD_FRAMING: &str = "a field of a request that says where its content ends is written so that not all read it";
const LONE_CR: &str = "a line of a request holds a carriage return, which some take for its end";

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
    /// Within a chunk, of which this many bytes are left.
    Chunk(u64),
    /// Before the line break that ends a chunk.
    ChunkEnd,
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
            State::Start => self.start(up_to(bytes, MAX_HEAD)),
            State::Content(left) | State::Chunk(left) => {
                let some = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                let left = left - some as u64;
                self.state = match (&self.state, left) {
                    (State::Content(_), 0) => State::Start,
                    (State::Content(_), left) => State::Content(left),
                    (_, 0) => State::ChunkEnd,
                    (_, left) => State::Chunk(left),
                };
                Next::Forward(some)
            }
            State::ChunkSize => self.chunk_size(up_to(bytes, MAX_CHUNK_LINE)),
            // Who takes something else for the end sees the next chunk elsewhere.
            State::ChunkEnd => match bytes {
                [b'\r', b'\n', ..] => {
                    self.state = State::ChunkSize;
                    Next::Forward(2)
                }
                [b'\r'] => Next::Undecided,
                _ => Next::Doubtful("a chunk of a request does not end where it should"),
            },
            State::Trailers => {
                let bytes = up_to(bytes, MAX_HEAD);
                let Some((text, length)) = line(bytes) else {
                    return limited(bytes, MAX_HEAD, "the trailers of a request are too long");
                };
                if text.contains(&b'\r') {
                    return Next::Doubtful(LONE_CR);
                }
                if text.is_empty() {
                    self.state = State::Start;
                }
                Next::Forward(length)
            }
        }
    }

    /// Says what may be done with `bytes` when nothing comes after them: half a head may name a configured host.
    pub fn end(&self, bytes: &[u8]) -> Next {
        match (&self.state, request_line(bytes)) {
            (State::Start, RequestLine::Yes | RequestLine::Incomplete) if bytes.iter().any(|byte| is_blank(*byte)) => {
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
        if head.lines.iter().any(|line| line.contains(&b'\r')) {
            return Next::Doubtful(LONE_CR);
        }
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
        // What the decoder refuses, others read in more than one way.
        let is_plain = bytes[..length].ends_with(b"\r\n") && !text.contains(&b'\r');
        self.state = match http1::chunk_size(text).ok().filter(|_| is_plain) {
            Some(0) => State::Trailers,
            Some(size) => State::Chunk(size),
            None => return Next::Doubtful("the size of a chunk is not a number"),
        };
        Next::Forward(length)
    }
}

/// What is beyond a limit could have come later.
fn up_to(bytes: &[u8], limit: usize) -> &[u8] {
    &bytes[..bytes.len().min(limit)]
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
    // Other protocols go on with bytes that no target begins with.
    let target = bytes[method..].iter().find(|byte| !is_blank(**byte));
    if target.is_some_and(|byte| byte.is_ascii_control() && !b"\r\n".contains(byte)) {
        return RequestLine::No;
    }
    match line(bytes) {
        // Some take a lone CR for the end of a line.
        Some((text, _)) if text.contains(&b'\r') => {
            let is_version = |word: &[u8]| word.to_ascii_uppercase().starts_with(b"HTTP/1.");
            if text.split(u8::is_ascii_whitespace).any(is_version) { RequestLine::Yes } else { RequestLine::No }
        }
        Some((text, _)) => {
            let version = text.trim_ascii_end().rsplit(u8::is_ascii_whitespace).next().unwrap_or_default();
            match version.to_ascii_uppercase() {
                version if version.starts_with(b"HTTP/1.") => RequestLine::Yes,
                version if version == b"HTTP/2.0" => RequestLine::Http2,
                _ => RequestLine::No,
            }
        }
        None => RequestLine::Incomplete,
    }
}

fn is_blank(byte: u8) -> bool {
    b" \t".contains(&byte)
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

    /// The values of all fields of this name. One goes on in lines that begin with blanks (RFC 9112 section 5.2).
    fn values(&self, name: &HeaderName) -> impl Iterator<Item = Vec<u8>> {
        self.lines.iter().enumerate().skip(1).filter_map(move |(at, line)| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            if !line[..colon].trim_ascii().eq_ignore_ascii_case(name.as_str().as_bytes()) {
                return None;
            }
            let more = self.lines[at + 1..].iter().take_while(|line| line.first().is_some_and(|byte| is_blank(*byte)));
            let value = more.fold(line[colon + 1..].to_vec(), |value, more| [&value[..], more].concat());
            Some(value.trim_ascii().to_vec())
        })
    }

    /// Whether all fields that somebody could take for one of this name are written so that everybody does: with nothing but
    /// the name before the colon, on one line, and without control characters.
    fn is_plain(&self, name: &HeaderName) -> bool {
        let name = name.as_str().as_bytes();
        self.lines.iter().enumerate().skip(1).all(|(at, line)| {
            let before = line.split(|byte| *byte == b':').next().unwrap_or_default();
            let letters = before.iter().copied().filter(|byte| is_token(*byte));
            if !letters.map(|byte| byte.to_ascii_lowercase()).eq(name.iter().copied()) {
                return true;
            }
            let goes_on = self.lines.get(at + 1).is_some_and(|next| next.first().is_some_and(|byte| is_blank(*byte)));
            let has_control = line.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t');
            before.len() == name.len() && !goes_on && !has_control
        })
    }

    /// The words of the first line.
    fn words(&self) -> impl Iterator<Item = &'a [u8]> {
        let words = self.lines.first().into_iter().flat_map(|line| line.split(u8::is_ascii_whitespace));
        words.filter(|word| !word.is_empty())
    }

    /// Every host that it could be for: those of Host fields, and that of a target that is more than a path. None for what is
    /// not a host.
    fn hosts(&self) -> impl Iterator<Item = Option<String>> {
        let target = self.words().nth(1).filter(|target| !target.starts_with(b"/"));
        let authority = target.map(|target| {
            let scheme = target.windows(3).position(|window| window == b"://");
            let rest = &target[scheme.map_or(0, |at| at + 3)..];
            let end = rest.iter().position(|byte| b"/?#".contains(byte)).unwrap_or(rest.len());
            rest[..end].to_vec()
        });
        let values = self.values(&header::HOST).chain(authority);
        // Without a host it is for none that is configured.
        values.filter(|value| !value.is_empty()).map(|value| {
            let host = RequestHost::parse(&value)?;
            Some(host.as_str().to_owned())
        })
    }

    /// How its content is delimited, by those who serve requests for configured hosts: what they would refuse, others read in
    /// more than one way.
    fn content(&self) -> Result<State, &'static str> {
        let is_old = self.words().last().is_some_and(|version| version.ends_with(b"1.0"));
        let version = if is_old { Version::HTTP_10 } else { Version::HTTP_11 };
        let mut fields = Fields::default();
        for name in [header::TRANSFER_ENCODING, header::CONTENT_LENGTH] {
            if !self.is_plain(&name) {
                return Err(ODD_FRAMING);
            }
            for value in self.values(&name) {
                let value = HeaderValue::from_bytes(&value).map_err(|_| NO_END)?;
                fields.append(&name, &value);
            }
        }
        match http1::of_request(version, &mut fields) {
            Ok(Framing::Length(0)) => Ok(State::Start),
            Ok(Framing::Length(length)) => Ok(State::Content(length)),
            Ok(Framing::Chunked) => Ok(State::ChunkSize),
            Err(Fault::Length) => Err("the Content-Length of a request is not one number"),
            Err(Fault::LengthAndCoding) => Err("a request has both Content-Length and Transfer-Encoding"),
            Ok(Framing::Close) | Err(_) => Err(NO_END),
        }
    }
}

#[cfg(test)]
mod tests;
