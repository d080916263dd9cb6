//! What is under way to one upstream, over all workers, and how much of it there may be.

use std::{
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering},
    },
    time::Instant,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::UpstreamError;
use crate::policy::ConnectionPool;

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
    /// What somebody needs who waits for a place; 0 if nobody does.
    asked: AtomicU8,
    /// Whether a connection in use is given up for somebody, and has not ended yet.
    gives_up: AtomicBool,
}

/// Says that a connection in use is given up for others, for as long as this lives.
#[derive(Debug)]
pub struct GivenUp(Arc<Usage>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.gives_up.store(false, Ordering::Relaxed);
    }
}

/// Counts for as long as it lives.
#[derive(Debug)]
pub struct Slot(Option<(Arc<Usage>, Kind)>);

/// A connection's place among those that there may be, for as long as this lives.
#[derive(Debug)]
pub struct Place {
    _permit: Option<OwnedSemaphorePermit>,
    /// Counts the connections of its key that can be of use to others.
    own: Option<Rc<()>>,
}

impl Place {
    /// The place of a connection that is one of `own`.
    pub fn new(permit: OwnedSemaphorePermit, own: Rc<()>) -> Self {
        Self { _permit: Some(permit), own: Some(own) }
    }

    /// Notes that its connection takes no more requests.
    pub fn leave(&mut self) {
        self.own = None;
    }
}

/// What helps a request for which there is no place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Need {
    /// That another pool closes a connection that nobody uses.
    Idle = 1,
    /// That one does, be it in use: its own pool has none, and could wait forever.
    Any = 2,
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
        Self { settings, counts: Default::default(), places, asked: AtomicU8::new(0), gives_up: AtomicBool::new(false) }
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

    /// Asks all pools for a connection. Says whether they have to be told so.
    pub fn ask(&self, need: Need) -> bool {
        self.asked.fetch_max(need as u8, Ordering::Relaxed) < need as u8
    }

    /// Takes back what was asked. Others who have asked do so again.
    pub fn withdraw(&self) {
        self.asked.store(0, Ordering::Relaxed);
    }

    /// Whether somebody asks for such a connection.
    pub fn is_asked(&self, need: Need) -> bool {
        self.places.is_some() && self.asked.load(Ordering::Relaxed) >= need as u8
    }

    /// Whether a connection is to be given up for others, because they have asked for such a one. Only one is for each time.
    pub fn claim(&self, need: Need) -> bool {
        let asked = |asked: u8| (asked >= need as u8).then_some(0);
        self.places.is_some() && self.asked.fetch_update(Ordering::Relaxed, Ordering::Relaxed, asked).is_ok()
    }

    /// Leave to give up a connection that is in use: one at a time, since it makes no place before it has ended, and whoever waits
    /// asks again and again meanwhile.
    pub fn give_up(self: &Arc<Self>) -> Option<GivenUp> {
        (!self.gives_up.swap(true, Ordering::Relaxed)).then(|| GivenUp(self.clone()))
    }

    /// Whether a connection of that age, which has had so many requests, is to have no more.
    pub fn is_spent(&self, made: Instant, requests: u32) -> bool {
        self.settings.max_requests_per_connection.is_some_and(|limit| requests >= limit.get())
            || self.settings.max_connection_duration.is_some_and(|limit| made.elapsed() >= limit)
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
        assert!(!usage.claim(Need::Idle), "nobody has asked");
        assert!(usage.ask(Need::Idle) && !usage.ask(Need::Idle), "once is enough");
        assert!(!usage.claim(Need::Any), "one that is in use is not asked for");
        assert!(usage.claim(Need::Idle) && !usage.claim(Need::Idle));
        assert!(usage.ask(Need::Idle) && usage.ask(Need::Any) && usage.claim(Need::Any) && !usage.claim(Need::Idle));
        usage.ask(Need::Any);
        usage.withdraw();
        assert!(!usage.claim(Need::Idle), "nobody needs it any more");
    }
}
