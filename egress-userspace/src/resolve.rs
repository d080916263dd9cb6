//! Names to addresses, as the node resolves them: the hosts file first, then the servers of resolv.conf.

mod files;
mod known;
mod marked;
mod names;
mod search;
mod servers;
mod silence;

use std::{
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use hickory_resolver::{
    Hosts,
    lookup::Lookup,
    net::{DnsError, NetError},
    proto::{
        op::Query,
        rr::{Name, RecordType},
    },
};
use tokio::sync::watch;

pub use self::{
    files::ResolverError,
    known::{Addresses, Known},
    names::{MAX_STALE, Names},
};
use self::{
    files::{Files, Stamp},
    marked::{MarkedProvider, Marker},
    servers::Servers,
};
use crate::{config::Progress, kernel::OwnSockets, policy::HostName};

/// Time between two look-ups of a name that the hosts file lists. A change of the file is noticed anyway.
const HOSTS_TTL: Duration = Duration::from_secs(60);
/// Longest time between two look-ups of a name, whatever its TTL.
const MAX_TTL: Duration = Duration::from_secs(3600);
/// Shortest and longest time between two look-ups of a name that has no addresses.
const NEGATIVE_TTL: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));
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
    /// Whether it is the hosts file's, rather than a name server's.
    pub listed: bool,
}

impl Answer {
    /// None, for both families for the same reason.
    fn failed(reason: &str) -> Self {
        Self { v4: Err(reason.to_owned()), v6: Err(reason.to_owned()), valid_for: HOSTS_TTL, listed: false }
    }
}

/// What there is of one family.
struct Found {
    addresses: Vec<IpAddr>,
    valid_for: Duration,
}

/// The node's resolver. Whoever has the time for it has it read its files anew when they have changed.
pub struct Resolver {
    files: Files,
    current: ArcSwap<Loaded>,
    read: Mutex<Read>,
    changed: watch::Sender<()>,
    marker: Marker,
}

/// How the files were last read.
struct Read {
    stamp: Stamp,
    /// Whether they could not be.
    in_vain: bool,
}

struct Loaded {
    servers: Servers,
    hosts: Hosts,
}

impl Resolver {
    /// A resolver by the system's files, of which `progress` says which one is being read. Where resolv.conf names no server, only the
    /// hosts file answers.
    ///
    /// # Errors
    /// A file cannot be read, or is malformed.
    pub fn from_system(progress: Progress) -> Result<Self, ResolverError> {
        Self::by(Files::within(Path::new("/etc"), progress))
    }

    fn by(files: Files) -> Result<Self, ResolverError> {
        let marker = Marker::default();
        // Taken first: a change in between is then seen the next time.
        let read = Mutex::new(Read { stamp: files.stamp(), in_vain: false });
        let current = ArcSwap::from_pointee(load(&files, &marker)?);
        Ok(Self { files, current, read, changed: watch::Sender::new(()), marker })
    }

    /// Has the sockets by which it asks marked as ours from now on.
    pub fn mark_sockets(&self, own: OwnSockets) {
        self.marker.mark_by(own);
    }

    /// Says which of the files is being read.
    pub fn progress(&self) -> &Progress {
        self.files.progress()
    }

    /// Reads the files anew if they have changed, or could not be read the last time. For that no change may come to tell: there
    /// were too many open files, say. It warns once of each change. It takes as long as their file system likes, and look-ups go on
    /// meanwhile by what they said before.
    pub fn refresh(&self) {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = self.files.stamp();
        let is_changed = read.stamp != stamp;
        if !is_changed && !read.in_vain {
            return;
        }
        let loaded = load(&self.files, &self.marker);
        *read = Read { stamp, in_vain: loaded.is_err() };
        match loaded {
            Ok(loaded) => {
                self.current.store(Arc::new(loaded));
                self.changed.send_replace(());
            }
            Err(error) if is_changed => {
                tracing::warn!(%error, "cannot use the resolver's files as they are now; what they said stays");
            }
            Err(_) => {}
        }
    }

    /// Tells when the files have been read anew: every earlier answer may be wrong then.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// All addresses of `name`. What the hosts file lists is not asked for, as with nsswitch's `files dns`.
    pub async fn lookup(&self, name: &HostName) -> Answer {
        let query = match Name::from_ascii(name.as_str()) {
            Ok(mut query) => {
                // A name without a dot is looked for in the search domains.
                query.set_fqdn(name.as_str().contains('.'));
                query
            }
            Err(error) => return Answer::failed(&error.to_string()),
        };
        let current = self.current.load_full();
        let listed = |kind| current.hosts.lookup_static_host(&Query::query(query.clone(), kind));
        let entries = [listed(RecordType::A), listed(RecordType::AAAA)];
        let listed = entries.iter().any(Option::is_some);
        let (v4, v6) = if listed {
            entries.map(|entry| Ok(Found::listed(entry.as_ref()))).into()
        } else {
            current.servers.look_up(&query).await.map(Found::answered).into()
        };
        let valid_for = valid_for([&v4, &v6].map(|found| found.as_ref().ok()));
        Answer { v4: v4.map(|found| found.addresses), v6: v6.map(|found| found.addresses), valid_for, listed }
    }
}

/// When to ask again, by what there is of each family. One that the host does not have has no say.
fn valid_for(families: [Option<&Found>; 2]) -> Duration {
    let ttls = |exists: bool| {
        let found = families.into_iter().flatten().filter(move |found| found.addresses.is_empty() != exists);
        found.map(|found| found.valid_for).min()
    };
    match ttls(true) {
        Some(ttl) => ttl.clamp(MIN_TTL, MAX_TTL),
        None => ttls(false).unwrap_or_default().clamp(NEGATIVE_TTL.0, NEGATIVE_TTL.1),
    }
}

impl Found {
    fn listed(lookup: Option<&Lookup>) -> Self {
        Self { addresses: addresses(lookup), valid_for: HOSTS_TTL }
    }

    /// Without addresses if the servers say that there is nothing.
    fn answered(answer: Result<Lookup, NetError>) -> Result<Self, String> {
        match answer {
            Ok(answer) => Ok(Self {
                addresses: addresses(Some(&answer)),
                valid_for: answer.valid_until().saturating_duration_since(Instant::now()),
            }),
            Err(NetError::Dns(DnsError::NoRecordsFound(nothing))) => Ok(Self {
                addresses: Vec::new(),
                valid_for: Duration::from_secs(nothing.negative_ttl.unwrap_or_default().into()),
            }),
            Err(error) => Err(error.to_string()),
        }
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

fn load(files: &Files, marker: &Marker) -> Result<Loaded, ResolverError> {
    let servers = Servers::new(files.settings()?, &MarkedProvider::new(marker.clone()))?;
    Ok(Loaded { servers, hosts: files.hosts()? })
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        time::SystemTime,
    };

    use super::*;

    #[test]
    fn files_that_cannot_be_read_are_tried_again_though_they_do_not_change() {
        for name in ["hosts", "resolv.conf"] {
            let directory = tempfile::tempdir().expect("a directory");
            let resolver = Resolver::by(Files::within(directory.path(), Progress::default())).expect("a resolver");
            let changes = resolver.changes();
            let is_read_anew = || changes.has_changed().expect("the resolver is there");
            let path = directory.path().join(name);
            let then = SystemTime::now();
            let date = || File::open(&path).and_then(|file| file.set_modified(then)).expect("a time");

            // In place of what cannot be opened.
            fs::create_dir(&path).expect("a directory");
            date();
            resolver.refresh();
            fs::remove_dir(&path).expect("an empty directory");
            fs::write(&path, "").expect("a file");
            date();
            assert!(!is_read_anew(), "{name}");
            resolver.refresh();
            assert!(is_read_anew(), "{name}");
        }
    }
}
