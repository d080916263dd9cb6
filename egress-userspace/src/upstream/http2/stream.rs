//! One request on a connection of HTTP/2.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
};

use http::StatusCode;
use tokio::task;
use tokio_util::task::AbortOnDropHandle;

use super::{Shared, User};
use crate::{
    body::{Body as _, Content, Incoming, RequestBody},
    head::{Response, ResponseHead},
    http2::{Asked, Reader, Received, Sending, Switched, Writer},
    request::headers,
    upstream::{ExchangeError, NotAnswered},
};

/// One request's use of a connection.
pub struct Stream {
    shared: Shared,
    /// Whether the connection has served others.
    pub reused: bool,
    /// Whether it has served no others.
    pub is_first: bool,
    /// What it has become, if the origin has agreed to a CONNECT.
    switched: Option<(Writer, Reader)>,
    /// What sends the rest of the request while the response comes. It ends with the exchange, and the origin hears of that.
    upload: Option<AbortOnDropHandle<()>>,
    _user: User,
}

impl Stream {
    /// A place on a connection, which may be the first one.
    pub(super) fn new(shared: Shared, user: User, is_first: bool) -> Self {
        let reused = !is_first || shared.load.was_idle.get();
        Self { shared, reused, is_first, switched: None, upload: None, _user: user }
    }

    /// The connection.
    pub fn connection(&self) -> &Shared {
        &self.shared
    }

    /// Notes that the origin has refused this request: it takes fewer at once, until it says otherwise or answers others.
    pub fn refused(&self) {
        self.shared.load.refused();
    }

    /// Sends a request, and waits for the head of the response. Interim ones are passed on to who has sent the content.
    ///
    /// # Errors
    /// There is no response to it.
    pub async fn send(&mut self, head: &Asked<'_>, body: RequestBody) -> Result<Response<Incoming>, NotAnswered> {
        let load = self.shared.load.clone();
        load.link.expect();
        let result = self.exchange(head, body).await;
        if result.is_ok() {
            load.answered();
        }
        result
    }

    async fn exchange(&mut self, head: &Asked<'_>, body: RequestBody) -> Result<Response<Incoming>, NotAnswered> {
        let link = &self.shared.load.link;
        link.ready().await.map_err(|error| NotAnswered { unsent: true, heard: false, error: error.into() })?;
        let is_switch = head.protocol.is_some();
        let is_all = body.is_end_stream() && !is_switch;
        let client = body.content().clone();
        // Many an origin never does that over HTTP/2.
        let told = client.go_on();
        let (reader, writer) = link.ask(head, is_all);
        let (mut upload, writer) = match is_switch {
            true => (None, Some(writer)),
            false => ((!is_all).then(|| Sending::new(writer, body)), None),
        };
        let mut heard = false;
        let answered = poll_fn(|cx| {
            if let Some(sending) = &mut upload
                && let Poll::Ready(sent) = sending.poll(cx)
            {
                sent?;
                upload = None;
            }
            poll_answer(&reader, &client, told, &mut heard, cx)
        });
        let head = answered.await;
        let head = head.map_err(|error| NotAnswered { unsent: false, heard, error })?;
        self.upload = upload.map(|mut upload| {
            AbortOnDropHandle::new(task::spawn_local(async move {
                // Both ends see how it goes.
                let _ = poll_fn(|cx| upload.poll(cx)).await;
            }))
        });
        let content = match writer {
            Some(writer) if head.status.is_success() => {
                self.switched = Some((writer, reader));
                Received::nothing()
            }
            writer => {
                // Declined, and nothing follows.
                writer.map(|writer| writer.end());
                Received::new(reader, &head.fields)
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

    /// Whether it carries another protocol from now on.
    pub fn has_switched(&self) -> bool {
        self.switched.is_some()
    }

    /// What it carries from now on, if it has switched protocols.
    pub fn switched(mut self) -> Option<Switched<Writer, Self>> {
        let (writer, reader) = self.switched.take()?;
        Some(Switched::new(writer, reader, self))
    }
}

/// Waits for the head of a response, and passes interim ones on to the client, which may have been `told` to go on. Notes whether any
/// were `heard`.
fn poll_answer(
    reader: &Reader,
    client: &Content,
    told: bool,
    heard: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<Result<ResponseHead, ExchangeError>> {
    while let Some(mut interim) = ready!(reader.poll_interim(cx)) {
        *heard = true;
        if interim.status != StatusCode::CONTINUE || !told {
            headers::prepare_interim(&mut interim);
            client.inform(&interim, cx);
        }
    }
    reader.poll_head(cx).map_err(ExchangeError::from)
}
