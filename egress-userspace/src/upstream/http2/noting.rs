//! What h2 does not tell of a connection's streams.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How TLS has ended, if it has failed.
pub(super) type TlsFailure = Rc<RefCell<Option<rustls::Error>>>;

/// Notes how TLS fails: of what ends a connection, h2 tells its streams no more than the words.
pub(super) struct Noting<I> {
    io: I,
    tls_failure: TlsFailure,
    /// Whether anything has come.
    heard: Rc<Cell<bool>>,
    /// A write that has failed, while what the origin said before is still to be read.
    write_failure: Option<io::Error>,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Noting<I> {
    /// Notes in `tls_failure` how TLS ends, if it fails, and in `heard` that something was read.
    pub(super) fn new(io: I, tls_failure: TlsFailure, heard: Rc<Cell<bool>>) -> Self {
        Self { io, tls_failure, heard, write_failure: None }
    }

    fn read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_read(cx, buffer);
        if let Poll::Ready(Ok(())) = &polled {
            self.heard.set(true);
        }
        if let Poll::Ready(Err(error)) = &polled
            && let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>())
        {
            *self.tls_failure.borrow_mut() = Some(error.clone());
        }
        polled
    }

    /// Writes. An origin that has closed may have said why in an alert, which is read before the failure is told.
    fn write<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut I>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.write_failure.is_none() {
            match write(Pin::new(&mut self.io), cx) {
                Poll::Ready(Err(error))
                    if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
                {
                    self.write_failure = Some(error);
                }
                other => return other,
            }
        }
        let mut bytes = [0; 1024];
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            let read = ready!(self.read(cx, &mut buffer));
            // What comes before the end is of no use any more.
            if read.is_err() || buffer.filled().is_empty() {
                let failure = self.write_failure.take();
                return Poll::Ready(Err(failure.unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())));
            }
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncRead for Noting<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.read(cx, buffer)
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Noting<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, |io, cx| io.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, |io, cx| io.poll_write_vectored(cx, pieces))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(cx, AsyncWrite::poll_flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
