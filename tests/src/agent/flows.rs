//! What the agent's eBPF map of flows holds, read from the kernel.

use std::fs;

use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData, MapInfo};
use egress_common::{flow::Flow, names::map, origin::Origin};

use super::Agent;

impl Agent<'_> {
    /// How many redirected connections wait to be accepted: entries of the map `FLOWS`.
    pub fn flows(&self) -> Result<usize> {
        // Other agents have maps of this name: only this one's descriptors tell which is meant.
        let descriptors = fs::read_dir(format!("/proc/{}/fdinfo", self.running.pid()))?;
        let id = descriptors
            .flatten()
            .filter_map(|entry| fs::read_to_string(entry.path()).ok())
            .filter_map(|info| info.lines().find_map(|line| line.strip_prefix("map_id:")?.trim().parse().ok()))
            .find(|&id| MapInfo::from_id(id).is_ok_and(|info| info.name_as_str() == Some(map::FLOWS)))
            .context("the agent holds no map of flows")?;
        let flows = HashMap::<_, Flow, Origin>::try_from(Map::HashMap(MapData::from_id(id)?))?;
        Ok(flows.keys().count())
    }
}
