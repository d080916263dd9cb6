//! Upstream connections of one worker: idle ones of HTTP/1.1, shared ones of HTTP/2, and those that are being made.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::SocketAddr,
    rc::{Rc, Weak},
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, future::LocalBoxFuture};
use tokio::{
    sync::{Mutex, Notify},
    time::timeout,
};

use super::{Connection, Made, Offer, UpstreamError, http1, http2};
use crate::{netns::NetnsCookie, route::ClusterId};

/// Idle connections are closed after this time.
pub const MAX_IDLE: Duration = Duration::from_secs(60);
/// A request that cannot be sent twice takes no connection that was idle for longer: the origin may be closing it at this
/// very moment. Common servers wait at least five seconds.
pub const MAX_IDLE_UNREPEATABLE: Duration = Duration::from_secs(4);
/// Idle connections kept for each key.
const MAX_IDLE_CONNECTIONS: usize = 256;
/// How long it is remembered which protocol an origin picks, after the last request.
const REMEMBERED: Duration = Duration::from_secs(600);

/// Connections of one key serve each other's requests. The network namespace is part of it: a connection has the address,
/// the routes and the network policy of the pod that it was made for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    /// The application's network namespace.
    pub netns: NetnsCookie,
    /// The device that the application's socket was bound to; 0 if none.
    pub device: u32,
    /// Where to.
    pub to: To,
}

/// Where a connection leads.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum To {
    /// To a configured host over TLS.
    Cluster {
        /// To this cluster.
        id: ClusterId,
        /// To this address alone, where it matters which it is.
        address: Option<SocketAddr>,
        /// For this name alone, where the rule is for many.
        name: Option<Box<str>>,
    },
    /// To where the application was going, as it is.
    Origin(SocketAddr),
}

/// What a request asks of its connection.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The longest time that it may have been idle.
    pub max_idle: Duration,
    /// Whether HTTP/2 will do. Requests that switch protocols need HTTP/1.1, and so does what is passed through in clear.
    pub http2: bool,
    /// After a failure: it must be younger than the one that failed.
    pub newer_than: Option<Instant>,
}

/// The pool.
#[derive(Default)]
pub struct Pool(RefCell<HashMap<Key, Origin>>);

/// What there is of one key.
struct Origin {
    /// The one that was used last is last.
    idle: Vec<Idle>,
    /// The youngest is last.
    shared: Vec<http2::Shared>,
    /// Those who wait, if anyone does.
    waiting: Weak<Queue>,
    /// Told when there may be something for the first of them.
    room: Rc<Notify>,
    protocol: Option<Protocol>,
    used: Instant,
}

struct Idle {
    connection: http1::Exclusive,
    since: Instant,
}

/// What an origin picks when it is offered both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Protocol {
    Http1,
    Http2,
    /// HTTP/2, but over that it has asked for HTTP/1.1 (HTTP_1_1_REQUIRED, RFC 9113 section 7).
    Http1Required,
}

/// Those who wait for a connection of one key. It is given up with the last of them.
type Queue = Mutex<Turn>;

/// What the first of those who wait has to do with. The mutex is fair: each is the first in its turn.
#[derive(Default)]
struct Turn {
    /// A connection that is being made, of which nobody knows yet whether it can be shared. It goes on if the one who began it
    /// goes away.
    making: Option<LocalBoxFuture<'static, Result<Made, UpstreamError>>>,
    /// Why there is none, for all who have waited for it.
    failure: Option<Rc<UpstreamError>>,
}

/// What there is for a request.
enum Found {
    Connection(Connection),
    /// A connection on which there may be room as soon as this tells.
    Soon(Rc<Notify>),
    Nothing,
}

impl Default for Origin {
    fn default() -> Self {
        Self {
            idle: Vec::new(),
            shared: Vec::new(),
            waiting: Weak::new(),
            room: Rc::default(),
            protocol: None,
            used: Instant::now(),
        }
    }
}

impl Pool {
    /// A connection of this key; a new one, made by `make`, only if there is none that serves.
    ///
    /// Where the origin may pick HTTP/2, requests at the same time wait for one connection to be made, which they share; for
    /// another one only if the origin takes no more on those that there are. Where it is known to pick HTTP/1.1 each has one
    /// of its own made.
    ///
    /// # Errors
    /// It cannot be made. All who have waited for it get the same error.
    pub async fn get<F>(
        &self,
        key: &Key,
        wanted: Wanted,
        make: impl Fn(Offer) -> F,
    ) -> Result<Connection, Rc<UpstreamError>>
    where
        F: Future<Output = Result<Made, UpstreamError>> + 'static,
    {
        let queue = match self.enter(key, wanted) {
            Ok(found) => return Ok(found),
            Err(queue) => queue,
        };
        let mut turn = queue.lock().await;
        loop {
            match self.find(key, wanted) {
                Found::Connection(found) => return Ok(found),
                Found::Soon(room) => _ = timeout(http2::SILENCE, room.notified()).await,
                Found::Nothing => break,
            }
        }
        if let Some(offer) = self.alone(key, wanted) {
            drop(turn);
            return Ok(self.made(key, offer, make(offer).await?));
        }
        if let Some(failure) = &turn.failure {
            return Err(failure.clone());
        }
        let made = turn.making.get_or_insert_with(|| make(Offer::Both).boxed_local()).await;
        turn.making = None;
        made.map(|made| self.made(key, Offer::Both, made)).map_err(|error| {
            self.close(key, &queue);
            turn.failure.insert(Rc::new(error)).clone()
        })
    }

    /// A connection that is there; else the queue for one.
    fn enter(&self, key: &Key, wanted: Wanted) -> Result<Connection, Rc<Queue>> {
        // Nobody is served before those who wait.
        let waiting = self.0.borrow().get(key).and_then(|origin| origin.waiting.upgrade());
        if let Some(queue) = waiting {
            return Err(queue);
        }
        if let Found::Connection(found) = self.find(key, wanted) {
            return Ok(found);
        }
        let queue = Rc::<Queue>::default();
        self.0.borrow_mut().entry(key.clone()).or_default().waiting = Rc::downgrade(&queue);
        Err(queue)
    }

    /// Lets nobody else wait for what has failed.
    fn close(&self, key: &Key, queue: &Rc<Queue>) {
        if let Some(origin) = self.0.borrow_mut().get_mut(key)
            && origin.waiting.ptr_eq(&Rc::downgrade(queue))
        {
            origin.waiting = Weak::new();
        }
    }

    /// What a connection is made with for which nobody else waits: what the origin picks is known, or it has no choice.
    fn alone(&self, key: &Key, wanted: Wanted) -> Option<Offer> {
        match self.0.borrow().get(key).and_then(|origin| origin.protocol) {
            _ if !wanted.http2 => Some(Offer::Http1),
            Some(Protocol::Http1Required) => Some(Offer::Http1),
            Some(Protocol::Http1) => Some(Offer::Both),
            Some(Protocol::Http2) | None => None,
        }
    }

    /// A connection that is there.
    fn find(&self, key: &Key, wanted: Wanted) -> Found {
        let mut pool = self.0.borrow_mut();
        let Some(origin) = pool.get_mut(key) else { return Found::Nothing };
        origin.used = Instant::now();
        origin.shared.retain(|shared| !shared.is_closed());
        if wanted.http2 {
            let newer = |shared: &&http2::Shared| wanted.newer_than.is_none_or(|than| shared.made() > than);
            let mut youngest_first = origin.shared.iter().rev().filter(newer);
            if let Some(shared) = youngest_first.find(|shared| shared.has_room(wanted.max_idle)) {
                return Found::Connection(Connection::Http2(shared.stream()));
            }
            if origin.shared.iter().filter(newer).any(http2::Shared::is_untold) {
                return Found::Soon(origin.room.clone());
            }
        }
        if wanted.newer_than.is_some() {
            return Found::Nothing;
        }
        origin.idle.retain(|entry| !entry.connection.is_closed());
        // One that is not ready is still finishing its last exchange.
        match origin.idle.iter().rposition(|entry| entry.connection.is_ready()) {
            Some(found) if origin.idle[found].since.elapsed() <= wanted.max_idle => {
                Found::Connection(Connection::Http1(origin.idle.remove(found).connection.again()))
            }
            Some(_) | None => Found::Nothing,
        }
    }

    /// Uses a connection that was made. Remembers what the origin has picked of what it was offered, and the connection if it
    /// can be shared.
    fn made(&self, key: &Key, offer: Offer, made: Made) -> Connection {
        let mut pool = self.0.borrow_mut();
        // Its network namespace may be gone.
        let origin = pool.get_mut(key);
        match made {
            Made::Http1(exclusive) => {
                if let (Offer::Both, Some(origin)) = (offer, origin) {
                    origin.protocol = Some(Protocol::Http1);
                }
                Connection::Http1(exclusive)
            }
            Made::Http2(shared) => {
                if let Some(origin) = origin {
                    shared.announce(origin.room.clone());
                    origin.protocol = Some(Protocol::Http2);
                    origin.shared.push(shared.clone());
                }
                Connection::Http2(shared.stream())
            }
        }
    }

    /// Remembers that the origin wants HTTP/1.1, whatever it picks.
    pub fn require_http1(&self, key: &Key) {
        if let Some(origin) = self.0.borrow_mut().get_mut(key) {
            origin.protocol = Some(Protocol::Http1Required);
            origin.shared.clear();
        }
    }

    /// Takes a connection back whose exchange has ended.
    pub fn put(&self, key: &Key, connection: Connection) {
        // What is shared has never left.
        let Connection::Http1(connection) = connection else { return };
        if connection.is_closed() {
            return;
        }
        let mut pool = self.0.borrow_mut();
        let entry = Idle { connection, since: Instant::now() };
        match pool.get_mut(key) {
            None => _ = pool.insert(key.clone(), Origin { idle: vec![entry], ..Origin::default() }),
            Some(origin) if origin.idle.len() < MAX_IDLE_CONNECTIONS => origin.idle.push(entry),
            Some(_) => {}
        }
    }

    /// Closes connections that were idle for too long.
    pub fn expire(&self) {
        self.0.borrow_mut().retain(|_, origin| {
            origin.idle.retain(|entry| entry.since.elapsed() < MAX_IDLE && !entry.connection.is_closed());
            origin.shared.retain(|shared| !shared.is_idle(MAX_IDLE) && !shared.is_closed());
            let waited_for = origin.waiting.strong_count() > 0;
            let remembers = origin.protocol.is_some() && origin.used.elapsed() < REMEMBERED;
            waited_for || remembers || !origin.idle.is_empty() || !origin.shared.is_empty()
        });
    }

    /// Closes the idle connections of a network namespace that is gone.
    pub fn forget(&self, netns: NetnsCookie) {
        self.0.borrow_mut().retain(|key, _| key.netns != netns);
    }
}
