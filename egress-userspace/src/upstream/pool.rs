//! Idle upstream connections of one worker.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use super::Connection;
use crate::{netns::NetnsCookie, route::RouteId};

/// Idle connections are closed after this time.
pub const MAX_IDLE: Duration = Duration::from_secs(60);
/// A request that cannot be sent twice takes no connection that was idle for longer: the origin may be closing it at this
/// very moment. Common servers wait at least five seconds.
pub const MAX_IDLE_UNREPEATABLE: Duration = Duration::from_secs(4);
/// Idle connections kept for each key.
const MAX_IDLE_CONNECTIONS: usize = 256;

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
    Route {
        /// By this route.
        id: RouteId,
        /// To this address alone, where the rule leads to wherever the application was going.
        address: Option<IpAddr>,
        /// For this name alone, where the rule is for many.
        name: Option<Box<str>>,
    },
    /// To where the application was going, as it is.
    Origin(SocketAddr),
}

/// The pool.
#[derive(Default)]
pub struct Pool(RefCell<HashMap<Key, Vec<Idle>>>);

struct Idle {
    connection: Connection,
    since: Instant,
}

impl Pool {
    /// The connection of this key that was used last, if it was idle for at most `max_idle`.
    pub fn take(&self, key: &Key, max_idle: Duration) -> Option<Connection> {
        let mut pool = self.0.borrow_mut();
        let idle = pool.get_mut(key)?;
        idle.retain(|entry| !entry.connection.sender.is_closed());
        // One that is not ready is still finishing its last exchange.
        let found = idle.iter().rposition(|entry| entry.connection.sender.is_ready())?;
        if idle[found].since.elapsed() > max_idle {
            return None;
        }
        Some(idle.remove(found).connection)
    }

    /// Takes a connection back whose exchange has ended.
    pub fn put(&self, key: &Key, connection: Connection) {
        if connection.sender.is_closed() {
            return;
        }
        let mut pool = self.0.borrow_mut();
        let entry = Idle { connection, since: Instant::now() };
        match pool.get_mut(key) {
            None => _ = pool.insert(key.clone(), vec![entry]),
            Some(idle) if idle.len() < MAX_IDLE_CONNECTIONS => idle.push(entry),
            Some(_) => {}
        }
    }

    /// Closes connections that were idle for too long.
    pub fn expire(&self) {
        self.0.borrow_mut().retain(|_, idle| {
            idle.retain(|entry| entry.since.elapsed() < MAX_IDLE && !entry.connection.sender.is_closed());
            !idle.is_empty()
        });
    }

    /// Closes the idle connections of a network namespace that is gone.
    pub fn forget(&self, netns: NetnsCookie) {
        self.0.borrow_mut().retain(|key, _| key.netns != netns);
    }
}
