//! Connections to configured destinations that were made before they could be intercepted. They stay as they are, in
//! clear, until they end or are reset.

use std::{future, io, os::fd::AsFd as _, path::PathBuf};

use tokio::task::{self, JoinHandle};

use crate::{
    kernel::{Destinations, Marks, cgroup},
    netns::{
        Netns,
        sock_diag::{Connection, SockDiag},
    },
    telemetry::metrics::Metrics,
};

/// The connections of one namespace whose sockets belong to the scope.
pub struct Listing {
    netns: Netns,
    kernel: SockDiag,
    connections: Vec<(Connection, PathBuf)>,
}

/// Looks for connections in clear, and reports or resets them.
pub struct Existing {
    reset: bool,
    own_sockets: Marks,
    /// There are destinations that are new by the rules.
    due: bool,
    running: Option<JoinHandle<Vec<Listing>>>,
}

impl Existing {
    /// To be looked for once. With `reset`, what is found is reset.
    pub fn new(reset: bool, own_sockets: Marks) -> Self {
        Self { reset, own_sockets, due: true, running: None }
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

    /// Reports those that go to one of `destinations`, or resets them.
    pub fn report(&self, listings: &[Listing], destinations: &Destinations, metrics: &Metrics) {
        let mut in_clear = 0;
        for Listing { netns, kernel, connections } in listings {
            for (connection, cgroup) in connections {
                if !destinations.has_host(connection.remote) {
                    continue;
                }
                let Connection { local, remote, .. } = connection;
                let (netns, cgroup) = (netns.cookie(), cgroup.display());
                match self.reset.then(|| kernel.destroy(connection)) {
                    None => {
                        in_clear += 1;
                        tracing::warn!(?netns, %cgroup, %local, %remote, "a connection that was made before it could be \
                            intercepted is in clear; restart its application, or start egress with --reset-existing");
                    }
                    Some(Ok(was_there)) => {
                        metrics.connections_reset.inc_by(was_there.into());
                        tracing::warn!(?netns, %cgroup, %local, %remote, "reset a connection that was in clear");
                    }
                    Some(Err(error)) => {
                        in_clear += 1;
                        tracing::error!(?netns, %cgroup, %local, %remote, %error, "cannot reset a connection that is in \
                            clear (it takes a kernel with CONFIG_INET_DIAG_DESTROY); restart its application");
                    }
                }
            }
        }
        metrics.connections_in_clear.set(in_clear);
    }
}

fn list(namespaces: &[Netns], cgroups: &[PathBuf], own_sockets: &Marks) -> Vec<Listing> {
    let cgroups = cgroup::ids(cgroups);
    let list_one = |netns: &Netns| -> io::Result<Listing> {
        let kernel = SockDiag::open(netns)?;
        let connections = kernel.connections(own_sockets.as_fd())?.into_iter();
        let connections = connections.filter(|connection| !connection.stored).filter_map(|connection| {
            let cgroup = cgroups.get(&connection.cgroup?)?.clone();
            Some((connection, cgroup))
        });
        Ok(Listing { netns: netns.clone(), connections: connections.collect(), kernel })
    };
    let mut listings = Vec::new();
    let mut failure = None;
    for netns in namespaces {
        match list_one(netns) {
            Ok(listing) => listings.push(listing),
            Err(error) => failure = Some(error),
        }
    }
    if let Some(error) = failure {
        tracing::warn!(%error, "cannot list all connections; some that are in clear may not be reported");
    }
    listings
}
