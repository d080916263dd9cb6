//! One request on a connection of HTTP/2.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client::ResponseFuture};
use http::{Method, Request, StatusCode, request};
use http_body::Body as _;
use tokio::task;
use tokio_util::task::AbortOnDropHandle;

use super::{Shared, User, unread::Unread};
use crate::{
    body::{Content, Incoming, RequestBody},
    head::{Fields, Response, ResponseHead},
    http1,
    http2::{Received, Sending, Switched},
    request::headers,
    upstream::{ExchangeError, NotAnswered},
};

/// One request's use of a connection.
pub struct Stream {
    shared: Shared,
    /// Whether the connection has served others.
    pub reused: bool,
    /// What it has become, if the origin has agreed to a CONNECT.
    switched: Option<(SendStream<Bytes>, RecvStream)>,
    /// What sends the rest of the request while the response comes. It ends with the exchange, and the origin hears of that.
    upload: Option<AbortOnDropHandle<()>>,
    /// While more of the response has come than the client takes.
    unread: Option<Unread>,
    _user: User,
}

impl Stream {
    /// A place on a connection, which may be `reused`.
    pub(super) fn new(shared: Shared, user: User, reused: bool) -> Self {
        Self { shared, reused, switched: None, upload: None, unread: None, _user: user }
    }

    /// The connection.
    pub fn connection(&self) -> &Shared {
        &self.shared
    }

    /// Notes that the origin has refused this request: it takes fewer at once, until it says otherwise or answers others.
    pub fn refused(&self) {
        let load = &self.shared.load;
        load.limit.set(load.limit.get().min(load.streams.get() - 1).max(1));
    }

    /// Sends a request, and waits for the head of the response. Interim ones are passed on to who has sent the content.
    ///
    /// # Errors
    /// There is no response to it.
    pub async fn send(&mut self, head: request::Parts, body: RequestBody) -> Result<Response<Incoming>, NotAnswered> {
        let load = &self.shared.load;
        if load.noted.silent_since.get().is_none() {
            load.noted.silent_since.set(Some(Instant::now()));
        }
        let result = self.exchange(head, body).await;
        let load = &self.shared.load;
        if result.is_ok() && load.limit.get() < load.said.get() {
            // What it has refused once it may take again.
            load.limit.set(load.limit.get() + 1);
        }
        result
    }

    async fn exchange(&mut self, head: request::Parts, body: RequestBody) -> Result<Response<Incoming>, NotAnswered> {
        let failed = |error| NotAnswered { unsent: false, error };
        // Of its own: it knows whether this request waits for others to end.
        let mut sender = self.shared.sender.requests.borrow().clone();
        let ready = poll_fn(|cx| sender.poll_ready(cx)).await;
        ready.map_err(|error| NotAnswered { unsent: true, error: error.into() })?;
        let is_connect = head.method == Method::CONNECT;
        let is_all = body.is_end_stream() && !is_connect;
        let client = body.content().clone();
        // Many an origin never does that over HTTP/2.
        let told = client.go_on();
        let request = Request::from_parts(head, ());
        let (mut answer, stream) = sender.send_request(request, is_all).map_err(|error| failed(error.into()))?;
        let (mut upload, stream) = match is_connect {
            true => (None, Some(stream)),
            false => ((!is_all).then(|| Sending::new(stream, body)), None),
        };
        let answered = poll_fn(|cx| {
            if let Some(sending) = &mut upload
                && let Poll::Ready(sent) = sending.poll(cx)
            {
                sent?;
                upload = None;
            }
            poll_answer(&mut answer, &client, told, cx)
        });
        let (head, received) = answered.await.map_err(failed)?;
        self.upload = upload.map(|mut upload| {
            AbortOnDropHandle::new(task::spawn_local(async move {
                // Both ends see how it goes.
                let _ = poll_fn(|cx| upload.poll(cx)).await;
            }))
        });
        let content = match stream {
            Some(stream) if head.status.is_success() => {
                self.switched = Some((stream, received));
                Received::nothing()
            }
            stream => {
                // Declined, and nothing follows.
                stream.map(|mut stream| stream.send_data(Bytes::new(), true));
                Received::new(received, &head.fields)
            }
        };
        Ok(Response { head, body: Incoming::Http2(content) })
    }

    /// Sends what is left of the request, of which all has come, after the response.
    pub async fn end_upload(&mut self) {
        if let Some(upload) = self.upload.take() {
            let _ = upload.await;
        }
    }

    /// Whether some of the request is still to be sent.
    pub fn is_uploading(&self) -> bool {
        self.upload.as_ref().is_some_and(|upload| !upload.is_finished())
    }

    /// Notes whether more of the response has come than the client takes.
    pub fn note_unread(&mut self, is_unread: bool) {
        if is_unread != self.unread.is_some() {
            self.unread = is_unread.then(|| Unread::new(self.shared.load.clone()));
        }
    }

    /// Whether it carries another protocol from now on.
    pub fn has_switched(&self) -> bool {
        self.switched.is_some()
    }

    /// What it carries from now on, if it has switched protocols.
    pub fn switched(mut self) -> Option<Switched<Self>> {
        let (send, receive) = self.switched.take()?;
        Some(Switched::new(send, receive, self))
    }
}

/// Waits for the head of a response, and passes interim ones on to the client, which may have been `told` to go on.
fn poll_answer(
    answer: &mut ResponseFuture,
    client: &Content,
    told: bool,
    cx: &mut Context<'_>,
) -> Poll<Result<(ResponseHead, RecvStream), ExchangeError>> {
    while let Poll::Ready(Some(interim)) = answer.poll_informational(cx) {
        let mut interim = head(interim?).0;
        match interim.status {
            // HTTP/2 has no such switch (RFC 9113 section 8.6).
            StatusCode::SWITCHING_PROTOCOLS => {
                return Poll::Ready(Err(h2::Error::from(Reason::PROTOCOL_ERROR).into()));
            }
            StatusCode::CONTINUE if told => {}
            _ if http1::of_http2(&mut interim.fields).is_err() => {}
            _ => {
                headers::prepare_interim(&mut interim);
                client.inform(&interim, cx);
            }
        }
    }
    let (mut head, received) = head(ready!(Pin::new(answer).poll(cx))?);
    http1::of_http2(&mut head.fields).map_err(http1::Error::from)?;
    Poll::Ready(Ok((head, received)))
}

/// The head of a response, and what follows it.
fn head<B>(response: http::Response<B>) -> (ResponseHead, B) {
    let (head, body) = response.into_parts();
    let fields = Fields::from_iter(&head.headers);
    (ResponseHead { version: head.version, fields, ..head.status.into() }, body)
}
