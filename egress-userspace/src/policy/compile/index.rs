//! The documents by what they are about, and where they contradict each other.

use std::{
    collections::{BTreeMap, btree_map},
    num::NonZeroU16,
    ptr,
};

use foldhash::{HashMap, HashSet};

use super::{
    Reports,
    full_names::FullNames,
    host_map::HostMap,
    is_http,
    namespaces::Namespace,
    reports::restricted,
    settings::{Destinations, Settings},
};
use crate::config::{
    Code, Document, HostPattern, Located, Location, Resource,
    backend_tls_policy::{BackendTlsPolicy, TargetKind, TargetRef},
    destination_rule::{DestinationRule, Subset},
    parents,
    service_entry::{Endpoint, ServiceEntry, ServicePort},
    store::Store,
    virtual_service::{MeshService, VirtualService},
};

/// All documents.
pub(super) struct Index<'d> {
    pub(super) services: HostMap<'d, BTreeMap<NonZeroU16, Service<'d>>>,
    pub(super) destinations: HostMap<'d, Destinations<'d>>,
    /// At least one for each host.
    pub(super) virtual_services: HostMap<'d, Vec<Routed<'d>>>,
    /// Ports that several entries have: what the first says, which counts, and what another does.
    pub(super) twice: Vec<(Service<'d>, Service<'d>)>,
    /// The namespaces of hosts that have entries in several.
    pub(super) shared: HashMap<&'d HostPattern, HashSet<Namespace<'d>>>,
    /// Hosts of which a `BackendTLSPolicy` means a port by its name.
    pub(super) sections: HashSet<&'d HostPattern>,
    /// One for each port, or two of which one is for that port alone.
    policies: HashMap<(&'d HostPattern, NonZeroU16), Vec<TlsPolicy<'d>>>,
    /// The names that hosts of `ServiceEntry`s are below of.
    parents: HashSet<&'d str>,
    stores: HashMap<StoreKey<'d>, (&'d Store, &'d Location)>,
    pub(super) full_names: &'d FullNames<'d>,
}

/// A port of a host.
#[derive(Clone, Copy)]
pub(super) struct Service<'d> {
    pub(super) host: &'d HostPattern,
    pub(super) entry: &'d ServiceEntry,
    pub(super) port: &'d ServicePort,
    pub(super) namespace: Namespace<'d>,
    /// What has any of the entries for it be there for some namespaces alone.
    pub(super) exported_to: Option<&'d Located<Vec<String>>>,
}

/// A `VirtualService` for a host.
pub(super) struct Routed<'d> {
    pub(super) service: &'d MeshService,
    /// The host that is meant.
    pub(super) host: &'d HostPattern,
    /// The host as it is listed there.
    pub(super) listed: &'d Located<HostPattern>,
    pub(super) namespace: Namespace<'d>,
}

impl Routed<'_> {
    /// Whether the host is what the listed one is in full.
    pub(super) fn is_completed(&self) -> bool {
        *self.host != self.listed.value
    }
}

/// A `BackendTLSPolicy` for a port.
#[derive(Clone, Copy)]
pub(super) struct TlsPolicy<'d> {
    pub(super) policy: &'d BackendTlsPolicy,
    pub(super) namespace: Namespace<'d>,
    /// By which of its targets.
    target: &'d TargetRef,
}

impl TlsPolicy<'_> {
    /// Whether one of the two is for a port of what the other is for as a whole. Then it counts there, as in the Gateway API's tests of
    /// conformance.
    fn is_beside(self, other: Self) -> bool {
        let (one, another) = (self.target, other.target);
        let is_same =
            self.namespace == other.namespace && one.kind.value == another.kind.value && one.name == another.name;
        is_same && one.section.is_some() != another.section.is_some()
    }
}

/// Where certificates can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum StoreKind {
    Secret,
    ConfigMap,
}

type StoreKey<'d> = (StoreKind, Namespace<'d>, &'d str);

impl<'d> Service<'d> {
    /// The port to connect to, where an endpoint has no other.
    pub(super) fn target_port(self) -> NonZeroU16 {
        self.port.target_port.as_ref().unwrap_or(&self.port.number).value
    }

    /// The port of an endpoint to connect to.
    pub(super) fn port_at(self, endpoint: &Endpoint) -> NonZeroU16 {
        endpoint.ports.get(&self.port.name.value).map_or(self.target_port(), |port| port.value)
    }
}

impl<'d> Index<'d> {
    pub(super) fn of(documents: &[&'d Document], full_names: &'d FullNames<'d>, reports: &mut Reports) -> Self {
        let mut index = Self {
            services: HostMap::default(),
            destinations: HostMap::default(),
            virtual_services: HostMap::default(),
            twice: Vec::new(),
            shared: HashMap::default(),
            sections: HashSet::default(),
            policies: HashMap::default(),
            parents: HashSet::default(),
            stores: HashMap::default(),
            full_names,
        };
        let mut entries: HashMap<(Namespace<'d>, &'d str), &'d ServiceEntry> = HashMap::default();
        let named = |document: &'d Document| (document.metadata.name.as_str(), Namespace::of(&document.metadata));
        for &document in documents {
            let (name, namespace) = named(document);
            match &document.resource {
                Resource::ServiceEntry(entry) => {
                    entries.insert((namespace, name), entry);
                    index.add_service_entry(entry, namespace);
                }
                Resource::Secret(store) => {
                    index.add_store((StoreKind::Secret, namespace, name), store, &document.location, reports);
                }
                Resource::ConfigMap(store) => {
                    index.add_store((StoreKind::ConfigMap, namespace, name), store, &document.location, reports);
                }
                _ => {}
            }
        }
        // These are about hosts that may come later in the files.
        for &document in documents {
            let (_, namespace) = named(document);
            match &document.resource {
                Resource::DestinationRule(rule) => index.add_destination_rule(rule, namespace),
                Resource::VirtualService(service) => index.add_virtual_service(service, namespace, reports),
                Resource::BackendTlsPolicy(policy) => index.add_policy(policy, namespace, &entries, reports),
                _ => {}
            }
        }
        index
    }

    fn add_service_entry(&mut self, entry: &'d ServiceEntry, namespace: Namespace<'d>) {
        for host in entry.hosts.iter() {
            self.parents.extend(parents(host.value.name().as_str()));
            let services = self.services.entry(&host.value, BTreeMap::new);
            let known = services.values().next().map(|service| service.namespace);
            if let Some(known) = known.filter(|known| *known != namespace) {
                self.shared.entry(&host.value).or_default().extend([known, namespace]);
            }
            for port in entry.ports.iter() {
                let exported_to = restricted(&entry.export_to);
                let service = Service { host: &host.value, entry, port, namespace, exported_to };
                match services.entry(port.number.value) {
                    btree_map::Entry::Vacant(vacant) => _ = vacant.insert(service),
                    btree_map::Entry::Occupied(first) => {
                        let first = first.into_mut();
                        first.exported_to = first.exported_to.or(exported_to);
                        self.twice.push((*first, service));
                    }
                }
            }
        }
    }

    fn add_destination_rule(&mut self, rule: &'d DestinationRule, namespace: Namespace<'d>) {
        let name = &rule.host.value;
        let full = self.full(name, namespace, &self.full_names.in_destination_rules);
        for host in self.one_or_both(name, full) {
            let destinations = self.destinations.entry(host, || Destinations { rules: Vec::new() });
            destinations.rules.push((rule, namespace));
        }
    }

    fn add_virtual_service(&mut self, service: &'d VirtualService, namespace: Namespace<'d>, reports: &mut Reports) {
        let service = match service {
            VirtualService::Mesh(service) => service,
            VirtualService::Delegate(routes) => {
                let text = "without hosts these routes are for other VirtualServices, which delegate to them, so they have no effect here; add \
                            hosts if they are meant for applications";
                reports.at(routes, Code::NoEffect.because(text));
                return;
            }
            VirtualService::Gateways(gateways) => {
                let text = "this VirtualService is for gateways alone, so it does nothing here; add `mesh`, if it is meant for \
                            applications";
                reports.at(gateways, Code::UnusedVirtualService.because(text));
                return;
            }
        };
        if service.http.is_empty() {
            return;
        }
        // Applications can send a name as it is written, and in full.
        for listed in service.hosts.iter() {
            self.add_routed(Routed { service, host: &listed.value, listed, namespace });
        }
        for listed in service.hosts.iter() {
            if let Some(host) = self.full(&listed.value, namespace, &self.full_names.in_virtual_services) {
                self.add_routed(Routed { service, host, listed, namespace });
            }
        }
    }

    fn add_routed(&mut self, routed: Routed<'d>) {
        let several = self.virtual_services.entry(routed.host, Vec::new);
        // One can list a name as well in full.
        if several.last().is_none_or(|last| !ptr::eq(last.service, routed.service)) {
            several.push(routed);
        }
    }

    fn add_store(&mut self, key: StoreKey<'d>, store: &'d Store, location: &'d Location, reports: &mut Reports) {
        if let Some((_, first)) = self.stores.insert(key, (store, location)) {
            let text = format!("there is a {:?} {} already, at {first}; remove one of them", key.0, key.2);
            reports.at(&Located::new((), location.clone()), Code::Conflict.because(text));
        }
    }

    fn add_policy(
        &mut self,
        policy: &'d BackendTlsPolicy,
        namespace: Namespace<'d>,
        entries: &HashMap<(Namespace<'d>, &'d str), &'d ServiceEntry>,
        reports: &mut Reports,
    ) {
        for target in policy.targets.iter() {
            let name = target.name.as_str();
            let hosts: Vec<&HostPattern> = match target.kind.value {
                TargetKind::ServiceEntry => entries
                    .get(&(namespace, name))
                    .map(|entry| entry.hosts.iter().map(|host| &host.value).collect())
                    .unwrap_or_default(),
                TargetKind::Hostname => self.host(name).into_iter().collect(),
                TargetKind::Service => {
                    let names = [namespace.service(name), format!("{name}.{namespace}"), name.to_owned()];
                    names.iter().find_map(|name| self.host(name)).into_iter().collect()
                }
            };
            if hosts.is_empty() {
                let text = format!(
                    "no ServiceEntry is, or has, {:?} {name}, seen from namespace {namespace}; add one",
                    target.kind.value
                );
                reports.at(target, Code::UnknownDestination.because(text));
            }
            for host in hosts {
                self.sections.extend(target.section.as_ref().map(|_| host));
                let services: Vec<_> =
                    self.services.get(host).into_iter().flat_map(BTreeMap::values).copied().collect();
                let chosen = |service: &&Service<'_>| {
                    target.section.as_ref().is_none_or(|section| section.value == service.port.name.value)
                };
                if let Some(section) =
                    target.section.as_ref().filter(|_| !services.iter().any(|service| chosen(&service)))
                {
                    let text = format!("{host} has no port of the name {:?}; use the name of one", section.value);
                    reports.at(section, Code::UnknownDestination.because(text));
                }
                for service in services.iter().filter(chosen) {
                    let key = (service.host, service.port.number.value);
                    let policy = TlsPolicy { policy, namespace, target: &target.value };
                    let others = self.policies.entry(key).or_default();
                    if let Some(first) = others.iter().find(|first| !first.is_beside(policy)) {
                        let text = format!(
                            "port {} of {host} has a BackendTLSPolicy already, at {}; remove one of them",
                            key.1, first.policy.targets.location,
                        );
                        reports.at(target, Code::Conflict.because(text));
                    }
                    others.push(policy);
                }
            }
        }
    }

    /// The host of a `ServiceEntry` by its name.
    fn host(&self, name: &str) -> Option<&'d HostPattern> {
        let host: HostPattern = name.parse().ok()?;
        Some(self.services.get(&host)?.values().next()?.host)
    }

    /// The `Secret` or `ConfigMap` of a name.
    pub(super) fn store(&self, kind: StoreKind, namespace: Namespace<'d>, name: &'d str) -> Option<&'d Store> {
        self.stores.get(&(kind, namespace, name)).map(|(store, _)| *store)
    }

    /// Where there is no `Secret` or `ConfigMap` of a name, and where there is one.
    pub(super) fn place_without_store(&self, kind: StoreKind, namespace: Namespace<'_>, name: &str) -> String {
        let others = self.stores.keys().filter(|(other, _, called)| (*other, *called) == (kind, name));
        match others.map(|(_, other, _)| other.name()).min() {
            Some(other) => format!("in namespace {namespace}, while there is one in namespace {other}"),
            None => format!("in namespace {namespace} in these files"),
        }
    }

    /// The hosts that a name in a rule of a namespace means: what it is in full, where a `ServiceEntry` has that, and what is written,
    /// where one has it so, or has neither.
    pub(super) fn meant(
        &self,
        name: &'d HostPattern,
        namespace: Namespace<'d>,
    ) -> impl Iterator<Item = &'d HostPattern> + use<'d> {
        self.one_or_both(name, self.full_names.get(name, namespace))
    }

    fn one_or_both(
        &self,
        name: &'d HostPattern,
        full: Option<&'d HostPattern>,
    ) -> impl Iterator<Item = &'d HostPattern> + use<'d> {
        let full = full.filter(|full| self.has_services_of(full));
        let is_as_written = full.is_none() || self.services.get(name).is_some();
        full.into_iter().chain(is_as_written.then_some(name))
    }

    /// What a name that a rule is for is in full. Where a `ServiceEntry` has it as it is written, and rules of the kind name the full
    /// one, each has its own.
    fn full(
        &self,
        name: &'d HostPattern,
        namespace: Namespace<'d>,
        named: &HashSet<&'d HostPattern>,
    ) -> Option<&'d HostPattern> {
        let has_own = |full: &HostPattern| self.services.get(name).is_some() && named.contains(full);
        self.full_names.get(name, namespace).filter(|full| !has_own(full))
    }

    /// Whether a host is taken for a service of a cluster.
    pub(super) fn is_of_mesh(&self, host: &HostPattern) -> bool {
        host.may_be_of_mesh() && !self.has_services_of(host)
    }

    /// Whether a `ServiceEntry` has a host, or one that it stands for.
    pub(super) fn has_services_of(&self, host: &HostPattern) -> bool {
        let is_above = !host.is_exact() && self.parents.contains(host.name().as_str());
        is_above || self.services.covering(host).next().is_some()
    }

    /// The ports of this number, and for HTTP, of all that stands for a host, the most specific first.
    pub(super) fn http_services(&self, host: &HostPattern, port: NonZeroU16) -> impl Iterator<Item = Service<'d>> {
        let covering = self.services.covering(host).filter_map(move |(_, ports)| ports.get(&port)).copied();
        covering.filter(|service| is_http(*service))
    }

    /// The most specific rules that cover a host.
    pub(super) fn destinations(&self, host: &HostPattern) -> Option<&Destinations<'d>> {
        self.destinations.covering(host).next().map(|(_, destinations)| destinations)
    }

    /// What is said of a port, and of a subset of it; two that ask for TLS contradict each other.
    pub(super) fn settings(&self, host: &HostPattern, port: NonZeroU16, subset: Option<&Subset>) -> Settings<'d> {
        self.destinations(host).map(|destinations| destinations.settings(port, subset)).unwrap_or_default()
    }

    /// The `BackendTLSPolicy` for a port.
    pub(super) fn policy(&self, host: &'d HostPattern, port: NonZeroU16) -> Option<TlsPolicy<'d>> {
        let policies = self.policies.get(&(host, port))?;
        policies.iter().find(|policy| policy.target.section.is_some()).or(policies.first()).copied()
    }
}
