//! What comes: frames are taken apart, and each goes to its stream (RFC 9113 section 6).

mod content;
mod control;

use bytes::{Buf as _, BytesMut};
use tokio::time::Instant;

pub(super) use self::content::Content;
use super::{
    Error, Reason,
    core::{Closing, Core, Role},
    frame::{self, HEADER, Header, MAX_SIZE, PREFACE, flag, kind},
    heads::{self, Requested},
    hpack::Undecodable,
    stream::{Asks, Stream},
};
use crate::http1;

/// What is taken of a head beyond its limit, in bytes, before it ends the connection.
const MORE: usize = 4 * MAX_SIZE;
/// Frames of one head, besides those that its size takes.
const MOST_FRAMES: usize = 8;
/// Heads of requests that are served at the same time, in bytes: no more are taken beyond that. A byte can stand for a field that was sent
/// before.
const MOST_HEADS: usize = 4 * 1024 * 1024;
/// Interim responses that wait to be taken, and how long the fields of each may be, in bytes; those beyond are dropped. A few bytes can
/// stand for many of them.
const MOST_INTERIM: usize = 8;
const LONGEST_INTERIM: usize = 16 * 1024;

/// A stream that the other end has begun.
pub(super) struct Accepted {
    pub(super) key: usize,
    pub(super) head: Requested,
}

/// A head of which not all frames have come.
pub(super) struct Block {
    stream: u32,
    is_last: bool,
    bytes: BytesMut,
    frames: usize,
}

impl Core {
    /// Takes in what has come, and leaves what is not a whole frame. Content does not wait for the rest of its frame.
    ///
    /// # Errors
    /// The other end does not keep to the protocol, which ends the connection.
    pub(super) fn receive(&mut self, bytes: &mut BytesMut) -> Result<(), Error> {
        let window = self.peer.initial_window;
        while self.take(bytes)? {
            if self.block.is_none() && self.peer.is_known {
                self.owed_since = None;
            }
        }
        if self.peer.initial_window > window {
            self.take_larger_window()?;
        }
        let is_owed = !bytes.is_empty() || self.block.is_some() || !self.peer.is_known;
        if is_owed {
            self.owed_since.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    /// Takes one frame, or what there is of one; says whether there was any.
    fn take(&mut self, bytes: &mut BytesMut) -> Result<bool, Error> {
        if self.preface > 0 {
            return self.take_preface(bytes);
        }
        if let Some(content) = self.content {
            return self.take_content(content, bytes);
        }
        let Some(header) = Header::read(bytes) else { return Ok(false) };
        if header.length > MAX_SIZE {
            return Err(Error::go_away(Reason::FRAME_SIZE_ERROR));
        }
        let is_continued = self.block.as_ref().is_some_and(|block| block.stream == header.stream);
        if is_continued != (header.kind == kind::CONTINUATION) || self.block.is_some() && !is_continued {
            return Err(Error::go_away(Reason::PROTOCOL_ERROR));
        }
        if !self.peer.is_known && (header.kind != kind::SETTINGS || header.has(flag::ACK)) {
            return Err(Error::go_away(Reason::PROTOCOL_ERROR));
        }
        if header.kind == kind::DATA {
            return self.begin_content(header, bytes);
        }
        if bytes.len() < HEADER + header.length {
            return Ok(false);
        }
        // What is split off would need a count of who uses what was read.
        let end = HEADER + header.length;
        self.take_frame(header, &bytes[HEADER..end])?;
        bytes.advance(end);
        Ok(true)
    }

    /// How much has come of a head that has yet to end, in bytes.
    pub(super) fn begun(&self) -> usize {
        self.block.as_ref().map_or(0, |block| block.bytes.len())
    }

    fn take_preface(&mut self, bytes: &mut BytesMut) -> Result<bool, Error> {
        let length = self.preface.min(bytes.len());
        let expected = &PREFACE[PREFACE.len() - self.preface..][..length];
        if bytes[..length] != *expected {
            return Err(Error::go_away(Reason::PROTOCOL_ERROR));
        }
        bytes.advance(length);
        self.preface -= length;
        Ok(length > 0)
    }

    /// All of a stream has come.
    fn end(&mut self, key: usize) {
        let stream = &mut self.streams[key];
        if stream.left.is_some_and(|left| left > 0) {
            return self.reset(key, Error::reset(Reason::PROTOCOL_ERROR));
        }
        stream.is_received = true;
        stream.wake_reader();
        self.close_if_ended(key);
    }

    fn take_frame(&mut self, header: Header, payload: &[u8]) -> Result<(), Error> {
        let size = |is_right: bool| if is_right { Ok(()) } else { Err(Error::go_away(Reason::FRAME_SIZE_ERROR)) };
        let of_stream = |is_right: bool| {
            if (header.stream != 0) == is_right { Ok(()) } else { Err(Error::go_away(Reason::PROTOCOL_ERROR)) }
        };
        match header.kind {
            kind::HEADERS => {
                of_stream(true)?;
                self.take_headers(header, payload)
            }
            kind::CONTINUATION => self.take_continuation(header, payload),
            kind::PRIORITY => {
                of_stream(true)?;
                // It is about its stream alone (section 6.3), and nobody looks into it.
                if payload.len() != 5
                    && let Some(key) = self.ids.get(&header.stream).copied()
                {
                    self.reset(key, Error::reset(Reason::FRAME_SIZE_ERROR));
                }
                Ok(())
            }
            kind::RST_STREAM => {
                of_stream(true)?;
                size(payload.len() == 4)?;
                self.take_reset(header.stream, number(payload).into())
            }
            kind::SETTINGS => {
                of_stream(false)?;
                size(payload.len().is_multiple_of(6) && (payload.is_empty() || !header.has(flag::ACK)))?;
                if header.has(flag::ACK) { self.take_acknowledgement() } else { self.take_settings(payload) }
            }
            // Nobody was allowed to push.
            kind::PUSH_PROMISE => Err(Error::go_away(Reason::PROTOCOL_ERROR)),
            kind::PING => {
                of_stream(false)?;
                let payload = payload.try_into().map_err(|_| Error::go_away(Reason::FRAME_SIZE_ERROR))?;
                self.take_ping(header.has(flag::ACK), payload);
                Ok(())
            }
            kind::GOAWAY => {
                of_stream(false)?;
                size(payload.len() >= 8)?;
                self.take_go_away(number(payload) & !(1 << 31), number(&payload[4..]).into());
                Ok(())
            }
            kind::WINDOW_UPDATE => {
                size(payload.len() == 4)?;
                self.take_window_update(header.stream, number(payload) & !(1 << 31))
            }
            // What nobody knows is ignored (section 5.5).
            _ => Ok(()),
        }
    }

    fn take_headers(&mut self, header: Header, mut payload: &[u8]) -> Result<(), Error> {
        let malformed = Error::go_away(Reason::PROTOCOL_ERROR);
        if header.has(flag::PADDED) {
            payload = frame::without_padding(payload).ok_or(malformed.clone())?;
        }
        if header.has(flag::PRIORITY) {
            payload = payload.get(5..).ok_or(malformed)?;
        }
        let is_last = header.has(flag::END_STREAM);
        if header.has(flag::END_HEADERS) {
            return self.take_block(header.stream, payload, is_last);
        }
        let bytes = BytesMut::from(payload);
        self.block = Some(Block { stream: header.stream, is_last, bytes, frames: 1 });
        Ok(())
    }

    fn take_continuation(&mut self, header: Header, payload: &[u8]) -> Result<(), Error> {
        let Some(block) = &mut self.block else { return Err(Error::go_away(Reason::PROTOCOL_ERROR)) };
        block.frames += 1;
        // One that is somewhat too long is still looked into, so that its stream alone ends with it.
        let most = self.config.heads.head + self.config.heads.head / 4 + MORE;
        if block.bytes.len() + payload.len() > most || block.frames > MOST_FRAMES + most / MAX_SIZE {
            return Err(Error::go_away(Reason::ENHANCE_YOUR_CALM));
        }
        block.bytes.extend_from_slice(payload);
        match self.block.take_if(|_| header.has(flag::END_HEADERS)) {
            Some(block) => self.take_block(block.stream, &block.bytes, block.is_last),
            None => Ok(()),
        }
    }

    /// Takes a whole head. It is decoded whosever it is: the next ones build upon it.
    fn take_block(&mut self, id: u32, block: &[u8], is_last: bool) -> Result<(), Error> {
        match self.ids.get(&id).copied() {
            Some(key) if self.streams[key].has_head => self.take_trailers(key, block, is_last),
            Some(key) => self.take_response(key, block, is_last),
            None if self.role == Role::Server && id > self.last => self.take_request(id, block, is_last),
            None if self.is_idle(id) => Err(Error::go_away(Reason::PROTOCOL_ERROR)),
            None => self.decoder.decode(block, |_, _, _| {}).map(drop).map_err(undecodable),
        }
    }

    fn take_response(&mut self, key: usize, block: &[u8], is_last: bool) -> Result<(), Error> {
        let head = heads::response(&mut self.decoder, block, &self.config.heads).map_err(undecodable)?;
        let stream = &mut self.streams[key];
        match head {
            Err(error) => self.reset(key, error),
            Ok(None) if is_last => self.reset(key, Error::reset(Reason::PROTOCOL_ERROR)),
            Ok(None) => {}
            Ok(Some(head)) if head.status.is_informational() => {
                if is_last {
                    self.reset(key, Error::reset(Reason::PROTOCOL_ERROR));
                } else if stream.interim.len() < MOST_INTERIM && head.fields.size() <= LONGEST_INTERIM {
                    stream.interim.push_back(head);
                    stream.wake_reader();
                }
            }
            Ok(Some(mut head)) => {
                if let Err(fault) = http1::of_http2(&mut head.fields) {
                    self.reset(key, Error::Head(fault));
                    return Ok(());
                }
                let has_length = match stream.asks_for {
                    Asks::Content => !http1::is_bare(head.status),
                    Asks::Head => false,
                    Asks::Switch => !head.status.is_success(),
                };
                stream.left = if has_length { http1::announced(&head.fields) } else { None };
                stream.has_head = true;
                stream.head = Some(head);
                if is_last {
                    self.end(key);
                } else {
                    stream.wake_reader();
                }
            }
        }
        Ok(())
    }

    fn take_trailers(&mut self, key: usize, block: &[u8], is_last: bool) -> Result<(), Error> {
        let trailers = heads::trailers(&mut self.decoder, block, &self.config.heads).map_err(undecodable)?;
        let stream = &mut self.streams[key];
        match trailers {
            _ if stream.is_received => self.reset(key, Error::reset(Reason::STREAM_CLOSED)),
            _ if !is_last => self.reset(key, Error::reset(Reason::PROTOCOL_ERROR)),
            Err(error) => self.reset(key, error),
            Ok(trailers) if !self.has_room_for_trailers(trailers.size()) => self.reset(key, Error::NoRoom),
            Ok(trailers) => {
                let stream = &mut self.streams[key];
                stream.trailers_size = trailers.size();
                self.trailers += stream.trailers_size;
                stream.trailers = Some(trailers);
                self.end(key);
            }
        }
        Ok(())
    }

    /// Whether so much more can be kept, which is counted then.
    fn has_room_for_trailers(&self, size: usize) -> bool {
        let all = self.trailers + size;
        (self.role == Role::Client || self.heads + all <= MOST_HEADS) && (self.config.trailers)(all)
    }

    fn take_request(&mut self, id: u32, block: &[u8], is_last: bool) -> Result<(), Error> {
        if id.is_multiple_of(2) {
            return Err(Error::go_away(Reason::PROTOCOL_ERROR));
        }
        let head = heads::request(&mut self.decoder, block, &self.config.heads).map_err(undecodable)?;
        if self.closing == Closing::Told {
            // The other end knows that nobody looks at it.
            return Ok(());
        }
        self.last = id;
        // Those that were given up are there until whoever served them has seen it.
        let most = self.config.streams as usize;
        if self.ids.len() >= most || self.streams.len() >= 2 * most || self.heads + self.trailers >= MOST_HEADS {
            self.say_reset(id, Reason::REFUSED_STREAM);
            return Ok(());
        }
        let Some(mut head) = head else {
            self.say_reset(id, Reason::PROTOCOL_ERROR);
            return Ok(());
        };
        if let (None, Err(fault)) = (head.fault, http1::of_http2(&mut head.fields)) {
            head.fault = Some(fault);
        }
        let mut stream = Stream::new(id, self.initial_window);
        (stream.has_head, stream.head_size, stream.users) = (true, head.size, 1);
        let has_length = head.fault.is_none() && head.protocol.is_none();
        stream.left = if has_length { http1::announced(&head.fields) } else { None };
        if is_last && stream.left.is_some_and(|left| left > 0) {
            self.say_reset(id, Reason::PROTOCOL_ERROR);
            return Ok(());
        }
        self.heads += head.size;
        let key = self.streams.insert(stream);
        self.ids.insert(id, key);
        self.accepted.push_back(Accepted { key, head });
        if is_last {
            self.end(key);
        }
        Ok(())
    }
}

fn undecodable(_: Undecodable) -> Error {
    Error::go_away(Reason::COMPRESSION_ERROR)
}

/// The number at the beginning of a payload.
fn number(mut payload: &[u8]) -> u32 {
    payload.get_u32()
}
