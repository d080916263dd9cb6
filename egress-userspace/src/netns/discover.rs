//! Which network namespaces the processes under a cgroup live in.

use std::{
    collections::HashMap,
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use super::{NetnsInode, inode_of_process, population::Population};

/// How closely a walk looks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Look {
    /// At the namespaces that processes began in or went to, which is where their first threads are.
    Processes,
    /// At those that single threads are in as well: of these the kernel tells only as they make sockets.
    Threads,
}

/// What a walk has found.
#[derive(Debug, Default)]
pub struct Found {
    /// One thread for each network namespace, by its id.
    pub threads: HashMap<NetnsInode, u32>,
    /// The first process or cgroup that could not be looked at, and was passed over.
    pub passed_over: Option<io::Error>,
}

/// Walks the cgroups. Cgroups and processes that vanish meanwhile are passed over, and so are single ones that cannot be looked
/// at. From then on `population` tells when one of the cgroups loses its last process.
///
/// # Errors
/// All of the given cgroups are gone, or one cannot be read; or something fails that is not about single ones.
pub fn namespaces(cgroups: &[PathBuf], look: Look, population: &mut Population) -> io::Result<Found> {
    let mut walk = Walk { look, population, found: Found::default() };
    let mut gone = Vec::new();
    for cgroup in cgroups {
        match fs::read_dir(cgroup).map_err(at(cgroup)) {
            Ok(_) => walk.cgroup(cgroup)?,
            Err(error) if error.kind() == ErrorKind::NotFound => gone.push(error),
            Err(error) => return Err(error),
        }
    }
    if gone.len() == cgroups.len()
        && let Some(error) = gone.pop()
    {
        return Err(error);
    }
    walk.population.sweep();
    Ok(walk.found)
}

struct Walk<'a> {
    look: Look,
    population: &'a mut Population,
    found: Found,
}

impl Walk<'_> {
    fn cgroup(&mut self, cgroup: &Path) -> io::Result<()> {
        let list = cgroup.join("cgroup.procs");
        let read = || unless_gone(fs::read_to_string(&list)).map_err(at(&list));
        let Some(mut processes) = read()? else { return Ok(()) };
        if !processes.is_empty() && self.population.watch(cgroup) {
            // Some may have ended before they were watched.
            processes = read()?.unwrap_or_default();
        }
        for pid in processes.lines().filter_map(|line| line.parse().ok()) {
            let looked = match pid {
                0 => Err(at(&list)(ErrorKind::PermissionDenied.into())),
                _ => self.process(pid),
            };
            self.pass_over(looked)?;
        }
        let Some(children) = unless_gone(fs::read_dir(cgroup)).map_err(at(cgroup))? else { return Ok(()) };
        for child in children.flatten() {
            if child.file_type().is_ok_and(|kind| kind.is_dir()) {
                let walked = self.cgroup(&child.path());
                self.pass_over(walked)?;
            }
        }
        Ok(())
    }

    fn process(&mut self, pid: u32) -> io::Result<()> {
        if self.thread(pid)? && self.look == Look::Processes {
            return Ok(());
        }
        // The thread that a process began with can have ended before others. They are processes of their own to whoever asks
        // /proc for their ids.
        threads(pid)?.into_iter().try_for_each(|tid| self.thread(tid).map(drop))
    }

    /// Says whether it is there.
    fn thread(&mut self, tid: u32) -> io::Result<bool> {
        let inode = unless_gone(inode_of_process(tid)).map_err(|error| at(format!("/proc/{tid}/ns/net"))(error))?;
        if let Some(inode) = inode {
            self.found.threads.entry(inode).or_insert(tid);
        }
        Ok(inode.is_some())
    }

    /// Lets a process or cgroup be that in itself cannot be looked at, as for a security module, or at the end of too long a path.
    /// What else is in the way may be in that of all.
    fn pass_over(&mut self, looked: io::Result<()>) -> io::Result<()> {
        match looked {
            Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::InvalidFilename) => {
                self.found.passed_over.get_or_insert(error);
                Ok(())
            }
            looked => looked,
        }
    }
}

/// The ids of a process's threads; none if it is gone.
fn threads(pid: u32) -> io::Result<Vec<u32>> {
    let directory = format!("/proc/{pid}/task");
    let Some(entries) = unless_gone(fs::read_dir(&directory)).map_err(at(directory))? else { return Ok(Vec::new()) };
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// Says what an error is about.
fn at(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.as_ref().display()))
}

fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        // A file of a process or a cgroup that ended while it was open reads as ESRCH or ENODEV. A threaded cgroup
        // does not list its processes (EOPNOTSUPP); its root does.
        Err(error)
            if error.kind() == ErrorKind::NotFound
                || matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENODEV | libc::EOPNOTSUPP)) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_of_another_pid_namespace_is_passed_over() {
        let cgroup = tempfile::tempdir().expect("a temporary directory");
        let list = cgroup.path().join("cgroup.procs");
        let own = std::process::id();
        for (processes, is_passed_over) in [(format!("{own}\n"), false), (format!("0\n{own}\n"), true)] {
            fs::write(&list, processes).expect("write");
            let mut population = Population::new().expect("inotify");
            let found = namespaces(&[cgroup.path().to_owned()], Look::Processes, &mut population).expect("a walk");
            assert_eq!((found.threads.len(), found.passed_over.is_some()), (1, is_passed_over));
        }
    }
}
