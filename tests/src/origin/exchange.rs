//! What comes, and what is answered.

use std::net::SocketAddr;

use super::TlsSeen;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Request {
    /// Number of the connection, from 0.
    pub connection: usize,
    /// The other end, as the origin sees it.
    pub client: SocketAddr,
    /// The origin's address.
    pub server: SocketAddr,
    /// What TLS told; nothing in clear.
    pub tls: Option<TlsSeen>,
    /// `HTTP/1.0`, `HTTP/1.1` or `HTTP/2`.
    pub version: String,
    /// The method.
    pub method: String,
    /// The target as in the request line; in HTTP/2 `:path`.
    pub target: String,
    /// The `Host` header; in HTTP/2 `:authority`, or `host` if there is none.
    pub host: String,
    /// The headers in the order in which they came; HTTP/1 in their own case, HTTP/2 with `:protocol` if there is one.
    pub headers: Vec<(String, String)>,
    /// HTTP/1: the head, from the method to the empty line. HTTP/2 has none.
    pub head: Vec<u8>,
    /// The body, without the chunking.
    pub body: Vec<u8>,
    /// HTTP/1: the body as it was framed.
    pub framed_body: Vec<u8>,
    /// The fields after the last chunk, or the HTTP/2 trailers.
    pub trailers: Vec<(String, String)>,
}

impl Request {
    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// What the origin does with a request.
#[derive(Debug)]
pub enum Reply {
    /// An answer in the protocol of the request. `content-length` is added.
    Response {
        /// The status.
        status: u16,
        /// The headers.
        headers: Vec<(String, String)>,
        /// The body.
        body: Vec<u8>,
    },
    /// These bytes as they are, and the connection stays open. HTTP/1 only, as the following ones.
    Raw(Vec<u8>),
    /// These bytes, and then an orderly close.
    RawThenClose(Vec<u8>),
    /// Bytes as they come from the test, and a close when it hangs up: for answers that are seen in pieces.
    Stream(tokio::sync::mpsc::UnboundedReceiver<Vec<u8>>),
    /// These bytes (the head of a 101), and then everything that comes is sent back. To a CONNECT of HTTP/2 it is a 200.
    Echo(Vec<u8>),
    /// An answer that is held back until the test says so, in the protocol of the request.
    Later(tokio::sync::watch::Receiver<bool>, Box<Self>),
    /// A close without an answer.
    Close,
    /// A reset without an answer.
    Reset,
    /// Silence, for as long as the client stays.
    Silence,
}

impl Reply {
    /// A 200 with a text.
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::status(200, &[("Content-Type", "text/html; charset=utf-8")], body)
    }

    /// Waits until it is to be given.
    pub(super) async fn in_time(self) -> Self {
        let Self::Later(mut released, reply) = self else { return self };
        // A test that has ended waits for nothing.
        released.wait_for(|released| *released).await.ok();
        *reply
    }

    /// A response with these headers.
    pub fn status(status: u16, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Self {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self::Response { status, headers, body: body.into() }
    }
}

/// The site of the seed: in clear a redirect to `https://`, over TLS a page, or `/bytes/N`: N bytes.
pub fn news_site(request: &Request) -> Reply {
    if request.tls.is_none() {
        let host = request.host.strip_suffix(":80").unwrap_or(&request.host);
        let location = format!("https://{host}{}", request.target);
        return Reply::status(301, &[("location", &location)], "");
    }
    match request.target.strip_prefix("/bytes/").and_then(|count| count.parse::<usize>().ok()) {
        Some(count) => Reply::ok((0..count).map(|at| b'a' + (at % 26) as u8).collect::<Vec<_>>()),
        None => Reply::ok(format!("<!doctype html><title>{}</title>\n", request.target)),
    }
}
