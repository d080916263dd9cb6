//! What the agent left in the kernel: its maps, and its programs, which go on.

use std::{
    cell::RefCell,
    collections::HashSet,
    fs,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::{HashMap, Map, MapData, SkStorage},
    programs::{ProgramFd, ProgramInfo, loaded_programs},
    sys::{Stats, enable_stats},
};
use egress_common::{address::IpBytes, flow::Flow, listener::ListenerPorts, names::map, origin::Origin, slot::Slots};

/// The agent's maps, in which this process takes the agent's place.
pub(crate) struct Maps {
    listeners: RefCell<HashMap<MapData, u64, ListenerPorts>>,
    own_sockets: RefCell<SkStorage<MapData, u32>>,
    slots: Slots,
    flows: RefCell<HashMap<MapData, Flow, Origin>>,
    netns: u64,
    ids: HashSet<u32>,
}

impl Maps {
    /// Opens the maps that are pinned in a directory, to redirect in the network namespace with that cookie.
    pub(crate) fn open(directory: &Path, netns: u64) -> Result<Self> {
        let open = |name| {
            let path = directory.join(name);
            MapData::from_pin(&path).with_context(|| format!("opening the map {}", path.display()))
        };
        Ok(Self {
            listeners: RefCell::new(HashMap::try_from(Map::HashMap(open(map::LISTENERS)?))?),
            own_sockets: RefCell::new(SkStorage::try_from(Map::SkStorage(open(map::OWN_SOCKETS)?))?),
            slots: Slots::map(open(map::SLOTS)?.fd().as_fd()).context("mapping the slots")?,
            flows: RefCell::new(HashMap::try_from(Map::HashMap(open(map::FLOWS)?))?),
            netns,
            ids: map::PINNED.iter().map(|name| Ok(open(name)?.info()?.id())).collect::<Result<_>>()?,
        })
    }

    /// Has connections of the listener's family redirected to it.
    pub(crate) fn redirect_to(&self, listener: &TcpListener) -> Result<()> {
        self.own_sockets.borrow_mut().insert(listener, 1, 0).context("marking the listener")?;
        let mut listeners = self.listeners.borrow_mut();
        let mut ports = listeners.get(&self.netns, 0).unwrap_or_default();
        match listener.local_addr()? {
            SocketAddr::V4(address) => ports.v4 = address.port().to_be_bytes(),
            SocketAddr::V6(address) => ports.v6 = address.port().to_be_bytes(),
        }
        listeners.insert(self.netns, ports, 0).context("announcing the listener")
    }

    /// Takes the origin of a connection, as the agent does.
    pub(crate) fn take_origin(&self, client: SocketAddr, listener: u16) -> Result<Option<SocketAddr>> {
        let flow = Flow::new(self.netns, IpBytes::from(client.ip()), client.port(), listener);
        if let Some(origin) = self.slots.take(&flow) {
            return Ok(Some(origin.socket_addr()));
        }
        let mut flows = self.flows.borrow_mut();
        let Ok(origin) = flows.get(&flow, 0) else { return Ok(None) };
        flows.remove(&flow)?;
        Ok(Some(origin.socket_addr()))
    }

    /// What the programs run and take while `work` is done. The kernel's own figures, which cost while they are on.
    pub(crate) fn runs_during(&self, work: impl FnOnce() -> Result<()>) -> Result<Vec<Runs>> {
        let _enabled = enable_stats(Stats::RunTime).context("BPF_ENABLE_STATS")?;
        let programs = self.programs();
        ensure!(!programs.is_empty(), "no program uses the agent's maps");
        let runs = || programs.iter().map(|(name, program)| Runs::of(name, program)).collect::<Result<Vec<_>>>();
        let before = runs()?;
        work()?;
        Ok(runs()?.into_iter().zip(&before).map(|(after, before)| after.since(before)).collect())
    }

    /// The programs that use one of the maps. Other agents on this machine have programs of the same names.
    fn programs(&self) -> Vec<(String, ProgramFd)> {
        let uses_ours = |program: &ProgramInfo| {
            let used = program.map_ids().ok().flatten().unwrap_or_default();
            used.iter().any(|id| self.ids.contains(id))
        };
        let open = |program: ProgramInfo| Some((program.name_as_str()?.to_owned(), program.fd().ok()?));
        // One that is gone before it is looked at was not of the agent that left us its programs.
        loaded_programs().filter_map(Result::ok).filter(uses_ours).filter_map(open).collect()
    }
}

/// What a program did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Runs {
    /// The program's name.
    pub(crate) program: String,
    /// How often it ran.
    pub(crate) count: u64,
    /// How long all runs took together.
    pub(crate) nanoseconds: u64,
}

impl Runs {
    /// Since statistics were first enabled.
    fn of(name: &str, program: &ProgramFd) -> Result<Self> {
        let path = format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd());
        let info = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        Self::parse(name, &info).with_context(|| format!("the kernel does not tell what {name} costs:\n{info}"))
    }

    fn parse(program: &str, info: &str) -> Option<Self> {
        let field = |name: &str| {
            let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            value.trim().parse().ok()
        };
        Some(Self { program: program.to_owned(), count: field("run_cnt")?, nanoseconds: field("run_time_ns")? })
    }

    fn since(self, before: &Self) -> Self {
        let (count, nanoseconds) = (self.count - before.count, self.nanoseconds - before.nanoseconds);
        Self { count, nanoseconds, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_read_and_subtracted() {
        let info = |time: u64, count: u64| {
            format!(
                "pos:\t0\nflags:\t02000002\nprog_id:\t7\nrun_time_ns:\t{time}\nrun_cnt:\t{count}\nrecursion_misses:\t0\n"
            )
        };
        let [before, after] = [info(100, 1), info(900, 5)].map(|info| Runs::parse("connect4", &info));
        let runs = after.zip(before).map(|(after, before)| after.since(&before));
        assert_eq!(runs, Some(Runs { program: "connect4".to_owned(), count: 4, nanoseconds: 800 }));
        assert_eq!(Runs::parse("connect4", "prog_id:\t7\n"), None);
    }
}
