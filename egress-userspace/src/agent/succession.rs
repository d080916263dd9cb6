//! How an agent takes the place of the one before it, and gives its own to the next: see [`crate::handover`].

use std::{
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use tokio::time;

use super::{Agent, AgentError, io_error, namespaces::Why};
use crate::{
    admin,
    drain::Drain,
    handover::{Predecessor, StateDir, Successor, Successors, descriptors},
    kernel::KernelError,
    netns::{self, Netns},
};

/// How long a connection may be on its way to our listeners after the hooks have ceased to send any there.
const ON_THE_WAY: Duration = Duration::from_millis(250);

/// How long it may take to close connections that are not in use.
const LEAVE: Duration = Duration::from_millis(500);

/// Whether another agent has our place.
#[derive(Default)]
pub(super) enum Succession {
    /// None has.
    #[default]
    None,
    /// One is taking it. Nothing is ours to change until it has, or has failed.
    Begun,
    /// One has it.
    Complete {
        /// By our maps, and with our listening sockets.
        shared: bool,
    },
}

impl Agent {
    /// Begins to serve in the place of the agent that runs, if there is one, and lets the next one do the same. Gives the
    /// address of the admin endpoint.
    ///
    /// # Errors
    /// The kernel refuses, or an address or the state directory cannot be used. An agent that runs goes on.
    pub async fn succeed(&mut self, state: &StateDir, admin: SocketAddr) -> Result<SocketAddr, AgentError> {
        let (predecessor, sockets) = match state.predecessor() {
            Some(predecessor) => self.ask(predecessor).await?,
            None => (None, Vec::new()),
        };
        let own = Netns::of_process(std::process::id()).map_err(io_error("cannot open our own network namespace"))?;
        // By its address it is the endpoint's: no other socket can have it.
        let is_endpoint = |socket: &TcpListener| {
            socket.local_addr().is_ok_and(|address| address == admin)
                && netns::cookie_of(socket).is_ok_and(|netns| netns == own.cookie())
        };
        let (mut endpoint, listeners): (Vec<_>, Vec<_>) = sockets.into_iter().partition(is_endpoint);
        let endpoint = endpoint.pop().map_or_else(|| TcpListener::bind(admin), Ok);
        let cannot_serve = |source| AgentError::Admin { address: admin, source };
        let endpoint = endpoint.map_err(cannot_serve)?;
        let address = endpoint.local_addr().map_err(cannot_serve)?;
        let successors = state.listen()?;

        if predecessor.is_none() {
            // Nobody listens any more where they lead.
            let removed = self.flows.sweep(self.started.elapsed())?;
            tracing::debug!(removed, "removed flows of an earlier agent");
        }
        self.namespaces.inherit(listeners).map_err(io_error("cannot take listening sockets over"))?;
        // Pods with the host's network come and go; its namespace stays.
        self.serve_own_namespace()?;
        self.self_test.expect();
        self.attach()?;
        if let Some(predecessor) = predecessor {
            predecessor.dismiss().await;
            tracing::info!("took over from the agent that was running");
        }
        state.publish()?;
        self.successors = Some(successors);
        self.admin = Some(admin::serve(endpoint, self.readiness.clone(), self.metrics.clone()).map_err(cannot_serve)?);
        Ok(address)
    }

    /// Asks for the predecessor's sockets when all else is ready. Without an answer it does not count.
    async fn ask(&mut self, predecessor: Predecessor) -> Result<(Option<Predecessor>, Vec<TcpListener>), AgentError> {
        // Requests are to go on without a pause, so we must know where to.
        while !self.names.all_tried() {
            self.names.next().await;
        }
        match predecessor.sockets(self.flows.id()?).await {
            Ok(sockets) => Ok((Some(predecessor), sockets)),
            Err(error) => {
                tracing::warn!(%error, "the agent that runs does not hand over; starting without it");
                Ok((None, Vec::new()))
            }
        }
    }

    /// Whether another agent is about to take our place.
    pub(super) fn expects_successor(&self) -> bool {
        self.successors.as_ref().is_some_and(Successors::is_expecting)
    }

    /// Gives our place to a successor. Says whether it has taken it.
    pub(super) async fn hand_over(&mut self, successor: Successor) -> bool {
        let shared = self.flows.id().is_ok_and(|id| successor.shares(id));
        self.succession = Succession::Begun;
        let mut sockets: Vec<_> = self.admin.iter().map(admin::Endpoint::socket).collect();
        if shared {
            sockets.extend(descriptors(self.namespaces.sockets()));
        }
        tracing::info!(sockets = sockets.len(), "another agent is taking over");
        if let Err(error) = successor.give(&sockets).await {
            tracing::warn!(%error, "the other agent has not taken over");
            self.succession = Succession::None;
            return false;
        }
        match successor.established().await {
            Ok(()) => {
                self.succession = Succession::Complete { shared };
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the other agent has failed while it was taking over; undoing what it did");
                self.succession = Succession::None;
                if let Err(error) = self.restore() {
                    tracing::error!(%error, "not everything that is configured is intercepted");
                }
                false
            }
        }
    }

    /// Makes what is pinned ours again. What is not went with the other agent.
    fn restore(&mut self) -> Result<(), AgentError> {
        if self.pinned {
            self.namespaces.announce()?;
            self.attach()?;
        }
        Ok(())
    }

    /// Has no new connections come, and those that there are end, for at most `limit`. Says how many are left then.
    pub(super) async fn close(&mut self, limit: Duration) -> usize {
        // Whoever starts now starts without us.
        self.successors = None;
        let Succession::Complete { shared } = self.succession else {
            let why = if let Succession::None = self.succession { Why::Stopping } else { Why::HandedOver };
            self.workers.drain(Drain::Now);
            self.namespaces.close_all(&self.workers, why);
            return self.workers.ended(limit).await;
        };
        self.admin = None;
        self.workers.drain(Drain::WithNextResponse);
        if !shared {
            if let Err(error) = self.withdraw() {
                tracing::error!(%error, "our programs are left, and refuse connects until `egress detach`");
            }
            time::sleep(ON_THE_WAY).await;
        }
        self.namespaces.close_all(&self.workers, Why::HandedOver);
        if self.workers.ended(limit).await > 0 {
            // Of clients that asked for nothing for so long we take leave in order.
            self.workers.drain(Drain::Now);
            return self.workers.ended(LEAVE).await;
        }
        0
    }

    fn withdraw(&mut self) -> Result<(), KernelError> {
        self.redirector.withdraw(self.flows.id()?)
    }
}

/// Waits for a successor, or that one that was expected has gone; for ever if there can be none.
pub(super) async fn next(successors: Option<&mut Successors>) -> Option<Successor> {
    match successors {
        Some(successors) => successors.next().await,
        None => std::future::pending().await,
    }
}
