//! Clients that speak HTTP/2 in clear, knowing that it is understood (RFC 9113 section 3.3), as those of gRPC do.

mod begun;

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::pending,
    mem,
    pin::pin,
    rc::Rc,
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Request, Uri, header, request, uri::PathAndQuery};
use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::io::InspectReader;

use self::begun::Begun;
use super::{DRAIN_GRACE, LINGER};
use crate::{
    body::Incoming,
    drain::Drain,
    http1::Fault,
    http1::server::{Connection, Switched},
    request::Conversation,
    upstream::http2::LocalTasks,
};

/// Requests that a client may have under way on one connection.
const STREAMS: u32 = 128;
/// What a client may send of one request before the origin has taken it, in bytes. There is next to no latency between it
/// and us.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same for all requests of a connection: so much that origins who stand still hold up nobody else.
const CONNECTION_WINDOW: u32 = STREAMS * STREAM_WINDOW;
/// What is kept of one response until the client takes it, in bytes.
const SEND_BUFFER: usize = 256 * 1024;

/// Serves a connection until it ends.
pub(super) async fn converse(
    conversation: Rc<Conversation>,
    connection: Rc<Connection>,
    mut draining: watch::Receiver<Drain>,
) {
    let last = Rc::new(Cell::new(None));
    let serve = |request: Request<hyper::body::Incoming>| {
        last.set(Some(Instant::now()));
        let conversation = conversation.clone();
        async move {
            let (mut head, body) = request.into_parts();
            let most = conversation.worker.limits.head.fields;
            if head.headers.len() > most {
                return Ok(conversation.refuse(Fault::TooManyFields(most)));
            }
            translate(&mut head);
            // It takes room that others should not be copied with.
            let never = pin!(pending());
            let serving = Box::pin(conversation.serve(head, Incoming::Http2(body), never));
            let mut response = serving.await.response;
            response.body_mut().upload_apart();
            Ok::<_, Infallible>(response)
        }
    };
    let mut builder = http2::Builder::new(LocalTasks);
    builder
        .auto_date_header(false)
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(conversation.worker.limits.head.head).unwrap_or(u32::MAX));
    let begun = RefCell::new(Begun::new());
    let io = InspectReader::new(Switched::new(connection.clone()), |bytes: &[u8]| begun.borrow_mut().read(bytes));
    let io = TokioIo::new(io);
    let mut serving = pin!(builder.serve_connection(io, service_fn(serve)));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = drained(&mut draining, &last) => {
            // What is under way, and what crosses this on the wire, is served to its end.
            serving.as_mut().graceful_shutdown();
            serving.await
        }
        () = outstayed(&conversation, &connection, &last, &begun) => {
            serving.as_mut().graceful_shutdown();
            timeout(LINGER, serving).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        conversation.ended(&error);
    }
    // Each stream says by itself where it ends.
    connection.close_in_order();
}

/// Waits until the connection is to take no more requests.
async fn drained(draining: &mut watch::Receiver<Drain>, last: &Cell<Option<Instant>>) {
    // The agent is there for as long as its connections.
    let _ = draining.wait_for(|drain| *drain != Drain::Off).await;
    if last.get().is_none() {
        sleep(DRAIN_GRACE).await;
    }
}

/// Waits until the connection has taken longer than it may.
async fn outstayed(
    conversation: &Conversation,
    connection: &Connection,
    last: &Cell<Option<Instant>>,
    begun: &RefCell<Begun>,
) {
    tokio::select! {
        () = idle(conversation, connection, last) => {}
        () = late(begun, conversation.worker.limits.head_time) => {}
    }
}

/// Waits until a client takes too long to end what it has begun.
async fn late(begun: &RefCell<Begun>, limit: Duration) {
    loop {
        let now = Instant::now();
        // What is begun meanwhile has at least as long.
        let end = begun.borrow().since().unwrap_or(now) + limit;
        if end <= now {
            return;
        }
        sleep_until(end).await;
    }
}

/// Waits until there was no request for long, or nothing at all has come or gone while there was one.
async fn idle(conversation: &Conversation, connection: &Connection, last: &Cell<Option<Instant>>) {
    let limit = conversation.worker.limits.idle;
    let mut end = Instant::now() + limit;
    let mut moved = None;
    loop {
        sleep_until(end).await;
        let now = Instant::now();
        // Those that are under way have it too.
        let since = if Rc::strong_count(&conversation.client) > 1 {
            let before = moved.replace(connection.moved());
            if before == moved {
                return;
            }
            Some(now)
        } else {
            last.get()
        };
        end = since.map_or(end, |since| since + limit);
        if end <= now {
            return;
        }
    }
}

/// Says in HTTP/1.1 what a head says in HTTP/2 (RFC 9113 sections 8.2.3 and 8.3.1), with Host first. One that differs from
/// `:authority` stays beside it: nobody can say whose request that is.
fn translate(head: &mut request::Parts) {
    let target = mem::take(&mut head.uri).into_parts();
    head.uri = Uri::from(target.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/")));
    let host = target.authority.and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    let mut cookies = cookies(&head.headers);
    let room = HeaderMap::with_capacity(head.headers.len() + 1);
    let fields = mem::replace(&mut head.headers, room);
    head.headers.extend(host.clone().map(|host| (header::HOST, host)));
    for (name, value) in &fields {
        let value = match name {
            name if *name == header::COOKIE => cookies.take(),
            name if *name == header::HOST => (host.as_ref() != Some(value)).then(|| value.clone()),
            _ => Some(value.clone()),
        };
        if let Some(value) = value {
            head.headers.append(name, value);
        }
    }
}

/// All cookies, which clients may send in pieces.
fn cookies(fields: &HeaderMap) -> Option<HeaderValue> {
    let pieces: Vec<_> = fields.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    HeaderValue::from_bytes(&pieces.join(&b"; "[..])).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(target: &str, fields: &[(&'static str, &str)], uri: &str, expected: &[(&str, &str)]) {
        let mut request = Request::builder().uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (mut head, ()) = request.body(()).expect("a valid request").into_parts();
        translate(&mut head);
        assert_eq!(head.uri.to_string(), uri);
        let found: Vec<_> =
            head.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().expect("ASCII values"))).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn the_authority_becomes_host_and_the_rest_keeps_its_order() {
        check(
            "http://a.example:80/x?y",
            &[("x-a", "1"), ("cookie", "a=1"), ("te", "trailers"), ("cookie", "b=2"), ("x-b", "2")],
            "/x?y",
            &[("host", "a.example:80"), ("x-a", "1"), ("cookie", "a=1; b=2"), ("te", "trailers"), ("x-b", "2")],
        );
        check("/", &[("x-a", "1"), ("host", "a.example")], "/", &[("x-a", "1"), ("host", "a.example")]);
        check("http://a.example/", &[("host", "a.example")], "/", &[("host", "a.example")]);
    }

    #[test]
    fn two_hosts_stay_two() {
        check("http://a.example/", &[("host", "b.example")], "/", &[("host", "a.example"), ("host", "b.example")]);
    }
}
