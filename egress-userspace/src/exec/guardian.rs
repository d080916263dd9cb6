//! A process that ends the command and all that it left running, also when we are killed.
//!
//! It holds the programs' links open, so that interception goes on while it kills what runs in the cgroup and removes it:
//! nothing of the command goes on in clear, not even a grandchild.

use std::{
    ffi::{CStr, CString},
    io::{self, PipeWriter},
    os::{fd::AsRawFd as _, unix::ffi::OsStrExt as _},
    path::Path,
};

use nix::unistd::{ForkResult, Pid, fork};

/// Kills the command when it is dropped, or when our process ends in whatever way.
pub(super) struct Guardian {
    pid: Pid,
    /// The guardian waits for its end.
    alive: Option<PipeWriter>,
}

/// Looks at the cgroup while its processes are dying, 10 ms apart.
const ATTEMPTS: usize = 500;

impl Guardian {
    /// Starts the guardian of a cgroup. To be called once the programs are attached: it inherits their links.
    pub(super) fn start(cgroup: &Path) -> io::Result<Self> {
        let kill = CString::new(cgroup.join("cgroup.kill").as_os_str().as_bytes())?;
        let events = CString::new(cgroup.join("cgroup.events").as_os_str().as_bytes())?;
        let directory = CString::new(cgroup.as_os_str().as_bytes())?;
        let (dead, alive) = io::pipe()?;
        let alive_fd = alive.as_raw_fd();
        // SAFETY: other threads exist, so that the child makes only system calls, on memory that was allocated before.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Self { pid: child, alive: Some(alive) }),
            ForkResult::Child => {
                // SAFETY: system calls only; the strings end with a zero, and the descriptors are open.
                unsafe {
                    libc::setsid();
                    libc::close(alive_fd);
                    // Nothing is ever written: this returns when no process has the other end any more.
                    let mut byte = 0u8;
                    while libc::read(dead.as_raw_fd(), (&raw mut byte).cast(), 1) < 0
                        && *libc::__errno_location() == libc::EINTR
                    {}
                    for _ in 0..ATTEMPTS {
                        let file = libc::open(kill.as_ptr(), libc::O_WRONLY);
                        libc::write(file, c"1".as_ptr().cast(), 1);
                        libc::close(file);
                        if !is_populated(&events) {
                            break;
                        }
                        libc::usleep(10_000);
                    }
                    // Our parent removes it if it lives, with what the command made in it.
                    libc::rmdir(directory.as_ptr());
                    libc::_exit(0)
                }
            }
        }
    }
}

/// Whether a process is left in the cgroup or below (cgroup.events, "populated"). Allocates nothing.
fn is_populated(events: &CStr) -> bool {
    let mut text = [0u8; 128];
    // SAFETY: the string ends with a zero, and the length is that of the buffer.
    let length = unsafe {
        let file = libc::open(events.as_ptr(), libc::O_RDONLY);
        let length = libc::read(file, text.as_mut_ptr().cast(), text.len());
        libc::close(file);
        length
    };
    let text = usize::try_from(length).ok().and_then(|length| text.get(..length)).unwrap_or_default();
    text.windows(b"populated 1".len()).any(|window| window == b"populated 1")
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.alive.take());
        // It ends by itself now, within ATTEMPTS.
        let _ = nix::sys::wait::waitpid(self.pid, None);
    }
}
