//! What a process does between fork and exec to be where it should be.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io,
    os::{fd::AsRawFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    ptr,
};

use anyhow::{Context, Result};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

/// Files and directories of the machine that a process sees replaced by others.
#[derive(Clone, Debug, Default)]
pub struct Mounts {
    binds: Vec<(PathBuf, PathBuf)>,
}

impl Mounts {
    /// Shows `source` at `target`, which must exist.
    pub fn bind(&mut self, source: impl Into<PathBuf>, target: impl Into<PathBuf>) {
        self.binds.push((source.into(), target.into()));
    }
}

#[derive(Debug, Default)]
pub(super) struct Placement {
    pub(super) cgroup_procs: Option<File>,
    pub(super) netns: Option<File>,
    pub(super) mounts: Option<Mounts>,
    pub(super) uid: Option<u32>,
    pub(super) nice: Option<i32>,
    pub(super) cpus: Option<CpuSet>,
}

impl Placement {
    /// Allocates everything that `enter` needs.
    pub(super) fn prepare(self) -> Result<Prepared> {
        let binds = match &self.mounts {
            None => None,
            Some(mounts) => Some(
                mounts
                    .binds
                    .iter()
                    .map(|(source, target)| Ok((c_path(source)?, c_path(target)?)))
                    .collect::<Result<Vec<_>>>()?,
            ),
        };
        Ok(Prepared {
            cgroup_procs: self.cgroup_procs,
            netns: self.netns,
            binds,
            uid: self.uid,
            nice: self.nice,
            cpus: self.cpus,
        })
    }
}

pub(super) struct Prepared {
    cgroup_procs: Option<File>,
    netns: Option<File>,
    binds: Option<Vec<(CString, CString)>>,
    uid: Option<u32>,
    nice: Option<i32>,
    cpus: Option<CpuSet>,
}

impl Prepared {
    /// Runs in the child, where nothing may allocate: raw system calls only.
    pub(super) fn enter(&self) -> io::Result<()> {
        // Tests that run in a shell's background have some of them ignored, which would be inherited.
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
            // SAFETY: no memory is involved, and there are no handlers.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        // The namespace first: an agent serves those that processes of its cgroup are in, and must never see the machine's.
        if let Some(netns) = &self.netns {
            // SAFETY: the descriptor is open. /sys is not remounted, so that cgroup paths stay visible.
            check(unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) })?;
        }
        if let Some(procs) = &self.cgroup_procs {
            // SAFETY: writes one byte of a static string. "0" stands for the writing process.
            let written = unsafe { libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) };
            check(written as libc::c_int)?;
        }
        if let Some(binds) = &self.binds {
            // SAFETY: no memory is involved.
            check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
            // Without this the binds could show on the machine itself.
            mount(None, c"/", libc::MS_REC | libc::MS_PRIVATE)?;
            for (source, target) in binds {
                mount(Some(source), target, libc::MS_BIND)?;
            }
        }
        if let Some(nice) = self.nice {
            // SAFETY: no memory is involved. 0 stands for the calling process.
            check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) })?;
        }
        if let Some(cpus) = &self.cpus {
            // 0 stands for the calling thread, the only one here.
            sched_setaffinity(Pid::from_raw(0), cpus)?;
        }
        if let Some(uid) = self.uid {
            // SAFETY: the list of groups is empty; otherwise no memory is involved. The uid goes last: the others need it.
            unsafe {
                check(libc::setgroups(0, ptr::null()))?;
                check(libc::setresgid(uid, uid, uid))?;
                check(libc::setresuid(uid, uid, uid))?;
            }
        }
        Ok(())
    }
}

fn mount(source: Option<&CString>, target: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    let source = source.map_or(ptr::null(), |source| source.as_ptr());
    // SAFETY: both strings were made before the fork; type and data may be null for these flags.
    check(unsafe { libc::mount(source, target.as_ptr(), ptr::null(), flags, ptr::null()) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).with_context(|| format!("{} has a zero byte", path.display()))
}
