//! The configuration at start: read, and found good, before anything is touched.

use std::{io, path::Path, thread, time::Duration};

use tokio::{sync::oneshot, time};

use super::{
    AgentError, ConfigError,
    error::io_error,
    prepare::{Change, beside, place, prepare, watched},
    reload::{self, CONFIRM, Reload},
};
use crate::{
    again::{FIRST_PAUSE, MOST_PAUSE},
    config::{Documents, Progress, Source},
    kernel::NameRules,
    policy::Policy,
    resolve::{Names, Resolver},
    route::{Originators, RouteTable},
    watch::{Watched, Watcher},
};

/// A configuration that can be used.
pub struct Configuration {
    pub(super) sources: Vec<Source>,
    pub(super) watcher: Watcher,
    pub(super) reload: Reload,
    pub(super) change: Change,
    pub(super) names: Names,
    pub(super) table: RouteTable,
}

/// What was read of one.
struct First {
    sources: Vec<Source>,
    change: Change,
    originators: Originators,
    /// Whether all that the policy names is watched.
    watched: io::Result<()>,
    resolver: Resolver,
}

impl Configuration {
    /// Reads it, and watches it from then on. The last good answer for a name will be used for `dns_max_stale` after its TTL
    /// while no name server answers. If it lacks a host of an agent with pins in `pins` it is read again before it is believed, as
    /// when it changes. What it waits for if that takes long is in the log. If the future is dropped, a file that cannot be read
    /// holds up nothing but a thread.
    ///
    /// # Errors
    /// It is bad, or cannot be watched; or the resolver's is bad.
    pub async fn read(sources: Vec<Source>, dns_max_stale: Duration, pins: Option<&Path>) -> Result<Self, AgentError> {
        let watcher = Watcher::new().map_err(io_error("cannot watch the configuration"))?;
        let (watched, pins, progress) = (watcher.watched().clone(), pins.map(Path::to_owned), Progress::default());
        let reads = progress.clone();
        let reading =
            beside(move || First::read(sources, &watched, pins.as_deref(), &reads)).map_err(ConfigError::Unread)?;
        let First { sources, change, originators, watched, resolver } = awaited(reading, &progress).await?;
        let mut reload = Reload::default();
        reload.note_watched(watched);
        let mut names = Names::new(resolver, dns_max_stale);
        names.add(&change.names);
        let table = RouteTable::build(&change.policy, originators, &RouteTable::default(), &names);
        Ok(Self { sources, watcher, reload, change, names, table })
    }
}

/// Waits for what is being read, and says what that waits for, now and then.
async fn awaited(
    mut reading: oneshot::Receiver<Result<First, AgentError>>,
    progress: &Progress,
) -> Result<First, AgentError> {
    let mut pause = FIRST_PAUSE;
    loop {
        tokio::select! {
            read = &mut reading => return read.unwrap_or_else(|_| Err(ConfigError::panicked().into())),
            () = time::sleep(pause) => tracing::warn!(
                path = place(progress),
                "the configuration, a file that it names, or one of the resolver takes long to read, as where a mount hangs; the start waits \
                 for it"
            ),
        }
        pause = (2 * pause).min(MOST_PAUSE);
    }
}

impl First {
    fn read(
        sources: Vec<Source>,
        watches: &Watched,
        pins: Option<&Path>,
        progress: &Progress,
    ) -> Result<Self, AgentError> {
        // Watched before it is read: a change in between is then seen.
        watches
            .add(&watched(&sources, &Policy::default()), progress)
            .map_err(io_error("cannot watch the configuration"))?;
        let change = confirmed(&sources, pins, progress)?;
        reload::report(&change.warnings);
        let watched = watches.add(&change.watched, progress);
        let originators =
            Originators::make(&change.policy, &RouteTable::default(), progress).map_err(ConfigError::Tls)?;
        let resolver =
            Resolver::from_system(progress.clone()).map_err(|error| AgentError::Resolver(error.to_string()))?;
        Ok(Self { sources, change, originators, watched, resolver })
    }
}

/// Gives what the sources say.
fn confirmed(sources: &[Source], pins: Option<&Path>, progress: &Progress) -> Result<Change, AgentError> {
    let mut change = prepare(sources, None, &Documents::default(), progress).change?.unwrap_or_default();
    // What cannot be read will be in the way of the start, and is told of then.
    let in_force = pins.and_then(|pins| NameRules::pinned(pins).ok()).unwrap_or_default();
    while !change.learned.covers(&in_force) {
        tracing::info!(
            "the configuration lacks a host of the agent before this one; it is read again before that is believed"
        );
        thread::sleep(CONFIRM);
        let again = prepare(sources, Some(change.fingerprint), &change.documents, progress);
        let Some(changed) = again.change? else { break };
        change = changed;
    }
    Ok(change)
}
