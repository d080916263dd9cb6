//! What has failed is tried again, less and less often.

use std::time::{Duration, Instant};

/// After how long at first.
pub const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// After how long at most.
pub const MOST_PAUSE: Duration = Duration::from_secs(60);

/// What is tried again.
#[derive(Debug)]
pub struct Again {
    /// Why it has failed, as it was told.
    pub text: String,
    next: Instant,
    /// How long after that once more.
    pause: Duration,
}

impl Again {
    /// What has failed just now.
    pub fn new(text: String) -> Self {
        Self { text, next: Instant::now() + FIRST_PAUSE, pause: FIRST_PAUSE }
    }

    /// Whether it is due. The next time comes later each time.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let is_due = now >= self.next;
        if is_due {
            self.pause = (2 * self.pause).min(MOST_PAUSE);
            self.next = now + self.pause;
        }
        is_due
    }
}
