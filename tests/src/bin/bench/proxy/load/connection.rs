//! One connection of the client, and the response on it.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;
use socket2::{Domain, Protocol, Socket, Type};

/// What all connections of a run have in common.
pub(super) struct Destination {
    pub(super) address: SocketAddr,
    pub(super) tls: Option<Tls>,
    /// What is sent each time.
    pub(super) request: Vec<u8>,
    /// Whether the request asks for the connection to be closed.
    pub(super) closing: bool,
}

/// How TLS is spoken.
pub(super) struct Tls {
    pub(super) config: Arc<ClientConfig>,
    pub(super) name: ServerName<'static>,
}

/// A connection that nobody waits for: it goes on when epoll says so.
pub(super) struct Connection {
    stream: Stream,
    /// Bytes of the request that are written.
    written: usize,
    response: Response,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// How far a response has come.
enum Response {
    /// None is expected.
    None,
    /// The head so far.
    Head(Vec<u8>),
    /// Bytes of content that are missing, and how many there are.
    Body(u64, u64),
    /// The server is to close the connection, so that the client keeps no port.
    End,
}

/// What has come of an event.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Not the end of a response.
    Pending,
    /// A response is complete, with so many bytes of content.
    Done(u64),
    /// The server has closed the connection, as it was asked to.
    Closed,
}

impl Connection {
    /// Begins to connect.
    pub(super) fn open(destination: &Destination) -> Result<Self> {
        let address = destination.address;
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => {
                return Err(error).with_context(|| format!("connecting to {address}"));
            }
            _ => {}
        }
        let stream = TcpStream::from(socket);
        let stream = match &destination.tls {
            None => Stream::Plain(stream),
            Some(tls) => {
                let session = ClientConnection::new(tls.config.clone(), tls.name.clone())?;
                Stream::Tls(Box::new(StreamOwned::new(session, stream)))
            }
        };
        Ok(Self { stream, written: 0, response: Response::None })
    }

    /// Begins a request, which the next call of `advance` sends.
    pub(super) fn request(&mut self) {
        debug_assert!(matches!(self.response, Response::None), "one request at a time");
        self.written = 0;
        self.response = Response::Head(Vec::new());
    }

    /// Writes and reads what there is to.
    pub(super) fn advance(&mut self, destination: &Destination, buffer: &mut [u8]) -> Result<Progress> {
        let request = &destination.request;
        while !matches!(self.response, Response::None) && self.written < request.len() {
            match ready(self.stream.write(&request[self.written..])).context("writing a request")? {
                Some(count) => self.written += count,
                None => break,
            }
        }
        loop {
            // A closed connection is not a response; whether it is wrong depends on what was expected.
            let Some(count) = ready(self.stream.read(buffer)).context("reading a response")? else {
                return Ok(Progress::Pending);
            };
            if count == 0 {
                ensure!(matches!(self.response, Response::End), "the server closed the connection");
                return Ok(Progress::Closed);
            }
            if let Some(length) = self.response.take(&buffer[..count])? {
                self.response = if destination.closing { Response::End } else { Response::None };
                return Ok(Progress::Done(length));
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Plain(stream) => stream.as_fd(),
            Stream::Tls(stream) => stream.sock.as_fd(),
        }
    }
}

impl Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes).and_then(|count| stream.flush().map(|()| count)),
        }
    }
}

/// None if it would block, as while a connection is being made.
fn ready(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

impl Response {
    /// Takes bytes in; at the end of the response gives the length of its content.
    fn take(&mut self, bytes: &[u8]) -> Result<Option<u64>> {
        match self {
            Self::None => bail!("the server sent {} bytes that nobody asked for", bytes.len()),
            Self::End => bail!("the server sent more than it had announced"),
            Self::Body(missing, length) => {
                *missing = missing.checked_sub(bytes.len() as u64).context("more content than was announced")?;
                Ok((*missing == 0).then_some(*length))
            }
            Self::Head(head) => {
                // Most responses come in one piece.
                let (length, more) = if head.is_empty() {
                    let Some(end) = end_of_head(bytes) else {
                        head.extend_from_slice(bytes);
                        return Ok(None);
                    };
                    (content_length(&bytes[..end])?, bytes.len() - end)
                } else {
                    head.extend_from_slice(bytes);
                    let Some(end) = end_of_head(head) else { return Ok(None) };
                    (content_length(&head[..end])?, head.len() - end)
                };
                let missing = length.checked_sub(more as u64).context("more content than was announced")?;
                *self = Self::Body(missing, length);
                Ok((missing == 0).then_some(length))
            }
        }
    }
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// Of a head that must be that of a success.
fn content_length(head: &[u8]) -> Result<u64> {
    const NAME: &[u8] = b"content-length:";
    let text = || String::from_utf8_lossy(head);
    ensure!(head.starts_with(b"HTTP/1.1 200"), "the response is not 200: {}", text());
    let lines = head.split(|byte| *byte == b'\n');
    let value =
        lines.filter_map(|line| line.split_at_checked(NAME.len())).find(|(name, _)| name.eq_ignore_ascii_case(NAME));
    let value = value.and_then(|(_, value)| std::str::from_utf8(value).ok()?.trim().parse().ok());
    value.with_context(|| format!("a response without Content-Length: {}", text()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_read_in_whatever_pieces() {
        let response = b"HTTP/1.1 200 OK\r\nServer: x\r\ncontent-Length: 5\r\n\r\nhello";
        for size in 1..=response.len() {
            let mut state = Response::Head(Vec::new());
            let mut ends = Vec::new();
            for piece in response.chunks(size) {
                ends.extend(state.take(piece).expect("a good response"));
            }
            assert_eq!(ends, [5], "in pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_complete_success_is_an_error() {
        let check = |response: &str, reason: &str| {
            let error = Response::Head(Vec::new()).take(response.as_bytes()).expect_err("it is wrong");
            assert!(error.to_string().contains(reason), "{error:#}");
        };
        check("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "is not 200");
        check("HTTP/1.1 200 OK\r\n\r\n", "without Content-Length");
        check("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab", "more content");
        assert!(Response::None.take(b"a").is_err() && Response::End.take(b"a").is_err());
    }
}
