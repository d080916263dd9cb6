//! What is under way to one upstream, over all workers, and how much of it there may be.

use std::{
    net::IpAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Instant,
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::UpstreamError;
use crate::{policy::ConnectionPool, resolve::Addresses};

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Requests that wait for a connection.
    Pending,
    /// Requests that have not been answered to their end.
    Requests,
    /// Those of them that are sent again.
    Retries,
    /// Those of them that are copies.
    Mirrors,
}

/// Copies of requests under way at most. Nobody waits for them, so nothing else would keep them from piling up.
const MIRRORS: u32 = 1000;

impl Kind {
    /// Whose limit it is, and what it is called there.
    pub fn limited(self) -> &'static str {
        match self {
            Self::Pending => "the DestinationRule is reached: connectionPool.http.http1MaxPendingRequests is",
            Self::Requests => "the DestinationRule is reached: connectionPool.http.http2MaxRequests is",
            Self::Retries => "the DestinationRule is reached: connectionPool.http.maxRetries is",
            Self::Mirrors => "mirrored requests is reached: they are",
        }
    }
}

/// What is under way to one upstream, and what its settings allow.
#[derive(Debug)]
pub struct Usage {
    settings: ConnectionPool,
    counts: [AtomicU32; 4],
    /// Places for connections, for which requests wait in their order; none if there may be any number.
    places: Option<Arc<Semaphore>>,
    /// Whether somebody waits for a place, and asks for a connection that nobody uses.
    asked: AtomicBool,
    /// Whether what they belong to is gone: no connection is of use any more.
    is_over: AtomicBool,
    /// What connections lead to; none if that can be anything.
    names: Vec<Addresses>,
}

/// Counts for as long as it lives.
#[derive(Debug)]
pub struct Slot(Option<(Arc<Usage>, Kind)>);

/// A connection's place among those that there may be, or beyond them, for as long as this lives.
#[derive(Debug)]
pub struct Place {
    permit: Option<OwnedSemaphorePermit>,
    /// Counts the connections of its key.
    _own: Rc<()>,
    /// Told when it is free.
    room: Rc<Notify>,
}

impl Place {
    /// The place of a connection that is one of `own`. Its end is told to `room`.
    pub fn new(permit: Option<OwnedSemaphorePermit>, own: Rc<()>, room: Rc<Notify>) -> Self {
        Self { permit, _own: own, room }
    }

    /// Whether its end makes room for another one.
    pub fn makes_room(&self) -> bool {
        self.permit.is_some()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.notify_one();
    }
}

impl Default for Usage {
    fn default() -> Self {
        Self::new(ConnectionPool::default())
    }
}

impl Usage {
    /// Nothing is under way yet.
    pub fn new(settings: ConnectionPool) -> Self {
        let limit = settings.max_connections;
        let places = (limit != u32::MAX).then(|| Arc::new(Semaphore::new(limit as usize)));
        Self {
            settings,
            counts: Default::default(),
            places,
            asked: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            names: Vec::new(),
        }
    }

    /// The same where all connections lead to these.
    pub fn leading_to(self, names: Vec<Addresses>) -> Self {
        Self { names, ..self }
    }

    /// What the user wants.
    pub fn settings(&self) -> &ConnectionPool {
        &self.settings
    }

    /// One more, if the settings allow it.
    ///
    /// # Errors
    /// There are as many as they allow.
    pub fn take(self: &Arc<Self>, kind: Kind) -> Result<Slot, UpstreamError> {
        let limit = match kind {
            Kind::Pending => self.settings.max_pending_requests,
            Kind::Requests => self.settings.max_requests,
            Kind::Retries => self.settings.max_retries,
            Kind::Mirrors => MIRRORS,
        };
        // Without a limit nothing is counted, so that workers which share nothing else do not share this either.
        if limit == u32::MAX {
            return Ok(Slot(None));
        }
        let more = |count: u32| (count < limit).then_some(count + 1);
        let counted = self.count(kind).fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        counted.map_err(|_| UpstreamError::Overflow { kind, limit })?;
        Ok(Slot(Some((self.clone(), kind))))
    }

    /// Places for connections, if there is a limit.
    pub fn places(&self) -> Option<&Arc<Semaphore>> {
        self.places.as_ref()
    }

    /// Asks all pools for a connection that nobody uses. Says whether they have to be told so.
    pub fn ask(&self) -> bool {
        !self.asked.swap(true, Ordering::Relaxed)
    }

    /// Takes back what was asked. Others who have asked do so again.
    pub fn withdraw(&self) {
        self.asked.store(false, Ordering::Relaxed);
    }

    /// Whether somebody asks for a connection.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Whether a connection is to be given up for others, because they have asked. Only one is for each time.
    pub fn claim(&self) -> bool {
        self.is_asked() && self.asked.swap(false, Ordering::Relaxed)
    }

    /// Has no connection be of use any more.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// Whether a connection of that age, which has had so many requests, is to have no more.
    pub fn is_spent(&self, made: Instant, requests: u32) -> bool {
        self.is_over.load(Ordering::Relaxed)
            || self.settings.max_requests_per_connection.is_some_and(|limit| requests >= limit.get())
            || self.settings.max_connection_duration.is_some_and(|limit| made.elapsed() >= limit)
    }

    /// Whether a connection to that address is to have no more requests: what it led to has been elsewhere for a while.
    pub fn has_left(&self, address: IpAddr) -> bool {
        let has_left = !self.names.is_empty() && !self.names.iter().any(|name| name.load().keeps(address));
        if has_left {
            tracing::debug!(%address, "a connection takes no more requests, as its host has another address by now");
        }
        has_left
    }

    fn count(&self, kind: Kind) -> &AtomicU32 {
        &self.counts[kind as usize]
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some((usage, kind)) = &self.0 {
            usage.count(*kind).fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_than_the_limit_says() {
        let usage = Arc::new(Usage::new(ConnectionPool { max_requests: 2, ..ConnectionPool::default() }));
        let first = usage.take(Kind::Requests).expect("the first");
        let _second = usage.take(Kind::Requests).expect("the second");
        let error = usage.take(Kind::Requests).expect_err("a third").to_string();
        assert!(error.ends_with("connectionPool.http.http2MaxRequests is 2"), "{error}");
        assert!(usage.take(Kind::Pending).is_ok(), "others are counted apart");
        drop(first);
        assert!(usage.take(Kind::Requests).is_ok());
    }

    #[test]
    fn what_has_no_limit_is_not_counted() {
        let usage = Arc::<Usage>::default();
        let slots: Vec<_> = (0..3).map(|_| usage.take(Kind::Retries)).collect();
        assert!(slots.iter().all(Result::is_ok) && usage.count(Kind::Retries).load(Ordering::Relaxed) == 0);
        assert!(usage.places().is_none());
    }

    #[test]
    fn one_connection_is_given_up_for_each_time_that_somebody_asks() {
        let usage = Usage::new(ConnectionPool { max_connections: 1, ..ConnectionPool::default() });
        assert!(!usage.claim(), "nobody has asked");
        assert!(usage.ask() && !usage.ask(), "once is enough");
        assert!(usage.claim() && !usage.claim());
        usage.ask();
        usage.withdraw();
        assert!(!usage.claim(), "nobody needs it any more");
    }
}
