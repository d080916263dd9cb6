//! HTTP/2 with prior knowledge, spoken as curl cannot be told to.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{
    Request,
    body::{Body, Frame},
    client::conn::http2,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{sync::oneshot, time::timeout};

use crate::{PATIENCE, target::Target};

/// What is sent at once, in bytes.
const PIECE: usize = 16 * 1024;

/// What may come of a response before its content is taken, in bytes: as much as there is to begin with (RFC 9113 section 6.9.2).
const WINDOW: u32 = 65_535;

/// Sends a POST with so many bytes of content, and takes nothing of the response's content before all of its own is sent.
/// Prints the status and how long the response's content was.
pub(crate) fn post(target: &Target, host: &str, length: usize) -> Result<()> {
    let stream = target.connect(&[])?;
    stream.set_nonblocking(true)?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let io = TokioIo::new(tokio::net::TcpStream::from_std(stream)?);
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
        let (mut sender, connection) = builder.handshake(io).await?;
        tokio::spawn(connection);
        let (told, sent) = oneshot::channel();
        let content = Content { left: length, sent: Some(told) };
        let response = sender.send_request(Request::post(format!("http://{host}/")).body(content)?).await?;
        println!("answered");
        timeout(PATIENCE, sent).await.context("the content is not taken")??;
        let status = response.status().as_u16();
        let content =
            timeout(PATIENCE, response.into_body().collect()).await.context("the response does not end")??;
        println!("{status} {}", content.to_bytes().len());
        Ok(())
    })
}

/// Says when all of it has been asked for.
struct Content {
    left: usize,
    sent: Option<oneshot::Sender<()>>,
}

impl Body for Content {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let piece = self.left.min(PIECE);
        self.left -= piece;
        if piece == 0 {
            // Nobody waits any more if the response was cut short.
            self.sent.take().map(|sent| sent.send(()));
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![b'x'; piece])))))
    }
}
