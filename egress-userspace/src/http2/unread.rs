//! What has come and was not read: content, and trailers.

use std::{cell::Cell, rc::Rc};

/// Counts how long all trailers of a connection are together that it keeps, in bytes. Says whether there is room for so much; where there
/// is not, it stays as it was.
pub type Room = Box<dyn Fn(usize) -> bool>;

/// How much that is of one connection, in bytes, and of all that it is counted with.
pub(super) struct Unread {
    own: usize,
    all: Rc<Cell<usize>>,
}

impl Unread {
    /// Nothing has come yet.
    pub(super) fn new(all: Rc<Cell<usize>>) -> Self {
        Self { own: 0, all }
    }

    /// Of this one, and of all.
    pub(super) fn count(&self) -> (usize, usize) {
        (self.own, self.all.get())
    }

    pub(super) fn add(&mut self, bytes: usize) {
        self.own += bytes;
        self.all.set(self.all.get() + bytes);
    }

    pub(super) fn remove(&mut self, bytes: usize) {
        self.own -= bytes;
        self.all.set(self.all.get() - bytes);
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.remove(self.own);
    }
}
