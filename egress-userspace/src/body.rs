//! Bodies on their way through: streamed, counted, never held back.

use std::{
    cell::Cell,
    convert::Infallible,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::{
    telemetry::access_log::Record,
    upstream::{
        Connection,
        pool::{Key, Pool},
    },
};

/// How far a request body has got; shared between the body, which hyper owns, and the exchange.
#[derive(Debug, Default)]
pub struct Progress {
    bytes: Cell<u64>,
    complete: Cell<bool>,
}

impl Progress {
    /// Bytes of content that were read from the client.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// Whether the client has sent all of it.
    pub fn is_complete(&self) -> bool {
        self.complete.get()
    }
}

/// The body of a request on its way to the origin.
pub struct RequestBody {
    incoming: Option<Incoming>,
    progress: Rc<Progress>,
}

impl RequestBody {
    /// Streams `incoming`.
    pub fn new(incoming: Incoming, progress: Rc<Progress>) -> Self {
        progress.complete.set(incoming.is_end_stream());
        Self { incoming: Some(incoming), progress }
    }

    /// No content.
    pub fn empty(progress: Rc<Progress>) -> Self {
        progress.complete.set(true);
        Self { incoming: None, progress }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
        let complete = frame.is_none() || incoming.is_end_stream();
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            self.progress.bytes.set(self.progress.bytes() + data.len() as u64);
        }
        if complete {
            self.progress.complete.set(true);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// The body of a response on its way to the client. Dropping it ends the exchange: the record is written, and the
/// upstream connection goes back to the pool if the exchange is complete.
pub struct ResponseBody {
    content: Content,
    /// None once somebody else has it.
    record: Option<Record>,
}

enum Content {
    /// From the origin.
    Upstream { incoming: Incoming, lease: Lease },
    /// Made by us.
    Message(Option<Bytes>),
}

/// An upstream connection in use.
pub struct Lease {
    /// None once it has been given back.
    pub connection: Option<Connection>,
    /// Where it goes back to.
    pub pool: Rc<Pool>,
    /// Under which key.
    pub key: Key,
    /// The request's body, which must be complete for the connection to be of further use.
    pub progress: Rc<Progress>,
}

impl Lease {
    fn give_back(&mut self) {
        if let Some(connection) = self.connection.take()
            && self.progress.is_complete()
        {
            self.pool.put(&self.key, connection);
        }
    }
}

impl ResponseBody {
    /// Streams the origin's content.
    pub fn upstream(incoming: Incoming, mut lease: Lease, mut record: Record) -> Self {
        if incoming.is_end_stream() {
            lease.give_back();
            record.complete();
        }
        Self { content: Content::Upstream { incoming, lease }, record: Some(record) }
    }

    /// No content, of a response that switches protocols: the request's record goes with the tunnel.
    pub fn switching() -> Self {
        Self { content: Content::Message(None), record: None }
    }

    /// A text of our own.
    pub fn message(text: Bytes, mut record: Record) -> Self {
        record.add_sent(text.len() as u64);
        record.complete();
        Self { content: Content::Message(Some(text)), record: Some(record) }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if let (Content::Upstream { lease, .. }, Some(record)) = (&self.content, &mut self.record) {
            record.set_received(lease.progress.bytes());
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = &mut *self;
        match &mut this.content {
            Content::Message(text) => Poll::Ready(
                text.take()
                    .map(|text| Ok::<_, Infallible>(Frame::data(text)))
                    .map(|frame| frame.map_err(|never| match never {})),
            ),
            Content::Upstream { incoming, lease } => {
                let frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
                let ended = frame.is_none() || incoming.is_end_stream();
                if ended {
                    lease.give_back();
                }
                if let Some(record) = &mut this.record {
                    match &frame {
                        Some(Ok(frame)) => record.add_sent(frame.data_ref().map_or(0, |data| data.len() as u64)),
                        // hyper then cuts the client's connection short: what is truncated must not look complete.
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
        match &self.content {
            Content::Message(text) => text.is_none(),
            Content::Upstream { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Message(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Content::Upstream { incoming, .. } => incoming.size_hint(),
        }
    }
}
