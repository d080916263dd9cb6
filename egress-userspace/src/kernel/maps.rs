//! The maps, each behind the few operations that the rest of the program needs.

use std::{
    cell::RefCell,
    collections::HashSet,
    fmt,
    hash::Hash,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData, MapError, PerCpuArray, SkStorage},
};
use egress_common::{listener::ListenerPorts, names::map};
use nix::{errno::Errno, time::ClockId};

use super::KernelError;
use crate::netns::NetnsCookie;

/// An insertion that replaces nothing: BPF_NOEXIST of linux/bpf.h.
const BPF_NOEXIST: u64 = 1;

pub(super) fn error(name: &'static str) -> impl Fn(MapError) -> KernelError {
    move |source| KernelError::Map { name, source }
}

/// Absence is what a removal wants.
pub(super) fn ignore_absent(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(()),
        Err(MapError::KeyNotFound) => Ok(()),
        other => other,
    }
}

/// Inserts an entry, unless there is one.
pub(super) fn insert_new<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>, key: &K, value: V) -> Result<(), MapError> {
    match map.insert(key, value, BPF_NOEXIST) {
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Whether a trie has no room for another entry.
pub(super) fn is_full(error: &MapError) -> bool {
    matches!(error, MapError::SyscallError(error) if error.io_error.raw_os_error() == Some(Errno::ENOSPC as i32))
}

/// Makes a map hold `wanted` besides what is `present`. An entry that it refuses does not keep others out; the first error counts.
pub(super) fn insert_all<K: Eq + Hash, V: PartialEq + Copy>(
    present: &mut foldhash::HashMap<K, V>,
    wanted: impl Iterator<Item = (K, V)>,
    mut insert: impl FnMut(&K, V) -> Result<(), KernelError>,
) -> Result<(), KernelError> {
    let mut result = Ok(());
    for (key, value) in wanted {
        if present.get(&key) == Some(&value) {
            continue;
        }
        match insert(&key, value) {
            Ok(()) => _ = present.insert(key, value),
            failed => result = result.and(failed),
        }
    }
    result
}

/// The time by the clock that the programs use.
pub(super) fn since_boot() -> Duration {
    ClockId::CLOCK_BOOTTIME.now().map_or(Duration::ZERO, Duration::from)
}

/// A loaded map that several threads open, each for itself: aya's maps are not to be shared.
#[derive(Clone)]
pub(super) struct SharedMap(Arc<MapData>);

impl SharedMap {
    pub(super) fn new(data: MapData) -> Self {
        Self(Arc::new(data))
    }

    pub(super) fn open(&self) -> Result<MapData, MapError> {
        MapData::from_fd(self.as_fd().try_clone_to_owned().map_err(MapError::IoError)?)
    }

    pub(super) fn id(&self) -> Result<u32, MapError> {
        self.0.info().map(|info| info.id())
    }
}

impl AsFd for SharedMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd().as_fd()
    }
}

/// The agent's ports by network namespace, and how many sockets are connecting there, which the programs count.
pub struct Listeners {
    ports: HashMap<MapData, u64, ListenerPorts>,
    connecting: HashMap<MapData, u64, u64>,
}

impl Listeners {
    pub(super) fn new(ports: Map, connecting: Map) -> Result<Self, KernelError> {
        Ok(Self {
            ports: HashMap::try_from(ports).map_err(error(map::LISTENERS))?,
            connecting: HashMap::try_from(connecting).map_err(error(map::CONNECTING))?,
        })
    }

    /// Forgets all namespaces but these, which an earlier agent has left in a pinned map: its listeners are gone, and a
    /// namespace that is in the map is not reported.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn retain(&mut self, ours: &HashSet<NetnsCookie>) -> Result<(), KernelError> {
        let left: HashSet<_> = self.ports.keys().chain(self.connecting.keys()).filter_map(Result::ok).collect();
        left.into_iter().filter(|&netns| !ours.contains(&NetnsCookie(netns))).try_for_each(|netns| self.forget(netns))
    }

    /// From now on connections of this namespace are redirected to these ports; 0 where there is no listener.
    ///
    /// # Errors
    /// The map is full or the kernel refuses.
    pub fn insert(&mut self, netns: NetnsCookie, v4: u16, v6: u16) -> Result<(), KernelError> {
        self.ports.insert(netns.0, ports(v4, v6), 0).map_err(error(map::LISTENERS))
    }

    /// From now on connections of this namespace to configured destinations are rejected, unless they are redirected to
    /// other ports meanwhile: those of an agent that has taken over.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove(&mut self, netns: NetnsCookie, v4: u16, v6: u16) -> Result<(), KernelError> {
        if !self.is_current(netns, v4, v6) {
            return Ok(());
        }
        self.forget(netns.0)
    }

    fn forget(&mut self, netns: u64) -> Result<(), KernelError> {
        ignore_absent(self.ports.remove(&netns)).map_err(error(map::LISTENERS))?;
        ignore_absent(self.connecting.remove(&netns)).map_err(error(map::CONNECTING))
    }

    /// How many sockets are connecting in this namespace, as the programs have counted.
    pub fn connecting(&self, netns: NetnsCookie) -> u64 {
        // They can have counted less than none.
        self.connecting.get(&netns.0, 0).map_or(0, |count| count.cast_signed().max(0).cast_unsigned())
    }

    /// Takes so many off that count.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn discount(&mut self, netns: NetnsCookie, ended: u64) -> Result<(), KernelError> {
        let count = self.connecting.get(&netns.0, 0).map_err(error(map::CONNECTING))?;
        self.connecting.insert(netns.0, count.wrapping_sub(ended), 0).map_err(error(map::CONNECTING))
    }

    /// Whether this is where connections of this namespace are redirected to, if anywhere.
    pub fn is_current(&self, netns: NetnsCookie, v4: u16, v6: u16) -> bool {
        self.ports.get(&netns.0, 0).is_ok_and(|current| current == ports(v4, v6))
    }
}

fn ports(v4: u16, v6: u16) -> ListenerPorts {
    ListenerPorts { v4: v4.to_be_bytes(), v6: v6.to_be_bytes() }
}

/// The cgroups in which started programs are reported.
pub(super) struct Scopes(HashMap<MapData, u64, u8>);

impl Scopes {
    pub(super) fn new(map: Map) -> Result<Self, KernelError> {
        HashMap::try_from(map).map(Self).map_err(error(map::SCOPES))
    }

    /// Makes these the cgroups, by their ids.
    pub(super) fn set(&mut self, ids: &[u64]) -> Result<(), KernelError> {
        for id in self.0.keys().filter_map(Result::ok).filter(|id| !ids.contains(id)).collect::<Vec<_>>() {
            ignore_absent(self.0.remove(&id)).map_err(error(map::SCOPES))?;
        }
        ids.iter().try_for_each(|id| self.0.insert(*id, 1, 0)).map_err(error(map::SCOPES))
    }
}

/// Marks our own sockets, so that the connect hooks leave them alone and know our listeners.
pub struct OwnSockets {
    map: RefCell<SkStorage<MapData, u32>>,
    shared: SharedMap,
}

impl OwnSockets {
    pub(super) fn new(shared: SharedMap) -> Result<Self, KernelError> {
        let map = shared
            .open()
            .and_then(|data| SkStorage::try_from(Map::SkStorage(data)))
            .map_err(error(map::OWN_SOCKETS))?;
        Ok(Self { map: RefCell::new(map), shared })
    }

    /// Another handle, for another thread.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn try_clone(&self) -> Result<Self, KernelError> {
        Self::new(self.shared.clone())
    }

    /// The storage that holds the marks, by which the kernel can list sockets.
    pub fn marks(&self) -> Marks {
        Marks(self.shared.clone())
    }

    /// Marks a socket for its lifetime.
    ///
    /// # Errors
    /// The kernel is out of memory.
    pub fn mark(&self, socket: &impl AsRawFd) -> Result<(), KernelError> {
        self.map.borrow_mut().insert(socket, 1, 0).map_err(error(map::OWN_SOCKETS))
    }
}

/// The storage of the marks of our own sockets, also those of an agent before us.
#[derive(Clone)]
pub struct Marks(SharedMap);

impl AsFd for Marks {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Counters of what the programs decided, in the order of what they count.
pub struct Counters(PerCpuArray<MapData, u64>);

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.read()).finish()
    }
}

impl Counters {
    pub(super) fn new(map: Map, name: &'static str) -> Result<Self, KernelError> {
        PerCpuArray::try_from(map).map(Self).map_err(error(name))
    }

    /// How often each occurred since the programs were loaded, over all CPUs. One that cannot be read counts nothing; the map
    /// exists as long as we do.
    pub fn read(&self) -> impl Iterator<Item = u64> {
        (0..self.0.len()).map(|index| self.0.get(&index, 0).map_or(0, |values| values.iter().sum()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_keeps_nothing_else_out() {
        let mut present = foldhash::HashMap::from_iter([(1, 'a'), (2, 'b')]);
        let mut inserted = Vec::new();
        let result =
            insert_all(&mut present, [(1, 'a'), (2, 'c'), (3, 'd'), (4, 'e'), (5, 'f')].into_iter(), |key, _| {
                inserted.push(*key);
                if [3, 4].contains(key) { Err(KernelError::TooManyDestinations { capacity: *key }) } else { Ok(()) }
            });
        assert!(
            matches!(result, Err(KernelError::TooManyDestinations { capacity: 3 })),
            "the first counts: {result:?}"
        );
        assert_eq!(inserted, [2, 3, 4, 5]);
        assert_eq!(present, foldhash::HashMap::from_iter([(1, 'a'), (2, 'c'), (5, 'f')]));
    }
}
