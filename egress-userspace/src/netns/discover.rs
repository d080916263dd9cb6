//! Which network namespaces the processes under a cgroup live in.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::{NetnsInode, inode_of_process, population::Population};

/// How closely a walk looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Look {
    /// At the namespaces that processes began in or went to, which is where their first threads are.
    Processes,
    /// At those that single threads are in as well: of these the kernel tells only as they make sockets.
    Threads,
}

/// Walks the cgroups and gives one thread for each network namespace found, by its id. Cgroups and processes that vanish meanwhile
/// are passed over. From then on `population` tells when one of the cgroups loses its last process.
///
/// # Errors
/// One of the given cgroups is gone, or something cannot be read: what was found is then not all.
pub fn namespaces(
    cgroups: &[PathBuf],
    look: Look,
    population: &mut Population,
) -> io::Result<HashMap<NetnsInode, u32>> {
    let mut found = HashMap::new();
    for cgroup in cgroups {
        fs::read_dir(cgroup)?;
        walk(cgroup, look, population, &mut found)?;
    }
    population.sweep();
    Ok(found)
}

fn walk(
    cgroup: &Path,
    look: Look,
    population: &mut Population,
    found: &mut HashMap<NetnsInode, u32>,
) -> io::Result<()> {
    let read = || unless_gone(fs::read_to_string(cgroup.join("cgroup.procs")));
    let Some(mut processes) = read()? else { return Ok(()) };
    if !processes.is_empty() && population.watch(cgroup) {
        // Some may have ended before they were watched.
        processes = read()?.unwrap_or_default();
    }
    // A process of another pid namespace reads as 0.
    for pid in processes.lines().filter_map(|line| line.parse().ok()).filter(|&pid: &u32| pid != 0) {
        if let Some(inode) = unless_gone(inode_of_process(pid))? {
            found.entry(inode).or_insert(pid);
            if look == Look::Processes {
                continue;
            }
        }
        // The thread that a process began with can have ended before others. They are processes of their own to whoever asks
        // /proc for their ids.
        for tid in threads(pid)? {
            if let Some(inode) = unless_gone(inode_of_process(tid))? {
                found.entry(inode).or_insert(tid);
            }
        }
    }
    let Some(children) = unless_gone(fs::read_dir(cgroup))? else { return Ok(()) };
    for child in children.flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&child.path(), look, population, found)?;
        }
    }
    Ok(())
}

/// The ids of a process's threads; none if it is gone.
fn threads(pid: u32) -> io::Result<Vec<u32>> {
    let Some(entries) = unless_gone(fs::read_dir(format!("/proc/{pid}/task")))? else { return Ok(Vec::new()) };
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        // A file of a process or a cgroup that ended while it was open reads as ESRCH or ENODEV. A threaded cgroup
        // does not list its processes (EOPNOTSUPP); its root does.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENODEV | libc::EOPNOTSUPP)) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
