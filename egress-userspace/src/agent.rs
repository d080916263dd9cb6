//! The agent: wires the stages together on the control thread, and takes them down in order.

mod certificates;
mod configuration;
mod error;
mod events;
mod interception;
mod namespaces;
mod prepare;
mod reload;
mod succession;
mod under_way;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

use self::{
    certificates::Certificates,
    error::io_error,
    interception::{Step, Unintercepted},
    namespaces::Namespaces,
    prepare::Change,
    reload::Reload,
    succession::Succession,
    under_way::UnderWay,
};
pub use self::{
    configuration::Configuration,
    error::{AgentError, ConfigError},
};
use crate::{
    admin::{self, Readiness, SharedReadiness},
    capture::Captured,
    config::{Documents, Source},
    existing::Existing,
    handover::{Successor, Successors},
    kernel::{
        Destinations, Flows, Kernel, KernelError, LearnedNames, NameRules, Redirector, ThreadEvents,
        cgroup::Scope,
        pins::{PinPlace, Pins},
    },
    limits::Limits,
    netns::{Netns, discover::Look},
    policy::Policy,
    resolve::{Names, ResolveError},
    route::RouteTable,
    self_test::SelfTest,
    telemetry::metrics::Metrics,
    watch::Watcher,
    worker::Workers,
};

/// What the agent is told at start.
#[derive(Debug)]
pub struct Options {
    /// Whose processes are served.
    pub scope: Scope,
    /// Worker threads.
    pub workers: usize,
    /// Whether the eBPF programs write log lines.
    pub log_ebpf: bool,
    /// Whether connections to configured destinations that were made before are reset.
    pub reset_existing: bool,
    /// Where programs and maps are pinned; None to fail open.
    pub pins: Option<PinPlace>,
    /// Which connections are redirected.
    pub captured: Captured,
    /// What is taken of applications.
    pub limits: Limits,
    /// How often the agent tests itself, once it was told to.
    pub self_test_interval: Duration,
}

/// The running agent. Dropping it detaches the programs, unless they are pinned.
pub struct Agent {
    sources: Vec<Source>,
    redirector: Redirector,
    destinations: Destinations,
    learned: LearnedNames,
    flows: Flows,
    thread_events: ThreadEvents,
    namespaces: Namespaces,
    captured: Captured,
    step: Step,
    /// Why the kernel lacks something.
    failure: Option<KernelError>,
    /// What it has yet to be told of names.
    to_learn: Option<NameRules>,
    names: Names,
    /// Whether somebody looks at the resolver's files.
    refreshing: Option<UnderWay<()>>,
    /// Of what the sources said.
    fingerprint: u64,
    documents: Documents,
    policy: Arc<Policy>,
    reload: Reload,
    routes: Arc<ArcSwap<RouteTable>>,
    workers: Workers,
    watcher: Watcher,
    metrics: Arc<Metrics>,
    readiness: SharedReadiness,
    attached: bool,
    existing: Existing,
    certificates: Certificates,
    unintercepted: Unintercepted,
    self_test: SelfTest,
    /// Whether interception outlives us.
    pinned: bool,
    /// Before anything was looked at.
    started: Instant,
    admin: Option<admin::Endpoint>,
    /// Where it is to be served, if at all.
    admin_address: Option<SocketAddr>,
    /// None for an agent that gives its place to nobody.
    successors: Option<Successors>,
    succession: Succession,
    /// A successor that was too late and has yet to end.
    rejected: Option<Successor>,
}

impl Agent {
    /// Makes the maps and starts the workers. Intercepts nothing yet.
    ///
    /// # Errors
    /// The machine cannot run the agent.
    pub fn start(configuration: Configuration, options: Options) -> Result<Self, AgentError> {
        let started = Instant::now();
        let Configuration { sources, watcher, reload, change, names, table } = configuration;
        let Change { fingerprint, documents, policy, learned: to_learn, .. } = change;
        let Options { scope, workers, log_ebpf, reset_existing, pins, captured, limits, self_test_interval } = options;

        let pinned = pins.is_some();
        let pins = pins.as_ref().map(Pins::open).transpose().map_err(KernelError::Pins)?;
        let kernel = Redirector::open(log_ebpf, pins)?;
        let Kernel { redirector, destinations, learned, listeners, flows, own_sockets, outcomes, learnings, threads } =
            kernel;
        let metrics = Metrics::new(outcomes, learnings);
        let routes = Arc::new(ArcSwap::from_pointee(table));
        let workers = Workers::start(workers, limits, &routes, &metrics, &flows, &own_sockets)?;
        names.mark_sockets(own_sockets.try_clone()?);
        let existing = Existing::new(reset_existing, own_sockets.marks());
        let mut agent = Self {
            sources,
            redirector,
            destinations,
            learned,
            flows,
            thread_events: threads,
            namespaces: Namespaces::new(scope, own_sockets, listeners, !captured.is_by_port())
                .map_err(io_error("cannot watch the cgroups"))?,
            captured,
            step: Step::default(),
            failure: None,
            to_learn: Some(to_learn),
            names,
            refreshing: None,
            fingerprint,
            documents,
            policy,
            reload,
            routes,
            workers,
            watcher,
            metrics,
            readiness: Arc::new(ArcSwap::from_pointee(Readiness::NotReady("starting".into()))),
            attached: false,
            existing,
            certificates: Certificates::default(),
            unintercepted: Unintercepted::default(),
            self_test: SelfTest::new(self_test_interval),
            pinned,
            started,
            admin: None,
            admin_address: None,
            successors: None,
            succession: Succession::default(),
            rejected: None,
        };
        agent.applied();
        Ok(agent)
    }

    /// Serves the network namespace that the agent itself is in, whether or not a process in scope is in it.
    ///
    /// # Errors
    /// Its listeners cannot be made.
    pub fn serve_own_namespace(&mut self) -> Result<(), AgentError> {
        let own = Netns::of_process(std::process::id()).map_err(io_error("cannot open our own network namespace"))?;
        self.namespaces.keep(&own, &mut self.workers).map_err(io_error("cannot listen"))
    }

    /// Starts to intercept: makes listeners for all processes in scope, and attaches.
    ///
    /// # Errors
    /// The kernel refuses, or a cgroup has gone.
    pub fn attach(&mut self) -> Result<(), AgentError> {
        self.namespaces.reconcile(Look::Threads, &mut self.workers).map_err(io_error("cannot read the cgroups"))?;
        // Where an earlier agent's programs are attached, connections are served already.
        self.load_programs()?;
        self.destinations.inherit()?;
        self.learned.inherit()?;
        let is_start = !self.redirector.is_attached();
        let cgroups = if is_start { self.namespaces.cgroups_wanted() } else { self.namespaces.cgroups_there() };
        self.redirector.attach(&cgroups)?;
        self.existing.expect_askers(self.redirector.take_new());
        for learned in self.redirector.learned_by_others()? {
            self.learned.adopt(learned)?;
        }
        self.namespaces.disown()?;
        for cgroup in cgroups {
            tracing::info!(cgroup = %cgroup.display(), "attached");
        }
        self.attached = true;
        // Processes that made their first socket in between were not reported.
        self.namespaces.reconcile(Look::Processes, &mut self.workers).map_err(io_error("cannot read the cgroups"))?;
        self.synchronise();
        Ok(())
    }

    /// Attaches to a cgroup that has come, or was removed and made anew: the programs went with the one before.
    fn follow_scope(&mut self) {
        if !self.attached || !self.redirector.is_behind(self.namespaces.cgroups()) {
            return;
        }
        tracing::warn!("a served cgroup has come, or was made anew, and what is in it may have left in clear");
        // Others that are gone are not to keep it waiting.
        match self.redirector.attach(&self.namespaces.cgroups_there()) {
            // What was attached to the one before is to be removed.
            Ok(()) => self.redirector.unsettle(),
            Err(error) => tracing::error!(%error, "a served cgroup is not attached to; this is tried again"),
        }
        self.existing.expect_askers(self.redirector.take_new());
        self.existing.expect();
        self.test_self();
    }

    /// Has the kernel verify the programs, unless it has.
    fn load_programs(&mut self) -> Result<(), AgentError> {
        if let Some(log) = self.redirector.load()? {
            tokio::spawn(log.forward());
        }
        Ok(())
    }

    /// Sees whether connects from the scope are intercepted. Until that is known for the first time, and whenever it is
    /// not so, the agent is not ready. To be called when it is attached and serves its own network namespace.
    pub fn test_self(&mut self) {
        self.self_test.start(&self.namespaces.cgroups_there());
    }

    /// Works until every name has been looked up once; gives the hosts of which nothing is intercepted.
    pub async fn resolve_all(&mut self) -> Vec<ResolveError> {
        while !self.names.all_tried() {
            self.names.next().await;
            self.names_changed();
        }
        self.routes.load().unintercepted(&self.names)
    }

    /// Stops accepting, lets what is under way finish for at most `limit`, and detaches. Until then connects to
    /// configured destinations are refused: a connection that can no longer be served must not leave in clear. If another
    /// agent has taken over they are its own.
    pub async fn stop(mut self, limit: Duration) {
        self.tell(Readiness::NotReady("stopping".into()), true);
        self.self_test.end().await;
        let left = self.close(limit).await;
        if left > 0 {
            tracing::warn!(connections = left, "the drain timeout ran out; the rest is cut off");
        }
        let pinned = self.pinned;
        let replaced = matches!(self.succession, Succession::Complete { .. });
        drop(self);
        if replaced {
            tracing::info!("ended; another agent serves");
        } else if pinned {
            tracing::info!(
                "stopped; connects to configured destinations are refused until the next start or `egress detach`"
            );
        } else {
            tracing::info!("detached");
        }
    }

    fn reconcile(&mut self) {
        self.follow_scope();
        if let Err(error) = self.namespaces.reconcile(Look::Processes, &mut self.workers) {
            tracing::warn!(%error, "cannot read the cgroups");
        }
    }
}
