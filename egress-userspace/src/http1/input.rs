//! What has been read from a connection and not been used.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;

/// Room for a read, in bytes: as heads and small contents need it, and as large ones do.
const SMALL: usize = 4 * 1024;
const LARGE: usize = 64 * 1024;

/// Bytes that have come. While there are none, there is no buffer.
#[derive(Debug)]
pub struct Input {
    /// The bytes.
    pub bytes: BytesMut,
    room: usize,
}

impl Input {
    /// These bytes have come already.
    pub fn new(bytes: BytesMut) -> Self {
        Self { bytes, room: SMALL }
    }

    /// Reads what there is, up to a limit; gives the number of bytes, which is 0 at the end.
    pub fn poll_fill<S: AsyncRead + Unpin>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut total = 0;
        while total < LARGE {
            self.bytes.reserve(self.room);
            let room = self.bytes.capacity() - self.bytes.len();
            match poll_read_buf(Pin::new(&mut *stream), cx, &mut self.bytes) {
                Poll::Ready(Ok(0)) => break,
                Poll::Ready(Ok(count)) => {
                    total += count;
                    if count == room {
                        self.room = LARGE;
                    }
                }
                // It comes again.
                Poll::Ready(Err(_)) | Poll::Pending if total > 0 => break,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.release();
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(total))
    }

    /// Gives some of what has come, if anything has.
    pub fn take(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let some = self.bytes.len().min(buffer.remaining());
        buffer.put_slice(&self.bytes.split_to(some));
        self.release();
        some > 0
    }

    /// Lets the buffer go if nothing is in it.
    pub fn release(&mut self) {
        if self.bytes.is_empty() {
            self.bytes = BytesMut::new();
        }
    }

    /// Begins with small reads anew.
    pub fn calm(&mut self) {
        self.room = SMALL;
        self.release();
    }
}
