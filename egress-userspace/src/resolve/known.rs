//! What the workers know of a name.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use foldhash::HashMap;

/// How long after the last answer that gave an address has run out connections to it are kept. Many a name has some of its addresses
/// in each answer, in turn.
const KEPT: Duration = Duration::from_secs(300);

/// The addresses of one name, shared with the workers.
pub type Addresses = Arc<ArcSwap<Known>>;

/// The addresses of one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Those of the last good answer.
    pub current: Vec<IpAddr>,
    /// Those that answers gave before, and until when each was good.
    former: Vec<(IpAddr, Instant)>,
}

impl Known {
    /// The current ones, and among those that were `seen` the ones before.
    pub(super) fn new(current: Vec<IpAddr>, seen: &HashMap<IpAddr, Instant>) -> Self {
        let former = seen.iter().filter(|(address, _)| !current.contains(address));
        let former = former.map(|(&address, &until)| (address, until)).collect();
        Self { current, former }
    }

    /// This one for good.
    pub fn always(address: IpAddr) -> Self {
        Self { current: vec![address], former: Vec::new() }
    }

    /// Whether connections to an address are to be kept: it is one of these, or was until a while ago. Where there are none, nobody
    /// knows of a better one.
    pub fn keeps(&self, address: IpAddr) -> bool {
        self.keeps_at(address, Instant::now)
    }

    fn keeps_at(&self, address: IpAddr, now: impl Fn() -> Instant) -> bool {
        let was_until = || self.former.iter().find(|(former, _)| *former == address).map(|(_, until)| *until);
        self.current.is_empty()
            || self.current.contains(&address)
            || was_until().is_some_and(|until| now().saturating_duration_since(until) < KEPT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_kept_for_a_while_after_the_last_answer_that_gave_it() {
        let [a, b, c] = [1, 2, 3].map(|last| IpAddr::from([192, 0, 2, last]));
        let until = Instant::now();
        let seen = [(a, until), (b, until)].into_iter().collect();
        let after = |seconds: u64, known: &Known| {
            [a, b, c].map(|address| known.keeps_at(address, || until + Duration::from_secs(seconds)))
        };
        let moved = Known::new(vec![b], &seen);
        assert_eq!(after(0, &moved), [true, true, false]);
        assert_eq!(after(299, &moved), [true, true, false]);
        assert_eq!(after(300, &moved), [false, true, false]);
        assert_eq!(after(300, &Known::new(Vec::new(), &seen)), [true; 3], "there is no better one");
    }
}
