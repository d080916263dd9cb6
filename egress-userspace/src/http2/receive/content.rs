//! Content, and how much of it may come (RFC 9113 sections 5.2 and 6.1).

use bytes::{Buf as _, Bytes, BytesMut};

use crate::http2::{
    Error, Reason,
    core::Core,
    frame::{HEADER, Header, flag},
};

/// Content of which not all of its frame has come.
#[derive(Clone, Copy)]
pub(in crate::http2) struct Content {
    /// None if nobody wants it.
    key: Option<usize>,
    pub(in crate::http2) stream: u32,
    left: usize,
    padding: usize,
    is_last: bool,
}

impl Content {
    /// How much of the frame is to come, in bytes.
    pub(in crate::http2) fn rest(&self) -> usize {
        self.left + self.padding
    }
}

impl Core {
    pub(super) fn begin_content(&mut self, header: Header, bytes: &mut BytesMut) -> Result<bool, Error> {
        let is_padded = header.has(flag::PADDED);
        let start = HEADER + usize::from(is_padded);
        if bytes.len() < start {
            return Ok(false);
        }
        let padding = if is_padded { usize::from(bytes[HEADER]) } else { 0 };
        let Some(left) = header.length.checked_sub(padding + usize::from(is_padded)) else {
            return Err(Error::go_away(Reason::PROTOCOL_ERROR));
        };
        bytes.advance(start);
        if header.stream == 0 || self.is_idle(header.stream) {
            return Err(Error::go_away(Reason::PROTOCOL_ERROR));
        }
        // All of the frame counts (section 6.9.1).
        self.receive_window -= header.length as i64;
        if self.receive_window < 0 {
            return Err(Error::go_away(Reason::FLOW_CONTROL_ERROR));
        }
        let key = self.ids.get(&header.stream).copied();
        let key = key.filter(|key| self.may_have_content(*key, header.length, left));
        let is_last = header.has(flag::END_STREAM);
        self.content = Some(Content { key, stream: header.stream, left, padding, is_last });
        Ok(true)
    }

    /// Whether so much content can come on a stream, which is reset otherwise.
    fn may_have_content(&mut self, key: usize, length: usize, content: usize) -> bool {
        let stream = &mut self.streams[key];
        stream.receive_window -= length as i64;
        let reason = if stream.is_received {
            Reason::STREAM_CLOSED
        } else if !stream.has_head || stream.left.is_some_and(|left| left < content as u64) {
            Reason::PROTOCOL_ERROR
        } else if stream.receive_window < 0 {
            Reason::FLOW_CONTROL_ERROR
        } else {
            return true;
        };
        self.reset(key, Error::reset(reason));
        false
    }

    pub(super) fn take_content(&mut self, content: Content, bytes: &mut BytesMut) -> Result<bool, Error> {
        if bytes.is_empty() && content.rest() > 0 {
            return Ok(false);
        }
        let length = content.left.min(bytes.len());
        let piece = bytes.split_to(length).freeze();
        let padding = content.padding.min(bytes.len());
        bytes.advance(padding);
        // It can have ended between two pieces.
        let key = content.key.filter(|_| self.ids.get(&content.stream) == content.key.as_ref());
        let rest = Content { key, left: content.left - length, padding: content.padding - padding, ..content };
        let is_whole = rest.rest() == 0;
        self.content = (!is_whole).then_some(rest);
        self.widen();
        if let Some(key) = key {
            self.deliver(key, piece, is_whole, content.is_last);
        }
        Ok(true)
    }

    fn deliver(&mut self, key: usize, piece: Bytes, is_whole: bool, is_last: bool) {
        let stream = &mut self.streams[key];
        stream.left = stream.left.map(|left| left.saturating_sub(piece.len() as u64));
        self.unread.add(piece.len());
        let has_come = !piece.is_empty();
        stream.queue.push(piece, self.initial_window);
        if is_whole && is_last {
            self.end(key);
        } else if has_come {
            stream.wake_reader();
        }
        if is_whole && !has_come {
            // Padding counts as read.
            self.widen_stream(key);
        }
    }
}
