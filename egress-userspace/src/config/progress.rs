//! Where a reading is.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The file or directory that a reading is at. It can take as long as its file system likes, and whoever waits wants to know for
/// what.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Mutex<Option<PathBuf>>>);

impl Progress {
    /// Does something with `path` that may take long.
    pub fn at<T>(&self, path: &Path, work: impl FnOnce() -> T) -> T {
        *self.lock() = Some(path.to_owned());
        let done = work();
        *self.lock() = None;
        done
    }

    /// Where it is; None while it is with no file.
    pub fn place(&self) -> Option<PathBuf> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<PathBuf>> {
        // Nobody panics while holding it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
