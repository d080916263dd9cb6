//! HTTP/2 connections, which many requests share (RFC 9113).

mod noting;

use std::{
    cell::{Cell, OnceCell},
    future::poll_fn,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Method;
use http_body::{Body, Frame, SizeHint};
use hyper::{
    client::conn::http2,
    rt::{self, Executor},
    upgrade::{self, Upgraded},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    task,
};

use self::noting::{Noting, TlsFailure};
use super::{ConnectionInfo, NotAnswered, UpstreamError, limits::Place};
use crate::{
    body::{BodyError, RequestBody},
    http1::Limits,
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
    sender: http2::SendRequest<Carried>,
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
    /// Whether it takes WebSockets (SETTINGS_ENABLE_CONNECT_PROTOCOL, RFC 8441 section 3).
    web_sockets: Cell<bool>,
    /// Whether it has said anything: its settings come first (RFC 9113 section 3.4).
    told: Cell<bool>,
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
        I: rt::Read + rt::Write + Unpin + 'static,
    {
        let address = info.address;
        let (tls_failure, heard) = (TlsFailure::default(), Rc::<Notify>::default());
        let io = Noting::new(io, tls_failure.clone(), heard.clone());
        let (sender, mut connection) = http2::Builder::new(LocalTasks)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(u32::try_from(heads.head).unwrap_or(u32::MAX))
            .initial_max_send_streams(UNTOLD)
            .handshake::<_, Carried>(io)
            .await
            .map_err(|source| match tls_failure.take() {
                Some(error) => UpstreamError::of_ended(&info, &error),
                None => UpstreamError::of_exchange(&info, source.into()),
            })?;
        let now = Instant::now();
        let load = Rc::new(Load {
            made: now,
            streams: Cell::new(0),
            limit: Cell::new(UNTOLD),
            own_limit: Cell::new(usize::MAX),
            web_sockets: Cell::new(false),
            told: Cell::new(false),
            room: OnceCell::new(),
            idle_since: Cell::new(now),
            waiting: Cell::new(0),
            waiting_since: Cell::new(now),
            begun: Cell::new(0),
            place: Cell::default(),
        });
        let limits = load.clone();
        task::spawn_local(async move {
            // What is read is read by a task of hyper's.
            let mut heard = pin!(heard.notified());
            let ended = poll_fn(|cx| {
                let before = (limits.told.get(), limits.limit.get());
                limits.told.set(before.0 || heard.as_mut().poll(cx).is_ready());
                let polled = Pin::new(&mut connection).poll(cx);
                // One that takes none at all is asked nevertheless, rather than another one like it.
                limits.limit.set(connection.current_max_send_streams().max(1));
                limits.web_sockets.set(connection.is_extended_connect_protocol_enabled());
                if before != (limits.told.get(), limits.limit.get()) {
                    limits.changed();
                }
                polled
            });
            let ended = ended.await;
            // Only now it counts as closed.
            drop(connection);
            limits.place.take();
            limits.changed();
            // The exchanges that it concerns see the same error.
            if let Err(error) = ended {
                tracing::debug!(%address, %error, "upstream connection ended");
            }
        });
        Ok(Self { sender, info: Rc::new(info), load, tls_failure })
    }

    /// Whether the connection has ended, or takes no more requests.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
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
        self.load.web_sockets.get()
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
    switched: Option<TokioIo<Upgraded>>,
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

    /// Sends a request.
    ///
    /// # Errors
    /// There is no response to it. It comes back if it was not sent.
    pub async fn send(
        &mut self,
        request: http::Request<RequestBody>,
    ) -> Result<http::Response<hyper::body::Incoming>, NotAnswered> {
        let load = &self.shared.load;
        if load.waiting.replace(load.waiting.get() + 1) == 0 {
            load.waiting_since.set(Instant::now());
        }
        self.waits = true;
        let is_connect = request.method() == Method::CONNECT;
        let request = request.map(|body| Carried { body, _user: self.user.clone() });
        let mut result = self.shared.sender.try_send_request(request).await;
        if result.is_ok() {
            self.shared.load.waiting_since.set(Instant::now());
        }
        self.answered();
        if let Ok(response) = &mut result
            && is_connect
        {
            // With the response it is there, or will never be.
            self.switched = upgrade::on(response).await.ok().map(TokioIo::new);
        }
        result.map_err(|mut failure| NotAnswered {
            unsent: failure.take_message().is_some(),
            error: failure.into_error().into(),
        })
    }

    /// Whether it carries another protocol from now on.
    pub fn has_switched(&self) -> bool {
        self.switched.is_some()
    }

    /// What it carries from now on, if it has switched protocols.
    pub fn switched(mut self) -> Option<Switched> {
        Some(Switched { io: self.switched.take()?, _stream: self })
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

/// A stream that carries another protocol.
pub struct Switched {
    io: TokioIo<Upgraded>,
    _stream: Stream,
}

impl AsyncRead for Switched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Switched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A request's content, which holds its stream open after the response if the client is still sending.
struct Carried {
    body: RequestBody,
    _user: Rc<User>,
}

impl Body for Carried {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Runs hyper's tasks on the worker that the connection belongs to.
#[derive(Clone)]
pub struct LocalTasks;

impl<F: Future<Output: 'static> + 'static> Executor<F> for LocalTasks {
    fn execute(&self, future: F) {
        task::spawn_local(future);
    }
}
