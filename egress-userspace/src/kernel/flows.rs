//! Origins of redirected connections, until those are accepted.

use std::{cell::RefCell, net::SocketAddr, os::fd::AsFd as _, sync::Arc, time::Duration};

use aya::maps::{HashMap, Map, MapData, MapError};
use egress_common::{address::IpBytes, flow::Flow, names::map, origin::Origin, slot::Slots};

use super::{
    KernelError,
    maps::{SharedMap, error, since_boot},
    syscall::take_element,
};
use crate::netns::NetnsCookie;

/// Origins of redirected connections that are still to be accepted.
pub struct Flows {
    slots: Arc<Slots>,
    /// What had no place there.
    rest: RefCell<HashMap<MapData, Flow, Origin>>,
    shared: SharedMap,
}

impl Flows {
    pub(super) fn new(slots: &MapData, rest: SharedMap) -> Result<Self, KernelError> {
        let slots = Slots::map(slots.fd().as_fd()).map_err(MapError::IoError).map_err(error(map::SLOTS))?;
        Self::open(Arc::new(slots), rest)
    }

    fn open(slots: Arc<Slots>, shared: SharedMap) -> Result<Self, KernelError> {
        let rest = shared.open().and_then(|data| HashMap::try_from(Map::HashMap(data))).map_err(error(map::FLOWS))?;
        Ok(Self { slots, rest: RefCell::new(rest), shared })
    }

    /// Another handle, for another thread.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn try_clone(&self) -> Result<Self, KernelError> {
        Self::open(self.slots.clone(), self.shared.clone())
    }

    /// The kernel's name of the map. Maps are pinned and taken over together: who has this one has all of them.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn id(&self) -> Result<u32, KernelError> {
        self.shared.id().map_err(error(map::FLOWS))
    }

    /// Takes the origin of the connection that the client at `client` made in `netns` to our listener at that port: nobody finds it
    /// again. None if there is none.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn take(&self, netns: NetnsCookie, client: SocketAddr, listener: u16) -> Result<Option<Origin>, KernelError> {
        let flow = Flow::new(netns.0, IpBytes::from(client.ip().to_canonical()), client.port(), listener);
        match self.slots.take(&flow) {
            None => self.take_rest(&flow),
            found => Ok(found),
        }
    }

    fn take_rest(&self, flow: &Flow) -> Result<Option<Origin>, KernelError> {
        // SAFETY: the map is from flows to origins, as it was opened.
        let taken = unsafe { take_element(self.shared.as_fd(), flow) };
        taken.map_err(MapError::IoError).map_err(error(map::FLOWS))
    }

    /// Removes flows older than `age` that nobody accepted, and says how many: connections that the listener's queue
    /// dropped.
    ///
    /// # Errors
    /// The map cannot be read, or the kernel refuses to change it.
    pub fn sweep(&self, age: Duration) -> Result<usize, KernelError> {
        let now = since_boot();
        let is_old = |origin: &Origin| now.saturating_sub(Duration::from_nanos(origin.recorded_ns)) > age;
        let mut removed = self.slots.remove_if(is_old);
        let rest = self.rest.borrow();
        let old = rest.iter().filter_map(Result::ok).filter(|(_, origin)| is_old(origin)).collect::<Vec<_>>();
        for (flow, read) in &old {
            // The same client's next connection may have come since.
            if rest.get(flow, 0).is_ok_and(|found| found == *read) {
                // If it comes in this very moment it is refused. To put its origin back could be to put it after one that is newer still.
                removed += usize::from(self.take_rest(flow)?.is_some());
            }
        }
        Ok(removed)
    }
}
