//! The configuration changes.

use std::{
    future, io, mem,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::{
    Agent, ConfigError,
    prepare::{Change, Complete, InForce, Reading, in_background, place, read},
    under_way::UnderWay,
};
use crate::{
    again::Again,
    config::{Diagnostic, Progress},
    memory,
    route::{Originators, RouteTable},
};

/// How many rules, and how many warnings, are in the log of every agent. A hundred thousand lines would be of no use, and take longer than the rules.
const SHOWN: usize = 20;
/// After how long a configuration that has lost a host is read again before it is believed: files that are being replaced one by one
/// are not all there meanwhile, and requests for the host would go on in clear.
pub(super) const CONFIRM: Duration = Duration::from_secs(1);
/// A change that is being read.
#[derive(Default)]
pub(super) struct Reload {
    under_way: Option<UnderWay<Reading>>,
    /// Whether something has changed since it was begun.
    outdated: bool,
    /// What was read the last time: what has lost a host is believed if it is the same again.
    unconfirmed: Option<u64>,
    /// What could not be read of the change with this fingerprint, which was refused for it. No event tells when it can be.
    unreadable: Option<(Option<u64>, Again)>,
    /// What could not be watched.
    unwatched: Option<Again>,
}

impl Reload {
    /// Waits until a change has been read, for ever if there is none.
    pub(super) async fn read(&mut self) -> Reading {
        let Some(under_way) = &mut self.under_way else { return future::pending().await };
        let read = (&mut under_way.reading).await;
        self.under_way = None;
        read.map_err(|_| ConfigError::panicked()).unwrap_or_else(|error| Reading {
            fingerprint: None,
            complete: Err(error),
            renewed: None,
            watched: Ok(()),
        })
    }

    /// Notes whether all of the configuration is watched, and warns once if it is not.
    pub(super) fn note_watched(&mut self, watched: io::Result<()>) {
        let Err(error) = watched else { return self.unwatched = None };
        let text = error.to_string();
        if self.unwatched.as_ref().is_none_or(|unwatched| unwatched.text != text) {
            tracing::warn!(error = text, "cannot watch all of the configuration; it is read now and then instead");
            self.unwatched = Some(Again::new(text));
        }
    }

    /// Whether there is something to try again.
    fn is_due(&mut self, now: Instant) -> bool {
        let unreadable = self.unreadable.as_mut().map(|(_, again)| again);
        let due = [unreadable, self.unwatched.as_mut()].map(|again| again.is_some_and(|it| it.is_due(now)));
        due.contains(&true)
    }

    /// Notes why a change is refused, and whether it is to be tried again. Says whether that has to be told: of one that was tried
    /// again in vain it has been.
    fn note_refused(&mut self, fingerprint: Option<u64>, error: &ConfigError) -> bool {
        let text = error.is_of_reading().then(|| error.to_string());
        let known = self.unreadable.as_ref().map(|(of, again)| (*of, &again.text));
        if known.is_some() && known == text.as_ref().map(|text| (fingerprint, text)) {
            return false;
        }
        self.unreadable = text.map(|text| (fingerprint, Again::new(text)));
        true
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

impl Agent {
    /// Begins to read a change of the configuration. What changes meanwhile is read afterwards, all at once.
    pub(super) fn begin_reload(&mut self) {
        if self.reload.under_way.is_some() {
            self.reload.outdated = true;
            return;
        }
        self.read_after(Duration::ZERO);
    }

    /// Tries again what could not be read, or watched: there may have been too many open files, say. And says so if what is being read
    /// takes long.
    pub(super) fn retry_reload(&mut self) {
        let now = Instant::now();
        if self.reload.is_due(now) {
            self.begin_reload();
        }
        let under_way = self.reload.under_way.as_mut();
        if let Some(progress) = under_way.and_then(|under_way| under_way.has_come_to_take_long(now)) {
            self.metrics.configuration_current.set(0);
            tracing::warn!(
                path = place(progress),
                "a change of the configuration, or of a file that it names, takes long to read, as where a mount hangs; what is in \
                 force stays"
            );
        }
    }

    fn read_after(&mut self, pause: Duration) {
        self.reload.outdated = false;
        let (sources, watched) = (self.sources.clone(), self.watcher.watched().clone());
        let in_force = InForce {
            fingerprint: self.fingerprint,
            documents: self.documents.clone(),
            policy: self.policy.clone(),
            routes: self.routes.load_full(),
        };
        let progress = Progress::default();
        let reads = progress.clone();
        let read = move || {
            thread::sleep(pause);
            read(&sources, &watched, &in_force, &reads)
        };
        match in_background(read) {
            Ok(reading) => {
                self.reload.under_way = Some(UnderWay::new(reading, progress));
            }
            Err(error) => self.refuse(None, &ConfigError::Unread(error)),
        }
    }

    /// Takes a change of the configuration in that has been read, or says why not.
    pub(super) fn end_reload(&mut self, Reading { fingerprint, complete, renewed, watched }: Reading) {
        self.reload.note_watched(watched);
        if let Some(renewed) = renewed {
            self.put_in_force(None, renewed);
        }
        if let Err(error) = complete.and_then(|complete| self.apply(complete)) {
            // Whatever was read before is no confirmation of what comes next.
            self.reload.unconfirmed = None;
            self.refuse(fingerprint, &error);
        }
        if self.reload.outdated {
            self.begin_reload();
        }
    }

    fn refuse(&mut self, fingerprint: Option<u64>, error: &ConfigError) {
        self.metrics.configuration_current.set(0);
        if !self.reload.note_refused(fingerprint, error) {
            return;
        }
        for found in error.diagnostics() {
            tracing::error!(code = found.code.id(), location = %found.location, "{found}");
        }
        if let ConfigError::Unread(_) = error {
            tracing::error!("{error}");
        }
        if let ConfigError::Kept(_) = error {
            tracing::error!("what was in these files before stays in use; all else is in force");
            return;
        }
        self.metrics.policy_refused.inc();
        tracing::error!("configuration refused; the last good one stays in force");
    }

    fn apply(&mut self, Complete { change, mut originators }: Complete) -> Result<(), ConfigError> {
        let read = change.as_ref().map(|change| change.fingerprint);
        let loses = change.as_ref().is_some_and(|change| !change.policy.covers(&self.policy));
        if mem::replace(&mut self.reload.unconfirmed, read) != read && loses {
            if self.reload.unreadable.is_none() {
                tracing::info!("the configuration has lost a host; it is read again before that is believed");
            }
            self.read_after(CONFIRM);
            return Ok(());
        }
        let kept = mem::take(&mut originators.kept);
        if kept.is_empty() {
            self.reload.unreadable = None;
            self.metrics.configuration_current.set(1);
        }
        self.put_in_force(change, originators);
        if kept.is_empty() { Ok(()) } else { Err(ConfigError::Kept(kept)) }
    }

    fn put_in_force(&mut self, change: Option<Change>, originators: Originators) {
        let current = self.routes.load_full();
        let policy = change.as_ref().map_or(&self.policy, |change| &change.policy);
        // The names in force stay until the new policy is: they carry what is intercepted.
        if let Some(change) = &change {
            self.names.add(&change.names);
        }
        let table = RouteTable::build(policy, originators, &current, &self.names);
        if change.is_none() && table.same_routes(&current) {
            return;
        }
        // First the routes, then the kernel: a connection is never redirected before there is a route for it.
        let old_routes = self.routes.swap(Arc::new(table));
        let old = change.map(|Change { fingerprint, documents, policy, warnings, names, learned, watched }| {
            self.fingerprint = fingerprint;
            report(&warnings);
            self.names.retain(&names);
            self.to_learn = Some(learned);
            self.watcher.watched().retain(watched);
            (mem::replace(&mut self.documents, documents), mem::replace(&mut self.policy, policy))
        });
        self.existing.expect();
        self.synchronise();
        self.applied();
        // To take a large policy apart takes a while.
        in_background(move || {
            drop((old, old_routes, current));
            memory::release();
        })
        .ok();
    }

    /// Says what is in force.
    pub(super) fn applied(&mut self) {
        let rules = self.policy.rules().len();
        self.metrics.policy_applied.inc();
        self.metrics.configuration_current.set(1);
        self.metrics.rules.set(rules as i64);
        self.metrics.exceptions.set(self.policy.exceptions().len() as i64);
        let times = self.routes.load().times();
        self.metrics.expirations(&times);
        self.certificates.set(times);
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
        let exceptions = self.policy.exceptions();
        for (index, exception) in exceptions.iter().enumerate() {
            let (host, port, at) = (&exception.host, exception.port, &exception.location);
            if index < SHOWN {
                tracing::info!(%host, port, %at, "left in clear, though a wildcard with TLS has it");
            } else {
                tracing::debug!(%host, port, %at, "left in clear, though a wildcard with TLS has it");
            }
        }
        if rules.max(exceptions.len()) > SHOWN {
            tracing::info!("these were the first; `--log-level debug` shows all");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::again::MOST_PAUSE;

    /// There may be as many watches as the system allows, and no event tells when there are fewer.
    #[test]
    fn what_cannot_be_watched_is_tried_again_until_it_is() {
        let (mut reload, failed) = (Reload::default(), || Err(io::Error::from_raw_os_error(libc::ENOSPC)));
        let mut now = Instant::now();
        assert!(!reload.is_due(now + MOST_PAUSE));
        reload.note_watched(failed());
        for pause in [5, 10, 20, 40, 60, 60].map(Duration::from_secs) {
            assert!(!reload.is_due(now + pause - Duration::from_secs(1)), "before {pause:?}");
            now += pause + Duration::from_millis(100);
            assert!(reload.is_due(now), "after {pause:?}");
            reload.note_watched(failed());
        }
        reload.note_watched(Ok(()));
        assert!(!reload.is_due(now + 2 * MOST_PAUSE));
    }

    /// Where two changes are refused for one file, whoever makes the second is to see why, too.
    #[test]
    fn what_is_tried_again_in_vain_is_told_once_for_each_change() {
        let unread = |what: &str| ConfigError::Unread(io::Error::other(what.to_owned()));
        let mut reload = Reload::default();
        for (fingerprint, what, is_news) in
            [(1, "a", true), (1, "a", false), (2, "a", true), (2, "a", false), (2, "b", true), (1, "b", true)]
        {
            assert_eq!(reload.note_refused(Some(fingerprint), &unread(what)), is_news, "{fingerprint}, {what}");
        }
        // What is wrong with a change itself is told whenever it is read.
        for _ in 0..2 {
            assert!(reload.note_refused(Some(1), &ConfigError::Tls(Vec::new())));
        }
    }
}
