//! Finds requests for configured hosts in what a client sends, without changing a byte of it.
//!
//! Deliberately lenient (RFC 9112 section 2.2): what some server could take for a request for a configured host must not
//! pass for something else.

mod head;

use memchr::{memchr, memchr_iter};

use self::head::Head;
use crate::http1;

/// Longest head of a request. One that is longer is refused: nobody can say whose it is.
const MAX_HEAD: usize = 256 * 1024;
/// Longest method; the registered ones have 17 characters at most.
const MAX_METHOD: usize = 32;
/// Blanks before a method or a target that are passed over.
const MAX_BLANKS: usize = 64;
/// Longest line with the size of a chunk, extensions included.
const MAX_CHUNK_LINE: usize = 4096;

/// What a header of the PROXY protocol begins with, as a line and, after two empty lines, in its binary form (its specification,
/// sections 2.1 and 2.2). That is so long, with the length of what follows at its end.
const PROXY: &[u8] = b"PROXY ";
const TWO_EMPTY_LINES: &[u8] = b"\r\n\r\n";
const BINARY_PROXY: &[u8] = b"\0\r\nQUIT\n";
const BINARY_PROXY_LENGTH: usize = 12;

const BLANKS: &str = "a request begins with more blanks than anybody would send";
const PROXY_END: &str = "a header of the PROXY protocol does not end where it should";
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
    /// So much of what has not gone on was looked through, and it takes more.
    seen: usize,
    /// How many bytes of two empty lines have gone on just before whatever begins now; None if they were others, or more.
    empty: Option<usize>,
    is_configured: F,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    /// At the beginning of a request, or of something else.
    Start,
    /// At the beginning of a request whose first line has come.
    Head,
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

impl<F: Fn(&str, Option<u16>) -> bool> Requests<F> {
    /// Nothing has been seen yet. `is_configured` is asked for host names in lower case, without port and trailing dots; at
    /// that port, if not at the one that the connection goes to.
    pub fn new(is_configured: F) -> Self {
        Self { state: State::Start, seen: 0, empty: Some(0), is_configured }
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
        let next = self.look(bytes);
        self.seen = if next == Next::Undecided { bytes.len() } else { 0 };
        next
    }

    fn look(&mut self, bytes: &[u8]) -> Next {
        match self.state {
            State::Opaque => Next::Forward(bytes.len()),
            State::Start => self.start(up_to(bytes, MAX_HEAD)),
            State::Head => self.head(up_to(bytes, MAX_HEAD)),
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
                let Some((text, length)) = line(bytes, self.seen) else {
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
        let is_request = match self.state {
            State::Head => true,
            State::Start => match request_line(bytes, 0) {
                RequestLine::Yes => true,
                RequestLine::Incomplete => bytes.iter().any(|byte| is_space(*byte)),
                _ => false,
            },
            _ => false,
        };
        match is_request {
            true => Next::Doubtful("a request broke off before it was clear whose it is"),
            false => Next::Forward(bytes.len()),
        }
    }

    fn start(&mut self, bytes: &[u8]) -> Next {
        // Empty lines before a request are to be ignored (RFC 9112 section 2.2).
        let empty = bytes.iter().take_while(|byte| b"\r\n".contains(byte)).count();
        if empty > 0 {
            let lines = self.empty.and_then(|gone| TWO_EMPTY_LINES.get(gone..)?.get(..empty));
            let gone = self.empty.filter(|_| lines == Some(&bytes[..empty]));
            self.empty = gone.map(|gone| gone + empty);
            return Next::Forward(empty);
        }
        if self.empty == Some(TWO_EMPTY_LINES.len())
            && bytes.starts_with(&BINARY_PROXY[..bytes.len().min(BINARY_PROXY.len())])
        {
            let Some([high, low]) = bytes.get(BINARY_PROXY_LENGTH - 2..BINARY_PROXY_LENGTH) else {
                return Next::Undecided;
            };
            let addresses = u16::from_be_bytes([*high, *low]);
            if addresses > 0 {
                self.state = State::Content(addresses.into());
            }
            self.empty = Some(0);
            return Next::Forward(BINARY_PROXY_LENGTH);
        }
        match request_line(bytes, self.seen) {
            RequestLine::No => {
                self.state = State::Opaque;
                Next::Forward(bytes.len())
            }
            // What comes after it can be a request.
            RequestLine::Proxy(length) => Next::Forward(length),
            RequestLine::Odd(reason) => Next::Doubtful(reason),
            // Each of its requests has a host of its own, which only who serves them can see.
            RequestLine::Http2 => Next::Configured,
            RequestLine::Incomplete => limited(bytes, MAX_HEAD, "the first line of a request is too long"),
            RequestLine::Yes => {
                (self.state, self.seen, self.empty) = (State::Head, 0, Some(0));
                self.head(bytes)
            }
        }
    }

    fn head(&mut self, bytes: &[u8]) -> Next {
        let Some(length) = head_length(bytes, self.seen) else {
            return limited(bytes, MAX_HEAD, "the head of a request is too long");
        };
        let head = Head::new(&bytes[..length]);
        if head.has_lone_cr() {
            return Next::Doubtful(LONE_CR);
        }
        match head.is_for(&self.is_configured) {
            Ok(false) => {}
            Ok(true) => return Next::Configured,
            Err(reason) => return Next::Doubtful(reason),
        }
        match head.content() {
            Ok(state) => self.state = state,
            Err(reason) => return Next::Doubtful(reason),
        }
        Next::Forward(length)
    }

    fn chunk_size(&mut self, bytes: &[u8]) -> Next {
        let Some((text, length)) = line(bytes, self.seen) else {
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

/// The first line without its end, and its length with it; its end is not among those bytes that were `seen`. A lone LF ends a
/// line too (RFC 9112 section 2.2).
fn line(bytes: &[u8], seen: usize) -> Option<(&[u8], usize)> {
    let end = seen + memchr(b'\n', bytes.get(seen..)?)?;
    Some((bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]), end + 1))
}

/// The length of a head, up to the empty line which ends it and which those bytes do not hold that were `seen`.
fn head_length(bytes: &[u8], seen: usize) -> Option<usize> {
    let from = seen.saturating_sub(2);
    memchr_iter(b'\n', bytes.get(from..)?).map(|at| from + at + 1).find_map(|next| match bytes[next..] {
        [b'\n', ..] => Some(next + 1),
        [b'\r', b'\n', ..] => Some(next + 2),
        _ => None,
    })
}

/// Whether bytes begin with the first line of an HTTP/1 request.
enum RequestLine {
    Yes,
    No,
    Incomplete,
    /// The first line of HTTP/2 (RFC 9113 section 3.4).
    Http2,
    /// That of the PROXY protocol, of this length.
    Proxy(usize),
    /// Nobody can say.
    Odd(&'static str),
}

fn request_line(bytes: &[u8], seen: usize) -> RequestLine {
    let blanks = |bytes: &[u8]| bytes.iter().take(MAX_BLANKS).take_while(|byte| is_space(**byte)).count();
    let begin = blanks(bytes);
    if begin == MAX_BLANKS {
        return RequestLine::Odd(BLANKS);
    }
    let method = begin + bytes[begin..].iter().take(MAX_METHOD + 1).take_while(|byte| is_token(**byte)).count();
    match bytes.get(method) {
        None if method - begin <= MAX_METHOD => return RequestLine::Incomplete,
        Some(after) if is_space(*after) && (1..=MAX_METHOD).contains(&(method - begin)) => {}
        _ => return RequestLine::No,
    }
    // Other protocols go on with bytes that no target begins with.
    let target = bytes.get(method + blanks(&bytes[method..]));
    if target.is_some_and(|byte| byte.is_ascii_control() && !is_space(*byte) && *byte != b'\n') {
        return RequestLine::No;
    }
    let Some((text, length)) = line(bytes, seen) else { return RequestLine::Incomplete };
    let is_version = |word: &[u8]| word.to_ascii_uppercase().starts_with(b"HTTP/");
    let mut words = text.split(|byte| is_space(*byte)).filter(|word| !word.is_empty());
    // Some take a lone CR for the end of a line.
    if text.contains(&b'\r') {
        return if words.any(is_version) { RequestLine::Yes } else { proxy(text, RequestLine::Odd(LONE_CR)) };
    }
    match words.next_back().unwrap_or_default() {
        version if version.eq_ignore_ascii_case(b"HTTP/2.0") => RequestLine::Http2,
        version if is_version(version) => RequestLine::Yes,
        _ if bytes[..length].ends_with(b"\r\n") => proxy(text, RequestLine::Proxy(length)),
        _ => proxy(text, RequestLine::Odd(PROXY_END)),
    }
}

/// What it is if it is of the PROXY protocol.
fn proxy(text: &[u8], is: RequestLine) -> RequestLine {
    if text.starts_with(PROXY) { is } else { RequestLine::No }
}

fn is_blank(byte: u8) -> bool {
    b" \t".contains(&byte)
}

/// What some take for a blank between the words of a first line (RFC 9112 section 3).
fn is_space(byte: u8) -> bool {
    b" \t\x0b\x0c\r".contains(&byte)
}

/// A character of a method (RFC 9110 section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests;
