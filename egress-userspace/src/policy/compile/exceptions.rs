//! Hosts that a wildcard with TLS has, and of which it is said closer to them that there is to be none.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU16,
    ptr,
};

use foldhash::HashMap;

use super::{
    Compiler, HTTP,
    check::{asks_for_tls, asks_for_tls_on, disables, wildcard_rules},
    host_map::HostMap,
    index::{Index, Routed, Service},
    is_http,
    namespaces::Namespace,
    reports::{Reports, restricted},
    routes::applicable,
    settings::Destinations,
};
use crate::{
    config::{
        Code, HostPattern, Located, Location,
        destination_rule::{DestinationRule, Tls},
        virtual_service::Route,
    },
    policy::Exception,
};

/// Where it is said of a port that there is to be no TLS.
pub(super) struct Disabled<'d> {
    pub(super) tls: &'d Located<Tls>,
    /// What has that hold for some pods alone. Here there is no difference between pods, and for none of those that it is not said of
    /// must anything leave in clear.
    pub(super) limit: Option<Limit<'d>>,
}

/// A field that limits, and where it is.
pub(super) type Limit<'d> = (&'static str, &'d Location);

impl<'d> Index<'d> {
    /// Where it is said of a port of a host that there is to be no TLS, closer to it than at `wider`. What limits all that says so is
    /// that of the closest.
    pub(super) fn disabled(&self, service: Service<'d>, wider: &HostPattern) -> Option<Disabled<'d>> {
        let number = service.port.number.value;
        let covering = self.destinations.covering(service.host).filter(|_| is_http(service));
        let mut limited = None;
        for (_, destinations) in covering.take_while(|(by, _)| *by != wider && wider.covers(by)) {
            let Some(tls) = destinations.settings(number, None).disabled else {
                // Who asks for TLS on other ports, and says nothing of this one, does not mean what a wildcard says.
                if destinations.rules.iter().any(|(rule, _)| asks_for_tls(rule)) {
                    break;
                }
                continue;
            };
            let limit = match unlimited(destinations) {
                Err(limit) => Some(limit),
                Ok(rules) => exported(service.exported_to).or_else(|| self.limit_of_namespaces(&rules, service)),
            };
            if limit.is_none() {
                return Some(Disabled { tls, limit });
            }
            limited = limited.or(Some(Disabled { tls, limit }));
        }
        limited
    }

    /// The same where that makes an exception to the wider one's TLS.
    pub(super) fn excepted(&self, service: Service<'d>, wider: &HostPattern) -> Option<&'d Located<Tls>> {
        self.disabled(service, wider).filter(|disabled| disabled.limit.is_none()).map(|disabled| disabled.tls)
    }

    /// Whether any rule says of some port of a host that there is to be none.
    pub(super) fn is_disabled_for(&self, host: &HostPattern) -> bool {
        let mut rules = self.destinations.covering(host).flat_map(|(_, destinations)| &destinations.rules);
        rules.any(|(rule, _)| disables(rule))
    }
}

/// The exception for a port that is to have no TLS, unless there are routes that answer some of what is sent there: what is left alone
/// gets past them.
pub(super) fn except<'d>(
    Service { host, port, .. }: Service<'d>,
    tls: &Located<Tls>,
    index: &Index<'d>,
    reports: &mut Reports,
) -> Exception {
    let number = port.number.value;
    if let Some((_, several)) = index.virtual_services.covering(host).next() {
        refuse_answers(&several[0], host, number, tls, reports);
    }
    Exception { host: host.clone(), port: number.get(), location: tls.location.clone() }
}

/// Refuses the routes that answer what is left in clear by the word at `tls`.
fn refuse_answers(
    routed: &Routed<'_>,
    host: &HostPattern,
    number: NonZeroU16,
    tls: &Located<Tls>,
    reports: &mut Reports,
) {
    let routes = routed.service.http.iter().filter(|route| applicable(route, number).is_some());
    for route in routes.filter(|route| is_answered(route)) {
        let text = format!(
            "requests for port {number} of {host} would leave in clear, by mode DISABLE at {}, and not be answered by this; remove this \
             route, or have TLS originated for {host}",
            tls.location,
        );
        reports.at(route, Code::ClearText.because(text));
    }
}

/// Whether there is an answer to some of its requests that is not that of their destination.
fn is_answered(route: &Route) -> bool {
    let is_aborted = route.fault.as_ref().is_some_and(|fault| fault.abort.is_some());
    route.redirect.is_some() || route.direct_response.is_some() || is_aborted
}

/// What has a rule hold for some pods alone.
pub(super) fn limit(rule: &DestinationRule) -> Option<Limit<'_>> {
    let selector = rule.workload_selector.as_ref().map(|selector| ("workloadSelector", &selector.location));
    selector.or(exported(restricted(&rule.export_to)))
}

/// Those of several that say it which have no such limit, or that of the first.
fn unlimited<'d>(destinations: &Destinations<'d>) -> Result<Vec<(&'d DestinationRule, Namespace<'d>)>, Limit<'d>> {
    let deciding = destinations.rules.iter().filter(|(rule, _)| rule.traffic_policy.is_some());
    let rules: Vec<_> = deciding.clone().filter(|(rule, _)| limit(rule).is_none()).copied().collect();
    match deciding.clone().find_map(|(rule, _)| limit(rule)).filter(|_| rules.is_empty()) {
        Some(limit) => Err(limit),
        None => Ok(rules),
    }
}

fn exported(to: Option<&Located<Vec<String>>>) -> Option<Limit<'_>> {
    to.map(|names| ("exportTo", &names.location))
}

impl<'d> Compiler<'_, 'd> {
    /// Refuses routes that answer for a host without a port of its own, which is left in clear by the exception of a wildcard.
    pub(super) fn check_answers(&mut self, routed: &Routed<'d>) {
        let host = routed.host;
        if self.index.services.get(host).is_some_and(|ports| ports.contains_key(&HTTP)) {
            return;
        }
        if let Some((_, Some(tls))) = self.covering_tls(host, HTTP) {
            refuse_answers(routed, host, HTTP, tls, &mut self.reports);
        }
    }

    /// As in Istio, who wants a wildcard's TLS not to be for a host has to say as well which ports that has. The `ports` are those of
    /// the hosts that each rule covers.
    pub(super) fn check_disabled(&mut self, ports: &HashMap<*const DestinationRule, BTreeSet<NonZeroU16>>) {
        let wildcards = wildcard_rules(&self.rules);
        for (host, destinations) in self.index.destinations.iter() {
            let is_for_all = unlimited(destinations).is_ok();
            let Some((rule, _)) = destinations.main().filter(|(rule, _)| disables(rule) && is_for_all) else {
                continue;
            };
            let known = ports.get(&ptr::from_ref(rule));
            // Of who asks for TLS as well, and has no ports at all, that is said already.
            if known.is_none() && asks_for_tls(rule) {
                continue;
            }
            let is_missing = |number: &NonZeroU16| {
                known.is_none_or(|known| !known.contains(number))
                    && destinations.settings(*number, None).disabled.is_some()
            };
            let mut missing = BTreeMap::new();
            for wider in wildcards.covering(host).filter(|(by, _)| *by != host).flat_map(|(_, rules)| rules) {
                if NonZeroU16::new(wider.port).as_ref().is_some_and(is_missing) {
                    missing.entry(wider.port).or_insert(wider);
                }
            }
            for (port, wider) in missing {
                let text = format!(
                    "no ServiceEntry has port {port} of {host}, so this does nothing there: its requests go over TLS, by what is said of {} \
                     at {}; add one if they are to leave in clear",
                    wider.host, wider.location,
                );
                self.reports.at(&rule.host, Code::UnusedDestinationRule.because(text));
            }
        }
    }

    /// Refuses what has no exception of its own and is below a wildcard that has one.
    pub(super) fn check_excepted(&mut self, kept: &[(Service<'_>, HostPattern)]) {
        let wildcards = wildcard_exceptions(&self.exceptions);
        for (Service { host, port, .. }, wider) in kept {
            let closer =
                wildcards.covering(host).filter(|(by, _)| wider.covers(by)).flat_map(|(_, exceptions)| exceptions);
            if let Some(exception) = closer.into_iter().find(|exception| exception.port == port.number.value.get()) {
                let text = format!(
                    "requests for {host} and port {} would leave in clear, by what is said of {} at {}, which has them too; add a \
                     DestinationRule for {host} that says for all pods what `tls` this port has, be it mode DISABLE",
                    exception.port, exception.host, exception.location,
                );
                self.reports.at(&port.number, Code::ClearText.because(text));
            }
        }
    }

    /// Refuses TLS for a host without a port that it would be for, which is below a wildcard that has an exception.
    pub(super) fn check_tls_in_vain(&mut self) {
        let wildcards = wildcard_exceptions(&self.exceptions);
        if wildcards.iter().next().is_none() {
            return;
        }
        let mut ruled: HostMap<'_, BTreeSet<u16>> = HostMap::default();
        for rule in &self.rules {
            ruled.entry(&rule.host, BTreeSet::new).insert(rule.port);
        }
        for (host, destinations) in self.index.destinations.iter() {
            let wider = wildcards.covering(host).filter(|(by, _)| *by != host).flat_map(|(_, exceptions)| exceptions);
            for exception in wider {
                let Exception { host: excepted, port, location } = exception;
                let Some(number) = NonZeroU16::new(*port) else { continue };
                // What is closer counts.
                let mut services = self.index.services.covering(host).filter(|(_, ports)| ports.contains_key(&number));
                let is_closer = |by: &HostPattern| by != excepted && excepted.covers(by);
                let mut rules = ruled.covering(host).filter(|(_, ports)| ports.contains(port));
                if services.any(|(by, _)| is_closer(by)) || rules.any(|(by, _)| is_closer(by)) {
                    continue;
                }
                let asking = destinations.rules.iter().filter(|(rule, _)| asks_for_tls_on(rule, number));
                for (rule, _) in asking {
                    let text = format!(
                        "requests for {host} and port {port} would leave in clear, by what is said of {excepted} at {location}, as no \
                         ServiceEntry has this port of {host}; add one",
                    );
                    self.reports.at(&rule.host, Code::ClearText.because(text));
                }
            }
        }
    }
}

fn wildcard_exceptions(exceptions: &[Exception]) -> HostMap<'_, Vec<&Exception>> {
    let mut wildcards: HostMap<'_, Vec<&Exception>> = HostMap::default();
    for exception in exceptions.iter().filter(|exception| !exception.host.is_exact()) {
        wildcards.entry(&exception.host, Vec::new).push(exception);
    }
    wildcards
}
