//! The configuration at start: read, and found good, before anything is touched.

use std::{path::Path, time::Duration};

use tokio::time;

use super::{
    AgentError, ConfigError,
    error::io_error,
    prepare::{Change, Prepared, prepare, watched},
    reload::{self, CONFIRM, Reload},
};
use crate::{
    config::{Documents, Source},
    kernel::NameRules,
    policy::Policy,
    resolve::{Names, Resolver},
    route::{Originators, RouteTable},
    watch::Watcher,
};

/// A configuration that can be used.
pub struct Configuration {
    pub(super) sources: Vec<Source>,
    pub(super) watcher: Watcher,
    pub(super) reload: Reload,
    pub(super) fingerprint: u64,
    pub(super) change: Change,
    pub(super) names: Names,
    pub(super) table: RouteTable,
}

impl Configuration {
    /// Reads it, and watches it from then on. The last good answer for a name will be used for `dns_max_stale` after its TTL
    /// while no name server answers. If it lacks a host of an agent with pins in `pins` it is read again before it is believed, as
    /// when it changes.
    ///
    /// # Errors
    /// It is bad, or cannot be watched; or the resolver's is bad.
    pub async fn read(sources: Vec<Source>, dns_max_stale: Duration, pins: Option<&Path>) -> Result<Self, AgentError> {
        // Watched before it is read: a change in between is then seen.
        let watcher =
            Watcher::new(watched(&sources, &Policy::default())).map_err(io_error("cannot watch the configuration"))?;
        let (fingerprint, change) = confirmed(&sources, pins).await?;
        reload::report(&change.warnings);
        let mut reload = Reload::default();
        reload.note_watched(watcher.watched().add(&change.watched));
        let originators = Originators::make(&change.policy, &RouteTable::default()).map_err(ConfigError::Tls)?;
        let resolver = Resolver::from_system().map_err(|error| AgentError::Resolver(error.to_string()))?;
        let mut names = Names::new(resolver, dns_max_stale);
        names.add(&change.names);
        let table = RouteTable::build(&change.policy, originators, &RouteTable::default(), &names);
        Ok(Self { sources, watcher, reload, fingerprint, change, names, table })
    }
}

/// Gives what the sources say, and its fingerprint.
async fn confirmed(sources: &[Source], pins: Option<&Path>) -> Result<(u64, Change), AgentError> {
    let Prepared { mut fingerprint, change } = prepare(sources, None, &Documents::default())?;
    let mut change = change.unwrap_or_default();
    // What cannot be read will be in the way of the start, and is told of then.
    let in_force = pins.and_then(|pins| NameRules::pinned(pins).ok()).unwrap_or_default();
    while !change.learned.covers(&in_force) {
        tracing::info!(
            "the configuration lacks a host of the agent before this one; it is read again before that is believed"
        );
        time::sleep(CONFIRM).await;
        let again = prepare(sources, Some(fingerprint), &change.documents)?;
        let Some(changed) = again.change else { break };
        (fingerprint, change) = (again.fingerprint, changed);
    }
    Ok((fingerprint, change))
}
