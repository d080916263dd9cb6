//! The networks whose connections are redirected in every network namespace.

use std::net::{IpAddr, SocketAddr};

use foldhash::{HashMap, HashSet};

use aya::maps::{
    Map, MapData, MapError,
    lpm_trie::{Key, LpmTrie},
};
use egress_common::{
    address::IpBytes,
    destination::{Capture, Destination, MAX_DESTINATIONS},
    names::map,
};

use super::{
    KernelError,
    maps::{error, ignore_absent, insert_all, is_full},
};
use crate::policy::Cidr;

/// A network on one port: the key of an entry. The most specific one that contains an address counts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Intercepted {
    /// The address, or the network's address.
    pub address: IpAddr,
    /// Length of the prefix in the address's own family: 32 or 128 for one address.
    pub prefix_len: u8,
    /// The port.
    pub port: u16,
}

impl Intercepted {
    /// Exactly one address.
    pub fn host(address: IpAddr, port: u16) -> Self {
        let address = address.to_canonical();
        Self { address, prefix_len: if address.is_ipv4() { 32 } else { 128 }, port }
    }

    /// Whether all connections to the other network are to this one.
    pub fn contains(&self, other: &Self) -> bool {
        let network = Cidr { address: self.address, prefix_len: self.prefix_len };
        self.port == other.port && self.prefix_len <= other.prefix_len && network.contains(other.address)
    }

    fn from_key(key: &Key<Destination>) -> Self {
        let Destination { address, port, .. } = key.data();
        let before = Destination::prefix_bits(&address, 0);
        Self {
            address: IpAddr::from(address),
            prefix_len: u8::try_from(key.prefix_len() - before).unwrap_or(u8::MAX),
            port: u16::from_be_bytes(port),
        }
    }

    fn key(&self) -> Key<Destination> {
        let address = IpBytes::from(self.address);
        Key::new(
            Destination::prefix_bits(&address, self.prefix_len),
            Destination::new(address, self.port.to_be_bytes()),
        )
    }
}

/// What is intercepted, and why; or is not.
pub struct Destinations {
    map: LpmTrie<MapData, Destination, u8>,
    /// By the numbers of [`Capture`].
    present: HashMap<Intercepted, u8>,
    /// Found in a pinned map, and kept until the names that they came from have been looked up again.
    inherited: HashSet<Intercepted>,
}

impl Destinations {
    pub(super) fn new(map: Map) -> Result<Self, KernelError> {
        let map: LpmTrie<_, Destination, u8> = LpmTrie::try_from(map).map_err(error(map::DESTINATIONS))?;
        Ok(Self { map, present: HashMap::default(), inherited: HashSet::default() })
    }

    /// Takes over what is in the map. To be called when no other agent changes it any more, and before `set`.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn inherit(&mut self) -> Result<(), KernelError> {
        let present = self.map.iter().map(|entry| entry.map(|(key, capture)| (Intercepted::from_key(&key), capture)));
        self.present = present.collect::<Result<_, _>>().map_err(error(map::DESTINATIONS))?;
        // What is there for its port alone, or excluded, is not: that is for whoever runs to say.
        let of_hosts = self.present.iter().filter(|(_, capture)| **capture == Capture::Host as u8);
        self.inherited = of_hosts.map(|(network, _)| *network).collect();
        Ok(())
    }

    /// Whether an earlier agent has left something that is kept.
    pub fn has_inherited(&self) -> bool {
        !self.inherited.is_empty()
    }

    /// Lets go of what an earlier agent left of IPv4, of IPv6, or of both, with the next `set`. Says whether there was something.
    pub fn disown_inherited(&mut self, [v4, v6]: [bool; 2]) -> bool {
        let before = self.inherited.len();
        self.inherited.retain(|network| if network.address.is_ipv4() { !v4 } else { !v6 });
        self.inherited.len() < before
    }

    /// Makes the map hold exactly `wanted`, besides what is inherited. What is new is added before what is gone is removed.
    ///
    /// # Errors
    /// There are too many: what could be added is there. Or the kernel refuses: then nothing is removed besides.
    pub fn set(&mut self, wanted: &HashMap<Intercepted, Capture>) -> Result<(), KernelError> {
        let all = || wanted.iter().map(|(entry, capture)| (*entry, *capture));
        let added = self.add(all());
        if added.as_ref().is_err_and(|error| !error.is_want_of_room()) {
            return added;
        }
        let kept = |entry: &Intercepted| wanted.contains_key(entry) || self.inherited.contains(entry);
        let gone: Vec<_> = self.present.keys().filter(|entry| !kept(entry)).copied().collect();
        for entry in &gone {
            ignore_absent(self.map.remove(&entry.key())).map_err(error(map::DESTINATIONS))?;
            self.present.remove(entry);
        }
        // What is gone has made room.
        if gone.is_empty() { added } else { added.or_else(|_| self.add(all())) }
    }

    /// Makes the map hold these, besides what it has. What is inherited is not excluded.
    ///
    /// # Errors
    /// As for `set`.
    pub fn add(&mut self, wanted: impl Iterator<Item = (Intercepted, Capture)>) -> Result<(), KernelError> {
        let Self { map, present, inherited } = self;
        let wanted = wanted.filter(|(entry, capture)| *capture != Capture::Excluded || !inherited.contains(entry));
        let numbers = wanted.map(|(entry, capture)| (entry, capture as u8));
        insert_all(present, numbers, |entry, number| map.insert(&entry.key(), number, 0).map_err(not_added))
    }

    /// Whether connects to this address are intercepted because a configured host has it.
    pub fn has_host(&self, address: SocketAddr) -> bool {
        let (ip, port) = (IpBytes::from(address.ip()), address.port().to_be_bytes());
        let capture = self.map.get(&Key::new(Destination::BITS, Destination::new(ip, port)), 0);
        !ip.is_loopback() && capture.is_ok_and(|number| Capture::from_number(number) == Some(Capture::Host))
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.present.len()
    }

    /// Whether nothing is intercepted.
    pub fn is_empty(&self) -> bool {
        self.present.is_empty()
    }
}

/// Why an entry could not be added.
fn not_added(source: MapError) -> KernelError {
    match is_full(&source) {
        true => KernelError::TooManyDestinations { capacity: MAX_DESTINATIONS },
        false => error(map::DESTINATIONS)(source),
    }
}
