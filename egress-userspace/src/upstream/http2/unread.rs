//! Responses that have come and that nobody reads: their clients stand still.

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};

use super::Load;

/// How many readers of a connection may stand still before the windows of all become small.
const FEW: usize = 4;
/// For how long there must have been more: anybody stands still for a moment.
const STANDSTILL: Duration = Duration::from_millis(100);

/// The readers of one connection that stand still.
#[derive(Default)]
pub(super) struct Crowd {
    readers: Cell<usize>,
    /// Since when they are more than a few.
    since: Cell<Option<Instant>>,
}

impl Crowd {
    /// Whether more than a few have stood still for a while.
    pub(super) fn is_large(&self) -> bool {
        self.since.get().is_some_and(|since| since.elapsed() > STANDSTILL)
    }
}

/// One of them, for as long as this lives.
pub(super) struct Unread(Rc<Load>);

impl Unread {
    /// One more.
    pub(super) fn new(load: Rc<Load>) -> Self {
        let crowd = &load.crowd;
        crowd.readers.set(crowd.readers.get() + 1);
        if crowd.readers.get() == FEW + 1 {
            crowd.since.set(Some(Instant::now()));
        }
        Self(load)
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let crowd = &self.0.crowd;
        crowd.readers.set(crowd.readers.get() - 1);
        if crowd.readers.get() == FEW {
            crowd.since.set(None);
        }
    }
}
