//! The node's name servers, asked one after the other, as glibc asks them: what the first one says counts, and be it that there
//! is nothing. Another one may know other names.

use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_resolver::{
    Resolver,
    config::{NameServerConfig, ResolveHosts, ResolverConfig},
    lookup::Lookup,
    net::{DnsError, NetError},
    proto::rr::{Name, RecordType},
};

use super::{files::Settings, marked::MarkedProvider};

/// The name servers of resolv.conf.
pub(super) struct Servers {
    /// A resolver for each of them: one for all takes the first answer of those that it asks together, and where it asks one at
    /// a time, gives up with the first that is silent.
    each: Vec<Resolver<MarkedProvider>>,
    /// How often each is asked at most.
    attempts: usize,
    /// Whether they are asked first in turn.
    rotate: bool,
    turn: AtomicUsize,
}

impl Servers {
    /// # Errors
    /// There is no resolver that does what the settings say.
    pub(super) fn new(settings: Settings, provider: &MarkedProvider) -> Result<Self, NetError> {
        let Settings { config, mut options, rotate } = settings;
        let attempts = options.attempts.max(1);
        options.use_hosts_file = ResolveHosts::Never;
        // How often it asks again.
        options.attempts = 0;
        let alone = |server: &NameServerConfig| {
            let (domain, search) = (config.domain().cloned(), config.search().to_vec());
            let config = ResolverConfig::from_parts(domain, search, vec![server.clone()]);
            Resolver::builder_with_config(config, provider.clone()).with_options(options.clone()).build()
        };
        let each = config.name_servers().iter().map(alone).collect::<Result<_, _>>()?;
        Ok(Self { each, attempts, rotate, turn: AtomicUsize::new(0) })
    }

    /// Asks one after the other until one answers, and be it that there is nothing.
    ///
    /// # Errors
    /// It says that there is nothing; or none answers, and why the first one does not.
    pub(super) async fn ask(&self, name: &Name, kind: RecordType) -> Result<Lookup, NetError> {
        let first = if self.rotate { self.turn.fetch_add(1, Ordering::Relaxed) % self.each.len().max(1) } else { 0 };
        let mut failure = None;
        for server in self.each.iter().cycle().skip(first).take(self.each.len() * self.attempts) {
            match server.lookup(name.clone(), kind).await {
                Err(error) if !matches!(error, NetError::Dns(DnsError::NoRecordsFound(_))) => {
                    failure.get_or_insert(error);
                }
                answer => return answer,
            }
        }
        Err(failure.unwrap_or(NetError::NoConnections))
    }
}
