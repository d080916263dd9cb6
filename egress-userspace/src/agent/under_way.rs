//! Files that are being read beside all else.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{
    Agent,
    prepare::{in_background, place},
};
use crate::config::Progress;

/// After how long it is told that something takes long to read.
const LONG: Duration = Duration::from_secs(10);

/// What is being read.
pub(super) struct UnderWay<T> {
    /// What comes of it.
    pub(super) reading: oneshot::Receiver<T>,
    progress: Progress,
    since: Instant,
    /// Whether it was told that it takes long.
    is_told: bool,
}

impl<T> UnderWay<T> {
    /// Begun just now, and known where it is by `progress`.
    pub(super) fn new(reading: oneshot::Receiver<T>, progress: Progress) -> Self {
        Self { reading, progress, since: Instant::now(), is_told: false }
    }

    /// Where it is if it has come to take long, once.
    pub(super) fn has_come_to_take_long(&mut self, now: Instant) -> Option<&Progress> {
        let is_news = !self.is_told && now.duration_since(self.since) > LONG;
        self.is_told |= is_news;
        is_news.then_some(&self.progress)
    }
}

impl Agent {
    /// Looks whether the resolver's files have changed, unless that is being done. What they said stays meanwhile.
    pub(super) fn refresh_resolver(&mut self) {
        if let Some(refreshing) = &mut self.refreshing
            && let Err(oneshot::error::TryRecvError::Empty) = refreshing.reading.try_recv()
        {
            if let Some(progress) = refreshing.has_come_to_take_long(Instant::now()) {
                tracing::warn!(
                    path = place(progress),
                    "a file of the resolver takes long to read, as where a mount hangs; what it said before stays"
                );
            }
            return;
        }
        let resolver = self.names.resolver().clone();
        let progress = resolver.progress().clone();
        // If there can be no more threads, there may be the next time.
        let reading = in_background(move || resolver.refresh()).ok();
        self.refreshing = reading.map(|reading| UnderWay::new(reading, progress));
    }
}
