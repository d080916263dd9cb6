//! In which namespaces `DestinationRule`s are.
//!
//! In Istio a client has the rules of its own namespace, then those of the `ServiceEntry`'s, then those of the root namespace.

use foldhash::{HashMap, HashSet};

use super::{
    Compiler,
    check::{asks_for_tls, asks_for_tls_on, disables},
    exceptions::{Limit, limit},
    index::{Index, Namespace, Service},
    reports::but_exceptions,
};
use crate::config::{Code, destination_rule::DestinationRule};

/// Whose rules are for all namespaces, as Istio is installed.
const ROOT_NAMESPACE: &str = "istio-system";

impl<'d> Index<'d> {
    /// Whether a rule in a namespace is for all who have none of their own, as that is one of the service, or the root's.
    fn is_for_all(&self, namespace: Namespace<'d>, service: Service<'d>) -> bool {
        let is_of_service = match self.shared.get(service.host) {
            None => namespace == service.namespace,
            Some(several) => several.contains(namespace),
        };
        is_of_service || namespace == ROOT_NAMESPACE
    }

    /// What has `rules`, which say the same of a service and have no limit of their own, hold for the clients of some namespaces alone:
    /// that a client can have the service of another namespace, or TLS by the rule of another.
    pub(super) fn limit_of_namespaces(
        &self,
        rules: &[(&'d DestinationRule, Namespace<'d>)],
        service: Service<'d>,
    ) -> Option<Limit<'d>> {
        let (first, _) = rules.first()?;
        let namespaces: HashSet<_> = rules.iter().map(|(_, namespace)| *namespace).collect();
        let is_for_all = match self.shared.get(service.host) {
            None => namespaces.contains(service.namespace),
            Some(several) => several.is_subset(&namespaces),
        };
        if !is_for_all && !namespaces.contains(ROOT_NAMESPACE) {
            return Some(("namespace of the DestinationRule", &first.host.location));
        }
        let mut covering = self.destinations.covering(service.host).flat_map(|(_, destinations)| &destinations.rules);
        let otherwise = covering.find(|(rule, namespace)| {
            let is_other = *namespace != ROOT_NAMESPACE && !namespaces.contains(namespace);
            is_other && asks_for_tls_on(rule, service.port.number.value)
        });
        otherwise.map(|(rule, _)| ("namespace of the DestinationRule with TLS", &rule.host.location))
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
            let text = format!(
                "in Istio this is for clients in namespace {namespace} alone, as the ServiceEntry at {} is in namespace {}, while here it \
                 holds for all applications{}; move it there if it is meant for all",
                service.port.number.location,
                service.namespace,
                but_exceptions(disables(rule)),
            );
            self.reports.at(&rule.host, Code::NoEffect.because(text));
        }
    }
}
