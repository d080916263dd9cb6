//! Responses that have come and that nobody reads: their clients stand still, or take less than comes.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::{Duration, Instant},
};

use super::Load;

/// How many readers of a connection may be behind before the windows of all become small.
const FEW: usize = 4;
/// For how long one is that counts: anybody who is slower than the origin is behind for a moment.
const BEHIND: Duration = Duration::from_secs(1);
/// How long windows stay small after that: each change is a frame that some origins take for an attack if there are many.
const CALM: Duration = Duration::from_secs(5);

/// The readers of one connection that are behind.
#[derive(Default)]
pub(super) struct Crowd {
    /// Since when each is, in no order.
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
        let is_far_behind = |since: &&Instant| now.saturating_duration_since(**since) > BEHIND;
        if readers.iter().filter(is_far_behind).count() > FEW {
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
