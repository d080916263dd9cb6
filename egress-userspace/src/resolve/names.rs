//! The names that the policy needs, each kept resolved by a task of its own.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::{sync::mpsc, task::AbortHandle};

use super::{Answer, ResolveError, Resolver};
use crate::policy::HostName;

/// How long an address that a look-up no longer gives is still intercepted: applications hold answers longer than DNS
/// allows, and such a connection must not leave in clear.
const LINGER: Duration = Duration::from_secs(3600);
/// First and longest pause between attempts while a look-up fails.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The current addresses of one name, shared with the workers: those of the last good answer.
pub type Addresses = Arc<ArcSwap<Vec<IpAddr>>>;

/// All names that are kept resolved.
pub struct Names {
    resolver: Arc<Resolver>,
    entries: HashMap<HostName, Entry>,
    answers: mpsc::UnboundedReceiver<(HostName, Answer)>,
    sender: mpsc::UnboundedSender<(HostName, Answer)>,
}

struct Entry {
    task: AbortHandle,
    addresses: Addresses,
    /// When a look-up last gave each address.
    seen: HashMap<IpAddr, Instant>,
    /// What went wrong the last time; None before the first attempt.
    last: Option<Result<(), ResolveError>>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Names {
    /// No names yet.
    pub fn new(resolver: Resolver) -> Self {
        let (sender, answers) = mpsc::unbounded_channel();
        Self { resolver: Arc::new(resolver), entries: HashMap::new(), answers, sender }
    }

    /// Makes `wanted` the names to keep resolved. Names that stay keep their addresses.
    pub fn set(&mut self, wanted: &HashSet<HostName>) {
        self.entries.retain(|name, _| wanted.contains(name));
        for name in wanted {
            self.entries.entry(name.clone()).or_insert_with(|| {
                let task = tokio::spawn(keep_resolved(name.clone(), self.resolver.clone(), self.sender.clone()));
                Entry { task: task.abort_handle(), addresses: Addresses::default(), seen: HashMap::new(), last: None }
            });
        }
    }

    /// Looks all names up again if the resolver's files have changed, whose answers come without a useful TTL.
    pub fn refresh(&self) {
        self.resolver.refresh();
    }

    /// The shared addresses of a name that is kept resolved; empty until the first answer.
    pub fn addresses(&self, name: &HostName) -> Addresses {
        self.entries.get(name).map(|entry| entry.addresses.clone()).unwrap_or_default()
    }

    /// Waits for the next answer and takes it in.
    pub async fn next(&mut self) {
        // We hold a sender ourselves, so the channel does not close.
        let Some((name, answer)) = self.answers.recv().await else { return std::future::pending().await };
        // The name may have been dropped while its answer was on the way.
        if let Some(entry) = self.entries.get_mut(&name) {
            entry.take_in(&name, answer);
        }
    }

    /// The addresses of `name` to intercept: those of the last good answer, and those it dropped a while ago.
    pub fn intercepted(&self, name: &HostName) -> impl Iterator<Item = IpAddr> {
        self.entries.get(name).into_iter().flat_map(|entry| entry.seen.keys().copied())
    }

    /// Whether each name has been tried at least once.
    pub fn all_tried(&self) -> bool {
        self.entries.values().all(|entry| entry.last.is_some())
    }

    /// What went wrong with a name the last time it was looked up.
    pub fn failure(&self, name: &HostName) -> Option<&ResolveError> {
        self.entries.get(name)?.last.as_ref()?.as_ref().err()
    }
}

impl Entry {
    /// A family that was not answered for keeps the addresses that it had.
    fn take_in(&mut self, name: &HostName, answer: Answer) {
        let Answer { v4, v6, .. } = answer;
        let had = self.addresses.load_full();
        let kept = |is_v4: bool| had.iter().copied().filter(move |address| address.is_ipv4() == is_v4).collect();
        let (v4, v4_error) = v4.map_or_else(|error| (kept(true), Some(error)), |found| (found, None));
        let (v6, v6_error) = v6.map_or_else(|error| (kept(false), Some(error)), |found| (found, None));
        let addresses = [v4, v6].concat();

        let now = Instant::now();
        self.seen.extend(addresses.iter().map(|&address| (address, now)));
        self.seen.retain(|_, seen| now.duration_since(*seen) < LINGER);

        let failure = |reason, authoritative| Err(ResolveError { name: name.clone(), reason, authoritative });
        let outcome = match v4_error.or(v6_error) {
            Some(reason) => failure(reason, false),
            None if addresses.is_empty() => failure("it does not exist or has no addresses".to_owned(), true),
            None => Ok(()),
        };
        if let Err(error) = &outcome
            && self.last.as_ref() != Some(&outcome)
        {
            tracing::warn!(%error, kept = addresses.len(), "a look-up failed");
        }
        self.last = Some(outcome);
        if *had != addresses {
            tracing::debug!(%name, ?addresses, "resolved");
            self.addresses.store(Arc::new(addresses));
        }
    }
}

async fn keep_resolved(name: HostName, resolver: Arc<Resolver>, answers: mpsc::UnboundedSender<(HostName, Answer)>) {
    let (mut retry, longest) = RETRY;
    let mut changes = resolver.changes();
    loop {
        let answer = resolver.lookup(&name).await;
        let pause = if answer.v4.is_ok() && answer.v6.is_ok() {
            retry = RETRY.0;
            answer.valid_for
        } else {
            let pause = retry;
            retry = (retry * 2).min(longest);
            pause
        };
        if answers.send((name.clone(), answer)).is_err() {
            return;
        }
        // The resolver, which holds the other end, lives as long as this task.
        let _ = tokio::time::timeout(pause, changes.changed()).await;
    }
}
