//! HTTP/2 connections, which many requests share (RFC 9113).

mod noting;
mod stream;
mod unread;

use std::{
    cell::{Cell, OnceCell, RefCell},
    future::poll_fn,
    mem,
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::client::{self, SendRequest};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
    task,
    time::sleep,
};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::stream::Stream;
use self::{
    noting::{Noted, Noting},
    unread::Crowd,
};
use super::{
    ConnectionInfo, UpstreamError,
    limits::{GivenUp, Place},
};
use crate::http1::Limits;

/// What an origin may send of one response before the client has read on, in bytes. It bounds what a slow reader makes us
/// keep, and what one response can have under way: 2 MiB for each round trip.
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
/// The same while many of the connection's readers are behind: what they make us keep together is bounded, too.
const CROWDED_WINDOW: u32 = 64 * 1024;
/// Requests at the same time on one connection, however many the origin takes.
const STREAMS: u32 = 128;
/// What it may send of all responses of a connection: so much that readers who stand still hold up nobody else.
const CONNECTION_WINDOW: u32 = STREAMS * STREAM_WINDOW;
/// What frames of less than 256 bytes may fall short of that, together, until they are read: h2 ends a connection beyond. A few
/// readers of messages of ten bytes may be `STREAM_WINDOW` behind, and all others `CROWDED_WINDOW`, or what comes within a second.
const SMALL_FRAMES: usize = 448 * 1024 * 1024;
/// What is kept of one request's body until the origin takes it, in bytes.
const SEND_BUFFER: usize = 256 * 1024;
/// A connection on which nothing has come for so long since it was made, or since a request was sent, takes no others: it may be dead.
/// That the request was given up meanwhile makes no difference.
pub const SILENCE: Duration = Duration::from_secs(5);
/// Requests that were given up of which is known for so long that what still comes is theirs, so that it is dropped. Beyond that h2
/// takes it for an error.
const GIVEN_UP: usize = 1024;
const GIVEN_UP_FOR: Duration = Duration::from_secs(10);
/// How many such errors end the connection, on which others are.
const MISTAKEN: usize = 100_000;
/// How long a connection that nobody holds any more may take to end. It says so to the origin, which may not read.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams that are begun before the origin has said how many it takes (SETTINGS_MAX_CONCURRENT_STREAMS). If it takes fewer than
/// were begun, h2 keeps the others back until some have ended, and nobody else can have them.
const UNTOLD: usize = 1;

/// A connection that many requests use at the same time. It closes when the last of these handles is dropped.
#[derive(Clone)]
pub struct Shared {
    sender: Rc<Sender>,
    /// Facts for the log.
    pub info: Rc<ConnectionInfo>,
    load: Rc<Load>,
}

/// What begins requests on a connection.
struct Sender {
    requests: RefCell<SendRequest<Bytes>>,
    /// Tells that this is dropped.
    _gone: DropGuard,
}

/// What a connection is busy with.
struct Load {
    /// When it was made.
    made: Instant,
    /// Requests that use it: until they are answered to the end, and their content is sent or given up.
    streams: Cell<usize>,
    /// How many may, as far as the origin has said, and has not refused since.
    limit: Cell<usize>,
    /// How many may, as the origin has said.
    said: Cell<usize>,
    /// How many may, whatever the origin says.
    own_limit: Cell<usize>,
    /// What is seen of it.
    noted: Rc<Noted>,
    /// Those whose responses nobody reads.
    crowd: Crowd,
    /// Whether it takes no more requests, or has ended.
    closed: Cell<bool>,
    /// Told when there may be room for one more, and when there will be none.
    room: OnceCell<Rc<Notify>>,
    /// When the last request ended; of use while there are none.
    idle_since: Cell<Instant>,
    /// How many requests have begun.
    begun: Cell<u32>,
    /// Its place, if there may be only so many.
    place: Cell<Option<Place>>,
    /// Held once it is given up for others though it is in use.
    given_up: Cell<Option<GivenUp>>,
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
        let noted = Rc::<Noted>::default();
        // It has to answer our settings.
        noted.silent_since.set(Some(Instant::now()));
        let io = Noting::new(io, noted.clone());
        let (sender, mut connection) = client::Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(u32::try_from(heads.head).unwrap_or(u32::MAX))
            .initial_max_send_streams(UNTOLD)
            .max_concurrent_reset_streams(GIVEN_UP)
            .reset_stream_duration(GIVEN_UP_FOR)
            .max_local_error_reset_streams(Some(MISTAKEN))
            .data_frame_budget(SMALL_FRAMES)
            .handshake::<_, Bytes>(io)
            .await
            .map_err(|source| match noted.tls_failure.take() {
                Some(error) => UpstreamError::of_ended(&info, &error),
                None => UpstreamError::of_exchange(&info, source.into()),
            })?;
        let gone = CancellationToken::new();
        let sender = Rc::new(Sender { requests: RefCell::new(sender), _gone: gone.clone().drop_guard() });
        let load = Rc::new(Load::new(noted));
        let (kept, weak) = (load.clone(), Rc::downgrade(&sender));
        task::spawn_local(async move {
            let late = async {
                gone.cancelled().await;
                sleep(END_TIMEOUT).await;
            };
            let ended = tokio::select! {
                biased;
                ended = drive(&mut connection, &kept, &weak) => ended,
                () = late => Ok(()),
            };
            // Only now it counts as closed.
            drop(connection);
            kept.closed.set(true);
            kept.place.take();
            kept.given_up.take();
            kept.changed();
            // The exchanges that it concerns see the same error.
            if let Err(error) = ended {
                tracing::debug!(%address, %error, "upstream connection ended");
            }
        });
        Ok(Self { sender, info: Rc::new(info), load })
    }

    /// Whether the connection has ended, or takes no more requests.
    pub fn is_closed(&self) -> bool {
        self.load.closed.get()
    }

    /// Whether it is of no use to anybody: it has ended, or it is silent and no request is left that waits for it.
    pub fn is_dead(&self) -> bool {
        self.is_closed() || self.is_silent() && self.streams() == 0
    }

    /// Why TLS has ended, if it has failed.
    pub fn tls_failure(&self) -> Option<rustls::Error> {
        self.load.noted.tls_failure.borrow().clone()
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
        self.load.own_limit.set(limit.min(STREAMS as usize));
    }

    /// Gives it its place.
    pub fn hold(&self, place: Option<Place>) {
        self.load.place.set(place);
    }

    /// Notes that it is given up for others, whose turn it is once it has ended.
    pub fn give_up(&self, given_up: Option<GivenUp>) {
        self.load.given_up.set(given_up);
    }

    /// How many requests have begun on it.
    pub fn begun(&self) -> u32 {
        self.load.begun.get()
    }

    /// How many requests use it.
    pub fn streams(&self) -> usize {
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
        !self.load.noted.heard.get() && !self.is_silent() && !self.is_closed()
    }

    /// Whether a request on it can become a WebSocket.
    pub fn takes_web_sockets(&self) -> bool {
        self.sender.requests.borrow().is_extended_connect_protocol_enabled()
    }

    fn is_silent(&self) -> bool {
        self.load.noted.silent_since.get().is_some_and(|since| since.elapsed() > SILENCE)
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
        Stream::new(self.clone(), User(self.load.clone()), reused)
    }
}

impl Load {
    /// That of a connection which was made just now.
    fn new(noted: Rc<Noted>) -> Self {
        let now = Instant::now();
        Self {
            made: now,
            streams: Cell::new(0),
            limit: Cell::new(UNTOLD),
            said: Cell::new(UNTOLD),
            own_limit: Cell::new(STREAMS as usize),
            noted,
            crowd: Crowd::default(),
            closed: Cell::new(false),
            room: OnceCell::new(),
            idle_since: Cell::new(now),
            begun: Cell::new(0),
            place: Cell::default(),
            given_up: Cell::default(),
        }
    }

    /// What the origin says of it.
    fn room(&self) -> (bool, usize, bool) {
        (self.noted.heard.get(), self.limit.get(), self.closed.get())
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

/// Has a connection go on until it ends, and notes what is known of it on the way.
async fn drive<I: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut client::Connection<Noting<I>>,
    load: &Load,
    sender: &Weak<Sender>,
) -> Result<(), h2::Error> {
    let mut told = UNTOLD;
    let mut window = STREAM_WINDOW;
    poll_fn(|cx| {
        let before = load.room();
        load.noted.turn();
        let wanted = if load.crowd.is_large() { CROWDED_WINDOW } else { STREAM_WINDOW };
        // The origin may not have acknowledged the last one yet; then another turn will do.
        if wanted != window && connection.set_initial_window_size(wanted).is_ok() {
            window = wanted;
        }
        let polled = Pin::new(&mut *connection).poll(cx);
        let said = connection.max_concurrent_send_streams();
        if mem::replace(&mut told, said) != said {
            // One that takes none at all is asked nevertheless, rather than another one like it.
            load.limit.set(said.max(1));
            load.said.set(said.max(1));
        }
        // A connection that nobody holds any more ends by that.
        load.closed.set(sender.upgrade().is_none_or(|sender| is_closed(&sender.requests)));
        if before != load.room() {
            load.changed();
        }
        polled
    })
    .await
}

/// Whether nothing more can be sent by it.
fn is_closed(sender: &RefCell<SendRequest<Bytes>>) -> bool {
    // Nobody is to be woken: this is looked at each time that something has come.
    let mut cx = Context::from_waker(Waker::noop());
    matches!(sender.borrow_mut().poll_ready(&mut cx), Poll::Ready(Err(_)))
}
