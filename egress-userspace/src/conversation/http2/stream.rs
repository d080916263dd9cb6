//! One request of a client that speaks HTTP/2.

use std::{
    cell::RefCell,
    future::{pending, poll_fn},
    pin::pin,
    rc::Rc,
    task::Poll,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, header, request};
use http_body::Body as _;
use tokio_util::sync::CancellationToken;

use crate::{
    body::{Incoming, ResponseBody},
    head::{Fields, RequestHead, Response, ResponseHead, origin_form},
    http1::{self, Fault},
    http2::{self, Received, Responder, Sending, Switched},
    limits::Beyond,
    memory::boxed,
    request::{Conversation, ProxyError, Served, tunnel::Tunnel, web_socket},
    worker::Load,
};

/// Serves one request, for as long as its client wants that, and what it switches to until the connection has `ended`.
pub(super) async fn answer(
    conversation: Rc<Conversation>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    load: Result<Load, Beyond>,
    ended: Rc<CancellationToken>,
) {
    let (head, stream) = request.into_parts();
    let responder = Rc::new(RefCell::new(respond));
    let is_head = head.method == Method::HEAD;
    let (fields, most) = (head.headers.len(), conversation.worker.limits.head.fields);
    let asks_for_web_socket = web_socket::is_asked(&head);
    let mut head = translate(head);
    if fields > most {
        let error = ProxyError::malformed(Fault::TooManyFields(most));
        return send(&responder, conversation.turn_away(&head, error), is_head).await;
    }
    let _load = match load {
        Ok(load) => load,
        Err(why) => return send(&responder, conversation.turn_away(&head, ProxyError::too_many(why)), is_head).await,
    };
    if let Err(fault) = http1::of_http2(&mut head.fields) {
        return send(&responder, conversation.turn_away(&head, ProxyError::malformed(fault)), is_head).await;
    }
    match asks_for_web_socket {
        None => {
            let is_empty = http1::announced(&head.fields) == Some(0) && !head.fields.contains(&header::TRAILER);
            let content = if is_empty { Received::nothing() } else { Received::new(stream, &head.fields) };
            let content = content.answered_by(responder.clone());
            let Some(served) = serve(&conversation, head, content, &responder).await else { return };
            send(&responder, served.response, is_head).await;
        }
        Some(true) => {
            let Some(key) = web_socket::ask_in_http1(&mut head) else { return };
            let content = Received::nothing().answered_by(responder.clone());
            let Some(served) = serve(&conversation, head, content, &responder).await else { return };
            match served.tunnel {
                Some(tunnel) => {
                    let switched = switch(&responder, served.response, &key, stream, *tunnel);
                    _ = ended.run_until_cancelled(switched).await;
                }
                None if served.response.head.status.is_success() => {
                    send(&responder, served.no_web_socket(), is_head).await;
                }
                None => send(&responder, served.response, is_head).await,
            }
        }
        Some(false) => {
            let response = conversation.turn_away(&head, ProxyError::unknown_protocol());
            send(&responder, response, is_head).await;
        }
    }
}

async fn serve(
    conversation: &Conversation,
    head: RequestHead,
    content: Received,
    responder: &Responder,
) -> Option<Served> {
    let never = pin!(pending());
    // What follows the response does not need its room.
    let mut serving = boxed(|| conversation.serve(head, Incoming::Http2(content), never));
    let served = poll_fn(|cx| match serving.as_mut().poll(cx) {
        Poll::Ready(served) => Poll::Ready(Some(served)),
        Poll::Pending => responder.borrow_mut().poll_reset(cx).map(|_| None),
    });
    let mut served = served.await?;
    served.response.body.upload_apart();
    Some(served)
}

async fn send(responder: &Responder, response: Response<ResponseBody>, is_head: bool) {
    let Response { mut head, body } = response;
    let is_bare = http1::is_bare(head.status);
    if let Some(length) = body.size_hint().exact().filter(|_| !body.is_end_stream() && !is_bare)
        && !head.fields.contains(&header::CONTENT_LENGTH)
    {
        head.fields.append(&header::CONTENT_LENGTH, &length.into());
    }
    let is_all = is_head || is_bare || body.is_end_stream();
    if let Some(stream) = send_head(responder, &head, is_all)
        && !is_all
    {
        let mut sending = Sending::new(stream, body);
        // The record says how it has ended, and the client sees it.
        let _ = poll_fn(|cx| match sending.poll(cx) {
            Poll::Ready(ended) => Poll::Ready(ended),
            Poll::Pending => sending.body().poll_untaken(cx).map(|error| {
                sending.break_off(&error);
                Err(error)
            }),
        })
        .await;
    }
}

fn send_head(responder: &Responder, head: &ResponseHead, is_all: bool) -> Option<SendStream<Bytes>> {
    let mut responder = responder.borrow_mut();
    let sent = match http2::response(head) {
        Some(response) => responder.send_response(response, is_all).map_err(|error| error.to_string()),
        None => Err("it has more fields than there is room for".to_owned()),
    };
    if let Err(error) = &sent {
        tracing::debug!(%error, "a response cannot be sent");
        responder.send_reset(Reason::INTERNAL_ERROR);
    }
    sent.ok()
}

/// Tells a client that the origin has switched to the protocol which it has asked for, and passes that on.
async fn switch(
    responder: &Responder,
    mut response: Response<ResponseBody>,
    key: &HeaderValue,
    stream: RecvStream,
    tunnel: Tunnel,
) {
    if !web_socket::agree_in_http2(&mut response.head, key) {
        tracing::debug!("the origin agrees to a WebSocket without the proof that it understands");
        return responder.borrow_mut().send_reset(Reason::PROTOCOL_ERROR);
    }
    if let Some(send) = send_head(responder, &response.head, false) {
        // It ends as both ends of its stream do.
        tunnel.run(Switched::new(send, stream, ())).await;
    }
}

/// Says in HTTP/1.1 what a head says in HTTP/2 (RFC 9113 sections 8.2.3 and 8.3.1), with Host first. One that differs from
/// `:authority` stays beside it: nobody can say whose request that is.
fn translate(head: request::Parts) -> RequestHead {
    let target = head.uri.into_parts();
    let uri = Uri::from(origin_form(target.path_and_query));
    let host = target.authority.and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    let cookies = cookies(&head.headers);
    let mut left = cookies.as_ref();
    let fields = head.headers.iter().filter_map(|(name, value)| {
        let value = match name {
            name if *name == header::COOKIE => left.take(),
            name if *name == header::HOST => (host.as_ref() != Some(value)).then_some(value),
            _ => Some(value),
        };
        Some((name, value?))
    });
    let fields: Fields = host.iter().map(|host| (&header::HOST, host)).chain(fields).collect();
    RequestHead::new(head.method, uri, head.version, fields)
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
        let (head, ()) = request.body(()).expect("a valid request").into_parts();
        let head = translate(head);
        assert_eq!((head.uri().to_string().as_str(), head.target()), (uri, uri.as_bytes()));
        assert_eq!(head.fields.listed(), expected);
    }

    #[test]
    fn the_authority_becomes_host_and_the_rest_keeps_its_order() {
        check(
            "http://a.example:80/x?y",
            &[("x-a", "1"), ("cookie", "a=1"), ("te", "trailers"), ("cookie", "b=2"), ("x-b", "2")],
            "/x?y",
            &[("Host", "a.example:80"), ("X-A", "1"), ("Cookie", "a=1; b=2"), ("TE", "trailers"), ("X-B", "2")],
        );
        check("/", &[("x-a", "1"), ("host", "a.example")], "/", &[("X-A", "1"), ("Host", "a.example")]);
        check("http://a.example/", &[("host", "a.example")], "/", &[("Host", "a.example")]);
        check("http://a.example?x", &[], "/?x", &[("Host", "a.example")]);
    }

    #[test]
    fn two_hosts_stay_two() {
        check("http://a.example/", &[("host", "b.example")], "/", &[("Host", "a.example"), ("Host", "b.example")]);
    }
}
