//! Larger reads than rustls makes: it asks for 4 KiB at a time, which for large contents is a system call for each quarter of
//! a record.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Room for a read, in bytes: four records of full size.
const ROOM: usize = 64 * 1024 + 4 * 256;

/// A stream that reads ahead once more comes than is asked for. There is a buffer only while that is so; with tokio's `BufReader`
/// each idle connection would keep one.
#[derive(Debug)]
pub struct ReadAhead<S> {
    stream: S,
    buffer: Vec<u8>,
    /// Up to where it has been given.
    given: usize,
    /// Whether the last read got all that was asked for, or more.
    more: bool,
}

impl<S> ReadAhead<S> {
    /// A stream of which nothing has been read.
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::new(), given: 0, more: false }
    }

    /// The stream.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// The stream, if nothing is left of what was read of it.
    pub fn drained(&self) -> Option<&S> {
        (self.given == self.buffer.len()).then_some(&self.stream)
    }

    /// Lets the buffer go, of which all was given, until something comes.
    pub fn release(&mut self) {
        (self.buffer, self.given) = (Vec::new(), 0);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.given == this.buffer.len() {
            if !this.more {
                this.release();
                let before = buffer.filled().len();
                ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
                this.more = buffer.remaining() == 0 && buffer.filled().len() > before;
                return Poll::Ready(Ok(()));
            }
            this.given = 0;
            this.buffer.clear();
            this.buffer.reserve(ROOM);
            let mut ahead = ReadBuf::uninit(this.buffer.spare_capacity_mut());
            let polled = Pin::new(&mut this.stream).poll_read(cx, &mut ahead);
            let count = ahead.filled().len();
            // SAFETY: so many bytes beyond the length, which is 0, were filled.
            unsafe { this.buffer.set_len(count) };
            if polled.is_pending() {
                this.release();
            }
            ready!(polled)?;
            this.more = count >= buffer.remaining();
        }
        let some = (this.buffer.len() - this.given).min(buffer.remaining());
        buffer.put_slice(&this.buffer[this.given..this.given + some]);
        this.given += some;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadAhead<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match slices {
            // As nearly always; send(2) does less than writev(2).
            [one] => Pin::new(&mut self.stream).poll_write(cx, one),
            slices => Pin::new(&mut self.stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_read_ahead_comes_in_order_and_to_its_end() {
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|number| (number % 251) as u8).collect();
        for piece in [1000, 4096, 200_000] {
            let mut stream = ReadAhead::new(&bytes[..]);
            let (mut read, mut some) = (Vec::new(), vec![0; piece]);
            loop {
                let count = stream.read(&mut some).await.expect("a slice can be read");
                if count == 0 {
                    break;
                }
                read.extend_from_slice(&some[..count]);
            }
            assert!(read == bytes, "{piece}");
        }
    }
}
