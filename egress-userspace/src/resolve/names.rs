//! The names that the policy needs, kept resolved: each is looked up when its answer has run out, a few at a time.

use std::{
    mem,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use foldhash::{HashMap, HashSet};

use arc_swap::ArcSwap;
use futures_util::StreamExt as _;
use tokio::{
    sync::watch,
    task::{Id, JoinError, JoinSet},
    time::sleep_until,
};
use tokio_util::time::{DelayQueue, delay_queue};

use super::{Answer, ResolveError, Resolver};
use crate::{kernel::OwnSockets, policy::HostName};

/// How long an address that a look-up no longer gives is still intercepted: applications hold answers longer than DNS
/// allows, and such a connection must not leave in clear.
const LINGER: Duration = Duration::from_secs(3600);
/// First and longest pause between attempts while a look-up fails.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How many names are looked up at a time, so that thousands of them do not flood the servers.
pub(super) const AT_ONCE: usize = 64;
/// How long changes are gathered while there is more to come: what follows from one is a matter of all names.
const GATHER: Duration = Duration::from_millis(100);
/// How often answers are told of though they change nothing, so that what failed upon the last change is tried again.
const RETELL: Duration = Duration::from_secs(60);

/// How long the last good answer for a name is used after its TTL while nobody answers (RFC 8767 calls such data stale).
pub const MAX_STALE: Duration = Duration::from_secs(3600);

/// The current addresses of one name, shared with the workers: those of the last good answer.
pub type Addresses = Arc<ArcSwap<Vec<IpAddr>>>;

/// All names that are kept resolved.
pub struct Names {
    resolver: Arc<Resolver>,
    max_stale: Duration,
    entries: HashMap<HostName, Entry>,
    /// When which name is to be looked up.
    due: DelayQueue<HostName>,
    under_way: JoinSet<Answer>,
    /// Which names are being looked up.
    asked: HashMap<Id, HostName>,
    /// Whether the resolver's files have changed.
    changes: watch::Receiver<()>,
    /// How many names have not been tried.
    untried: usize,
    /// Since when there is something to tell.
    news: Option<Instant>,
    /// Of which names.
    changed: HashSet<HostName>,
    told: Instant,
}

#[derive(Default)]
struct Entry {
    addresses: Addresses,
    /// Of IPv4 and IPv6.
    families: [Family; 2],
    /// Until when each address was good by the last answer that gave it, or would have been if a look-up had been answered.
    seen: HashMap<IpAddr, Instant>,
    /// Whether the last answer was the hosts file's.
    listed: bool,
    /// What went wrong the last time; None before the first attempt.
    last: Option<Result<(), ResolveError>>,
    /// When it is looked up next; None while it is.
    due: Option<delay_queue::Key>,
    /// The pause after the next failure.
    retry: Option<Duration>,
    /// Whether the resolver's files have changed since it was asked for.
    outdated: bool,
}

/// The last good answer for one family.
#[derive(Default)]
struct Family {
    addresses: Vec<IpAddr>,
    /// How long it is of use though nobody answers any more; None before the first.
    usable_until: Option<Instant>,
}

impl Names {
    /// No names yet. When servers fail, answers are used for `max_stale` beyond their TTL.
    pub fn new(resolver: Resolver, max_stale: Duration) -> Self {
        let changes = resolver.changes();
        Self {
            resolver: Arc::new(resolver),
            max_stale,
            entries: HashMap::default(),
            due: DelayQueue::new(),
            under_way: JoinSet::new(),
            asked: HashMap::default(),
            changes,
            untried: 0,
            news: None,
            changed: HashSet::default(),
            told: Instant::now(),
        }
    }

    /// Keeps `wanted` resolved, besides what is.
    pub fn add(&mut self, wanted: &HashSet<HostName>) {
        let Self { entries, due, untried, .. } = self;
        for name in wanted {
            entries.entry(name.clone()).or_insert_with(|| {
                *untried += 1;
                Entry { due: Some(due.insert(name.clone(), Duration::ZERO)), ..Entry::default() }
            });
        }
    }

    /// Keeps none but `wanted` resolved.
    pub fn retain(&mut self, wanted: &HashSet<HostName>) {
        let Self { entries, due, untried, .. } = self;
        entries.retain(|name, entry| {
            let stays = wanted.contains(name);
            if !stays {
                *untried -= usize::from(entry.last.is_none());
                if let Some(key) = &entry.due {
                    due.remove(key);
                }
            }
            stays
        });
    }

    /// Has the sockets by which names are looked up marked as ours.
    pub fn mark_sockets(&self, own: OwnSockets) {
        self.resolver.mark_sockets(own);
    }

    /// Looks all names up again if the resolver's files have changed, whose answers come without a useful TTL.
    pub fn refresh(&self) {
        self.resolver.refresh();
    }

    /// The shared addresses of a name that is kept resolved; empty until the first answer.
    pub fn addresses(&self, name: &HostName) -> Addresses {
        self.entries.get(name).map(|entry| entry.addresses.clone()).unwrap_or_default()
    }

    /// Looks names up as they are due, until there is something new of some of them. It may be dropped and called again.
    pub async fn next(&mut self) {
        loop {
            let tell_at = self.news.map(|since| since + GATHER);
            if tell_at.is_some_and(|at| self.under_way.is_empty() || at <= Instant::now()) {
                self.news = None;
                self.told = Instant::now();
                return;
            }
            tokio::select! {
                biased;
                Some(due) = self.due.next(), if self.under_way.len() < AT_ONCE => self.look_up(due.into_inner()),
                Some(ended) = self.under_way.join_next_with_id() => self.take_in(ended),
                Ok(()) = self.changes.changed() => self.look_all_up(),
                () = sleep_until(tell_at.unwrap_or_else(Instant::now).into()), if tell_at.is_some() => {}
            }
        }
    }

    /// The names of which something is new since this was asked for.
    pub fn take_changed(&mut self) -> HashSet<HostName> {
        mem::take(&mut self.changed)
    }

    /// The addresses of `name` to intercept: those of the last good answer, and those it dropped a while ago.
    pub fn intercepted(&self, name: &HostName) -> impl Iterator<Item = IpAddr> {
        self.entries.get(name).into_iter().flat_map(|entry| entry.seen.keys().copied())
    }

    /// Whether each name has been tried at least once.
    pub fn all_tried(&self) -> bool {
        self.untried == 0
    }

    /// Whether somebody has answered for all names at least once: for their addresses of IPv4, and for those of IPv6.
    pub fn all_answered(&self) -> [bool; 2] {
        [0, 1].map(|family| self.entries.values().all(|entry| entry.families[family].usable_until.is_some()))
    }

    /// Whether the last answer for a name was the hosts file's.
    pub fn is_listed(&self, name: &HostName) -> bool {
        self.entries.get(name).is_some_and(|entry| entry.listed)
    }

    /// Why nothing has ever been known of a name, if that is as no name server has answered.
    pub fn unanswered(&self, name: &HostName) -> Option<&ResolveError> {
        self.failure(name).filter(|error| !error.authoritative && self.intercepted(name).next().is_none())
    }

    /// What went wrong with a name the last time it was looked up.
    pub fn failure(&self, name: &HostName) -> Option<&ResolveError> {
        self.entries.get(name)?.last.as_ref()?.as_ref().err()
    }

    fn look_up(&mut self, name: HostName) {
        if let Some(entry) = self.entries.get_mut(&name) {
            entry.due = None;
            entry.outdated = false;
        }
        let (resolver, asked) = (self.resolver.clone(), name.clone());
        let task = self.under_way.spawn(async move { resolver.lookup(&asked).await });
        self.asked.insert(task.id(), name);
    }

    fn look_all_up(&mut self) {
        for entry in self.entries.values_mut() {
            match &entry.due {
                Some(key) => self.due.reset(key, Duration::ZERO),
                None => entry.outdated = true,
            }
        }
    }

    fn take_in(&mut self, ended: Result<(Id, Answer), JoinError>) {
        let (id, answer) = match ended {
            Ok((id, answer)) => (id, answer),
            Err(panic) => (panic.id(), Answer::failed(&panic.to_string())),
        };
        // The name may have been dropped while its answer was on the way.
        let Some(name) = self.asked.remove(&id) else { return };
        let Some(entry) = self.entries.get_mut(&name) else { return };
        self.untried -= usize::from(entry.last.is_none());
        let answered = answer.v4.is_ok() && answer.v6.is_ok();
        let pause = if entry.outdated {
            Duration::ZERO
        } else if answered {
            entry.retry = None;
            answer.valid_for
        } else {
            let pause = entry.retry.unwrap_or(RETRY.0);
            entry.retry = Some((pause * 2).min(RETRY.1));
            pause
        };
        let now = Instant::now();
        if entry.take_in(&name, answer, self.max_stale, now) || now.duration_since(self.told) > RETELL {
            self.news.get_or_insert(now);
            self.changed.insert(name.clone());
        }
        // One that was dropped and has come back is due already.
        match &entry.due {
            Some(key) => self.due.reset(key, pause),
            None => entry.due = Some(self.due.insert(name, pause)),
        }
    }
}

impl Entry {
    /// Takes an answer in, and says whether it is news. A family that was not answered for keeps the addresses that it had:
    /// for interception until it is answered for, to connect to for `max_stale`.
    fn take_in(&mut self, name: &HostName, answer: Answer, max_stale: Duration, now: Instant) -> bool {
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
        let too_old = unanswered.is_some() && addresses.len() < self.addresses.load().len();
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
        let other_addresses = **self.addresses.load() != addresses;
        if other_addresses {
            tracing::debug!(%name, ?addresses, "resolved");
            if too_old {
                tracing::warn!(%name, kept = addresses.len(), "an answer has become too old");
            }
            self.addresses.store(Arc::new(addresses));
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
            assert_eq!(**self.0.addresses.load(), usable);
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
