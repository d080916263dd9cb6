//! Streams that carry another protocol (RFC 8441).

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream as a connection of its own. Dropped before both ends are closed, it is reset.
pub struct Switched<H> {
    send: SendStream<Bytes>,
    receive: RecvStream,
    /// What has come and was not read.
    unread: Bytes,
    is_shut: bool,
    _held: H,
}

impl<H> Switched<H> {
    /// A stream after the heads by which both ends have agreed to that; it keeps `held` for as long as it lives.
    pub fn new(send: SendStream<Bytes>, receive: RecvStream, held: H) -> Self {
        Self { send, receive, unread: Bytes::new(), is_shut: false, _held: held }
    }
}

impl<H: Unpin> AsyncRead for Switched<H> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.receive.poll_data(cx)).transpose().map_err(failure)? {
                Some(data) => self.unread = data,
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread[..length]);
        self.unread.advance(length);
        let released = self.receive.flow_control().release_capacity(length);
        Poll::Ready(released.map_err(failure))
    }
}

impl<H: Unpin> AsyncWrite for Switched<H> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Poll::Ready(reset) = self.send.poll_reset(cx) {
            return Poll::Ready(match reset.map_err(failure)? {
                // All has come, and the other end reads no more.
                Reason::NO_ERROR => Ok(bytes.len()),
                reason => Err(io::Error::new(io::ErrorKind::ConnectionReset, h2::Error::from(reason))),
            });
        }
        self.send.reserve_capacity(bytes.len());
        while self.send.capacity() == 0 && !bytes.is_empty() {
            match ready!(self.send.poll_capacity(cx)) {
                Some(room) => room.map_err(failure)?,
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        let length = self.send.capacity().min(bytes.len());
        let sent = self.send.send_data(Bytes::copy_from_slice(&bytes[..length]), false);
        Poll::Ready(sent.map(|()| length).map_err(failure))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's task writes as soon as it can.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_shut || matches!(self.send.poll_reset(cx), Poll::Ready(Ok(Reason::NO_ERROR))) {
            return Poll::Ready(Ok(()));
        }
        self.is_shut = true;
        self.send.reserve_capacity(0);
        Poll::Ready(self.send.send_data(Bytes::new(), true).map_err(failure))
    }
}

/// The end of a stream is that of a connection for those who know no streams (section 5).
fn failure(error: h2::Error) -> io::Error {
    let kind = if error.is_reset() { io::ErrorKind::ConnectionReset } else { io::ErrorKind::Other };
    io::Error::new(error.get_io().map_or(kind, io::Error::kind), error)
}
