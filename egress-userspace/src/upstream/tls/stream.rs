//! A connection once TLS is made.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use rustls::ClientConnection;
use tokio::io::{AsyncBufRead as _, AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::client;

use super::{batch::Batch, read_ahead::ReadAhead, witness::Witnessed};
use crate::upstream::{Carrier, tunnel::Way};

/// A connection over TLS. It is read from no sooner than there is something: rustls has to make room before it sees that there is not.
#[derive(Debug)]
pub struct TlsStream {
    tls: client::TlsStream<Witnessed<ReadAhead<Way>>>,
    /// What was wrong after what has been given.
    failure: Option<io::Error>,
    batch: Batch,
}

impl TlsStream {
    /// That of a handshake which is over.
    pub(super) fn new(tls: client::TlsStream<Witnessed<ReadAhead<Way>>>) -> Self {
        Self { tls, failure: None, batch: Batch::default() }
    }

    /// What was agreed on.
    pub fn session(&self) -> &ClientConnection {
        self.tls.get_ref().1
    }

    /// Waits for something to come if nothing is left of what has.
    fn poll_arrival(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (io, session) = self.tls.get_mut();
        let read_ahead = io.inner();
        if let Some(Way::Left(stream)) = read_ahead.drained()
            && session.wants_read()
            // What fails is said by reading.
            && stream.poll_read_ready(cx).is_pending()
        {
            read_ahead.release();
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

impl Carrier for TlsStream {
    fn expect(&mut self, sure: u64, cx: &mut Context<'_>) {
        if let Way::Left(socket) = self.tls.get_mut().0.inner().stream() {
            self.batch.expect(socket, sure, cx);
        }
    }

    fn is_coming(&self) -> bool {
        self.batch.is_coming()
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(failure) = this.failure.take() {
            return Poll::Ready(Err(failure));
        }
        let before = buffer.filled().len();
        while buffer.remaining() > 0 {
            let read = match this.poll_arrival(cx) {
                Poll::Ready(()) => Pin::new(&mut this.tls).poll_fill_buf(cx),
                Poll::Pending => Poll::Pending,
            };
            let is_first = buffer.filled().len() == before;
            match read {
                Poll::Ready(Ok([])) => break,
                Poll::Ready(Ok(data)) => {
                    let count = data.len().min(buffer.remaining());
                    buffer.put_slice(&data[..count]);
                    Pin::new(&mut this.tls).consume(count);
                }
                Poll::Ready(Err(error)) if is_first => return Poll::Ready(Err(error)),
                Poll::Ready(Err(error)) => {
                    this.failure = Some(error);
                    break;
                }
                Poll::Pending if is_first => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        this.batch.came(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
