//! The kernel side: programs, links and maps. Nothing outside this module names a BPF map.

pub mod cgroup;
mod destinations;
mod error;
mod events;
mod features;
mod flows;
mod learned;
mod load;
mod maps;
pub mod pins;
mod programs;
mod syscall;

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    mem,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use aya::maps::{Map, MapData};
use egress_common::names::{self, map, program};

pub use self::{
    destinations::{Destinations, Intercepted},
    error::{KernelError, capabilities, privilege_hint},
    events::{KernelLog, ThreadEvents},
    features::FeatureError,
    flows::Flows,
    learned::{LearnedNames, NameRules, Room},
    load::LoadError,
    maps::{Counters, Listeners, Marks, OwnSockets},
};
use self::{features::Features, load::Linked, maps::Scopes, pins::Pins, programs::Program};

/// The eBPF object, compiled by the build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/egress-ebpf"));

/// What follows if started programs are not reported.
const NOTICED_LATER: &str = "new network namespaces are noticed later, by their first socket";

/// Owns the programs and their links. Interception lasts as long as this value, or for good if it is pinned.
pub struct Redirector {
    /// Until they are loaded.
    linked: Option<Linked>,
    /// Whether they write log lines.
    log: bool,
    /// By name.
    programs: HashMap<&'static str, Program>,
    /// What reports started programs, which can be done without.
    exec: Option<Program>,
    scopes: Scopes,
    pins: Option<Pins>,
    /// What is to be found there by the next agent.
    pinned: Vec<(&'static str, OwnedFd)>,
    /// The cgroups that all programs are attached to, by their ids.
    attached: HashSet<u64>,
    /// Those of them that had none of ours before, unless they were asked for since.
    new: Vec<PathBuf>,
    /// What earlier agents may have left.
    left: Left,
}

/// What earlier agents may have left, from the most to the least.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    /// Links of other cgroups, and maps and links of other layouts.
    All,
    /// Those of other layouts.
    Layouts,
    /// Nothing.
    Nothing,
}

/// What [`Redirector::open`] gives.
pub struct Kernel {
    /// Programs and links.
    pub redirector: Redirector,
    /// What is intercepted.
    pub destinations: Destinations,
    /// What is intercepted because applications were told of it.
    pub learned: LearnedNames,
    /// Where to.
    pub listeners: Listeners,
    /// Origins of redirected connections.
    pub flows: Flows,
    /// Marks of our own sockets.
    pub own_sockets: OwnSockets,
    /// Counters of connects, by [`egress_common::outcome::Outcome`].
    pub outcomes: Counters,
    /// Counters of DNS answers, by [`egress_common::outcome::Learning`].
    pub learnings: Counters,
    /// Threads whose network namespaces may lack a listener.
    pub threads: ThreadEvents,
}

impl Redirector {
    /// Makes all maps, or takes those over that are pinned; loads and attaches nothing. With `log`, the programs write a line for
    /// each decision. With `pins`, interception outlives the process.
    ///
    /// # Errors
    /// We lack privileges, or the kernel lacks what the programs need, which the error names.
    pub fn open(log: bool, pins: Option<Pins>) -> Result<Kernel, KernelError> {
        let features = Features::detect()?;
        let level = [if log { u8::MAX } else { 0 }];
        let [multipath, initial_pids] = [features.multipath, features.initial_pids].map(|flag| [u8::from(flag)]);
        let constants = [
            (names::LOG_LEVEL, level.as_slice()),
            (names::MULTIPATH, &multipath),
            (names::INITIAL_PIDS, &initial_pids),
        ];
        let constants = constants.into_iter().map(|(name, value)| (name, (value, true)));
        let linked = Linked::new(OBJECT, constants.collect(), pins.as_ref());
        Self::open_maps(linked.map_err(|error| KernelError::Load(Box::new(error)))?, pins, log)
    }

    fn open_maps(linked: Linked, pins: Option<Pins>, log: bool) -> Result<Kernel, KernelError> {
        let take = |name| linked.map(name).map_err(maps::error(name))?.ok_or(KernelError::Missing(name));
        let destinations = Destinations::new(take(map::DESTINATIONS)?)?;
        let learned = LearnedNames::new(
            take(map::NAMES)?,
            shared(take(map::LEARNED)?, map::LEARNED)?,
            take(map::LEARNED_COUNTS)?,
        )?;
        let learnings = Counters::new(take(map::LEARNINGS)?, map::LEARNINGS)?;
        let listeners = Listeners::new(take(map::LISTENERS)?, take(map::CONNECTING)?)?;
        let flows = Flows::new(&array(take(map::SLOTS)?, map::SLOTS)?, shared(take(map::FLOWS)?, map::FLOWS)?)?;
        let own_sockets = OwnSockets::new(shared(take(map::OWN_SOCKETS)?, map::OWN_SOCKETS)?)?;
        let outcomes = Counters::new(take(map::OUTCOMES)?, map::OUTCOMES)?;
        let threads = ThreadEvents::new(take(map::THREADS_SEEN)?)?;
        let scopes = Scopes::new(take(map::SCOPES)?)?;
        let pinned = if pins.is_some() { linked.pinned().map_err(KernelError::Descriptor)? } else { Vec::new() };
        let (programs, exec, left) = (HashMap::new(), None, Left::All);
        let (attached, new) = (HashSet::new(), Vec::new());
        Ok(Kernel {
            redirector: Self { linked: Some(linked), log, programs, exec, scopes, attached, new, pins, pinned, left },
            destinations,
            learned,
            listeners,
            flows,
            own_sockets,
            outcomes,
            learnings,
            threads,
        })
    }

    /// Has the kernel verify all programs, which takes a while, unless it has. Gives their log lines, where asked for.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn load(&mut self) -> Result<Option<KernelLog>, KernelError> {
        // It has no other use.
        let Some(linked) = self.linked.take() else { return Ok(None) };
        let load = |name| linked.load(name).map_err(|source| KernelError::Program { name, source });
        let programs = program::CGROUP.into_iter().map(|name| load(name).map(|program| (name, program)));
        self.programs = programs.collect::<Result<_, _>>()?;
        let exec = load(program::PROCESS_EXEC).inspect_err(|error| tracing::warn!(%error, "{NOTICED_LATER}"));
        self.exec = exec.ok();
        self.programs.get(program::CONNECT4).filter(|_| self.log).map(KernelLog::new).transpose()
    }

    /// Attaches all programs, which are to be loaded, to all cgroups, with our maps pinned.
    ///
    /// # Errors
    /// A directory is not a cgroup of version 2, or the kernel refuses, or another agent has come to use the pins.
    pub fn attach(&mut self, cgroups: &[PathBuf]) -> Result<(), KernelError> {
        if let Some(pins) = &mut self.pins {
            pins.reopen()?;
            // They may have been removed, or be those of an agent that has failed to follow us.
            for (name, map) in &self.pinned {
                pins.hold(name, map.as_fd())?;
            }
        }
        let ids = cgroups.iter().map(|cgroup| cgroup_id(cgroup)).collect::<Result<Vec<_>, _>>()?;
        self.scopes.set(&ids)?;
        self.watch_exec();
        let mut result = Ok(());
        for (cgroup, id) in cgroups.iter().zip(&ids) {
            // One that fails does not leave the others in clear.
            match self.attach_one(cgroup, *id) {
                Ok(is_new) => {
                    self.attached.insert(*id);
                    self.new.extend(is_new.then(|| cgroup.clone()));
                }
                Err(error) => result = result.and(Err(error)),
            }
        }
        result?;
        // What was on others went with them.
        self.attached.retain(|id| ids.contains(id));
        self.programs.values_mut().for_each(|program| program.retain(&ids));
        Ok(())
    }

    /// The cgroups that have been attached to since the last time, and had none of our programs before.
    pub fn take_new(&mut self) -> Vec<PathBuf> {
        mem::take(&mut self.new)
    }

    /// Whether the programs are attached to anything.
    pub fn is_attached(&self) -> bool {
        !self.attached.is_empty()
    }

    /// Whether one of these cgroups is there and not attached to, as it has come or was made anew.
    pub fn is_behind(&self, cgroups: &[PathBuf]) -> bool {
        cgroups.iter().any(|cgroup| cgroup_id(cgroup).is_ok_and(|id| !self.attached.contains(&id)))
    }

    /// What agents with another layout of maps have learned, for [`LearnedNames::adopt`]. To be called when our programs
    /// are attached: both learn from then on.
    ///
    /// # Errors
    /// Their maps cannot be opened.
    pub fn learned_by_others(&self) -> Result<Vec<OwnedFd>, KernelError> {
        match &self.pins {
            Some(pins) if self.left != Left::Nothing => Ok(pins.maps_of_other_layouts(map::LEARNED)?),
            _ => Ok(Vec::new()),
        }
    }

    /// Detaches what earlier agents have left, when none of them can go on: what they had attached to other cgroups than these, to
    /// which ours are attached; and what is of another layout of maps, once all that was intercepted by it `is_known` here. Says
    /// whether there was something of that kind. What fails is tried again the next time.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn settle(&mut self, cgroups: &[PathBuf], is_known: bool) -> Result<bool, KernelError> {
        let Some(pins) = &self.pins else { return Ok(false) };
        if self.left == Left::All {
            pins.prune(cgroups)?;
            self.left = Left::Layouts;
        }
        if self.left == Left::Nothing || !is_known {
            return Ok(false);
        }
        let removed = pins.prune_layouts()?;
        self.left = Left::Nothing;
        Ok(removed)
    }

    /// What is pinned of another layout of maps, as far as it can be seen. It refuses what it knows of until it is settled.
    pub fn other_layout(&self) -> Option<PathBuf> {
        self.pins.as_ref()?.other_layouts().ok()?.pop()
    }

    /// Says that other agents may have left something since.
    pub fn unsettle(&mut self) {
        self.left = Left::All;
    }

    /// Redirects nothing any more, for another agent that does so by maps of its own; `flows` is the id of our map of
    /// flows. Connections that were redirected a moment ago still find what they need.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn withdraw(&mut self, flows: u32) -> Result<(), KernelError> {
        if let Some(pins) = &self.pins {
            return Ok(pins.withdraw(map::FLOWS, flows)?);
        }
        for name in [program::CONNECT4, program::CONNECT6] {
            if let Some(program) = self.programs.get_mut(name) {
                program.detach();
            }
        }
        Ok(())
    }

    /// Has started programs reported. This is of use only while we live, and not pinned.
    fn watch_exec(&mut self) {
        if let Some(program) = &mut self.exec
            && !program.is_attached()
            && let Err(error) = program.attach_to_tracepoint("sched_process_exec")
        {
            tracing::warn!(%error, "{NOTICED_LATER}");
        }
    }

    fn attach_one(&mut self, cgroup: &Path, id: u64) -> Result<bool, KernelError> {
        let mut is_new = false;
        let display = || cgroup.display().to_string();
        let directory = File::open(cgroup).map_err(|source| KernelError::Cgroup { cgroup: display(), source })?;
        for name in program::CGROUP {
            let program = self.programs.get_mut(name).ok_or(KernelError::Missing(name))?;
            let failed = |source| KernelError::Attach { name, cgroup: display(), source };
            let Some(pins) = &self.pins else {
                is_new |= program.attach(&directory, id).map_err(failed)?;
                continue;
            };
            if !pins.replace(cgroup, name, program.as_fd())? {
                let link = program.link(&directory).map_err(failed)?;
                pins.pin(cgroup, name, link.as_fd())?;
                is_new = true;
            }
        }
        Ok(is_new)
    }
}

/// The id by which the kernel knows a cgroup, which is its inode number. It is never used again.
fn cgroup_id(cgroup: &Path) -> Result<u64, KernelError> {
    let failed = |source| KernelError::Cgroup { cgroup: cgroup.display().to_string(), source };
    fs::metadata(cgroup).map(|metadata| metadata.ino()).map_err(failed)
}

/// The data of a map that is opened once for each thread.
fn shared(map: Map, name: &'static str) -> Result<maps::SharedMap, KernelError> {
    match map {
        Map::HashMap(data) | Map::SkStorage(data) => Ok(maps::SharedMap::new(data)),
        _ => Err(KernelError::Missing(name)),
    }
}

/// The data of a map whose elements are not asked for one by one.
fn array(map: Map, name: &'static str) -> Result<MapData, KernelError> {
    if let Map::Array(data) = map { Ok(data) } else { Err(KernelError::Missing(name)) }
}

#[cfg(test)]
mod tests {
    use egress_common::{address::IpBytes, flow::Flow, slot::State};

    use super::*;

    #[test]
    fn the_object_has_every_name() {
        let object = aya_obj::Object::parse(OBJECT).expect("the embedded object");
        for name in program::CGROUP.iter().chain([&program::PROCESS_EXEC]).copied() {
            assert!(object.programs.contains_key(name), "no program {name}");
        }
        for name in map::PINNED.iter().chain([&map::SCRATCH]).copied() {
            assert!(object.maps.contains_key(name), "no map {name}");
        }
        assert_eq!(object.license.to_bytes(), b"Dual MIT/GPL");
    }

    /// An agent takes pinned maps over from one of the same layout. Whoever changes a map has to say that it is another.
    #[test]
    fn the_layout_version_follows_the_maps() {
        let expected = "layout 5: name, type, key, value, entries, flags\n\
            DESTINATIONS 11 24 1 1048576 1\n\
            LISTENERS 1 8 4 16384 1\n\
            OWN_SOCKETS 24 4 4 0 1\n\
            ORIGINS 24 4 56 0 1\n\
            SLOTS 2 4 96 4096 1024\n\
            FLOWS 1 32 56 65536 1\n\
            CONNECTING 1 8 8 16384 1\n\
            OUTCOMES 6 4 8 11 0\n\
            THREADS_SEEN 27 0 0 65536 0\n\
            SCOPES 1 8 1 256 1\n\
            NAMES 11 260 16 262144 1\n\
            LEARNED 1 32 8 262144 1\n\
            LEARNED_COUNTS 1 8 4 16384 1\n\
            ASKERS 24 4 8 0 1\n\
            LEARNINGS 6 4 8 2 0\n\
            slots [383, 1855, 3304, 3848], states [0, 5, 6, 9, 8]\n";
        let object = aya_obj::Object::parse(OBJECT).expect("the embedded object");
        let mut found = format!("layout {}: name, type, key, value, entries, flags\n", egress_common::LAYOUT_VERSION);
        for name in map::PINNED {
            let map = &object.maps[name];
            let [kind, key, value] = [map.map_type(), map.key_size(), map.value_size()];
            let [entries, flags] = [map.max_entries(), map.map_flags()];
            found += &format!("{name} {kind} {key} {value} {entries} {flags}\n");
        }
        let slots = [(1, 1), (1, 40_001), (4097, 32_768), (1 << 40, u16::MAX)];
        let slots = slots.map(|(netns, port)| Flow::new(netns, IpBytes::LOOPBACK4, port, 15_001).slot());
        let claimed = State(0).claimed();
        let full = claimed.written();
        let states = [State(0), claimed, full, full.claimed(), full.emptied()].map(|state| state.0);
        found += &format!("slots {slots:?}, states {states:?}\n");
        assert_eq!(found, expected, "raise egress_common::LAYOUT_VERSION, and write down here what is new");
    }
}
