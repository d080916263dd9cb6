//! What h2 does not tell of a connection's streams.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How much is read at a time, in bytes: what has come is passed on while it is still in the processor's cache.
const TURN: usize = 256 * 1024;

/// What is known of a connection.
#[derive(Default)]
pub(super) struct Noted {
    /// Whether anything has come.
    pub(super) heard: Cell<bool>,
    /// When the first request was sent since something came last; before anything has come, when it was made.
    pub(super) silent_since: Cell<Option<Instant>>,
    /// How TLS has ended, if it has failed: of what ends a connection, h2 tells its streams no more than the words.
    pub(super) tls_failure: RefCell<Option<rustls::Error>>,
    /// How much may be read before others have had their turn.
    left: Cell<usize>,
}

impl Noted {
    /// It is the connection's turn.
    pub(super) fn turn(&self) {
        self.left.set(TURN);
    }
}

/// Notes what comes.
pub(super) struct Noting<I> {
    io: I,
    noted: Rc<Noted>,
    /// A write that has failed, while what the origin said before is still to be read.
    write_failure: Option<io::Error>,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Noting<I> {
    pub(super) fn new(io: I, noted: Rc<Noted>) -> Self {
        Self { io, noted, write_failure: None }
    }

    /// Notes a write that fails as the origin has closed, and goes on as if it had not: what the origin said before, be it whole
    /// responses or an alert that says why, is read first.
    fn unless_closed<T>(&mut self, written: Poll<io::Result<T>>, instead: T) -> Poll<io::Result<T>> {
        match written {
            Poll::Ready(Err(error))
                if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
            {
                self.write_failure = Some(error);
                Poll::Ready(Ok(instead))
            }
            written => written,
        }
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncRead for Noting<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.noted.left.get() == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let mut polled = Pin::new(&mut self.io).poll_read(cx, buffer);
        if let Poll::Ready(Ok(())) = &polled {
            let count = buffer.filled().len() - before;
            self.noted.heard.set(true);
            if count > 0 {
                self.noted.silent_since.set(None);
            }
            self.noted.left.set(self.noted.left.get().saturating_sub(count));
            if count == 0
                && let Some(failure) = self.write_failure.take()
            {
                polled = Poll::Ready(Err(failure));
            }
        }
        if let Poll::Ready(Err(error)) = &polled
            && let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>())
        {
            *self.noted.tls_failure.borrow_mut() = Some(error.clone());
        }
        polled
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Noting<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.write_failure.is_some() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.unless_closed(written, bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = pieces.iter().map(|piece| piece.len()).sum();
        if self.write_failure.is_some() {
            return Poll::Ready(Ok(all));
        }
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, pieces);
        self.unless_closed(written, all)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.write_failure.is_some() {
            return Poll::Ready(Ok(()));
        }
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.unless_closed(flushed, ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// So much to read, and nobody to write to.
    struct Closed(usize);

    impl AsyncRead for Closed {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let some = self.0.min(buffer.remaining());
            buffer.put_slice(&vec![b'x'; some]);
            self.0 -= some;
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Closed {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn read(noting: &mut Noting<Closed>, room: usize) -> Option<Result<usize, io::ErrorKind>> {
        let mut room = vec![0; room];
        let mut buffer = ReadBuf::new(&mut room);
        match Pin::new(noting).poll_read(&mut Context::from_waker(Waker::noop()), &mut buffer) {
            Poll::Ready(read) => Some(read.map(|()| buffer.filled().len()).map_err(|error| error.kind())),
            Poll::Pending => None,
        }
    }

    #[test]
    fn what_was_sent_by_one_who_has_closed_is_read_first() {
        let noted = Rc::<Noted>::default();
        let mut noting = Noting::new(Closed(10), noted.clone());
        noted.turn();
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..2 {
            assert!(matches!(Pin::new(&mut noting).poll_write(&mut cx, b"abc"), Poll::Ready(Ok(3))));
        }
        assert!(matches!(Pin::new(&mut noting).poll_flush(&mut cx), Poll::Ready(Ok(()))));
        assert_eq!(read(&mut noting, 100), Some(Ok(10)));
        assert_eq!(read(&mut noting, 100), Some(Err(io::ErrorKind::BrokenPipe)));
    }

    #[test]
    fn after_its_turn_a_connection_waits_for_the_next() {
        let noted = Rc::<Noted>::default();
        let mut noting = Noting::new(Closed(10 * TURN), noted.clone());
        for _ in 0..3 {
            noted.turn();
            assert_eq!(read(&mut noting, TURN), Some(Ok(TURN)));
            assert_eq!(read(&mut noting, TURN), None);
        }
    }
}
