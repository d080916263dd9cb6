//! Cgroups of version 2: where they are mounted, which to attach to, and child cgroups of our own.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    os::unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

/// Where kubelet keeps the pods' cgroups, under its two cgroup drivers.
const KUBEPODS: [&str; 2] = ["kubepods.slice", "kubepods"];

/// What is served.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The cgroups, none of which is within another.
    pub cgroups: Vec<PathBuf>,
    /// Whether all of them have to be there at a start. Otherwise one does, and the others may come.
    pub are_all_wanted: bool,
}

impl Scope {
    /// These cgroups. Those that are within others are left out: where two of our programs run for one connect, the second would take
    /// what the first has rewritten for the application's own.
    pub fn of(mut cgroups: Vec<PathBuf>) -> Self {
        cgroups.sort();
        cgroups.dedup_by(|inner, outer| inner.starts_with(outer));
        Self { cgroups, are_all_wanted: true }
    }
}

/// Why there is no cgroup to work with.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup2 file system is mounted.
    #[error(
        "no cgroup2 file system is mounted (none in /proc/self/mounts); mount one: mount -t cgroup2 none /sys/fs/cgroup"
    )]
    NotMounted,
    /// The given directory is not a cgroup of version 2.
    #[error("{0} is not a cgroup2 directory: it has no cgroup.procs")]
    NotACgroup(PathBuf),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn io_error(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.into();
    |source| CgroupError::Io { path, source }
}

/// The mount point of the cgroup2 hierarchy.
///
/// # Errors
/// None is mounted.
pub fn mount_point() -> Result<PathBuf, CgroupError> {
    let mounts = fs::read("/proc/self/mounts").map_err(io_error("/proc/self/mounts"))?;
    find_mount(&mounts).ok_or(CgroupError::NotMounted)
}

/// The mount point in a mount table. By file system type, not by path: hybrid hosts have it at /sys/fs/cgroup/unified. What
/// else is mounted can have any bytes in its path.
pub fn find_mount(mounts: &[u8]) -> Option<PathBuf> {
    mounts.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let (_device, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == b"cgroup2").then(|| OsString::from_vec(unescape(path)).into())
    })
}

/// The cgroup that a process is in, below where the hierarchy is mounted, by the list in its `cgroup` file in /proc. It can have any
/// bytes in its path, and so can what it is in of version 1.
pub fn find_own(list: &[u8]) -> PathBuf {
    // The line of the version 2 hierarchy starts with "0::" (cgroups(7)).
    let own = list.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"0::/"));
    OsString::from_vec(own.unwrap_or_default().to_vec()).into()
}

/// Mount tables write blanks and backslashes as octal escapes (getmntent(3)).
fn unescape(path: &[u8]) -> Vec<u8> {
    let (mut plain, mut rest) = (Vec::with_capacity(path.len()), path);
    while let Some((byte, after)) = rest.split_first() {
        let (byte, after) = match *rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ref after @ ..] => {
                ((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), after)
            }
            _ => (*byte, after),
        };
        plain.push(byte);
        rest = after;
    }
    plain
}

/// The pods' cgroups where the node has some, else the root of the hierarchy, which is said.
///
/// # Errors
/// No cgroup2 is mounted.
pub fn default_scope() -> Result<Scope, CgroupError> {
    let root = mount_point()?;
    Ok(pods(&root).unwrap_or_else(|| {
        tracing::warn!(
            "there is no cgroup of pods (kubepods): all processes are in scope; `--cgroup DIR` says otherwise"
        );
        Scope::of(vec![root])
    }))
}

/// Those of both drivers, if there is one: it can be left of another driver, and only the other has pods, or will have some.
fn pods(root: &Path) -> Option<Scope> {
    let cgroups = KUBEPODS.map(|name| root.join(name));
    cgroups.iter().any(|path| is_cgroup(path)).then(|| Scope { cgroups: cgroups.into(), are_all_wanted: false })
}

/// Checks a directory that the user named.
///
/// # Errors
/// It is not a cgroup of version 2.
pub fn check(path: &Path) -> Result<PathBuf, CgroupError> {
    let path = fs::canonicalize(path).map_err(io_error(path))?;
    if is_cgroup(&path) { Ok(path) } else { Err(CgroupError::NotACgroup(path)) }
}

/// The cgroups at and below these, by the ids that the kernel knows them by: their inode numbers. Those that vanish
/// meanwhile are left out.
///
/// # Errors
/// One cannot be listed, for want of descriptors as a rule.
pub fn ids(cgroups: &[PathBuf]) -> io::Result<HashMap<u64, PathBuf>> {
    let mut found = HashMap::new();
    let mut left = cgroups.to_owned();
    while let Some(path) = left.pop() {
        let Ok(id) = fs::metadata(&path).map(|metadata| metadata.ino()) else { continue };
        let children = match fs::read_dir(&path) {
            Ok(children) => children.flatten(),
            // It has vanished; one that is open already says the latter.
            Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV) => {
                continue;
            }
            Err(error) => return Err(error),
        };
        left.extend(
            children.filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir())).map(|child| child.path()),
        );
        found.insert(id, path);
    }
    Ok(found)
}

/// Version 1 directories have cgroup.procs too, but no cgroup.events, which only the root of version 2 lacks.
fn is_cgroup(path: &Path) -> bool {
    path.join("cgroup.procs").exists()
        && (path.join("cgroup.events").exists() || mount_point().is_ok_and(|root| root == path))
}

/// A child cgroup of ours, removed when dropped; nothing may be left in it then.
pub struct ChildCgroup {
    path: PathBuf,
}

impl ChildCgroup {
    /// Makes a cgroup called `name` in the cgroup that this process is in.
    ///
    /// # Errors
    /// No cgroup2 is mounted, or we may not write there.
    pub fn create(name: &str) -> Result<Self, CgroupError> {
        let own = fs::read("/proc/self/cgroup").map_err(io_error("/proc/self/cgroup"))?;
        Self::create_in(&mount_point()?.join(find_own(&own)), name)
    }

    /// Makes a cgroup called `name` in another.
    ///
    /// # Errors
    /// The other is gone, or we may not write there.
    pub fn create_in(parent: &Path, name: &str) -> Result<Self, CgroupError> {
        let path = parent.join(name);
        match fs::create_dir(&path) {
            // An earlier process of ours was killed; unless something lives in it, it is free.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_dir(&path).and_then(|()| fs::create_dir(&path))
            }
            created => created,
        }
        .map_err(io_error(&path))?;
        Ok(Self { path })
    }

    /// The cgroup's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that moves a process here which writes "0" to it.
    ///
    /// # Errors
    /// The cgroup was removed.
    pub fn procs(&self) -> Result<File, CgroupError> {
        let path = self.path.join("cgroup.procs");
        OpenOptions::new().write(true).open(&path).map_err(io_error(path))
    }
}

impl Drop for ChildCgroup {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "a cgroup is left behind");
        }
    }
}

/// Removes a cgroup and those that the command made in it.
fn remove(path: &Path) -> io::Result<()> {
    let children = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        children => children?,
    };
    for child in children.flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&child.path())?;
        }
    }
    fs::remove_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_served_under_both_drivers_if_there_is_one() {
        for names in [&KUBEPODS[..1], &KUBEPODS[1..], &KUBEPODS] {
            let root = tempfile::tempdir().expect("a temporary directory");
            assert!(pods(root.path()).is_none());
            for directory in names.iter().map(|name| root.path().join(name)) {
                fs::create_dir(&directory).expect("mkdir");
                for file in ["cgroup.procs", "cgroup.events"] {
                    fs::write(directory.join(file), "").expect("write");
                }
            }
            let scope = pods(root.path()).expect("there are some");
            assert_eq!(scope.cgroups, KUBEPODS.map(|name| root.path().join(name)));
            assert!(!scope.are_all_wanted);
        }
    }

    #[test]
    fn a_cgroup_within_another_is_left_out() {
        let check = |given: &[&str], expected: &[&str]| {
            let given = given.iter().map(PathBuf::from).collect();
            assert_eq!(Scope::of(given).cgroups, expected.iter().map(PathBuf::from).collect::<Vec<_>>());
        };
        check(&["/cg/a/b", "/cg/a", "/cg/a"], &["/cg/a"]);
        check(&["/cg/ab", "/cg/a", "/cg/a/x/y"], &["/cg/a", "/cg/ab"]);
    }

    #[test]
    fn the_own_cgroup_is_that_of_version_2() {
        let check = |list: &[u8], expected: &[u8]| {
            assert_eq!(find_own(list).into_os_string().into_vec(), expected);
        };
        check(b"0::/user.slice/a b:c\n", b"user.slice/a b:c");
        check(b"12:cpu,cpuacct:/0::/x\n1:name=systemd:/\xff\n0::/\xfe\n", b"\xfe");
        check(b"0::/\n", b"");
        check(b"1:cpu:/a\n", b"");
        check(b"", b"");
    }

    #[test]
    fn the_mount_is_found_by_type() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let find = |mounts: &str| find_mount(mounts.as_bytes());
        assert_eq!(find(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(find("none /mnt/my\\040cgroups cgroup2 rw 0 0"), Some("/mnt/my cgroups".into()));
        assert_eq!(find("none /a\\134040\\x cgroup2 rw 0 0"), Some("/a\\040\\x".into()));
        assert_eq!(find("tmpfs /tmp tmpfs rw 0 0"), None);
        // Somebody else's mount point is no text.
        assert_eq!(find_mount(b"none /\xff tmpfs rw 0 0\nnone /cg cgroup2 rw 0 0\n"), Some("/cg".into()));
    }
}
