//! Notices when configuration files change, also through the symlink swaps of a mounted ConfigMap.

use std::{
    collections::BTreeSet,
    fs, io, mem,
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::StreamExt as _;
use inotify::{EventMask, EventStream, Inotify, WatchMask, Watches};
use tokio::time::{self, Instant};

use crate::config::Progress;

/// After the first event, wait until nothing has happened for this long, but no longer than [`SETTLE_LIMIT`].
const SETTLE: Duration = Duration::from_millis(50);
const SETTLE_LIMIT: Duration = Duration::from_millis(500);
/// Symlinks followed at most (Linux: MAXSYMLINKS).
const MAX_LINKS: usize = 40;

/// Watches files and directories by the directories that hold them, so that a file which is replaced is still noticed.
pub struct Watcher {
    watched: Watched,
    events: EventStream<Vec<u8>>,
    /// Something has changed that was not yet told.
    untold: Option<Untold>,
}

/// What is watched. To look where paths lead takes as long as their file systems like.
#[derive(Clone)]
pub struct Watched {
    paths: Arc<Mutex<BTreeSet<PathBuf>>>,
    watches: Watches,
}

/// An inotify instance.
///
/// # Errors
/// The user has no more of them, of which there may be few, or the process no more descriptors.
pub fn inotify() -> io::Result<Inotify> {
    Inotify::init().map_err(|error| match error.raw_os_error() {
        Some(libc::EMFILE) => io::Error::new(
            error.kind(),
            format!("{error}: no inotify instance is left; raise the sysctl fs.inotify.max_user_instances"),
        ),
        _ => error,
    })
}

/// When changes were noticed that were not yet told.
#[derive(Clone, Copy)]
struct Untold {
    first: Instant,
    last: Instant,
}

impl Untold {
    /// When they are to be told.
    fn due(self) -> Instant {
        (self.last + SETTLE).min(self.first + SETTLE_LIMIT)
    }
}

impl Watcher {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// The kernel has no inotify instance left.
    pub fn new() -> io::Result<Self> {
        let inotify = inotify()?;
        let watched = Watched { paths: Arc::default(), watches: inotify.watches() };
        let events = inotify.into_event_stream(vec![0; 4096])?;
        Ok(Self { watched, events, untold: None })
    }

    /// What is watched.
    pub fn watched(&self) -> &Watched {
        &self.watched
    }

    /// Waits until something has changed and has settled. What changed need not concern the configuration. It may have put other
    /// directories behind the paths, which are watched once that is refreshed. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// Events cannot be read.
    pub async fn changed(&mut self) -> io::Result<()> {
        // When it is due is kept, as whoever waits for other things, too, drops this whenever one of them happens.
        while self.untold.is_none_or(|untold| Instant::now() < untold.due()) {
            let due = self.untold.map(Untold::due);
            let event = tokio::select! {
                biased;
                event = self.events.next() => event,
                () = time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => break,
            };
            // The stream of an inotify instance does not end.
            let Some(event) = event else { return std::future::pending().await };
            if !event?.mask.contains(EventMask::IGNORED) {
                let last = Instant::now();
                self.untold = Some(Untold { first: self.untold.map_or(last, |untold| untold.first), last });
            }
        }
        self.untold = None;
        Ok(())
    }
}

impl Watched {
    /// Watches `paths` as well, which need not exist.
    ///
    /// # Errors
    /// The kernel has no watch left, or a directory cannot be watched. Others are.
    pub fn add(&self, paths: &BTreeSet<PathBuf>, progress: &Progress) -> io::Result<()> {
        self.lock().extend(paths.iter().cloned());
        self.refresh(progress)
    }

    /// Watches no others than `paths`, which are all watched already. The others may be told of for a while.
    pub fn retain(&self, paths: BTreeSet<PathBuf>) {
        let old = mem::replace(&mut *self.lock(), paths);
        drop(old);
    }

    /// Watches what the paths lead through by now. Setting a watch again is harmless.
    ///
    /// # Errors
    /// As for `add`.
    pub fn refresh(&self, progress: &Progress) -> io::Result<()> {
        let mask = WatchMask::CREATE
            | WatchMask::CLOSE_WRITE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE
            | WatchMask::MOVE_SELF
            | WatchMask::ATTRIB
            | WatchMask::ONLYDIR;
        let mut failure = None;
        let (paths, mut watches) = (self.lock().clone(), self.watches.clone());
        let directories = paths.iter().flat_map(|path| progress.at(path, || directories(path)));
        for directory in directories.collect::<BTreeSet<_>>() {
            match progress.at(&directory, || watches.add(&directory, mask)) {
                Ok(_) => {}
                // It vanished just now; the watch on its parent tells when it comes back.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // The others are watched all the same.
                Err(error) => {
                    let why = format!("{}: {error}", directory.display());
                    failure.get_or_insert(io::Error::new(error.kind(), why));
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        // Nobody panics while holding it.
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Every directory whose entries decide what `path` stands for: those of its way, and the directory itself if it is one.
fn directories(path: &Path) -> Vec<PathBuf> {
    let mut found = way(path);
    if path.is_dir() {
        found.push(path.to_owned());
        // Files in it may be links to elsewhere, as in a mounted ConfigMap, where they lead through `..data`.
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        // The directory itself has their types: to ask for each of many thousands takes long.
        let links = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()));
        found.extend(links.flat_map(|entry| way(&entry.path())));
    }
    found
}

/// The directory that holds `path`, and for each symlink on the way there, be it that of an ancestor, the one that holds
/// that. Where one does not exist, the nearest ancestor that does.
fn way(path: &Path) -> Vec<PathBuf> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut found = Vec::new();
    // What is behind us has no symlinks in it.
    let (mut behind, mut ahead) = (PathBuf::new(), path);
    for _ in 0..MAX_LINKS {
        let mut components = ahead.components();
        let link = components.find_map(|component| {
            let parent = behind.clone();
            match component {
                Component::ParentDir => _ = behind.pop(),
                component => behind.push(component),
            }
            Some((parent, fs::read_link(&behind).ok()?))
        });
        let Some((parent, target)) = link else { break };
        found.push(nearest_existing(&parent));
        ahead = target.join(components);
        behind = parent;
    }
    found.push(nearest_existing(behind.parent().unwrap_or(&behind)));
    found
}

fn nearest_existing(directory: &Path) -> PathBuf {
    let exists = |ancestor: &&Path| ancestor.is_dir() && !ancestor.as_os_str().is_empty();
    directory.ancestors().find(exists).unwrap_or(Path::new(".")).to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn watching(path: PathBuf) -> Watcher {
        let watcher = Watcher::new().expect("inotify");
        watcher.watched().add(&[path].into(), &Progress::default()).expect("watches can be set");
        watcher
    }

    async fn notices(watcher: &mut Watcher, what: &str) {
        time::timeout(Duration::from_secs(5), watcher.changed())
            .await
            .unwrap_or_else(|_| panic!("{what} was not noticed"))
            .expect("events can be read");
        watcher.watched().refresh(&Progress::default()).expect("watches can be set");
    }

    #[tokio::test]
    async fn changes_of_every_kind_are_noticed() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let home = home.path();
        let file = home.join("rules.yaml");
        let mut watcher = watching(file.clone());
        fs::write(&file, "a").expect("write");
        notices(&mut watcher, "creation").await;
        fs::write(&file, "b").expect("write");
        notices(&mut watcher, "a write").await;
        fs::write(home.join("new"), "c").expect("write");
        fs::rename(home.join("new"), &file).expect("rename");
        notices(&mut watcher, "a replacement").await;
        fs::remove_file(&file).expect("remove");
        notices(&mut watcher, "removal").await;
    }

    #[tokio::test]
    async fn the_swap_of_a_mounted_config_map_is_noticed() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let home = home.path();
        for version in ["..1", "..2"] {
            fs::create_dir(home.join(version)).expect("mkdir");
            fs::write(home.join(version).join("rules.yaml"), version).expect("write");
        }
        symlink("..1", home.join("..data")).expect("symlink");
        symlink("..data/rules.yaml", home.join("rules.yaml")).expect("symlink");
        for watched in [home.to_owned(), home.join("rules.yaml")] {
            let mut watcher = watching(watched);
            for version in ["..2", "..1"] {
                symlink(version, home.join("..data_tmp")).expect("symlink");
                fs::rename(home.join("..data_tmp"), home.join("..data")).expect("rename");
                notices(&mut watcher, "a swap").await;
                assert_eq!(fs::read_to_string(home.join("rules.yaml")).expect("read"), version);
            }
        }
    }

    #[tokio::test]
    async fn the_swap_of_an_ancestor_is_noticed() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let home = home.path();
        for version in ["1", "2"] {
            fs::create_dir_all(home.join("releases").join(version).join("etc")).expect("mkdir");
            fs::write(home.join("releases").join(version).join("etc/rules.yaml"), version).expect("write");
        }
        fs::create_dir(home.join("links")).expect("mkdir");
        symlink("releases/1", home.join("current")).expect("symlink");
        symlink(home.join("links/../current/etc"), home.join("etc")).expect("symlink");
        symlink("../etc/rules.yaml", home.join("links/rules.yaml")).expect("symlink");
        for watched in ["current/etc", "current/etc/rules.yaml", "etc/missing.yaml", "links", "links/rules.yaml"] {
            let mut watcher = watching(home.join(watched));
            for version in ["releases/2", "releases/1"] {
                symlink(version, home.join("new")).expect("symlink");
                fs::rename(home.join("new"), home.join("current")).expect("rename");
                notices(&mut watcher, watched).await;
            }
        }
    }

    /// As in a loop in which something else happens all the time.
    #[tokio::test]
    async fn a_change_is_told_however_often_the_wait_is_begun_anew() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let mut watcher = watching(home.path().join("rules.yaml"));
        fs::write(home.path().join("rules.yaml"), "a").expect("write");
        let deadline = Instant::now() + Duration::from_secs(5);
        while time::timeout(SETTLE / 10, watcher.changed()).await.is_err() {
            assert!(Instant::now() < deadline, "it was not noticed");
        }
    }

    #[tokio::test]
    async fn a_directory_that_comes_back_is_noticed() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let directory = home.path().join("rules");
        let mut watcher = watching(directory.clone());
        fs::create_dir(&directory).expect("mkdir");
        notices(&mut watcher, "creation of the directory").await;
        fs::write(directory.join("a.yaml"), "a").expect("write");
        notices(&mut watcher, "creation in the directory").await;
    }
}
