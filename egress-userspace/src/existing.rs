//! Connections to configured destinations that were made before they could be intercepted. They stay as they are, in
//! clear, until they end or are reset. Likewise sockets that were connected to a name server before: what they are told
//! cannot be told from what others are, and is not learned.

use std::{
    collections::HashSet,
    future, io, mem,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use tokio::task::{self, JoinHandle};

use crate::{
    kernel::{Destinations, Marks, cgroup},
    netns::{
        Netns,
        sock_diag::{Connection, Protocol, SockDiag, SocketCookie},
    },
    telemetry::metrics::Metrics,
};

/// Where name servers listen (RFC 1035 section 4.2.1).
const DNS: u16 = 53;

/// The connections of one namespace whose sockets belong to the scope.
pub struct Listing {
    netns: Netns,
    kernel: SockDiag,
    connections: Vec<(Connection, PathBuf)>,
    /// Datagram sockets that are connected to name servers.
    askers: Vec<(Connection, PathBuf)>,
}

/// Looks for connections in clear, and reports or resets them.
pub struct Existing {
    reset: bool,
    own_sockets: Marks,
    /// Datagram sockets that were connected too early.
    early: HashSet<SocketCookie>,
    /// Cgroups where those are still to be found.
    unread: Vec<PathBuf>,
    /// The same, where they are being looked for.
    looked: Vec<PathBuf>,
    /// There are destinations that are new by the rules.
    due: bool,
    running: Option<JoinHandle<Vec<Listing>>>,
}

impl Existing {
    /// To be looked for once. With `reset`, what is found is reset.
    pub fn new(reset: bool, own_sockets: Marks) -> Self {
        let (early, unread, looked) = (HashSet::new(), Vec::new(), Vec::new());
        Self { reset, own_sockets, early, unread, looked, due: true, running: None }
    }

    /// Says that answers to name servers' clients in these cgroups have not been read before. What is connected to a name server when
    /// it is looked for next counts as too early: the kernel does not tell which of them the hooks have seen.
    pub fn expect_askers(&mut self, cgroups: Vec<PathBuf>) {
        self.due |= !cgroups.is_empty();
        self.unread.extend(cgroups);
    }

    /// Says that the rules have changed.
    pub fn expect(&mut self) {
        self.due = true;
    }

    /// Whether it is time to look.
    pub fn is_due(&self) -> bool {
        self.due && self.running.is_none()
    }

    /// Begins to list the connections in these network namespaces whose sockets belong to one of these cgroups, on a
    /// thread of its own: for each namespace the kernel goes through all connections of the machine.
    pub fn look(&mut self, namespaces: Vec<Netns>, cgroups: Vec<PathBuf>) {
        self.due = false;
        self.looked = mem::take(&mut self.unread);
        let own_sockets = self.own_sockets.clone();
        self.running = Some(task::spawn_blocking(move || list(&namespaces, &cgroups, &own_sockets)));
    }

    /// Waits until connections have been listed. Nothing is lost if the future is dropped.
    pub async fn listed(&mut self) -> Vec<Listing> {
        let Some(running) = &mut self.running else { return future::pending().await };
        // A thread that panicked has said so.
        let listings = running.await.unwrap_or_default();
        self.running = None;
        listings
    }

    /// Reports those that go to one of `destinations`, and those that ask name servers; or resets them.
    pub fn report(&mut self, listings: &[Listing], destinations: &Destinations, metrics: &Metrics) {
        let looked = mem::take(&mut self.looked);
        let askers = listings.iter().flat_map(|listing| &listing.askers);
        let new = askers.filter(|(_, cgroup)| looked.iter().any(|scope| cgroup.starts_with(scope)));
        self.early.extend(new.map(|(connection, _)| connection.cookie()));
        let (mut in_clear, mut unread) = (0, 0);
        for listing in listings {
            let intercepted = |(connection, _): &&(Connection, PathBuf)| destinations.has_host(connection.remote);
            for (connection, cgroup) in listing.connections.iter().filter(intercepted) {
                in_clear += i64::from(!self.reset(
                    listing,
                    connection,
                    cgroup,
                    metrics,
                    "a connection is in clear, as it was \
                    made before it could be intercepted",
                ));
            }
            let early = |(connection, _): &&(Connection, PathBuf)| self.early.contains(&connection.cookie());
            for (connection, cgroup) in listing.askers.iter().filter(early) {
                unread += i64::from(!self.reset(
                    listing,
                    connection,
                    cgroup,
                    metrics,
                    "what a socket is told by a name server \
                    is not intercepted, as it was connected before that could be read",
                ));
            }
        }
        metrics.connections_in_clear.set(in_clear);
        metrics.askers_unread.set(unread);
    }

    /// Resets a connection if that is wanted, and says what is the matter with it. Gives whether it is gone.
    fn reset(&self, of: &Listing, connection: &Connection, cgroup: &Path, metrics: &Metrics, matter: &str) -> bool {
        let Connection { local, remote, .. } = connection;
        let (netns, cgroup) = (of.netns.cookie(), cgroup.display());
        match self.reset.then(|| of.kernel.destroy(connection)) {
            None => {
                tracing::warn!(
                    ?netns, %cgroup, %local, %remote,
                    "{matter}; restart its application, or start egress with --reset-existing"
                );
                false
            }
            Some(Ok(was_there)) => {
                metrics.connections_reset.inc_by(was_there.into());
                tracing::warn!(?netns, %cgroup, %local, %remote, "reset a connection: {matter}");
                true
            }
            Some(Err(error)) => {
                tracing::error!(
                    ?netns, %cgroup, %local, %remote, %error,
                    "{matter}, and it cannot be reset (that takes a kernel with CONFIG_INET_DIAG_DESTROY); restart its application"
                );
                false
            }
        }
    }
}

fn list(namespaces: &[Netns], cgroups: &[PathBuf], own_sockets: &Marks) -> Vec<Listing> {
    let cgroups = cgroup::ids(cgroups);
    let in_scope = |connection: Connection| {
        let cgroup = cgroups.get(&connection.cgroup?)?.clone();
        Some((connection, cgroup))
    };
    let mut without_askers = None;
    let mut list_one = |netns: &Netns| -> io::Result<Listing> {
        let kernel = SockDiag::open(netns)?;
        let connections = kernel.connections(Protocol::Tcp, own_sockets.as_fd())?.into_iter();
        let connections = connections.filter(|connection| !connection.stored).filter_map(in_scope).collect();
        // There are kernels that can list the others alone.
        let askers = kernel.connections(Protocol::Udp, own_sockets.as_fd());
        let askers =
            askers.inspect_err(|error| without_askers = Some(error.to_string())).unwrap_or_default().into_iter();
        let askers = askers.filter(|asker| asker.remote.port() == DNS).filter_map(in_scope).collect();
        Ok(Listing { netns: netns.clone(), kernel, connections, askers })
    };
    let mut listings = Vec::new();
    let mut failure = None;
    for netns in namespaces {
        match list_one(netns) {
            Ok(listing) => listings.push(listing),
            Err(error) => failure = Some(error.to_string()),
        }
    }
    if let Some(error) = failure.or(without_askers) {
        tracing::warn!(%error, "cannot list all connections; some that are in clear may not be reported");
    }
    listings
}
