//! The connections of one key: idle ones of HTTP/1.1, and shared ones of HTTP/2.

use std::{
    collections::VecDeque,
    rc::{Rc, Weak},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{MAX_IDLE, Queue, Wanted};
use crate::upstream::{Connection, Made, Offer, http1, http2};

/// How long it is remembered which protocol an origin picks, after the last request.
const REMEMBERED: Duration = Duration::from_secs(600);

/// What there is of one key.
pub(super) struct Origin {
    /// Those of HTTP/1.1 that nobody uses. What was used last is used first, so that those which were needed at the busiest of
    /// times grow old at the front when that is over: there are never more than were in use at the same time before.
    idle: VecDeque<Idle>,
    /// The youngest is last.
    shared: Vec<http2::Shared>,
    /// Those who wait, if anyone does.
    waiting: Weak<Queue>,
    /// Told when there may be something for the first of them.
    room: Rc<Notify>,
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

/// What there is for a request.
pub(super) enum Found {
    Connection(Connection),
    /// A connection on which there may be room as soon as this tells.
    Soon(Rc<Notify>),
    Nothing,
}

impl Default for Origin {
    fn default() -> Self {
        Self {
            idle: VecDeque::new(),
            shared: Vec::new(),
            waiting: Weak::new(),
            room: Rc::default(),
            protocol: None,
            used: Instant::now(),
        }
    }
}

impl Origin {
    /// The queue, if anyone waits.
    pub(super) fn queue(&self) -> Option<Rc<Queue>> {
        self.waiting.upgrade()
    }

    /// A queue for the first who has to wait. It is there for as long as anyone does.
    pub(super) fn begin_queue(&mut self) -> Rc<Queue> {
        let queue = Rc::default();
        self.waiting = Rc::downgrade(&queue);
        queue
    }

    /// Has those who come from now on wait in another queue.
    pub(super) fn leave(&mut self, queue: &Rc<Queue>) {
        if self.waiting.ptr_eq(&Rc::downgrade(queue)) {
            self.waiting = Weak::new();
        }
    }

    /// A connection that is there.
    pub(super) fn find(&mut self, wanted: Wanted) -> Found {
        self.used = Instant::now();
        self.shared.retain(|shared| !shared.is_closed());
        if wanted.http2 {
            let newer = |shared: &&http2::Shared| wanted.newer_than.is_none_or(|than| shared.made() > than);
            let mut youngest_first = self.shared.iter().rev().filter(newer);
            if let Some(shared) = youngest_first.find(|shared| shared.has_room(wanted.max_idle)) {
                return Found::Connection(Connection::Http2(shared.stream()));
            }
            if self.shared.iter().filter(newer).any(http2::Shared::is_untold) {
                return Found::Soon(self.room.clone());
            }
        }
        let idle = if wanted.newer_than.is_none() { self.idle(wanted.max_idle) } else { None };
        idle.map_or(Found::Nothing, |idle| Found::Connection(Connection::Http1(idle.again())))
    }

    /// One that nobody uses.
    fn idle(&mut self, max_idle: Duration) -> Option<http1::Exclusive> {
        for index in (0..self.idle.len()).rev() {
            let entry = &self.idle[index];
            if entry.since.elapsed() > max_idle {
                break;
            }
            let entry = self.idle.remove(index)?;
            if !entry.connection.is_closed() {
                return Some(entry.connection);
            }
        }
        None
    }

    /// Makes room for a connection that is to be made because those that there are have been idle for too long.
    pub(super) fn make_room(&mut self, wanted: Wanted) {
        if self.idle.front().is_some_and(|entry| entry.since.elapsed() > wanted.max_idle) {
            self.idle.pop_front();
        }
    }

    /// What a connection is made with for which nobody else waits: what the origin picks is known, or it has no choice.
    pub(super) fn alone(&self, wanted: Wanted) -> Option<Offer> {
        match self.protocol {
            _ if !wanted.http2 => Some(Offer::Http1),
            Some(Protocol::Http1Required) => Some(Offer::Http1),
            Some(Protocol::Http1) => Some(Offer::Both),
            Some(Protocol::Http2) | None => None,
        }
    }

    /// Uses a connection that was made. Remembers what the origin has picked of what it was offered, and the connection if it
    /// can be shared.
    pub(super) fn made(&mut self, offer: Offer, made: Made) -> Connection {
        match made {
            Made::Http1(exclusive) => {
                if offer == Offer::Both {
                    self.protocol = Some(Protocol::Http1);
                }
                Connection::Http1(exclusive)
            }
            Made::Http2(shared) => {
                shared.announce(self.room.clone());
                self.protocol = Some(Protocol::Http2);
                self.shared.push(shared.clone());
                Connection::Http2(shared.stream())
            }
        }
    }

    /// Remembers that the origin wants HTTP/1.1, whatever it picks.
    pub(super) fn require_http1(&mut self) {
        self.protocol = Some(Protocol::Http1Required);
        self.shared.clear();
    }

    /// Takes a connection back whose exchange has ended.
    pub(super) fn put(&mut self, connection: http1::Exclusive) {
        if connection.is_reusable() {
            self.idle.push_back(Idle { connection, since: Instant::now() });
        }
    }

    /// Closes connections that were idle for too long, and says whether there is anything left that is worth keeping.
    pub(super) fn expire(&mut self) -> bool {
        self.idle.retain(|entry| entry.since.elapsed() < MAX_IDLE && !entry.connection.is_closed());
        self.shared.retain(|shared| !shared.is_idle(MAX_IDLE) && !shared.is_closed());
        let remembers = self.protocol.is_some() && self.used.elapsed() < REMEMBERED;
        remembers || !self.idle.is_empty() || !self.shared.is_empty() || self.waiting.strong_count() > 0
    }
}
