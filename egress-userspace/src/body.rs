//! Bodies on their way through: streamed, counted, never held back.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::response;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use crate::{
    http1::{self, server},
    route::Active,
    telemetry::access_log::Record,
    upstream::{
        Connection, ExchangeError,
        http1::Wire,
        limits::Slot,
        pool::{Key, Pool},
    },
};

/// How much of a request body is kept for the case that it must be sent again, in bytes.
const KEPT: usize = 64 * 1024;

/// How long an HTTP/2 stream may take to end after its last content.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a body does not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Where it comes from it breaks off.
    #[error(transparent)]
    Broken(#[from] ExchangeError),
    /// The origin gave up (RST_STREAM), though without an error, before the end.
    #[error("the origin reset the stream before the end of its response")]
    Reset,
    /// The route's time for the exchange is over.
    #[error("the response took longer than the timeout of its route")]
    TimedOut,
    /// The request is being sent anew, by somebody else.
    #[error("the request was given up and is sent again")]
    Superseded,
}

impl From<http1::Error> for BodyError {
    fn from(error: http1::Error) -> Self {
        Self::Broken(error.into())
    }
}

impl From<http1::Fault> for BodyError {
    fn from(fault: http1::Fault) -> Self {
        http1::Error::from(fault).into()
    }
}

impl From<hyper::Error> for BodyError {
    fn from(error: hyper::Error) -> Self {
        Self::Broken(error.into())
    }
}

/// Content as it comes in.
pub enum Incoming {
    /// From an application, over HTTP/1.
    Client(Rc<server::Connection>),
    /// From an origin, over HTTP/1.1.
    Http1(Rc<RefCell<Wire>>),
    /// Over HTTP/2.
    Http2(hyper::body::Incoming),
}

impl Incoming {
    /// Reads on.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Client(connection) => {
                connection.poll_content(cx).map(|frame| frame.map(|frame| frame.map_err(BodyError::from)))
            }
            Self::Http1(wire) => wire.borrow_mut().poll_content(cx),
            Self::Http2(incoming) => {
                Pin::new(incoming).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(BodyError::from)))
            }
        }
    }

    /// Whether all has come.
    pub fn is_end_stream(&self) -> bool {
        match self {
            Self::Client(connection) => connection.is_end(),
            Self::Http1(wire) => wire.borrow().is_end(),
            Self::Http2(incoming) => incoming.is_end_stream(),
        }
    }

    /// How many bytes are to come, if that is known.
    pub fn left(&self) -> Option<u64> {
        match self {
            Self::Client(connection) => connection.left(),
            Self::Http1(wire) => wire.borrow().left(),
            Self::Http2(incoming) => incoming.size_hint().exact(),
        }
    }
}

/// The content of a request as it comes from the client; shared between the bodies that carry it and the exchange.
pub struct Content {
    /// None of a copy.
    incoming: RefCell<Option<Incoming>>,
    /// What was read of it, for as long as it may have to be sent again.
    kept: RefCell<Kept>,
    /// Which body may read on: the last one.
    body: Cell<u32>,
    bytes: Cell<u64>,
    complete: Cell<bool>,
}

/// What was read of a request's content.
enum Kept {
    /// Nothing, as it will not be sent again; so far nothing was read either.
    Off,
    /// All of it, in so many bytes.
    All(Vec<Bytes>, usize),
    /// Not all of it.
    Lost,
}

impl Content {
    /// The content that `incoming` brings.
    pub fn new(incoming: Incoming) -> Rc<Self> {
        let complete = Cell::new(incoming.is_end_stream());
        Rc::new(Self {
            incoming: RefCell::new(Some(incoming)),
            kept: RefCell::new(Kept::Off),
            body: Cell::new(0),
            bytes: Cell::new(0),
            complete,
        })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bytes.get() == 0 && self.is_at_end()
    }

    fn is_at_end(&self) -> bool {
        self.incoming.borrow().as_ref().is_none_or(Incoming::is_end_stream)
    }

    /// The same content once more, if all of it was read and kept.
    pub fn copy(&self) -> Option<Rc<Self>> {
        let kept = match &*self.kept.borrow() {
            Kept::All(chunks, size) => Kept::All(chunks.clone(), *size),
            Kept::Off if self.is_empty() => Kept::All(Vec::new(), 0),
            Kept::Off | Kept::Lost => return None,
        };
        self.is_complete().then(|| {
            Rc::new(Self {
                incoming: RefCell::new(None),
                kept: RefCell::new(kept),
                body: Cell::new(0),
                bytes: Cell::new(self.bytes.get()),
                complete: Cell::new(true),
            })
        })
    }

    /// Bytes that were read from the client.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// Whether the client has sent all of it.
    pub fn is_complete(&self) -> bool {
        self.complete.get()
    }

    /// A body that carries it from the beginning. Earlier ones come to an end.
    pub fn body(self: &Rc<Self>) -> RequestBody {
        self.body.set(self.body.get() + 1);
        RequestBody { content: self.clone(), number: self.body.get(), replayed: 0 }
    }

    /// Keeps what is read from now on, up to a limit, so that it can be sent again.
    pub fn keep(&self) {
        let mut kept = self.kept.borrow_mut();
        if matches!(*kept, Kept::Off) {
            *kept = if self.bytes.get() == 0 { Kept::All(Vec::new(), 0) } else { Kept::Lost };
        }
    }

    /// Whether a new body would carry all of it.
    pub fn is_repeatable(&self) -> bool {
        match *self.kept.borrow() {
            Kept::All(..) => true,
            Kept::Off => self.bytes.get() == 0,
            Kept::Lost => false,
        }
    }

    /// Whether the client sends none before it is told to go on.
    pub fn is_waiting(&self) -> bool {
        matches!(&*self.incoming.borrow(), Some(Incoming::Client(connection)) if connection.waits())
    }

    /// Nobody but us tells the client to go on.
    pub fn go_on(&self) {
        if let Some(Incoming::Client(connection)) = &*self.incoming.borrow() {
            connection.go_on();
        }
    }

    /// Passes an interim response on to the client.
    pub fn inform(&self, head: &response::Parts, cx: &mut Context<'_>) {
        if let Some(Incoming::Client(connection)) = &*self.incoming.borrow() {
            connection.inform(head, cx);
        }
    }

    /// Reads on.
    pub fn poll_read(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut incoming = self.incoming.borrow_mut();
        let Some(incoming) = incoming.as_mut() else { return Poll::Ready(None) };
        let frame = ready!(incoming.poll_frame(cx));
        if frame.is_none() || incoming.is_end_stream() {
            self.complete.set(true);
        }
        if let Some(Ok(frame)) = &frame {
            let data = frame.data_ref();
            self.bytes.set(self.bytes.get() + data.map_or(0, |data| data.len() as u64));
            let mut kept = self.kept.borrow_mut();
            match (&mut *kept, data) {
                (Kept::All(chunks, size), Some(data)) if *size + data.len() <= KEPT => {
                    chunks.push(data.clone());
                    *size += data.len();
                }
                // Too much, or trailers.
                (Kept::All(..), _) => *kept = Kept::Lost,
                (Kept::Off | Kept::Lost, _) => {}
            }
        }
        Poll::Ready(frame)
    }
}

/// The body of a request on its way to the origin.
pub struct RequestBody {
    content: Rc<Content>,
    number: u32,
    /// How many of the chunks that were kept it has passed on.
    replayed: usize,
}

impl RequestBody {
    /// The content that it carries.
    pub fn content(&self) -> &Rc<Content> {
        &self.content
    }

    /// How many bytes earlier bodies have read that this one has still to pass on.
    fn ahead(&self) -> usize {
        match &*self.content.kept.borrow() {
            Kept::All(chunks, _) => chunks.iter().skip(self.replayed).map(Bytes::len).sum(),
            Kept::Off | Kept::Lost => 0,
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.number != self.content.body.get() {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        let kept = match &*self.content.kept.borrow() {
            Kept::All(chunks, _) => chunks.get(self.replayed).cloned(),
            Kept::Off | Kept::Lost => None,
        };
        self.replayed += 1;
        if let Some(chunk) = kept {
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        let read = self.content.poll_read(cx);
        if read.is_pending() {
            self.replayed -= 1;
        }
        read
    }

    fn is_end_stream(&self) -> bool {
        self.ahead() == 0 && self.content.is_at_end()
    }

    fn size_hint(&self) -> SizeHint {
        match self.content.incoming.borrow().as_ref().map_or(Some(0), Incoming::left) {
            // Of no content hyper would say in HTTP/2 that its length is 0, though the client has not.
            Some(rest) if !self.is_end_stream() => SizeHint::with_exact(self.ahead() as u64 + rest),
            _ => SizeHint::default(),
        }
    }
}

/// The body of a response on its way to the client. Dropping it ends the exchange: the record is written, and the
/// upstream connection goes back to the pool if the exchange is complete.
pub struct ResponseBody {
    source: Source,
    /// None once somebody else has it.
    record: Option<Record>,
}

#[expect(clippy::large_enum_variant, reason = "nearly all are from origins, and it is in no collection")]
enum Source {
    /// From the origin.
    Upstream { incoming: Incoming, http2: bool, lease: Lease, timer: Option<Pin<Box<Sleep>>> },
    /// Made by us.
    Message(Option<Bytes>),
}

/// An upstream connection in use.
pub struct Lease {
    /// None once it has been given back.
    pub connection: Option<Connection>,
    /// Whether it speaks HTTP/2.
    pub http2: bool,
    /// Where it goes back to.
    pub pool: Rc<Pool>,
    /// Under which key.
    pub key: Key,
    /// What the request carries, which must be complete for the connection to be of further use.
    pub content: Rc<Content>,
    /// Whether the client takes trailers.
    pub trailers: bool,
    /// When the exchange must have ended.
    pub deadline: Option<Instant>,
    /// What counts it as under way.
    pub held: Held,
}

/// What counts an exchange as under way, for as long as this lives.
#[derive(Default)]
pub struct Held {
    /// Among all requests to its upstream.
    pub request: Option<Slot>,
    /// Among those to its address.
    pub active: Option<Active>,
}

impl Lease {
    /// A place on a connection of HTTP/2 is given back when this is dropped: all content can have come before the end.
    fn give_back(&mut self) {
        if !self.http2
            && let Some(connection) = self.connection.take()
            && self.content.is_complete()
        {
            self.pool.put(&self.key, connection);
        }
    }
}

impl ResponseBody {
    /// Streams the origin's content, of which there is none if the response `is_bare`: one to HEAD, 204 or 304.
    pub fn upstream(incoming: Incoming, is_bare: bool, mut lease: Lease, mut record: Record) -> Self {
        if is_bare || incoming.is_end_stream() {
            record.complete();
            lease.give_back();
        }
        let (http2, timer) = (lease.http2, lease.deadline.map(|deadline| Box::pin(sleep_until(deadline))));
        Self { source: Source::Upstream { incoming, http2, lease, timer }, record: Some(record) }
    }

    /// No content, of a response that switches protocols: the request's record goes with the tunnel.
    pub fn switching() -> Self {
        Self { source: Source::Message(None), record: None }
    }

    /// A text of our own, about what is no request.
    pub fn unrecorded(text: Bytes) -> Self {
        Self { source: Source::Message(Some(text)), record: None }
    }

    /// Sends the rest of the request on while nobody takes the response.
    pub fn poll_upload(self: Pin<&mut Self>, cx: &mut Context<'_>) {
        if let Source::Upstream { incoming: Incoming::Http1(wire), .. } = &self.source {
            // Whoever takes the response is told.
            let _ = wire.borrow_mut().poll_upload(cx);
        }
    }

    /// A text of our own.
    pub fn message(text: Bytes, mut record: Record) -> Self {
        record.add_sent(text.len() as u64);
        record.complete();
        Self { source: Source::Message(Some(text)), record: Some(record) }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        let Source::Upstream { incoming, http2, mut lease, .. } =
            std::mem::replace(&mut self.source, Source::Message(None))
        else {
            return;
        };
        if let Some(record) = &mut self.record {
            record.set_received(lease.content.bytes());
            if http2 && record.is_complete() && !incoming.is_end_stream() {
                tokio::task::spawn_local(read_to_end(incoming, lease.connection.take()));
            }
        }
    }
}

/// Reads the end of a stream of which all content has come. Dropped before, hyper would reset it, and origins count resets
/// as an attack (CVE-2023-44487).
async fn read_to_end(mut incoming: Incoming, _connection: Option<Connection>) {
    // One that does not end, or has content after all, is reset.
    let _ = timeout(END_TIMEOUT, poll_fn(|cx| incoming.poll_frame(cx))).await;
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = &mut *self;
        match &mut this.source {
            Source::Message(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Source::Upstream { incoming, http2, lease, timer } => {
                let polled = incoming.poll_frame(cx);
                let timed_out =
                    polled.is_pending() && timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready());
                let mut frame = if timed_out { Some(Err(BodyError::TimedOut)) } else { ready!(polled) };
                // hyper takes a reset without an error for the end.
                if frame.is_none() && *http2 && !incoming.is_end_stream() {
                    frame = Some(Err(BodyError::Reset));
                }
                // Who does not ask for trailers may not know such; over HTTP/1.1 the origin knows that as well.
                if *http2 && !lease.trailers && matches!(&frame, Some(Ok(frame)) if frame.is_trailers()) {
                    frame = Some(Ok(Frame::data(Bytes::new())));
                }
                // Once all of an announced length has come, nobody asks for more. In HTTP/2 the end can still be to come.
                let whole = incoming.left() == Some(0);
                let ended = frame.is_none() || incoming.is_end_stream() || whole;
                if ended {
                    lease.give_back();
                }
                if let Some(record) = &mut this.record {
                    match &frame {
                        Some(Ok(frame)) => record.add_sent(frame.data_ref().map_or(0, |data| data.len() as u64)),
                        // The client's connection is cut short then: what is truncated must not look complete.
                        Some(Err(error)) => record.truncated(error),
                        None => {}
                    }
                    if ended {
                        record.complete();
                    }
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Message(text) => text.is_none(),
            Source::Upstream { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Message(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Source::Upstream { incoming, .. } => incoming.left().map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}
