//! The network namespaces that are served, each with its listeners.

mod served;

use std::{
    collections::{HashMap, HashSet},
    io, mem,
    net::TcpListener,
    path::PathBuf,
    time::{Duration, Instant},
};

use egress_common::{flow::CONNECTING_PER_NETNS, listener::ThreadSeen};

use crate::{
    kernel::{KernelError, Listeners, Marks, OwnSockets, cgroup::Scope},
    listener::{self, Handle},
    netns::{
        self, Netns, NetnsCookie, NetnsInode,
        discover::{self, Found, Look},
        inode_of_thread,
        population::Population,
    },
    socket::{self, SocketFactory},
    worker::Workers,
};

use self::served::{Served, is_in};

/// Of how many namespaces the kernel is asked for the connections in one walk: it looks through all of the machine's for each.
const ASKED_AT_ONCE: usize = 4;

/// How long after that it is not looked again how many sockets are connecting, where as many were as seemed to be.
const COUNTED: Duration = Duration::from_secs(60);

/// Where more sockets than so many seem to be connecting in a namespace, it is looked whether they are.
const SEEM_MANY: u64 = CONNECTING_PER_NETNS / 2;

/// Finds namespaces, and lets them go when their last process is gone: our listeners would keep them alive.
pub(super) struct Namespaces {
    scope: Scope,
    sockets: SocketFactory,
    marks: Marks,
    kernel: Listeners,
    served: HashMap<NetnsInode, Served>,
    /// Those that could not be served: what they have learned is still true.
    unserved: HashMap<NetnsInode, Unserved>,
    population: Population,
    /// The last walk could not look at all that there is, and this was logged.
    passes_over: bool,
    /// How closely walks look at least.
    look: Look,
    /// Listening sockets of the agent before us, in namespaces that are not served yet.
    inherited: HashMap<NetnsCookie, Vec<TcpListener>>,
    /// Served even if no process in scope lives in it.
    kept: Option<NetnsInode>,
    /// Whether connections wait for their first byte before they are accepted, as clients speak first on all of them.
    defers: bool,
}

struct Unserved {
    /// None if it could not even be entered.
    cookie: Option<NetnsCookie>,
    witness: ThreadSeen,
}

impl Namespaces {
    pub(super) fn new(scope: Scope, own_sockets: OwnSockets, kernel: Listeners, defers: bool) -> io::Result<Self> {
        let (served, unserved, inherited) = (HashMap::new(), HashMap::new(), HashMap::new());
        let (marks, sockets, population) = (own_sockets.marks(), SocketFactory::new(own_sockets), Population::new()?);
        let (passes_over, look, kept) = (false, Look::Processes, None);
        Ok(Self {
            scope,
            sockets,
            marks,
            kernel,
            served,
            unserved,
            population,
            passes_over,
            look,
            inherited,
            kept,
            defers,
        })
    }

    pub(super) fn cgroups(&self) -> &[PathBuf] {
        &self.scope.cgroups
    }

    /// Those that are there; all of them if none is.
    pub(super) fn cgroups_there(&self) -> Vec<PathBuf> {
        let there: Vec<_> = self.cgroups().iter().filter(|cgroup| cgroup.exists()).cloned().collect();
        if there.is_empty() { self.cgroups().to_owned() } else { there }
    }

    /// Those that have to be there at a start. One that goes later is not to stop all.
    pub(super) fn cgroups_wanted(&self) -> Vec<PathBuf> {
        if self.scope.are_all_wanted { self.cgroups().to_owned() } else { self.cgroups_there() }
    }

    pub(super) fn served(&self) -> Vec<Netns> {
        self.served.values().map(|served| served.handle.netns.clone()).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.served.len()
    }

    /// How many cannot be served, so that what is configured is refused there.
    pub(super) fn unserved(&self) -> usize {
        self.unserved.len()
    }

    /// The names in the kernel's maps of the namespaces that are known to be there, be it that they cannot be served.
    pub(super) fn there(&self) -> foldhash::HashSet<NetnsCookie> {
        let unserved = self.unserved.values().filter_map(|unserved| unserved.cookie);
        self.cookies().chain(unserved).collect()
    }

    /// Whether there may be others, of which only that is known.
    pub(super) fn may_lack_some(&self) -> bool {
        self.passes_over || self.unserved.values().any(|unserved| unserved.cookie.is_none())
    }

    /// A process in a namespace, for people to know it by; 0 if there is none.
    pub(super) fn pid_of(&self, netns: NetnsCookie) -> u32 {
        let mut served = self.served.values();
        served.find(|served| served.handle.netns.cookie() == netns).map_or(0, |served| served.witness.pid)
    }

    fn cookies(&self) -> impl Iterator<Item = NetnsCookie> {
        self.served.values().map(|served| served.handle.netns.cookie())
    }

    /// Serves a namespace for good.
    pub(super) fn keep(&mut self, netns: &Netns, workers: &mut Workers) -> io::Result<()> {
        self.kept = Some(netns.inode());
        let pid = std::process::id();
        self.serve(netns, ThreadSeen { pid, tid: pid }, workers)
    }

    /// Takes the listening sockets of the agent before us, to be used as their namespaces are served.
    pub(super) fn inherit(&mut self, sockets: Vec<TcpListener>) -> io::Result<()> {
        for socket in sockets {
            self.inherited.entry(netns::cookie_of(&socket)?).or_default().push(socket);
        }
        Ok(())
    }

    /// Our listening sockets.
    pub(super) fn sockets(&self) -> impl Iterator<Item = &mio::net::TcpListener> {
        self.served.values().flat_map(|served| &served.handle.sockets).map(AsRef::as_ref)
    }

    /// Has no more connections come to our listeners: connects to configured destinations are refused from now on.
    pub(super) fn refuse(&mut self) {
        self.served.values().for_each(|served| refuse(&mut self.kernel, &served.handle));
    }

    /// Has all connections be accepted that have come, and says whether there may be some on which nothing has.
    pub(super) fn defer_no_more(&self) -> bool {
        self.sockets().for_each(|socket| socket::defer_accept(socket, false));
        // To look at many takes longer than to wait for them.
        let is_used = |served: &Served| served.has_clients(&self.marks);
        self.defers && (self.served.len() > ASKED_AT_ONCE || self.served.values().any(is_used))
    }

    /// Says again where the listeners are, in case another agent has said otherwise.
    pub(super) fn announce(&mut self) -> Result<(), KernelError> {
        self.served
            .values()
            .try_for_each(|Served { handle, .. }| self.kernel.insert(handle.netns.cookie(), handle.v4, handle.v6))
    }

    /// Whether an agent that uses our maps has put its own listeners in the place of ours, or has let them go.
    pub(super) fn are_others_announced(&self) -> bool {
        let is_ours =
            |Served { handle, .. }: &Served| self.kernel.is_current(handle.netns.cookie(), handle.v4, handle.v6);
        !self.served.values().all(is_ours)
    }

    /// Forgets what an earlier agent served. To be called when this one is sure to take over.
    pub(super) fn disown(&mut self) -> Result<(), KernelError> {
        self.inherited.clear();
        self.kernel.retain(&self.cookies().collect())
    }

    /// Takes in what the kernel reported.
    pub(super) fn seen(&mut self, seen: &HashSet<ThreadSeen>, workers: &mut Workers) {
        for &thread in seen {
            let ThreadSeen { pid, tid } = thread;
            if pid == 0 {
                // It could be anybody.
                self.look = Look::Threads;
                self.population.expect();
                continue;
            }
            match inode_of_thread(pid, tid) {
                Ok(inode) if self.served.contains_key(&inode) => {}
                Ok(inode) => {
                    // Its cgroup is to be watched.
                    self.population.expect();
                    self.try_to_serve(inode, Netns::of_thread(pid, tid), thread, workers);
                }
                // The thread ended. If its process has others, the next socket or the next walk tells of them.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(pid, %error, "cannot see the network namespace of a process; it is not served");
                }
            }
        }
    }

    /// Waits until the processes in scope are to be looked through.
    pub(super) async fn changed(&mut self) {
        self.population.changed().await;
    }

    /// Brings what is served in line with the processes in scope.
    pub(super) fn reconcile(&mut self, look: Look, workers: &mut Workers) -> io::Result<()> {
        let look = look.max(self.look);
        let Found { threads: found, passed_over } =
            discover::namespaces(&self.scope.cgroups, look, &mut self.population)?;
        let is_news = mem::replace(&mut self.passes_over, passed_over.is_some()) != passed_over.is_some();
        if let Some(error) = passed_over.filter(|_| is_news) {
            tracing::warn!(%error, "not all processes can be looked at; network namespaces of theirs alone are not served");
        }
        for (&inode, &pid) in &found {
            if !self.served.contains_key(&inode) {
                self.try_to_serve(inode, Netns::of_process(pid), ThreadSeen { pid, tid: pid }, workers);
            }
        }
        // A walk does not see those of single threads.
        self.unserved.retain(|&inode, unserved| found.contains_key(&inode) || is_in(unserved.witness, inode));
        let unseen = self.unserved.iter().filter(|(inode, _)| !found.contains_key(inode));
        for (inode, witness) in unseen.map(|(inode, unserved)| (*inode, unserved.witness)).collect::<Vec<_>>() {
            self.try_to_serve(inode, Netns::of_thread(witness.pid, witness.tid), witness, workers);
        }
        let (mut deserted, mut gone) = (Vec::new(), Vec::new());
        for (&inode, served) in &mut self.served {
            if found.contains_key(&inode) || self.kept == Some(inode) || served.is_used() {
                served.was_empty = false;
            } else {
                deserted.push((inode, served));
            }
        }
        // Each has its turn.
        deserted.sort_unstable_by_key(|(_, served)| served.asked);
        let mut asked = 0;
        for (inode, served) in deserted {
            let is_empty = if !served.has_connections() {
                true
            } else if asked < ASKED_AT_ONCE {
                asked += 1;
                served.asked = Some(Instant::now());
                !served.has_clients(&self.marks)
            } else {
                // For the next walk to see.
                continue;
            };
            match (mem::replace(&mut served.was_empty, is_empty), is_empty) {
                (true, true) => gone.push(inode),
                // To be looked at again before long.
                (false, true) => self.population.expect(),
                (_, false) => {}
            }
        }
        for inode in gone {
            self.close(inode, workers);
        }
        Ok(())
    }

    /// Looks where many sockets seem to be connecting whether they are: the programs are not told of the end of all, as somebody else's
    /// can put another callback in place of theirs.
    pub(super) fn recount(&mut self) {
        let seem_many = |served: &&mut Served| {
            // It is a walk through all connections of the machine.
            let is_due = served.miscounted > 0 || served.asked.is_none_or(|asked| asked.elapsed() > COUNTED);
            is_due && self.kernel.connecting(served.handle.netns.cookie()) > SEEM_MANY
        };
        let mut crowded: Vec<_> = self.served.values_mut().filter(seem_many).collect();
        // Each has its turn.
        crowded.sort_unstable_by_key(|served| served.asked);
        for served in crowded.into_iter().take(ASKED_AT_ONCE) {
            served.asked = Some(Instant::now());
            let netns = served.handle.netns.cookie();
            let before = self.kernel.connecting(netns);
            let Ok(clients) = served.clients(&self.marks) else { continue };
            let there = clients.filter(|client| client.connecting).count() as u64;
            // Some begin and some end while the kernel lists them, first of one family and then of the other: two looks have to agree.
            let miscounted = before.min(self.kernel.connecting(netns)).saturating_sub(there);
            let ended = mem::replace(&mut served.miscounted, miscounted).min(miscounted);
            if ended <= SEEM_MANY / 2 {
                served.miscounted = if miscounted > SEEM_MANY / 2 { miscounted } else { 0 };
                continue;
            }
            served.miscounted = 0;
            match self.kernel.discount(netns, ended) {
                Ok(()) => tracing::debug!(?netns, ended, "counted the sockets anew that are connecting"),
                Err(error) => tracing::warn!(?netns, %error, "cannot count the sockets anew that are connecting"),
            }
        }
    }

    /// Closes all listeners. Connections may finish.
    pub(super) fn close_all(&mut self) {
        self.served.clear();
    }

    /// Serves a namespace that a thread was seen in. That it cannot be is said once, until it can be or is gone.
    fn try_to_serve(
        &mut self,
        inode: NetnsInode,
        netns: io::Result<Netns>,
        witness: ThreadSeen,
        workers: &mut Workers,
    ) {
        let (pid, cookie) = (witness.pid, netns.as_ref().ok().map(Netns::cookie));
        match netns.and_then(|netns| self.serve(&netns, witness, workers)) {
            Ok(()) if self.unserved.remove(&inode).is_some() => {
                tracing::info!(pid, "a network namespace that could not be served is served now");
            }
            Ok(()) => {}
            // The process ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                if self.unserved.insert(inode, Unserved { cookie, witness }).is_none() {
                    tracing::warn!(pid, %error, "cannot serve a network namespace; its connects are refused");
                }
            }
        }
    }

    fn serve(&mut self, netns: &Netns, witness: ThreadSeen, workers: &mut Workers) -> io::Result<()> {
        if self.served.contains_key(&netns.inode()) {
            return Ok(());
        }
        let inherited = self.inherited.remove(&netns.cookie()).unwrap_or_default();
        let (handle, listeners) = listener::open(&self.sockets, netns, inherited, self.defers)?;
        for listener in listeners {
            workers.listen(listener);
        }
        // Listening first: the hooks refuse what nobody listens to.
        self.kernel.insert(netns.cookie(), handle.v4, handle.v6).map_err(io::Error::other)?;
        tracing::debug!(netns = ?netns.cookie(), v4 = handle.v4, v6 = handle.v6, "serving a network namespace");
        self.served.insert(netns.inode(), Served { handle, witness, was_empty: false, asked: None, miscounted: 0 });
        Ok(())
    }

    /// Lets a namespace go whose last process is gone.
    fn close(&mut self, inode: NetnsInode, workers: &Workers) {
        let Some(Served { handle, .. }) = self.served.remove(&inode) else { return };
        let netns = handle.netns.cookie();
        refuse(&mut self.kernel, &handle);
        // Nobody is left to read what its connections would still bring, and they would keep the namespace alive.
        handle.gone.cancel();
        workers.forget(netns);
        drop(handle);
        tracing::debug!(?netns, "let a network namespace go");
    }
}

/// Has no more connections come to listeners.
fn refuse(kernel: &mut Listeners, Handle { netns, v4, v6, .. }: &Handle) {
    if let Err(error) = kernel.remove(netns.cookie(), *v4, *v6) {
        tracing::warn!(netns = ?netns.cookie(), %error, "a listener is left in the kernel's map; its connects are refused");
    }
}
