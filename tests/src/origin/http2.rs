//! HTTP/2 by hyper.

use std::{convert::Infallible, sync::Arc};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
};

use super::{Peer, Reply, Request, Shared};

/// Answers requests until the client closes, or a reply says to close.
pub(super) async fn serve<S>(stream: S, peer: Peer, shared: &Arc<Shared>) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let close = Arc::new(Notify::new());
    let service = service_fn(|request: http::Request<Incoming>| {
        let (peer, shared, close) = (peer.clone(), Arc::clone(shared), Arc::clone(&close));
        async move {
            let reply = match record(request, peer).await {
                Ok(request) => shared.answer(request).in_time().await,
                Err(error) => Reply::status(400, &[], format!("{error:#}")),
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
    let connection = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        served = connection => served.context("HTTP/2"),
        () = close.notified() => Ok(()),
    }
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
        headers: fields(&parts.headers),
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
