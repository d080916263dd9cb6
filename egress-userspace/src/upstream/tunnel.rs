//! A tunnel through an HTTP proxy (RFC 9110 section 9.3.6), in which TLS to the origin is made: what leaves the node is
//! a CONNECT with the origin's name and port, and what the proxy passes on it cannot read.

use std::{io, net::SocketAddr, time::Duration};

use http::StatusCode;
use httparse::{EMPTY_HEADER, Response, Status};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::UpstreamError;
use crate::policy::{EndpointAddress, Tunnel, TunnelMethod};

/// How long the proxy may take to answer: it connects to the origin meanwhile.
const LIMIT: Duration = Duration::from_secs(15);
/// The longest head of its answer, and the most fields in it.
const MAX_HEAD: usize = 16 * 1024;
const MAX_FIELDS: usize = 64;

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

/// Asks the proxy at the other end of `stream`, which is at `proxy`, for a tunnel.
///
/// # Errors
/// It does not make one. Nothing of the request has been sent then.
pub async fn open(stream: &mut TcpStream, proxy: SocketAddr, tunnel: &Tunnel) -> Result<(), UpstreamError> {
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

async fn ask(stream: &mut TcpStream, method: TunnelMethod, host: &str) -> Result<(), TunnelError> {
    let method = match method {
        TunnelMethod::Connect => "CONNECT",
        TunnelMethod::Post => "POST",
    };
    stream.write_all(format!("{method} {host} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await?;
    let mut head = Vec::with_capacity(512);
    loop {
        while let Some((status, length)) = parse(&head)? {
            // What precedes the answer (RFC 9110 section 15.2).
            if status.is_informational() {
                head.drain(..length);
                continue;
            }
            return match status {
                status if !status.is_success() => Err(TunnelError::Refused(status)),
                _ if length < head.len() => Err(TunnelError::Early),
                _ => Ok(()),
            };
        }
        if head.len() >= MAX_HEAD {
            return Err(TunnelError::TooLong);
        }
        if stream.read_buf(&mut head).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

/// Status and length of a head; None if it is not complete.
fn parse(bytes: &[u8]) -> Result<Option<(StatusCode, usize)>, TunnelError> {
    let mut fields = [EMPTY_HEADER; MAX_FIELDS];
    let mut response = Response::new(&mut fields);
    let Status::Complete(length) = response.parse(bytes).map_err(TunnelError::Malformed)? else { return Ok(None) };
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok());
    Ok(Some((status.ok_or(TunnelError::Malformed(httparse::Error::Status))?, length)))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// What becomes of a tunnel that a proxy answers for in these pieces.
    async fn check(pieces: &[&str]) -> Result<(), TunnelError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("its address");
        let proxy = async {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = [0; 256];
            let length = stream.read(&mut request).await.expect("a request");
            assert_eq!(&request[..length], b"CONNECT cnn.com:443 HTTP/1.1\r\nHost: cnn.com:443\r\n\r\n");
            for piece in pieces {
                stream.write_all(piece.as_bytes()).await.expect("it is written");
                stream.flush().await.expect("it is sent");
                tokio::task::yield_now().await;
            }
        };
        let client = async {
            let mut stream = TcpStream::connect(address).await.expect("a connection");
            ask(&mut stream, TunnelMethod::Connect, "cnn.com:443").await
        };
        tokio::join!(proxy, client).1
    }

    #[tokio::test]
    async fn a_tunnel_is_there_when_the_proxy_says_so_and_nothing_else() {
        check(&["HTTP/1.1 200 Connection established\r\n\r\n"]).await.expect("a tunnel");
        check(&["HTTP/1.1 2", "00 OK\r\nVia: a", "\r\n\r\n"]).await.expect("a tunnel");
        check(&["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\n"]).await.expect("a tunnel");
        for (pieces, reason) in [
            (&["HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"][..], "it answers 407"),
            (&["SSH-2.0-OpenSSH\r\n"], "it does not answer in HTTP"),
            (&["HTTP/1.1 200 OK\r\n\r\nhello"], "it sends more than its answer"),
            (&["HTTP/1.1 200 OK\r\n"], "the connection to it broke"),
        ] {
            let error = check(pieces).await.expect_err(reason).to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
