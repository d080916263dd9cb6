//! What the two ends of a connection have agreed on, and what is to be sent. The connection's task and the users of its streams share it.

use std::{
    cell::Cell,
    collections::{HashMap, VecDeque},
    rc::Rc,
    task::{Context, Waker},
    time::Instant,
};

use slab::Slab;
use tokio::time;

use super::{
    By, Error, Reason,
    frame::{self, DEFAULT_WINDOW, PREFACE, setting},
    hpack::{Decoder, Encoder},
    receive::{Accepted, Block, Content},
    stream::Stream,
    unread::{Room, Unread},
};
use crate::http1::{Limits, Output};

/// Streams for which a connection keeps room while it has none.
const FEW: usize = 16;
/// Stream identifiers there are for each end (section 5.1.1).
const LAST_ID: u32 = (1 << 31) - 1;

/// Which end we are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The one that asks.
    Client,
    /// The one that is asked.
    Server,
}

/// What we let the other end do.
pub struct Config {
    /// What it may send of a stream before that was read on, in bytes.
    pub stream_window: u32,
    /// What of all streams together may be on its way, in bytes. What has come of them is not a part of it, be it that nobody reads it.
    pub connection_window: u32,
    /// How many streams it may have at the same time.
    pub streams: u32,
    /// Heads, in bytes as section 10.5.1 counts them.
    pub heads: Limits,
    /// What counts that which has come and was not read, in bytes, together with other connections.
    pub unread: Rc<Cell<usize>>,
    /// What counts trailers.
    pub trailers: Room,
}

/// What the other end's settings say.
pub(super) struct Peer {
    /// Whether they have come.
    pub(super) is_known: bool,
    pub(super) initial_window: u32,
    pub(super) max_streams: u32,
    pub(super) connect_protocol: bool,
}

/// How far the end of the connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Closing {
    No,
    /// The other end was told so, and streams that it has begun before it knew are served (section 6.8).
    Announced,
    /// It ends as soon as no stream is left.
    Draining,
    /// The other end was told for the last time.
    Told,
}

pub(super) struct Core {
    pub(super) role: Role,
    pub(super) config: Config,
    pub(super) streams: Slab<Stream>,
    /// Those that are open.
    pub(super) ids: HashMap<u32, usize, foldhash::fast::FixedState>,
    /// The next stream that we begin.
    pub(super) next: u32,
    /// The last one that the other end has begun.
    pub(super) last: u32,
    /// How long the heads of requests are together that are served, in bytes.
    pub(super) heads: usize,
    /// The same of the trailers of all streams.
    pub(super) trailers: usize,
    /// Those that nobody has taken up yet.
    pub(super) accepted: VecDeque<Accepted>,
    pub(super) decoder: Decoder,
    pub(super) encoder: Encoder,
    /// A head of which more frames are to come.
    pub(super) block: Option<Block>,
    /// Content of which more is to come in its frame.
    pub(super) content: Option<Content>,
    /// How much of the preface is to come.
    pub(super) preface: usize,
    /// Whether the other end sends no more, while it may be reading what it is owed.
    pub(super) is_at_end: bool,
    pub(super) out: Output,
    pub(super) send_window: i64,
    pub(super) receive_window: i64,
    pub(super) unread: Unread,
    pub(super) peer: Peer,
    /// The window that streams begin with, and those that the other end has not acknowledged. It may use a larger one before it says so;
    /// what was sent before it knew of a smaller one is in order, too.
    pub(super) initial_window: u32,
    pub(super) unacknowledged: VecDeque<u32>,
    /// Streams that wait for room.
    pub(super) waiting: VecDeque<u32>,
    /// How many had to wait, and have not sent anything since it was their turn.
    pub(super) called: usize,
    /// Who wants to begin a stream.
    pub(super) openers: Vec<Waker>,
    driver: Option<Waker>,
    /// The last stream that the other end will look at, and why, if it has said so.
    pub(super) gone: Option<(u32, Reason)>,
    pub(super) closing: Closing,
    /// Why the connection has ended.
    pub(super) failure: Option<Error>,
    /// Since when something that was asked has been unanswered.
    pub(super) silent_since: Option<Instant>,
    /// Since when the other end has owed the rest of what it has begun: the preface and its settings, a frame, or a head in several
    /// frames. Content does not count: for that it has all the time it wants.
    pub(super) owed_since: Option<time::Instant>,
    /// Since when nothing was read as so much is to be written, of which the other end has read nothing either.
    pub(super) full_since: Option<time::Instant>,
}

impl Core {
    pub(super) fn new(role: Role, config: Config) -> Self {
        let is_server = role == Role::Server;
        let mut core = Self {
            role,
            streams: Slab::new(),
            ids: HashMap::default(),
            next: 1,
            last: 0,
            heads: 0,
            trailers: 0,
            accepted: VecDeque::new(),
            decoder: Decoder::new(),
            encoder: Encoder::new(),
            block: None,
            content: None,
            preface: if is_server { PREFACE.len() } else { 0 },
            is_at_end: false,
            out: Output::default(),
            send_window: DEFAULT_WINDOW.into(),
            receive_window: config.connection_window.max(DEFAULT_WINDOW).into(),
            unread: Unread::new(config.unread.clone()),
            peer: Peer {
                is_known: false,
                initial_window: DEFAULT_WINDOW,
                max_streams: u32::MAX,
                connect_protocol: false,
            },
            initial_window: config.stream_window,
            unacknowledged: VecDeque::from([config.stream_window]),
            waiting: VecDeque::new(),
            called: 0,
            openers: Vec::new(),
            driver: None,
            gone: None,
            closing: Closing::No,
            failure: None,
            // It has to answer our settings.
            silent_since: Some(Instant::now()),
            owed_since: Some(time::Instant::now()),
            full_since: None,
            config,
        };
        core.greet();
        core
    }

    /// Says what we are and take.
    fn greet(&mut self) {
        let config = &self.config;
        let head = u32::try_from(config.heads.head).unwrap_or(u32::MAX);
        let window = (setting::INITIAL_WINDOW_SIZE, config.stream_window);
        let most = (setting::MAX_HEADER_LIST_SIZE, head);
        let more = i64::from(config.connection_window) - i64::from(DEFAULT_WINDOW);
        let mut out = self.out.buffer();
        match self.role {
            Role::Client => {
                out.extend_from_slice(PREFACE);
                frame::put_settings(&mut out, &[(setting::ENABLE_PUSH, 0), window, most]);
            }
            Role::Server => {
                let streams = (setting::MAX_CONCURRENT_STREAMS, config.streams);
                let connect = (setting::ENABLE_CONNECT_PROTOCOL, 1);
                frame::put_settings(&mut out, &[streams, window, most, connect]);
            }
        }
        if more > 0 {
            frame::put_window_update(&mut out, 0, more as u32);
        }
    }

    /// Notes whom to wake when there is something to do for the connection's task.
    pub(super) fn drive_by(&mut self, cx: &Context<'_>) {
        note(&mut self.driver, cx);
    }

    /// Has the connection's task send what there is, or look whether it has to end.
    pub(super) fn wake_driver(&self) {
        if let Some(driver) = &self.driver {
            driver.wake_by_ref();
        }
    }

    /// How many streams there may be at the same time that we begin: one before the other end has said how many it takes, as those
    /// beyond that would wait, and nobody else could have them; and one if it takes none at all, which it then says of what is asked.
    pub(super) fn limit(&self) -> usize {
        if self.peer.is_known { self.peer.max_streams.max(1) as usize } else { 1 }
    }

    /// Whether nobody has begun a stream of this number yet.
    pub(super) fn is_idle(&self, id: u32) -> bool {
        let is_own = (id % 2 == 1) == (self.role == Role::Client);
        // What comes after the last word is nobody's.
        if is_own { id >= self.next } else { id > self.last && self.closing != Closing::Told }
    }

    /// Whether no stream can be begun any more.
    pub(super) fn is_closed(&self) -> bool {
        self.failure.is_some() || self.gone.is_some() || self.closing != Closing::No || self.next > LAST_ID
    }

    /// Notes a stream as closed if it is.
    pub(super) fn close_if_ended(&mut self, key: usize) {
        let stream = &self.streams[key];
        if stream.is_closed() && self.ids.remove(&stream.id).is_some() {
            self.leave(key);
            self.wake_openers();
            if self.ids.is_empty() && (self.closing != Closing::No || self.gone.is_some()) {
                self.wake_driver();
            }
        }
    }

    /// Resets a stream, unless it is closed.
    pub(super) fn reset(&mut self, key: usize, error: Error) {
        let stream = &mut self.streams[key];
        if stream.is_closed() {
            return;
        }
        let id = stream.id;
        // What has none is the end of the other side.
        let reason = error.reason().unwrap_or(Reason::CANCEL);
        stream.fail(error);
        self.close_if_ended(key);
        self.say_reset(id, reason);
    }

    /// Tells the other end that a stream is reset.
    pub(super) fn say_reset(&mut self, id: u32, reason: Reason) {
        frame::put_reset(&mut self.out.buffer(), id, reason);
        self.wake_driver();
    }

    /// One user less of a stream. When it was the last one, nobody waits for its end.
    pub(super) fn release(&mut self, key: usize) {
        let stream = &mut self.streams[key];
        stream.users -= 1;
        if stream.users > 0 {
            return;
        }
        // A server that has answered wants no more of the request (section 8.1).
        let is_answered = self.role == Role::Server && stream.is_sent;
        let reason = if is_answered { Reason::NO_ERROR } else { Reason::CANCEL };
        self.reset(key, Error::Reset { reason, by: By::User });
        let stream = self.streams.remove(key);
        self.unread.remove(stream.queue.len());
        self.heads -= stream.head_size;
        if stream.trailers_size > 0 {
            self.trailers -= stream.trailers_size;
            // There is room for less.
            let _ = (self.config.trailers)(self.trailers);
        }
        if self.streams.is_empty() && self.streams.capacity() > FEW {
            // An idle connection keeps nothing of what it had to do.
            (self.streams, self.ids, self.accepted, self.waiting) = Default::default();
        }
    }

    /// Lets the other end send more in place of what has come, once that is worth a frame. Whether it was read makes no difference: readers
    /// who stand still must not keep others waiting, and what is kept for them is bounded by the windows of their streams.
    pub(super) fn widen(&mut self) {
        let window = i64::from(self.config.connection_window.max(DEFAULT_WINDOW));
        let more = window - self.content.map_or(0, |content| content.rest()) as i64 - self.receive_window;
        if more >= window / 2 {
            self.receive_window += more;
            frame::put_window_update(&mut self.out.buffer(), 0, more as u32);
        }
    }

    /// Notes that so much was read of what has come on a stream.
    pub(super) fn read(&mut self, key: usize, count: usize) {
        self.unread.remove(count);
        self.widen_stream(key);
    }

    /// Lets the other end send more of a stream in place of what was read, once that is worth a frame. What has yet to come of a frame that
    /// has begun counts as come.
    pub(super) fn widen_stream(&mut self, key: usize) {
        let stream = &mut self.streams[key];
        if stream.is_received || stream.error.is_some() {
            return;
        }
        let content = self.content.filter(|content| content.stream == stream.id);
        let kept = stream.queue.len() + content.map_or(0, |content| content.rest());
        let more = i64::from(self.initial_window) - kept as i64 - stream.receive_window;
        if more >= i64::from(self.initial_window / 2).max(1) {
            stream.receive_window += more;
            frame::put_window_update(&mut self.out.buffer(), stream.id, more as u32);
            self.wake_driver();
        }
    }

    /// Changes the window of all streams.
    pub(super) fn set_initial_window(&mut self, window: u32) {
        self.unacknowledged.push_back(window);
        if window > self.initial_window {
            self.begin_window(window);
        }
        frame::put_settings(&mut self.out.buffer(), &[(setting::INITIAL_WINDOW_SIZE, window)]);
    }

    /// Has no more streams begun, and the connection end with the last of them.
    pub(super) fn drain(&mut self) {
        if self.closing == Closing::No {
            self.closing = Closing::Draining;
            self.wake_openers();
            self.wake_driver();
        }
    }

    /// Has those look again who have something to send.
    pub(super) fn wake_writers(&mut self) {
        for key in self.ids.values() {
            if let Some(writer) = self.streams[*key].writer.take() {
                writer.wake();
            }
        }
    }

    /// Lets those go on who wait to begin a stream.
    pub(super) fn wake_openers(&mut self) {
        self.openers.drain(..).for_each(Waker::wake);
    }

    /// Ends the connection: all streams end with it.
    pub(super) fn fail(&mut self, error: &Error) {
        let error = match (error, self.gone) {
            (Error::Io(error), Some((_, reason))) => &Error::Gone { reason, error: error.clone() },
            _ => error,
        };
        if self.failure.is_none() {
            if let Error::GoAway { reason, .. } = error {
                frame::put_go_away(&mut self.out.buffer(), self.last, *reason);
            }
            self.failure = Some(error.clone());
        }
        for (_, key) in self.ids.drain() {
            let stream = &mut self.streams[key];
            stream.fail(error.clone());
        }
        self.closing = Closing::Told;
        self.wake_openers();
    }
}

/// Notes whom to wake.
pub(super) fn note(waker: &mut Option<Waker>, cx: &Context<'_>) {
    match waker {
        Some(waker) if waker.will_wake(cx.waker()) => {}
        _ => *waker = Some(cx.waker().clone()),
    }
}
