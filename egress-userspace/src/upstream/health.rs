//! Addresses that have failed: they are tried last for a while, and never left out.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::netns::NetnsCookie;

/// How long an address is put last after its first failure.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// And at most, when it goes on failing: each time twice as long as before.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What one worker knows of addresses that did not answer, for all connections that it makes. Pods have routes and network
/// policies of their own, so what fails in one says nothing of another.
#[derive(Default)]
pub struct Health(RefCell<HashMap<(NetnsCookie, SocketAddr), Failing>>);

struct Failing {
    until: Instant,
    pause: Duration,
}

impl Health {
    /// Puts addresses that have failed lately behind the others. Otherwise the order stays.
    pub fn order(&self, netns: NetnsCookie, addresses: &mut [SocketAddr]) {
        let failing = self.0.borrow();
        if !failing.is_empty() {
            let now = Instant::now();
            addresses.sort_by_key(|address| failing.get(&(netns, *address)).is_some_and(|entry| now < entry.until));
        }
    }

    /// Notes that an address refused, did not answer, or broke off before a connection could be used.
    pub fn failed(&self, netns: NetnsCookie, address: SocketAddr) {
        self.failed_at(netns, address, Instant::now());
    }

    fn failed_at(&self, netns: NetnsCookie, address: SocketAddr, now: Instant) {
        let mut failing = self.0.borrow_mut();
        let pause = match failing.get(&(netns, address)) {
            // Attempts at the same time are one failure.
            Some(entry) if now < entry.until => return,
            Some(entry) => (entry.pause * 2).min(LONGEST_PAUSE),
            None => FIRST_PAUSE,
        };
        failing.insert((netns, address), Failing { until: now + pause, pause });
    }

    /// Notes that an address is of use.
    pub fn succeeded(&self, netns: NetnsCookie, address: SocketAddr) {
        self.0.borrow_mut().remove(&(netns, address));
    }

    /// Forgets failures that nobody has looked into for long.
    pub fn expire(&self) {
        let now = Instant::now();
        self.0.borrow_mut().retain(|_, entry| now < entry.until + LONGEST_PAUSE);
    }

    /// Forgets a network namespace that is gone.
    pub fn forget(&self, netns: NetnsCookie) {
        self.0.borrow_mut().retain(|(known, _), _| *known != netns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: NetnsCookie = NetnsCookie(1);
    const OTHER_POD: NetnsCookie = NetnsCookie(2);

    fn addresses() -> [SocketAddr; 3] {
        [1, 2, 3].map(|last| SocketAddr::from(([192, 0, 2, last], 443)))
    }

    fn order(health: &Health, netns: NetnsCookie) -> [SocketAddr; 3] {
        let mut ordered = addresses();
        health.order(netns, &mut ordered);
        ordered
    }

    #[test]
    fn an_address_that_failed_comes_last_until_it_answers() {
        let (health, [a, b, c]) = (Health::default(), addresses());
        health.failed(POD, a);
        assert_eq!(order(&health, POD), [b, c, a]);
        assert_eq!(order(&health, OTHER_POD), [a, b, c]);
        health.failed(POD, b);
        health.failed(POD, c);
        assert_eq!(order(&health, POD), [a, b, c], "all are tried all the same");
        health.succeeded(POD, b);
        assert_eq!(order(&health, POD), [b, a, c]);
    }

    #[test]
    fn the_pause_grows_with_each_failure_up_to_a_minute() {
        let (health, [a, ..]) = (Health::default(), addresses());
        let mut now = Instant::now();
        for seconds in [10, 20, 40, 60, 60] {
            health.failed_at(POD, a, now);
            health.failed_at(POD, a, now + Duration::from_millis(1));
            let until = health.0.borrow()[&(POD, a)].until;
            assert_eq!(until - now, Duration::from_secs(seconds));
            now = until;
        }
    }
}
