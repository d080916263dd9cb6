//! What goes: heads and content, as far as the other end has room for it (RFC 9113 sections 5.2 and 6).

use std::{
    mem,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use tokio::time;

use super::{
    By, Error, Reason,
    core::{Core, note},
    frame::{HEADER, Header, MAX_SIZE, flag, kind},
    heads::Sent,
    stream::{Stream, Turn},
};
use crate::head::Fields;

/// What most heads take at most, in bytes, which there is to be room for before they are written.
const USUAL_HEAD: usize = 256;
/// What waits to be written at most before nobody may add content to it, in bytes.
const ROOM: usize = 64 * 1024;
/// The same of heads. So much they may be beside content.
const ROOM_FOR_HEADS: usize = ROOM + 2 * MAX_SIZE;
/// What answers to frames may take beside that and a head: beyond that nothing is read. What we have to say by ourselves does not make it
/// as much, or two ends could wait for each other.
const ROOM_FOR_ANSWERS: usize = 2 * MAX_SIZE;

impl Core {
    /// Waits until a stream can be begun.
    pub(super) fn poll_open(&mut self, cx: &Context<'_>) -> Poll<Result<(), Error>> {
        if let Some(error) = &self.failure {
            return Poll::Ready(Err(error.clone()));
        }
        if self.is_closed() {
            let reason = self.gone.map_or(Reason::NO_ERROR, |(_, reason)| reason);
            return Poll::Ready(Err(Error::GoAway { reason, by: By::Peer }));
        }
        if self.may_open() {
            return Poll::Ready(Ok(()));
        }
        if !self.openers.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.openers.push(cx.waker().clone());
        }
        Poll::Pending
    }

    fn may_open(&self) -> bool {
        self.ids.len() < self.limit() && self.has_room_for_heads()
    }

    /// Begins a stream with the head of a request, which may be all.
    pub(super) fn open(&mut self, head: &Sent<'_>, is_all: bool) -> usize {
        let mut stream = Stream::new(self.next, self.initial_window);
        stream.users = 1;
        stream.asks_for = head.asks_for();
        let (id, key) = (self.next, self.streams.insert(stream));
        self.next += 2;
        self.ids.insert(id, key);
        self.silent_since.get_or_insert_with(Instant::now);
        self.send_head(key, head, is_all);
        key
    }

    /// Sends a head, be it before or after content.
    pub(super) fn send_head(&mut self, key: usize, head: &Sent<'_>, is_last: bool) {
        let id = self.streams[key].id;
        let mut out = self.out.buffer();
        out.reserve(USUAL_HEAD);
        let start = out.len() + HEADER;
        out.extend_from_slice(&[0; HEADER]);
        self.encoder.begin(&mut out);
        head.encode(&mut self.encoder, &mut out);
        let length = out.len() - start;
        let flags = flag::END_HEADERS | if is_last { flag::END_STREAM } else { 0 };
        let mut header = Header { length, kind: kind::HEADERS, flags, stream: id };
        if length <= MAX_SIZE {
            out[start - HEADER..start].copy_from_slice(&header.bytes());
        } else {
            let block = out.split_off(start);
            out.truncate(start - HEADER);
            let mut pieces = block.chunks(MAX_SIZE).peekable();
            header.flags &= !flag::END_HEADERS;
            while let Some(piece) = pieces.next() {
                let end = if pieces.peek().is_none() { flag::END_HEADERS } else { 0 };
                header = Header { length: piece.len(), flags: header.flags | end, ..header };
                out.extend_from_slice(&header.bytes());
                out.extend_from_slice(piece);
                (header.kind, header.flags) = (kind::CONTINUATION, 0);
            }
        }
        drop(out);
        if is_last {
            self.sent(key);
        }
        self.wake_driver();
    }

    /// Sends trailers.
    pub(super) fn send_trailers(&mut self, key: usize, trailers: &Fields) -> Result<(), Error> {
        self.check_sendable(key)?;
        self.send_head(key, &Sent::Trailers(trailers), true);
        Ok(())
    }

    /// Whether more can be sent on a stream.
    pub(super) fn check_sendable(&self, key: usize) -> Result<(), Error> {
        let stream = &self.streams[key];
        match &stream.error {
            Some(error) => Err(error.clone()),
            None if stream.is_sent => Err(Error::Reset { reason: Reason::STREAM_CLOSED, by: By::User }),
            None => Ok(()),
        }
    }

    /// Waits for room to send content. Those who find none have it in turn.
    pub(super) fn poll_room(&mut self, key: usize, cx: &Context<'_>) -> Poll<Result<(), Error>> {
        self.check_sendable(key)?;
        let window = self.window_of(key);
        if self.is_at_end && self.send_window.min(window) <= 0 {
            // Nobody lets us send more.
            self.reset(key, Error::ended());
            return Poll::Ready(Err(Error::ended()));
        }
        let (has_room, has_others) = (self.has_room(), self.has_others(key));
        let stream = &mut self.streams[key];
        let was_called = stream.turn == Turn::Called;
        if window > 0 && has_room && (was_called || !has_others) {
            return Poll::Ready(Ok(()));
        }
        note(&mut stream.writer, cx);
        if window > 0 && stream.turn != Turn::Waiting {
            // Who was called and finds that heads have taken the room is the next one.
            let at = if was_called { 0 } else { self.waiting.len() };
            self.waiting.insert(at, stream.id);
            self.set_turn(key, Turn::Waiting);
            self.wake_driver();
        } else if was_called {
            self.set_turn(key, Turn::None);
        }
        Poll::Pending
    }

    /// Waits until a response's head, or trailers, may be added to what is to be written: for who takes nothing of that they would pile up.
    pub(super) fn poll_room_for_head(&mut self, key: usize, cx: &Context<'_>) -> Poll<()> {
        if self.has_room_for_heads() || self.streams[key].error.is_some() {
            return Poll::Ready(());
        }
        note(&mut self.streams[key].writer, cx);
        Poll::Pending
    }

    /// How much the other end lets us send of a stream.
    pub(super) fn window_of(&self, key: usize) -> i64 {
        i64::from(self.peer.initial_window) + self.streams[key].credit
    }

    /// Whether heads may be added to what is to be written.
    pub(super) fn has_room_for_heads(&self) -> bool {
        self.out.len() < ROOM_FOR_HEADS
    }

    /// Whether content may be added to what is to be written.
    fn has_room(&self) -> bool {
        self.send_window > 0 && self.has_room_for_more()
    }

    /// Whether there may be more to be written that is not content.
    pub(super) fn has_room_for_more(&self) -> bool {
        self.out.len() < ROOM
    }

    /// Whether so much is to be written that nothing may be asked of us before the other end has read some of it.
    pub(super) fn is_full(&self) -> bool {
        self.out.len() >= ROOM_FOR_HEADS + self.config.heads.head + ROOM_FOR_ANSWERS
    }

    /// Notes since when that has been so and the other end has read nothing. So much was to be written before.
    pub(super) fn note_full(&mut self, unwritten: usize) {
        let since = self.full_since.filter(|_| self.out.len() >= unwritten);
        self.full_since = self.is_full().then(|| since.unwrap_or_else(time::Instant::now));
    }

    /// Whether others have something to send.
    fn has_others(&self, key: usize) -> bool {
        let own = usize::from(self.streams[key].turn != Turn::None);
        self.waiting.len() + self.called > own
    }

    fn set_turn(&mut self, key: usize, turn: Turn) {
        let before = mem::replace(&mut self.streams[key].turn, turn);
        self.called -= usize::from(before == Turn::Called);
        self.called += usize::from(turn == Turn::Called);
    }

    /// Sends as much as there is room for, and leaves the rest. While others wait, that is one frame.
    pub(super) fn send_data(&mut self, key: usize, data: &mut Bytes, is_last: bool) -> Result<(), Error> {
        self.check_sendable(key)?;
        let has_others = self.has_others(key);
        loop {
            let window = self.send_window.min(self.window_of(key)).max(0) as usize;
            let stream = &mut self.streams[key];
            let length = data.len().min(window).min(MAX_SIZE);
            let is_end = is_last && length == data.len();
            if length == 0 && !is_end {
                break;
            }
            let flags = if is_end { flag::END_STREAM } else { 0 };
            let header = Header { length, kind: kind::DATA, flags, stream: stream.id };
            self.out.buffer().extend_from_slice(&header.bytes());
            self.out.push(data.split_to(length));
            self.send_window -= length as i64;
            stream.credit -= length as i64;
            if is_end {
                self.sent(key);
            }
            if data.is_empty() || has_others || self.out.len() >= ROOM {
                break;
            }
        }
        if self.streams[key].turn == Turn::Called {
            self.set_turn(key, Turn::None);
        }
        self.wake_driver();
        Ok(())
    }

    /// Notes that all of a stream was sent.
    fn sent(&mut self, key: usize) {
        self.streams[key].is_sent = true;
        self.leave(key);
        self.close_if_ended(key);
    }

    /// Lets those go on who wait for room: as many as find some if each sends a frame.
    pub(super) fn wake_waiting(&mut self) {
        if self.may_open() {
            self.wake_openers();
        }
        if self.is_at_end && self.send_window <= 0 {
            self.wake_writers();
        }
        for _ in 0..self.frames_with_room().min(self.waiting.len()) {
            let called = self.waiting.pop_front().and_then(|id| self.ids.get(&id).copied());
            let Some(key) = called else { continue };
            self.set_turn(key, Turn::Called);
            if let Some(writer) = self.streams[key].writer.take() {
                writer.wake();
            }
        }
        if self.has_room() && !self.waiting.is_empty() {
            // What those who were called leave of the room, having ended or having no window any more, is for the next ones. The
            // connection's task sees it after they have run.
            self.wake_driver();
        }
    }

    /// How many frames of content there is room for, the last of which may be shorter.
    fn frames_with_room(&self) -> usize {
        let window = self.send_window.max(0) as usize;
        let room = ROOM.saturating_sub(self.out.len());
        window.div_ceil(MAX_SIZE).min(room.div_ceil(HEADER + MAX_SIZE))
    }

    /// Notes that a stream sends nothing more.
    pub(super) fn leave(&mut self, key: usize) {
        if self.streams[key].turn == Turn::Waiting {
            let id = self.streams[key].id;
            self.waiting.retain(|waiting| *waiting != id);
        }
        self.set_turn(key, Turn::None);
    }
}
