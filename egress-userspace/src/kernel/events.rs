//! What the programs tell while they run.

use std::{collections::HashSet, io};

use aya::maps::{Map, MapData, RingBuf};
use aya_log::EbpfLogger;
use egress_common::{listener::ThreadSeen, names::map};
use tokio::io::unix::AsyncFd;

use super::{KernelError, programs::Program, syscall::program_id};

/// Threads whose network namespaces may lack a listener.
pub struct ThreadEvents(AsyncFd<RingBuf<MapData>>);

impl ThreadEvents {
    pub(super) fn new(map: Map) -> Result<Self, KernelError> {
        let ring = RingBuf::try_from(map).map_err(|source| KernelError::Map { name: map::THREADS_SEEN, source })?;
        // SAFETY: the ring owns its descriptor, which neither closes nor changes before the ring is dropped.
        unsafe { AsyncFd::register(ring) }.map(Self).map_err(|error| KernelError::Watch(error.into()))
    }

    /// Waits for threads to be reported, and gives each once.
    ///
    /// # Errors
    /// The ring buffer cannot be polled.
    pub async fn next(&mut self) -> io::Result<HashSet<ThreadSeen>> {
        loop {
            let mut guard = self.0.readable_mut().await?;
            let ring = guard.get_inner_mut();
            let mut seen = HashSet::new();
            while let Some(entry) = ring.next() {
                if let Ok(bytes) = <[u8; size_of::<ThreadSeen>()]>::try_from(&*entry) {
                    // SAFETY: ThreadSeen has no padding, and any bit pattern is a value of it.
                    seen.insert(unsafe { std::mem::transmute::<[u8; size_of::<ThreadSeen>()], ThreadSeen>(bytes) });
                }
            }
            guard.clear_ready();
            if !seen.is_empty() {
                return Ok(seen);
            }
        }
    }
}

/// The programs' own log lines.
pub struct KernelLog(AsyncFd<EbpfLogger<&'static dyn log::Log>>);

impl KernelLog {
    /// The lines of `program`, and of those that share its map of them.
    pub(super) fn new(program: &Program) -> Result<Self, KernelError> {
        let id = program_id(program.as_fd()).map_err(KernelError::Watch)?;
        let logger = EbpfLogger::init_from_id(id).map_err(|error| KernelError::Watch(io::Error::other(error)))?;
        // SAFETY: the logger owns the ring's descriptor, which neither closes nor changes before it is dropped.
        unsafe { AsyncFd::register(logger) }.map(Self).map_err(|error| KernelError::Watch(error.into()))
    }

    /// Passes lines on to the log until the descriptor fails.
    pub async fn forward(mut self) {
        while let Ok(mut guard) = self.0.readable_mut().await {
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    }
}
