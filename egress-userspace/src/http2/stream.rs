//! What is known of one stream (RFC 9113 section 5.1).

use std::{collections::VecDeque, task::Waker};

use bytes::{Bytes, BytesMut};

use super::Error;
use crate::head::{Fields, ResponseHead};

/// What is short, in bytes: a piece keeps all that was read with it, which can be many times larger, so that short ones which wait are
/// copied together.
const SHORT: usize = 2 * 1024;
/// What of them is copied into one.
const TOGETHER: usize = 64 * 1024;
/// What one that is not short takes, as it is counted: those that wait beyond the window are copied, too.
const USUAL: usize = 16 * 1024;

/// A stream, for as long as somebody uses it.
pub(super) struct Stream {
    pub(super) id: u32,
    /// How many use it.
    pub(super) users: u32,
    /// Heads of interim responses that nobody has taken yet.
    pub(super) interim: VecDeque<ResponseHead>,
    /// The same of the response.
    pub(super) head: Option<ResponseHead>,
    /// How long a request's head is that whoever serves it has, in bytes.
    pub(super) head_size: usize,
    /// Whether the head has come that content follows.
    pub(super) has_head: bool,
    /// What the request asks for.
    pub(super) asks_for: Asks,
    /// How much is to come, if that is announced.
    pub(super) left: Option<u64>,
    /// What has come.
    pub(super) queue: Queue,
    pub(super) trailers: Option<Fields>,
    /// How long they are, in bytes, also when whoever reads the stream has them.
    pub(super) trailers_size: usize,
    /// Whether all has come (END_STREAM).
    pub(super) is_received: bool,
    /// How much the other end may send.
    pub(super) receive_window: i64,
    /// Who waits for something to come.
    pub(super) reader: Option<Waker>,
    /// How much it lets us send beyond the window that all streams begin with: what it has added, less what was sent.
    pub(super) credit: i64,
    /// Whether the response's head was sent, after which none of an interim one may be.
    pub(super) is_answered: bool,
    /// Whether all was sent (END_STREAM).
    pub(super) is_sent: bool,
    /// Who waits for room to send, or for the end.
    pub(super) writer: Option<Waker>,
    /// Whether it waits for its turn to send, and whether that has come.
    pub(super) turn: Turn,
    /// Why it ends before its time.
    pub(super) error: Option<Error>,
}

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Asks {
    Content,
    /// A head alone: a length is that of what does not come.
    Head,
    /// Another protocol, which has no length (RFC 9110 section 9.3.6).
    Switch,
}

/// Where a stream is among those that have something to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Turn {
    /// Nowhere.
    None,
    Waiting,
    Called,
}

impl Stream {
    pub(super) fn new(id: u32, receive_window: u32) -> Self {
        Self {
            id,
            users: 0,
            interim: VecDeque::new(),
            head: None,
            head_size: 0,
            has_head: false,
            asks_for: Asks::Content,
            left: None,
            queue: Queue::default(),
            trailers: None,
            trailers_size: 0,
            is_received: false,
            receive_window: receive_window.into(),
            reader: None,
            credit: 0,
            is_answered: false,
            is_sent: false,
            writer: None,
            turn: Turn::None,
            error: None,
        }
    }

    /// Whether nothing comes or goes any more.
    pub(super) fn is_closed(&self) -> bool {
        self.error.is_some() || self.is_sent && self.is_received
    }

    /// Wakes who waits for something to come.
    pub(super) fn wake_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Ends it.
    pub(super) fn fail(&mut self, error: Error) {
        self.error.get_or_insert(error);
        self.wake_reader();
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }
}

/// Content that has come and was not read.
#[derive(Default)]
pub(super) struct Queue {
    pieces: VecDeque<Bytes>,
    /// The last of them, as far as they were copied.
    last: BytesMut,
    /// How much it is, in bytes.
    length: usize,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// Adds what has come on a stream with a window of so many bytes.
    pub(super) fn push(&mut self, piece: Bytes, window: u32) {
        if piece.is_empty() {
            return;
        }
        let is_first = self.length == 0;
        self.length += piece.len();
        let keeps_much = piece.len() < SHORT || self.pieces.len() * USUAL >= window as usize;
        if is_first || !keeps_much || piece.len() >= TOGETHER / 2 {
            self.seal();
            self.pieces.push_back(piece);
        } else {
            self.last.extend_from_slice(&piece);
            if self.last.len() >= TOGETHER {
                self.seal();
            }
        }
    }

    pub(super) fn pop(&mut self) -> Option<Bytes> {
        if self.pieces.is_empty() {
            self.seal();
        }
        let piece = self.pieces.pop_front()?;
        self.length -= piece.len();
        Some(piece)
    }

    fn seal(&mut self) {
        if !self.last.is_empty() {
            self.pieces.push_back(std::mem::take(&mut self.last).freeze());
        }
    }
}
