//! HTTP/2 by hyper.

use std::{convert::Infallible, sync::Arc};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, ext::Protocol, server::conn::http2, service::service_fn, upgrade::OnUpgrade};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::Notify,
};

use super::{Peer, Reply, Request, Shared};

/// Answers requests until the client closes, or a reply says to close.
pub(super) async fn serve<S>(stream: S, peer: Peer, shared: &Arc<Shared>) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let close = Arc::new(Notify::new());
    let service = service_fn(|mut request: http::Request<Incoming>| {
        let (peer, shared, close) = (peer.clone(), Arc::clone(shared), Arc::clone(&close));
        async move {
            let upgrade = hyper::upgrade::on(&mut request);
            let reply = match record(request, peer).await {
                Ok(request) => shared.answer(request).in_time().await,
                Err(error) => Reply::status(400, &[], format!("{error:#}")),
            };
            let reply = match reply {
                Reply::Echo(_) => {
                    tokio::spawn(echo(upgrade));
                    Reply::status(200, &[("sec-websocket-protocol", "chat")], "")
                }
                reply => reply,
            };
            let response = match response(reply) {
                Some(response) => response,
                None => {
                    close.notify_one();
                    std::future::pending().await
                }
            };
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    if shared.web_sockets {
        builder.enable_connect_protocol();
    }
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        served = connection => served.context("HTTP/2"),
        () = close.notified() => Ok(()),
    }
}

/// Sends back what comes on a stream that has switched protocols.
async fn echo(upgrade: OnUpgrade) -> Result<()> {
    let (mut from, mut to) = tokio::io::split(TokioIo::new(upgrade.await?));
    tokio::io::copy(&mut from, &mut to).await?;
    Ok(to.shutdown().await?)
}

async fn record(request: http::Request<Incoming>, peer: Peer) -> Result<Request> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.context("reading the body")?;
    let fields = |map: &http::HeaderMap| {
        map.iter()
            .map(|(name, value)| (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect::<Vec<_>>()
    };
    let trailers = body.trailers().map(fields).unwrap_or_default();
    let protocol =
        parts.extensions.get::<Protocol>().map(|protocol| (":protocol".to_owned(), protocol.as_str().to_owned()));
    let protocol = protocol.into_iter();
    let authority = parts.uri.authority().map(ToString::to_string);
    let host =
        parts.headers.get(http::header::HOST).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    Ok(Request {
        connection: peer.connection,
        client: peer.client,
        server: peer.server,
        tls: peer.tls,
        version: "HTTP/2".to_owned(),
        method: parts.method.to_string(),
        target: parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        host: authority.or(host).unwrap_or_default(),
        headers: protocol.chain(fields(&parts.headers)).collect(),
        head: Vec::new(),
        body: body.to_bytes().to_vec(),
        framed_body: Vec::new(),
        trailers,
    })
}

/// The response, or nothing for the replies that only HTTP/1 can make: they end the connection.
fn response(reply: Reply) -> Option<http::Response<Full<Bytes>>> {
    let Reply::Response { status, headers, body } = reply else { return None };
    let mut response = http::Response::builder().status(status);
    for (name, value) in &headers {
        response = response.header(name, value);
    }
    response.body(Full::new(Bytes::from(body))).ok()
}
