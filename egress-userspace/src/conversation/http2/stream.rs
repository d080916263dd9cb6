//! One request of a client that speaks HTTP/2.

use std::{
    future::{pending, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::Poll,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Uri, Version, header, uri::PathAndQuery};
use tokio_util::sync::CancellationToken;

use crate::{
    body::{Body as _, Incoming, ResponseBody},
    head::{Fields, RequestHead, Response, ResponseHead, origin_form},
    http1::{self, Fault},
    http2::{Reader, Reason, Received, Requested, Sending, Switched, Writer},
    limits::Beyond,
    memory::boxed,
    request::{Conversation, ProxyError, Served, host::RequestHost, tunnel::Tunnel, web_socket},
    worker::Load,
};

/// Serves one request, for as long as its client wants that, and what it switches to until the connection has `ended`.
pub(super) async fn answer(
    conversation: Rc<Conversation>,
    request: Requested,
    (reader, writer): (Reader, Writer),
    load: Load,
    ended: Rc<CancellationToken>,
) {
    let responder = Rc::new(writer);
    // Where all heads have gone, that which follows needs no room of theirs.
    let let_go = || _ = conversation.worker.hold(&load, 0);
    let is_head = request.method == Method::HEAD;
    let protocol = request.protocol.clone();
    let (mut head, fault) = translate(request);
    if let Some(fault) = fault {
        return send(&responder, conversation.turn_away(&head, ProxyError::malformed(fault)), is_head, let_go).await;
    }
    match protocol.as_deref() {
        None => {
            let is_empty = http1::announced(&head.fields) == Some(0) && !head.fields.contains(&header::TRAILER);
            let content = if is_empty { Received::nothing() } else { Received::new(reader, &head.fields) };
            let content = content.answered_by(responder.clone());
            let Some(served) = serve(&conversation, head, content, &load, &responder).await else { return };
            send(&responder, served.response, is_head, let_go).await;
        }
        Some(protocol) if protocol == web_socket::PROTOCOL.as_bytes() => {
            let Some(key) = web_socket::ask_in_http1(&mut head) else { return };
            let content = Received::nothing().answered_by(responder.clone());
            let Some(served) = serve(&conversation, head, content, &load, &responder).await else { return };
            match served.tunnel {
                Some(tunnel) => {
                    let switched = switch(&responder, served.response, &key, reader, *tunnel, let_go);
                    _ = ended.run_until_cancelled(switched).await;
                }
                None if served.response.head.status.is_success() => {
                    send(&responder, served.no_web_socket(), is_head, let_go).await;
                }
                None => send(&responder, served.response, is_head, let_go).await,
            }
        }
        Some(_) => {
            let response = conversation.turn_away(&head, ProxyError::unknown_protocol());
            send(&responder, response, is_head, let_go).await;
        }
    }
}

/// Answers one that is beyond a limit. Of that nothing is kept for a client who takes no answer.
pub(super) fn turn_away(
    conversation: &Conversation,
    request: Requested,
    writer: Writer,
    why: Beyond,
) -> impl Future<Output = ()> + use<> {
    let is_head = request.method == Method::HEAD;
    let (head, _) = translate(request);
    let response = conversation.turn_away(&head, ProxyError::too_many(why));
    async move { send(&Rc::new(writer), response, is_head, || ()).await }
}

async fn serve(
    conversation: &Conversation,
    head: RequestHead,
    content: Received,
    load: &Load,
    responder: &Rc<Writer>,
) -> Option<Served> {
    let never = pin!(pending());
    // What follows the response does not need its room.
    let mut serving = boxed(|| conversation.serve(head, Incoming::Http2(content), load, never));
    // What was given up already goes to no origin.
    let served = poll_fn(|cx| match responder.poll_reset(cx) {
        Poll::Ready(_) => Poll::Ready(None),
        Poll::Pending => serving.as_mut().poll(cx).map(Some),
    });
    let mut served = served.await?;
    served.response.body.upload_apart();
    Some(served)
}

/// Sends a response, and tells when its head is `gone`.
async fn send(responder: &Rc<Writer>, response: Response<ResponseBody>, is_head: bool, gone: impl FnOnce()) {
    let Response { mut head, mut body } = response;
    // Until then it counts as the head that it is.
    let has_room = poll_fn(|cx| match responder.poll_room_for_head(cx) {
        Poll::Ready(()) => Poll::Ready(true),
        Poll::Pending => Pin::new(&mut body).poll_untaken(cx).map(|_| false),
    });
    if !has_room.await {
        return responder.reset(Reason::INTERNAL_ERROR);
    }
    let is_bare = http1::is_bare(head.status);
    if let Some(length) = body.left().filter(|_| !body.is_end_stream() && !is_bare)
        && !head.fields.contains(&header::CONTENT_LENGTH)
    {
        head.fields.append(&header::CONTENT_LENGTH, &length.into());
    }
    let is_all = is_head || is_bare || body.is_end_stream();
    let is_sent = send_head(responder, head, is_all);
    gone();
    if is_sent && !is_all {
        let mut sending = Sending::new(&**responder, body);
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

/// Sends a head, of which nothing is left then.
fn send_head(responder: &Writer, head: ResponseHead, is_all: bool) -> bool {
    let sent = responder.respond(&head, is_all);
    drop(head);
    if let Err(error) = &sent {
        tracing::debug!(%error, "a response cannot be sent");
        responder.reset(Reason::INTERNAL_ERROR);
    }
    sent.is_ok()
}

/// Tells a client that the origin has switched to the protocol which it has asked for, and passes that on.
async fn switch(
    responder: &Rc<Writer>,
    mut response: Response<ResponseBody>,
    key: &HeaderValue,
    reader: Reader,
    tunnel: Tunnel,
    gone: impl FnOnce(),
) {
    if !web_socket::agree_in_http2(&mut response.head, key) {
        tracing::debug!("the origin agrees to a WebSocket without the proof that it understands");
        return responder.reset(Reason::PROTOCOL_ERROR);
    }
    poll_fn(|cx| responder.poll_room_for_head(cx)).await;
    let is_sent = send_head(responder, response.head, false);
    gone();
    if is_sent {
        // A tunnel that waits for its origin does not see that its client is gone.
        let given_up = poll_fn(|cx| match responder.poll_reset(cx) {
            Poll::Ready(error) if error.reason() != Some(Reason::NO_ERROR) => Poll::Ready(()),
            _ => Poll::Pending,
        });
        tokio::select! {
            biased;
            // It ends as both ends of its stream do.
            _ = tunnel.run(Switched::new(responder.clone(), reader, ())) => {}
            () = given_up => {}
        }
    }
}

/// Says in HTTP/1.1 what a head says in HTTP/2 (RFC 9113 sections 8.2.3 and 8.3.1), and what is wrong with it. A Host that names another
/// host than `:authority` stays beside it: nobody can say whose request that is.
pub fn translate(request: Requested) -> (RequestHead, Option<Fault>) {
    let Requested { method, path, mut fields, fault, .. } = request;
    let mut hosts = fields.get_all(&header::HOST);
    let is_said_twice = matches!(
        (hosts.next(), hosts.next(), hosts.next()),
        (Some(first), Some(second), None) if first == second || RequestHost::is_same(first, second)
    );
    drop(hosts);
    if is_said_twice {
        let mut is_first = true;
        fields.retain(|name, _| !name.eq_ignore_ascii_case(b"host") || std::mem::take(&mut is_first));
    }
    join_cookies(&mut fields);
    match target(&path, &method) {
        Ok(uri) => {
            let is_so_written = !path.starts_with(b"/")
                || uri.path_and_query().is_some_and(|target| target.as_str().as_bytes() == path);
            let head = RequestHead::new(method, uri, Version::HTTP_2, fields);
            (if is_so_written { head } else { head.written_as(path) }, fault)
        }
        Err(wrong) => (RequestHead::new(method, Uri::from_static("/"), Version::HTTP_2, fields), fault.or(Some(wrong))),
    }
}

/// Clients may send them in pieces (section 8.2.3).
fn join_cookies(fields: &mut Fields) {
    let cookies: Vec<_> = fields.get_all(&header::COOKIE).collect();
    if cookies.len() < 2 {
        return;
    }
    let Ok(mut all) = HeaderValue::from_bytes(&cookies.join(&b"; "[..])) else { return };
    // What nobody may put into a table of one of them, nobody may of all.
    all.set_sensitive(fields.marked().any(|(name, _, is_secret)| is_secret && name.eq_ignore_ascii_case(b"cookie")));
    fields.set(&header::COOKIE, &all);
}

/// The target as routes see it.
fn target(path: &Bytes, method: &Method) -> Result<Uri, Fault> {
    if path.starts_with(b"/") {
        return http1::uri(path, path, method);
    }
    // A fragment alone, which is dropped, would be taken for no path.
    let target = PathAndQuery::from_maybe_shared(path.clone()).ok().filter(|_| !path.starts_with(b"#"));
    let target = target.ok_or(Fault::Target)?;
    Ok(Uri::from(origin_form(Some(target))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::Builder;

    fn get(path: &[u8], fields: Fields) -> (RequestHead, Option<Fault>) {
        let path = Bytes::copy_from_slice(path);
        translate(Requested { method: Method::GET, path, protocol: None, fields, size: 0, fault: None })
    }

    fn check(path: &str, fields: &[(&str, &str)], uri: &str, expected: &[(&str, &str)]) {
        let (head, fault) = get(path.as_bytes(), Fields::of(fields));
        assert_eq!((head.uri().to_string().as_str(), head.target(), fault), (uri, uri.as_bytes(), None));
        assert_eq!(head.fields.listed(), expected);
    }

    #[test]
    fn pieces_of_cookies_become_one_and_the_rest_keeps_its_order() {
        check(
            "/x?y",
            &[("Host", "a"), ("X-A", "1"), ("Cookie", "a=1"), ("TE", "trailers"), ("Cookie", "b=2"), ("X-B", "2")],
            "/x?y",
            &[("Host", "a"), ("X-A", "1"), ("Cookie", "a=1; b=2"), ("TE", "trailers"), ("X-B", "2")],
        );
        check("?x", &[("X-A", "1"), ("Host", "a.example")], "/?x", &[("X-A", "1"), ("Host", "a.example")]);
        check("/", &[("Host", "a.example"), ("Host", "a.example")], "/", &[("Host", "a.example")]);
        check("/", &[("Host", "a.example"), ("Host", "A.Example:80")], "/", &[("Host", "a.example")]);
    }

    #[test]
    fn two_hosts_stay_two() {
        check("/", &[("Host", "a"), ("Host", "b")], "/", &[("Host", "a"), ("Host", "b")]);
        check("/", &[("Host", "a"), ("Host", "a:81")], "/", &[("Host", "a"), ("Host", "a:81")]);
        check("/", &[("Host", "a"), ("Host", "x@a")], "/", &[("Host", "a"), ("Host", "x@a")]);
    }

    #[test]
    fn what_is_no_path_is_told() {
        for path in [&b"/a b"[..], b"a", b"#a", b"/a# HTTP/1.0", b"/a#b\tc", b"/a?b#\x7f"] {
            assert_eq!(get(path, Fields::default()).1, Some(Fault::Target), "{path:?}");
        }
        let long = [b"/".repeat(65_535), b"<".to_vec()];
        assert!(matches!(get(&long[0], Fields::default()).1, Some(Fault::TargetTooLong(_))));
        assert!(matches!(get(&long.concat(), Fields::default()).1, Some(Fault::TargetTooLong(_))));
    }

    #[test]
    fn a_path_goes_on_as_it_was_written() {
        for (path, seen) in [
            (&b"/a<b>?c=d`e"[..], "/a%3Cb%3E?c=d%60e"),
            (b"/caf\xe9", "/caf%E9"),
            (b"/a#b", "/a"),
            (b"*", "*"),
            (b"//a/../%7e?", "//a/../%7e?"),
        ] {
            let (head, fault) = get(path, Fields::default());
            assert_eq!((head.uri().to_string().as_str(), head.target(), fault), (seen, path, None));
        }
    }

    #[test]
    fn cookies_are_as_secret_as_the_most_secret_of_their_pieces() {
        for (secret, are_secret) in [(None, false), (Some(0), true), (Some(1), true), (Some(2), true)] {
            let mut fields = Builder::new();
            for piece in 0..3 {
                fields.push(b"Cookie", b"a=1", secret == Some(piece));
            }
            let (head, _) = get(b"/", fields.finish());
            let marked: Vec<_> = head.fields.marked().collect();
            assert_eq!(marked, [(&b"Cookie"[..], &b"a=1; a=1; a=1"[..], are_secret)], "{secret:?}");
        }
    }
}
