//! Upstream connections of one worker: idle ones of HTTP/1.1, shared ones of HTTP/2, and those that are being made.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt as _,
    future::{LocalBoxFuture, Shared as Joint, WeakShared},
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
    /// A connection that is being made, of which nobody knows yet whether it can be shared.
    making: Option<WeakShared<Making>>,
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

type Making = LocalBoxFuture<'static, Result<Joined, Rc<UpstreamError>>>;

/// A connection for all who have waited for it: HTTP/1.1 is for the first of them.
#[derive(Clone)]
enum Joined {
    Exclusive(Rc<Cell<Option<http1::Exclusive>>>),
    Shared(http2::Shared),
}

impl Default for Origin {
    fn default() -> Self {
        Self { idle: Vec::new(), shared: Vec::new(), making: None, protocol: None, used: Instant::now() }
    }
}

impl Pool {
    /// A connection of this key; a new one, made by `make`, only if there is none that serves.
    ///
    /// Where the origin may pick HTTP/2, requests at the same time wait for one connection to be made, which they share.
    /// Where it is known to pick HTTP/1.1 each has one of its own made.
    ///
    /// # Errors
    /// It cannot be made. All who have waited for it get the same error.
    pub async fn get<F>(
        self: &Rc<Self>,
        key: &Key,
        wanted: Wanted,
        make: impl Fn(Offer) -> F,
    ) -> Result<Connection, Rc<UpstreamError>>
    where
        F: Future<Output = Result<Made, UpstreamError>> + 'static,
    {
        loop {
            if let Some(found) = self.find(key, wanted) {
                return Ok(found);
            }
            let protocol = self.0.borrow().get(key).and_then(|origin| origin.protocol);
            let alone = match protocol {
                _ if !wanted.http2 => Some(Offer::Http1),
                Some(Protocol::Http1Required) => Some(Offer::Http1),
                Some(Protocol::Http1) => Some(Offer::Both),
                Some(Protocol::Http2) | None => None,
            };
            if let Some(offer) = alone {
                return match make(offer).await? {
                    Made::Http1(exclusive) => Ok(Connection::Http1(exclusive)),
                    Made::Http2(shared) => {
                        // It has come to other conclusions than the last time.
                        self.made(key, Some(&shared));
                        Ok(Connection::Http2(shared.stream()))
                    }
                };
            }
            match self.join(key, &make).await? {
                // Nobody has found a place on it: it has ended already, and the request will learn so.
                Joined::Shared(shared) if shared.is_closed() && shared.streams() == 0 => {
                    return Ok(Connection::Http2(shared.stream()));
                }
                Joined::Shared(_) => {}
                Joined::Exclusive(first) => {
                    if let Some(exclusive) = first.take() {
                        return Ok(Connection::Http1(exclusive));
                    }
                }
            }
        }
    }

    /// A connection that is there.
    pub fn find(&self, key: &Key, wanted: Wanted) -> Option<Connection> {
        let mut pool = self.0.borrow_mut();
        let origin = pool.get_mut(key)?;
        origin.used = Instant::now();
        origin.shared.retain(|shared| !shared.is_closed());
        if wanted.http2 {
            let newer = |shared: &&http2::Shared| wanted.newer_than.is_none_or(|than| shared.made() > than);
            // What one has been told (SETTINGS_MAX_CONCURRENT_STREAMS) goes for one that has yet to be told.
            let limit = origin.shared.iter().map(http2::Shared::limit).min().unwrap_or_default();
            let mut youngest_first = origin.shared.iter().rev().filter(newer);
            let serves = youngest_first.find(|shared| shared.has_room(limit, wanted.max_idle));
            if let Some(shared) = serves {
                return Some(Connection::Http2(shared.stream()));
            }
        }
        if wanted.newer_than.is_some() {
            return None;
        }
        // Only those are looked at that are of use: there may be thousands.
        while origin.idle.last()?.since.elapsed() <= wanted.max_idle {
            let Idle { connection, .. } = origin.idle.pop()?;
            if !connection.is_closed() {
                return Some(Connection::Http1(connection.again()));
            }
        }
        None
    }

    /// The connection that is being made for all who wait; if there is none, `make` makes it.
    fn join<F>(self: &Rc<Self>, key: &Key, make: impl Fn(Offer) -> F) -> Joint<Making>
    where
        F: Future<Output = Result<Made, UpstreamError>> + 'static,
    {
        let mut pool = self.0.borrow_mut();
        let origin = pool.entry(key.clone()).or_default();
        // Nobody is left to drive one whose requests have all gone away.
        if let Some(joint) = origin.making.as_ref().and_then(WeakShared::upgrade)
            && joint.peek().is_none()
        {
            return joint;
        }
        let (making, pool, key) = (make(Offer::Both), self.clone(), key.clone());
        let joint = async move {
            match making.await? {
                Made::Http1(exclusive) => {
                    pool.made(&key, None);
                    Ok(Joined::Exclusive(Rc::new(Cell::new(Some(exclusive)))))
                }
                Made::Http2(shared) => {
                    pool.made(&key, Some(&shared));
                    Ok(Joined::Shared(shared))
                }
            }
        };
        let joint = joint.boxed_local().shared();
        origin.making = joint.downgrade();
        joint
    }

    /// Remembers what an origin that was offered both has picked, and the connection if it can be shared.
    fn made(&self, key: &Key, shared: Option<&http2::Shared>) {
        // Its network namespace may be gone.
        if let Some(origin) = self.0.borrow_mut().get_mut(key) {
            origin.protocol = Some(if shared.is_some() { Protocol::Http2 } else { Protocol::Http1 });
            origin.shared.extend(shared.cloned());
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
            let making = origin.making.as_ref().and_then(WeakShared::upgrade).is_some();
            let remembers = origin.protocol.is_some() && origin.used.elapsed() < REMEMBERED;
            making || remembers || !origin.idle.is_empty() || !origin.shared.is_empty()
        });
    }

    /// Closes the idle connections of a network namespace that is gone.
    pub fn forget(&self, netns: NetnsCookie) {
        self.0.borrow_mut().retain(|key, _| key.netns != netns);
    }
}
