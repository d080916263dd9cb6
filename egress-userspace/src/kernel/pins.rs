//! Programs and maps that outlive the agent, pinned in a bpffs.
//!
//! With the agent dead the programs go on, find no listener, and refuse connects to configured destinations. The next
//! agent takes the maps as they are and replaces the programs in their links, so that there is no moment without them.
//!
//! `PIN_DIR/layout-N/maps/MAP` and `PIN_DIR/layout-N/links/CGROUP/PROGRAM`, where N is the version of the maps' layout and
//! CGROUP the id of the cgroup.

mod users;

use std::{
    fs::{self, DirBuilder},
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use aya::maps::MapInfo;
use egress_common::LAYOUT_VERSION;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::syscall::{detach_link, map_id, open_pin, pin, update_link};

/// Where pins are by default.
pub const DEFAULT_DIR: &str = "/sys/fs/bpf/egress";

const LAYOUT_PREFIX: &str = "layout-";
/// For its owner alone: whoever can open the directory can hold its lock for ever.
const PRIVATE: u32 = 0o700;

/// Where to pin, and for whom.
#[derive(Debug)]
pub struct PinPlace {
    /// The directory, on a bpffs.
    pub directory: PathBuf,
    /// The same for agents that follow one another, and for no others: the name of a directory, without dots.
    pub lineage: String,
}

/// What stands against pinning.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The directory is on another file system.
    #[error(
        "{0} is not on a bpffs, so that nothing could refuse connects while egress is not running; mount one \
         (mount -t bpf bpf /sys/fs/bpf), name one with --pin-dir, or accept clear text then with --fail-open"
    )]
    NotBpffs(PathBuf),
    /// Another agent, which knows nothing of this one, would lose its programs.
    #[error(
        "another egress, with another state directory, uses the pins in {0}; agents that run side by side need a --pin-dir, a \
         --state-dir and an --admin address each, and one that is to take the other's place needs its --state-dir"
    )]
    Others(PathBuf),
    /// What an agent serves would go on in clear.
    #[error("an egress that runs uses the pins in {0}; end it first, or say --force, and all goes on in clear")]
    Running(PathBuf),
    /// What an agent has left would go on to refuse connects, and be in the way of one that pins nothing.
    #[error(
        "programs of an egress that has ended are pinned in {0}, and refuse connects; with --fail-open they are not taken over: \
         remove them first, by `egress detach`"
    )]
    Abandoned(PathBuf),
    /// A file or directory could not be made, read or removed.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A link or map could not be pinned.
    #[error("cannot pin at {path}: {source}")]
    Pin {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> PinError {
    let path = path.to_owned();
    |source| PinError::Io { path, source }
}

/// The directory of pins.
pub struct Pins {
    root: PathBuf,
    lineage: String,
    layout: PathBuf,
    /// Keeps others out for as long as we live.
    used: users::Lock,
}

impl Pins {
    /// Opens or makes the directory. Until this value is dropped no agent of another lineage can.
    ///
    /// # Errors
    /// It is not on a bpffs, cannot be made, or is used by an agent of another lineage.
    pub fn open(place: &PinPlace) -> Result<Self, PinError> {
        let (root, lineage) = (place.directory.clone(), place.lineage.clone());
        let layout = our_layout(&root);
        // Looked at before anything is made, so that nothing is left on another file system.
        check_bpffs(&root)?;
        let used = join(&root, &layout, &lineage)?;
        Ok(Self { root, lineage, layout, used })
    }

    /// Opens or makes the directory once more: `egress detach --force` can have removed it, and with it what keeps others out.
    ///
    /// # Errors
    /// It cannot be made, or is used by an agent of another lineage by now.
    pub fn reopen(&mut self) -> Result<(), PinError> {
        self.used = join(&self.root, &self.layout, &self.lineage)?;
        Ok(())
    }

    /// Where a map is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        map_path(&self.layout, name)
    }

    /// Pins a map, unless it is. Whatever else is pinned in its place is removed.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn hold(&self, name: &str, map: BorrowedFd<'_>) -> Result<(), PinError> {
        let path = self.map(name);
        let refused = |source| PinError::Pin { path: path.clone(), source };
        if let Some(pinned) = open_pin(&path).map_err(io_error(&path))? {
            if map_id(pinned.as_fd()).map_err(refused)? == map_id(map).map_err(refused)? {
                return Ok(());
            }
            fs::remove_file(&path).map_err(io_error(&path))?;
        }
        pin(map, &path).map_err(refused)
    }

    /// Makes the link that is pinned for `cgroup` run `program` from now on. Says whether there is one. One that others have
    /// detached can never run anything again, and is removed.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn replace(&self, cgroup: &Path, name: &str, program: BorrowedFd<'_>) -> Result<bool, PinError> {
        let path = self.link(cgroup, name)?;
        let Some(link) = open_pin(&path).map_err(io_error(&path))? else { return Ok(false) };
        match update_link(&link, program) {
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
                tracing::warn!(pin = %path.display(), "the link that was pinned has been detached; it is made anew");
                fs::remove_file(&path).map_err(io_error(&path))?;
                Ok(false)
            }
            result => result.map(|()| true).map_err(io_error(&path)),
        }
    }

    /// Pins a link. It then stays attached when our descriptor is closed.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn pin(&self, cgroup: &Path, name: &str, link: BorrowedFd<'_>) -> Result<(), PinError> {
        let path = self.link(cgroup, name)?;
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(io_error(directory))?;
        }
        pin(link, &path).map_err(|source| PinError::Pin { path, source })
    }

    /// Detaches what earlier agents left that is not for these cgroups. To be called when all of them are attached, so that
    /// there is no gap.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn prune(&self, cgroups: &[PathBuf]) -> Result<(), PinError> {
        // One that is gone keeps nothing.
        let there = |error: &PinError| !matches!(error, PinError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound);
        let ids = cgroups.iter().map(|cgroup| cgroup_id(cgroup));
        let keep = ids.filter(|id| id.as_ref().err().is_none_or(there)).collect::<Result<Vec<_>, _>>()?;
        for links in entries(&self.layout.join("links"))? {
            if !keep.iter().any(|id| links.ends_with(id)) {
                remove(&links, &mut Vec::new())?;
            }
        }
        Ok(())
    }

    /// Detaches what agents with another layout left. Until then it refuses what it knows of. To be called when all of that
    /// is known here, too. Says whether there was something.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn prune_layouts(&self) -> Result<bool, PinError> {
        let mut removed = Vec::new();
        for layout in self.other_layouts()? {
            remove(&layout, &mut removed)?;
        }
        Ok(!removed.is_empty())
    }

    /// The maps of this name that agents with another layout left.
    ///
    /// # Errors
    /// One cannot be opened.
    pub fn maps_of_other_layouts(&self, name: &str) -> Result<Vec<OwnedFd>, PinError> {
        let paths = self.other_layouts()?.into_iter().map(|layout| map_path(&layout, name));
        let opened = paths.map(|path| open_pin(&path).map_err(io_error(&path)));
        opened.filter_map(Result::transpose).collect()
    }

    /// Where agents with another layout have pinned something.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub(super) fn other_layouts(&self) -> Result<Vec<PathBuf>, PinError> {
        Ok(layouts(&self.root)?.into_iter().filter(|path| *path != self.layout).collect())
    }

    /// Detaches and removes what is pinned for our layout, if it is ours: if `map`, of this id, is what is pinned there.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn withdraw(&self, map: &str, id: u32) -> Result<(), PinError> {
        // Another agent can have put its own in their place, after `egress detach`.
        match MapInfo::from_pin(self.map(map)) {
            Ok(pinned) if pinned.id() == id => remove(&self.layout, &mut Vec::new()),
            _ => Ok(()),
        }
    }

    fn link(&self, cgroup: &Path, name: &str) -> Result<PathBuf, PinError> {
        Ok(self.layout.join("links").join(cgroup_id(cgroup)?).join(name))
    }
}

/// Makes the directories of `layout`, unless they are there, and uses them from now on.
fn join(root: &Path, layout: &Path, lineage: &str) -> Result<users::Lock, PinError> {
    let _locked = loop {
        DirBuilder::new().recursive(true).mode(PRIVATE).create(root).map_err(io_error(root))?;
        // It is not there if others have removed it since.
        if let Some(locked) = users::lock(root)? {
            break locked;
        }
    };
    let used = users::join(root, layout, lineage)?;
    for directory in ["maps", "links"].map(|name| layout.join(name)) {
        fs::create_dir_all(&directory).map_err(io_error(&directory))?;
    }
    Ok(used)
}

/// The map of this name that an agent with our layout has pinned under `root`; None if there is none.
pub(super) fn open_map(root: &Path, name: &str) -> Result<Option<OwnedFd>, PinError> {
    let path = map_path(&our_layout(root), name);
    open_pin(&path).map_err(io_error(&path))
}

fn our_layout(root: &Path) -> PathBuf {
    root.join(format!("{LAYOUT_PREFIX}{LAYOUT_VERSION}"))
}

fn map_path(layout: &Path, name: &str) -> PathBuf {
    layout.join("maps").join(name)
}

/// Makes sure that nothing is pinned under `root` whose agents have ended.
///
/// # Errors
/// Something is; or that cannot be seen.
pub fn check_abandoned(root: &Path) -> Result<(), PinError> {
    let Some(_locked) = users::lock(root)? else { return Ok(()) };
    for layout in layouts(root)? {
        if !entries(&layout.join("links"))?.is_empty() && !users::are_there(root)? {
            return Err(PinError::Abandoned(root.into()));
        }
    }
    Ok(())
}

/// Detaches all programs and removes all pins under `root`; those that an agent uses only if `forced`. Gives what was removed.
///
/// # Errors
/// Something cannot be removed; what came before it has been. Or an agent uses it.
pub fn detach(root: &Path, forced: bool) -> Result<Vec<PathBuf>, PinError> {
    let mut removed = Vec::new();
    let Some(_locked) = users::lock(root)? else { return Ok(removed) };
    check_bpffs(root)?;
    if !forced && users::are_there(root)? {
        return Err(PinError::Running(root.into()));
    }
    for layout in layouts(root)? {
        remove(&layout, &mut removed)?;
    }
    // What else is there is not ours to remove.
    if entries(root)?.is_empty() {
        fs::remove_dir(root).map_err(io_error(root))?;
    }
    Ok(removed)
}

fn check_bpffs(root: &Path) -> Result<(), PinError> {
    let existing = root.ancestors().find(|path| path.exists()).unwrap_or(root);
    let kind = statfs(existing).map_err(|errno| PinError::Io { path: existing.into(), source: errno.into() })?;
    if kind.filesystem_type() == BPF_FS_MAGIC { Ok(()) } else { Err(PinError::NotBpffs(root.into())) }
}

/// The id by which the kernel knows a cgroup, which is its inode number. It is never used again.
fn cgroup_id(cgroup: &Path) -> Result<String, PinError> {
    fs::metadata(cgroup).map(|metadata| metadata.ino().to_string()).map_err(io_error(cgroup))
}

/// What agents of any version have made under `root`.
fn layouts(root: &Path) -> Result<Vec<PathBuf>, PinError> {
    let is_layout = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(LAYOUT_PREFIX.as_bytes()))
    };
    Ok(entries(root)?.into_iter().filter(is_layout).collect())
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, PinError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io_error(directory))?,
    };
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(io_error(directory))).collect()
}

/// Removes a pin, or a directory of pins. Links are detached first, so that it does not matter who else has them open;
/// the connect hooks before those that they need. What vanishes meanwhile another agent has removed.
fn remove(path: &Path, removed: &mut Vec<PathBuf>) -> Result<(), PinError> {
    if path.is_dir() {
        let mut entries = entries(path)?;
        // Links before maps, connect4 and connect6 before the others.
        entries.sort_by_key(|entry| (!entry.ends_with("links"), entry.clone()));
        for entry in entries {
            remove(&entry, removed)?;
        }
        return unless_gone(fs::remove_dir(path)).map(drop).map_err(io_error(path));
    }
    if path.ancestors().any(|ancestor| ancestor.ends_with("links"))
        && let Some(link) = open_pin(path).map_err(io_error(path))?
    {
        // A link whose cgroup is gone is detached already.
        let _ = detach_link(&link);
    }
    let gone = unless_gone(fs::remove_file(path)).map_err(io_error(path))?;
    removed.extend(gone.map(|()| path.to_owned()));
    Ok(())
}

fn unless_gone(result: io::Result<()>) -> io::Result<Option<()>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}
