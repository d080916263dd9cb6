//! Programs, and what they are attached to.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use super::syscall::{link_to_cgroup, link_to_tracepoint};

/// A program that is loaded.
pub(super) struct Program {
    descriptor: OwnedFd,
    /// Its `enum bpf_attach_type` of linux/bpf.h.
    attach_type: u32,
    /// Those that last as long as it, by the cgroup's id; 0 for what is no cgroup.
    links: Vec<(u64, OwnedFd)>,
}

impl Program {
    pub(super) fn new(descriptor: OwnedFd, attach_type: u32) -> Self {
        Self { descriptor, attach_type, links: Vec::new() }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Attaches it to a cgroup for as long as the link is open or pinned.
    pub(super) fn link(&self, cgroup: &File) -> io::Result<OwnedFd> {
        link_to_cgroup(self.as_fd(), cgroup.as_fd(), self.attach_type)
    }

    /// Attaches it to a cgroup with this id for as long as it lives, unless it is. Says whether it was not.
    pub(super) fn attach(&mut self, cgroup: &File, id: u64) -> io::Result<bool> {
        if self.links.iter().any(|(attached, _)| *attached == id) {
            return Ok(false);
        }
        self.links.push((id, self.link(cgroup)?));
        Ok(true)
    }

    /// Ends what was to last as long as it, but on these cgroups.
    pub(super) fn retain(&mut self, ids: &[u64]) {
        self.links.retain(|(id, _)| ids.contains(id));
    }

    /// Attaches it to a tracepoint, with its arguments as they are, for as long as it lives.
    pub(super) fn attach_to_tracepoint(&mut self, name: &str) -> io::Result<()> {
        self.links.push((0, link_to_tracepoint(self.as_fd(), name)?));
        Ok(())
    }

    /// Whether anything lasts as long as it.
    pub(super) fn is_attached(&self) -> bool {
        !self.links.is_empty()
    }

    /// Ends what was to last as long as it.
    pub(super) fn detach(&mut self) {
        self.links.clear();
    }
}
