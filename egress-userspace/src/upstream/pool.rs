//! Upstream connections of one worker: those that there are of each key, and those who wait for one that is being made.

mod making;
mod origin;
mod waiting;

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use foldhash::HashMap;
use tokio::{sync::Mutex, time::sleep};

use self::{
    making::Making,
    origin::{Found, Origin},
};
use super::{
    Blame, Connection, Made, Offer, Order, UpstreamError,
    limits::{Kind, Place, Usage},
};
use crate::{netns::NetnsCookie, route::ClusterId};

/// How often others are asked for a connection that nobody uses while none is given up.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// Idle connections are closed after this time, unless the settings have another.
pub const MAX_IDLE: Duration = Duration::from_secs(60);
/// A request that cannot be sent twice takes no connection that was idle for longer: the origin may be closing it at this
/// very moment. Common servers wait at least five seconds.
pub const MAX_IDLE_UNREPEATABLE: Duration = Duration::from_secs(4);

/// How many keys there may be before nothing is kept for long that nobody uses and that is for a name under a wildcard or for
/// where an application was going: applications choose those.
const MANY_KEYS: usize = 16 * 1024;

/// How long connections may be idle while there are too many of them: there are descriptors for others, then.
const MAX_IDLE_CROWDED: Duration = Duration::from_secs(1);

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
    /// Whose requests alone it serves; none if it serves those of all.
    pub owner: Option<Owner>,
}

/// One who has connections of its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Owner(u64);

/// The same for as long as it has them.
pub struct Owning {
    pool: Rc<Pool>,
    owner: Owner,
}

impl Owning {
    /// Which of them it is.
    pub fn owner(&self) -> Owner {
        self.owner
    }
}

impl Drop for Owning {
    fn drop(&mut self) {
        self.pool.origins.borrow_mut().retain(|key, _| key.owner != Some(self.owner));
    }
}

impl Key {
    /// Whether there may be any number of such, as applications choose them.
    fn is_chosen(&self) -> bool {
        self.owner.is_some() || !matches!(self.to, To::Cluster { name: None, address: None, .. })
    }
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
        /// For this name alone, where it is not the cluster's own.
        name: Option<Box<str>>,
    },
    /// To where the application was going, as it is.
    Origin(SocketAddr),
    /// The same over HTTP/2, which the application knows to be understood there.
    Http2Origin(SocketAddr),
}

impl To {
    fn is(&self, cluster: ClusterId) -> bool {
        matches!(self, Self::Cluster { id, .. } if *id == cluster)
    }
}

/// What a request asks of its connection.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The longest time that it may have been idle.
    pub max_idle: Duration,
    /// Whether HTTP/2 will do. Requests that switch protocols need HTTP/1.1, and so does what came over HTTP/1 if it is passed
    /// through in clear.
    pub http2: bool,
    /// Whether HTTP/2 will do for it to become a WebSocket, where there is a connection that the origin takes such on (RFC 8441).
    pub web_socket: bool,
    /// After a failure: it must be younger than the one that failed.
    pub newer_than: Option<Instant>,
}

impl Wanted {
    /// Any will do.
    pub const ANY: Self = Self { max_idle: Duration::MAX, http2: true, web_socket: false, newer_than: None };
}

/// The pool.
pub struct Pool {
    origins: RefCell<HashMap<Key, Origin>>,
    /// Has all workers' pools give up a connection to a cluster that nobody uses.
    ask: Box<dyn Fn(ClusterId)>,
    /// Of what has no settings.
    unlimited: Arc<Usage>,
    /// Idle connections of which there may be no more for long.
    most_idle: usize,
    /// How many have had connections of their own.
    owners: Cell<u64>,
    /// When there were last more.
    crowded: Cell<Option<Instant>>,
    /// Shared with the connections that are being made and that nobody waits for.
    left_alone: Rc<()>,
}

/// Those who wait for a connection of one key. It is given up with the last of them.
type Queue = Mutex<Turn>;

/// What the first of those who wait has to do with. The mutex is fair: each is the first in its turn.
#[derive(Default)]
struct Turn {
    /// A connection that is being made, of which nobody knows yet whether it can be shared.
    making: Option<Making>,
    /// Why there is none, for all who have waited for it.
    failure: Option<Rc<UpstreamError>>,
}

impl Pool {
    /// A pool which asks others by `ask` to give up a connection to a cluster, and which keeps `most_idle` connections that nobody
    /// uses, of all keys together: one pod that asks many hosts is not to take the descriptors of all.
    pub fn new(ask: impl Fn(ClusterId) + 'static, most_idle: usize) -> Self {
        let (origins, unlimited, left_alone) = (RefCell::default(), Arc::default(), Rc::default());
        let (owners, crowded) = Default::default();
        Self { origins, ask: Box::new(ask), unlimited, most_idle, owners, crowded, left_alone }
    }

    /// Somebody who has connections of its own from now on.
    pub fn own(self: &Rc<Self>) -> Owning {
        self.owners.set(self.owners.get() + 1);
        Owning { pool: self.clone(), owner: Owner(self.owners.get()) }
    }

    /// A connection of this key; a new one, made by `make`, only if there is none that serves, and if `usage` has a place for it.
    ///
    /// Where the origin may pick HTTP/2, requests at the same time wait for one connection to be made, which they share; for
    /// another one only if the origin takes no more on those that there are. Where it is known to pick HTTP/1.1 each has one
    /// of its own made, 64 at the same time, and takes what is free before; those beyond wait for what others have. If there is no place for one each waits, in its turn, for what others need no more; but a key without any
    /// need not wait for others, who may never end. A connection that nobody waits for any more is for whoever comes next.
    /// It is told whose `blame` it is while this waits for one that is being made, be it that others have begun it, and when it does not.
    ///
    /// # Errors
    /// It cannot be made: all who have waited for it get the same error. Or as many wait already as may.
    pub async fn get<F>(
        self: &Rc<Self>,
        key: &Key,
        wanted: Wanted,
        usage: Option<&Arc<Usage>>,
        make: impl Fn(Order) -> F,
        blame: impl Fn(Option<&Blame>),
    ) -> Result<Connection, Rc<UpstreamError>>
    where
        F: Future<Output = Result<Made, UpstreamError>> + 'static,
    {
        let usage = usage.unwrap_or(&self.unlimited);
        if let Some(found) = self.ready(key, wanted) {
            return Ok(found);
        }
        let _pending = usage.take(Kind::Pending)?;
        let of_key = OfKey { pool: self, key, usage };
        let mut relies = true;
        loop {
            if let Some(connection) = of_key.wait(wanted, relies, &make, &blame).await? {
                return Ok(connection);
            }
            relies = false;
        }
    }

    /// A connection that is there, if nobody waits for one.
    pub fn ready(&self, key: &Key, wanted: Wanted) -> Option<Connection> {
        self.origins.borrow_mut().get_mut(key)?.enter(wanted).ok()
    }

    /// Remembers that the origin wants HTTP/1.1, whatever it picks.
    pub fn require_http1(&self, key: &Key) {
        if let Some(origin) = self.origins.borrow_mut().get_mut(key) {
            origin.require_http1();
        }
    }

    /// Takes a connection back whose exchange has ended.
    pub fn put(&self, key: &Key, connection: Connection) {
        // What is shared has never left, and what is of a network namespace that is gone, or one of too many keys, is of no use.
        if let (Connection::Http1(connection), Some(origin)) = (connection, self.origins.borrow_mut().get_mut(key)) {
            origin.put(connection);
        }
    }

    /// How many connections of this key are missing for so many requests at once.
    pub fn lacking(&self, key: &Key, requests: usize) -> usize {
        self.origins.borrow_mut().get_mut(key).map_or(requests, |origin| origin.lacking(requests))
    }

    /// Adds a connection that nobody waits for.
    fn add(&self, key: &Key, offer: Offer, made: Made) {
        // As in `put`, there may be nothing of its key any more.
        if let Some(origin) = self.origins.borrow_mut().get_mut(key) {
            origin.add(offer, made);
        }
    }

    /// Gives up a connection to a cluster that nobody uses, if somebody still asks for one.
    pub fn give_up(&self, cluster: ClusterId) {
        let mut origins = self.origins.borrow_mut();
        let mut of_cluster = origins.iter_mut().filter(|(key, _)| key.to.is(cluster));
        of_cluster.any(|(_, origin)| origin.give_up());
    }

    /// Closes connections that were idle for too long, or that others ask for: when they did there may have been none.
    pub fn expire(&self) {
        let is_crowded = self.count_idle() > self.most_idle;
        if is_crowded {
            self.crowded.set(Some(Instant::now()));
        }
        let mut origins = self.origins.borrow_mut();
        let limit = if is_crowded { MAX_IDLE_CROWDED } else { Duration::MAX };
        let limit_of_chosen = if origins.len() > MANY_KEYS { limit.min(MAX_IDLE_UNREPEATABLE) } else { limit };
        origins.retain(|key, origin| origin.expire(if key.is_chosen() { limit_of_chosen } else { limit }));
    }

    /// How many connections may be made that nobody has asked for: others find room beside them. For a while after there were too many
    /// it is none, as they would be closed again.
    pub fn spare(&self) -> usize {
        let was_crowded = self.crowded.get().is_some_and(|seen| seen.elapsed() < MAX_IDLE);
        let begun: usize = self.origins.borrow().values().map(Origin::count_begun).sum();
        if was_crowded { 0 } else { self.most_idle.div_ceil(2).saturating_sub(self.count_idle() + begun) }
    }

    fn count_idle(&self) -> usize {
        self.origins.borrow().values().map(Origin::count_idle).sum()
    }

    /// Closes the idle connections of a network namespace that is gone.
    pub fn forget(&self, netns: NetnsCookie) {
        self.origins.borrow_mut().retain(|key, _| key.netns != netns);
    }
}

/// What there is of one key, and may be.
#[derive(Clone, Copy)]
struct OfKey<'a> {
    pool: &'a Rc<Pool>,
    key: &'a Key,
    usage: &'a Arc<Usage>,
}

impl OfKey<'_> {
    fn with<R>(self, act: impl FnOnce(&mut Origin) -> R) -> R {
        let mut origins = self.pool.origins.borrow_mut();
        match origins.get_mut(self.key) {
            Some(origin) => act(origin),
            None => act(origins.entry(self.key.clone()).or_insert_with(|| Origin::new(self.usage.clone()))),
        }
    }

    /// A place for a connection that nobody has asked for yet, if there is one to spare, and what it is to be made with.
    fn spare_place(self) -> Option<(Option<Place>, Offer)> {
        let offer = self.with(|origin| origin.alone(Wanted::ANY)).unwrap_or(Offer::Both);
        let Some(places) = self.usage.places() else { return Some((None, offer)) };
        let permit = places.clone().try_acquire_owned().ok()?;
        Some((Some(self.with(|origin| origin.place(Some(permit)))), offer))
    }

    /// A place for a connection that is to be made; none is needed without a limit. Or a connection after all, if there is one
    /// sooner.
    async fn place(self, wanted: Wanted) -> Result<Option<Place>, Connection> {
        self.with(|origin| origin.make_room(wanted));
        let Some(places) = self.usage.places() else { return Ok(None) };
        let placed = |permit| Ok(Some(self.with(|origin| origin.place(permit))));
        if let Ok(permit) = places.clone().try_acquire_owned() {
            return placed(Some(permit));
        }
        let room = self.with(|origin| origin.room());
        let mut permit = pin!(places.clone().acquire_owned());
        let mut asking = None;
        while self.with(|origin| origin.has_any(wanted)) {
            asking.get_or_insert_with(|| Asking(self.usage));
            tokio::select! {
                biased;
                // They are never closed.
                permit = &mut permit => return placed(permit.ok()),
                () = room.notified() => {}
                () = self.ask() => {}
            }
            if let Found::Connection(found) = self.with(|origin| origin.find(wanted)) {
                return Err(found);
            }
        }
        // It would wait for others, who may never end.
        placed(None)
    }

    /// Asks others for a connection that nobody uses, and waits for a while.
    async fn ask(self) {
        if let (true, To::Cluster { id, .. }) = (self.usage.ask(), &self.key.to) {
            (self.pool.ask)(*id);
        }
        sleep(ASK_AGAIN).await;
    }
}

/// Somebody who has asked others for a connection, and needs none any more once this is dropped.
struct Asking<'a>(&'a Usage);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.withdraw();
    }
}

#[cfg(test)]
mod tests;
