//! Where a reading is.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The file or directory that a reading is at. It can take as long as its file system likes, and whoever waits wants to know for
/// what.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Mutex<Option<(PathBuf, Instant)>>>);

impl Progress {
    /// Does something with `path` that may take long.
    pub fn at<T>(&self, path: &Path, work: impl FnOnce() -> T) -> T {
        *self.lock() = Some((path.to_owned(), Instant::now()));
        let done = work();
        *self.lock() = None;
        done
    }

    /// Where it is; None while it is with no file.
    pub fn place(&self) -> Option<PathBuf> {
        self.lock().as_ref().map(|(path, _)| path.clone())
    }

    /// The same, and for how long it has been there.
    pub fn stay(&self) -> Option<(PathBuf, Duration)> {
        self.lock().as_ref().map(|(path, since)| (path.clone(), since.elapsed()))
    }

    fn lock(&self) -> MutexGuard<'_, Option<(PathBuf, Instant)>> {
        // Nobody panics while holding it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stay_is_at_one_file() {
        let progress = Progress::default();
        let stay = || progress.stay().expect("it is at a file").1;
        progress.at(Path::new("first"), || while stay() < Duration::from_millis(50) {});
        let since = Instant::now();
        let second = progress.at(Path::new("second"), stay);
        assert!(second <= since.elapsed(), "{second:?}");
        assert_eq!(progress.stay(), None);
    }
}
