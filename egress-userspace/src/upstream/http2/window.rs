//! How much an origin may send of each response before its client has read on.

use std::time::{Duration, Instant};

/// While clients read, in bytes: what one response can have under way for each round trip, and what one who stands still makes us keep.
pub(super) const LARGE: u32 = 2 * 1024 * 1024;
/// The same while too much was not read.
pub(super) const SMALL: u32 = 64 * 1024;
/// How many responses of a connection may wait to be read with all that their windows allow before those of all become small.
const FEW: u32 = 4;
/// What may wait on a worker's connections together, in bytes, before they are small where as much waits as small ones allow of a few.
const MOST: usize = 32 * 1024 * 1024;
/// How long they stay small after that: each change is a frame that some origins take for an attack if there are many.
const CALM: Duration = Duration::from_secs(5);

/// The window of a connection's streams.
pub(super) struct Window {
    size: u32,
    /// When too much was last seen to wait, for as long as that matters.
    seen: Option<Instant>,
}

impl Window {
    /// That of a new connection.
    pub(super) fn new() -> Self {
        Self { size: LARGE, seen: None }
    }

    /// What it is from now on, if that is something else, when so many bytes of the connection and of all were not read. So many
    /// of them were `within` a window on each stream: what came before it was small may wait for long.
    pub(super) fn change(&mut self, (own, all): (usize, usize), within: impl FnOnce(u32) -> usize) -> Option<u32> {
        let window = if all > MOST { SMALL } else { LARGE };
        let is_crowded = own > (FEW * window) as usize || self.size == SMALL && within(SMALL) > (FEW * SMALL) as usize;
        if is_crowded || self.seen.is_some() {
            let now = Instant::now();
            self.seen = if is_crowded { Some(now) } else { self.seen.filter(|seen| now.duration_since(*seen) < CALM) };
        }
        let size = if self.seen.is_some() { SMALL } else { LARGE };
        (std::mem::replace(&mut self.size, size) != size).then_some(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEW_LARGE: usize = (FEW * LARGE) as usize;
    const FEW_SMALL: usize = (FEW * SMALL) as usize;

    #[test]
    fn it_is_small_while_too_much_waits() {
        for (unread, change) in [
            ((0, 0), None),
            ((FEW_LARGE, MOST), None),
            ((FEW_LARGE + 1, FEW_LARGE + 1), Some(SMALL)),
            // What others have keeps nobody from large ones whose clients read.
            ((FEW_SMALL, 2 * MOST), None),
            ((FEW_SMALL + 1, MOST + 1), Some(SMALL)),
        ] {
            assert_eq!(Window::new().change(unread, |_| 0), change, "{unread:?}");
        }
    }

    #[test]
    fn it_becomes_large_again_once_little_has_waited_for_a_while() {
        let mut window = Window::new();
        let mut look_later = |own: usize, within: usize| {
            window.seen = window.seen.map(|seen| seen - CALM);
            window.change((own, own), |_| within)
        };
        assert_eq!(look_later(FEW_LARGE + 1, FEW_SMALL), Some(SMALL));
        // As much as small ones allow of more than a few.
        assert_eq!(look_later(FEW_SMALL + 1, FEW_SMALL + 1), None);
        // One who stands still keeps what came before.
        assert_eq!(look_later(LARGE as usize, SMALL as usize), Some(LARGE));
        assert_eq!(window.change((FEW_LARGE + 1, FEW_LARGE + 1), |_| 0), Some(SMALL));
        assert_eq!(window.change((0, 0), |_| 0), None, "it was a moment ago");
    }
}
