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

/// Bytes that have yet to be written.
#[derive(Debug, Default)]
pub struct Output {
    pieces: VecDeque<Bytes>,
    /// The last piece, to which more can be added.
    last: BytesMut,
    length: usize,
    /// Whether the stream may keep some of what it took.
    unflushed: bool,
    /// Whether it took some of the current message.
    begun: bool,
}

impl Output {
    /// Where bytes can be added; `length` must be told what was.
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

    /// A message begins here.
    pub fn begin(&mut self) {
        self.begun = false;
    }

    /// Whether the stream took some of the message.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    fn seal(&mut self) {
        if !self.last.is_empty() {
            self.pieces.push_back(self.last.split().freeze());
        }
    }

    /// Writes all that there is, and has the stream pass it on.
    pub fn poll_write<S: AsyncWrite + Unpin>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.length > 0 {
            let written = if self.pieces.is_empty() {
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
            (self.begun, self.unflushed) = (true, true);
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
