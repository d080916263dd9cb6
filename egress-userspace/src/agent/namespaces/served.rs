//! One network namespace that is served.

use std::{io, os::fd::AsFd as _, sync::atomic::Ordering, time::Instant};

use egress_common::listener::ThreadSeen;

use crate::{
    kernel::Marks,
    listener::Handle,
    netns::{
        NetnsInode, inode_of_thread,
        sock_diag::{Connection, Protocol, SockDiag},
    },
};

/// What is known of it.
pub(super) struct Served {
    pub(super) handle: Handle,
    /// By which it was found. A walk sees only the namespaces of processes; a thread can be in one of its own.
    pub(super) witness: ThreadSeen,
    /// The last walk found no process in it. One may have come in while it went on, which the kernel does not report of a
    /// namespace that is served: so it takes two.
    pub(super) was_empty: bool,
    /// When the kernel was last asked for its connections.
    pub(super) asked: Option<Instant>,
    /// How many connecting sockets were counted that were not there when it was last looked.
    pub(super) miscounted: u64,
}

impl Served {
    /// Whether the witness still is in this namespace, so that somebody is left to be served.
    pub(super) fn is_used(&self) -> bool {
        is_in(self.witness, self.handle.netns.inode())
    }

    /// Whether connections to us have yet to end.
    pub(super) fn has_connections(&self) -> bool {
        self.handle.load.connections.load(Ordering::Relaxed) > 0
    }

    /// Whether somebody has one of them, as far as we know: a process can have gone to another namespace, and keeps its sockets.
    pub(super) fn has_clients(&self, marks: &Marks) -> bool {
        self.clients(marks).map_or(true, |mut clients| clients.any(|client| client.held))
    }

    /// The sockets that were redirected to us, or are being so.
    pub(super) fn clients(&self, marks: &Marks) -> io::Result<impl Iterator<Item = Connection>> {
        let Handle { netns, v4, v6, .. } = &self.handle;
        let ports = [*v4, *v6];
        let all = SockDiag::open(netns).and_then(|kernel| kernel.connections(Protocol::Tcp, marks.as_fd()));
        let all =
            all.inspect_err(|error| tracing::debug!(netns = ?netns.cookie(), %error, "cannot list connections"))?;
        let is_ours =
            move |socket: &Connection| socket.remote.ip().is_loopback() && ports.contains(&socket.remote.port());
        Ok(all.into_iter().filter(is_ours))
    }
}

/// Whether a thread is in a network namespace, as far as we know: one that cannot be looked at is where it was.
pub(super) fn is_in(ThreadSeen { pid, tid }: ThreadSeen, netns: NetnsInode) -> bool {
    inode_of_thread(pid, tid).map_or_else(|error| error.kind() != io::ErrorKind::NotFound, |inode| inode == netns)
}
