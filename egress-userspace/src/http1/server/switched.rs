//! Another protocol on a client's connection.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Connection, outgoing::Outgoing};

/// What comes after the head by which both ends have switched to another protocol.
pub struct Switched(Rc<Connection>);

impl Switched {
    /// The connection as it is.
    pub fn new(connection: Rc<Connection>) -> Self {
        Self(connection)
    }
}

impl AsyncRead for Switched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let io = &mut *self.0.io.borrow_mut();
        io.input.poll_read(&mut io.stream, cx, buffer)
    }
}

impl AsyncWrite for Switched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let io = &mut *self.0.io.borrow_mut();
        let written = Pin::new(&mut Outgoing { stream: &mut io.stream, is_last: false }).poll_write(cx, bytes);
        io.limited(written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let io = &mut *self.0.io.borrow_mut();
        let written =
            Pin::new(&mut Outgoing { stream: &mut io.stream, is_last: false }).poll_write_vectored(cx, slices);
        io.limited(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.shut_down())
    }
}
