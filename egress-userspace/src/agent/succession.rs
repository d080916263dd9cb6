//! How an agent takes the place of the one before it, and gives its own to the next: see [`crate::handover`].

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::AsFd as _,
    time::Duration,
};

use tokio::time;

use super::{Agent, AgentError, interception::Step, io_error, prepare::names_to_learn};
use crate::{
    admin,
    drain::{self, Drain},
    handover::{Legacy, Predecessor, StateDir, Successor, Successors, descriptors},
    kernel::KernelError,
    netns::{self, Netns},
    resolve::ResolveError,
};

/// How long a connection may be on its way to our listeners after the hooks have ceased to send any there.
const ON_THE_WAY: Duration = Duration::from_millis(250);

/// The same where it may have to be asked for, which the kernel does within a second, as nothing has come on it.
const DEFERRED: Duration = Duration::from_millis(1250);

/// How long it may take to close connections that are not in use.
const LEAVE: Duration = Duration::from_millis(500);

/// Whether another agent has our place.
#[derive(Default)]
pub(super) enum Succession {
    /// None has.
    #[default]
    None,
    /// We are taking that of one that runs, and goes on if we fail: nothing of its is ours to remove.
    Taking,
    /// One is taking it. Nothing is ours to change until it has, or has failed.
    Begun,
    /// One has it.
    Complete {
        /// By our maps, and with our listening sockets.
        shared: bool,
    },
}

impl Agent {
    /// Begins to serve in the place of the agent that runs, if there is one, and lets the next one do the same.
    ///
    /// # Errors
    /// The kernel refuses, or an address or the state directory cannot be used, or the agent that runs did not wait. It
    /// goes on.
    pub async fn succeed(&mut self, state: &StateDir, admin: SocketAddr) -> Result<(), AgentError> {
        let (mut predecessor, mut legacy, mut hangs) = (None, Legacy::default(), false);
        if let Some(found) = state.predecessor() {
            // What the kernel refuses is to cost nobody his place.
            self.load_programs()?;
            match self.ask(&found).await? {
                Some(given) => (predecessor, legacy) = (Some(found), given),
                None => hangs = true,
            }
        }
        let own = Netns::of_process(std::process::id()).map_err(io_error("cannot open our own network namespace"))?;
        // By its address it is the endpoint's: no other socket can have it.
        let is_endpoint = |socket: &TcpListener| {
            socket.local_addr().is_ok_and(|address| address == admin)
                && netns::cookie_of(socket).is_ok_and(|netns| netns == own.cookie())
        };
        let (mut endpoint, listeners): (Vec<_>, Vec<_>) = legacy.sockets.into_iter().partition(is_endpoint);
        let endpoint = match endpoint.pop().map_or_else(|| TcpListener::bind(admin), Ok) {
            Ok(endpoint) => Some(endpoint),
            Err(error) if hangs && error.kind() == io::ErrorKind::AddrInUse => {
                tracing::warn!(address = %admin, "the agent that does not answer holds the admin address; it is served later");
                None
            }
            Err(source) => return Err(AgentError::Admin { address: admin, source }),
        };
        let successors = state.listen()?;
        if hangs {
            // Should it come to itself it must not change what we do from now on.
            state.publish()?;
        }

        if predecessor.is_none() && !hangs {
            // Nobody listens any more where they lead. One that hangs still does.
            let removed = self.flows.sweep(self.started.elapsed())?;
            tracing::debug!(removed, "removed flows of an earlier agent");
        }
        self.namespaces.inherit(listeners).map_err(io_error("cannot take listening sockets over"))?;
        // Pods with the host's network come and go; its namespace stays.
        self.serve_own_namespace()?;
        self.self_test.expect();
        if predecessor.is_some() {
            self.succession = Succession::Taking;
        }
        self.attach()?;
        if let Some(learned) = legacy.learned {
            self.learned.adopt(learned)?;
        }
        if let Some(predecessor) = predecessor {
            predecessor.dismiss().await?;
            tracing::info!("took over from the agent that was running");
            self.succession = Succession::None;
            // There is no way back from here: what it had is removed.
            self.catch_up();
        }
        if !hangs {
            state.publish()?;
        }
        self.successors = Some(successors);
        self.admin_address = Some(admin);
        match endpoint {
            Some(endpoint) => self.serve_admin(admin, endpoint),
            None => Ok(()),
        }
    }

    /// Asks for what the predecessor has to give when all else is ready. Without an answer it does not count.
    async fn ask(&mut self, predecessor: &Predecessor) -> Result<Option<Legacy>, AgentError> {
        // Requests are to go on without a pause, so we must know where to.
        while !self.names.all_tried() {
            self.names.next().await;
        }
        let mut given = predecessor.legacy(self.flows.id()?).await;
        if given.is_ok() {
            // One that hangs, or is gone, knows nothing that is of use. This one lives, and nothing has been changed yet.
            if let Some(error) = self.knows_nothing() {
                return Err(AgentError::Unanswered(error));
            }
            given = predecessor.take().await.and(given);
        }
        match given {
            Ok(legacy) => Ok(Some(legacy)),
            Err(error) => {
                tracing::warn!(%error, "the agent that runs does not hand over; starting without it");
                Ok(None)
            }
        }
    }

    /// Why next to nothing would be intercepted in the place of an agent that knows addresses, if that is so.
    fn knows_nothing(&self) -> Option<ResolveError> {
        self.routes.load().unanswered(&self.names).filter(|_| !self.captured.is_by_port())
    }

    /// Serves the admin endpoint if its address was another agent's, and is not any more.
    pub(super) fn retry_admin(&mut self) {
        if self.admin.is_none()
            && let Some(address) = self.admin_address
            && let Ok(endpoint) = TcpListener::bind(address)
            && let Err(error) = self.serve_admin(address, endpoint)
        {
            tracing::warn!(%error, "the admin address is still not served");
        }
    }

    fn serve_admin(&mut self, address: SocketAddr, endpoint: TcpListener) -> Result<(), AgentError> {
        let cannot_serve = |source| AgentError::Admin { address, source };
        let address = endpoint.local_addr().map_err(cannot_serve)?;
        self.admin = Some(admin::serve(endpoint, self.readiness.clone(), self.metrics.clone()).map_err(cannot_serve)?);
        tracing::info!(%address, "serving /readyz, /healthz and /metrics");
        Ok(())
    }

    /// Whether another agent still has the place that we are to have, and may keep it.
    pub(super) fn is_taking(&self) -> bool {
        matches!(self.succession, Succession::Taking)
    }

    /// Whether another agent is about to take our place.
    pub(super) fn expects_successor(&self) -> bool {
        self.successors.as_ref().is_some_and(Successors::is_expecting)
    }

    /// Whether another agent has our place, as we did not answer when it asked. Then nothing is ours to change any more.
    pub(super) async fn is_replaced(&mut self) -> bool {
        let Some(successors) = self.successors.as_ref().filter(|successors| !successors.is_current()) else {
            return false;
        };
        tracing::warn!("another agent has taken over, as this one did not answer it");
        let shared = match successors.lock().await {
            Ok(state) if state.predecessor().is_none() => {
                self.reclaim(&state);
                return false;
            }
            // Now that it has started it has said where its listeners are.
            Ok(_) => self.namespaces.are_others_announced(),
            Err(error) => {
                tracing::warn!(%error, "what is pinned is taken to be the other agent's");
                self.pinned
            }
        };
        self.succession = Succession::Complete { shared };
        true
    }

    /// Takes our place back from an agent that has failed since.
    fn reclaim(&mut self, state: &StateDir) {
        tracing::warn!("the other agent has ended; undoing what it did");
        match state.listen().and_then(|successors| state.publish().map(|()| successors)) {
            Ok(successors) => self.successors = Some(successors),
            // This is tried again when something else happens.
            Err(error) => tracing::warn!(%error, "no other agent can take over"),
        }
        self.restore();
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
        if let Err(error) = successor.give((!shared).then(|| self.learned.as_fd()), &sockets).await {
            tracing::warn!(%error, "the other agent has not taken over");
            self.succession = Succession::None;
            return false;
        }
        let Err(error) = successor.established().await else {
            self.succession = Succession::Complete { shared };
            return true;
        };
        tracing::warn!(%error, "the other agent has failed while it was taking over; undoing what it did");
        self.succession = Succession::None;
        successor.reject().await;
        // This may have hung for so long that a third one came.
        if self.is_replaced().await {
            return true;
        }
        self.restore();
        self.rejected = Some(successor);
        false
    }

    /// A successor that had been too late has ended; it may have gone on for a while.
    pub(super) fn rejected_has_ended(&mut self) {
        self.rejected = None;
        self.restore();
    }

    /// Makes what is pinned ours again. What is not goes with the other agent.
    fn restore(&mut self) {
        if !self.pinned {
            return;
        }
        // Until that is done nothing is removed: what is attached may be the other one's.
        self.attached = false;
        // It may have left programs and maps of another layout, and other names in ours.
        self.redirector.unsettle();
        self.to_learn = Some(names_to_learn(&self.policy));
        let announced = self.namespaces.announce();
        // Known whatever fails: what is put right meanwhile is put right from there.
        let inherited = self.destinations.inherit().and_then(|()| self.learned.inherit());
        if let Err(error) = announced.and(inherited).map_err(AgentError::from).and_then(|()| self.attach()) {
            tracing::error!(%error, "not everything that is configured is intercepted; this is tried again");
            self.step = Step::Behind;
        }
    }

    /// Tries again to make what is pinned ours, if that has failed.
    pub(super) fn retry_restore(&mut self) {
        if !self.attached {
            self.restore();
        }
    }

    /// Has no new connections come, and those that there are end, for at most `limit`. Says how many are left then.
    pub(super) async fn close(&mut self, limit: Duration) -> usize {
        // Whoever starts now starts without us.
        self.successors = None;
        let Succession::Complete { shared } = self.succession else {
            self.workers.drain(Drain::Now);
            // Else what the kernel knows of the listeners is another agent's.
            if let Succession::None = self.succession {
                self.namespaces.refuse();
                // Who has connected as the last one has as long to send a request as who was accepted.
                if self.namespaces.defer_no_more() {
                    time::sleep(drain::GRACE).await;
                }
            }
            self.namespaces.close_all();
            return self.workers.ended(limit).await;
        };
        self.admin = None;
        self.workers.drain(Drain::WithNextResponse);
        if !shared {
            if let Err(error) = self.withdraw() {
                tracing::error!(%error, "our programs are left, and refuse connects until `egress detach`");
            }
            let deferred = self.namespaces.defer_no_more();
            time::sleep(if deferred { DEFERRED } else { ON_THE_WAY }).await;
        }
        self.namespaces.close_all();
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

/// Waits for the end of a successor that was too late; for ever if there is none.
pub(super) async fn ended(rejected: Option<&Successor>) {
    match rejected {
        Some(successor) => successor.ended().await,
        None => std::future::pending().await,
    }
}
