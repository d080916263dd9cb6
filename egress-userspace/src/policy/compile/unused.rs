//! `VirtualService`s that do nothing.

use std::{collections::BTreeSet, num::NonZeroU16, ptr};

use foldhash::HashSet;

use super::{
    Compiler, HTTP,
    check::{leads_elsewhere, wildcard_rules},
    full_names::why_in_clear,
    index::Routed,
    is_http,
    routes::applicable,
};
use crate::{
    config::{Code, virtual_service::RequestMatch},
    policy::Rule,
};

impl<'d> Compiler<'_, 'd> {
    /// Says of a `VirtualService` that it does nothing, as no TLS is involved.
    pub(super) fn report_unused(&mut self, unused: &[&Routed<'d>]) {
        let wildcards = wildcard_rules(&self.rules);
        let is_known = |routed: &&&Routed<'_>| self.index.has_services_of(routed.host);
        let completed = unused.iter().filter(|routed| routed.is_completed()).filter(is_known);
        let in_full: HashSet<_> = completed.map(|routed| ptr::from_ref(routed.listed)).collect();
        for routed in unused {
            let host = routed.host;
            if !is_known(&routed) {
                let full = self.index.full_names.get(host, routed.namespace);
                let full = full.filter(|full| self.index.has_services_of(full));
                // Of a name and what it is in full, one is told of.
                if routed.is_completed() || in_full.contains(&ptr::from_ref(routed.listed)) {
                    continue;
                }
                if let Some(full) = full {
                    self.reports.at(routed.listed, why_in_clear(host, full));
                    continue;
                }
            }
            let is_excepted = |rule: &Rule| {
                let closest =
                    NonZeroU16::new(rule.port).and_then(|number| self.index.http_services(host, number).next());
                closest.is_some_and(|service| self.index.excepted(service, &rule.host).is_some())
            };
            let wider = wildcards.covering(host).flat_map(|(_, rules)| rules);
            let wider: Vec<_> = wider.filter(|rule| !is_excepted(rule)).collect();
            // Of one that a ServiceEntry has it is said at its port.
            let elsewhere = match self.index.services.get(host) {
                None => {
                    let rule = wider.iter().find(|rule| rule.port == HTTP.get());
                    rule.and_then(|rule| Some((rule, leads_elsewhere(rule)?)))
                }
                Some(_) => None,
            };
            // Those that a wildcard has may have been meant.
            if let (true, Some(why)) = (wider.is_empty(), self.why_without_requests(routed)) {
                self.reports.at(routed.listed, Code::UnusedVirtualService.because(why));
                continue;
            }
            let nothing = format!("no request for {host} is sent on over TLS by this, so it");
            let message = match (elsewhere, wider.first(), self.unknown_destination(routed)) {
                (Some((wider, other)), ..) => Code::Conflict.because(format!(
                    "requests for {host} would go to {other}, by what is said of {} at {}, which has the host too, and not by this, which \
                     sends none on over TLS; add a DestinationRule with `tls` for a destination",
                    wider.host, wider.location,
                )),
                (None, Some(wider), _) => Code::UnusedVirtualService.because(format!(
                    "{nothing} does nothing: what is said of {} at {} counts, which has the host too; add a DestinationRule with `tls` \
                     for a destination",
                    wider.host, wider.location,
                )),
                (None, None, Some(unknown)) => Code::UnusedVirtualService.because(format!(
                    "{nothing} is left alone and goes to where it was going: {unknown} is taken for a service of the cluster, as no \
                     ServiceEntry has it; correct the name if it is none",
                )),
                (None, None, None) => Code::UnusedVirtualService.because(format!(
                    "{nothing} is left alone and goes to where it was going; add a DestinationRule with `tls` for a destination",
                )),
            };
            self.reports.at(routed.listed, message);
        }
    }

    /// Why no request for the host gets to any of the routes, if that is so.
    fn why_without_requests(&self, routed: &Routed<'d>) -> Option<String> {
        let (host, routes) = (routed.host, &routed.service.http);
        let matches = || routes.iter().flat_map(|route| &route.matches).filter(|matched| matched.is_for_mesh());
        let is_for_any_port = |matched: &RequestMatch| matched.port.is_none();
        if routes.iter().any(|route| route.matches.is_empty()) || matches().any(|matched| is_for_any_port(matched)) {
            return None;
        }
        if matches().next().is_none() {
            return Some(format!(
                "the routes for {host} are for gateways alone, so this does nothing here; add `mesh` to the gateways of a match, if that is \
                 meant for applications"
            ));
        }
        let services =
            self.index.services.iter().filter(|(by, _)| host.covers(by)).flat_map(|(_, ports)| ports.values());
        let mut services = services.peekable();
        // A host that no ServiceEntry has is one of HTTP there.
        let unknown = services.peek().is_none().then_some(HTTP);
        let ports = services.filter(|service| is_http(**service)).map(|service| service.port.number.value);
        let ports: BTreeSet<NonZeroU16> = ports.chain(unknown).collect();
        if routes.iter().any(|route| ports.iter().any(|port| applicable(route, *port).is_some())) {
            return None;
        }
        let ports: Vec<_> = ports.iter().map(NonZeroU16::to_string).collect();
        let ports = if ports.is_empty() { "none".to_owned() } else { ports.join(", ") };
        Some(format!(
            "no route is for a port of {host} with HTTP ({ports}), so this does nothing; correct the port in a match, or leave it out"
        ))
    }
}
