//! The names that the policy needs, kept resolved: each is looked up when its answer has run out, a few at a time.

mod entry;

use std::{
    mem,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use foldhash::{HashMap, HashSet};

use futures_util::StreamExt as _;
use tokio::{
    sync::watch,
    task::{Id, JoinError, JoinSet},
    time::sleep_until,
};
use tokio_util::time::DelayQueue;

use self::entry::Entry;
use super::{Addresses, Answer, ResolveError, Resolver};
use crate::{kernel::OwnSockets, policy::HostName};

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
    /// For how many a name server answered the last time.
    answered: usize,
    /// Since when there is something to tell.
    news: Option<Instant>,
    /// Of which names.
    changed: HashSet<HostName>,
    told: Instant,
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
            answered: 0,
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
        let Self { entries, due, untried, answered, .. } = self;
        entries.retain(|name, entry| {
            let stays = wanted.contains(name);
            if !stays {
                *untried -= usize::from(entry.last.is_none());
                *answered -= usize::from(entry.answered);
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

    /// What they are resolved by. When it has read its files anew, all names are looked up again.
    pub fn resolver(&self) -> &Arc<Resolver> {
        &self.resolver
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

    /// Whether a name was asked for in vain until that is done as seldom as it ever is, while name servers answered for others.
    pub fn is_given_up(&self, name: &HostName) -> bool {
        self.entries.get(name).is_some_and(|entry| entry.given_up)
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

    /// The resolver's files have changed.
    fn look_all_up(&mut self) {
        self.look_up_now(|_| true);
    }

    /// Name servers are back: what was asked for in vain without them says nothing of a name.
    fn look_failed_up(&mut self) {
        self.look_up_now(|entry| !entry.answered && !entry.given_up && entry.retry.take().is_some());
    }

    /// Looks some names up now, or once more those that are being looked up.
    fn look_up_now(&mut self, is_wanted: impl Fn(&mut Entry) -> bool) {
        for entry in self.entries.values_mut() {
            if is_wanted(entry) {
                match &entry.due {
                    Some(key) => self.due.reset(key, Duration::ZERO),
                    None => entry.outdated = true,
                }
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
        let were_away = self.answered == 0;
        self.answered -= usize::from(entry.answered);
        entry.answered = !answer.listed && (answer.v4.is_ok() || answer.v6.is_ok());
        self.answered += usize::from(entry.answered);
        let answered = answer.v4.is_ok() && answer.v6.is_ok();
        let mut is_news = false;
        let pause = if entry.outdated {
            Duration::ZERO
        } else if answered {
            (entry.retry, entry.given_up) = (None, false);
            answer.valid_for
        } else {
            let pause = entry.retry.unwrap_or(RETRY.0);
            let next = (pause * 2).min(RETRY.1);
            // What it is in the way of goes on without it.
            is_news = next == RETRY.1 && self.answered > 0 && !entry.given_up;
            entry.given_up |= is_news;
            entry.retry = Some(next);
            pause
        };
        let now = Instant::now();
        if entry.take_in(&name, answer, self.max_stale, now) || is_news || now.duration_since(self.told) > RETELL {
            self.news.get_or_insert(now);
            self.changed.insert(name.clone());
        }
        // One that was dropped and has come back is due already.
        match &entry.due {
            Some(key) => self.due.reset(key, pause),
            None => entry.due = Some(self.due.insert(name, pause)),
        }
        if were_away && self.answered > 0 {
            self.look_failed_up();
        }
    }
}
