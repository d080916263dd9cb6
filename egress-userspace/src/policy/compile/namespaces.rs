//! In which namespaces `DestinationRule`s are.
//!
//! In Istio a client has the rules of its own namespace, then those of the `ServiceEntry`'s, then those of the root namespace.

use foldhash::HashMap;

use super::{
    Compiler,
    check::{asks_for_tls, disables},
    exceptions::{Limit, limit},
    index::{Index, Namespace, Service},
    reports::but_exceptions,
};
use crate::config::{Code, destination_rule::DestinationRule};

/// Whose rules are for all namespaces, as Istio is installed.
const ROOT_NAMESPACE: &str = "istio-system";

impl<'d> Index<'d> {
    /// What has a rule hold for the clients of its namespace alone, as it is not that of the service.
    pub(super) fn outside(
        &self,
        rule: &'d DestinationRule,
        namespace: Namespace<'d>,
        service: Service<'d>,
    ) -> Option<Limit<'d>> {
        let is_other = || self.others.get(service.host).is_some_and(|others| others.contains(&namespace));
        let is_for_all = namespace == ROOT_NAMESPACE || namespace == service.namespace || is_other();
        (!is_for_all).then_some(("namespace of the DestinationRule", &rule.host.location))
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
                    if self.index.outside(rule, namespace, service).is_none() {
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
