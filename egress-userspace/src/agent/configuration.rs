//! The configuration at start: read, and found good, before anything is touched.

use std::time::Duration;

use super::{
    AgentError, ConfigError,
    error::io_error,
    prepare::{Change, prepare, watched},
    reload,
};
use crate::{
    config::{Documents, Source},
    policy::Policy,
    resolve::{Names, Resolver},
    route::RouteTable,
    watch::Watcher,
};

/// A configuration that can be used.
pub struct Configuration {
    pub(super) sources: Vec<Source>,
    pub(super) watcher: Watcher,
    pub(super) fingerprint: u64,
    pub(super) change: Change,
    pub(super) names: Names,
    pub(super) table: RouteTable,
}

impl Configuration {
    /// Reads it, and watches it from then on. The last good answer for a name will be used for `dns_max_stale` after its TTL
    /// while no name server answers.
    ///
    /// # Errors
    /// It is bad, or cannot be watched; or the resolver's is bad.
    pub fn read(sources: Vec<Source>, dns_max_stale: Duration) -> Result<Self, AgentError> {
        // Watched before it is read: a change in between is then seen.
        let mut watcher =
            Watcher::new(watched(&sources, &Policy::default())).map_err(io_error("cannot watch the configuration"))?;
        let prepared = prepare(&sources, None, &Documents::default())?;
        let change = prepared.change.unwrap_or_default();
        reload::report(&change.warnings);
        reload::watch(&mut watcher, &change.watched);
        let resolver = Resolver::from_system().map_err(|error| AgentError::Resolver(error.to_string()))?;
        let mut names = Names::new(resolver, dns_max_stale);
        names.add(&change.names);
        let table = RouteTable::build(&change.policy, &RouteTable::default(), &names).map_err(ConfigError::Tls)?;
        Ok(Self { sources, watcher, fingerprint: prepared.fingerprint, change, names, table })
    }
}
