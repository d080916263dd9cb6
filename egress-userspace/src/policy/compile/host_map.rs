//! Something for each of many hosts, found at a cost that does not grow with their number.

use foldhash::HashMap;

use crate::config::{HostPattern, parents};

/// A map by host pattern that keeps the order in which hosts came.
pub(super) struct HostMap<'d, T> {
    entries: Vec<(&'d HostPattern, T)>,
    exact: HashMap<&'d str, usize>,
    wildcards: HashMap<&'d str, usize>,
}

impl<T> Default for HostMap<'_, T> {
    fn default() -> Self {
        Self { entries: Vec::new(), exact: HashMap::default(), wildcards: HashMap::default() }
    }
}

impl<'d, T> HostMap<'d, T> {
    /// What there is for a host itself.
    pub(super) fn get(&self, host: &HostPattern) -> Option<&T> {
        let index = self.table(host).get(host.name().as_str())?;
        Some(&self.entries[*index].1)
    }

    /// What there is for a host itself, made if there is nothing.
    pub(super) fn entry(&mut self, host: &'d HostPattern, make: impl FnOnce() -> T) -> &mut T {
        let table = if host.is_exact() { &mut self.exact } else { &mut self.wildcards };
        let index = *table.entry(host.name().as_str()).or_insert_with(|| {
            self.entries.push((host, make()));
            self.entries.len() - 1
        });
        &mut self.entries[index].1
    }

    /// What there is for patterns that stand for all that `host` stands for, the most specific first.
    pub(super) fn covering(&self, host: &HostPattern) -> impl Iterator<Item = (&'d HostPattern, &T)> {
        let itself = self.table(host).get(host.name().as_str());
        let wildcards = parents(host.name().as_str()).filter_map(|parent| self.wildcards.get(parent));
        itself.into_iter().chain(wildcards).map(|&index| (self.entries[index].0, &self.entries[index].1))
    }

    /// Everything, in the order in which it came.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'d HostPattern, &T)> {
        self.entries.iter().map(|(host, value)| (*host, value))
    }

    fn table(&self, host: &HostPattern) -> &HashMap<&'d str, usize> {
        if host.is_exact() { &self.exact } else { &self.wildcards }
    }
}
