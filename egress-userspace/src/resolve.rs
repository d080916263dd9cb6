//! Names to addresses, as the node resolves them: the hosts file first, then the servers of resolv.conf.

mod names;

use std::{
    fs,
    io::{self, BufReader},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use hickory_resolver::{
    Hosts, TokioResolver,
    config::{LookupIpStrategy, ResolveHosts, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::Name,
};

pub use self::names::{Addresses, Names};
use crate::policy::HostName;

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Longest time between two look-ups of a name, for the sake of answers without a useful TTL (the hosts file's).
const MAX_TTL: Duration = Duration::from_secs(60);
/// Shortest time between two look-ups of a name: a TTL of 0 must not become a flood.
const MIN_TTL: Duration = Duration::from_secs(1);

/// Why a name has no addresses.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot resolve {name}: {reason}")]
pub struct ResolveError {
    /// The name.
    pub name: HostName,
    /// What the resolver says.
    pub reason: Arc<NetError>,
    /// Whether the servers did not answer in time.
    pub timed_out: bool,
}

/// What a look-up gave.
#[derive(Clone, Debug)]
pub struct Answer {
    /// All addresses of both families, in the order of the answer.
    pub addresses: Vec<IpAddr>,
    /// When to ask again.
    pub valid_for: Duration,
}

/// The node's resolver. It reads its files anew when they change.
pub struct Resolver {
    current: ArcSwap<Loaded>,
}

struct Loaded {
    resolver: TokioResolver,
    stamp: Stamp,
}

/// Tells whether the resolver's files have changed.
type Stamp = [Option<SystemTime>; 2];

impl Resolver {
    /// A resolver by the system's files. Where resolv.conf names no server, only the hosts file answers.
    ///
    /// # Errors
    /// A file cannot be read, or is malformed.
    pub fn from_system() -> Result<Self, NetError> {
        Ok(Self { current: ArcSwap::from_pointee(load()?) })
    }

    /// All addresses of `name`.
    ///
    /// # Errors
    /// The name does not exist, has no address, or no server answers.
    pub async fn lookup(&self, name: &HostName) -> Result<Answer, ResolveError> {
        let failed = |reason: NetError| ResolveError {
            name: name.clone(),
            timed_out: matches!(reason, NetError::Timeout),
            reason: Arc::new(reason),
        };
        if stamp() != self.current.load().stamp {
            match load() {
                Ok(loaded) => self.current.store(Arc::new(loaded)),
                Err(error) => tracing::warn!(%error, "cannot read {HOSTS} or {RESOLV_CONF}; the last good ones stay"),
            }
        }
        let mut absolute = Name::from_ascii(name.as_ref()).map_err(|error| failed(error.into()))?;
        absolute.set_fqdn(true);
        let answer = self.current.load_full().resolver.lookup_ip(absolute).await.map_err(failed)?;
        let mut addresses = Vec::new();
        for address in answer.iter().map(|address| address.to_canonical()) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        let valid_for = answer.valid_until().saturating_duration_since(Instant::now()).clamp(MIN_TTL, MAX_TTL);
        Ok(Answer { addresses, valid_for })
    }
}

fn load() -> Result<Loaded, NetError> {
    // Taken first: a change in between is then seen the next time.
    let stamp = stamp();
    let mut builder = match TokioResolver::builder_tokio() {
        Ok(builder) => builder,
        Err(error) => {
            tracing::warn!(%error, "{RESOLV_CONF} names no usable server; only {HOSTS} answers");
            TokioResolver::builder_with_config(ResolverConfig::default(), TokioRuntimeProvider::default())
        }
    };
    let options = builder.options_mut();
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.use_hosts_file = ResolveHosts::Never;
    let mut resolver = builder.build()?;
    let mut hosts = Hosts::default();
    match fs::File::open(HOSTS) {
        Ok(file) => hosts.read_hosts_conf(BufReader::new(file))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    resolver.set_hosts(Arc::new(hosts));
    Ok(Loaded { resolver, stamp })
}

fn stamp() -> Stamp {
    [HOSTS, RESOLV_CONF].map(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok())
}
