//! Network namespaces: what they are called in the kernel's maps, and how a thread works in one for a moment.

pub mod discover;
pub mod population;
pub mod sock_diag;

use std::{
    fmt,
    fs::{self, File},
    io,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{Arc, OnceLock},
};

use nix::sched::{CloneFlags, setns};

/// Names a network namespace in the kernel's maps (`SO_NETNS_COOKIE`); never used again once the namespace is gone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsCookie(pub u64);

impl fmt::Debug for NetnsCookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "netns:{}", self.0)
    }
}

/// Inode number of a network namespace, which is how /proc names it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NetnsInode(u64);

/// A network namespace that is held open.
#[derive(Clone, Debug)]
pub struct Netns(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cookie: NetnsCookie,
    inode: NetnsInode,
    /// None for the agent's own namespace, which needs no entering.
    file: Option<File>,
}

/// The agent's own network namespace, for the way back.
static HOME: OnceLock<File> = OnceLock::new();

impl Netns {
    /// The network namespace of a process, by its id in our pid namespace.
    ///
    /// # Errors
    /// The process is gone, or we lack the privilege to enter its namespace (CAP_SYS_ADMIN).
    pub fn of_process(pid: u32) -> io::Result<Self> {
        Self::open(&format!("/proc/{pid}"))
    }

    /// The network namespace of one thread of a process.
    ///
    /// # Errors
    /// The thread is gone, or as above.
    pub fn of_thread(pid: u32, tid: u32) -> io::Result<Self> {
        Self::open(&format!("/proc/{pid}/task/{tid}"))
    }

    fn open(task: &str) -> io::Result<Self> {
        let file = File::open(format!("{task}/ns/net")).map_err(|error| or_gone(error, task))?;
        let inode = NetnsInode(file.metadata()?.ino());
        let home = home()?;
        let file = (home.metadata()?.ino() != inode.0).then_some(file);
        let cookie = within(file.as_ref(), cookie_here)?;
        Ok(Self(Arc::new(Inner { cookie, inode, file })))
    }

    /// The namespace's name in the kernel's maps.
    pub fn cookie(&self) -> NetnsCookie {
        self.0.cookie
    }

    /// The namespace's name in /proc.
    pub fn inode(&self) -> NetnsInode {
        self.0.inode
    }

    /// Whether it is the agent's own, which needs no entering.
    pub fn is_own(&self) -> bool {
        self.0.file.is_none()
    }

    /// Runs `work` with the current thread in this namespace. Sockets made by it stay there.
    ///
    /// # Errors
    /// Those of `work`, or that the namespace cannot be entered.
    pub fn run<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        within(self.0.file.as_ref(), work)
    }
}

/// The inode of a process's network namespace, without entering it.
///
/// # Errors
/// The process is gone.
pub fn inode_of_process(pid: u32) -> io::Result<NetnsInode> {
    inode(&format!("/proc/{pid}"))
}

/// The inode of a thread's network namespace, without entering it.
///
/// # Errors
/// The thread is gone.
pub fn inode_of_thread(pid: u32, tid: u32) -> io::Result<NetnsInode> {
    inode(&format!("/proc/{pid}/task/{tid}"))
}

fn inode(task: &str) -> io::Result<NetnsInode> {
    let metadata = fs::metadata(format!("{task}/ns/net")).map_err(|error| or_gone(error, task))?;
    Ok(NetnsInode(metadata.ino()))
}

/// The kernel refuses to follow the link of one that was reaped a moment ago as if that were not allowed (proc_ns_get_link).
fn or_gone(error: io::Error, task: &str) -> io::Error {
    match error.kind() {
        io::ErrorKind::PermissionDenied if !Path::new(task).exists() => io::ErrorKind::NotFound.into(),
        _ => error,
    }
}

/// Remembers the namespace that the process is in. To be called before any thread enters another one.
fn home() -> io::Result<&'static File> {
    if let Some(home) = HOME.get() {
        return Ok(home);
    }
    let home = File::open("/proc/self/ns/net")?;
    Ok(HOME.get_or_init(|| home))
}

fn within<T>(file: Option<&File>, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let Some(file) = file else { return work() };
    let home = home()?;
    setns(file, CloneFlags::CLONE_NEWNET)?;
    let _return = Return(home);
    work()
}

/// The way back, also from a panic.
struct Return(&'static File);

impl Drop for Return {
    fn drop(&mut self) {
        if let Err(error) = setns(self.0, CloneFlags::CLONE_NEWNET) {
            // The thread would make its next sockets in the wrong namespace. There is no safe way on.
            tracing::error!(%error, "cannot return to the agent's own network namespace");
            std::process::abort();
        }
    }
}

/// The cookie of the namespace that this thread is in.
fn cookie_here() -> io::Result<NetnsCookie> {
    // Any socket tells; this one is never used.
    cookie_of(&UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?)
}

/// The cookie of the namespace that a socket is in.
///
/// # Errors
/// It is no socket.
pub fn cookie_of(socket: &impl AsRawFd) -> io::Result<NetnsCookie> {
    let mut cookie = 0u64;
    let mut length = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the pointers are to live variables, and the length is that of the first.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if status == 0 { Ok(NetnsCookie(cookie)) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_in_our_namespace_needs_no_entering() {
        let own = Netns::of_process(std::process::id()).expect("our own namespace");
        assert!(own.is_own());
        assert_eq!(own.inode(), inode_of_process(std::process::id()).expect("our own namespace"));
        assert_eq!(own.run(|| Ok(7)).expect("work does not fail"), 7);
    }

    #[test]
    fn a_process_that_was_reaped_meanwhile_is_gone() {
        let denied = |task: &str| or_gone(io::ErrorKind::PermissionDenied.into(), task).kind();
        assert_eq!(denied("/proc/8388608"), io::ErrorKind::NotFound);
        assert_eq!(denied("/proc/self"), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        // Beyond the largest pid that Linux can be configured for (PID_MAX_LIMIT).
        assert_eq!(Netns::of_process(1 << 23).expect_err("no such process").kind(), io::ErrorKind::NotFound);
    }
}
