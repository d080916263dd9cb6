//! Notices when cgroups lose their last process.

use std::{collections::HashSet, io, mem, path::Path, time::Duration};

use futures_util::{FutureExt as _, StreamExt as _};
use inotify::{EventMask, EventStream, WatchDescriptor, WatchMask, Watches};
use tokio::time::{self, Instant};

use crate::watch;

/// How far apart changes are told at least: pods come and go in crowds.
const SPACING: Duration = Duration::from_millis(100);

/// Watches the `cgroup.events` of cgroups, which the kernel modifies when a cgroup loses its last process or gets its
/// first, all by one descriptor.
pub struct Population {
    watches: Watches,
    events: EventStream<Vec<u8>>,
    watched: HashSet<WatchDescriptor>,
    /// Those of them that were named since the last sweep.
    named: HashSet<WatchDescriptor>,
    /// Something has changed that was not yet told.
    changed: bool,
    told: Instant,
    /// A watch could not be set, and this was logged.
    warned: bool,
}

impl Population {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// The kernel has no inotify instance left.
    pub fn new() -> io::Result<Self> {
        let inotify = watch::inotify()?;
        Ok(Self {
            watches: inotify.watches(),
            events: inotify.into_event_stream(vec![0; 4096])?,
            watched: HashSet::new(),
            named: HashSet::new(),
            changed: false,
            told: Instant::now(),
            warned: false,
        })
    }

    /// Waits until a cgroup that is watched has lost its last process or got its first, or until something was expected.
    /// Nothing is lost if the future is dropped.
    pub async fn changed(&mut self) {
        while !self.changed {
            match self.events.next().await {
                Some(event) => self.changed = event.is_ok_and(|event| !event.mask.contains(EventMask::IGNORED)),
                // The stream of an inotify instance does not end.
                None => return std::future::pending().await,
            }
        }
        time::sleep_until(self.told + SPACING).await;
        while let Some(Some(_)) = self.events.next().now_or_never() {}
        self.changed = false;
        self.told = Instant::now();
    }

    /// Has a change told that cannot be seen here.
    pub fn expect(&mut self) {
        self.changed = true;
    }

    /// Watches a cgroup. Says whether it was not watched before, so that a change just now may have been missed.
    pub(super) fn watch(&mut self, cgroup: &Path) -> bool {
        match self.watches.add(cgroup.join("cgroup.events"), WatchMask::MODIFY) {
            Ok(watch) => self.named.insert(watch.clone()) && !self.watched.contains(&watch),
            // It is gone, or the root of the hierarchy, which has no such file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => {
                if !mem::replace(&mut self.warned, true) {
                    let cgroup = cgroup.display();
                    tracing::warn!(%cgroup, %error, "cannot watch a cgroup; its network namespaces are let go later");
                }
                false
            }
        }
    }

    /// Lets go of the cgroups that were not named since the last time. The watch of a cgroup that was removed does not go
    /// away by itself.
    pub(super) fn sweep(&mut self) {
        let named = mem::take(&mut self.named);
        for gone in mem::replace(&mut self.watched, named).difference(&self.watched).cloned() {
            // There may be a reason why it is gone already; then there is nothing to do.
            let _ = self.watches.remove(gone);
        }
    }
}
