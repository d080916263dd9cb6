//! Content on its way in.

use bytes::{Buf as _, Bytes, BytesMut};

use super::{
    Fault, Framing,
    head::{Limits, end_of_head, fields},
};
use crate::head::{Fields, Names};

/// The longest line with the size of a chunk, extensions included, in bytes.
const MAX_SIZE_LINE: usize = 4096;
/// What trailers are taken.
const TRAILERS: Limits = Limits { head: 64 * 1024, fields: 256 };
/// What may not come after content: who merges it into the head must not be misled (RFC 9110 section 6.5.1).
const NOT_TRAILERS: Names = Names::new(&["content-length", "transfer-encoding", "host"]);

/// Finds content in what comes.
#[derive(Debug)]
pub struct Decoder(State);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// This many bytes are to come.
    Length(u64),
    /// Until the connection ends.
    Close,
    /// Before the size of a chunk.
    Size,
    /// Within a chunk, of which this many bytes are to come.
    Chunk(u64),
    /// Before the line break that ends a chunk.
    ChunkEnd,
    /// After the last chunk.
    Trailers {
        /// How much has been looked through for their end.
        scanned: usize,
    },
    /// All has come.
    End,
    /// It is malformed. What comes next is nobody's: of a line that some read in another way, it can be content.
    Broken(Fault),
}

/// What has come.
#[derive(Debug)]
pub enum Progress {
    /// Content.
    Data(Bytes),
    /// Fields after the content (RFC 9110 section 6.5).
    Trailers(Fields),
    /// No more content comes.
    End,
    /// More has to be read first.
    More,
}

impl Decoder {
    /// For content that is so framed.
    pub fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::Length(0) => State::End,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size,
            Framing::Close => State::Close,
        })
    }

    /// Whether all has come.
    pub fn is_end(&self) -> bool {
        self.0 == State::End
    }

    /// How many bytes are to come, if that is known.
    pub fn left(&self) -> Option<u64> {
        match self.0 {
            State::End => Some(0),
            State::Length(left) => Some(left),
            _ => None,
        }
    }

    /// Takes content off `input`.
    ///
    /// # Errors
    /// It is malformed.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Progress, Fault> {
        let progress = self.advance(input);
        if let Err(fault) = progress {
            self.0 = State::Broken(fault);
        }
        progress
    }

    fn advance(&mut self, input: &mut BytesMut) -> Result<Progress, Fault> {
        loop {
            match self.0 {
                State::End => return Ok(Progress::End),
                State::Broken(fault) => return Err(fault),
                _ if input.is_empty() => return Ok(Progress::More),
                State::Close => return Ok(Progress::Data(input.split().freeze())),
                State::Length(left) => {
                    let (data, left) = some(input, left);
                    self.0 = if left == 0 { State::End } else { State::Length(left) };
                    return Ok(Progress::Data(data));
                }
                State::Size => {
                    let Some(line) = line(input, MAX_SIZE_LINE, Fault::ChunkSize)? else { return Ok(Progress::More) };
                    self.0 = match chunk_size(&line)? {
                        0 => State::Trailers { scanned: 0 },
                        size => State::Chunk(size),
                    };
                }
                State::Chunk(left) => {
                    let (data, left) = some(input, left);
                    self.0 = if left == 0 { State::ChunkEnd } else { State::Chunk(left) };
                    return Ok(Progress::Data(data));
                }
                State::ChunkEnd => match &input[..] {
                    [b'\r', b'\n', ..] => {
                        input.advance(2);
                        self.0 = State::Size;
                    }
                    [b'\r'] => return Ok(Progress::More),
                    _ => return Err(Fault::ChunkEnd),
                },
                State::Trailers { scanned } => {
                    let Some(trailers) = trailers(input, scanned)? else {
                        // Their end may have begun already.
                        self.0 = State::Trailers { scanned: input.len().saturating_sub(3) };
                        return Ok(Progress::More);
                    };
                    self.0 = State::End;
                    if !trailers.is_empty() {
                        return Ok(Progress::Trailers(trailers));
                    }
                }
            }
        }
    }

    /// The connection has ended. Whether that was the end of the content.
    pub fn close(&mut self) -> bool {
        if self.0 == State::Close {
            self.0 = State::End;
        }
        self.is_end()
    }
}

fn some(input: &mut BytesMut, left: u64) -> (Bytes, u64) {
    let count = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
    (input.split_to(count).freeze(), left - count as u64)
}

/// The first line, without its end, which is CRLF: what else some take for one, others do not.
fn line(input: &mut BytesMut, limit: usize, fault: Fault) -> Result<Option<BytesMut>, Fault> {
    match memchr::memchr(b'\n', &input[..input.len().min(limit)]) {
        None if input.len() >= limit => Err(fault),
        None => Ok(None),
        Some(end) => {
            let mut line = input.split_to(end + 1);
            line.truncate(end);
            if line.last() != Some(&b'\r') || memchr::memchr(b'\r', &line[..end - 1]).is_some() {
                return Err(fault);
            }
            line.truncate(end - 1);
            Ok(Some(line))
        }
    }
}

/// The size of a chunk, by the line that it begins with. Extensions are for one connection alone, and nobody knows any (RFC 9112
/// section 7.1.1).
///
/// # Errors
/// It is no size, or could be read as another.
pub fn chunk_size(line: &[u8]) -> Result<u64, Fault> {
    let end = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
    let (digits, rest) = line.split_at(end);
    // Blanks are spaces and tabs (RFC 9110 section 5.6.3): what ASCII has besides, others take for something else.
    let blanks = rest.iter().take_while(|byte| b" \t".contains(byte)).count();
    let rest = &rest[blanks..];
    if !(rest.is_empty() || rest.starts_with(b";")) || digits.len() > 16 {
        return Err(Fault::ChunkSize);
    }
    let digits = std::str::from_utf8(digits).map_err(|_| Fault::ChunkSize)?;
    u64::from_str_radix(digits, 16).map_err(|_| Fault::ChunkSize)
}

/// Whether a field of this name may come after content.
pub(super) fn may_be_trailer(name: &[u8]) -> bool {
    !NOT_TRAILERS.has(name)
}

/// The trailers, once their end has come, which is not within what was `scanned`.
fn trailers(input: &mut BytesMut, scanned: usize) -> Result<Option<Fields>, Fault> {
    let none = [&b"\r\n"[..], b"\n"].into_iter().find(|end| input.starts_with(end));
    let Some(end) = none.map(<[u8]>::len).or_else(|| end_of_head(input, scanned)) else {
        return if input.len() < TRAILERS.head { Ok(None) } else { Err(Fault::Trailers) };
    };
    let text = input.split_to(end).freeze();
    let mut room = [httparse::EMPTY_HEADER; TRAILERS.fields];
    let parsed = match httparse::parse_headers(&text, &mut room) {
        Ok(httparse::Status::Complete((length, parsed))) if length == end && end <= TRAILERS.head => parsed,
        _ => return Err(Fault::Trailers),
    };
    let mut trailers = fields(&text, &text, parsed).map_err(|_| Fault::Trailers)?;
    trailers.retain(|name, _| may_be_trailer(name));
    Ok(Some(trailers))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The content, the number of trailers, and what is left, if the bytes come in pieces of that size.
    fn decode(framing: Framing, bytes: &[u8], piece: usize) -> Result<(Vec<u8>, usize, usize), Fault> {
        let (mut decoder, mut input) = (Decoder::new(framing), BytesMut::new());
        let mut pieces = bytes.chunks(piece);
        let (mut content, mut fields) = (Vec::new(), 0);
        loop {
            let progress = decoder.decode(&mut input).inspect_err(|fault| {
                let again = decoder.decode(&mut BytesMut::from(&b"0\r\n\r\n"[..]));
                assert!(again.as_ref().err() == Some(fault) && !decoder.is_end() && !decoder.close(), "{again:?}");
            });
            match progress? {
                Progress::Data(data) => content.extend_from_slice(&data),
                Progress::Trailers(trailers) => fields = trailers.iter().count(),
                Progress::End => return Ok((content, fields, input.len() + pieces.map(<[u8]>::len).sum::<usize>())),
                Progress::More => match pieces.next() {
                    Some(piece) => input.extend_from_slice(piece),
                    None if decoder.close() => return Ok((content, fields, 0)),
                    None => return Err(Fault::NotHttp),
                },
            }
        }
    }

    fn check(framing: Framing, bytes: &str, expected: Result<(&str, usize, usize), Fault>) {
        let expected = expected.map(|(content, fields, left)| (content.as_bytes().to_vec(), fields, left));
        for piece in [1, 2, 3, 7, 1000] {
            assert_eq!(decode(framing, bytes.as_bytes(), piece), expected, "{bytes:?} by {piece}");
        }
    }

    #[test]
    fn content_is_found() {
        check(Framing::Length(5), "helloGET", Ok(("hello", 0, 3)));
        check(Framing::Length(0), "GET", Ok(("", 0, 3)));
        check(Framing::Close, "hello", Ok(("hello", 0, 0)));
        check(Framing::Chunked, "5\r\nhello\r\n0\r\n\r\nGET", Ok(("hello", 0, 3)));
        check(Framing::Chunked, "3;a=b\r\nhel\r\n002 ; c\r\nlo\r\n0;x\r\nA: 1\r\nb: 2\r\n\r\nGET", Ok(("hello", 2, 3)));
        check(Framing::Chunked, "0\r\nContent-Length: 5\r\n\r\n", Ok(("", 0, 0)));
    }

    #[test]
    fn what_is_cut_off_has_no_end() {
        for bytes in ["", "5", "5\r\nhel", "5\r\nhello", "5\r\nhello\r\n", "5\r\nhello\r\n0\r\n", "0\r\nA: 1\r\n"] {
            check(Framing::Chunked, bytes, Err(Fault::NotHttp));
        }
        check(Framing::Length(5), "hell", Err(Fault::NotHttp));
    }

    #[test]
    fn sizes_that_could_be_read_in_two_ways_are_refused() {
        for size in ["", " 5", "+5", "-5", "0x5", "5 5", "5\r", "5g", "5\x0c", "5\x0b;x", "11111111111111111", "5\n"] {
            check(Framing::Chunked, &format!("{size}\r\nhello\r\n0\r\n\r\n"), Err(Fault::ChunkSize));
        }
        check(Framing::Chunked, "5\nhello\r\n0\r\n\r\n", Err(Fault::ChunkSize));
        check(Framing::Chunked, "5\r\nhello!\r\n0\r\n\r\n", Err(Fault::ChunkEnd));
        check(Framing::Chunked, "5\r\nhello\n0\r\n\r\n", Err(Fault::ChunkEnd));
        check(Framing::Chunked, "0\r\nA : 1\r\n\r\n", Err(Fault::Trailers));
        let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(MAX_SIZE_LINE));
        check(Framing::Chunked, &long, Err(Fault::ChunkSize));
        let long = format!("0\r\nA: {}\r\n\r\n", "x".repeat(TRAILERS.head));
        assert_eq!(decode(Framing::Chunked, long.as_bytes(), long.len()), Err(Fault::Trailers));
        assert_eq!(decode(Framing::Chunked, long.as_bytes(), 1000), Err(Fault::Trailers));
    }
}
