//! Content of HTTP/1: it is the same however it comes, there is never more of it than was announced, and what we frame is read
//! as what it was. The first byte says how it is framed: `c` in chunks, `e` by the end of the connection; any other is a length.

#![no_main]

use std::iter;

use bytes::{Bytes, BytesMut};
use egress::{
    body::Frame,
    head::Fields,
    http1::{Decoder, Encoder, Fault, Framing, Output, Progress},
};
use egress_fuzz::pieces;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, bytes)) = bytes.split_first() else { return };
    let framing = match first {
        b'c' => Framing::Chunked,
        b'e' => Framing::Close,
        length => Framing::Length(length.into()),
    };
    let whole = decode(framing, iter::once(bytes));
    assert_eq!(whole, decode(framing, pieces(bytes)));
    match framing {
        Framing::Length(length) => {
            let expected = bytes.len().min(first.into());
            assert_eq!(whole.content, bytes[..expected]);
            assert_eq!(whole.end == End::Complete, expected as u64 == length);
        }
        Framing::Close => assert!(whole.content == bytes && whole.end == End::Complete),
        Framing::Chunked => check_chunks(bytes, &whole),
    }
    check_encoded(bytes, &whole.trailers);
});

#[derive(Debug, PartialEq)]
struct Decoded {
    content: Vec<u8>,
    trailers: Trailers,
    end: End,
    /// How many bytes follow.
    left: usize,
}

/// They are the same if they are written in the same way.
#[derive(Clone, Debug, Default)]
struct Trailers(Fields);

impl PartialEq for Trailers {
    fn eq(&self, other: &Self) -> bool {
        self.0.lines().eq(other.0.lines())
    }
}

#[derive(Debug, PartialEq)]
enum End {
    Complete,
    /// The connection ended before.
    Closed,
    Malformed(Fault),
}

fn decode<'a>(framing: Framing, mut pieces: impl Iterator<Item = &'a [u8]>) -> Decoded {
    let (mut decoder, mut input) = (Decoder::new(framing), BytesMut::new());
    let (mut content, mut trailers) = (Vec::new(), Trailers::default());
    let end = loop {
        if let (Framing::Length(length), Some(left)) = (framing, decoder.left()) {
            assert_eq!(content.len() as u64 + left, length);
        }
        match decoder.decode(&mut input) {
            Ok(Progress::Data(data)) => {
                assert!(!data.is_empty(), "nothing is no progress");
                content.extend_from_slice(&data);
            }
            Ok(Progress::Trailers(found)) => trailers = Trailers(found),
            Ok(Progress::End) => break End::Complete,
            Ok(Progress::More) => match pieces.next() {
                Some(piece) => input.extend_from_slice(piece),
                None if decoder.close() => break End::Complete,
                None => break End::Closed,
            },
            Err(fault) => break End::Malformed(fault),
        }
    };
    // What is left of malformed content nobody reads.
    let left = if end == End::Complete { input.len() + pieces.map(<[u8]>::len).sum::<usize>() } else { 0 };
    Decoded { content, trailers, end, left }
}

/// Who reads chunks as RFC 9112 section 7.1 has them, and has all of them at hand, finds the same.
fn check_chunks(bytes: &[u8], decoded: &Decoded) {
    let read = read_chunks(bytes);
    match decoded.end {
        End::Complete => {
            assert_eq!(read, Some((decoded.content.clone(), bytes.len() - decoded.left)));
        }
        End::Closed => assert_eq!(read, None),
        End::Malformed(_) => {}
    }
}

/// The content, and the length of all of its chunks with the trailers, whose fields are not looked at.
fn read_chunks(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut content, mut rest) = (Vec::new(), bytes);
    loop {
        let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
        let digits = rest[..end].split(|byte| !byte.is_ascii_hexdigit()).next()?;
        let size = usize::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            break;
        }
        content.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size..)?.strip_prefix(b"\r\n")?;
    }
    loop {
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
        rest = &rest[end + 1..];
        if line.is_empty() {
            return Some((content, bytes.len() - rest.len()));
        }
    }
}

/// Any content, and trailers that were read, come back as they were.
fn check_encoded(content: &[u8], trailers: &Trailers) {
    for framing in [Framing::Chunked, Framing::Close, Framing::Length(content.len() as u64)] {
        let (mut encoder, mut output) = (Encoder::new(framing), Output::default());
        for piece in pieces(content) {
            encoder.put(Frame::Data(Bytes::copy_from_slice(piece)), &mut output).expect("as announced");
        }
        if !trailers.0.is_empty() {
            encoder.put(Frame::Trailers(trailers.0.clone()), &mut output).expect("as announced");
        }
        encoder.end(&mut output).expect("as announced");
        assert!(encoder.is_complete());
        let written = written(output);
        let decoded = decode(framing, pieces(&written));
        assert_eq!((decoded.end, decoded.left), (End::Complete, 0));
        assert!(decoded.content == content, "{framing:?}");
        if framing == Framing::Chunked {
            assert_eq!(decoded.trailers, *trailers);
        }
    }
    if let Some(less) = content.len().checked_sub(1) {
        let (mut encoder, mut output) = (Encoder::new(Framing::Length(less as u64)), Output::default());
        let content = Bytes::copy_from_slice(content);
        assert_eq!(encoder.put(Frame::Data(content), &mut output), Err(Fault::Length));
        assert!(output.is_empty());
    }
}

/// What goes to a connection.
fn written(mut output: Output) -> Vec<u8> {
    let mut written = Vec::new();
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(matches!(output.poll_write(&mut written, &mut context), std::task::Poll::Ready(Ok(()))));
    written
}
