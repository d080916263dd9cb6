//! A tunnel in the content of a POST and of its response, as Envoy makes it (`use_post`): what is sent is chunked (RFC 9112
//! section 7.1), and so is what comes back, unless the proxy's answer ends with the connection.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use httparse::{Status, parse_chunk_size};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_util::io::poll_read_buf;

/// How much is sent in one chunk at most, and read at once.
const CHUNK: usize = 16 * 1024;
/// What a chunk's size and its extensions may take at most.
const MAX_SIZE_LINE: usize = 4 * 1024;

/// The tunnel. To those who use it, it is a connection like any other.
#[derive(Debug)]
pub struct Posted<S = TcpStream> {
    stream: S,
    /// What has come and is not yet read.
    received: BytesMut,
    response: Response,
    /// What is on its way, in chunks.
    unsent: BytesMut,
    /// Whether the last chunk is among it.
    ended: bool,
}

/// How far the response's content is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Response {
    /// All that comes is content.
    UntilClose,
    /// Before a chunk.
    Size,
    /// Within one: so many bytes are still to come.
    Data(u64),
    /// After one.
    DataEnd,
    /// After the last.
    Over,
}

impl<S> Posted<S> {
    /// The tunnel, after the head of the response, which was followed by what is already `received`.
    pub(super) fn new(stream: S, received: BytesMut, is_chunked: bool) -> Self {
        let response = if is_chunked { Response::Size } else { Response::UntilClose };
        Self { stream, received, response, unsent: BytesMut::new(), ended: false }
    }

    /// Takes the next content of what was received. Says whether there may be some only after more is received.
    fn take(&mut self, buffer: &mut ReadBuf<'_>) -> io::Result<bool> {
        loop {
            match self.response {
                Response::Over => return Ok(false),
                Response::Size => match parse_chunk_size(&self.received) {
                    Ok(Status::Complete((length, size))) => {
                        self.received.advance(length);
                        self.response = if size == 0 { Response::Over } else { Response::Data(size) };
                    }
                    Ok(Status::Partial) if self.received.len() < MAX_SIZE_LINE => return Ok(true),
                    Ok(Status::Partial) | Err(_) => return Err(broken("the proxy does not send chunks")),
                },
                Response::DataEnd if self.received.len() < 2 => return Ok(true),
                Response::DataEnd if self.received.starts_with(b"\r\n") => {
                    self.received.advance(2);
                    self.response = Response::Size;
                }
                Response::DataEnd => return Err(broken("a chunk of the proxy's is longer than it says")),
                Response::Data(_) | Response::UntilClose if self.received.is_empty() => return Ok(true),
                Response::Data(left) => {
                    let taken = self.copy(buffer, usize::try_from(left).unwrap_or(usize::MAX));
                    let left = left - taken as u64;
                    self.response = if left == 0 { Response::DataEnd } else { Response::Data(left) };
                    return Ok(false);
                }
                Response::UntilClose => {
                    self.copy(buffer, usize::MAX);
                    return Ok(false);
                }
            }
        }
    }

    fn copy(&mut self, buffer: &mut ReadBuf<'_>, limit: usize) -> usize {
        let count = self.received.len().min(buffer.remaining()).min(limit);
        buffer.put_slice(&self.received[..count]);
        self.received.advance(count);
        count
    }
}

fn broken(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

impl<S: AsyncRead + Unpin> AsyncRead for Posted<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.take(buffer)? {
            this.received.reserve(CHUNK);
            if ready!(poll_read_buf(Pin::new(&mut this.stream), cx, &mut this.received))? > 0 {
                continue;
            }
            return Poll::Ready(match this.response {
                Response::UntilClose => Ok(()),
                _ => Err(io::ErrorKind::UnexpectedEof.into()),
            });
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> Posted<S> {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.unsent))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.advance(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Posted<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        let count = bytes.len().min(CHUNK);
        // A chunk without bytes would be the last.
        if count > 0 {
            this.unsent.extend_from_slice(format!("{count:x}\r\n").as_bytes());
            this.unsent.extend_from_slice(&bytes[..count]);
            this.unsent.extend_from_slice(b"\r\n");
            // What does not go now goes later; it is taken in any case.
            if let Poll::Ready(Err(error)) = this.poll_send(cx) {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !std::mem::replace(&mut this.ended, true) {
            this.unsent.extend_from_slice(b"0\r\n\r\n");
        }
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn what_is_written_goes_in_chunks() {
        // Less than what is written: the rest goes as the other end reads.
        let (near, mut far) = duplex(1000);
        let sent: Vec<_> = (0..40_000_u32).map(|number| number as u8).collect();
        let content = sent.clone();
        let writing = tokio::spawn(async move {
            let mut tunnel = Posted::new(near, BytesMut::new(), true);
            tunnel.write_all(&content).await.expect("it is written");
            tunnel.shutdown().await.expect("it is ended");
        });
        let mut received = Vec::new();
        far.read_to_end(&mut received).await.expect("it comes");
        writing.await.expect("no panic");
        let chunks = [&sent[..CHUNK], &sent[CHUNK..2 * CHUNK], &sent[2 * CHUNK..]];
        let framed = chunks.map(|chunk| [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
        assert!(received == [framed.concat().as_slice(), b"0\r\n\r\n"].concat());
    }

    async fn read(early: &[u8], pieces: &[&[u8]], is_chunked: bool) -> io::Result<Vec<u8>> {
        let (near, mut far) = duplex(1000);
        let mut tunnel = Posted::new(near, BytesMut::from(early), is_chunked);
        let mut received = Vec::new();
        let reading = tunnel.read_to_end(&mut received);
        let writing = async {
            for piece in pieces {
                far.write_all(piece).await.expect("it is written");
                tokio::task::yield_now().await;
            }
            drop(far);
        };
        tokio::join!(reading, writing).0.map(|_| received)
    }

    #[tokio::test]
    async fn what_comes_in_chunks_is_read_without_them() {
        let chunks: [&[&[u8]]; 3] = [
            &[b"3\r\nabc\r\n10;x=y\r\n0123456789abcdef\r\n0\r\n\r\n"],
            &[b"3", b"\r", b"\nab", b"c", b"\r", b"\n10\r\n0123456789", b"abcdef\r\n", b"0\r\n"],
            &[b"\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\nx-y: z\r\n\r\n"],
        ];
        for (early, pieces) in [b"".as_slice(), b"", b"3"].into_iter().zip(chunks) {
            assert_eq!(read(early, pieces, true).await.expect("it is read"), b"abc0123456789abcdef", "{pieces:?}");
        }
        assert_eq!(read(b"ab", &[b"c", b"3\r\n"], false).await.expect("it is read"), b"abc3\r\n");
    }

    #[tokio::test]
    async fn what_is_no_chunk_or_ends_early_is_an_error() {
        for (pieces, kind) in [
            ([b"hello\r\n".as_slice()], io::ErrorKind::InvalidData),
            ([b"3\r\nabcd\r\n"], io::ErrorKind::InvalidData),
            ([&[b'1'; 20]], io::ErrorKind::InvalidData),
            ([b"3\r\nab"], io::ErrorKind::UnexpectedEof),
            ([b"3\r\nabc\r\n"], io::ErrorKind::UnexpectedEof),
        ] {
            assert_eq!(read(b"", &pieces, true).await.expect_err("an error").kind(), kind, "{pieces:?}");
        }
    }
}
