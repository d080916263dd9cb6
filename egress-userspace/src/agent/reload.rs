//! The configuration changes.

use std::{
    collections::BTreeSet,
    future, io, mem,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    Agent, ConfigError,
    prepare::{Change, Prepared, in_background, prepare},
};
use crate::{config::Diagnostic, memory, route::RouteTable, watch::Watcher};

/// How many rules, and how many warnings, are in the log of every agent. A hundred thousand lines would be of no use, and take longer than the rules.
const SHOWN: usize = 20;
/// After how long a configuration that has lost a host is read again before it is believed: files that are being replaced one by one
/// are not all there meanwhile, and requests for the host would go on in clear.
pub(super) const CONFIRM: Duration = Duration::from_secs(1);
/// After how long what could not be read is tried again, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const MOST_PAUSE: Duration = Duration::from_secs(60);

/// A change that is being read.
#[derive(Default)]
pub(super) struct Reload {
    under_way: Option<oneshot::Receiver<Result<Prepared, ConfigError>>>,
    /// Whether something has changed since it was begun.
    outdated: bool,
    /// What was read the last time: what has lost a host is believed if it is the same again.
    unconfirmed: Option<u64>,
    /// What could not be read of a change that was refused for it. No event tells when it can be.
    unreadable: Option<Unreadable>,
}

/// What could not be read.
struct Unreadable {
    /// As it was told.
    text: String,
    /// When it is tried again.
    next: Instant,
    /// How long after that once more.
    pause: Duration,
}

impl Reload {
    /// Waits until a change has been read, for ever if there is none.
    pub(super) async fn read(&mut self) -> Result<Prepared, ConfigError> {
        let Some(receiver) = &mut self.under_way else { return future::pending().await };
        let read = receiver.await;
        self.under_way = None;
        read.unwrap_or_else(|_| Err(ConfigError::Unread(io::Error::other("reading it has ended in a panic"))))
    }
}

/// Logs what there is to say about a configuration that can be used.
pub(super) fn report(warnings: &[Diagnostic]) {
    for warning in warnings.iter().take(SHOWN) {
        tracing::warn!(code = warning.code.id(), location = %warning.location, "{warning}");
    }
    if let Some(more) = warnings.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        tracing::warn!("and {more} more; `egress check` shows all");
    }
}

/// Watches the files that a policy names, as well as what is watched already, before they are read: one that changes in between
/// is read again, and one without which the policy is refused may still come.
pub(super) fn watch(watcher: &mut Watcher, files: &BTreeSet<PathBuf>) {
    if let Err(error) = watcher.add(files) {
        tracing::warn!(%error, "cannot watch all of the configuration");
    }
}

impl Agent {
    /// Begins to read a change of the configuration. What changes meanwhile is read afterwards, all at once.
    pub(super) fn begin_reload(&mut self) {
        if self.reload.under_way.is_some() {
            self.reload.outdated = true;
            return;
        }
        self.read_after(Duration::ZERO);
    }

    /// Tries again what could not be read: there may have been too many open files, say.
    pub(super) fn retry_reload(&mut self) {
        let now = Instant::now();
        let due = self.reload.unreadable.as_mut().filter(|unreadable| now >= unreadable.next);
        if let Some(unreadable) = due {
            unreadable.pause = (2 * unreadable.pause).min(MOST_PAUSE);
            unreadable.next = now + unreadable.pause;
            self.begin_reload();
        }
    }

    fn read_after(&mut self, pause: Duration) {
        self.reload.outdated = false;
        let (sources, known, documents) = (self.sources.clone(), self.fingerprint, self.documents.clone());
        let read = move || {
            thread::sleep(pause);
            prepare(&sources, Some(known), &documents)
        };
        match in_background(read) {
            Ok(receiver) => self.reload.under_way = Some(receiver),
            Err(error) => self.refuse(&ConfigError::Unread(error)),
        }
    }

    /// Takes a change of the configuration in that has been read, or says why not.
    pub(super) fn end_reload(&mut self, prepared: Result<Prepared, ConfigError>) {
        if let Err(error) = prepared.and_then(|prepared| self.apply(prepared)) {
            // Whatever was read before is no confirmation of what comes next.
            self.reload.unconfirmed = None;
            self.refuse(&error);
        }
        if self.reload.outdated {
            self.begin_reload();
        }
    }

    fn refuse(&mut self, error: &ConfigError) {
        let text = error.is_of_reading().then(|| error.to_string());
        if text.is_some() && self.reload.unreadable.as_ref().map(|unreadable| &unreadable.text) == text.as_ref() {
            return;
        }
        let pause = FIRST_PAUSE;
        self.reload.unreadable = text.map(|text| Unreadable { text, next: Instant::now() + pause, pause });
        self.metrics.policy_refused.inc();
        self.metrics.configuration_current.set(0);
        for found in error.diagnostics() {
            tracing::error!(code = found.code.id(), location = %found.location, "{found}");
        }
        if let ConfigError::Unread(_) = error {
            tracing::error!("{error}");
        }
        tracing::error!("configuration refused; the last good one stays in force");
    }

    fn apply(&mut self, Prepared { fingerprint, change }: Prepared) -> Result<(), ConfigError> {
        let loses = change.as_ref().is_some_and(|change| !change.policy.covers(&self.policy));
        if self.reload.unconfirmed.replace(fingerprint) != Some(fingerprint) && loses {
            if self.reload.unreadable.is_none() {
                tracing::info!("the configuration has lost a host; it is read again before that is believed");
            }
            self.read_after(CONFIRM);
            return Ok(());
        }
        let current = self.routes.load_full();
        let policy = change.as_ref().map_or(&self.policy, |change| &change.policy);
        // The names in force stay until the new policy is: they carry what is intercepted.
        if let Some(change) = &change {
            self.names.add(&change.names);
            watch(&mut self.watcher, &change.watched);
        }
        let table = match RouteTable::build(policy, &current, &self.names) {
            Ok(table) => table,
            Err(errors) => {
                if change.is_some() {
                    self.names.retain(&RouteTable::names(&self.policy));
                }
                return Err(ConfigError::Tls(errors));
            }
        };
        self.reload.unreadable = None;
        self.metrics.configuration_current.set(1);
        if change.is_none() && table.same_routes(&current) {
            return Ok(());
        }
        // First the routes, then the kernel: a connection is never redirected before there is a route for it.
        let old_routes = self.routes.swap(Arc::new(table));
        let old = change.map(|Change { documents, policy, warnings, names, learned, watched }| {
            report(&warnings);
            self.names.retain(&names);
            self.to_learn = Some(learned);
            self.watcher.retain(watched);
            (mem::replace(&mut self.documents, documents), mem::replace(&mut self.policy, policy))
        });
        self.fingerprint = fingerprint;
        self.existing.expect();
        self.synchronise();
        self.applied();
        // To take a large policy apart takes a while.
        in_background(move || {
            drop((old, old_routes, current));
            memory::release();
        })
        .ok();
        Ok(())
    }

    /// Says what is in force.
    pub(super) fn applied(&mut self) {
        let rules = self.policy.rules().len();
        self.metrics.policy_applied.inc();
        self.metrics.configuration_current.set(1);
        self.metrics.rules.set(rules as i64);
        tracing::info!(rules, "policy applied");
        if rules == 0 {
            tracing::warn!("the configuration has no host with TLS origination: nothing is intercepted");
        }
        let upstreams =
            self.policy.rules().flat_map(|rule| rule.upstreams.iter().map(move |upstream| (rule, upstream)));
        for (index, (rule, upstream)) in upstreams.enumerate() {
            let (to, target_port) = (&upstream.host, upstream.target_port);
            if index < SHOWN {
                tracing::info!(host = %rule.host, port = rule.port, %to, target_port, at = %rule.location, "rule");
            } else {
                tracing::debug!(host = %rule.host, port = rule.port, %to, target_port, at = %rule.location, "rule");
            }
        }
        if rules > SHOWN {
            tracing::info!("these were the first; `--log-level debug` shows all");
        }
    }
}
