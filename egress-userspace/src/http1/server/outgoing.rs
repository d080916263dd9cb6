//! How bytes go to an application.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncWrite, Interest},
    net::TcpStream,
};

/// A connection to write to.
pub(super) struct Outgoing<'a> {
    pub(super) stream: &'a TcpStream,
    /// Whether the connection's end follows at once. It goes with the last bytes then (MSG_MORE of send(2)), rather than in a packet of its
    /// own, which the other end would have to acknowledge.
    pub(super) is_last: bool,
}

impl Outgoing<'_> {
    /// Sends what the kernel takes of `length` bytes. When that is less, the next write waits for it to take more, without asking first.
    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        length: usize,
        send: impl Fn(SockRef<'_>, i32) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let flags = libc::MSG_NOSIGNAL | if self.is_last { libc::MSG_MORE } else { 0 };
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            let mut sent = None;
            let tried = self.stream.try_io(Interest::WRITABLE, || {
                let count = send(SockRef::from(self.stream), flags)?;
                sent = Some(count);
                if count < length { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match (sent, tried) {
                (Some(count), _) => return Poll::Ready(Ok(count)),
                (None, Err(error)) if error.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(error)),
                (None, _) => {}
            }
        }
    }
}

impl AsyncWrite for Outgoing<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, bytes.len(), |socket, flags| socket.send_with_flags(bytes, flags))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        self.poll_send(cx, length, |socket, flags| socket.send_vectored_with_flags(slices, flags))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(self.stream).shutdown(std::net::Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, net, thread};

    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// Both ends of a connection.
    async fn pair() -> (TcpStream, net::TcpStream) {
        let listener = net::TcpListener::bind("127.0.0.1:0").expect("loopback is there");
        let near = TcpStream::connect(listener.local_addr().expect("it is bound")).await.expect("it listens");
        (near, listener.accept().expect("it has connected").0)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_last_bytes_go_with_the_end() {
        for is_last in [false, true] {
            let (near, mut far) = pair().await;
            Outgoing { stream: &near, is_last }.write_all(b"bytes").await.expect("there is room");
            far.set_nonblocking(true).expect("it is a socket");
            let seen = far.peek(&mut [0; 10]).map_err(|error| error.kind());
            assert_eq!(seen, if is_last { Err(io::ErrorKind::WouldBlock) } else { Ok(5) });
            drop(near);
            let mut read = Vec::new();
            far.read_to_end(&mut read).expect("it has ended by now");
            assert_eq!(read, b"bytes");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn all_arrives_at_who_reads_slowly() {
        let bytes: Vec<u8> = (0..8_000_000_u32).map(|number| (number % 251) as u8).collect();
        for is_last in [false, true] {
            let (near, mut far) = pair().await;
            let reading = thread::spawn(move || {
                let (mut read, mut some) = (Vec::new(), vec![0; 100_000]);
                loop {
                    match far.read(&mut some).expect("nobody resets it") {
                        0 => return read,
                        count => read.extend_from_slice(&some[..count]),
                    }
                }
            });
            let mut out = Outgoing { stream: &near, is_last };
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (one, two) = rest.split_at(rest.len() / 2);
                let count = out.write_vectored(&[IoSlice::new(one), IoSlice::new(two)]).await.expect("it is read");
                rest = &rest[count..];
            }
            drop(near);
            assert!(reading.join().expect("it reads on") == bytes);
        }
    }
}
