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
    config::{ResolveHosts, ResolverConfig},
    lookup::Lookup,
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::Query,
        rr::{Name, RecordType},
    },
};
use tokio::sync::watch;

pub use self::names::{Addresses, Names};
use crate::policy::HostName;

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Longest time between two look-ups of a name, for the sake of answers without a useful TTL (the hosts file's).
const MAX_TTL: Duration = Duration::from_secs(60);
/// Time between two look-ups of a name that has no addresses.
const NEGATIVE_TTL: Duration = Duration::from_secs(10);
/// Shortest time between two look-ups of a name: a TTL of 0 must not become a flood.
const MIN_TTL: Duration = Duration::from_secs(1);

/// Why a name has no addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot resolve {name}: {reason}")]
pub struct ResolveError {
    /// The name.
    pub name: HostName,
    /// What the resolver says.
    pub reason: String,
    /// Whether the servers said that there is nothing, rather than nothing.
    pub authoritative: bool,
}

/// What a look-up gave, for each family by itself: one may be answered while the other's query is lost.
#[derive(Clone, Debug)]
pub struct Answer {
    /// IPv4 addresses in the order of the answer; none if there are none.
    pub v4: Result<Vec<IpAddr>, String>,
    /// IPv6 addresses likewise.
    pub v6: Result<Vec<IpAddr>, String>,
    /// When to ask again.
    pub valid_for: Duration,
}

/// The node's resolver. It reads its files anew when they change.
pub struct Resolver {
    current: ArcSwap<Loaded>,
    changed: watch::Sender<()>,
}

struct Loaded {
    resolver: TokioResolver,
    hosts: Hosts,
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
        Ok(Self { current: ArcSwap::from_pointee(load()?), changed: watch::Sender::new(()) })
    }

    /// Reads the files anew if they have changed.
    pub fn refresh(&self) {
        if stamp() == self.current.load().stamp {
            return;
        }
        match load() {
            Ok(loaded) => {
                self.current.store(Arc::new(loaded));
                self.changed.send_replace(());
            }
            Err(error) => tracing::warn!(%error, "cannot read {HOSTS} or {RESOLV_CONF}; the last good ones stay"),
        }
    }

    /// Tells when the files have been read anew: every earlier answer may be wrong then.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// All addresses of `name`. What the hosts file lists is not asked for, as with nsswitch's `files dns`.
    pub async fn lookup(&self, name: &HostName) -> Answer {
        self.refresh();
        let query = match Name::from_ascii(name.as_str()) {
            Ok(mut query) => {
                // A name without a dot is looked for in the search domains.
                query.set_fqdn(name.as_str().contains('.'));
                query
            }
            Err(error) => {
                let error = error.to_string();
                return Answer { v4: Err(error.clone()), v6: Err(error), valid_for: MAX_TTL };
            }
        };
        let current = self.current.load_full();
        let listed = |kind| current.hosts.lookup_static_host(&Query::query(query.clone(), kind));
        let (v4, v6) = match (listed(RecordType::A), listed(RecordType::AAAA)) {
            (None, None) => tokio::join!(
                ask(&current.resolver, &query, RecordType::A),
                ask(&current.resolver, &query, RecordType::AAAA)
            ),
            (v4, v6) => (Ok(v4), Ok(v6)),
        };
        let now = Instant::now();
        let valid_for = [&v4, &v6]
            .into_iter()
            .filter_map(|answer| answer.as_ref().ok()?.as_ref())
            .map(|lookup| lookup.valid_until().saturating_duration_since(now))
            .min()
            .unwrap_or(NEGATIVE_TTL)
            .clamp(MIN_TTL, MAX_TTL);
        Answer {
            v4: v4.map(|lookup| addresses(lookup.as_ref())),
            v6: v6.map(|lookup| addresses(lookup.as_ref())),
            valid_for,
        }
    }
}

/// The answer to one query; None if the servers say that there is nothing.
async fn ask(resolver: &TokioResolver, name: &Name, kind: RecordType) -> Result<Option<Lookup>, String> {
    match resolver.lookup(name.clone(), kind).await {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.is_no_records_found() => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

fn addresses(answer: Option<&Lookup>) -> Vec<IpAddr> {
    let records = answer.into_iter().flat_map(Lookup::answers).filter_map(|record| record.data.ip_addr());
    let mut addresses = Vec::new();
    for address in records.map(|address| address.to_canonical()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
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
    builder.options_mut().use_hosts_file = ResolveHosts::Never;
    let resolver = builder.build()?;
    let mut hosts = Hosts::default();
    match fs::File::open(HOSTS) {
        Ok(file) => hosts.read_hosts_conf(BufReader::new(file))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    Ok(Loaded { resolver, hosts, stamp })
}

fn stamp() -> Stamp {
    [HOSTS, RESOLV_CONF].map(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok())
}
