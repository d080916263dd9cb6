//! A cgroup of the test's own: the agent's programs are attached there, never at the root.

use std::{
    ffi::CString,
    fs,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::wait::{PATIENCE, wait_until};

/// How many programs an agent attaches to each cgroup.
pub const PROGRAMS: u32 = 9;

/// Of linux/bpf.h.
const BPF_CGROUP_SOCK_OPS: u32 = 3;

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

    /// How many of the programs that an agent attaches are attached here.
    pub fn programs(&self) -> Result<u32> {
        /// `BPF_CGROUP_INET_INGRESS`, `_INET_SOCK_CREATE`, `_SOCK_OPS`, `_INET4_CONNECT`, `_INET6_CONNECT`, `_UDP4_SENDMSG`,
        /// `_UDP6_SENDMSG`, `_INET4_GETPEERNAME`, `_INET6_GETPEERNAME` of linux/bpf.h.
        const ATTACH_TYPES: [u32; PROGRAMS as usize] = [0, 2, 3, 10, 11, 14, 15, 29, 30];
        let directory = fs::File::open(&self.path)?;
        ATTACH_TYPES.iter().map(|attach_type| programs_attached(&directory, *attach_type)).sum()
    }

    /// Attaches a program, after those that are there, that wants to be told of nothing that happens to a socket
    /// (`bpf_sock_ops_cb_flags_set`), whatever others want. It is there for as long as the cgroup.
    pub fn attach_deaf_program(&self) -> Result<()> {
        const BPF_PROG_ATTACH: libc::c_long = 8;
        const BPF_F_ALLOW_MULTI: u32 = 2;
        let program = deaf_program()?;
        let directory = fs::File::open(&self.path)?;
        let descriptors = [directory.as_raw_fd(), program.as_raw_fd()].map(libc::c_int::cast_unsigned);
        let mut attach = [descriptors[0], descriptors[1], BPF_CGROUP_SOCK_OPS, BPF_F_ALLOW_MULTI];
        // SAFETY: nothing is pointed to, and the attributes have the announced size.
        if unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw mut attach, size_of_val(&attach)) } != 0 {
            bail!("BPF_PROG_ATTACH: {}", std::io::Error::last_os_error());
        }
        Ok(())
    }

    /// Attaches as many programs of one type as the kernel takes; they are there for as long as these links.
    pub fn fill(&self) -> Result<Vec<OwnedFd>> {
        const BPF_LINK_CREATE: libc::c_long = 28;
        let program = deaf_program()?;
        let directory = fs::File::open(&self.path)?;
        let descriptors = [program.as_raw_fd(), directory.as_raw_fd()].map(libc::c_int::cast_unsigned);
        let mut links = Vec::new();
        loop {
            let mut create = [descriptors[0], descriptors[1], BPF_CGROUP_SOCK_OPS, 0];
            // SAFETY: nothing is pointed to, and the attributes have the announced size.
            let link = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, &raw mut create, size_of_val(&create)) };
            if link < 0 {
                let error = std::io::Error::last_os_error();
                return if error.raw_os_error() == Some(libc::E2BIG) { Ok(links) } else { Err(error.into()) };
            }
            // SAFETY: the kernel has just given us this descriptor.
            links.push(unsafe { OwnedFd::from_raw_fd(link as libc::c_int) });
        }
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

/// See `attach_deaf_program`.
fn deaf_program() -> Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_PROG_TYPE_SOCK_OPS: u32 = 13;
    // r2 = 0; call bpf_sock_ops_cb_flags_set; r0 = 1; exit
    let code: [u64; 4] = [0x02b7, 59 << 32 | 0x85, 1 << 32 | 0xb7, 0x95];
    // Type and count, then where the instructions and the license are.
    let mut load =
        [u64::from(BPF_PROG_TYPE_SOCK_OPS) | (code.len() as u64) << 32, code.as_ptr() as u64, c"GPL".as_ptr() as u64];
    // SAFETY: what is pointed to lives as long as the call, and the attributes have the announced size.
    let program = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw mut load, size_of_val(&load)) };
    if program < 0 {
        bail!("BPF_PROG_LOAD: {}", std::io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(program as libc::c_int) })
}

fn programs_attached(directory: &fs::File, attach_type: u32) -> Result<u32> {
    const BPF_PROG_QUERY: libc::c_long = 16;
    /// The part of `union bpf_attr` for this command, up to the count.
    #[repr(C)]
    struct Query {
        target: libc::c_int,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        reserved: u32,
    }
    let (target, size) = (directory.as_raw_fd(), size_of::<Query>());
    let mut query = Query { target, attach_type, query_flags: 0, attach_flags: 0, ids: 0, count: 0, reserved: 0 };
    // SAFETY: the structure has the announced size, and without room for ids the kernel writes nothing but the count.
    let status = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size) };
    if status != 0 {
        bail!("BPF_PROG_QUERY: {}", std::io::Error::last_os_error());
    }
    Ok(query.count)
}

/// Detaches the link that is pinned there, which stays pinned, as `bpftool link detach` does.
pub fn detach_link(pin: &Path) -> Result<()> {
    const BPF_OBJ_GET: libc::c_long = 7;
    const BPF_LINK_DETACH: libc::c_long = 34;
    let path = CString::new(pin.as_os_str().as_bytes())?;
    // The path, and no descriptor and no flags.
    let mut get = [path.as_ptr() as u64, 0];
    // SAFETY: the path lives as long as the call, and the attributes have the announced size.
    let link = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw mut get, size_of_val(&get)) };
    if link < 0 {
        bail!("{}: {}", pin.display(), std::io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    let link = unsafe { OwnedFd::from_raw_fd(link as libc::c_int) };
    let mut detach = [link.as_raw_fd()];
    // SAFETY: nothing is pointed to, and the attributes have the announced size.
    if unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, &raw mut detach, size_of_val(&detach)) } != 0 {
        bail!("BPF_LINK_DETACH: {}", std::io::Error::last_os_error());
    }
    Ok(())
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
