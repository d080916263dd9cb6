//! HTTP/1 by hand: a library would tidy up what these tests are about.

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Peer, Reply, Request, Shared, Wire};

/// Answers requests until the client or a reply ends the connection.
pub(super) async fn serve<S: Transport + Send + 'static>(mut stream: S, peer: Peer, shared: &Shared) -> Result<()> {
    let mut input = Input { stream: &mut stream, buffer: Vec::new() };
    while let Some(mut request) = read_head(&mut input, &peer).await? {
        if let Some(script) = shared.script(&request) {
            let received = input.buffer;
            return script(Wire { received, stream: Box::new(stream) }).await;
        }
        read_body(&mut input, &mut request).await?;
        let mut close = request.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        close |= request.version == "HTTP/1.0" && request.header("connection").is_none();
        let head_only = request.method == "HEAD";
        let stream = &mut *input.stream;
        match shared.answer(request).in_time().await {
            Reply::Response { status, headers, body } => {
                let mut bytes = response_head(status, &headers, body.len());
                if !head_only {
                    bytes.extend_from_slice(&body);
                }
                stream.write_all(&bytes).await?;
            }
            Reply::Later(..) => bail!("an answer that is held back twice"),
            Reply::Raw(bytes) => stream.write_all(&bytes).await?,
            Reply::RawThenClose(bytes) => {
                stream.write_all(&bytes).await?;
                close = true;
            }
            Reply::Stream(mut pieces) => {
                while let Some(piece) = pieces.recv().await {
                    stream.write_all(&piece).await?;
                    stream.flush().await?;
                }
                close = true;
            }
            Reply::Echo(head) => {
                stream.write_all(&head).await?;
                stream.write_all(&input.buffer).await?;
                stream.flush().await?;
                let mut buffer = vec![0; 16 * 1024];
                while let count @ 1.. = stream.read(&mut buffer).await? {
                    stream.write_all(&buffer[..count]).await?;
                    stream.flush().await?;
                }
                close = true;
            }
            Reply::Close => close = true,
            Reply::Reset => {
                stream.reset_on_close()?;
                return Ok(());
            }
            Reply::Silence => {
                let mut buffer = [0; 1024];
                while stream.read(&mut buffer).await? > 0 {}
                return Ok(());
            }
        }
        input.stream.flush().await?;
        if close {
            break;
        }
    }
    stream.shutdown().await.ok();
    Ok(())
}

/// A stream whose TCP connection can be reset.
pub trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// Lets the close of the connection be a reset.
    fn reset_on_close(&self) -> Result<()>;
}

impl Transport for tokio::net::TcpStream {
    fn reset_on_close(&self) -> Result<()> {
        Ok(socket2::SockRef::from(self).set_linger(Some(std::time::Duration::ZERO))?)
    }
}

impl Transport for tokio_rustls::server::TlsStream<tokio::net::TcpStream> {
    fn reset_on_close(&self) -> Result<()> {
        self.get_ref().0.reset_on_close()
    }
}

fn response_head(status: u16, headers: &[(String, String)], length: usize) -> Vec<u8> {
    let reason = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let mut head = format!("HTTP/1.1 {status} {}\r\n", reason.unwrap_or("Unknown"));
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) && status != 204 && status != 304 {
        head += &format!("Content-Length: {length}\r\n");
    }
    (head + "\r\n").into_bytes()
}

/// What has been read and not yet been used.
struct Input<'a, S> {
    stream: &'a mut S,
    buffer: Vec<u8>,
}

impl<S: Transport> Input<'_, S> {
    /// Reads more; false at the end.
    async fn fill(&mut self) -> Result<bool> {
        Ok(self.stream.read_buf(&mut self.buffer).await? > 0)
    }

    /// Takes everything up to and including `end`; nothing if the stream ends before its first byte.
    async fn take_until(&mut self, end: &[u8]) -> Result<Option<Vec<u8>>> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                return Ok(Some(self.buffer.drain(..at + end.len()).collect()));
            }
            if !self.fill().await? {
                if self.buffer.is_empty() {
                    return Ok(None);
                }
                bail!("the request ends early: {:?}", String::from_utf8_lossy(&self.buffer));
            }
        }
    }

    async fn take(&mut self, count: usize) -> Result<Vec<u8>> {
        while self.buffer.len() < count {
            if !self.fill().await? {
                bail!("the body ends after {} of {count} bytes", self.buffer.len());
            }
        }
        Ok(self.buffer.drain(..count).collect())
    }
}

async fn read_head<S: Transport>(input: &mut Input<'_, S>, peer: &Peer) -> Result<Option<Request>> {
    let Some(head) = input.take_until(b"\r\n\r\n").await? else { return Ok(None) };
    let text = String::from_utf8_lossy(&head).into_owned();
    let mut lines = text.split("\r\n");
    let mut first = lines.next().unwrap_or_default().splitn(3, ' ').map(ToOwned::to_owned);
    let mut word = || first.next().unwrap_or_default();
    let mut request = Request {
        connection: peer.connection,
        client: peer.client,
        server: peer.server,
        tls: peer.tls.clone(),
        method: word(),
        target: word(),
        version: word(),
        host: String::new(),
        headers: fields(lines),
        head,
        body: Vec::new(),
        framed_body: Vec::new(),
        trailers: Vec::new(),
    };
    request.host = request.header("host").unwrap_or_default().to_owned();
    Ok(Some(request))
}

async fn read_body<S: Transport>(input: &mut Input<'_, S>, request: &mut Request) -> Result<()> {
    if request.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue")) {
        input.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        input.stream.flush().await?;
    }
    if request.header("transfer-encoding").is_some_and(|value| value.to_ascii_lowercase().ends_with("chunked")) {
        read_chunks(input, request).await?;
    } else if let Some(length) = request.header("content-length") {
        request.body = input.take(length.trim().parse().context("Content-Length")?).await?;
        request.framed_body.clone_from(&request.body);
    }
    Ok(())
}

async fn read_chunks<S: Transport>(input: &mut Input<'_, S>, request: &mut Request) -> Result<()> {
    loop {
        let line = input.take_until(b"\r\n").await?.context("the body ends before its last chunk")?;
        request.framed_body.extend_from_slice(&line);
        let text = String::from_utf8_lossy(&line);
        let size =
            usize::from_str_radix(text.split(';').next().unwrap_or_default().trim(), 16).context("chunk size")?;
        if size == 0 {
            break;
        }
        let chunk = input.take(size + 2).await?;
        request.body.extend_from_slice(&chunk[..size]);
        request.framed_body.extend_from_slice(&chunk);
    }
    loop {
        let line = input.take_until(b"\r\n").await?.context("the trailers end early")?;
        request.framed_body.extend_from_slice(&line);
        if line == b"\r\n" {
            return Ok(());
        }
        request.trailers.extend(fields(std::iter::once(String::from_utf8_lossy(&line).trim_end())));
    }
}

fn fields<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<(String, String)> {
    lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim_matches([' ', '\t']).to_owned()))
        .collect()
}
