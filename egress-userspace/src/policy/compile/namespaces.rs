//! In which namespaces `DestinationRule`s are.
//!
//! In Istio a client has the rules of its own namespace, then those of the `ServiceEntry`'s, then those of the root namespace.

use std::{
    fmt,
    hash::{Hash, Hasher},
};

use foldhash::{HashMap, HashSet};

use super::{
    Compiler,
    check::{asks_for_tls, asks_for_tls_on, disables},
    exceptions::{Limit, limit},
    index::{Index, Service},
    reports::but_exceptions,
};
use crate::config::{Code, Metadata, destination_rule::DestinationRule};

/// A namespace. That of a resource that gives none is taken for `default`, though `kubectl -n` can have it in any.
#[derive(Clone, Copy)]
pub(super) struct Namespace<'d>(Option<&'d str>);

impl<'d> Namespace<'d> {
    /// Whose rules are for all namespaces, as Istio is installed.
    const ROOT: Self = Self(Some("istio-system"));

    /// That of a resource.
    pub(super) fn of(metadata: &'d Metadata) -> Self {
        Self(metadata.namespace.as_deref())
    }

    /// What it is called, or taken to be.
    pub(super) fn name(self) -> &'d str {
        self.0.unwrap_or("default")
    }

    /// What a cluster calls the service of a name in it.
    pub(super) fn service(self, name: &str) -> String {
        format!("{name}.{self}.svc.cluster.local")
    }

    fn is_written(self) -> bool {
        self.0.is_some()
    }
}

impl PartialEq for Namespace<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Namespace<'_> {}

impl Hash for Namespace<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl fmt::Display for Namespace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl<'d> Index<'d> {
    /// Whether a rule in a namespace is for all who have none of their own, as that is one of the service, or the root's.
    fn is_for_all(&self, namespace: Namespace<'d>, service: Service<'d>) -> bool {
        let is_of_service = match self.shared.get(service.host) {
            None => namespace == service.namespace,
            Some(several) => several.contains(&namespace),
        };
        is_of_service || namespace == Namespace::ROOT
    }

    /// What has `rules`, which say the same of a service and have no limit of their own, hold for the clients of some namespaces alone:
    /// that a client can have the service of another namespace, or TLS by the rule of another.
    pub(super) fn limit_of_namespaces(
        &self,
        rules: &[(&'d DestinationRule, Namespace<'d>)],
        service: Service<'d>,
    ) -> Option<Limit<'d>> {
        let (first, of_first) = *rules.first()?;
        let namespaces: HashSet<_> = rules.iter().map(|(_, namespace)| *namespace).collect();
        let is_for_all = match self.shared.get(service.host) {
            None => namespaces.contains(&service.namespace),
            Some(several) => several.is_subset(&namespaces),
        };
        if !is_for_all && !namespaces.contains(&Namespace::ROOT) {
            let what = if of_first.is_written() && service.namespace.is_written() {
                "namespace of the DestinationRule"
            } else {
                "namespace, default where none is written, of the DestinationRule"
            };
            return Some((what, &first.host.location));
        }
        let mut covering = self.destinations.covering(service.host).flat_map(|(_, destinations)| &destinations.rules);
        let otherwise = covering.find(|(rule, namespace)| {
            let is_other = *namespace != Namespace::ROOT && !namespaces.contains(namespace);
            is_other && asks_for_tls_on(rule, service.port.number.value)
        });
        let (rule, namespace) = otherwise?;
        let what = if of_first.is_written() && namespace.is_written() {
            "namespace of the DestinationRule with TLS"
        } else {
            "namespace, default where none is written, of the DestinationRule with TLS"
        };
        Some((what, &rule.host.location))
    }
}

impl<'d> Compiler<'_, 'd> {
    /// Names the rules that would be for the clients of their namespaces alone.
    pub(super) fn check_namespaces(&mut self) {
        // The first service that is elsewhere; none where one is not.
        let mut elsewhere: HashMap<*const DestinationRule, Option<(&DestinationRule, Namespace<'d>, Service<'d>)>> =
            HashMap::default();
        for (host, services) in self.index.services.iter() {
            let rules = self.index.destinations(host).into_iter().flat_map(|destinations| &destinations.rules);
            // Of those with another limit that is said already.
            for &(rule, namespace) in rules.filter(|(rule, _)| limit(rule).is_none()) {
                for &service in services.values() {
                    let first = elsewhere.entry(&raw const *rule).or_insert(Some((rule, namespace, service)));
                    if self.index.is_for_all(namespace, service) {
                        *first = None;
                    }
                }
            }
        }
        let elsewhere = elsewhere.into_values().flatten().filter(|(rule, ..)| asks_for_tls(rule) || disables(rule));
        for (rule, namespace, service) in elsewhere {
            let of_rule = if namespace.is_written() { "" } else { "it gives none and " };
            let of_entry = if service.namespace.is_written() { "is in" } else { "gives none and so is taken to be in" };
            let remedy = if namespace.is_written() && service.namespace.is_written() {
                "move it there if it is meant for all"
            } else {
                "write the namespaces of both, which are the same if it is meant for all"
            };
            let text = format!(
                "in Istio this is for clients in namespace {namespace} alone, as {of_rule}the ServiceEntry at {} {of_entry} namespace {}, \
                 while here it holds for all applications{}; {remedy}",
                service.port.number.location,
                service.namespace,
                but_exceptions(disables(rule)),
            );
            self.reports.at(&rule.host, Code::NoEffect.because(text));
        }
    }
}
