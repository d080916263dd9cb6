//! What hyper and h2 do not tell of a connection's streams.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use hyper::rt;
use tokio::sync::Notify;

/// How TLS has ended, if it has failed.
pub(super) type TlsFailure = Rc<RefCell<Option<rustls::Error>>>;

/// Notes how TLS fails: of what ends a connection, h2 tells its streams no more than the words.
pub(super) struct Noting<I> {
    io: I,
    tls_failure: TlsFailure,
    /// To be told when the first bytes have come.
    heard: Option<Rc<Notify>>,
    /// A write that has failed, while what the origin said before is still to be read.
    write_failure: Option<io::Error>,
}

impl<I: rt::Read + rt::Write + Unpin> Noting<I> {
    /// Notes in `tls_failure` how TLS ends, if it fails, and tells `heard` when something is read for the first time.
    pub(super) fn new(io: I, tls_failure: TlsFailure, heard: Rc<Notify>) -> Self {
        Self { io, tls_failure, heard: Some(heard), write_failure: None }
    }

    fn read(&mut self, cx: &mut Context<'_>, buffer: rt::ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_read(cx, buffer);
        if let Poll::Ready(Ok(())) = &polled {
            self.heard.take().inspect(|heard| heard.notify_one());
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
            let mut buffer = rt::ReadBuf::new(&mut bytes);
            let read = ready!(self.read(cx, buffer.unfilled()));
            // What comes before the end is of no use any more.
            if read.is_err() || buffer.filled().is_empty() {
                let failure = self.write_failure.take();
                return Poll::Ready(Err(failure.unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())));
            }
        }
    }
}

impl<I: rt::Read + rt::Write + Unpin> rt::Read for Noting<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.read(cx, buffer)
    }
}

impl<I: rt::Read + rt::Write + Unpin> rt::Write for Noting<I> {
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
        self.write(cx, rt::Write::poll_flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
