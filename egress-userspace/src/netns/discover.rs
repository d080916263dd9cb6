//! Which network namespaces the processes under a cgroup live in.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::{NetnsInode, inode_of_process};

/// Walks the cgroups and gives one process for each network namespace found. Cgroups and processes that vanish meanwhile
/// are passed over.
///
/// # Errors
/// One of the given cgroups itself cannot be read.
pub fn namespaces(cgroups: &[PathBuf]) -> io::Result<HashMap<NetnsInode, u32>> {
    let mut found = HashMap::new();
    for cgroup in cgroups {
        fs::read_dir(cgroup)?;
        walk(cgroup, &mut found);
    }
    Ok(found)
}

fn walk(cgroup: &Path, found: &mut HashMap<NetnsInode, u32>) {
    let processes = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    // A process of another pid namespace reads as 0.
    for pid in processes.lines().filter_map(|line| line.parse().ok()).filter(|&pid: &u32| pid != 0) {
        if let Ok(inode) = inode_of_process(pid) {
            found.entry(inode).or_insert(pid);
        }
    }
    let Ok(children) = fs::read_dir(cgroup) else { return };
    for child in children.flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&child.path(), found);
        }
    }
}
