//! The directory in which agents meet.

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{AtFlags, OFlag, renameat},
    sys::stat::fstatat,
    unistd::{UnlinkatFlags, geteuid, unlinkat},
};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{io::unix::AsyncFd, time};

use super::{Predecessor, Successors, channel::Channel};
use crate::kernel::privilege_hint;

/// Where agents meet by default.
pub const DEFAULT_DIR: &str = "/run/egress";

/// The running agent listens here.
const SOCKET: &str = "agent.sock";
/// The socket of one that starts, until its predecessor has handed over.
const NEW_SOCKET: &str = "agent.sock.new";

/// How long another agent may take to start. It waits for its names.
pub const START_LIMIT: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(20);

/// What is wrong with the state directory.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be made or used.
    #[error("the state directory {path}: {source}{hint}", hint = privilege_hint())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could talk to the agent, or put a socket of their own there.
    #[error(
        "the state directory {path} belongs to user {owner} and has mode {mode:04o}; it must belong to user {user}, who runs \
         egress, and be closed to all others (chmod 0700), or name another one with --state-dir"
    )]
    Open {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Its permissions.
        mode: u32,
        /// Who we are.
        user: u32,
    },
    /// Another agent is starting, and does not get to an end.
    #[error("another egress with the state directory {path} is starting, and has not come to an end for {limit:?}", limit = START_LIMIT)]
    Busy {
        /// Which.
        path: PathBuf,
    },
}

/// The state directory, locked: while this value lives no other agent starts with it.
pub struct StateDir {
    path: PathBuf,
    directory: File,
}

impl StateDir {
    /// Opens or makes the directory, and waits until no other agent is starting.
    ///
    /// # Errors
    /// It cannot be made, others can get in, or the wait is too long.
    pub async fn lock(path: &Path) -> Result<Self, StateError> {
        let failed = |source| StateError::Io { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let directory = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).map_err(failed)?;
        let metadata = directory.metadata().map_err(failed)?;
        let (owner, mode, user) = (metadata.uid(), metadata.mode() & 0o7777, geteuid().as_raw());
        if owner != user || mode & 0o077 != 0 {
            return Err(StateError::Open { path: path.to_owned(), owner, mode, user });
        }
        let began = Instant::now();
        loop {
            match directory.try_lock() {
                Ok(()) => return Ok(Self { path: path.to_owned(), directory }),
                Err(TryLockError::WouldBlock) if began.elapsed() > START_LIMIT => {
                    return Err(StateError::Busy { path: path.to_owned() });
                }
                Err(TryLockError::WouldBlock) => time::sleep(RETRY).await,
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
    }

    /// Tells it from all other directories of the machine, by whatever path and from whatever container it is seen.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn id(&self) -> Result<String, StateError> {
        let metadata = self.directory.metadata();
        let metadata = metadata.map_err(|source| StateError::Io { path: self.path.clone(), source })?;
        Ok(format!("{:x}-{:x}", metadata.dev(), metadata.ino()))
    }

    /// The agent that runs, if there is one. A socket that nobody listens at any more was left by one that has ended.
    pub fn predecessor(&self) -> Option<Predecessor> {
        let connect = || {
            let socket = Socket::new(Domain::UNIX, Type::SEQPACKET.nonblocking(), None)?;
            socket.connect(&self.address(SOCKET)?)?;
            Channel::new(socket)
        };
        match connect() {
            Ok(channel) => Some(Predecessor(channel)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => None,
            Err(error) => {
                tracing::warn!(socket = %self.path.join(SOCKET).display(), %error, "cannot ask the agent that runs");
                None
            }
        }
    }

    /// Listens for successors, under a name that nobody knows yet.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn listen(&self) -> Result<Successors, StateError> {
        let listen = || {
            // Of one that died while it was starting.
            match unlinkat(&self.directory, NEW_SOCKET, UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(nix::errno::Errno::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
            let socket = Socket::new(Domain::UNIX, Type::SEQPACKET.nonblocking(), None)?;
            socket.bind(&self.address(NEW_SOCKET)?)?;
            socket.listen(libc::SOMAXCONN)?;
            // SAFETY: the socket owns its descriptor, which neither closes nor changes before it is dropped.
            let socket = unsafe { AsyncFd::register(socket) }?;
            let inode = fstatat(&self.directory, NEW_SOCKET, AtFlags::AT_SYMLINK_NOFOLLOW)?.st_ino;
            // A copy of our descriptor would keep the lock.
            let directory = File::open(format!("/proc/self/fd/{}", self.directory.as_raw_fd()))?;
            Ok(Successors { socket, path: self.path.clone(), directory, inode, waiting: None })
        };
        listen().map_err(|source| StateError::Io { path: self.path.join(NEW_SOCKET), source })
    }

    /// Makes what was last given by [`Self::listen`] the one that successors find, in place of our predecessor's. The file
    /// is never removed: when we end it may be that of a successor, and one that nobody listens at is as good as none.
    ///
    /// # Errors
    /// The file cannot be renamed.
    pub fn publish(&self) -> Result<(), StateError> {
        renameat(&self.directory, NEW_SOCKET, &self.directory, SOCKET)
            .map_err(|errno| StateError::Io { path: self.path.join(SOCKET), source: errno.into() })
    }

    /// The address of a file in the directory that was checked, however long its path is: 108 bytes are all that fit.
    fn address(&self, name: &str) -> io::Result<SockAddr> {
        SockAddr::unix(format!("/proc/self/fd/{}/{name}", self.directory.as_raw_fd()))
    }
}

/// The inode of the socket's file by which agents are found; None if there is none.
pub(super) fn inode_of_socket(directory: &File) -> Option<u64> {
    fstatat(directory, SOCKET, AtFlags::AT_SYMLINK_NOFOLLOW).ok().map(|status| status.st_ino)
}
