//! HTTP/2 connections, which many requests share (RFC 9113).

mod stream;
mod window;

use std::{
    cell::{Cell, OnceCell, RefCell},
    future::poll_fn,
    mem,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{sync::Notify, task, time::sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::stream::Stream;
use self::window::Window;
use super::{Carrier, ConnectionInfo, limits::Place};
use crate::{
    http1::Limits,
    http2::{self, Config, Link, Role, Room},
};

/// Requests at the same time on one connection, however many the origin takes.
const STREAMS: u32 = 128;
/// What an origin may have under way of all responses of a connection, in bytes. As much comes of them after their windows have become
/// small as those let come anyway.
const CONNECTION_WINDOW: u32 = STREAMS * window::SMALL;
/// A connection on which nothing has come for so long since it was made, or since a request was sent, takes no others: it may be dead.
/// That the request was given up meanwhile makes no difference.
pub const SILENCE: Duration = Duration::from_secs(5);
/// How long a connection that nobody holds any more may take to end. It says so to the origin, which may not read.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that many requests use at the same time. It closes when the last of these handles is dropped.
#[derive(Clone)]
pub struct Shared {
    _holders: Rc<Holders>,
    /// Facts for the log.
    pub info: Rc<ConnectionInfo>,
    load: Rc<Load>,
}

/// Those who hold a connection. It ends with the last request when they are gone.
struct Holders {
    link: Link,
    /// Tells that this is dropped.
    _gone: DropGuard,
}

impl Drop for Holders {
    fn drop(&mut self) {
        self.link.close();
    }
}

/// What a connection is busy with.
struct Load {
    /// When it was made.
    made: Instant,
    /// Requests that use it: until they are answered to the end, and their content is sent or given up.
    streams: Cell<usize>,
    /// How many may, as the origin has refused more than that since it last said how many it takes.
    refusing: Cell<usize>,
    /// How many may, whatever the origin says.
    own_limit: Cell<usize>,
    link: Link,
    /// Told when there may be room for one more, and when there will be none.
    room: OnceCell<Rc<Notify>>,
    /// When the last request ended; of use while there are none.
    idle_since: Cell<Instant>,
    /// How many requests have begun.
    begun: Cell<u32>,
    /// Whether it has waited for the first of them, in which time the origin may have closed it.
    was_idle: Cell<bool>,
    /// Its place, if there may be only so many.
    place: RefCell<Option<Place>>,
}

impl Shared {
    /// Starts HTTP/2 on a connection, for responses with heads within these limits, in bytes as RFC 9113 section 10.5.1 counts
    /// them. Content that has come and was not read is counted in `unread`, and trailers by `trailers`. A task of its own drives it until
    /// it ends.
    pub fn start<I>(io: I, heads: Limits, unread: Rc<Cell<usize>>, trailers: Room, info: ConnectionInfo) -> Self
    where
        I: Carrier + 'static,
    {
        let address = info.address;
        let (stream_window, connection_window) = (window::LARGE, CONNECTION_WINDOW);
        let config = Config { stream_window, connection_window, streams: 0, heads, unread, trailers };
        let mut connection = http2::Connection::new(io, Role::Client, config);
        let gone = CancellationToken::new();
        let link = connection.link();
        let holders = Rc::new(Holders { link: link.clone(), _gone: gone.clone().drop_guard() });
        let load = Rc::new(Load::new(link));
        let kept = load.clone();
        task::spawn_local(async move {
            let late = async {
                gone.cancelled().await;
                sleep(END_TIMEOUT).await;
            };
            let ended = tokio::select! {
                biased;
                ended = drive(&mut connection, &kept) => ended,
                () = late => Ok(()),
            };
            // Only now it counts as closed.
            drop(connection);
            kept.place.take();
            kept.changed();
            // The exchanges that it concerns see the same error.
            if let Err(error) = ended {
                tracing::debug!(%address, %error, "upstream connection ended");
            }
        });
        Self { _holders: holders, info: Rc::new(info), load }
    }

    /// Whether the connection has ended, or takes no more requests.
    pub fn is_closed(&self) -> bool {
        self.load.link.is_closed()
    }

    /// Whether it is of no use to anybody: it has ended, or it is silent and no request is left that waits for it.
    pub fn is_dead(&self) -> bool {
        self.is_closed() || self.streams() == 0 && self.is_silent()
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
        self.load.place.replace(place);
    }

    /// Whether its end makes room for another one.
    pub fn makes_room(&self) -> bool {
        self.load.place.borrow().as_ref().is_some_and(Place::makes_room)
    }

    /// Notes that it was made before there was a request for it.
    pub fn wait_for_use(&self) {
        self.load.was_idle.set(true);
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
        let limit = load.limit().min(load.own_limit.get());
        fresh && !self.is_silent() && self.streams() < limit && !self.is_closed()
    }

    /// Whether it may have room as soon as the origin says how many requests it takes.
    pub fn is_untold(&self) -> bool {
        let may_have_more = self.streams() < self.load.own_limit.get();
        may_have_more && !self.load.link.is_told() && !self.is_silent() && !self.is_closed()
    }

    /// Whether a request on it can become a WebSocket.
    pub fn takes_web_sockets(&self) -> bool {
        self.load.link.takes_switches()
    }

    fn is_silent(&self) -> bool {
        self.load.link.silence() > SILENCE
    }

    /// Whether nobody has used it for `max_idle`.
    pub fn is_idle(&self, max_idle: Duration) -> bool {
        self.streams() == 0 && self.load.idle_since.get().elapsed() >= max_idle
    }

    /// Uses it for one request.
    pub fn stream(&self) -> Stream {
        self.load.streams.set(self.streams() + 1);
        let is_first = self.begun() == 0;
        self.load.begun.set(self.begun() + 1);
        Stream::new(self.clone(), User(self.load.clone()), is_first)
    }
}

impl Load {
    /// That of a connection which was made just now.
    fn new(link: Link) -> Self {
        let now = Instant::now();
        Self {
            made: now,
            streams: Cell::new(0),
            refusing: Cell::new(usize::MAX),
            own_limit: Cell::new(STREAMS as usize),
            link,
            room: OnceCell::new(),
            idle_since: Cell::new(now),
            begun: Cell::new(0),
            was_idle: Cell::new(false),
            place: RefCell::default(),
        }
    }

    /// How many requests may use it, as far as the origin has said, and has not refused since.
    fn limit(&self) -> usize {
        self.link.limit().min(self.refusing.get())
    }

    /// Notes that the origin has refused one of those that use it.
    fn refused(&self) {
        self.refusing.set(self.limit().min(self.streams.get() - 1).max(1));
    }

    /// Notes that it has answered one: what it has refused once it may take again.
    fn answered(&self) {
        self.refusing.set(self.refusing.get().saturating_add(1));
    }

    /// What the origin says of it: how many requests it takes, if it has said so, and whether it takes any.
    fn told(&self) -> (Option<usize>, bool) {
        (self.link.is_told().then(|| self.link.limit()), self.link.is_closed())
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
        if self.0.streams.get() == 0 {
            self.0.idle_since.set(Instant::now());
        }
        self.0.changed();
    }
}

/// Has a connection go on until it ends, and notes what is known of it on the way.
async fn drive(connection: &mut http2::Connection<impl Carrier>, load: &Load) -> Result<(), http2::Error> {
    let mut window = Window::new();
    let mut told = load.told();
    poll_fn(|cx| {
        if let Some(size) = window.change(load.link.unread(), |window| load.link.unread_within(window)) {
            load.link.set_stream_window(size);
        }
        let polled = connection.poll(cx);
        if connection.is_drained() {
            connection.io().expect(load.link.announced(), cx);
        }
        // Some of it changes between two turns: nobody may hold it any more, or the last stream that there can be has begun.
        let before = mem::replace(&mut told, load.told());
        if before.0 != told.0 {
            load.refusing.set(usize::MAX);
        }
        if before != told {
            load.changed();
        }
        polled
    })
    .await
}
