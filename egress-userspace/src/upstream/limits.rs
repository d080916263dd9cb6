//! What is under way to one upstream, over all workers, and how much of it there may be.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Connections, idle ones included.
    Connections,
    /// Requests that wait for a connection.
    Pending,
    /// Requests that have not been answered to their end.
    Requests,
    /// Those of them that are sent again.
    Retries,
}

impl Kind {
    /// What the limit is called in a `DestinationRule`.
    pub fn setting(self) -> &'static str {
        match self {
            Self::Connections => "tcp.maxConnections",
            Self::Pending => "http.http1MaxPendingRequests",
            Self::Requests => "http.http2MaxRequests",
            Self::Retries => "http.maxRetries",
        }
    }
}

/// The counters of one upstream.
#[derive(Debug, Default)]
pub struct Usage {
    counts: [AtomicU32; 4],
}

/// Counts for as long as it lives.
#[derive(Debug)]
pub struct Slot(Option<(Arc<Usage>, Kind)>);

impl Usage {
    /// One more, unless there are `limit` of them; without a limit nothing is counted, so that workers which share nothing else
    /// do not share this either.
    pub fn take(self: &Arc<Self>, kind: Kind, limit: u32) -> Option<Slot> {
        if limit == u32::MAX {
            return Some(Slot(None));
        }
        let more = |count: u32| (count < limit).then_some(count + 1);
        self.count(kind).fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Slot(Some((self.clone(), kind))))
    }

    /// How many there are.
    pub fn current(&self, kind: Kind) -> u32 {
        self.count(kind).load(Ordering::Relaxed)
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
        let usage = Arc::<Usage>::default();
        let first = usage.take(Kind::Requests, 2).expect("the first");
        let _second = usage.take(Kind::Requests, 2).expect("the second");
        assert!(usage.take(Kind::Requests, 2).is_none());
        assert!(usage.take(Kind::Pending, 1).is_some(), "others are counted apart");
        drop(first);
        assert!(usage.take(Kind::Requests, 2).is_some());
        assert!(usage.take(Kind::Connections, 0).is_none());
    }

    #[test]
    fn what_has_no_limit_is_not_counted() {
        let usage = Arc::<Usage>::default();
        let slots: Vec<_> = (0..3).map(|_| usage.take(Kind::Connections, u32::MAX)).collect();
        assert!(slots.iter().all(Option::is_some) && usage.current(Kind::Connections) == 0);
    }
}
