//! Streams that carry another protocol (RFC 8441).

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Error, Reader, Reason, Writer};

/// What is sent at a time, in bytes.
const AT_ONCE: usize = 64 * 1024;

/// A stream as a connection of its own. Dropped before both ends are closed, it is reset.
pub struct Switched<W, H> {
    writer: W,
    reader: Reader,
    /// What has come and was not read.
    unread: Bytes,
    is_shut: bool,
    _held: H,
}

impl<W: AsRef<Writer>, H> Switched<W, H> {
    /// A stream after the heads by which both ends have agreed to that; it keeps `held` for as long as it lives.
    pub fn new(writer: W, reader: Reader, held: H) -> Self {
        Self { writer, reader, unread: Bytes::new(), is_shut: false, _held: held }
    }

    /// Whether the other end has all that it wants.
    fn poll_reset(&self, cx: &Context<'_>) -> Option<Error> {
        match self.writer.as_ref().poll_reset(cx) {
            Poll::Ready(error) => Some(error),
            Poll::Pending => None,
        }
    }
}

/// All has come, and the other end reads no more.
fn is_in_order(error: &Error) -> bool {
    error.is_reset() && error.reason() == Some(Reason::NO_ERROR)
}

impl<W: Unpin, H: Unpin> AsyncRead for Switched<W, H> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            match ready!(self.reader.poll_data(cx)).transpose().map_err(failure)? {
                Some(data) => self.unread = data,
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread[..length]);
        self.unread.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<W: AsRef<Writer> + Unpin, H: Unpin> AsyncWrite for Switched<W, H> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.poll_reset(cx) {
            Some(error) if is_in_order(&error) => return Poll::Ready(Ok(bytes.len())),
            Some(error) => return Poll::Ready(Err(failure(error))),
            None => {}
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let writer = self.writer.as_ref();
        ready!(writer.poll_room(cx)).map_err(failure)?;
        let mut data = Bytes::copy_from_slice(&bytes[..bytes.len().min(AT_ONCE)]);
        let before = data.len();
        writer.send(&mut data, false).map_err(failure)?;
        Poll::Ready(Ok(before - data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's task writes as soon as it can.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_shut || self.poll_reset(cx).is_some_and(|error| is_in_order(&error)) {
            return Poll::Ready(Ok(()));
        }
        self.is_shut = true;
        Poll::Ready(self.writer.as_ref().end().map_err(failure))
    }
}

/// The end of a stream is that of a connection for those who know no streams (section 5).
fn failure(error: Error) -> io::Error {
    let kind = if error.is_reset() { io::ErrorKind::ConnectionReset } else { io::ErrorKind::Other };
    io::Error::new(error.io().map_or(kind, io::Error::kind), error)
}
