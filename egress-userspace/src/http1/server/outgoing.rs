//! How bytes go to an application.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use socket2::SockRef;
use tokio::io::AsyncWrite;

use super::ClientStream;

/// A connection to write to.
pub(super) struct Outgoing<'a> {
    pub(super) stream: &'a mut ClientStream,
    /// Whether the connection's end follows at once. It goes with the last bytes then (MSG_MORE of send(2)), rather than in a packet of its
    /// own, which the other end would have to acknowledge.
    pub(super) is_last: bool,
}

impl Outgoing<'_> {
    fn flags(&self) -> i32 {
        libc::MSG_NOSIGNAL | if self.is_last { libc::MSG_MORE } else { 0 }
    }
}

impl AsyncWrite for Outgoing<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let flags = self.flags();
        self.stream.poll_send(cx, bytes.len(), |socket| socket.send_with_flags(bytes, flags))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let (flags, length) = (self.flags(), slices.iter().map(|slice| slice.len()).sum());
        self.stream.poll_send(cx, length, |socket| socket.send_vectored_with_flags(slices, flags))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.stream).shutdown(std::net::Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, thread};

    use tokio::io::AsyncWriteExt as _;

    use super::{super::stream::tests::pair, *};

    #[tokio::test(flavor = "current_thread")]
    async fn the_last_bytes_go_with_the_end() {
        for is_last in [false, true] {
            let (mut near, mut far) = pair();
            Outgoing { stream: &mut near, is_last }.write_all(b"bytes").await.expect("there is room");
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
            let (mut near, mut far) = pair();
            let reading = thread::spawn(move || {
                let (mut read, mut some) = (Vec::new(), vec![0; 100_000]);
                loop {
                    match far.read(&mut some).expect("nobody resets it") {
                        0 => return read,
                        count => read.extend_from_slice(&some[..count]),
                    }
                }
            });
            let mut out = Outgoing { stream: &mut near, is_last };
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
