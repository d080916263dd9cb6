//! Names without dots: to Istio, each is a service of the namespace of the rule that has it.

use std::iter;

use foldhash::HashMap;

use super::{namespaces::Namespace, routes::destinations_of};
use crate::config::{Document, Foreign, HostPattern, Resource, virtual_service::VirtualService};

/// What such names in rules are in full.
pub(super) struct FullNames<'d>(HashMap<(Namespace<'d>, &'d str), HostPattern>);

impl<'d> FullNames<'d> {
    /// Those of all documents.
    pub(super) fn of(documents: &[&'d Document]) -> Self {
        let mut names = HashMap::default();
        for document in documents {
            let namespace = Namespace::of(&document.metadata);
            for host in hosts(&document.resource).filter(|host| is_short(host)) {
                let name = host.name().as_str();
                // What would be too long for DNS is no service.
                if let Ok(full) = namespace.service(name).parse() {
                    names.insert((namespace, name), full);
                }
            }
        }
        Self(names)
    }

    /// What a host in a rule of a namespace is in full, if it has no dots.
    pub(super) fn get(&'d self, host: &'d HostPattern, namespace: Namespace<'d>) -> Option<&'d HostPattern> {
        if is_short(host) { self.0.get(&(namespace, host.name().as_str())) } else { None }
    }
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
