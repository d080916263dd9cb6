//! The names whose addresses the kernel learns from DNS answers, and what it has learned.

mod rules;

use std::{
    mem,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use foldhash::{HashMap, HashSet};

use aya::maps::{HashMap as BpfHashMap, Map, MapData, MapError, lpm_trie::LpmTrie};
use egress_common::{
    MAX_NETNS,
    learned::{LEARNED_PER_NETNS, Learned, LearnedKey, MAX_LEARNED, NameRule, ReversedName},
    names::map,
};

use self::rules::NameKey;
pub use self::rules::NameRules;
use super::{
    KernelError,
    maps::{SharedMap, error, ignore_absent, insert_all, insert_new, since_boot},
    syscall::take_element,
};
use crate::netns::NetnsCookie;

/// A namespace that has learned more than this forgets what for long no answer had and no connection used. Otherwise it
/// keeps everything: applications hold answers for as long as they run, whatever DNS allows.
const MANY: u32 = LEARNED_PER_NETNS / 2;
/// How long that is. As long is kept what namespaces have learned that are not there: some are not found yet, or will be found
/// again, and some have no process that can be looked at.
const LONG: Duration = Duration::from_secs(24 * 3600);
/// One that had no room for more has room again when it has no more than this: it is not to be told of each entry that goes.
const ROOM_AGAIN: u32 = LEARNED_PER_NETNS / 4 * 3;
/// Where more of the room than so many eighths is taken, be it by entries or by namespaces that have some, it is shorter for namespaces
/// that are not there. Where nearly all is, one pod may have filled it by namespaces that it has left, and others are told nothing new.
const SHORTER: [(usize, Duration); 2] = [(7, Duration::from_secs(60)), (4, HOUR)];
const HOUR: Duration = Duration::from_secs(3600);

/// For how long at least what was learned for a port outlives its last rule: one that comes back is to find it.
const UNUSED: Duration = Duration::from_secs(300);

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
    /// There are too many names: those that could be added are there. Or the kernel refuses: then none is removed besides.
    pub fn set(&mut self, NameRules(wanted): &NameRules) -> Result<(), KernelError> {
        self.ports.set(wanted.values().flat_map(|rule| rule.ports));
        if *wanted == self.present {
            return Ok(());
        }
        let added = self.add(wanted);
        if added.as_ref().is_err_and(|error| !error.is_want_of_room()) {
            return added;
        }
        let gone: Vec<_> = self.present.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect();
        for name in &gone {
            ignore_absent(self.names.remove(&name.key())).map_err(error(map::NAMES))?;
            self.present.remove(name);
        }
        // What is gone has made room.
        if gone.is_empty() { added } else { added.or_else(|_| self.add(wanted)) }
    }

    fn add(&mut self, wanted: &HashMap<NameKey, NameRule>) -> Result<(), KernelError> {
        let Self { names, present, .. } = self;
        let all = wanted.iter().map(|(name, rule)| (name.clone(), *rule));
        insert_all(present, all, |name, rule| names.insert(&name.key(), rule, 0).map_err(error(map::NAMES)))
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

    /// Forgets what is of no use any more, where these network namespaces are there, and others if they `may_lack_some`. Says how much
    /// is left.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn sweep(&mut self, there: &HashSet<NetnsCookie>, may_lack_some: bool) -> Result<usize, KernelError> {
        let now = since_boot();
        let mut ports = mem::take(&mut self.ports);
        let left = self.forget(|key, learned, count, if_gone| {
            // Who is not seen holds addresses for a while.
            let if_gone = if may_lack_some { if_gone.max(HOUR) } else { if_gone };
            let age = now.saturating_sub(Duration::from_nanos(learned.seen_ns));
            let is_there = there.contains(&NetnsCookie(key.netns));
            // Which name an address was learned for is not known, nor whether others have it too. The Host decides anyway.
            ports.is_unused(key.destination.port, now) || is_obsolete(is_there, age, count, if_gone)
        });
        self.ports = ports;
        left
    }

    /// Forgets entries, the oldest first, and corrects the counts. An entry is judged by how many its namespace has, too, and by how
    /// long those are kept now whose namespace is not there.
    fn forget(
        &mut self,
        mut obsolete: impl FnMut(&LearnedKey, &Learned, u32, Duration) -> bool,
    ) -> Result<usize, KernelError> {
        // One that vanishes meanwhile is none that we miss.
        let mut entries: Vec<_> = self.learned.iter().filter_map(Result::ok).collect();
        entries.sort_unstable_by_key(|(_, learned)| learned.seen_ns);
        let mut counts: HashMap<u64, u32> = self.counts.keys().filter_map(Result::ok).map(|netns| (netns, 0)).collect();
        for (key, _) in &entries {
            *counts.entry(key.netns).or_default() += 1;
        }
        let if_gone = kept_if_gone(entries.len(), counts.len());
        let mut left = entries.len();
        for (key, learned) in entries {
            let count = counts.entry(key.netns).or_default();
            if obsolete(&key, &learned, *count, if_gone) && self.remove(&key, learned)? {
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

/// Whether an address that no answer had and no connection used for so long is of no use, in a namespace that has so many; or in one
/// that is not there, where it is kept for `if_gone`.
fn is_obsolete(is_there: bool, age: Duration, count: u32, if_gone: Duration) -> bool {
    if is_there { count > MANY && age > LONG } else { age > if_gone }
}

/// For how long what was learned is kept where its namespace is not there, with so many entries, and namespaces that have some.
fn kept_if_gone(entries: usize, namespaces: usize) -> Duration {
    let is_taken = |eighths| 8 * entries > eighths * MAX_LEARNED || 8 * namespaces > eighths * MAX_NETNS;
    SHORTER.into_iter().find(|(eighths, _)| is_taken(*eighths)).map_or(LONG, |(_, kept)| kept)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_be_there_unseen_keeps_what_it_was_told() {
        let (minutes, hours, days) = (120, 2 * 3600, 48 * 3600);
        let check = |is_there, age, count, if_gone, expected| {
            let age = Duration::from_secs(age);
            assert_eq!(is_obsolete(is_there, age, count, if_gone), expected, "{is_there} {age:?} {count} {if_gone:?}");
        };
        let [(_, minute), (_, hour)] = SHORTER;
        for if_gone in [minute, hour, LONG] {
            check(true, days, MANY, if_gone, false);
            check(true, hours, MANY + 1, if_gone, false);
            check(true, days, MANY + 1, if_gone, true);
            check(false, minutes, 1, if_gone, if_gone == minute);
            check(false, hours, 1, if_gone, if_gone != LONG);
            check(false, days, 1, if_gone, true);
        }
    }

    #[test]
    fn what_one_pod_can_fill_is_free_again_before_long() {
        let check = |entries, namespaces, seconds| {
            assert_eq!(kept_if_gone(entries, namespaces), Duration::from_secs(seconds), "{entries} {namespaces}");
        };
        let (day, hour, minute) = (24 * 3600, 3600, 60);
        check(0, 0, day);
        check(MAX_LEARNED / 2, MAX_NETNS / 2, day);
        check(MAX_LEARNED / 2 + 1, 1, hour);
        check(1, MAX_NETNS / 2 + 1, hour);
        check(MAX_LEARNED / 8 * 7, MAX_NETNS / 8 * 7, hour);
        check(MAX_LEARNED / 8 * 7 + 1, 1, minute);
        check(1, MAX_NETNS / 8 * 7 + 1, minute);
        check(64 * LEARNED_PER_NETNS as usize, 64, minute);
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
}
