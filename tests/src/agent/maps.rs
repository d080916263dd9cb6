//! What the agent's eBPF maps hold, read from the kernel.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use anyhow::{Context, Result};
use aya::maps::{
    Array, HashMap, Map, MapData, MapError, MapInfo,
    lpm_trie::{Key, LpmTrie},
};
use egress_common::{
    address::IpBytes,
    destination::Destination,
    flow::Flow,
    learned::{Learned, LearnedKey, NameRule, ReversedName},
    listener::ListenerPorts,
    names::map,
    origin::Origin,
    slot::{Slot, State},
};

use super::Agent;

impl Agent<'_> {
    /// How many redirected connections wait to be accepted.
    pub fn flows(&self) -> Result<usize> {
        Ok(self.waiting()?.map(|flows| flows.len()).iter().sum())
    }

    /// The redirected connections that wait to be accepted, and where they were going: those of the map `SLOTS`, and those of `FLOWS`.
    pub fn waiting(&self) -> Result<[Vec<(Flow, SocketAddr)>; 2]> {
        let slots =
            Array::<_, Slot>::try_from(Map::Array(self.map(map::SLOTS)?))?.iter().collect::<Result<Vec<_>, _>>()?;
        let full = slots.into_iter().filter(|slot| State(slot.state).is_full());
        let rest = HashMap::<_, Flow, Origin>::try_from(Map::HashMap(self.map(map::FLOWS)?))?;
        let rest = rest.iter().map(|entry| entry.map(|(flow, origin)| (flow, origin.socket_addr())));
        Ok([full.map(|slot| (slot.flow, slot.origin.socket_addr())).collect(), rest.collect::<Result<_, _>>()?])
    }

    /// How many network namespaces connections are redirected in: entries of the map `LISTENERS`.
    pub fn namespaces(&self) -> Result<usize> {
        let listeners = HashMap::<_, u64, ListenerPorts>::try_from(Map::HashMap(self.map(map::LISTENERS)?))?;
        Ok(listeners.keys().count())
    }

    /// The ports that connections are redirected to in the network namespace with this cookie, as the map `LISTENERS` has them: on 127.0.0.1,
    /// and on ::1.
    pub fn listener_ports(&self, netns: u64) -> Result<[u16; 2]> {
        let listeners = HashMap::<_, u64, ListenerPorts>::try_from(Map::HashMap(self.map(map::LISTENERS)?))?;
        let ports = listeners.get(&netns, 0)?;
        Ok([ports.v4, ports.v6].map(u16::from_be_bytes))
    }

    /// How many redirected sockets are connecting, by the map `CONNECTING`.
    pub fn connecting(&self) -> Result<u64> {
        let counts = HashMap::<_, u64, u64>::try_from(Map::HashMap(self.map(map::CONNECTING)?))?;
        Ok(counts.iter().map(|entry| Ok(entry?.1)).sum::<Result<_, MapError>>()?)
    }

    /// When each address was last told or used that applications were told of (map `LEARNED`): nanoseconds since boot.
    pub fn learned(&self) -> Result<BTreeMap<IpAddr, u64>> {
        let learned = HashMap::<_, LearnedKey, Learned>::try_from(Map::HashMap(self.map(map::LEARNED)?))?;
        let entry = |(key, learned): (LearnedKey, Learned)| (key.destination.address.into(), learned.seen_ns);
        Ok(learned.iter().map(|found| found.map(entry)).collect::<Result<_, _>>()?)
    }

    /// Fills the map `DESTINATIONS` with what nobody goes to, until it takes no more.
    pub fn fill_destinations(&self) -> Result<()> {
        let mut destinations = self.destinations()?;
        for number in 0.. {
            match destinations.insert(&filler(number), 0, 0) {
                Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOSPC) => break,
                inserted => inserted?,
            }
        }
        Ok(())
    }

    /// Removes some of what it was filled with.
    pub fn make_room(&self, count: u32) -> Result<()> {
        let mut destinations = self.destinations()?;
        (0..count).try_for_each(|number| Ok(destinations.remove(&filler(number))?))
    }

    fn destinations(&self) -> Result<LpmTrie<MapData, Destination, u8>> {
        Ok(LpmTrie::try_from(Map::LpmTrie(self.map(map::DESTINATIONS)?))?)
    }

    /// How many names the kernel learns the addresses of: entries of the map `NAMES`.
    pub fn names(&self) -> Result<usize> {
        Ok(self.names_map()?.keys().count())
    }

    /// Removes them, as another agent could.
    pub fn forget_names(&self) -> Result<()> {
        let mut names = self.names_map()?;
        for name in names.keys().collect::<Result<Vec<_>, _>>()? {
            names.remove(&name)?;
        }
        Ok(())
    }

    fn names_map(&self) -> Result<LpmTrie<MapData, ReversedName, NameRule>> {
        Ok(LpmTrie::try_from(Map::LpmTrie(self.map(map::NAMES)?))?)
    }

    /// The kernel's id of one of its maps.
    pub fn map_id(&self, name: &str) -> Result<u32> {
        // Other agents have maps of this name: only this one's descriptors tell which is meant.
        let descriptors = fs::read_dir(format!("/proc/{}/fdinfo", self.running.pid()))?;
        descriptors
            .flatten()
            .filter_map(|entry| fs::read_to_string(entry.path()).ok())
            .filter_map(|info| info.lines().find_map(|line| line.strip_prefix("map_id:")?.trim().parse().ok()))
            .find(|&id| MapInfo::from_id(id).is_ok_and(|info| info.name_as_str() == Some(name)))
            .with_context(|| format!("the agent holds no map {name}"))
    }

    fn map(&self, name: &str) -> Result<MapData> {
        Ok(MapData::from_id(self.map_id(name)?)?)
    }
}

/// An address that nobody has, on a port that there is not.
fn filler(number: u32) -> Key<Destination> {
    let address = Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(number));
    Key::new(Destination::BITS, Destination::new(IpBytes(address.octets()), [0; 2]))
}
