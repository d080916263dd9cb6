//! The content of responses: from the origin to the client.

use std::{
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::{Body, BodyError, Content, Frame, Incoming};
use crate::{
    http2::Received,
    memory::boxed,
    route::Active,
    telemetry::access_log::Record,
    upstream::{
        Connection,
        http1::Wire,
        limits::Slot,
        pool::{Key, Pool},
    },
};

/// How long an HTTP/2 stream may take to end after its last content, in each direction.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the rest of a response may take to come that nobody gets, or of a request to be sent that is answered: others may wait for
/// the connection's place.
const REST_TIMEOUT: Duration = Duration::from_millis(250);
/// How much of it is read, if it has content, so that its connection serves others: more than that costs more than another one.
const SHORT: u64 = 64 * 1024;

/// The body of a response on its way to the client. Dropping it ends the exchange: the record is written, and the
/// upstream connection goes back to the pool if the exchange is complete.
pub struct ResponseBody {
    source: Source,
    /// None once somebody else has it.
    record: Option<Box<Record>>,
}

enum Source {
    /// From the origin.
    Upstream {
        incoming: Incoming,
        http2: bool,
        lease: Box<Lease>,
        timer: Option<Pin<Box<Sleep>>>,
        /// What sends the rest of the request, if that is not who takes the response.
        upload: Option<AbortOnDropHandle<()>>,
    },
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
    /// Gives the connection back once all has come of what is incoming, which is over then: the next content on it is somebody
    /// else's. A place on a connection of HTTP/2 is given back when this is dropped: all content can have come before the end.
    ///
    /// What was read of a whole request, and the origin has not taken before it answered, goes to it nevertheless.
    fn give_back(&mut self, incoming: &mut Incoming) {
        if self.http2 || !self.content.has_all() {
            return;
        }
        let Some(mut connection) = self.connection.take() else { return };
        *incoming = Incoming::Http2(Received::nothing());
        if !connection.is_uploading() {
            return self.pool.put(&self.key, connection);
        }
        self.content.let_go();
        let (pool, key) = (self.pool.clone(), self.key.clone());
        tokio::task::spawn_local(async move {
            if timeout(REST_TIMEOUT, connection.end_upload()).await.is_ok() {
                pool.put(&key, connection);
            }
        });
    }

    /// Ends an exchange whose response nobody gets. Others have its connection if the rest is short.
    pub fn release(self: Box<Self>, mut incoming: Incoming, is_bare: bool) {
        let Self { connection, http2, pool, key, content, .. } = *self;
        let is_short = is_bare || incoming.left().is_none_or(|left| left <= SHORT);
        let Some(connection) = connection.filter(|_| content.is_complete() && is_short) else { return };
        // The client can be gone before that.
        drop(content);
        let mut reading = boxed(|| async move {
            let is_read = read_to_end(&mut incoming, SHORT, REST_TIMEOUT).await;
            drop(incoming);
            if is_read && !http2 {
                pool.put(&key, connection);
            }
        });
        // Mostly all has come.
        if reading.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            tokio::task::spawn_local(reading);
        }
    }
}

impl ResponseBody {
    /// Streams the origin's content, of which there is none if the response `is_bare`: one to HEAD, 204 or 304.
    pub fn upstream(mut incoming: Incoming, is_bare: bool, mut lease: Box<Lease>, mut record: Box<Record>) -> Self {
        if is_bare || incoming.is_end_stream() || incoming.left() == Some(0) {
            record.complete();
            lease.give_back(&mut incoming);
        }
        let (http2, timer) = (lease.http2, lease.deadline.map(|deadline| Box::pin(sleep_until(deadline))));
        let source = Source::Upstream { incoming, http2, lease, timer, upload: None };
        Self { source, record: Some(record) }
    }

    /// No content, of a response that switches protocols: the request's record goes with the tunnel.
    pub fn switching() -> Self {
        Self { source: Source::Message(None), record: None }
    }

    /// A text of our own, about what is no request.
    pub fn unrecorded(text: Bytes) -> Self {
        Self { source: Source::Message(Some(text)), record: None }
    }

    /// Goes on while nobody takes the response: sends the rest of the request, and looks whether the time of the exchange is over.
    /// Tells why there will be no more of the response.
    pub fn poll_untaken(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let Source::Upstream { incoming, timer, .. } = &mut self.source else { return Poll::Pending };
        let is_over = self.record.as_ref().is_none_or(|record| record.is_over());
        if let Incoming::Http1(wire) = incoming {
            let along = wire.borrow_mut().poll_along(cx);
            // A response that has come is sent whatever becomes of the request.
            if let Err(error) = along.map_err(BodyError::from)
                && !is_over
            {
                self.break_off(&error);
                return Poll::Ready(error);
            }
        }
        let Some(timer) = timer.as_mut().filter(|_| !is_over) else { return Poll::Pending };
        ready!(timer.as_mut().poll(cx));
        self.break_off(&BodyError::TimedOut);
        Poll::Ready(BodyError::TimedOut)
    }

    /// Notes that the client is not sent all of it.
    pub fn break_off(&mut self, error: &BodyError) {
        if let Some(record) = &mut self.record {
            record.truncated(error);
        }
    }

    /// Ends its exchange for another answer, which has its record, if there is one.
    pub fn replaced(mut self) -> Option<Box<Record>> {
        if let Source::Upstream { incoming, lease, .. } = std::mem::replace(&mut self.source, Source::Message(None)) {
            lease.release(incoming, false);
        }
        self.record.take()
    }

    /// Whether so much more comes before long that what there is may wait for it.
    pub fn is_coming(&self) -> bool {
        matches!(&self.source, Source::Upstream { incoming, .. } if incoming.is_coming())
    }

    /// How many bytes are to come, if that is known.
    pub fn left(&self) -> Option<u64> {
        match &self.source {
            Source::Message(text) => Some(text.as_ref().map_or(0, |text| text.len() as u64)),
            Source::Upstream { incoming, .. } => incoming.left(),
        }
    }

    /// Whether it is the origin's.
    pub fn is_of_origin(&self) -> bool {
        matches!(self.source, Source::Upstream { .. })
    }

    /// Has the rest of the request sent whether or not somebody takes the response: nobody asks for it while a client of
    /// HTTP/2 has no room, which may have none before it has sent everything.
    pub fn upload_apart(&mut self) {
        if let Source::Upstream { incoming: Incoming::Http1(wire), lease, upload, .. } = &mut self.source
            && lease.connection.is_some()
        {
            *upload = Wire::upload_apart(wire);
        }
    }

    /// A text of our own.
    pub fn message(text: Bytes, mut record: Box<Record>) -> Self {
        record.complete();
        Self { source: Source::Message((!text.is_empty()).then_some(text)), record: Some(record) }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        let Source::Upstream { mut incoming, http2, mut lease, .. } =
            std::mem::replace(&mut self.source, Source::Message(None))
        else {
            return;
        };
        if let Some(record) = &mut self.record {
            // What the client has not sent of the request goes to nobody any more.
            let is_sent = lease.content.is_complete();
            if http2
                && is_sent
                && record.is_complete()
                && let Some(mut connection) = lease.connection.take()
                && (!incoming.is_end_stream() || connection.is_uploading())
            {
                lease.content.let_go();
                tokio::task::spawn_local(async move {
                    // One that does not end, or has content after all, is reset.
                    if read_to_end(&mut incoming, 0, END_TIMEOUT).await {
                        let _ = timeout(END_TIMEOUT, connection.end_upload()).await;
                    }
                });
            }
        }
    }
}

/// Reads what is left of a response that nobody waits for, which is `most` bytes at most and has come within `limit`; says whether
/// it has come to its end.
/// A stream that is dropped before its end is reset, and origins count resets as an attack (CVE-2023-44487).
async fn read_to_end(incoming: &mut Incoming, most: u64, limit: Duration) -> bool {
    let reading = async {
        let mut left = most;
        while let Some(frame) = poll_fn(|cx| incoming.poll_frame(cx)).await {
            let length = frame.ok()?.data_ref().map_or(0, |data| data.len() as u64);
            left = left.checked_sub(length)?;
        }
        Some(())
    };
    matches!(timeout(limit, reading).await, Ok(Some(())))
}

impl Body for ResponseBody {
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, BodyError>>> {
        let this = &mut *self;
        match &mut this.source {
            Source::Message(text) => {
                let text = text.take();
                if let (Some(record), Some(text)) = (&mut this.record, &text) {
                    record.add_sent(text.len() as u64);
                }
                Poll::Ready(text.map(|text| Ok(Frame::Data(text))))
            }
            Source::Upstream { incoming, http2, lease, timer, upload } => {
                let polled = incoming.poll_frame(cx);
                let timed_out =
                    polled.is_pending() && timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready());
                let mut frame = if timed_out { Some(Err(BodyError::TimedOut)) } else { ready!(polled) };
                // Who does not ask for trailers may not know such; over HTTP/1.1 the origin knows that as well.
                if *http2 && !lease.trailers && matches!(frame, Some(Ok(Frame::Trailers(_)))) {
                    frame = Some(Ok(Frame::Data(Bytes::new())));
                }
                // Once all of an announced length has come, nobody asks for more. In HTTP/2 the end can still be to come.
                let whole = incoming.left() == Some(0);
                let ended = frame.is_none() || incoming.is_end_stream() || whole;
                if ended {
                    lease.give_back(incoming);
                    if lease.connection.is_none() {
                        *upload = None;
                    }
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

    fn discard_last(&mut self) {
        if let Some(record) = &mut self.record {
            record.given_up();
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Message(text) => text.is_none(),
            Source::Upstream { incoming, .. } => incoming.is_end_stream(),
        }
    }
}
