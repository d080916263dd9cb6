//! Which agents use a directory of pins.
//!
//! Agents that know nothing of each other would detach each other's programs. So each one holds a shared lock on
//! `PIN_DIR/layout-N/agents/LINEAGE`, where LINEAGE is the same for those that follow one another, and for no others. The
//! kernel releases it when the agent ends, however that comes about, and has it for all containers of a machine. There are
//! no files in a bpffs that could be locked, but there are directories.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{PinError, entries, io_error, layouts};

/// Of each layout.
const AGENTS: &str = "agents";

/// Held while pins are used, or are looked at by somebody who wants to.
pub(super) struct Lock(#[expect(dead_code, reason = "it is unlocked when it is closed")] File);

/// Keeps others from beginning to use the pins under `root`, and from removing them. None if there is no such directory.
pub(super) fn lock(root: &Path) -> Result<Option<Lock>, PinError> {
    loop {
        let directory = match File::open(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(io_error(root))?,
        };
        directory.lock().map_err(io_error(root))?;
        let locked = directory.metadata().map_err(io_error(root))?;
        // Whoever had it before can have removed it, and others can have made another one.
        match fs::metadata(root) {
            Ok(current) if current.ino() == locked.ino() => return Ok(Some(Lock(directory))),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(root)(error)),
            _ => {}
        }
    }
}

/// Uses the pins of `layout` from now on. To be called when `root` is locked.
pub(super) fn join(root: &Path, layout: &Path, lineage: &str) -> Result<Lock, PinError> {
    for place in places(root)? {
        if place.ends_with(lineage) {
            continue;
        }
        if is_locked(&place)? {
            return Err(PinError::Others(root.into()));
        }
        // Its agents have ended. If it stays it does no harm.
        let _ = fs::remove_dir(&place);
    }
    let place = layout.join(AGENTS).join(lineage);
    fs::create_dir_all(&place).map_err(io_error(&place))?;
    let directory = File::open(&place).map_err(io_error(&place))?;
    directory.lock_shared().map_err(io_error(&place))?;
    Ok(Lock(directory))
}

/// Whether an agent uses pins under `root`. To be called when that is locked.
pub(super) fn are_there(root: &Path) -> Result<bool, PinError> {
    for place in places(root)? {
        if is_locked(&place)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn places(root: &Path) -> Result<Vec<PathBuf>, PinError> {
    let places = layouts(root)?.into_iter().map(|layout| entries(&layout.join(AGENTS)));
    Ok(places.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

fn is_locked(place: &Path) -> Result<bool, PinError> {
    match File::open(place).map_err(io_error(place))?.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(io_error(place)(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_directory_that_is_removed_meanwhile_is_not_there() {
        let place = tempfile::tempdir().expect("a directory");
        let root = place.path().join("pins");
        assert!(lock(&root).is_ok_and(|locked| locked.is_none()));
        fs::create_dir(&root).expect("an empty place");
        let Ok(Some(removing)) = lock(&root) else { panic!("nobody else has it") };
        thread::scope(|scope| {
            let waiting = scope.spawn(|| lock(&root).map(|locked| locked.is_some()));
            fs::remove_dir(&root).expect("it is empty");
            drop(removing);
            assert!(matches!(waiting.join(), Ok(Ok(false))));
        });
    }
}
