//! HTTP/1.1 connections, each for one exchange at a time.

mod switched;

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::Instant,
};

use bytes::BytesMut;
use http::{Method, StatusCode, Version, header};
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpStream,
    task,
};
use tokio_util::{either::Either, task::AbortOnDropHandle};

pub use self::switched::Switched;
use super::{Carrier as _, ConnectionInfo, ExchangeError, NotAnswered, limits::Place, tls::TlsStream};
use crate::{
    body::{Body as _, BodyError, Content, Frame, Incoming, RequestBody},
    head::{RequestHead, Response, ResponseHead},
    http1::{self, Decoder, Encoder, Error, Fault, Framing, Head, Input, Limits, Output, Progress},
    request::headers,
};

/// What is kept of a request for an origin that does not read on, in bytes.
const AHEAD: usize = 64 * 1024;

/// That trailers are taken, which is said for one connection (RFC 9110 section 10.1.4).
const TAKES_TRAILERS: &[(&str, &str)] = &[("TE", "trailers"), ("Connection", "TE")];

/// What carries a connection: TCP alone, or TLS.
pub type Stream = Either<TcpStream, Box<TlsStream>>;

/// A connection that one request uses at a time.
pub struct Exclusive {
    wire: Rc<RefCell<Wire>>,
    /// Facts for the log.
    pub info: Rc<ConnectionInfo>,
    /// When it was made.
    pub made: Instant,
    /// How many requests it has served.
    pub served: u32,
    /// Whether nobody has used it for a while, in which the origin may have closed it.
    pub was_idle: bool,
    /// Its place, if there may be only so many; dropped after what closes it.
    pub place: Option<Place>,
}

/// The connection, and the exchange that it is at. Nothing but this exchange drives it, in both directions: who waits for the
/// response sends the request meanwhile.
pub struct Wire {
    stream: Stream,
    input: Input,
    output: Output,
    head: Head,
    /// What heads of responses are taken.
    limits: Limits,
    /// What is still to be sent of the request.
    upload: Option<(RequestBody, Encoder)>,
    /// Whether a task of its own sends it, rather than who reads the response.
    uploads_apart: bool,
    /// Who is told of interim responses.
    client: Option<Rc<Content>>,
    /// Why it was not sent to its end: there may be a response nevertheless.
    stuck: Option<io::Error>,
    content: Decoder,
    /// Whether something has come since the request was sent.
    heard: bool,
    /// Whether another exchange can follow.
    keep_alive: bool,
}

impl Exclusive {
    /// A connection that has served nobody yet.
    pub fn new(stream: Stream, limits: Limits, info: ConnectionInfo) -> Self {
        let wire = Wire {
            stream,
            input: Input::new(BytesMut::new()),
            output: Output::default(),
            head: Head::default(),
            limits,
            upload: None,
            uploads_apart: false,
            client: None,
            stuck: None,
            content: Decoder::new(Framing::Length(0)),
            heard: false,
            keep_alive: true,
        };
        Self {
            wire: Rc::new(RefCell::new(wire)),
            info: Rc::new(info),
            made: Instant::now(),
            served: 0,
            was_idle: false,
            place: None,
        }
    }

    /// Whether its end makes room for another one.
    pub fn makes_room(&self) -> bool {
        self.place.as_ref().is_some_and(Place::makes_room)
    }

    /// Whether it is of no use any more: the origin has closed it, or has sent what nobody asked for.
    pub fn is_closed(&self) -> bool {
        if !self.is_reusable() {
            return true;
        }
        let wire = &mut *self.wire.borrow_mut();
        let mut byte = [0];
        let look = poll_fn(|cx| Pin::new(&mut wire.stream).poll_read(cx, &mut ReadBuf::new(&mut byte)));
        // Nobody is to be woken: whoever wants to use it looks. A task that has done its share would see nothing.
        pin!(task::unconstrained(look)).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    /// Whether its last exchange has come to its end, and another can follow.
    pub fn is_reusable(&self) -> bool {
        let wire = self.wire.borrow();
        wire.keep_alive && wire.content.is_end() && wire.is_sent() && wire.input.bytes.is_empty()
    }

    /// Sends what is left of the request, of which all has come, after the response.
    pub async fn end_upload(&self) {
        poll_fn(|cx| self.wire.borrow_mut().poll_uploaded(cx)).await;
    }

    /// Whether some of the request is still to be sent.
    pub fn is_uploading(&self) -> bool {
        !self.wire.borrow().is_uploaded()
    }

    /// Sends a request, and waits for the head of the response. The rest of both comes and goes with the response's content. `trailers`
    /// says that the client takes such.
    ///
    /// # Errors
    /// There is no response to it.
    pub async fn send(
        &mut self,
        head: &RequestHead,
        body: RequestBody,
        trailers: bool,
    ) -> Result<Response<Incoming>, NotAnswered> {
        let is_head = head.method == Method::HEAD;
        {
            let wire = &mut *self.wire.borrow_mut();
            let (framing, more) = framing(head, body.is_end_stream());
            // Many an origin sends them only to who says so.
            if trailers && !headers::asks_to_switch(&head.fields) {
                http1::request_head(head, &[more, TAKES_TRAILERS].concat(), &mut wire.output.buffer());
            } else {
                http1::request_head(head, more, &mut wire.output.buffer());
            }
            wire.client = Some(body.content().clone());
            (wire.uploads_apart, wire.heard) = (false, false);
            if framing != Framing::Length(0) {
                // One that is not asked to does not say that the content may come.
                if !head.fields.contains(&header::EXPECT) {
                    body.content().go_on();
                }
                wire.upload = Some((body, Encoder::new(framing)));
            }
            wire.output.begin();
        }
        let answered = poll_fn(|cx| self.wire.borrow_mut().poll_head(is_head, cx)).await;
        let wire = self.wire.borrow();
        match answered {
            Ok(head) => Ok(Response { head, body: Incoming::Http1(self.wire.clone()) }),
            Err(error) => Err(NotAnswered { unsent: !wire.output.has_begun(), heard: wire.heard, error }),
        }
    }
}

/// How the origin can tell the end of a request's content, of which there is none if it has ended; and a field that says so if the head
/// has none.
pub fn framing(head: &RequestHead, has_ended: bool) -> (Framing, &'static [(&'static str, &'static str)]) {
    match http1::announced(&head.fields) {
        _ if head.fields.contains(&header::TRANSFER_ENCODING) => (Framing::Chunked, &[]),
        Some(length) => (Framing::Length(length), &[]),
        // HTTP/2 has another way to say that there is none (RFC 9110 section 8.6).
        None if has_ended
            && head.version == Version::HTTP_2
            && matches!(head.method, Method::POST | Method::PUT | Method::PATCH) =>
        {
            (Framing::Length(0), &[("Content-Length", "0")])
        }
        None if has_ended => (Framing::Length(0), &[]),
        None => (Framing::Chunked, &[("Transfer-Encoding", "chunked")]),
    }
}

impl Wire {
    fn poll_head(&mut self, is_head: bool, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, ExchangeError>> {
        self.poll_upload(cx)?;
        loop {
            if let Some(bytes) = self.head.take(&mut self.input.bytes, self.limits.head).map_err(Error::from)? {
                let mut head = http1::response(&bytes, &self.limits).map_err(Error::from)?;
                let framing = http1::of_response(head.status, &mut head.fields, is_head).map_err(Error::from)?;
                if head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS {
                    if let Some(client) = &self.client {
                        headers::prepare_interim(&mut head);
                        client.inform(&head, cx);
                    }
                    continue;
                }
                if head.status == StatusCode::SWITCHING_PROTOCOLS && !self.is_sent() {
                    return Poll::Ready(Err(Error::from(Fault::EarlySwitch).into()));
                }
                self.client = None;
                // One of HTTP/1.0 has no codings: who says so may frame the next one in another way (RFC 9112 section 6.1).
                let is_misframed = head.version < Version::HTTP_11 && head.fields.contains(&header::TRANSFER_ENCODING);
                self.keep_alive = framing != Framing::Close
                    && !is_misframed
                    && head.status != StatusCode::SWITCHING_PROTOCOLS
                    && self.stuck.is_none()
                    && headers::keeps_alive(head.version, &head.fields);
                self.content = Decoder::new(framing);
                return Poll::Ready(Ok(head));
            }
            if !http1::may_be_response(&self.input.bytes) {
                return Poll::Ready(Err(Error::from(Fault::NotHttp).into()));
            }
            if ready!(self.input.poll_fill(&mut self.stream, cx)).map_err(Error::from)? == 0 {
                return Poll::Ready(Err(self.closed().into()));
            }
            self.heard = true;
        }
    }

    /// That the origin closes too early. What has kept us from sending says more than that.
    fn closed(&mut self) -> Error {
        self.stuck.take().map_or(Error::Closed { begun: self.heard }, Error::from)
    }

    /// Reads the content of the response, and sends the rest of the request meanwhile.
    pub fn poll_content(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let mut failed = self.poll_along(cx).err();
        loop {
            match self.content.decode(&mut self.input.bytes) {
                Ok(Progress::Data(data)) => {
                    // Of a length nobody asks for more than that.
                    if self.content.is_end() {
                        self.calm(cx);
                    }
                    return Poll::Ready(Some(Ok(Frame::Data(data))));
                }
                Ok(Progress::Trailers(trailers)) => return Poll::Ready(Some(Ok(Frame::Trailers(trailers)))),
                Ok(Progress::End) => {
                    self.calm(cx);
                    return Poll::Ready(None);
                }
                Ok(Progress::More) => {}
                Err(fault) => return Poll::Ready(Some(Err(Error::from(fault).into()))),
            }
            // What has come of the response goes before that.
            if let Some(error) = failed.take() {
                return Poll::Ready(Some(Err(error.into())));
            }
            let filled = self.input.poll_fill(&mut self.stream, cx);
            if filled.is_pending() {
                self.stream.expect(self.content.left().unwrap_or(0), cx);
            }
            match ready!(filled) {
                Ok(0) if self.content.close() => return Poll::Ready(None),
                Ok(0) => return Poll::Ready(Some(Err(self.closed().into()))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(Error::from(error).into()))),
            }
        }
    }

    /// Goes back to waiting for little.
    fn calm(&mut self, cx: &mut Context<'_>) {
        self.input.calm();
        self.stream.expect(0, cx);
    }

    /// Whether all of the response has come.
    pub fn is_end(&self) -> bool {
        self.content.is_end()
    }

    /// Whether more of it comes before long, for which what there is may wait.
    pub fn is_coming(&self) -> bool {
        self.stream.is_coming()
    }

    /// How much of its content is to come, if that is known.
    pub fn left(&self) -> Option<u64> {
        self.content.left()
    }

    /// Sends the rest of the request by a task of its own, if there is any. The task ends with its handle.
    pub fn upload_apart(wire: &Rc<RefCell<Self>>) -> Option<AbortOnDropHandle<()>> {
        if wire.borrow().is_uploaded() {
            return None;
        }
        wire.borrow_mut().uploads_apart = true;
        let wire = wire.clone();
        let uploading = poll_fn(move |cx| wire.borrow_mut().poll_uploaded(cx));
        Some(AbortOnDropHandle::new(task::spawn_local(uploading)))
    }

    /// Sends the rest of the request. A client whose content breaks off takes no response either.
    fn poll_uploaded(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let failed = self.poll_upload(cx).is_err();
        if failed || self.is_uploaded() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Whether no more of the request will be sent.
    fn is_uploaded(&self) -> bool {
        self.stuck.is_some() || self.is_sent()
    }

    /// Whether all of the request is on its way.
    fn is_sent(&self) -> bool {
        self.upload.is_none() && self.output.is_empty()
    }

    /// Sends what there is of the request, unless a task of its own does so.
    ///
    /// # Errors
    /// Its content does not come to its end.
    pub fn poll_along(&mut self, cx: &mut Context<'_>) -> Result<(), ExchangeError> {
        if self.uploads_apart { Ok(()) } else { self.poll_upload(cx) }
    }

    /// Sends what there is of the request. Does not say when it is done: nobody waits for that.
    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<(), ExchangeError> {
        if self.stuck.is_some() {
            return Ok(());
        }
        loop {
            let mut waits = false;
            while self.output.len() < AHEAD
                && let Some((body, encoder)) = &mut self.upload
            {
                let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else {
                    waits = true;
                    break;
                };
                let last = frame.is_none();
                if let Some(frame) = frame {
                    let put = frame.map_err(ExchangeError::from).and_then(|frame| {
                        encoder.put(frame, &mut self.output).map_err(|fault| Error::from(fault).into())
                    });
                    if let Err(error) = put {
                        // The origin sees how far it came, as it would without us.
                        let _ = self.output.poll_write(&mut self.stream, cx);
                        return Err(error);
                    }
                }
                if encoder.is_complete() {
                    // Over HTTP/2 the end of the stream can still be to come, which says no more.
                    body.content().finish();
                }
                if last || body.is_end_stream() {
                    encoder.end(&mut self.output).map_err(Error::from)?;
                    self.upload = None;
                }
            }
            if self.output.is_empty() {
                return Ok(());
            }
            match self.output.poll_write(&mut self.stream, cx) {
                Poll::Ready(Ok(())) if waits => return Ok(()),
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    self.stuck = Some(error);
                    self.keep_alive = false;
                    return Ok(());
                }
                Poll::Pending => return Ok(()),
            }
        }
    }
}
