//! What a client has begun to send and not ended: h2 waits for the rest of it without a limit of time.

use tokio::time::Instant;

/// What HTTP/2 begins with (RFC 9113 section 3.4), in bytes.
const PREFACE: usize = 24;
/// The header of each frame (section 4.1), in bytes.
const HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Follows the frames of a client from its preface on. What has been begun are the preface and the settings that come with it, a
/// frame, or the head of a request in several frames. Content does not count: for that a client has all the time it wants.
pub(super) struct Begun {
    /// How much is to come of the frame.
    left: usize,
    /// Its header, as far as that has come.
    header: Vec<u8>,
    /// Whether other frames have to follow: those of a head, or the first one.
    is_open: bool,
    is_content: bool,
    since: Option<Instant>,
}

impl Begun {
    /// A client of which nothing was read yet.
    pub(super) fn new() -> Self {
        let header = Vec::with_capacity(HEADER);
        Self { left: PREFACE, header, is_open: true, is_content: false, since: Some(Instant::now()) }
    }

    /// Since when the client has owed the rest of what it has begun, if it does.
    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Takes in what was read.
    pub(super) fn read(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left == 0 {
                let (more, rest) = bytes.split_at(bytes.len().min(HEADER - self.header.len()));
                self.header.extend_from_slice(more);
                bytes = rest;
                if self.header.len() == HEADER {
                    self.begin();
                }
            }
            let (_, rest) = bytes.split_at(bytes.len().min(self.left));
            self.left -= bytes.len() - rest.len();
            bytes = rest;
            if self.is_ended() {
                self.since = None;
            }
        }
        if !self.is_ended() && self.since.is_none() {
            self.since = Some(Instant::now());
        }
    }

    /// Begins a frame, of which the header has come.
    fn begin(&mut self) {
        let (kind, flags) = (self.header[3], self.header[4]);
        self.left = self.header[..3].iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        self.is_content = kind == DATA;
        match kind {
            HEADERS | CONTINUATION => self.is_open = flags & END_HEADERS == 0,
            SETTINGS => self.is_open = false,
            _ => {}
        }
        self.header.clear();
    }

    fn is_ended(&self) -> bool {
        self.header.is_empty() && !self.is_open && (self.left == 0 || self.is_content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        [&[0, 0, length as u8, kind, flags, 0, 0, 0, 1][..], &vec![0; length]].concat()
    }

    /// After how many of these bytes nothing is owed, read one by one and all at once.
    fn check(pieces: &[(Vec<u8>, bool)]) {
        let (mut slow, mut fast) = (Begun::new(), Begun::new());
        let mut together = vec![0; PREFACE];
        slow.read(&together);
        assert!(slow.since().is_some(), "settings have to follow");
        for (number, (piece, ended)) in pieces.iter().enumerate() {
            piece.iter().for_each(|byte| slow.read(&[*byte]));
            assert_eq!(slow.since().is_none(), *ended, "piece {number}");
            together.extend_from_slice(piece);
        }
        fast.read(&together);
        assert_eq!(fast.since().is_none(), slow.since().is_none());
    }

    #[test]
    fn what_is_begun_is_owed_until_it_is_ended() {
        check(&[
            (frame(SETTINGS, 0, 6), true),
            (frame(HEADERS, END_HEADERS, 20), true),
            (frame(HEADERS, 0, 20), false),
            (frame(CONTINUATION, 0, 0), false),
            (frame(CONTINUATION, END_HEADERS, 3), true),
            (frame(DATA, 0, 200), true),
        ]);
    }

    #[test]
    fn half_a_frame_is_owed_unless_it_is_content() {
        let half = |kind, flags| frame(kind, flags, 20)[..HEADER + 10].to_vec();
        check(&[(frame(SETTINGS, 0, 0), true), (half(HEADERS, END_HEADERS), false)]);
        check(&[(frame(SETTINGS, 0, 0), true), (half(DATA, 0), true)]);
        check(&[(frame(SETTINGS, 0, 0), true), (frame(DATA, 0, 20)[..5].to_vec(), false)]);
        check(&[(half(SETTINGS, 0), false)]);
    }

    #[test]
    fn what_is_begun_later_has_its_own_time() {
        let mut begun = Begun::new();
        let first = begun.since();
        begun.read(&[vec![0; PREFACE], frame(SETTINGS, 0, 0), vec![0]].concat());
        assert!(begun.since() > first);
    }
}
