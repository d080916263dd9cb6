//! The command: started inside its cgroup as the invoking user, sent the signals that we get.

use std::{
    env,
    ffi::{CString, OsString},
    fs::OpenOptions,
    io::{self, Read as _, Write as _},
    mem::MaybeUninit,
    path::Path,
    process::Stdio,
    ptr,
};

use nix::{
    sys::{
        signal::{SigSet, SigmaskHow, Signal, kill},
        signalfd::{SfdFlags, SignalFd, siginfo},
    },
    unistd::{Gid, Pid, Uid, User, getgrouplist, setgid, setgroups, setuid},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    process::{Child, Command},
};

use super::{ExecError, io_error};
use crate::descriptors::Descriptors;

/// What was so before we changed it for ourselves, and is to be so for the command.
#[derive(Clone, Copy)]
pub(super) struct Before {
    /// The signals that were blocked.
    pub(super) blocked: SigSet,
    /// With their limit.
    pub(super) descriptors: Descriptors,
}

/// What the new process does before it becomes the command, in this order.
const STEPS: [&str; 4] = [
    "cannot put the command into its cgroup",
    "cannot give the command its signals back",
    "cannot give the command its limit of descriptors back",
    "cannot run the command as the user who called sudo",
];

/// Starts `command` in `cgroup`.
pub(super) fn spawn(command: &[OsString], cgroup: &Path, before: Before) -> Result<Child, ExecError> {
    let procs = OpenOptions::new().write(true).open(cgroup.join("cgroup.procs"));
    let mut procs = procs.map_err(io_error("cannot open the command's cgroup"))?;
    let invoker = Invoker::of_sudo().map_err(io_error("cannot look up the user who called sudo"))?;
    // Says how far the new process has come: the error alone could be the command's.
    let (mut told, mut tell) = io::pipe().map_err(io_error("cannot make a pipe"))?;
    let mut child = Command::new(&command[0]);
    child.args(&command[1..]).stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
    if let Some(user) = invoker.as_ref().and_then(|invoker| invoker.user.as_ref()) {
        child.env("HOME", &user.dir).env("SHELL", &user.shell).env("USER", &user.name).env("LOGNAME", &user.name);
    }
    // SAFETY: between fork and exec only system calls are made; all memory was allocated before.
    unsafe {
        child.pre_exec(move || {
            let mut step = || tell.write_all(b".");
            step()?;
            // 0 stands for the writing process.
            procs.write_all(b"0")?;
            step()?;
            before.blocked.thread_set_mask()?;
            step()?;
            before.descriptors.restore_limit()?;
            step()?;
            if let Some(invoker) = &invoker {
                invoker.become_it()?;
            }
            step()
        });
    }
    let spawned = child.spawn();
    // With it goes our end of the pipe.
    drop(child);
    spawned.map_err(|source| {
        let mut steps = Vec::new();
        match told.read_to_end(&mut steps) {
            Ok(count) if count > STEPS.len() => ExecError::Spawn { command: command[0].display().to_string(), source },
            Ok(1..) => ExecError::Io { what: STEPS[steps.len() - 1], source },
            _ => ExecError::Io { what: "cannot start a process", source },
        }
    })
}

/// The user who called sudo.
struct Invoker {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    /// None if the user database does not know the number.
    user: Option<User>,
}

impl Invoker {
    /// Who that is, by what sudo sets (sudo(8), "ENVIRONMENT"); None if sudo is not in play, or root called it.
    fn of_sudo() -> io::Result<Option<Self>> {
        let id = |name| env::var(name).ok().and_then(|value| value.parse::<u32>().ok());
        let (Some(uid), Some(gid)) = (id("SUDO_UID"), id("SUDO_GID")) else { return Ok(None) };
        if uid == 0 || !nix::unistd::geteuid().is_root() {
            return Ok(None);
        }
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        let user = User::from_uid(uid)?;
        let groups = match &user {
            Some(user) => getgrouplist(&CString::new(user.name.as_bytes())?, gid)?,
            None => vec![gid],
        };
        Ok(Some(Self { uid, gid, groups, user }))
    }

    fn become_it(&self) -> nix::Result<()> {
        setgroups(&self.groups)?;
        setgid(self.gid)?;
        setuid(self.uid)
    }
}

/// Signals that are blocked, to be read from a descriptor.
pub(super) struct BlockedSignals {
    descriptor: SignalFd,
    before: SigSet,
}

impl BlockedSignals {
    /// Blocks the signals in this thread and in those that it will start.
    pub(super) fn block(signals: &SigSet) -> io::Result<Self> {
        let before = signals.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        let descriptor = SignalFd::with_flags(signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Self { descriptor, before })
    }

    /// What was blocked before, which is what the command is to start with.
    pub(super) fn before(&self) -> SigSet {
        self.before
    }

    /// Watches the descriptor in the current runtime.
    pub(super) fn watch(self) -> io::Result<Signals> {
        // SAFETY: the value owns its descriptor, which neither closes nor changes before it is dropped.
        let watched = unsafe { AsyncFd::register_with_interest(self.descriptor, Interest::READABLE) }?;
        Ok(Signals(watched))
    }
}

/// Signals that were sent to us.
pub(super) struct Signals(AsyncFd<SignalFd>);

impl Signals {
    /// Waits for the next signal.
    pub(super) async fn next(&mut self) -> io::Result<siginfo> {
        self.0
            .async_io_mut(Interest::READABLE, |descriptor| {
                descriptor.read_signal()?.ok_or_else(|| io::ErrorKind::WouldBlock.into())
            })
            .await
    }

    /// Waits for the next one that would have ended us if we had not taken it over.
    pub(super) async fn next_deadly(&mut self) -> io::Result<Signal> {
        loop {
            if let Ok(signal) = Signal::try_from(self.next().await?.ssi_signo.cast_signed())
                && is_deadly(signal)
            {
                return Ok(signal);
            }
        }
    }
}

/// Whether a signal ends a process that does nothing about it. Those that whoever started us has ignored do not, as nohup(1)
/// does: blocked, they arrive all the same.
fn is_deadly(signal: Signal) -> bool {
    let mut inherited = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: nothing is changed, and what is written to has the size of what is written.
    let ignored = unsafe {
        libc::sigaction(signal as i32, ptr::null(), inherited.as_mut_ptr()) == 0
            && inherited.assume_init().sa_sigaction == libc::SIG_IGN
    };
    signal != Signal::SIGWINCH && !ignored
}

/// Passes a signal on to the command.
pub(super) fn forward(child: &Child, info: siginfo) {
    // The terminal sends its signals (Ctrl-C) to the whole foreground process group, the command included.
    let from_terminal = info.ssi_code == libc::SI_KERNEL;
    let (Some(pid), Ok(signal)) = (child.id(), Signal::try_from(info.ssi_signo.cast_signed())) else { return };
    if !from_terminal {
        // It may just have ended.
        let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
    }
}
