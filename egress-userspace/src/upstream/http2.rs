//! HTTP/2 connections, which many requests share (RFC 9113).

mod noting;

use std::{
    cell::{Cell, OnceCell, RefCell},
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::{
    RecvStream, SendStream,
    client::{self, SendRequest},
};
use http::{Method, Request, Response, StatusCode, request};
use http_body::Body as _;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
    task,
};

use self::noting::{Noting, TlsFailure};
use super::{ConnectionInfo, ExchangeError, NotAnswered, UpstreamError, limits::Place};
use crate::{
    body::{Incoming, RequestBody},
    http1::Limits,
    http2::{Received, Sending, Switched},
};

/// What an origin may send of one response before the client has read on, in bytes. It bounds what a slow reader makes us
/// keep, and what one response can have under way: 2 MiB for each round trip.
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
/// The same for all responses of a connection: so much that readers who stand still hold up nobody else.
const CONNECTION_WINDOW: u32 = 128 * STREAM_WINDOW;
/// What is kept of one request's body until the origin takes it, in bytes.
const SEND_BUFFER: usize = 256 * 1024;
/// A connection on which requests have waited for so long without any answer takes no others: it may be dead.
pub const SILENCE: Duration = Duration::from_secs(5);
/// Streams that are begun before the origin has said how many it takes (SETTINGS_MAX_CONCURRENT_STREAMS). If it takes fewer than
/// were begun, h2 keeps the others back until some have ended, and nobody else can have them.
const UNTOLD: usize = 1;

/// A connection that many requests use at the same time. It closes when the last of these handles is dropped.
#[derive(Clone)]
pub struct Shared {
    sender: Rc<RefCell<SendRequest<Bytes>>>,
    /// Facts for the log.
    pub info: Rc<ConnectionInfo>,
    load: Rc<Load>,
    tls_failure: TlsFailure,
}

/// What a connection is busy with.
struct Load {
    /// When it was made.
    made: Instant,
    /// Requests that use it: until they are answered to the end, and their content is sent or given up.
    streams: Cell<usize>,
    /// How many may, as far as the origin has said.
    limit: Cell<usize>,
    /// How many may, whatever the origin says.
    own_limit: Cell<usize>,
    /// Whether it has said anything: its settings come first (RFC 9113 section 3.4).
    told: Rc<Cell<bool>>,
    /// Whether it takes no more requests, or has ended.
    closed: Cell<bool>,
    /// Told when there may be room for one more, and when there will be none.
    room: OnceCell<Rc<Notify>>,
    /// When the last request ended; of use while there are none.
    idle_since: Cell<Instant>,
    /// Requests without an answer.
    waiting: Cell<usize>,
    /// When the first of them was sent, or another was answered since.
    waiting_since: Cell<Instant>,
    /// How many requests have begun.
    begun: Cell<u32>,
    /// Its place, if there may be only so many.
    place: Cell<Option<Place>>,
}

impl Shared {
    /// Starts HTTP/2 on a connection, for responses with heads within these limits, in bytes as RFC 9113 section 10.5.1 counts
    /// them. A task of its own drives it until it ends.
    ///
    /// # Errors
    /// The connection breaks at once.
    pub async fn start<I>(io: I, heads: Limits, info: ConnectionInfo) -> Result<Self, UpstreamError>
    where
        I: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let address = info.address;
        let (tls_failure, told) = (TlsFailure::default(), Rc::<Cell<bool>>::default());
        let io = Noting::new(io, tls_failure.clone(), told.clone());
        let (sender, mut connection) = client::Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(u32::try_from(heads.head).unwrap_or(u32::MAX))
            .initial_max_send_streams(UNTOLD)
            .handshake::<_, Bytes>(io)
            .await
            .map_err(|source| match tls_failure.take() {
                Some(error) => UpstreamError::of_ended(&info, &error),
                None => UpstreamError::of_exchange(&info, source.into()),
            })?;
        let sender = Rc::new(RefCell::new(sender));
        let load = Rc::new(Load::new(told));
        let (noted, weak) = (load.clone(), Rc::downgrade(&sender));
        task::spawn_local(async move {
            let ended = poll_fn(|cx| {
                let before = noted.room();
                let polled = Pin::new(&mut connection).poll(cx);
                // One that takes none at all is asked nevertheless, rather than another one like it.
                noted.limit.set(connection.max_concurrent_send_streams().max(1));
                // A connection that nobody holds any more ends by that.
                noted.closed.set(weak.upgrade().is_none_or(|sender| is_closed(&sender)));
                if before != noted.room() {
                    noted.changed();
                }
                polled
            });
            let ended = ended.await;
            // Only now it counts as closed.
            drop(connection);
            noted.closed.set(true);
            noted.place.take();
            noted.changed();
            // The exchanges that it concerns see the same error.
            if let Err(error) = ended {
                tracing::debug!(%address, %error, "upstream connection ended");
            }
        });
        Ok(Self { sender, info: Rc::new(info), load, tls_failure })
    }

    /// Whether the connection has ended, or takes no more requests.
    pub fn is_closed(&self) -> bool {
        self.load.closed.get()
    }

    /// Why TLS has ended, if it has failed.
    pub fn tls_failure(&self) -> Option<rustls::Error> {
        self.tls_failure.borrow().clone()
    }

    /// When it was made.
    pub fn made(&self) -> Instant {
        self.load.made
    }

    /// Has `room` notified when there may be room for one more request, and when the connection ends; it has at most `limit` of
    /// them at the same time.
    pub fn announce(&self, room: Rc<Notify>, limit: usize) {
        // It belongs to one key for as long as it lives.
        let _ = self.load.room.set(room);
        self.load.own_limit.set(limit);
    }

    /// Gives it its place.
    pub fn hold(&self, place: Option<Place>) {
        self.load.place.set(place);
    }

    /// How many requests have begun on it.
    pub fn begun(&self) -> u32 {
        self.load.begun.get()
    }

    /// How many requests use it.
    fn streams(&self) -> usize {
        self.load.streams.get()
    }

    /// Whether one more request may use it, if it was not idle for longer than `max_idle`.
    pub fn has_room(&self, max_idle: Duration) -> bool {
        let load = &self.load;
        let fresh = self.streams() > 0 || load.idle_since.get().elapsed() <= max_idle;
        let limit = load.limit.get().min(load.own_limit.get());
        fresh && !self.is_silent() && self.streams() < limit && !self.is_closed()
    }

    /// Whether it may have room as soon as the origin says how many requests it takes.
    pub fn is_untold(&self) -> bool {
        !self.load.told.get() && !self.is_silent() && !self.is_closed()
    }

    /// Whether a request on it can become a WebSocket.
    pub fn takes_web_sockets(&self) -> bool {
        self.sender.borrow().is_extended_connect_protocol_enabled()
    }

    fn is_silent(&self) -> bool {
        self.load.waiting.get() > 0 && self.load.waiting_since.get().elapsed() > SILENCE
    }

    /// Whether nobody has used it for `max_idle`.
    pub fn is_idle(&self, max_idle: Duration) -> bool {
        self.streams() == 0 && self.load.idle_since.get().elapsed() >= max_idle
    }

    /// Uses it for one request.
    pub fn stream(&self) -> Stream {
        self.load.streams.set(self.streams() + 1);
        let reused = self.begun() > 0;
        self.load.begun.set(self.begun() + 1);
        Stream { reused, waits: false, switched: None, shared: self.clone(), user: Rc::new(User(self.load.clone())) }
    }
}

impl Load {
    /// That of a connection which was made just now.
    fn new(told: Rc<Cell<bool>>) -> Self {
        let now = Instant::now();
        Self {
            made: now,
            streams: Cell::new(0),
            limit: Cell::new(UNTOLD),
            own_limit: Cell::new(usize::MAX),
            told,
            closed: Cell::new(false),
            room: OnceCell::new(),
            idle_since: Cell::new(now),
            waiting: Cell::new(0),
            waiting_since: Cell::new(now),
            begun: Cell::new(0),
            place: Cell::default(),
        }
    }

    /// What the origin says of it.
    fn room(&self) -> (bool, usize, bool) {
        (self.told.get(), self.limit.get(), self.closed.get())
    }

    fn changed(&self) {
        if let Some(room) = self.room.get() {
            room.notify_one();
        }
    }
}

/// One of those that use a connection.
struct User(Rc<Load>);

impl Drop for User {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
        self.0.idle_since.set(Instant::now());
        self.0.changed();
    }
}

/// One request's use of a connection.
pub struct Stream {
    shared: Shared,
    /// Whether the connection has served others.
    pub reused: bool,
    waits: bool,
    /// What it has become, if the origin has agreed to a CONNECT.
    switched: Option<(SendStream<Bytes>, RecvStream)>,
    user: Rc<User>,
}

impl Stream {
    /// The connection.
    pub fn connection(&self) -> &Shared {
        &self.shared
    }

    /// Notes that the origin has refused this request: it takes fewer at once. What it has said of that is seen with the next
    /// request that it is sent.
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
        if load.waiting.replace(load.waiting.get() + 1) == 0 {
            load.waiting_since.set(Instant::now());
        }
        self.waits = true;
        let result = self.exchange(head, body).await;
        if result.is_ok() {
            self.shared.load.waiting_since.set(Instant::now());
        }
        self.answered();
        result
    }

    async fn exchange(&mut self, head: request::Parts, body: RequestBody) -> Result<Response<Incoming>, NotAnswered> {
        let unsent = |error: h2::Error| NotAnswered { unsent: true, error: error.into() };
        // Of its own: it knows whether this request waits for others to end.
        let mut sender = self.shared.sender.borrow().clone();
        poll_fn(|cx| sender.poll_ready(cx)).await.map_err(unsent)?;
        let is_connect = head.method == Method::CONNECT;
        let is_all = body.is_end_stream() && !is_connect;
        let client = body.content().clone();
        // Many an origin never does that over HTTP/2.
        let told = client.go_on();
        let (mut answer, stream) = sender.send_request(Request::from_parts(head, ()), is_all).map_err(unsent)?;
        let (mut upload, stream) = match is_connect {
            true => (None, Some(stream)),
            false => ((!is_all).then(|| Sending::new(stream, body)), None),
        };
        let answered = poll_fn(|cx| {
            // None of its content goes before it has its turn: that would take room from those that it waits for.
            if let Some(sending) = &mut upload
                && sender.poll_ready(cx).is_ready()
                && let Poll::Ready(sent) = sending.poll(cx)
            {
                sent?;
                upload = None;
            }
            while let Poll::Ready(Some(Ok(interim))) = answer.poll_informational(cx) {
                if !told || interim.status() != StatusCode::CONTINUE {
                    client.inform(&interim.into_parts().0, cx);
                }
            }
            Pin::new(&mut answer).poll(cx).map_err(ExchangeError::from)
        });
        let (head, received) = answered.await.map_err(|error| NotAnswered { unsent: false, error })?.into_parts();
        if let Some(mut upload) = upload {
            // The response does not wait for it.
            let user = self.user.clone();
            task::spawn_local(async move {
                // Both ends see how it goes.
                let _ = poll_fn(|cx| upload.poll(cx)).await;
                drop(user);
            });
        }
        let content = match stream {
            Some(stream) if head.status.is_success() => {
                self.switched = Some((stream, received));
                Received::nothing()
            }
            _ => Received::new(received, &head.headers),
        };
        Ok(Response::from_parts(head, Incoming::Http2(content)))
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

    fn answered(&mut self) {
        if std::mem::take(&mut self.waits) {
            let load = &self.shared.load;
            load.waiting.set(load.waiting.get() - 1);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.answered();
    }
}

/// Whether nothing more can be sent by it.
fn is_closed(sender: &RefCell<SendRequest<Bytes>>) -> bool {
    // Nobody is to be woken: this is looked at each time that something has come.
    let mut cx = Context::from_waker(Waker::noop());
    matches!(sender.borrow_mut().poll_ready(&mut cx), Poll::Ready(Err(_)))
}
