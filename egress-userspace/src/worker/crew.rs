//! What workers know of each other: who they are, and what each has to do.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::mpsc;
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use crate::{listener::Listener, netns::NetnsCookie, request::Accepted, route::ClusterId};

/// All workers, as each of them sees the others.
pub(super) struct Crew {
    pub(super) members: Vec<Member>,
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
        self.members.iter().map(|member| member.connections.load(Ordering::Relaxed)).sum()
    }

    /// The worker with the fewest connections; `preferred` if none has fewer.
    pub(super) fn least_loaded(&self, preferred: usize) -> usize {
        let load = |index: usize| self.members[index].connections.load(Ordering::Relaxed);
        (0..self.members.len()).min_by_key(|&index| (load(index), index != preferred)).unwrap_or(preferred)
    }
}

/// Counts a connection for as long as it lives, from before it is handed over.
pub struct Load {
    crew: Arc<Crew>,
    index: usize,
    /// How many its network namespace has.
    of_pod: Arc<AtomicUsize>,
    _open: TaskTrackerToken,
}

impl Load {
    /// One connection more.
    pub(super) fn add(crew: Arc<Crew>, index: usize, of_pod: Arc<AtomicUsize>, open: &TaskTracker) -> Self {
        crew.members[index].connections.fetch_add(1, Ordering::Relaxed);
        of_pod.fetch_add(1, Ordering::Relaxed);
        Self { crew, index, of_pod, _open: open.token() }
    }

    /// One more of the same network namespace.
    pub(super) fn another(&self, open: &TaskTracker) -> Self {
        Self::add(self.crew.clone(), self.index, self.of_pod.clone(), open)
    }

    /// How many its network namespace has.
    pub(super) fn of_pod(&self) -> &AtomicUsize {
        &self.of_pod
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.crew.members[self.index].connections.fetch_sub(1, Ordering::Relaxed);
        self.of_pod.fetch_sub(1, Ordering::Relaxed);
    }
}
