//! Connections to configured destinations that were made before they could be intercepted. They stay as they are, in
//! clear, until they end or are reset. Likewise sockets that were connected to a name server before: what they are told
//! cannot be told from what others are, and is not learned.

mod early;

use std::{
    future, io, mem,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    time::Instant,
};

use tokio::task::{self, JoinHandle};

use self::early::Early;
use crate::{
    again::Again,
    kernel::{Destinations, Marks, cgroup},
    netns::{
        Netns, NetnsCookie,
        sock_diag::{Connection, Protocol, SockDiag},
    },
    telemetry::metrics::Metrics,
};

/// Where name servers listen (RFC 1035 section 4.2.1).
const DNS: u16 = 53;

/// What has come of a look.
#[derive(Default)]
pub struct Look {
    listings: Vec<Listing>,
    /// Namespaces of which not all could be listed, and may be another time.
    missed: Vec<NetnsCookie>,
    /// Why something could not be listed.
    failure: Option<io::Error>,
}

/// The connections of one namespace whose sockets belong to the scope.
struct Listing {
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
    early: Early,
    /// There are destinations that are new by the rules.
    due: bool,
    /// What could not be listed.
    missed: Option<Again>,
    running: Option<JoinHandle<Look>>,
}

impl Existing {
    /// To be looked for once. With `reset`, what is found is reset.
    pub fn new(reset: bool, own_sockets: Marks) -> Self {
        Self { reset, own_sockets, early: Early::default(), due: true, missed: None, running: None }
    }

    /// Says that answers to name servers' clients in these cgroups have not been read before. What is connected to a name server when
    /// it is looked for next counts as too early: the kernel does not tell which of them the hooks have seen.
    pub fn expect_askers(&mut self, cgroups: Vec<PathBuf>) {
        self.due |= !cgroups.is_empty();
        self.early.expect(cgroups);
    }

    /// Says that the rules have changed.
    pub fn expect(&mut self) {
        self.due = true;
    }

    /// Whether it is time to look.
    pub fn is_due(&self) -> bool {
        self.due && self.running.is_none()
    }

    /// Whether it has come to be time to look again, as not all could be listed the last time.
    pub fn is_to_look_again(&mut self) -> bool {
        let again = self.missed.as_mut().is_some_and(|missed| missed.is_due(Instant::now()));
        self.due |= again;
        again
    }

    /// Begins to list the connections in these network namespaces whose sockets belong to one of these cgroups, on a
    /// thread of its own: for each namespace the kernel goes through all connections of the machine.
    pub fn look(&mut self, namespaces: Vec<Netns>, cgroups: Vec<PathBuf>) {
        self.due = false;
        self.early.look();
        let own_sockets = self.own_sockets.clone();
        self.running = Some(task::spawn_blocking(move || list(&namespaces, &cgroups, &own_sockets)));
    }

    /// Waits until connections have been listed. Nothing is lost if the future is dropped.
    pub async fn listed(&mut self) -> Look {
        let Some(running) = &mut self.running else { return future::pending().await };
        // A thread that panicked has said so.
        let look = running.await.unwrap_or_default();
        self.running = None;
        look
    }

    /// Reports those that go to one of `destinations`, and those that ask name servers; or resets them.
    pub fn report(&mut self, look: &Look, destinations: &Destinations, metrics: &Metrics) {
        let Look { listings, missed, failure } = look;
        let askers = listings.iter().flat_map(|listing| {
            let netns = listing.netns.cookie();
            listing.askers.iter().map(move |(asker, cgroup)| (netns, asker.cookie(), cgroup.as_path()))
        });
        self.early.take_in(askers, missed);
        self.note_missed(failure.as_ref(), !missed.is_empty());
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
            let early = |(connection, _): &&(Connection, PathBuf)| self.early.has(connection.cookie());
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

    /// Says what could not be listed, once while it stays so, and whether it is tried again.
    fn note_missed(&mut self, failure: Option<&io::Error>, may_pass: bool) {
        let before = mem::take(&mut self.missed);
        let Some(error) = failure else { return };
        let text = error.to_string();
        match before.filter(|missed| may_pass && missed.text == text) {
            Some(same) => self.missed = Some(same),
            None => {
                tracing::warn!(error = text, "cannot list all connections; some that are in clear may not be reported");
                self.missed = may_pass.then(|| Again::new(text));
            }
        }
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

impl Look {
    fn fail(&mut self, netns: &Netns, error: io::Error) {
        // There are kernels that cannot list all protocols, which does not pass.
        if error.kind() != io::ErrorKind::NotFound {
            self.missed.push(netns.cookie());
        }
        self.failure = Some(error);
    }
}

fn list(namespaces: &[Netns], cgroups: &[PathBuf], own_sockets: &Marks) -> Look {
    let mut look = Look::default();
    let cgroups = match cgroup::ids(cgroups) {
        Ok(ids) => ids,
        Err(error) => {
            look.missed.extend(namespaces.iter().map(Netns::cookie));
            look.failure = Some(error);
            return look;
        }
    };
    let in_scope = |connection: Connection| {
        let cgroup = cgroups.get(&connection.cgroup?)?.clone();
        Some((connection, cgroup))
    };
    for netns in namespaces {
        let tcp = SockDiag::open(netns).and_then(|kernel| {
            let connections = kernel.connections(Protocol::Tcp, own_sockets.as_fd())?;
            Ok((kernel, connections))
        });
        let (kernel, connections) = match tcp {
            Ok(listed) => listed,
            Err(error) => {
                look.fail(netns, error);
                continue;
            }
        };
        let connections =
            connections.into_iter().filter(|connection| !connection.stored).filter_map(in_scope).collect();
        let askers = kernel.connections(Protocol::Udp, own_sockets.as_fd());
        let askers = askers.unwrap_or_else(|error| {
            look.fail(netns, error);
            Vec::new()
        });
        let askers = askers.into_iter().filter(|asker| asker.remote.port() == DNS).filter_map(in_scope).collect();
        look.listings.push(Listing { netns: netns.clone(), kernel, connections, askers });
    }
    look
}
