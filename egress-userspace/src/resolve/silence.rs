//! Which servers are better asked after others, as each query to them takes as long as a query may.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long a silent server is put last, before one query tries whether it answers again.
const PAUSE: Duration = Duration::from_secs(30);

/// Whether a server is silent: a query has gone unanswered, and it has answered no other since that was sent.
#[derive(Default)]
pub(super) struct Silence(Mutex<Heard>);

#[derive(Default)]
struct Heard {
    /// When it last answered.
    answered: Option<Instant>,
    /// When a query was last given up, if it is silent.
    silent: Option<Instant>,
}

impl Silence {
    /// It has answered, whatever it has said.
    pub(super) fn answered(&self, now: Instant) {
        self.with(|heard| *heard = Heard { answered: Some(now), silent: None });
    }

    /// It has not answered the query that was sent then. Those who answer others may have nothing to say to this one.
    pub(super) fn unanswered(&self, sent: Instant, now: Instant) {
        self.with(|heard| {
            if heard.answered.is_none_or(|answered| answered < sent) {
                heard.silent = Some(now);
            }
        });
    }

    /// Whether to ask it after others. After each pause one who asks this is to try it.
    pub(super) fn puts_last(&self, now: Instant) -> bool {
        self.with(|heard| match heard.silent {
            Some(since) if now.saturating_duration_since(since) < PAUSE => true,
            Some(_) => {
                heard.silent = Some(now);
                false
            }
            None => false,
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut Heard) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_query_after_each_pause_tries_a_silent_server() {
        let (silence, start) = (Silence::default(), Instant::now());
        let second = Duration::from_secs(1);
        assert!(!silence.puts_last(start));
        silence.unanswered(start, start + second);
        assert!(silence.puts_last(start + PAUSE));
        let over = start + second + PAUSE;
        assert_eq!(
            [over, over, over + PAUSE - second, over + PAUSE].map(|at| silence.puts_last(at)),
            [false, true, true, false]
        );
        silence.answered(over);
        assert!(!silence.puts_last(over));
    }

    #[test]
    fn a_server_that_answers_others_is_not_silent() {
        let (silence, start) = (Silence::default(), Instant::now());
        let second = Duration::from_secs(1);
        silence.answered(start + second);
        silence.unanswered(start, start + 2 * second);
        assert!(!silence.puts_last(start + 2 * second));
        silence.unanswered(start + 2 * second, start + 3 * second);
        assert!(silence.puts_last(start + 3 * second));
    }
}
