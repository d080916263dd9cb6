//! What workers know of each other: who they are, and what each has to do.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::sync::mpsc;
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use crate::{
    limits::{Beyond, Limits},
    listener::Listener,
    netns::NetnsCookie,
    request::Accepted,
    route::ClusterId,
};

/// Heads are counted in steps of so many bytes, as most are shorter: workers share nothing for their sake.
const STEP: usize = 8 * 1024;

/// All workers, as each of them sees the others.
pub(super) struct Crew {
    pub(super) members: Vec<Member>,
    /// How long all heads are together that are counted.
    pub(super) heads: AtomicUsize,
}

pub(super) struct Member {
    pub(super) commands: mpsc::UnboundedSender<Command>,
    /// Connections that are being served.
    pub(super) connections: AtomicUsize,
}

/// What a worker is told.
pub(super) enum Command {
    /// Accept connections here.
    Listen(Listener),
    /// Serve a connection that another worker accepted.
    Serve(std::net::TcpStream, Box<Accepted>, Load),
    /// A network namespace is gone.
    Forget(NetnsCookie),
    /// Somebody needs a connection to this cluster, to which there may be no more.
    GiveUp(ClusterId),
    /// End, and break off what is under way.
    Stop,
}

impl Crew {
    /// Tells all of them.
    pub(super) fn tell(&self, command: impl Fn() -> Command) {
        for member in &self.members {
            // A worker ends only with the process.
            let _ = member.commands.send(command());
        }
    }

    /// How many connections there are.
    pub(super) fn connections(&self) -> usize {
        self.members.iter().map(|member| member.connections.load(Relaxed)).sum()
    }

    /// The worker with the fewest connections; `preferred` if none has fewer.
    pub(super) fn least_loaded(&self, preferred: usize) -> usize {
        let load = |index: usize| self.members[index].connections.load(Relaxed);
        (0..self.members.len()).min_by_key(|&index| (load(index), index != preferred)).unwrap_or(preferred)
    }
}

/// What there is of one network namespace.
#[derive(Debug, Default)]
pub struct PodLoad {
    /// Its connections.
    pub connections: AtomicUsize,
    /// How long those of its heads are together that are counted.
    heads: AtomicUsize,
}

/// Counts heads, or trailers, for as long as it lives.
pub(super) struct Heads {
    crew: Arc<Crew>,
    of_pod: Arc<PodLoad>,
    own: Cell<usize>,
}

/// Counts a connection, and its heads, for as long as it lives, from before it is handed over.
pub struct Load {
    index: usize,
    heads: Heads,
    _open: TaskTrackerToken,
}

impl Load {
    /// One connection more.
    pub(super) fn add(crew: Arc<Crew>, index: usize, of_pod: Arc<PodLoad>, open: &TaskTracker) -> Self {
        crew.members[index].connections.fetch_add(1, Relaxed);
        of_pod.connections.fetch_add(1, Relaxed);
        Self { index, heads: Heads::new(crew, of_pod), _open: open.token() }
    }

    /// One more of the same network namespace.
    pub(super) fn another(&self, open: &TaskTracker) -> Self {
        Self::add(self.heads.crew.clone(), self.index, self.heads.of_pod.clone(), open)
    }

    /// That of its network namespace.
    pub(super) fn of_pod(&self) -> &PodLoad {
        &self.heads.of_pod
    }

    /// Counts so much as its heads, in bytes.
    ///
    /// # Errors
    /// That would be beyond a limit, and it stays as it was.
    pub fn hold(&self, heads: usize, limits: &Limits) -> Result<(), Beyond> {
        self.heads.hold(heads, limits)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.heads.crew.members[self.index].connections.fetch_sub(1, Relaxed);
        self.heads.of_pod.connections.fetch_sub(1, Relaxed);
    }
}

impl Heads {
    /// None of a network namespace.
    pub(super) fn new(crew: Arc<Crew>, of_pod: Arc<PodLoad>) -> Self {
        Self { crew, of_pod, own: Cell::default() }
    }

    /// Counts so much, in bytes.
    ///
    /// # Errors
    /// That would be beyond a limit, and it stays as it was.
    pub(super) fn hold(&self, heads: usize, limits: &Limits) -> Result<(), Beyond> {
        let (before, heads) = (self.own.get(), heads - heads % STEP);
        let add = |sum: &AtomicUsize, limit: usize| {
            let more = |sum: usize| Some(sum + (heads - before)).filter(|sum| *sum <= limit);
            sum.fetch_update(Relaxed, Relaxed, more).is_ok()
        };
        if heads > before {
            if !add(&self.of_pod.heads, limits.heads_per_pod) {
                return Err(Beyond::PodHeads(limits.heads_per_pod));
            }
            if !add(&self.crew.heads, limits.heads) {
                self.of_pod.heads.fetch_sub(heads - before, Relaxed);
                return Err(Beyond::AllHeads(limits.heads));
            }
        } else if heads < before {
            self.of_pod.heads.fetch_sub(before - heads, Relaxed);
            self.crew.heads.fetch_sub(before - heads, Relaxed);
        }
        self.own.set(heads);
        Ok(())
    }
}

impl Drop for Heads {
    fn drop(&mut self) {
        let heads = self.own.get();
        if heads > 0 {
            self.of_pod.heads.fetch_sub(heads, Relaxed);
            self.crew.heads.fetch_sub(heads, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_bounded_for_each_pod_and_for_all() {
        let (commands, _inbox) = mpsc::unbounded_channel();
        let members = vec![Member { commands, connections: AtomicUsize::new(0) }];
        let crew = Arc::new(Crew { members, heads: AtomicUsize::new(0) });
        let (open, pods) = (TaskTracker::new(), [Arc::<PodLoad>::default(), Arc::default()]);
        let load = |pod: usize| Load::add(crew.clone(), 0, pods[pod].clone(), &open);
        let limits = Limits { heads: 5 * STEP, heads_per_pod: 3 * STEP, ..Limits::default() };
        let [a, b, c] = [load(0), load(0), load(1)];
        let hold = |load: &Load, heads: usize| load.hold(heads, &limits);
        assert_eq!(hold(&a, 2 * STEP + 1), Ok(()));
        assert_eq!(hold(&b, STEP - 1), Ok(()), "what is short does not count");
        assert_eq!(hold(&b, 2 * STEP), Err(Beyond::PodHeads(3 * STEP)));
        assert_eq!(hold(&b, STEP), Ok(()), "what was refused does not count");
        assert_eq!(hold(&c, 3 * STEP), Err(Beyond::AllHeads(5 * STEP)));
        assert_eq!(hold(&c, 2 * STEP), Ok(()));
        assert_eq!(hold(&a, STEP), Ok(()));
        assert_eq!(hold(&c, 3 * STEP), Ok(()), "there is room again");
        drop((a, b, c));
        assert!(pods.iter().all(|pod| pod.heads.load(Relaxed) == 0) && crew.heads.load(Relaxed) == 0);
    }
}
