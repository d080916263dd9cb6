//! Upstream connections of one worker: those that there are of each key, and those who wait for one that is being made.

mod origin;

use std::{
    cell::RefCell,
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, future::LocalBoxFuture};
use tokio::{sync::Mutex, time::timeout};

use self::origin::{Found, Origin};
use super::{Connection, Made, Offer, UpstreamError, http2};
use crate::{netns::NetnsCookie, route::ClusterId};

/// Idle connections are closed after this time.
pub const MAX_IDLE: Duration = Duration::from_secs(60);
/// A request that cannot be sent twice takes no connection that was idle for longer: the origin may be closing it at this
/// very moment. Common servers wait at least five seconds.
pub const MAX_IDLE_UNREPEATABLE: Duration = Duration::from_secs(4);

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
            match self.with(key, |origin| origin.find(wanted)) {
                Found::Connection(found) => return Ok(found),
                Found::Soon(room) => _ = timeout(http2::SILENCE, room.notified()).await,
                Found::Nothing => break,
            }
        }
        let alone = self.with(key, |origin| origin.alone(wanted));
        if let Some(offer) = alone {
            drop(turn);
            self.with(key, |origin| origin.make_room(wanted));
            let made = make(offer).await?;
            return Ok(self.with(key, |origin| origin.made(offer, made)));
        }
        if let Some(failure) = &turn.failure {
            return Err(failure.clone());
        }
        let made = turn.making.get_or_insert_with(|| make(Offer::Both).boxed_local()).await;
        turn.making = None;
        made.map(|made| self.with(key, |origin| origin.made(Offer::Both, made))).map_err(|error| {
            // Nobody else is to wait for what has failed.
            self.with(key, |origin| origin.leave(&queue));
            turn.failure.insert(Rc::new(error)).clone()
        })
    }

    /// A connection that is there, if nobody waits for one.
    pub fn ready(&self, key: &Key, wanted: Wanted) -> Option<Connection> {
        self.enter(key, wanted).ok()
    }

    /// A connection that is there; else the queue for one.
    fn enter(&self, key: &Key, wanted: Wanted) -> Result<Connection, Rc<Queue>> {
        self.with(key, |origin| {
            // Nobody is served before those who wait.
            if let Some(queue) = origin.queue() {
                return Err(queue);
            }
            match origin.find(wanted) {
                Found::Connection(found) => Ok(found),
                Found::Soon(_) | Found::Nothing => Err(origin.begin_queue()),
            }
        })
    }

    fn with<R>(&self, key: &Key, act: impl FnOnce(&mut Origin) -> R) -> R {
        let mut pool = self.0.borrow_mut();
        match pool.get_mut(key) {
            Some(origin) => act(origin),
            None => act(pool.entry(key.clone()).or_default()),
        }
    }

    /// Remembers that the origin wants HTTP/1.1, whatever it picks.
    pub fn require_http1(&self, key: &Key) {
        if let Some(origin) = self.0.borrow_mut().get_mut(key) {
            origin.require_http1();
        }
    }

    /// Takes a connection back whose exchange has ended.
    pub fn put(&self, key: &Key, connection: Connection) {
        // What is shared has never left, and what belongs to a network namespace that is gone is of no use.
        if let (Connection::Http1(connection), Some(origin)) = (connection, self.0.borrow_mut().get_mut(key)) {
            origin.put(connection);
        }
    }

    /// Closes connections that were idle for too long.
    pub fn expire(&self) {
        self.0.borrow_mut().retain(|_, origin| origin.expire());
    }

    /// Closes the idle connections of a network namespace that is gone.
    pub fn forget(&self, netns: NetnsCookie) {
        self.0.borrow_mut().retain(|key, _| key.netns != netns);
    }
}
