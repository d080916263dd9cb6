//! What the streams of HTTP/2 have in common, whoever has opened them (RFC 9113).

pub mod hpack;
mod switched;

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderName, Response, header};
use http_body::{Body, Frame};

pub use self::switched::Switched;
use crate::{
    body::BodyError,
    head::{Fields, ResponseHead},
    http1,
};

/// Fields that only HTTP/1.1 has (section 8.2.2).
static OF_HTTP1: [HeaderName; 5] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// How many interim responses to one request are passed on: nothing else limits them.
const MOST_INTERIM: u32 = 100;

/// What answers a request: interim responses go by it, too.
pub type Responder = Rc<RefCell<SendResponse<Bytes>>>;

/// Whether HTTP/2 does not have such a field.
pub fn is_of_http1(name: &HeaderName) -> bool {
    OF_HTTP1.contains(name)
}

/// A response with what HTTP/2 has of this head; None if it has no room for it.
pub fn response(head: &ResponseHead) -> Option<Response<()>> {
    let mut response = Response::new(());
    *response.status_mut() = head.status;
    *response.headers_mut() = head.fields.to_map(|name| !is_of_http1(name))?;
    Some(response)
}

/// Removes from trailers what HTTP/2 does not have there. What stays keeps its order.
fn retain_fields(fields: &mut HeaderMap) {
    if !OF_HTTP1.iter().any(|name| fields.contains_key(name)) {
        return;
    }
    let all = std::mem::replace(fields, HeaderMap::with_capacity(fields.len()));
    for (name, value) in all.iter().filter(|(name, _)| !is_of_http1(name)) {
        fields.append(name, value.clone());
    }
}

/// Content as it comes in.
pub struct Received {
    /// None where another protocol has begun.
    stream: Option<RecvStream>,
    /// How much is to come, if that is known.
    left: Option<u64>,
    /// Whether only trailers can come.
    data_ended: bool,
    /// Who is told of interim responses, if this is a request's.
    responder: Option<Responder>,
    /// How many those were.
    interim: Cell<u32>,
}

impl Received {
    /// The content of a message with these fields. That it is as long as they say is seen to by h2.
    pub fn new(stream: RecvStream, fields: &Fields) -> Self {
        let left = http1::announced(fields).or(stream.is_end_stream().then_some(0));
        Self { stream: Some(stream), left, data_ended: false, responder: None, interim: Cell::new(0) }
    }

    /// None.
    pub fn nothing() -> Self {
        Self { stream: None, left: Some(0), data_ended: true, responder: None, interim: Cell::new(0) }
    }

    /// The same, of a request that is answered by `responder`.
    #[must_use]
    pub fn answered_by(self, responder: Responder) -> Self {
        Self { responder: Some(responder), ..self }
    }

    /// Passes an interim response on to who has sent this.
    pub fn inform(&self, head: &ResponseHead) {
        self.interim.set(self.interim.get() + 1);
        if let Some(responder) = &self.responder
            && self.interim.get() <= MOST_INTERIM
            && let Some(response) = response(head)
        {
            // If it cannot be told, the response cannot be either.
            let _ = responder.borrow_mut().send_informational(response);
        }
    }

    /// Reads on.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(None) };
        if !self.data_ended {
            match ready!(stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // It is passed on at once, or not asked for.
                    let _ = stream.flow_control().release_capacity(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => self.data_ended = true,
            }
        }
        let trailers = ready!(stream.poll_trailers(cx)).map_err(BodyError::from).transpose();
        Poll::Ready(trailers.map(|trailers| trailers.map(Frame::trailers)))
    }

    /// Whether all has come.
    pub fn is_end_stream(&self) -> bool {
        self.stream.as_ref().is_none_or(RecvStream::is_end_stream)
    }

    /// How many bytes are to come, if that is known.
    pub fn left(&self) -> Option<u64> {
        self.left
    }
}

/// Content as it goes out.
pub struct Sending<B> {
    stream: SendStream<Bytes>,
    body: B,
    /// What waits until the other end takes it.
    next: Option<Bytes>,
}

impl<B: Body<Data = Bytes, Error = BodyError> + Unpin> Sending<B> {
    /// Content that is to be sent after a head.
    pub fn new(stream: SendStream<Bytes>, body: B) -> Self {
        Self { stream, body, next: None }
    }

    /// Sends on. Is ready when nothing more is to be sent; the other end may not have wanted all of it.
    ///
    /// # Errors
    /// The content does not come to its end. The other end sees that.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        // What is awaited, content or room for it, does not come after that.
        let mut ended = self.stream.poll_reset(cx).is_ready();
        while !ended {
            if let Some(data) = self.next.take() {
                match self.poll_room(cx) {
                    // A piece goes as a whole; no other is fetched before there is room again.
                    Poll::Ready(true) => {
                        let last = self.body.is_end_stream();
                        ended = self.stream.send_data(data, last).is_err() || last;
                    }
                    Poll::Ready(false) => ended = true,
                    Poll::Pending => {
                        self.next = Some(data);
                        return Poll::Pending;
                    }
                }
                continue;
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)).transpose() {
                Ok(Some(frame)) => ended = self.take(frame),
                Ok(None) => {
                    // It is over whether or not the other end hears of it.
                    let _ = self.stream.send_data(Bytes::new(), true);
                    ended = true;
                }
                Err(error) => {
                    self.break_off(&error);
                    return Poll::Ready(Err(error));
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Has the other end see that the content does not come to its end.
    pub fn break_off(&mut self, error: &BodyError) {
        self.stream.send_reset(error.reason());
    }

    /// What is sent.
    pub fn body(&mut self) -> &mut B {
        &mut self.body
    }

    /// Takes what comes next. Says whether it is the last.
    fn take(&mut self, frame: Frame<Bytes>) -> bool {
        match frame.into_data() {
            Ok(data) if data.is_empty() => {
                let last = self.body.is_end_stream();
                if last {
                    let _ = self.stream.send_data(data, true);
                }
                last
            }
            Ok(data) => {
                // Room is asked for when there is something to be sent: others may need it.
                self.stream.reserve_capacity(1);
                self.next = Some(data);
                false
            }
            Err(frame) => {
                let Ok(mut trailers) = frame.into_trailers() else { return false };
                retain_fields(&mut trailers);
                trailers.remove(header::TE);
                self.stream.reserve_capacity(0);
                if self.stream.send_trailers(trailers).is_err() {
                    self.stream.send_reset(Reason::INTERNAL_ERROR);
                }
                true
            }
        }
    }

    /// Waits until the other end takes more, or says that it never will.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        while self.stream.capacity() == 0 {
            if !matches!(ready!(self.stream.poll_capacity(cx)), Some(Ok(_))) {
                return Poll::Ready(false);
            }
        }
        Poll::Ready(true)
    }
}
