//! What concerns the connection as a whole, and how much may be sent (RFC 9113 sections 6.4 to 6.9).

use bytes::Buf as _;

use crate::http2::{
    By, Error, Reason,
    core::{Closing, Core, Role},
    frame::{self, MAX_SIZE, MAX_WINDOW, setting},
};

/// What the PING says after whose answer the other end knows that it must not begin streams any more.
const LAST_PING: [u8; 8] = *b"draining";

impl Core {
    pub(super) fn take_settings(&mut self, mut payload: &[u8]) -> Result<(), Error> {
        while payload.has_remaining() {
            let (setting, value) = (payload.get_u16(), payload.get_u32());
            match setting {
                setting::HEADER_TABLE_SIZE => self.encoder.set_table_size(value),
                setting::MAX_CONCURRENT_STREAMS => self.peer.max_streams = value,
                setting::INITIAL_WINDOW_SIZE if i64::from(value) > MAX_WINDOW => {
                    return Err(Error::go_away(Reason::FLOW_CONTROL_ERROR));
                }
                setting::INITIAL_WINDOW_SIZE => self.peer.initial_window = value,
                // Longer ones would only hold up others.
                setting::MAX_FRAME_SIZE if (MAX_SIZE..1 << 24).contains(&(value as usize)) => {}
                setting::ENABLE_CONNECT_PROTOCOL if value <= 1 => self.peer.connect_protocol = value == 1,
                setting::ENABLE_PUSH if value == 0 || value == 1 && self.role == Role::Server => {}
                setting::MAX_FRAME_SIZE | setting::ENABLE_CONNECT_PROTOCOL | setting::ENABLE_PUSH => {
                    return Err(Error::go_away(Reason::PROTOCOL_ERROR));
                }
                _ => {}
            }
        }
        self.peer.is_known = true;
        frame::put_settings_ack(&mut self.out.buffer());
        self.wake_openers();
        Ok(())
    }

    /// Looks at the windows of all streams once they have grown. There can be many settings in what is read at once, and each would be for
    /// all of them: those that are in force in the end count.
    pub(super) fn take_larger_window(&mut self) -> Result<(), Error> {
        if self.ids.values().any(|key| self.window_of(*key) > MAX_WINDOW) {
            return Err(Error::go_away(Reason::FLOW_CONTROL_ERROR));
        }
        self.wake_writers();
        Ok(())
    }

    pub(super) fn take_acknowledgement(&mut self) -> Result<(), Error> {
        let Some(window) = self.unacknowledged.pop_front() else {
            return Err(Error::go_away(Reason::PROTOCOL_ERROR));
        };
        // It may use what it was told after that as well.
        self.begin_window(self.unacknowledged.iter().copied().fold(window, u32::max));
        Ok(())
    }

    /// Has streams have this window from now on.
    pub(in crate::http2) fn begin_window(&mut self, window: u32) {
        let more = i64::from(window) - i64::from(self.initial_window);
        self.initial_window = window;
        let keys: Vec<_> = self.ids.values().copied().collect();
        for key in keys {
            self.streams[key].receive_window += more;
            // Where less is left than before nothing may come that would have it widened.
            self.widen_stream(key);
        }
    }

    pub(super) fn take_ping(&mut self, is_answer: bool, payload: [u8; 8]) {
        if !is_answer {
            frame::put_ping(&mut self.out.buffer(), true, payload);
        } else if payload == LAST_PING && self.closing == Closing::Announced {
            // What the other end has begun before it knew has come.
            frame::put_go_away(&mut self.out.buffer(), self.last, Reason::NO_ERROR);
            self.closing = Closing::Told;
        }
    }

    /// Has a server's connection end once those streams are served that the other end has begun, or begins before it knows.
    pub(in crate::http2) fn close_gracefully(&mut self) {
        if self.closing == Closing::No {
            self.closing = Closing::Announced;
            let mut out = self.out.buffer();
            frame::put_go_away(&mut out, MAX_WINDOW as u32, Reason::NO_ERROR);
            frame::put_ping(&mut out, false, LAST_PING);
            drop(out);
            self.wake_driver();
        }
    }

    pub(super) fn take_go_away(&mut self, last: u32, reason: Reason) {
        // It can say less than before, but not more.
        let last = self.gone.map_or(last, |(before, _)| before.min(last));
        self.gone = Some((last, reason));
        if self.role == Role::Server {
            // It may begin others nevertheless (RFC 9113 section 6.8): it is told when it must not any more.
            return self.close_gracefully();
        }
        let beyond: Vec<_> = self.ids.iter().filter(|(id, _)| **id > last).map(|(_, key)| *key).collect();
        for key in beyond {
            self.streams[key].fail(Error::GoAway { reason, by: By::Peer });
            self.close_if_ended(key);
        }
        self.wake_openers();
    }

    /// Takes in that a client sends no more. It gives up what it has not asked to its end, and is owed the rest: as much of that as it has
    /// let us send. Says whether there is any.
    pub(in crate::http2) fn take_end(&mut self) -> bool {
        let is_cut = |key: &usize| !self.streams[*key].is_received;
        let cut: Vec<_> = self.ids.values().copied().filter(is_cut).collect();
        for key in cut {
            self.reset(key, Error::ended());
        }
        if self.ids.is_empty() {
            return false;
        }
        self.is_at_end = true;
        (self.block, self.content, self.owed_since) = (None, None, None);
        self.closing = Closing::Told;
        // A client that has closed all of its connection answers this by a reset.
        frame::put_go_away(&mut self.out.buffer(), self.last, Reason::NO_ERROR);
        self.wake_writers();
        true
    }

    pub(super) fn take_window_update(&mut self, id: u32, more: u32) -> Result<(), Error> {
        let more = i64::from(more);
        if id == 0 {
            self.send_window += more;
            return match more {
                0 => Err(Error::go_away(Reason::PROTOCOL_ERROR)),
                _ if self.send_window > MAX_WINDOW => Err(Error::go_away(Reason::FLOW_CONTROL_ERROR)),
                _ => Ok(()),
            };
        }
        let Some(key) = self.ids.get(&id).copied() else {
            return if self.is_idle(id) { Err(Error::go_away(Reason::PROTOCOL_ERROR)) } else { Ok(()) };
        };
        self.streams[key].credit += more;
        if more == 0 {
            self.reset(key, Error::reset(Reason::PROTOCOL_ERROR));
        } else if self.window_of(key) > MAX_WINDOW {
            self.reset(key, Error::reset(Reason::FLOW_CONTROL_ERROR));
        } else if let Some(writer) = self.streams[key].writer.take() {
            writer.wake();
        }
        Ok(())
    }

    pub(super) fn take_reset(&mut self, id: u32, reason: Reason) -> Result<(), Error> {
        match self.ids.get(&id).copied() {
            Some(key) => {
                self.streams[key].fail(Error::Reset { reason, by: By::Peer });
                self.close_if_ended(key);
                Ok(())
            }
            None if self.is_idle(id) => Err(Error::go_away(Reason::PROTOCOL_ERROR)),
            None => Ok(()),
        }
    }
}
