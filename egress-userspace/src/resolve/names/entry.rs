//! One name: what the answers have said, and when it is asked for again.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use foldhash::{HashMap, HashSet};
use tokio_util::time::delay_queue;

use crate::{
    policy::HostName,
    resolve::{Addresses, Answer, Known, ResolveError},
};

/// How long an address that a look-up no longer gives is still intercepted: applications hold answers longer than DNS
/// allows, and such a connection must not leave in clear.
const LINGER: Duration = Duration::from_secs(3600);

/// What is known of a name, and when it is looked up.
#[derive(Default)]
pub(super) struct Entry {
    pub(super) addresses: Addresses,
    /// Of IPv4 and IPv6.
    pub(super) families: [Family; 2],
    /// Until when each address was good by the last answer that gave it, or would have been if a look-up had been answered.
    pub(super) seen: HashMap<IpAddr, Instant>,
    /// Whether the last answer was the hosts file's.
    pub(super) listed: bool,
    /// What went wrong the last time; None before the first attempt.
    pub(super) last: Option<Result<(), ResolveError>>,
    /// When it is looked up next; None while it is.
    pub(super) due: Option<delay_queue::Key>,
    /// Whether a name server answered the last time, be it for one family.
    pub(super) answered: bool,
    /// The pause after the next failure.
    pub(super) retry: Option<Duration>,
    /// Whether that has become the longest while others were answered for, and there was no answer since.
    pub(super) given_up: bool,
    /// Whether the resolver's files have changed since it was asked for.
    pub(super) outdated: bool,
}

/// The last good answer for one family.
#[derive(Default)]
pub(super) struct Family {
    addresses: Vec<IpAddr>,
    /// How long it is of use though nobody answers any more; None before the first.
    pub(super) usable_until: Option<Instant>,
}

impl Entry {
    /// Takes an answer in, and says whether it is news. A family that was not answered for keeps the addresses that it had:
    /// for interception until it is answered for, to connect to for `max_stale`.
    pub(super) fn take_in(&mut self, name: &HostName, answer: Answer, max_stale: Duration, now: Instant) -> bool {
        let Answer { v4, v6, valid_for, listed } = answer;
        self.listed = listed;
        let mut unanswered = None;
        for (family, found) in self.families.iter_mut().zip([v4, v6]) {
            match found {
                Ok(addresses) => {
                    *family = Family { addresses, usable_until: now.checked_add(valid_for + max_stale) };
                }
                Err(reason) => _ = unanswered.get_or_insert(reason),
            }
        }

        let before: HashSet<_> = self.seen.keys().copied().collect();
        // A name server may have given it to applications until the last moment.
        let until = now.checked_add(valid_for).unwrap_or(now);
        for &address in self.families.iter().flat_map(|family| &family.addresses) {
            let seen = self.seen.entry(address).or_insert(until);
            *seen = until.max(*seen);
        }
        self.seen.retain(|_, seen| now.saturating_duration_since(*seen) < LINGER);

        let usable = self.families.iter().filter(|family| family.usable_until.is_none_or(|until| now < until));
        let addresses: Vec<_> = usable.flat_map(|family| family.addresses.iter().copied()).collect();
        let known = self.addresses.load();
        let too_old = unanswered.is_some() && addresses.len() < known.current.len();
        let failure = |reason, authoritative| Err(ResolveError { name: name.clone(), reason, authoritative });
        let outcome = match unanswered {
            Some(reason) => failure(reason, false),
            None if addresses.is_empty() => failure("it does not exist or has no addresses".to_owned(), true),
            None => Ok(()),
        };
        let other_outcome = self.last.as_ref() != Some(&outcome);
        if let Err(error) = &outcome
            && other_outcome
        {
            tracing::warn!(%error, kept = addresses.len(), "a look-up failed");
        }
        self.last = Some(outcome);
        let other_addresses = known.current != addresses;
        if other_addresses {
            tracing::debug!(%name, ?addresses, "resolved");
            if too_old {
                tracing::warn!(%name, kept = addresses.len(), "an answer has become too old");
            }
        }
        let now_known = Known::new(addresses, &self.seen);
        if now_known != **known {
            self.addresses.store(Arc::new(now_known));
        }
        let same_seen = before.len() == self.seen.len() && before.iter().all(|address| self.seen.contains_key(address));
        other_outcome || other_addresses || !same_seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
    const TTL: Duration = Duration::from_secs(60);
    const STALE: Duration = Duration::from_secs(600);

    fn name() -> HostName {
        "edition.cnn.com".parse().expect("a host name")
    }

    fn silence() -> Result<Vec<IpAddr>, String> {
        Err("no answer".to_owned())
    }

    /// An entry, and the time, to go on with.
    struct Case(Entry, Instant);

    impl Case {
        fn take_in(
            &mut self,
            after: Duration,
            v4: Result<Vec<IpAddr>, String>,
            v6: Result<Vec<IpAddr>, String>,
        ) -> bool {
            self.1 += after;
            self.0.take_in(&name(), Answer { v4, v6, valid_for: TTL, listed: false }, STALE, self.1)
        }

        fn check(&self, usable: &[IpAddr], intercepted: &[IpAddr]) {
            assert_eq!(self.0.addresses.load().current, usable);
            let mut seen: Vec<_> = self.0.seen.keys().copied().collect();
            seen.sort();
            assert_eq!(seen, intercepted);
        }
    }

    #[test]
    fn an_answer_outlives_its_servers_for_a_while_and_interception_for_good() {
        let mut case = Case(Entry::default(), Instant::now());
        assert!(case.take_in(TTL, Ok(vec![V4]), Ok(vec![V6])));
        assert!(!case.take_in(TTL, Ok(vec![V4]), Ok(vec![V6])), "nothing new");
        case.check(&[V4, V6], &[V4, V6]);
        assert!(case.take_in(TTL, silence(), silence()), "it fails");
        assert!(!case.take_in(STALE - Duration::from_secs(1), silence(), silence()), "it still does");
        case.check(&[V4, V6], &[V4, V6]);
        assert!(case.take_in(Duration::from_secs(1), silence(), silence()));
        case.check(&[], &[V4, V6]);
        case.take_in(2 * LINGER, silence(), silence());
        case.check(&[], &[V4, V6]);
        assert!(case.take_in(TTL, Ok(vec![V4]), silence()), "one family is answered for again");
        case.check(&[V4], &[V4, V6]);
    }

    #[test]
    fn what_a_server_denies_is_dropped_at_once_and_lingers() {
        let mut case = Case(Entry::default(), Instant::now());
        case.take_in(TTL, Ok(vec![V4]), Ok(vec![V6]));
        assert!(case.take_in(TTL, Ok(Vec::new()), Ok(Vec::new())));
        case.check(&[], &[V4, V6]);
        assert!(case.0.last.as_ref().is_some_and(|last| last.as_ref().is_err_and(|error| error.authoritative)));
        assert!(case.take_in(LINGER, Ok(Vec::new()), Ok(Vec::new())), "it has lingered");
        case.check(&[], &[]);
    }

    #[test]
    fn connections_stay_where_a_name_was_until_answers_have_said_otherwise_for_a_while() {
        let mut case = Case(Entry::default(), Instant::now() - LINGER);
        let other = IpAddr::from([192, 0, 2, 2]);
        case.take_in(TTL, Ok(vec![V4]), Ok(vec![V6]));
        case.take_in(TTL, Ok(vec![other]), silence());
        assert!(!case.0.addresses.load().keeps(V4), "that was an hour ago");
        let now = Instant::now();
        case.take_in(now - case.1, Ok(vec![other]), silence());
        assert_eq!([V4, V6, other].map(|address| case.0.addresses.load().keeps(address)), [false, true, true]);
        case.take_in(STALE, Ok(vec![other]), silence());
        assert_eq!(case.0.addresses.load().current, [other]);
        assert!(case.0.addresses.load().keeps(V6), "nobody has said that it is not there");
        case.take_in(TTL, Ok(vec![V4]), Ok(Vec::new()));
        assert_eq!([V4, other].map(|address| case.0.addresses.load().keeps(address)), [true, true]);
    }

    #[test]
    fn what_was_good_for_long_lingers_after_that() {
        let (mut entry, start) = (Entry::default(), Instant::now());
        let mut take_in = |addresses, valid_for, at| {
            let answer = Answer { v4: Ok(addresses), v6: Ok(Vec::new()), valid_for, listed: false };
            entry.take_in(&name(), answer, STALE, at);
            entry.seen.contains_key(&V4)
        };
        assert!(take_in(vec![V4], LINGER, start));
        let end = start + LINGER;
        assert!(take_in(Vec::new(), TTL, end), "some have been given it a moment ago");
        assert!(take_in(Vec::new(), TTL, end + LINGER - TTL));
        assert!(!take_in(Vec::new(), TTL, end + LINGER));
    }
}
