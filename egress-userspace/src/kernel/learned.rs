//! The names whose addresses the kernel learns from DNS answers, and what it has learned.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use foldhash::{HashMap, HashSet};

use aya::maps::{
    HashMap as BpfHashMap, Map, MapData, MapError,
    lpm_trie::{Key, LpmTrie},
};
use egress_common::{
    MAX_NETNS,
    learned::{LEARNED_PER_NETNS, Learned, LearnedKey, MAX_LEARNED, NAME_LEN, NAME_PORTS, NameRule, ReversedName},
    names::map,
};

use super::{
    KernelError,
    maps::{SharedMap, error, ignore_absent, insert_all, insert_new, since_boot},
    pins,
    syscall::take_element,
};
use crate::{
    netns::NetnsCookie,
    policy::{HostPattern, parents},
};

/// A namespace that has learned more than this forgets what for long no answer had and no connection used. Otherwise it
/// keeps everything: applications hold answers for as long as they run, whatever DNS allows.
const MANY: u32 = LEARNED_PER_NETNS / 2;
/// How long that is. As long is kept what namespaces have learned that are not there: some are not found yet, or will be found
/// again, and some have no process that can be looked at.
const LONG: Duration = Duration::from_secs(24 * 3600);
/// One that had no room for more has room again when it has no more than this: it is not to be told of each entry that goes.
const ROOM_AGAIN: u32 = LEARNED_PER_NETNS / 4 * 3;
/// There is little room left where there are more entries, or namespaces that have some: half of what there is room for.
const CROWDED: usize = MAX_LEARNED / 2;
const CROWDED_NAMESPACES: usize = MAX_NETNS / 2;
/// How long it is then where the namespace is not there.
const LONG_GONE_CROWDED: Duration = Duration::from_secs(3600);

/// For how long at least what was learned for a port outlives its last rule: one that comes back is to find it.
const UNUSED: Duration = Duration::from_secs(300);

/// In place of a port where a name has no more.
const NO_PORT: [u8; 2] = [0; 2];

/// What the kernel must know of names. To make it takes a while where there are many.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct NameRules(HashMap<NameKey, NameRule>);

/// A key of the trie: the bytes of the reversed name that count.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct NameKey(Box<[u8]>);

impl NameKey {
    /// `bits` is a multiple of 8 in all that we make.
    fn new(bits: u32, name: &ReversedName) -> Self {
        let bytes = name.0.len().min(bits as usize / 8);
        Self(name.0[..bytes].into())
    }

    fn key(&self) -> Key<ReversedName> {
        let mut name = ReversedName([0; NAME_LEN]);
        name.0[..self.0.len()].copy_from_slice(&self.0);
        Key::new(8 * self.0.len() as u32, name)
    }
}

/// The ports that rules have, and those that some have had.
#[derive(Debug, Default)]
struct Ports {
    used: HashSet<[u8; 2]>,
    /// When it was first seen that something was learned for them and no rule has them.
    unused: HashMap<[u8; 2], Duration>,
}

/// What [`LearnedNames::room`] has found.
#[derive(Debug, Default)]
pub struct Room {
    /// The network namespaces that have no room for more, and had some the last time.
    pub full: Vec<NetnsCookie>,
    /// Those that have room again.
    pub relieved: Vec<NetnsCookie>,
}

/// The names, and what was learned of them.
pub struct LearnedNames {
    names: LpmTrie<MapData, ReversedName, NameRule>,
    present: HashMap<NameKey, NameRule>,
    ports: Ports,
    learned: BpfHashMap<MapData, LearnedKey, Learned>,
    shared: SharedMap,
    counts: BpfHashMap<MapData, u64, u32>,
    /// Network namespaces that had no room for more, and have had little since.
    full: HashSet<NetnsCookie>,
}

impl LearnedNames {
    pub(super) fn new(names: Map, shared: SharedMap, counts: Map) -> Result<Self, KernelError> {
        let names = LpmTrie::try_from(names).map_err(error(map::NAMES))?;
        let learned = shared.open().and_then(|data| BpfHashMap::try_from(Map::HashMap(data)));
        let learned = learned.map_err(error(map::LEARNED))?;
        let counts = BpfHashMap::try_from(counts).map_err(error(map::LEARNED_COUNTS))?;
        let (present, ports, full) = (HashMap::default(), Ports::default(), HashSet::default());
        Ok(Self { names, present, ports, learned, shared, counts, full })
    }

    /// Takes over what is in the map of names. To be called when no other agent changes it any more, and before `set`.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn inherit(&mut self) -> Result<(), KernelError> {
        NameRules(self.present) = NameRules::read(&self.names)?;
        Ok(())
    }

    /// Makes these the names whose addresses are learned.
    ///
    /// # Errors
    /// There are too many names, or the kernel refuses: then none is removed, and those that could be added are there.
    pub fn set(&mut self, NameRules(wanted): &NameRules) -> Result<(), KernelError> {
        self.ports.set(wanted.values().flat_map(|rule| rule.ports));
        if *wanted == self.present {
            return Ok(());
        }
        let Self { names, present, .. } = self;
        let all = wanted.iter().map(|(name, rule)| (name.clone(), *rule));
        insert_all(present, all, |name, rule| names.insert(&name.key(), rule, 0).map_err(error(map::NAMES)))?;
        for name in self.present.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect::<Vec<_>>() {
            ignore_absent(self.names.remove(&name.key())).map_err(error(map::NAMES))?;
            self.present.remove(&name);
        }
        Ok(())
    }

    /// Takes in what another agent's map has: what applications were told stays true, whoever reads the answers now. One of
    /// another layout is left alone.
    ///
    /// # Errors
    /// There is no room, or the kernel refuses.
    pub fn adopt(&mut self, map: OwnedFd) -> Result<(), KernelError> {
        let other = MapData::from_fd(map).map_err(error(map::LEARNED))?;
        let Ok(other) = BpfHashMap::<_, LearnedKey, Learned>::try_from(Map::HashMap(other)) else {
            tracing::warn!("what applications were told of addresses is in another form, and is learned anew");
            return Ok(());
        };
        for (key, learned) in other.iter().filter_map(Result::ok) {
            self.keep(&key, learned)?;
        }
        // The counts are corrected by it.
        self.forget(|_, _, _, _| false).map(drop)
    }

    /// Looks which of these network namespaces have no room for more.
    pub fn room(&mut self, there: &HashSet<NetnsCookie>) -> Room {
        let counted = self.counts.iter().filter_map(Result::ok).map(|(netns, count)| (NetnsCookie(netns), count));
        let is_full = |netns, count| count >= LEARNED_PER_NETNS || count > ROOM_AGAIN && self.full.contains(&netns);
        let full = counted.filter(|&(netns, count)| is_full(netns, count) && there.contains(&netns));
        let full: HashSet<_> = full.map(|(netns, _)| netns).collect();
        let before = mem::replace(&mut self.full, full);
        Room {
            full: self.full.difference(&before).copied().collect(),
            relieved: before.difference(&self.full).filter(|netns| there.contains(netns)).copied().collect(),
        }
    }

    /// Forgets what is of no use any more, where these network namespaces are there. Says how much is left.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn sweep(&mut self, there: &HashSet<NetnsCookie>) -> Result<usize, KernelError> {
        let now = since_boot();
        let mut ports = mem::take(&mut self.ports);
        let left = self.forget(|key, learned, count, is_crowded| {
            let age = now.saturating_sub(Duration::from_nanos(learned.seen_ns));
            let is_there = there.contains(&NetnsCookie(key.netns));
            // Which name an address was learned for is not known, nor whether others have it too. The Host decides anyway.
            ports.is_unused(key.destination.port, now) || is_obsolete(is_there, age, count, is_crowded)
        });
        self.ports = ports;
        left
    }

    /// Forgets entries, the oldest first, and corrects the counts. An entry is judged by how many its namespace has, too, and
    /// whether there are many.
    fn forget(
        &mut self,
        mut obsolete: impl FnMut(&LearnedKey, &Learned, u32, bool) -> bool,
    ) -> Result<usize, KernelError> {
        // One that vanishes meanwhile is none that we miss.
        let mut entries: Vec<_> = self.learned.iter().filter_map(Result::ok).collect();
        entries.sort_unstable_by_key(|(_, learned)| learned.seen_ns);
        let mut counts: HashMap<u64, u32> = self.counts.keys().filter_map(Result::ok).map(|netns| (netns, 0)).collect();
        for (key, _) in &entries {
            *counts.entry(key.netns).or_default() += 1;
        }
        let is_crowded = entries.len() > CROWDED || counts.len() > CROWDED_NAMESPACES;
        let mut left = entries.len();
        for (key, learned) in entries {
            let count = counts.entry(key.netns).or_default();
            if obsolete(&key, &learned, *count, is_crowded) && self.remove(&key, learned)? {
                *count -= 1;
                left -= 1;
            }
        }
        for (netns, count) in counts {
            match count {
                0 => ignore_absent(self.counts.remove(&netns)),
                _ => self.counts.insert(netns, count, 0),
            }
            .map_err(error(map::LEARNED_COUNTS))?;
        }
        Ok(left)
    }

    /// Removes an entry, unless one that was used or told since it was read is to be kept.
    fn remove(&mut self, key: &LearnedKey, read: Learned) -> Result<bool, KernelError> {
        // One that is in use is not to be missing for a moment.
        if self.learned.get(key, 0).is_ok_and(|learned| learned.seen_ns != read.seen_ns) {
            return Ok(false);
        }
        // SAFETY: the map is from such keys to such values, as it was opened.
        let taken = unsafe { take_element::<_, Learned>(self.shared.as_fd(), key) };
        let taken = taken.map_err(MapError::IoError).map_err(error(map::LEARNED))?;
        let Some(newer) = taken.filter(|taken| taken.seen_ns != read.seen_ns) else { return Ok(true) };
        self.keep(key, newer).map(|()| false)
    }

    /// Adds an entry, unless there is one.
    fn keep(&mut self, key: &LearnedKey, learned: Learned) -> Result<(), KernelError> {
        insert_new(&mut self.learned, key, learned).map_err(error(map::LEARNED))
    }
}

/// Whether an address that no answer had and no connection used for so long is of no use, in a namespace that has so many.
fn is_obsolete(is_there: bool, age: Duration, count: u32, is_crowded: bool) -> bool {
    match (is_there, is_crowded) {
        (true, _) => count > MANY && age > LONG,
        (false, true) => age > LONG_GONE_CROWDED,
        (false, false) => age > LONG,
    }
}

impl Ports {
    /// Makes these the ports that rules have.
    fn set(&mut self, used: impl Iterator<Item = [u8; 2]>) {
        self.used = used.collect();
        self.unused.retain(|port, _| !self.used.contains(port));
    }

    /// Whether no rule has had a port for long.
    fn is_unused(&mut self, port: [u8; 2], now: Duration) -> bool {
        !self.used.contains(&port) && now.saturating_sub(*self.unused.entry(port).or_insert(now)) > UNUSED
    }
}

/// The map of what was learned, for [`LearnedNames::adopt`].
impl AsFd for LearnedNames {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.as_fd()
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

    fn read(names: &LpmTrie<MapData, ReversedName, NameRule>) -> Result<Self, KernelError> {
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
    fn who_may_be_there_unseen_keeps_what_it_was_told() {
        let (minutes, hours, days) = (120, 2 * 3600, 48 * 3600);
        let check = |is_there, age, count, is_crowded, expected| {
            let age = Duration::from_secs(age);
            assert_eq!(
                is_obsolete(is_there, age, count, is_crowded),
                expected,
                "{is_there} {age:?} {count} {is_crowded}"
            );
        };
        for is_crowded in [false, true] {
            check(true, days, MANY, is_crowded, false);
            check(true, hours, MANY + 1, is_crowded, false);
            check(true, days, MANY + 1, is_crowded, true);
            check(false, minutes, 1, is_crowded, false);
            check(false, hours, 1, is_crowded, is_crowded);
            check(false, days, 1, is_crowded, true);
        }
    }

    #[test]
    fn a_port_that_is_used_again_before_long_was_never_unused() {
        let (one, other) = ([0, 80], [0, 81]);
        let (start, mut ports) = (Duration::from_secs(1000), Ports::default());
        ports.set([one, other].into_iter());
        assert!(!ports.is_unused(one, start) && !ports.is_unused(other, start));
        ports.set([one].into_iter());
        let later = start + 2 * UNUSED;
        assert!(!ports.is_unused(other, later) && !ports.is_unused(other, later + UNUSED));
        ports.set([one, other].into_iter());
        ports.set([one].into_iter());
        let last = later + 2 * UNUSED;
        assert!(!ports.is_unused(other, last) && ports.is_unused(other, last + 2 * UNUSED));
        assert!(!ports.is_unused(one, last + 2 * UNUSED));
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
