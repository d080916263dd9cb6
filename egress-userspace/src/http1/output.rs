//! What is to be written to a connection.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::AsyncWrite;

/// Pieces that are shorter, in bytes, are copied together.
const SHORT: usize = 2 * 1024;
/// Pieces that one system call takes.
const AT_ONCE: usize = 32;
/// What the first write of a request takes at most, in bytes: no more than one record of TLS (RFC 8446 section 5.1), so that
/// nobody can have read any of it if that write fails.
const FIRST: usize = 16 * 1024;

/// Bytes that have yet to be written.
#[derive(Debug, Default)]
pub struct Output {
    pieces: VecDeque<Bytes>,
    /// The last piece, to which more can be added.
    last: BytesMut,
    length: usize,
    /// Whether the stream may keep some of what it took.
    unflushed: bool,
    /// Whether a message begins here of which it has taken nothing yet.
    is_first: bool,
}

impl Output {
    /// Where bytes can be added.
    pub fn buffer(&mut self) -> Appending<'_> {
        let before = self.last.len();
        Appending { output: self, before }
    }

    /// Adds bytes.
    pub fn push(&mut self, bytes: Bytes) {
        self.length += bytes.len();
        if bytes.len() < SHORT {
            self.last.extend_from_slice(&bytes);
        } else {
            self.seal();
            self.pieces.push_back(bytes);
        }
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none, and the stream has passed on what it took.
    pub fn is_empty(&self) -> bool {
        self.length == 0 && !self.unflushed
    }

    /// A message begins here, of which is to be known whether any of it was sent.
    pub fn begin(&mut self) {
        self.is_first = true;
    }

    /// Whether the stream took some of that message.
    pub fn has_begun(&self) -> bool {
        !self.is_first
    }

    fn seal(&mut self) {
        if !self.last.is_empty() {
            self.pieces.push_back(self.last.split().freeze());
        }
    }

    /// Writes all that there is, and has the stream pass it on.
    pub fn poll_write<S: AsyncWrite + Unpin>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.length > 0 {
            let written = if self.is_first {
                let first = self.pieces.front().map_or(&self.last[..], |piece| &piece[..]);
                ready!(Pin::new(&mut *stream).poll_write(cx, &first[..first.len().min(FIRST)]))?
            } else if self.pieces.is_empty() {
                ready!(Pin::new(&mut *stream).poll_write(cx, &self.last))?
            } else {
                self.seal();
                let mut slices = [IoSlice::new(&[]); AT_ONCE];
                let count = self.pieces.len().min(AT_ONCE);
                for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                    *slice = IoSlice::new(piece);
                }
                ready!(Pin::new(&mut *stream).poll_write_vectored(cx, &slices[..count]))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            (self.is_first, self.unflushed) = (false, true);
            self.advance(written);
        }
        ready!(Pin::new(stream).poll_flush(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut written: usize) {
        self.length -= written;
        while written > 0 {
            let Some(first) = self.pieces.front_mut() else {
                self.last.advance(written);
                break;
            };
            let some = first.len().min(written);
            first.advance(some);
            written -= some;
            if first.is_empty() {
                self.pieces.pop_front();
            }
        }
        if self.length == 0 {
            (self.pieces, self.last) = Default::default();
        }
    }
}

/// The end of what is to be written, to be added to.
pub struct Appending<'a> {
    output: &'a mut Output,
    before: usize,
}

impl std::ops::Deref for Appending<'_> {
    type Target = BytesMut;

    fn deref(&self) -> &BytesMut {
        &self.output.last
    }
}

impl std::ops::DerefMut for Appending<'_> {
    fn deref_mut(&mut self) -> &mut BytesMut {
        &mut self.output.last
    }
}

impl Drop for Appending<'_> {
    fn drop(&mut self) {
        self.output.length += self.output.last.len() - self.before;
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Takes all, and notes how much at once.
    #[derive(Default)]
    struct Taken(Vec<Vec<u8>>);

    impl AsyncWrite for Taken {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.0.push(bytes.to_vec());
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            self.0.push(bytes);
            Poll::Ready(Ok(self.0.last().map_or(0, Vec::len)))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn written(begin: bool, pieces: &[usize]) -> Vec<usize> {
        let (mut output, mut taken) = (Output::default(), Taken::default());
        if begin {
            output.begin();
        }
        let mut all = Vec::new();
        for (number, length) in pieces.iter().enumerate() {
            let piece = vec![number as u8; *length];
            all.extend_from_slice(&piece);
            output.push(piece.into());
        }
        assert!(output.poll_write(&mut taken, &mut Context::from_waker(Waker::noop())).is_ready() && output.is_empty());
        assert_eq!(output.has_begun(), !begin || !all.is_empty());
        assert!(taken.0.concat() == all, "{pieces:?}");
        taken.0.iter().map(Vec::len).collect()
    }

    #[test]
    fn short_pieces_are_written_together_and_long_ones_beside_each_other() {
        assert_eq!(written(false, &[10, 20]), [30]);
        assert_eq!(written(false, &[10, 5000, 20]), [5030]);
        assert_eq!(written(false, &[]), [0; 0]);
    }

    #[test]
    fn of_a_request_one_record_is_written_first() {
        assert_eq!(written(true, &[10, 20]), [30]);
        assert_eq!(written(true, &[10, 50_000]), [10, 50_000]);
        assert_eq!(written(true, &[50_000, 10]), [FIRST, 50_010 - FIRST]);
    }
}
