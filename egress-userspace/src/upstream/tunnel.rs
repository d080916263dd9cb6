//! A tunnel through an HTTP proxy (RFC 9110 section 9.3.6), in which TLS to the origin is made: what leaves the node is
//! a CONNECT or a POST with the origin's name and port, and what the proxy passes on it cannot read.

mod posted;

use std::{io, net::SocketAddr, time::Duration};

use bytes::{Buf as _, BytesMut};
use http::StatusCode;
use httparse::{EMPTY_HEADER, Response, Status};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_util::either::Either;

pub use self::posted::Posted;
use super::UpstreamError;
use crate::policy::{EndpointAddress, Tunnel, TunnelMethod};

/// How long the proxy may take to answer: it connects to the origin meanwhile.
const LIMIT: Duration = Duration::from_secs(15);
/// The longest head of its answer, and the most fields in it.
const MAX_HEAD: usize = 16 * 1024;
const MAX_FIELDS: usize = 64;

/// A way to the origin: a connection to it or to a proxy that has become one, or the content of a request.
pub type Way = Either<TcpStream, Posted>;

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The proxy does not want to, or cannot.
    #[error("it answers {0}")]
    Refused(StatusCode),
    /// What it says is no response.
    #[error("it does not answer in HTTP: {0}")]
    Malformed(httparse::Error),
    /// Its answer does not end.
    #[error("the head of its answer is longer than {MAX_HEAD} bytes")]
    TooLong,
    /// It answers with a page rather than with what the origin sends.
    #[error("its answer has a length, which a tunnel cannot have: it is an answer of its own")]
    Bounded,
    /// There are bytes before TLS has begun, which is for us to begin.
    #[error("it sends more than its answer")]
    Early,
    /// The connection to it broke.
    #[error("the connection to it broke: {0}")]
    Broken(#[from] io::Error),
    /// It took too long.
    #[error("it does not answer within {} s", LIMIT.as_secs())]
    Timeout,
}

impl TunnelError {
    /// Whether it is this proxy that fails: another one might make the tunnel. What is refused otherwise would be there too.
    pub(super) fn is_of_proxy(&self) -> bool {
        match self {
            Self::Refused(status) => status.is_server_error(),
            Self::Malformed(_) | Self::TooLong | Self::Early | Self::Broken(_) => true,
            // It has had its time, and a page is what it has for everybody.
            Self::Bounded | Self::Timeout => false,
        }
    }
}

/// Asks the proxy at the other end of `stream`, which is at `proxy`, for a tunnel.
///
/// # Errors
/// It does not make one. Nothing of the request has been sent then.
pub async fn open(stream: TcpStream, proxy: SocketAddr, tunnel: &Tunnel) -> Result<Way, UpstreamError> {
    let host = authority(tunnel);
    let opened = timeout(LIMIT, ask(stream, tunnel.method, &host)).await;
    opened.unwrap_or(Err(TunnelError::Timeout)).map_err(|source| UpstreamError::Tunnel { proxy, host, source })
}

/// The origin, as the proxy is asked for it.
pub fn authority(tunnel: &Tunnel) -> String {
    match &tunnel.host {
        EndpointAddress::Ip(address) => SocketAddr::new(*address, tunnel.port.get()).to_string(),
        EndpointAddress::Name(name) => format!("{}:{}", name.as_str(), tunnel.port),
    }
}

async fn ask(mut stream: TcpStream, method: TunnelMethod, host: &str) -> Result<Way, TunnelError> {
    let request = match method {
        TunnelMethod::Connect => format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        TunnelMethod::Post => format!("POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n"),
    };
    stream.write_all(request.as_bytes()).await?;
    let mut received = BytesMut::with_capacity(512);
    let answer = loop {
        match parse(&received)? {
            // What precedes the answer (RFC 9110 section 15.2).
            Some(answer) if answer.status.is_informational() => received.advance(answer.length),
            Some(answer) => break answer,
            None if received.len() >= MAX_HEAD => return Err(TunnelError::TooLong),
            None if stream.read_buf(&mut received).await? == 0 => {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            None => {}
        }
    };
    received.advance(answer.length);
    match method {
        _ if !answer.status.is_success() => Err(TunnelError::Refused(answer.status)),
        // A successful answer to CONNECT has no content, whatever its fields say.
        TunnelMethod::Connect if !received.is_empty() => Err(TunnelError::Early),
        TunnelMethod::Connect => Ok(Either::Left(stream)),
        TunnelMethod::Post if answer.has_length => Err(TunnelError::Bounded),
        TunnelMethod::Post => Ok(Either::Right(Posted::new(stream, received, answer.is_chunked))),
    }
}

/// The head of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether there is a tunnel.
    pub status: StatusCode,
    /// The head's own, in bytes.
    pub length: usize,
    /// Whether its content has one.
    pub has_length: bool,
    /// Whether its content is chunked.
    pub is_chunked: bool,
}

/// The head of an answer; None if it is not complete.
///
/// # Errors
/// It is no answer of HTTP.
pub fn parse(bytes: &[u8]) -> Result<Option<Answer>, TunnelError> {
    let mut fields = [EMPTY_HEADER; MAX_FIELDS];
    let mut response = Response::new(&mut fields);
    let Status::Complete(length) = response.parse(bytes).map_err(TunnelError::Malformed)? else { return Ok(None) };
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok());
    let named = |name: &str| response.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
    let coding = named("transfer-encoding");
    Ok(Some(Answer {
        status: status.ok_or(TunnelError::Malformed(httparse::Error::Status))?,
        length,
        has_length: status == Some(StatusCode::NO_CONTENT) || coding.is_none() && named("content-length").is_some(),
        is_chunked: coding.is_some_and(|field| field.value.eq_ignore_ascii_case(b"chunked")),
    }))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// What becomes of a tunnel that a proxy answers for in these pieces.
    async fn check(method: TunnelMethod, pieces: &[&str]) -> Result<Way, TunnelError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("its address");
        let asked: &[u8] = match method {
            TunnelMethod::Connect => b"CONNECT cnn.com:443 HTTP/1.1\r\nHost: cnn.com:443\r\n\r\n",
            TunnelMethod::Post => b"POST / HTTP/1.1\r\nHost: cnn.com:443\r\nTransfer-Encoding: chunked\r\n\r\n",
        };
        let proxy = async {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = [0; 256];
            let length = stream.read(&mut request).await.expect("a request");
            assert_eq!(&request[..length], asked);
            for piece in pieces {
                stream.write_all(piece.as_bytes()).await.expect("it is written");
                stream.flush().await.expect("it is sent");
                tokio::task::yield_now().await;
            }
        };
        let client = async {
            let stream = TcpStream::connect(address).await.expect("a connection");
            ask(stream, method, "cnn.com:443").await
        };
        tokio::join!(proxy, client).1
    }

    #[tokio::test]
    async fn a_tunnel_is_there_when_the_proxy_says_so_and_nothing_else() {
        use TunnelMethod::{Connect, Post};
        for pieces in [
            &["HTTP/1.1 200 Connection established\r\n\r\n"][..],
            &["HTTP/1.1 2", "00 OK\r\nVia: a", "\r\n\r\n"],
            &["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\n"],
            &["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"],
        ] {
            assert!(matches!(check(Connect, pieces).await.expect("a tunnel"), Either::Left(_)), "{pieces:?}");
            assert!(matches!(check(Post, pieces).await.expect("a tunnel"), Either::Right(_)), "{pieces:?}");
        }
        check(Connect, &["HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]).await.expect("a tunnel");
        check(Post, &["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n"]).await.expect("a tunnel");
        for (method, pieces, reason) in [
            (
                Connect,
                &["HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"][..],
                "it answers 407",
            ),
            (Post, &["HTTP/1.1 405 Method Not Allowed\r\n\r\n"], "it answers 405"),
            (Connect, &["SSH-2.0-OpenSSH\r\n"], "it does not answer in HTTP"),
            (Connect, &["HTTP/1.1 200 OK\r\n\r\nhello"], "it sends more than its answer"),
            (Connect, &["HTTP/1.1 200 OK\r\n"], "the connection to it broke"),
            (Post, &["HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"], "its answer has a length"),
            (Post, &["HTTP/1.1 204 No Content\r\n\r\n"], "its answer has a length"),
        ] {
            let error = check(method, pieces).await.expect_err(reason).to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
