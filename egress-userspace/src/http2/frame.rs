//! Frames as they are on the wire (RFC 9113 sections 4 and 6).

use bytes::{Buf as _, BufMut as _, BytesMut};

use super::Reason;

/// What a client begins with (section 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The header of each frame, in bytes.
pub(super) const HEADER: usize = 9;
/// What a frame has at most, in bytes: more can be agreed on (SETTINGS_MAX_FRAME_SIZE), and is not.
pub(super) const MAX_SIZE: usize = 16 * 1024;
/// The window of a connection, and that of each stream as long as SETTINGS_INITIAL_WINDOW_SIZE says nothing else, in bytes.
pub(super) const DEFAULT_WINDOW: u32 = 65_535;
/// What no window can exceed (section 6.9.1).
pub(super) const MAX_WINDOW: i64 = (1 << 31) - 1;

/// Types (section 11.2).
pub(super) mod kind {
    pub(in super::super) const DATA: u8 = 0x0;
    pub(in super::super) const HEADERS: u8 = 0x1;
    pub(in super::super) const PRIORITY: u8 = 0x2;
    pub(in super::super) const RST_STREAM: u8 = 0x3;
    pub(in super::super) const SETTINGS: u8 = 0x4;
    pub(in super::super) const PUSH_PROMISE: u8 = 0x5;
    pub(in super::super) const PING: u8 = 0x6;
    pub(in super::super) const GOAWAY: u8 = 0x7;
    pub(in super::super) const WINDOW_UPDATE: u8 = 0x8;
    pub(in super::super) const CONTINUATION: u8 = 0x9;
}

/// Flags; each type has its own.
pub(super) mod flag {
    pub(in super::super) const ACK: u8 = 0x1;
    pub(in super::super) const END_STREAM: u8 = 0x1;
    pub(in super::super) const END_HEADERS: u8 = 0x4;
    pub(in super::super) const PADDED: u8 = 0x8;
    pub(in super::super) const PRIORITY: u8 = 0x20;
}

/// Settings (section 6.5.2, RFC 8441 section 3).
pub(super) mod setting {
    pub(in super::super) const HEADER_TABLE_SIZE: u16 = 0x1;
    pub(in super::super) const ENABLE_PUSH: u16 = 0x2;
    pub(in super::super) const MAX_CONCURRENT_STREAMS: u16 = 0x3;
    pub(in super::super) const INITIAL_WINDOW_SIZE: u16 = 0x4;
    pub(in super::super) const MAX_FRAME_SIZE: u16 = 0x5;
    pub(in super::super) const MAX_HEADER_LIST_SIZE: u16 = 0x6;
    pub(in super::super) const ENABLE_CONNECT_PROTOCOL: u16 = 0x8;
}

/// The header of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    /// How much follows, in bytes.
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    /// 0 is the connection.
    pub(super) stream: u32,
}

impl Header {
    /// The header at the beginning of these bytes, if all of it has come.
    pub(super) fn read(mut bytes: &[u8]) -> Option<Self> {
        if bytes.len() < HEADER {
            return None;
        }
        let length = bytes.get_uint(3) as usize;
        let (kind, flags) = (bytes.get_u8(), bytes.get_u8());
        Some(Self { length, kind, flags, stream: bytes.get_u32() & !(1 << 31) })
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// As it is written.
    pub(super) fn bytes(&self) -> [u8; HEADER] {
        let [_, high, middle, low] = (self.length as u32).to_be_bytes();
        let [first, second, third, fourth] = self.stream.to_be_bytes();
        [high, middle, low, self.kind, self.flags, first, second, third, fourth]
    }
}

/// Writes a header.
fn put(out: &mut BytesMut, length: usize, kind: u8, flags: u8, stream: u32) {
    out.put_slice(&Header { length, kind, flags, stream }.bytes());
}

pub(super) fn put_reset(out: &mut BytesMut, stream: u32, reason: Reason) {
    put(out, 4, kind::RST_STREAM, 0, stream);
    out.put_u32(reason.into());
}

pub(super) fn put_window_update(out: &mut BytesMut, stream: u32, increment: u32) {
    put(out, 4, kind::WINDOW_UPDATE, 0, stream);
    out.put_u32(increment);
}

pub(super) fn put_go_away(out: &mut BytesMut, last: u32, reason: Reason) {
    put(out, 8, kind::GOAWAY, 0, 0);
    out.put_u32(last);
    out.put_u32(reason.into());
}

pub(super) fn put_ping(out: &mut BytesMut, is_answer: bool, payload: [u8; 8]) {
    let flags = if is_answer { flag::ACK } else { 0 };
    put(out, 8, kind::PING, flags, 0);
    out.put_slice(&payload);
}

pub(super) fn put_settings(out: &mut BytesMut, settings: &[(u16, u32)]) {
    put(out, settings.len() * 6, kind::SETTINGS, 0, 0);
    for (setting, value) in settings {
        out.put_u16(*setting);
        out.put_u32(*value);
    }
}

pub(super) fn put_settings_ack(out: &mut BytesMut) {
    put(out, 0, kind::SETTINGS, flag::ACK, 0);
}

/// Takes what pads a frame off (section 6.1); None if there is more of it than there is room.
pub(super) fn without_padding(mut payload: &[u8]) -> Option<&[u8]> {
    let padding = usize::from(*payload.first()?);
    payload = &payload[1..];
    payload.get(..payload.len().checked_sub(padding)?)
}
