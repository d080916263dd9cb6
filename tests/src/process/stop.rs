//! Processes that hang, and where.

use std::{fs, time::Instant};

use anyhow::{Context, Result, bail};
use nix::{
    sys::{
        ptrace::{self, Options},
        signal::Signal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::Running;
use crate::wait::{PATIENCE, wait_until};

impl Running {
    /// Stops it, wherever it is. SIGCONT wakes it.
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        self.wait_until_stopped()
    }

    /// Stops it when its first thread has next made this system call. SIGCONT wakes it.
    pub fn stop_after(&self, call: libc::c_long) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let pid = Pid::from_raw(self.pid().cast_signed());
        ptrace::seize(pid, Options::PTRACE_O_TRACESYSGOOD).with_context(|| format!("tracing {}", self.name))?;
        ptrace::interrupt(pid)?;
        let mut is_call = false;
        loop {
            let signal = match waitpid(pid, Some(WaitPidFlag::__WALL))? {
                WaitStatus::PtraceSyscall(_) => {
                    let info = ptrace::syscall_info(pid)?;
                    if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
                        // SAFETY: this is the member that the kernel has filled in on the way into a call.
                        is_call = unsafe { info.u.entry.nr } == call.cast_unsigned();
                    } else if is_call {
                        ptrace::detach(pid, Signal::SIGSTOP)?;
                        return self.wait_until_stopped();
                    }
                    None
                }
                // On its way to it.
                WaitStatus::Stopped(_, signal) => Some(signal),
                WaitStatus::PtraceEvent(..) => None,
                status => bail!("{} ended before the system call: {status:?}", self.name),
            };
            if Instant::now() >= deadline {
                bail!("{} does not make the system call; it said:\n{}", self.name, self.stderr().join("\n"));
            }
            ptrace::syscall(pid, signal)?;
        }
    }

    /// Waits until none of its threads runs.
    fn wait_until_stopped(&self) -> Result<()> {
        let tasks = format!("/proc/{}/task", self.pid());
        wait_until(&format!("{} to stop", self.name), PATIENCE, || {
            let stopped = |task: fs::DirEntry| {
                // `pid (name) state ...`; the name can hold anything.
                let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
            };
            fs::read_dir(&tasks).is_ok_and(|mut tasks| tasks.all(|task| task.is_ok_and(stopped)))
        })
    }
}
