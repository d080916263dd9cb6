//! The connections of one key: idle ones of HTTP/1.1, and shared ones of HTTP/2.

use std::{
    collections::VecDeque,
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Notify, OwnedSemaphorePermit};

use super::{
    MAX_IDLE, Queue, Wanted,
    making::{Making, left_unmade},
    waiting::Waiting,
};
use crate::upstream::{
    Connection, Made, Offer, http1, http2,
    limits::{Place, Usage},
};

/// How long it is remembered which protocol an origin picks, after the last request, and that it has asked for HTTP/1.1 instead.
const REMEMBERED: Duration = Duration::from_secs(600);

/// Connections that are made to their end though nobody waits for them, at the same time.
const LEFT_ALONE_PER_KEY: usize = 8;

/// What there is of one key.
pub(super) struct Origin {
    /// Those of HTTP/1.1 that nobody uses. What was used last is used first, so that those which were needed at the busiest of
    /// times grow old at the front when that is over: there are never more than were in use at the same time before.
    idle: VecDeque<Idle>,
    /// The youngest is last.
    shared: Vec<http2::Shared>,
    /// Those who wait, if anyone does.
    waiting: Weak<Queue>,
    /// Those of them who have had their turn, and wait for a connection of their own.
    pub(super) lone: Waiting,
    /// Told when there may be something for the first of them.
    room: Rc<Notify>,
    protocol: Option<Protocol>,
    used: Instant,
    usage: Arc<Usage>,
    /// Shared with the places of all connections that there are, those in use and those that are being made included.
    own: Rc<()>,
    /// Shared with the connections that are being made and that nobody waits for.
    left_alone: Rc<()>,
    /// Connections that are being made and that are for whoever comes: for requests which are still to come, or which have another one by
    /// now. The youngest is last.
    begun: Vec<Making>,
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
    /// HTTP/2, but over that it has asked for HTTP/1.1 (HTTP_1_1_REQUIRED, RFC 9113 section 7). It is asked again some time after.
    Http1Required(Instant),
}

/// What there is for a request.
pub(super) enum Found {
    Connection(Connection),
    /// A connection on which there may be room as soon as this tells.
    Soon(Rc<Notify>),
    Nothing,
}

impl Origin {
    /// There is nothing yet.
    pub(super) fn new(usage: Arc<Usage>) -> Self {
        Self {
            idle: VecDeque::new(),
            shared: Vec::new(),
            waiting: Weak::new(),
            lone: Waiting::default(),
            room: Rc::default(),
            protocol: None,
            used: Instant::now(),
            usage,
            own: Rc::default(),
            left_alone: Rc::default(),
            begun: Vec::new(),
        }
    }

    /// A connection that is there; else the queue for one, which there is for as long as anyone waits.
    pub(super) fn enter(&mut self, wanted: Wanted) -> Result<Connection, Rc<Queue>> {
        // Nobody is served before those who wait.
        if let Some(queue) = self.waiting.upgrade() {
            return Err(queue);
        }
        if let Found::Connection(found) = self.find(wanted) {
            return Ok(found);
        }
        let queue = Rc::default();
        self.waiting = Rc::downgrade(&queue);
        Err(queue)
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
        self.retire();
        if wanted.http2 || wanted.web_socket {
            let newer = |shared: &&http2::Shared| is_newer(shared, wanted);
            let mut youngest_first = self.shared.iter().rev().filter(newer);
            if let Some(shared) = youngest_first
                .find(|shared| shared.has_room(wanted.max_idle) && (wanted.http2 || shared.takes_web_sockets()))
            {
                let stream = shared.stream();
                self.retire();
                return Found::Connection(Connection::Http2(stream));
            }
            if wanted.http2 && self.shared.iter().filter(newer).any(http2::Shared::is_untold) {
                return Found::Soon(self.room.clone());
            }
        }
        let idle = if wanted.newer_than.is_none() { self.idle(wanted.max_idle) } else { None };
        idle.map_or(Found::Nothing, |idle| Found::Connection(Connection::Http1(idle)))
    }

    /// One that nobody uses.
    fn idle(&mut self, max_idle: Duration) -> Option<http1::Exclusive> {
        for index in (0..self.idle.len()).rev() {
            if self.used.saturating_duration_since(self.idle[index].since) > max_idle {
                break;
            }
            let Idle { connection, .. } = self.idle.remove(index)?;
            if !connection.is_closed() && !self.usage.is_spent(connection.made, connection.served) {
                return Some(connection);
            }
        }
        None
    }

    /// Lets those go that take no more requests; they end with those that they have.
    fn retire(&mut self) {
        let usage = &self.usage;
        self.shared.retain(|shared| !shared.is_dead() && !usage.is_spent(shared.made(), shared.begun()));
    }

    /// Makes room for a connection that is to be made because those that there are have been idle for too long.
    pub(super) fn make_room(&mut self, wanted: Wanted) {
        self.shared.retain(|shared| !shared.is_idle(wanted.max_idle));
        if self.idle.front().is_some_and(|entry| entry.since.elapsed() > wanted.max_idle) {
            self.idle.pop_front();
        }
    }

    /// What a connection is made with for which nobody else waits: what the origin picks is known, or it has no choice.
    pub(super) fn alone(&self, wanted: Wanted) -> Option<Offer> {
        match self.protocol {
            _ if !wanted.http2 => Some(Offer::Http1),
            _ if self.requires_http1() => Some(Offer::Http1),
            Some(Protocol::Http1) => Some(Offer::Both),
            Some(Protocol::Http2) if self.usage.settings().shares_no_connections() => Some(Offer::Both),
            Some(Protocol::Http2 | Protocol::Http1Required(_)) | None => None,
        }
    }

    /// Whether who has a connection made for itself alone takes any other of HTTP/1.1 that is free before.
    pub(super) fn takes_any(&self, wanted: Wanted) -> bool {
        wanted.newer_than.is_none() && (!wanted.http2 || self.protocol != Some(Protocol::Http2))
    }

    /// Uses a connection that was made. Remembers what the origin has picked of what it was offered, and the connection if it
    /// can be shared. None if it is of no use any more.
    pub(super) fn made(&mut self, offer: Offer, made: Made) -> Option<Connection> {
        Some(match self.note(offer, made)? {
            Made::Http1(exclusive) => Connection::Http1(exclusive),
            Made::Http2(shared) => {
                let stream = shared.stream();
                self.retire();
                Connection::Http2(stream)
            }
        })
    }

    /// Adds a connection that was made for whoever comes.
    pub(super) fn add(&mut self, offer: Offer, made: Made) {
        match self.note(offer, made) {
            Some(Made::Http1(exclusive)) => self.keep(exclusive),
            Some(Made::Http2(shared)) => {
                shared.wait_for_use();
                self.room.notify_one();
            }
            None => {}
        }
    }

    fn note(&mut self, offer: Offer, made: Made) -> Option<Made> {
        match &made {
            // It was begun before the origin has asked for HTTP/1.1, as it does only of those who can speak that.
            Made::Http2(_) if self.requires_http1() => return None,
            Made::Http1(_) if offer == Offer::Both && !self.requires_http1() => self.protocol = Some(Protocol::Http1),
            Made::Http1(_) => {}
            Made::Http2(shared) => {
                let limit = self.usage.settings().max_concurrent_streams;
                shared.announce(self.room.clone(), limit.map_or(usize::MAX, |limit| limit.get() as usize));
                if self.protocol.replace(Protocol::Http2) == Some(Protocol::Http1) {
                    self.lone.call_all();
                }
                self.shared.push(shared.clone());
            }
        }
        Some(made)
    }

    fn requires_http1(&self) -> bool {
        matches!(self.protocol, Some(Protocol::Http1Required(since)) if since.elapsed() < REMEMBERED)
    }

    /// Remembers that the origin wants HTTP/1.1, whatever it picks.
    pub(super) fn require_http1(&mut self) {
        self.protocol = Some(Protocol::Http1Required(Instant::now()));
        self.shared.clear();
    }

    /// Takes a connection back whose exchange has ended.
    pub(super) fn put(&mut self, mut connection: http1::Exclusive) {
        connection.served += 1;
        self.keep(connection);
    }

    /// Keeps a connection for whoever comes.
    pub(super) fn keep(&mut self, mut connection: http1::Exclusive) {
        connection.was_idle = true;
        // Who takes it later looks whether it is closed.
        let is_closed = if self.lone.is_empty() { !connection.is_reusable() } else { connection.is_closed() };
        let is_of_use = !is_closed
            && !self.usage.is_spent(connection.made, connection.served)
            && !self.usage.has_left(connection.info.address.ip());
        let is_for_others = connection.makes_room() && !self.is_waited_for();
        if is_of_use
            && !(is_for_others && self.usage.claim())
            && let Some(connection) = self.lone.hand(connection)
        {
            self.idle.push_back(Idle { connection, since: Instant::now() });
            self.room.notify_one();
        }
    }

    /// How many connections are missing for so many requests at once. Where these share connections, one is enough for all.
    pub(super) fn lacking(&mut self, requests: usize) -> usize {
        self.idle.retain(|Idle { connection, .. }| !connection.is_closed());
        self.retire();
        let shared = self.shared.iter().filter(|shared| shared.has_room(Duration::MAX) || shared.is_untold()).count();
        let there = self.idle.len() + shared + self.begun.len();
        let is_shared = self.protocol == Some(Protocol::Http2) && !self.usage.settings().shares_no_connections();
        if is_shared { requests.min(1) } else { requests }.saturating_sub(there)
    }

    /// How many connections there are that nobody uses.
    pub(super) fn count_idle(&self) -> usize {
        self.idle.len() + self.shared.iter().filter(|shared| shared.is_idle(Duration::ZERO)).count()
    }

    /// How many are being made for whoever comes.
    pub(super) fn count_begun(&self) -> usize {
        self.begun.len()
    }

    /// Whether somebody waits.
    pub(super) fn is_waited_for(&self) -> bool {
        self.waiting.strong_count() > 0 || !self.lone.is_empty()
    }

    /// Leaves a connection that is being made to whoever comes.
    pub(super) fn leave_begun(&mut self, making: Making) {
        self.begun.push(making);
        // It can have been made in the instant in which who has waited for it was given another.
        self.take_in();
        self.forget_lost();
    }

    /// Gives one of them away to a request that has come, if it is made with the same, and was begun just now.
    pub(super) fn take_begun(&mut self, offer: Offer) -> Option<Making> {
        self.forget_lost();
        let index = self.begun.iter().rposition(|making| making.order.offer == offer && making.is_young())?;
        Some(self.begun.remove(index).awaited())
    }

    /// Lets those go of which nothing comes: a panic has ended them, or they have failed.
    fn forget_lost(&mut self) {
        self.begun.retain_mut(|making| !making.is_lost());
    }

    /// Keeps those of them for whoever comes that are made, and that no request has come for yet.
    pub(super) fn take_in(&mut self) {
        let ended = |(index, making): (usize, &mut Making)| Some((index, making.ended()?));
        while let Some((index, ended)) = self.begun.iter_mut().enumerate().find_map(ended) {
            let offer = self.begun.remove(index).order.offer;
            match ended {
                Ok(made) => self.add(offer, made),
                Err(error) => left_unmade(&error),
            }
        }
    }

    /// What is told when there may be something for who waits.
    pub(super) fn room(&self) -> Rc<Notify> {
        self.room.clone()
    }

    /// The place of a connection that is to be made; without a `permit` it is beyond those that there may be.
    pub(super) fn place(&self, permit: Option<OwnedSemaphorePermit>) -> Place {
        Place::new(permit, self.own.clone(), self.room.clone())
    }

    /// Whether there is a connection that has a place, or one is being made, of those that may come to serve this. Those that have
    /// switched protocols count: else there could be any number.
    pub(super) fn has_any(&mut self, wanted: Wanted) -> bool {
        self.retire();
        let serves = |shared: &http2::Shared| {
            is_newer(shared, wanted) && (wanted.http2 || wanted.web_socket && shared.takes_web_sockets())
        };
        let unfit = self.shared.iter().filter(|shared| !serves(shared)).count();
        let stale = if wanted.newer_than.is_some() { self.idle.len() } else { 0 };
        Rc::strong_count(&self.own) > 1 + unfit + stale
    }

    /// Leave to go on making a connection that nobody waits for, for as long as this is held.
    pub(super) fn leave_alone(&self) -> Option<Rc<()>> {
        (Rc::strong_count(&self.left_alone) <= LEFT_ALONE_PER_KEY).then(|| self.left_alone.clone())
    }

    /// Gives up a connection that nobody uses and that others need.
    pub(super) fn give_up(&mut self) -> bool {
        if !self.usage.is_asked() {
            return false;
        }
        self.retire();
        let idle = self.idle.iter().position(|idle| idle.connection.makes_room());
        let shared = self.shared.iter().position(|shared| shared.is_idle(Duration::ZERO) && shared.makes_room());
        if (idle, shared) == (None, None) || !self.usage.claim() {
            return false;
        }
        if let Some(index) = idle {
            self.idle.remove(index);
        } else if let Some(index) = shared {
            self.shared.remove(index);
        }
        true
    }

    /// Closes connections that were idle for too long, `limit` at most, that lead to where the host is no more, or that others need;
    /// those that are in use end with the requests that they have. Says whether anything is left that is worth keeping.
    pub(super) fn expire(&mut self, limit: Duration) -> bool {
        self.retire();
        self.forget_lost();
        self.give_up();
        let usage = &self.usage;
        let max_idle = usage.settings().idle_timeout.unwrap_or(MAX_IDLE).min(limit);
        self.idle.retain(|Idle { connection, since }| {
            let is_spent = usage.is_spent(connection.made, connection.served);
            let is_over = is_spent || usage.has_left(connection.info.address.ip()) || connection.is_closed();
            since.elapsed() < max_idle && !is_over
        });
        self.shared.retain(|shared| {
            // Who waits for its place would wait for those that it serves.
            let is_needed = shared.makes_room() && shared.streams() > 0;
            !shared.is_idle(max_idle) && (is_needed || !usage.has_left(shared.info.address.ip()))
        });
        // What is in use comes back to it.
        let remembered = if self.protocol.is_some() { REMEMBERED } else { MAX_IDLE };
        let remembers = self.used.elapsed() < remembered.min(limit);
        let has_any = !self.idle.is_empty() || !self.shared.is_empty() || !self.begun.is_empty();
        remembers || has_any || self.has_any(Wanted::ANY) || self.is_waited_for()
    }
}

fn is_newer(shared: &http2::Shared, wanted: Wanted) -> bool {
    wanted.newer_than.is_none_or(|than| shared.made() > than)
}
