//! What the kernel must know of names.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use aya::maps::{
    Map, MapData,
    lpm_trie::{Key, LpmTrie},
};
use egress_common::{
    learned::{NAME_LEN, NAME_PORTS, NameRule, ReversedName},
    names::map,
};
use foldhash::HashMap;

use crate::{
    kernel::{KernelError, maps::error, pins},
    policy::{HostPattern, parents},
};

/// In place of a port where a name has no more.
const NO_PORT: [u8; 2] = [0; 2];

/// What the kernel must know of names. To make it takes a while where there are many.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct NameRules(pub(super) HashMap<NameKey, NameRule>);

/// A key of the trie: the bytes of the reversed name that count.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct NameKey(Box<[u8]>);

impl NameKey {
    /// `bits` is a multiple of 8 in all that we make.
    fn new(bits: u32, name: &ReversedName) -> Self {
        let bytes = name.0.len().min(bits as usize / 8);
        Self(name.0[..bytes].into())
    }

    pub(super) fn key(&self) -> Key<ReversedName> {
        let mut name = ReversedName([0; NAME_LEN]);
        name.0[..self.0.len()].copy_from_slice(&self.0);
        Key::new(8 * self.0.len() as u32, name)
    }
}

impl NameRules {
    /// Those in the map that an agent has pinned under `root`, be it that it has ended; none if there is no such map, or it is
    /// of another layout.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn pinned(root: &Path) -> Result<Self, KernelError> {
        let Some(pinned) = pins::open_map(root, map::NAMES)? else { return Ok(Self::default()) };
        let names = MapData::from_fd(pinned).and_then(|data| LpmTrie::try_from(Map::LpmTrie(data)));
        Self::read(&names.map_err(error(map::NAMES))?)
    }

    pub(super) fn read(names: &LpmTrie<MapData, ReversedName, NameRule>) -> Result<Self, KernelError> {
        let name = |key: Key<ReversedName>| NameKey::new(key.prefix_len(), &key.data());
        let rules = names.iter().map(|entry| entry.map(|(key, rule)| (name(key), rule)));
        rules.collect::<Result<_, _>>().map(Self).map_err(error(map::NAMES))
    }

    /// Whether whatever has a rule in `other` has one here, too.
    pub fn covers(&self, Self(other): &Self) -> bool {
        let has = |own: &NameRule, port: &[u8; 2]| *port == NO_PORT || own.ports.contains(port);
        other
            .iter()
            .all(|(name, rule)| self.0.get(name).is_some_and(|own| rule.ports.iter().all(|port| has(own, port))))
    }

    /// Those for these hosts and ports. As a look-up gives the longest match alone, an entry has the ports of all that cover
    /// it.
    pub fn of<'h>(watched: impl IntoIterator<Item = (&'h HostPattern, u16)>) -> Self {
        let mut ports = BTreeMap::<&HostPattern, BTreeSet<u16>>::new();
        for (pattern, port) in watched {
            ports.entry(pattern).or_default().insert(port);
        }
        let wildcards: HashMap<_, _> = ports
            .iter()
            .filter(|(pattern, _)| !pattern.is_exact())
            .map(|(pattern, ports)| (pattern.name().as_str(), ports))
            .collect();
        let entries = ports.iter().filter_map(|(pattern, own)| {
            let name = pattern.name().as_str();
            let (key, bits) = if pattern.is_exact() { ReversedName::exact(name) } else { ReversedName::below(name) }?;
            let covering = parents(name).filter_map(|parent| wildcards.get(parent));
            let all: BTreeSet<u16> = covering.copied().chain([own]).flatten().copied().collect();
            Some((NameKey::new(bits, &key), rule(&all)))
        });
        Self(entries.collect())
    }
}

fn rule(ports: &BTreeSet<u16>) -> NameRule {
    let mut slots = [NO_PORT; NAME_PORTS];
    // The policy has no more ports for a name than there is room for.
    for (slot, port) in slots.iter_mut().zip(ports) {
        *slot = port.to_be_bytes();
    }
    NameRule { ports: slots }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(watched: &[(&str, u16)]) -> NameRules {
        let watched: Vec<(HostPattern, u16)> =
            watched.iter().map(|(text, port)| (text.parse().expect(text), *port)).collect();
        NameRules::of(watched.iter().map(|(host, port)| (host, *port)))
    }

    fn ports_of(watched: &[(&str, u16)], name: &str) -> Vec<u16> {
        let NameRules(rules) = rules(watched);
        let (key, _) = ReversedName::exact(name).expect("short");
        let matches = rules.iter().filter(|(prefix, _)| key.0.starts_with(&prefix.0));
        let longest = matches.max_by_key(|(prefix, _)| prefix.0.len());
        let ports = longest.into_iter().flat_map(|(_, rule)| rule.ports).map(u16::from_be_bytes);
        ports.filter(|port| *port != 0).collect()
    }

    #[test]
    fn rules_cover_what_they_have() {
        let all = rules(&[("*.example.com", 80), ("a.example.com", 81), ("other.example", 80)]);
        assert!(all.covers(&all) && all.covers(&rules(&[("other.example", 80)])) && all.covers(&rules(&[])));
        assert!(!rules(&[]).covers(&all) && !rules(&[("*.example.com", 80), ("a.example.com", 81)]).covers(&all));
        assert!(!all.covers(&rules(&[("other.example", 81)])));
    }

    #[test]
    fn keys_are_as_they_were_read() {
        let (name, bits) = ReversedName::below("example.com").expect("short");
        let key = NameKey::new(bits, &name).key();
        assert_eq!((key.prefix_len(), key.data()), (bits, name));
    }

    #[test]
    fn the_longest_match_has_the_ports_of_all_that_cover_it() {
        let watched = [("*.example.com", 80), ("*.b.example.com", 81), ("a.b.example.com", 82), ("example.com", 83)];
        let check = |name, expected: &[u16]| assert_eq!(ports_of(&watched, name), expected, "{name}");
        check("a.b.example.com", &[80, 81, 82]);
        check("x.b.example.com", &[80, 81]);
        check("b.example.com", &[80]);
        check("example.com", &[83]);
        check("myexample.com", &[]);
        check("com", &[]);
    }
}
