//! Content of HTTP/1: it is the same however it comes, there is never more of it than was announced, and what we frame is read
//! as what it was; and so it is where content is a tunnel's. The first byte says how it is framed: `c` in chunks, `e` by the end of the connection; any other is a length.

#![no_main]

use std::{
    collections::VecDeque,
    io, iter,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Bytes, BytesMut};
use egress::{
    body::Frame,
    head::Fields,
    http1::{Decoder, Encoder, Fault, Framing, Output, Progress},
    upstream::tunnel::Posted,
};
use egress_fuzz::pieces;
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

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
    if framing == Framing::Chunked || framing == Framing::Close {
        check_tunnel(bytes, framing == Framing::Chunked, &whole);
    }
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
    assert!(matches!(output.poll_write(&mut written, &mut context()), Poll::Ready(Ok(()))));
    written
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// What comes out of a tunnel is the content of the response, of which some may have come with its head, and what goes into it is that
/// of the request.
fn check_tunnel(bytes: &[u8], is_chunked: bool, whole: &Decoded) {
    let mut pieces: VecDeque<_> = pieces(bytes).collect();
    let early = pieces.pop_front().unwrap_or_default().into();
    let mut tunnel = Posted::new(Wire { pieces, ..Wire::default() }, early, is_chunked);
    let mut content = Vec::new();
    let end = loop {
        let mut room = [0; 7];
        let mut room = ReadBuf::new(&mut room);
        match Pin::new(&mut tunnel).poll_read(&mut context(), &mut room) {
            Poll::Pending => {}
            Poll::Ready(Ok(())) if room.filled().is_empty() => break None,
            Poll::Ready(Ok(())) => content.extend_from_slice(room.filled()),
            Poll::Ready(Err(error)) => break Some(error.kind()),
        }
    };
    let expected = match whole.end {
        End::Complete => None,
        End::Closed => Some(io::ErrorKind::UnexpectedEof),
        End::Malformed(_) => Some(io::ErrorKind::InvalidData),
    };
    assert!((&content, end) == (&whole.content, expected), "{end:?} after {content:?}");

    let mut wire = Wire::default();
    let mut tunnel = Posted::new(&mut wire, BytesMut::new(), is_chunked);
    for mut piece in self::pieces(bytes) {
        while !piece.is_empty() {
            let written = Pin::new(&mut tunnel).poll_write(&mut context(), piece);
            piece = &piece[done(written).unwrap_or_default()..];
        }
    }
    while done(Pin::new(&mut tunnel).poll_shutdown(&mut context())).is_none() {}
    assert_eq!(read_chunks(&wire.written), Some((bytes.to_vec(), wire.written.len())));
}

fn done<T>(polled: Poll<io::Result<T>>) -> Option<T> {
    match polled {
        Poll::Ready(result) => Some(result.expect("nothing fails")),
        Poll::Pending => None,
    }
}

/// A connection that has something, and takes something, every other time.
#[derive(Default)]
struct Wire<'a> {
    pieces: VecDeque<&'a [u8]>,
    written: Vec<u8>,
    is_ready: bool,
}

impl Wire<'_> {
    fn poll_ready(&mut self) -> Poll<()> {
        self.is_ready = !self.is_ready;
        if self.is_ready { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl AsyncRead for Wire<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_ready());
        let next = self.pieces.pop_front().unwrap_or_default();
        let (now, later) = next.split_at(next.len().min(buffer.remaining()));
        buffer.put_slice(now);
        if !later.is_empty() {
            self.pieces.push_front(later);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire<'_> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_ready());
        let taken = &bytes[..bytes.len().min(11)];
        self.written.extend_from_slice(taken);
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
