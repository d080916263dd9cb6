//! A cgroup of the test's own: the agent's programs are attached there, never at the root.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::wait::{PATIENCE, wait_until};

/// A cgroup (version 2) below the root, emptied and removed on drop.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    keep: bool,
}

impl Cgroup {
    /// Makes the cgroup `name` right below the root of the cgroup2 mount.
    pub fn create(name: &str) -> Result<Self> {
        Self::create_at(mount_point()?.join(name))
    }

    /// Makes a cgroup below this one, as a pod's below the kubelet's. It must be dropped first.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::create_at(self.path.join(name))
    }

    fn create_at(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("creating the cgroup {} (as root?)", path.display()))?;
        Ok(Self { path, keep: false })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The cgroup's id, as BPF programs see it: the inode number of its directory.
    pub fn id(&self) -> Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(fs::metadata(&self.path)?.ino())
    }

    /// The file that takes the pid of a process to be moved here.
    pub fn procs(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// Leaves the cgroup behind on drop.
    pub(crate) fn keep(&mut self) {
        self.keep = true;
    }

    fn is_empty(&self) -> bool {
        fs::read_to_string(self.path.join("cgroup.events")).is_ok_and(|events| events.contains("populated 0"))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        fs::write(self.path.join("cgroup.kill"), "1").ok();
        if let Err(error) =
            wait_until("the cgroup to be empty", PATIENCE, || self.is_empty()).and_then(|()| remove_tree(&self.path))
        {
            eprintln!("{} stays behind: {error:#}", self.path.display());
        }
    }
}

/// Where the cgroup2 file system is mounted: /sys/fs/cgroup, or below it on hybrid machines.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .map(|fields| PathBuf::from(fields[1]))
        .context("no cgroup2 file system is mounted")
}

/// Removes a cgroup and those below it. `remove_dir_all` does not do: the files inside cannot be unlinked.
fn remove_tree(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path)?.flatten().filter(|entry| entry.path().is_dir()) {
        remove_tree(&entry.path())?;
    }
    fs::remove_dir(path).with_context(|| format!("removing {}", path.display()))
}
