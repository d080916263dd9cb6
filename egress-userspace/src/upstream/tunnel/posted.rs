//! A tunnel in the content of a POST and of its response, as Envoy makes it (`use_post`): what is sent is chunked (RFC 9112
//! section 7.1), and so is what comes back, unless the proxy's answer ends with the connection.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{
    body::Frame,
    http1::{Decoder, Encoder, Fault, Framing, Input, Output, Progress},
};

/// How much is sent in one chunk at most.
const CHUNK: usize = 16 * 1024;

/// The tunnel. To those who use it, it is a connection like any other.
#[derive(Debug)]
pub struct Posted<S = TcpStream> {
    stream: S,
    input: Input,
    response: Decoder,
    /// What has come out of it and is not yet read.
    received: Bytes,
    request: Encoder,
    /// What is on its way.
    output: Output,
}

impl<S> Posted<S> {
    /// The tunnel, after the head of the response, which was followed by what is already `received`.
    pub fn new(stream: S, received: BytesMut, is_chunked: bool) -> Self {
        Self {
            stream,
            input: Input::new(received),
            response: Decoder::new(if is_chunked { Framing::Chunked } else { Framing::Close }),
            received: Bytes::new(),
            request: Encoder::new(Framing::Chunked),
            output: Output::default(),
        }
    }
}

fn broken(fault: Fault) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, fault)
}

impl<S: AsyncRead + Unpin> AsyncRead for Posted<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.received.is_empty() {
            match this.response.decode(&mut this.input.bytes).map_err(broken)? {
                Progress::Data(data) => this.received = data,
                Progress::Trailers(_) => {}
                Progress::End => return Poll::Ready(Ok(())),
                Progress::More => {
                    let count = ready!(this.input.poll_fill(&mut this.stream, cx))?;
                    if count == 0 && !this.response.close() {
                        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                }
            }
        }
        let count = this.received.len().min(buffer.remaining());
        buffer.put_slice(&this.received[..count]);
        this.received.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Posted<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.output.poll_write(&mut this.stream, cx))?;
        let count = bytes.len().min(CHUNK);
        let chunk = Frame::Data(Bytes::copy_from_slice(&bytes[..count]));
        this.request.put(chunk, &mut this.output).map_err(broken)?;
        // What does not go now goes later; it is taken in any case.
        if let Poll::Ready(Err(error)) = this.output.poll_write(&mut this.stream, cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.output.poll_write(&mut this.stream, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.request.end(&mut this.output).map_err(broken)?;
        ready!(this.output.poll_write(&mut this.stream, cx))?;
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
            &[b"3", b"\r", b"\nab", b"c", b"\r", b"\n10\r\n0123456789", b"abcdef\r\n", b"0\r\n", b"\r\n"],
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
            ([b"11111111111111111111\r\n"], io::ErrorKind::InvalidData),
            ([b"3\r\nab"], io::ErrorKind::UnexpectedEof),
            ([b"3\r\nabc\r\n"], io::ErrorKind::UnexpectedEof),
            ([b"3\r\nabc\r\n0\r\n"], io::ErrorKind::UnexpectedEof),
        ] {
            assert_eq!(read(b"", &pieces, true).await.expect_err("an error").kind(), kind, "{pieces:?}");
        }
    }
}
