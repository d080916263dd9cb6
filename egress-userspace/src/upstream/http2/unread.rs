//! Responses that have come and that nobody reads: their clients stand still.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::{Duration, Instant},
};

use super::Load;

/// How many readers of a connection may stand still before the windows of all become small.
const FEW: usize = 4;
/// For how long one does that counts: anybody who is slower than the origin does for a moment.
const STANDSTILL: Duration = Duration::from_secs(1);
/// How long windows stay small after that: each change is a frame that some origins take for an attack if there are many.
const CALM: Duration = Duration::from_secs(5);

/// The readers of one connection that stand still.
#[derive(Default)]
pub(super) struct Crowd {
    /// Since when each does, in no order.
    readers: RefCell<Vec<Instant>>,
    /// When it was last seen that they are more than a few.
    seen: Cell<Option<Instant>>,
}

impl Crowd {
    /// Whether they are more than a few, or were a moment ago.
    pub(super) fn is_large(&self) -> bool {
        let readers = self.readers.borrow();
        if readers.len() <= FEW && self.seen.get().is_none() {
            return false;
        }
        let now = Instant::now();
        let stands_still = |since: &&Instant| now.saturating_duration_since(**since) > STANDSTILL;
        if readers.iter().filter(stands_still).count() > FEW {
            self.seen.set(Some(now));
        }
        self.seen.set(self.seen.get().filter(|seen| now.saturating_duration_since(*seen) < CALM));
        self.seen.get().is_some()
    }
}

/// One of them, for as long as this lives.
pub(super) struct Unread {
    load: Rc<Load>,
    since: Instant,
}

impl Unread {
    /// One more.
    pub(super) fn new(load: Rc<Load>) -> Self {
        let since = Instant::now();
        load.crowd.readers.borrow_mut().push(since);
        Self { load, since }
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let mut readers = self.load.crowd.readers.borrow_mut();
        if let Some(index) = readers.iter().position(|since| *since == self.since) {
            readers.swap_remove(index);
        }
    }
}
