//! Names without dots: to Istio, each is a service of the namespace of the rule that has it.

use std::iter;

use foldhash::{HashMap, HashSet};

use super::{Compiler, check::asks_for_tls, host_map::HostMap, namespaces::Namespace, routes::destinations_of};
use crate::config::{Code, Document, Foreign, HostPattern, Message, Resource, virtual_service::VirtualService};

/// What such names in rules are in full.
pub(super) struct FullNames<'d> {
    names: HashMap<(Namespace<'d>, &'d str), HostPattern>,
    /// All other hosts that `DestinationRule`s are for.
    pub(super) in_destination_rules: HashSet<&'d HostPattern>,
    /// All other hosts that `VirtualService`s are for.
    pub(super) in_virtual_services: HashSet<&'d HostPattern>,
}

impl<'d> FullNames<'d> {
    /// Those of all documents.
    pub(super) fn of(documents: &[&'d Document]) -> Self {
        let mut names = HashMap::default();
        let [mut in_destination_rules, mut in_virtual_services] = [const { Vec::new() }; 2];
        for document in documents {
            match &document.resource {
                Resource::DestinationRule(rule) => in_destination_rules.push(&rule.host.value),
                Resource::VirtualService(VirtualService::Mesh(service)) => {
                    in_virtual_services.extend(service.hosts.iter().map(|host| &host.value));
                }
                _ => {}
            }
            let namespace = Namespace::of(&document.metadata);
            for host in hosts(&document.resource).filter(|host| is_short(host)) {
                let name = host.name().as_str();
                // What would be too long for DNS is no service.
                if let Ok(full) = namespace.service(name).parse() {
                    names.insert((namespace, name), full);
                }
            }
        }
        let others = |hosts: Vec<&'d HostPattern>| hosts.into_iter().filter(|host| !is_short(host)).collect();
        Self {
            names,
            in_destination_rules: others(in_destination_rules),
            in_virtual_services: others(in_virtual_services),
        }
    }

    /// What a host in a rule of a namespace is in full, if it has no dots.
    pub(super) fn get(&'d self, host: &'d HostPattern, namespace: Namespace<'d>) -> Option<&'d HostPattern> {
        if is_short(host) { self.names.get(&(namespace, host.name().as_str())) } else { None }
    }
}

impl Compiler<'_, '_> {
    /// Looks for names of `DestinationRule`s whose TLS is that of the full name alone, as applications can send them as they are written.
    pub(super) fn check_short_names(&mut self) {
        let mut covered = HostMap::default();
        for rule in &self.rules {
            covered.entry(&rule.host, || ());
        }
        for (host, destinations) in self.index.destinations.iter() {
            for (rule, _) in &destinations.rules {
                let name = &rule.host.value;
                let has_rule = |host: &HostPattern| covered.covering(host).next().is_some();
                let is_in_clear = || has_rule(host) && !has_rule(name) && !self.index.has_services_of(name);
                if host != name && asks_for_tls(rule) && is_in_clear() {
                    self.reports.at(&rule.host, why_in_clear(name, host));
                }
            }
        }
    }
}

/// Why requests for a name leave in clear, while there is TLS for the full one.
pub(super) fn why_in_clear(name: &HostPattern, full: &HostPattern) -> Message {
    Code::Questionable.because(format!(
        "requests that say {name} stay in clear, as no ServiceEntry has that beside {full}; list it under `hosts` of one if applications send it"
    ))
}

fn is_short(host: &HostPattern) -> bool {
    host.is_exact() && !host.name().as_str().contains('.')
}

/// All hosts that a rule names.
fn hosts(resource: &Resource) -> Box<dyn Iterator<Item = &HostPattern> + '_> {
    match resource {
        Resource::DestinationRule(rule) => Box::new(iter::once(&rule.host.value)),
        Resource::VirtualService(VirtualService::Mesh(service)) => {
            let destinations = service.http.iter().flat_map(|route| destinations_of(route)).map(|to| &to.host);
            Box::new(service.hosts.iter().chain(destinations).map(|host| &host.value))
        }
        Resource::Foreign(Foreign { unread: Some(unread), .. }) => Box::new(unread.hosts.iter()),
        _ => Box::new(iter::empty()),
    }
}
