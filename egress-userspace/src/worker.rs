//! Workers: one thread with a runtime of its own for each core. A connection stays on its worker, and so do the upstream
//! connections that it uses, so that nothing on the request path is locked, and of what is shared nothing changes but what limits and
//! metrics count.

mod crew;
mod vital;

use std::{
    cell::Cell,
    io,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::BytesMut;
use tokio::{
    net::TcpStream,
    runtime::{Builder, LocalOptions},
    sync::{mpsc, watch},
    time,
};
use tokio_util::task::TaskTracker;

use self::crew::{Command, Crew, Heads, Member};
pub use self::crew::{Load, PodLoad};
pub(crate) use self::vital::Vital;
use crate::{
    conversation,
    drain::Drain,
    http1::server::ClientStream,
    http2::Room,
    kernel::{Flows, KernelError, OwnSockets},
    limits::{Beyond, Limits},
    listener::{self, Listener},
    memory,
    netns::NetnsCookie,
    passthrough::{self, PassError, Passed},
    request::Accepted,
    route::RouteTable,
    socket::{Place, SocketFactory},
    telemetry::{access_log, metrics::Metrics},
    upstream::{connect::Connector, pool::Pool, tls, warm::Warm},
};

/// How often idle upstream connections are looked through.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(1);
/// How many connections are told at the same time that they are too many, by each worker.
const MAX_TURNED_AWAY: usize = 256;

/// What requests need, on one thread.
pub struct Worker {
    /// The routes in force.
    pub routes: Arc<ArcSwap<RouteTable>>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Makes upstream connections.
    pub connector: Rc<Connector>,
    /// Keeps them.
    pub pool: Rc<Pool>,
    /// Makes them before they are needed.
    pub warm: Rc<Warm>,
    /// Origins of accepted connections.
    pub flows: Flows,
    /// What is taken of applications.
    pub limits: Limits,
    /// Connections that are being turned away.
    turned_away: Cell<usize>,
    crew: Arc<Crew>,
    /// Every connection and every listener holds a token.
    open: TaskTracker,
    /// This worker's place in the crew.
    index: usize,
}

/// The workers, for the control thread.
pub struct Workers {
    crew: Arc<Crew>,
    routes: Arc<ArcSwap<RouteTable>>,
    open: TaskTracker,
    drain: watch::Sender<Drain>,
    next: usize,
    threads: Vec<JoinHandle<()>>,
}

/// Ends the threads. Connections that are still being served are cut off, and their requests' records are written.
impl Drop for Workers {
    fn drop(&mut self) {
        self.crew.tell(|| Command::Stop);
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Workers {
    /// Starts `count` workers.
    ///
    /// # Errors
    /// A thread, a runtime or a map handle cannot be made.
    pub fn start(
        count: usize,
        limits: Limits,
        routes: &Arc<ArcSwap<RouteTable>>,
        metrics: &Arc<Metrics>,
        flows: &Flows,
        own_sockets: &OwnSockets,
    ) -> Result<Self, StartError> {
        let (members, inboxes): (Vec<_>, Vec<_>) = (0..count.max(1))
            .map(|_| {
                let (commands, inbox) = mpsc::unbounded_channel();
                (Member { commands, connections: AtomicUsize::new(0) }, inbox)
            })
            .unzip();
        let crew = Arc::new(Crew { members, heads: AtomicUsize::new(0) });
        let open = TaskTracker::new();
        let (drain, draining) = watch::channel(Drain::Off);
        let mut workers = Self { crew, routes: routes.clone(), open, drain, next: 0, threads: Vec::new() };
        for (index, inbox) in inboxes.into_iter().enumerate() {
            let (flows, own_sockets) = (flows.try_clone()?, own_sockets.try_clone()?);
            let (routes, metrics, crew) = (routes.clone(), metrics.clone(), workers.crew.clone());
            let (draining, open) = (draining.clone(), workers.open.clone());
            let (made, is_made) = std::sync::mpsc::channel();
            let thread = thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                let _vital = Vital;
                let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
                let runtime = match runtime {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        // Somebody waits for it.
                        let _ = made.send(error);
                        return;
                    }
                };
                drop(made);
                tls::warm_up();
                let (counted, counts) = (crew.clone(), metrics.clone());
                let trailers = move |from: &Place| -> Room {
                    let (heads, counts) = (Heads::new(counted.clone(), from.load.clone()), counts.clone());
                    Box::new(move |bytes| heads.hold(bytes, &limits).inspect_err(|why| counts.too_many(*why)).is_ok())
                };
                let sockets = SocketFactory::new(own_sockets);
                let connector = Connector::new(sockets, metrics.clone(), limits.head, Box::new(trailers));
                let asked = crew.clone();
                let most_idle = limits.connections.div_ceil(asked.members.len());
                let pool = Rc::new(Pool::new(move |cluster| asked.tell(|| Command::GiveUp(cluster)), most_idle));
                let connector = Rc::new(connector);
                let warm = Warm::new(connector.clone(), pool.clone());
                let worker = Rc::new(Worker {
                    routes,
                    metrics,
                    connector,
                    pool,
                    warm,
                    flows,
                    limits,
                    turned_away: Cell::new(0),
                    crew,
                    open,
                    index,
                });
                runtime.block_on(async {
                    tokio::select! {
                        () = worker.run(inbox, draining) => {}
                        () = access_log::keep_flushing() => {}
                    }
                });
                // What is under way ends here, with its records.
                drop(runtime);
                access_log::flush();
            })?;
            workers.threads.push(thread);
            if let Ok(error) = is_made.recv() {
                return Err(error.into());
            }
        }
        Ok(workers)
    }

    /// Has one of the workers accept connections on a listener, until the listener's handle is dropped.
    pub fn listen(&mut self, listener: Listener) {
        let member = &self.crew.members[self.next % self.crew.members.len()];
        self.next += 1;
        // A worker ends only with the process.
        let _ = member.commands.send(Command::Listen(listener));
    }

    /// Forgets a network namespace that is gone, and closes its idle upstream connections.
    pub fn forget(&self, netns: NetnsCookie) {
        self.routes.load().forget(netns);
        self.crew.tell(|| Command::Forget(netns));
    }

    /// Tells all connections how to end, those that are still to be accepted included.
    pub fn drain(&self, how: Drain) {
        self.drain.send_replace(how);
    }

    /// Waits until no connection and no listener is left. Says how many were left when `limit` ran out.
    pub async fn ended(&self, limit: Duration) -> usize {
        self.open.close();
        let _ = time::timeout(limit, self.open.wait()).await;
        self.open.len()
    }
}

/// Why the workers could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A thread or runtime cannot be made.
    #[error("cannot start a worker: {0}")]
    Io(#[from] io::Error),
    /// A map handle cannot be made.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

impl Worker {
    async fn run(self: Rc<Self>, mut inbox: mpsc::UnboundedReceiver<Command>, draining: watch::Receiver<Drain>) {
        let mut expire = time::interval(EXPIRE_INTERVAL);
        expire.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(Command::Listen(listener)) => {
                        let accept = listener::accept(self.clone(), listener, draining.clone());
                        tokio::task::spawn_local(self.open.track_future(accept));
                    }
                    Some(Command::Serve(stream, accepted, load)) => {
                        self.clone().serve(stream, *accepted, load, draining.clone());
                    }
                    Some(Command::Forget(netns)) => {
                        self.pool.forget(netns);
                        self.warm.forget(netns);
                        self.connector.forget(netns);
                    }
                    Some(Command::GiveUp(cluster)) => self.pool.give_up(cluster),
                    Some(Command::Stop) | None => return,
                },
                _ = expire.tick() => {
                    self.pool.expire();
                    if *draining.borrow() == Drain::Off {
                        self.warm.keep();
                    }
                    memory::tidy();
                    self.connector.tidy();
                }
            }
        }
    }

    /// Has the least busy worker serve an accepted connection, this one if possible.
    pub fn dispatch(
        self: &Rc<Self>,
        stream: std::net::TcpStream,
        accepted: Accepted,
        draining: &watch::Receiver<Drain>,
    ) {
        if let Some(why) = self.beyond(&accepted.from.load) {
            return self.turn_away(stream, accepted, why);
        }
        let index = self.crew.least_loaded(self.index);
        let load = Load::add(self.crew.clone(), index, accepted.from.load.clone(), &self.open);
        if index == self.index {
            self.clone().serve(stream, accepted, load, draining.clone());
        } else {
            // A worker ends only with the process.
            let _ = self.crew.members[index].commands.send(Command::Serve(stream, Box::new(accepted), load));
        }
    }

    /// Counts another request of a connection over HTTP/2 as if it were a connection, which it would be over HTTP/1.
    ///
    /// # Errors
    /// It is beyond a limit.
    pub fn one_more(&self, load: &Load) -> Result<Load, Beyond> {
        match self.beyond(load.of_pod()) {
            None => Ok(load.another(&self.open)),
            Some(why) => {
                self.metrics.too_many(why);
                Err(why)
            }
        }
    }

    /// Counts so much as the heads of a connection, in bytes, one that has come to its end included.
    ///
    /// # Errors
    /// It is beyond a limit, and what was counted before stays.
    pub fn hold(&self, load: &Load, heads: usize) -> Result<(), Beyond> {
        load.hold(heads, &self.limits).inspect_err(|why| self.metrics.too_many(*why))
    }

    /// Which limit one more connection of a network namespace would be beyond.
    fn beyond(&self, of_pod: &PodLoad) -> Option<Beyond> {
        let Limits { connections, connections_per_pod, .. } = self.limits;
        if of_pod.connections.load(Ordering::Relaxed) >= connections_per_pod {
            return Some(Beyond::Pod(connections_per_pod));
        }
        (self.crew.connections() >= connections).then_some(Beyond::All(connections))
    }

    /// Says so to a client whose connection is one too many; to so many at once. Others are reset, as are those of which nobody
    /// knows whether they speak HTTP.
    fn turn_away(self: &Rc<Self>, stream: std::net::TcpStream, accepted: Accepted, why: Beyond) {
        self.metrics.too_many(why);
        if accepted.origin.by_port_alone() || self.turned_away.get() >= MAX_TURNED_AWAY {
            return;
        }
        let worker = self.clone();
        worker.turned_away.set(worker.turned_away.get() + 1);
        tokio::task::spawn_local(async move {
            conversation::turn_away(worker.clone(), ClientStream::new(stream), accepted, why).await;
            worker.turned_away.set(worker.turned_away.get() - 1);
        });
    }

    fn serve(
        self: Rc<Self>,
        stream: std::net::TcpStream,
        accepted: Accepted,
        load: Load,
        draining: watch::Receiver<Drain>,
    ) {
        // What each connection has for as long as it is idle is this task, so it has nothing in it but what it then needs.
        if accepted.origin.by_port_alone() {
            match TcpStream::from_std(stream) {
                Ok(stream) => _ = tokio::task::spawn_local(self.pass(stream, accepted, load, draining)),
                Err(error) => tracing::warn!(%error, "an accepted connection cannot be served"),
            }
        } else {
            let stream = ClientStream::new(stream);
            tokio::task::spawn_local(conversation::hold(self, stream, BytesMut::new(), accepted, load, draining));
        }
    }

    /// Serves a connection of which only the port is known.
    async fn pass(self: Rc<Self>, stream: TcpStream, accepted: Accepted, load: Load, draining: watch::Receiver<Drain>) {
        let (origin, gone) = (accepted.origin.socket_addr(), accepted.gone.clone());
        let is_configured =
            |host: &str, port: Option<u16>| self.routes.load().route(host, port.unwrap_or(origin.port())).is_some();
        let hold = |head| load.hold(head, &self.limits);
        // Others should not take the room that it needs.
        let passing = Box::pin(passthrough::pass(&self.connector, &accepted, stream, is_configured, &hold));
        let passed = tokio::select! {
            passed = passing => passed,
            () = gone.cancelled() => return,
        };
        match passed {
            Ok(Passed::On) => self.metrics.passed_on(true),
            Ok(Passed::Configured(stream, begun)) => {
                conversation::hold(self, ClientStream::new(stream), begun, accepted, load, draining).await;
            }
            Err(error) => {
                self.metrics.passed_on(false);
                if let PassError::Beyond(why) = error {
                    self.metrics.too_many(why);
                }
                let process = accepted.origin.process_name();
                tracing::warn!(%origin, pid = accepted.origin.pid, process, %error, "a connection was not passed on to its end");
            }
        }
    }
}
