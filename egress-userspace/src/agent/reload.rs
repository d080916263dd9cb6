//! The configuration changes.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Agent, ConfigError};
use crate::{
    config::{self, Source},
    policy::Policy,
    route::RouteTable,
};

impl Agent {
    /// Takes a change of the configuration in, or says why not.
    pub(super) fn reload(&mut self) {
        match self.try_reload() {
            Ok(false) => {}
            Ok(true) => self.applied(),
            Err(error) => {
                self.metrics.policy_refused.inc();
                for line in error.to_string().lines() {
                    tracing::error!("{line}");
                }
                tracing::error!("configuration refused; the last good one stays in force");
            }
        }
    }

    /// Says whether anything changed.
    fn try_reload(&mut self) -> Result<bool, ConfigError> {
        let documents = config::load(&self.sources)?;
        let (policy, warnings) = Policy::compile(&documents)?;
        let (wanted, needed) = (RouteTable::names(&policy), RouteTable::names(&self.policy));
        let current = self.routes.load_full();
        // The names in force stay until the new policy is: they carry what is intercepted.
        self.names.set(&wanted.union(&needed).cloned().collect());
        let built = RouteTable::build(&policy, &current, &self.names).map_err(ConfigError::Tls);
        self.names.set(if built.is_ok() { &wanted } else { &needed });
        let table = built?;
        if documents == self.documents && table.same_routes(&current) {
            return Ok(false);
        }
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        self.documents = documents;
        // First the routes, then the kernel: a connection is never redirected before there is a route for it.
        self.routes.store(Arc::new(table));
        self.policy = policy;
        self.existing.expect();
        self.synchronise();
        Ok(true)
    }

    /// Says what is in force, and watches what could change it.
    pub(super) fn applied(&mut self) {
        if let Err(error) = self.watcher.set(watched(&self.sources, &self.policy)) {
            tracing::warn!(%error, "cannot watch all of the configuration");
        }
        let rules = self.policy.rules().len();
        self.metrics.policy_applied.inc();
        self.metrics.rules.set(rules as i64);
        tracing::info!(rules, "policy applied");
        for rule in self.policy.rules() {
            for upstream in &rule.upstreams {
                let (to, target_port) = (&upstream.host, upstream.target_port);
                tracing::info!(host = %rule.host, port = rule.port, %to, target_port, at = %rule.location, "rule");
            }
        }
    }
}

/// What a change of which can change the policy: its sources, and the files that it names.
pub(super) fn watched(sources: &[Source], policy: &Policy) -> Vec<PathBuf> {
    let sources = sources.iter().filter_map(|source| match source {
        Source::Path(path) => Some(path.as_path()),
        Source::Host(_) => None,
    });
    let files = policy.rules().flat_map(|rule| &rule.upstreams).flat_map(|upstream| upstream.files());
    sources.chain(files).map(Path::to_owned).collect()
}
