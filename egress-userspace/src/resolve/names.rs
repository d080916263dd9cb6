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

/// The current addresses of one name, shared with the workers. Keeps the last good answer while look-ups fail.
pub type Addresses = Arc<ArcSwap<Vec<IpAddr>>>;

/// All names that are kept resolved.
pub struct Names {
    resolver: Arc<Resolver>,
    entries: HashMap<HostName, Entry>,
    answers: mpsc::UnboundedReceiver<(HostName, Result<Answer, ResolveError>)>,
    sender: mpsc::UnboundedSender<(HostName, Result<Answer, ResolveError>)>,
}

struct Entry {
    task: AbortHandle,
    addresses: Addresses,
    /// When a look-up last gave each address.
    seen: HashMap<IpAddr, Instant>,
    /// The last attempt's failure; None before the first attempt.
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

    /// The shared addresses of a name that is kept resolved; empty until the first answer.
    pub fn addresses(&self, name: &HostName) -> Addresses {
        self.entries.get(name).map(|entry| entry.addresses.clone()).unwrap_or_default()
    }

    /// Waits for the next answer and takes it in.
    pub async fn next(&mut self) {
        // We hold a sender ourselves, so the channel does not close.
        let Some((name, result)) = self.answers.recv().await else { return std::future::pending().await };
        // The name may have been dropped while its answer was on the way.
        let Some(entry) = self.entries.get_mut(&name) else { return };
        match result {
            Ok(answer) => {
                let now = Instant::now();
                entry.seen.extend(answer.addresses.iter().map(|&address| (address, now)));
                entry.seen.retain(|_, seen| now.duration_since(*seen) < LINGER);
                if **entry.addresses.load() != answer.addresses {
                    tracing::debug!(%name, addresses = ?answer.addresses, "resolved");
                    entry.addresses.store(Arc::new(answer.addresses));
                }
                entry.last = Some(Ok(()));
            }
            Err(error) => {
                if !matches!(entry.last, Some(Err(_))) {
                    let kept = entry.addresses.load().len();
                    tracing::warn!(%error, kept, "a look-up failed; addresses of the last good answer are kept");
                }
                entry.last = Some(Err(error));
            }
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

    /// Names that have no address at all, with the reason.
    pub fn unresolved(&self) -> impl Iterator<Item = &ResolveError> {
        self.entries
            .values()
            .filter(|entry| entry.seen.is_empty())
            .filter_map(|entry| entry.last.as_ref()?.as_ref().err())
    }
}

async fn keep_resolved(
    name: HostName,
    resolver: Arc<Resolver>,
    answers: mpsc::UnboundedSender<(HostName, Result<Answer, ResolveError>)>,
) {
    let (mut retry, longest) = RETRY;
    loop {
        let result = resolver.lookup(&name).await;
        let pause = match &result {
            Ok(answer) => {
                retry = RETRY.0;
                answer.valid_for
            }
            Err(_) => {
                let pause = retry;
                retry = (retry * 2).min(longest);
                pause
            }
        };
        if answers.send((name.clone(), result)).is_err() {
            return;
        }
        tokio::time::sleep(pause).await;
    }
}
