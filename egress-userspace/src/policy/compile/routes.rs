//! A `VirtualService` against one port of a host that it is for.

use std::{num::NonZeroU16, ptr, sync::Arc};

use super::{
    Compiler, Outcome,
    check::asks_for_tls,
    http,
    index::{Routed, Service},
    upstream::Shared,
};
use crate::{
    config::{
        Code, HostPattern, Located,
        destination_rule::Tls,
        service_entry::Protocol as Spoken,
        virtual_service::{Destination, RequestMatch, Route},
    },
    policy::{Action, Fault, HttpRoute, Mirror, Share, UpstreamIndex, Weighted},
};

/// A destination of a route, and whether TLS is originated for it.
enum Led<'d> {
    Tls(Shared),
    Clear(&'d Located<Destination>, String),
    /// It means a host that no `ServiceEntry` has.
    Unknown(&'d Located<Destination>, &'d HostPattern),
}

/// Where TLS is asked for, and where there is an exception to it.
type CoveringTls<'d> = (String, Option<&'d Located<Tls>>);

/// A route with the matches that can apply to the port.
pub(super) struct Applicable<'d> {
    pub(super) route: &'d Located<Route>,
    pub(super) matches: Vec<&'d Located<RequestMatch>>,
}

impl<'d> Compiler<'_, 'd> {
    pub(super) fn compile_routes(
        &mut self,
        routed: &Routed<'d>,
        host: &'d HostPattern,
        port: NonZeroU16,
        service: Option<Service<'d>>,
    ) -> Outcome {
        let routes: Vec<_> = routed.service.http.iter().filter_map(|route| applicable(route, port)).collect();
        if routes.is_empty() {
            return Outcome::NotConcerned;
        }
        let errors = self.reports.errors;
        let led: Vec<Vec<Led<'d>>> =
            routes.iter().map(|route| self.destinations(route.route, routed, host, port)).collect();
        if self.reports.errors > errors {
            return Outcome::Wrong;
        }
        // What is answered here does not leave, whatever is said of TLS.
        let is_answered = led.iter().all(Vec::is_empty);
        let covering = self.covering_tls(host, port).filter(|(_, exception)| is_answered || exception.is_none());
        let own = covering.map(|(place, _)| place);
        let first_tls = routes.iter().zip(&led).find_map(|(route, led)| {
            led.iter().any(|led| matches!(led, Led::Tls(_))).then(|| route.route.location.to_string())
        });
        let tls = own.or(first_tls);
        self.check_known(host, &routes, &led, service.is_some() || tls.is_some());
        if self.reports.errors > errors {
            return Outcome::Wrong;
        }
        let Some(tls) = tls else { return Outcome::NotConcerned };
        for led in led.iter().flatten() {
            if let Led::Clear(destination, what) = led {
                let text = format!(
                    "requests for port {port} of {host} would leave in clear to {what}, while TLS is originated for the host at \
                     {tls}; add `tls` for this destination to a DestinationRule",
                );
                self.reports.at(destination, Code::ClearText.because(text));
            }
        }
        if self.reports.errors > errors {
            return Outcome::Wrong;
        }
        self.check_reachable(&routes);

        let mut upstreams = Vec::new();
        let routes = routes.iter().zip(led).map(|(route, led)| compile_route(route, led, &mut upstreams)).collect();
        self.push_rule(host, port, service, upstreams, routes, routed.listed.location.clone());
        Outcome::Rule
    }

    /// Where TLS is originated for the port without any routes, or for a wildcard that has the host unless that is not to count.
    pub(super) fn own_tls(&mut self, host: &'d HostPattern, port: NonZeroU16) -> Option<String> {
        let (place, exception) = self.covering_tls(host, port)?;
        exception.is_none().then_some(place)
    }

    /// The same whether that is to count or not, and where it is said that it is not.
    pub(super) fn covering_tls(&mut self, host: &'d HostPattern, port: NonZeroU16) -> Option<CoveringTls<'d>> {
        let mut covering = self.index.http_services(host, port).peekable();
        let closest = *covering.peek()?;
        let (wider, asked) = covering.find_map(|service| Some((service, self.asked(service, None)?)))?;
        Some((asked.place().location.to_string(), self.index.excepted(closest, wider.host)))
    }

    /// Whether TLS is asked for on any port of any of its destinations.
    pub(super) fn leads_to_tls(&self, routed: &Routed<'d>) -> bool {
        let mut destinations = routed.service.http.iter().flat_map(|route| destinations_of(route));
        destinations.any(|destination| self.is_asked_for_tls(self.host_of(destination, routed)))
    }

    /// A destination that no `ServiceEntry` has.
    pub(super) fn unknown_destination(&self, routed: &Routed<'d>) -> Option<&'d HostPattern> {
        let destinations = routed.service.http.iter().flat_map(|route| destinations_of(route));
        let mut hosts = destinations.map(|destination| self.host_of(destination, routed));
        hosts.find(|host| self.index.services.get(host).is_none())
    }

    /// The host that a destination means. Where it can mean two, no TLS is to be lost by that.
    fn host_of(&self, destination: &'d Destination, routed: &Routed<'d>) -> &'d HostPattern {
        let name = &destination.host.value;
        let mut hosts = self.index.meant(name, routed.namespace);
        let first = hosts.next().unwrap_or(name);
        let is_known = self.index.services.get(first).is_some();
        let is_lost = |other: &HostPattern| self.is_asked_for_tls(other) && !self.is_asked_for_tls(first);
        hosts.next().filter(|other| !is_known || is_lost(other)).unwrap_or(first)
    }

    fn is_asked_for_tls(&self, host: &HostPattern) -> bool {
        let mut rules = self.index.destinations(host).into_iter().flat_map(|destinations| &destinations.rules);
        let mut ports = self.index.services.get(host).into_iter().flat_map(|ports| ports.values());
        rules.any(|(rule, _)| asks_for_tls(rule))
            || ports.any(|service| self.index.policy(service.host, service.port.number.value).is_some())
    }

    /// Says which destinations there are not. What leads to one of a mesh's own services, from a host that is none of ours and without
    /// a word of TLS, is no business of ours.
    fn check_known(&mut self, from: &HostPattern, routes: &[Applicable<'d>], led: &[Vec<Led<'d>>], is_ours: bool) {
        let led = routes.iter().zip(led).flat_map(|(route, led)| led.iter().map(move |led| (route.route, led)));
        for (route, led) in led {
            let Led::Unknown(destination, host) = led else { continue };
            let is_of_mesh = host.may_be_of_mesh();
            if is_of_mesh && !is_ours && !self.is_asked_for_tls(host) {
                continue;
            }
            let is_copy = mirrors_of(route).any(|mirror| ptr::eq(mirror, *destination));
            // As in Istio's example of an egress gateway that originates TLS.
            let text = if is_of_mesh && is_copy {
                format!(
                    "no ServiceEntry has the host {host}, which copies of requests are to go to, and here they go over TLS alone; add one, \
                     and `tls` for it to a DestinationRule, or remove the mirror"
                )
            } else if is_of_mesh && from.is_exact() && !from.may_be_of_mesh() {
                format!(
                    "this leads through a service of the cluster, as no ServiceEntry has the host {host}, while egress originates TLS where \
                     the application is; lead to {from} and its port for TLS instead, or add a ServiceEntry if {host} is none"
                )
            } else {
                format!("no ServiceEntry has the host {host}; add one, or correct the name")
            };
            self.reports.at(&destination.host, Code::UnknownDestination.because(text));
        }
    }

    /// All destinations of a route in the order of its weighted ones and its mirrors. What is wrong with one is reported.
    fn destinations(
        &mut self,
        route: &'d Route,
        routed: &Routed<'d>,
        host: &'d HostPattern,
        port: NonZeroU16,
    ) -> Vec<Led<'d>> {
        destinations_of(route).filter_map(|destination| self.destination(destination, routed, host, port)).collect()
    }

    fn destination(
        &mut self,
        destination: &'d Located<Destination>,
        routed: &Routed<'d>,
        from: &'d HostPattern,
        port: NonZeroU16,
    ) -> Option<Led<'d>> {
        let host = self.host_of(destination, routed);
        let Some(ports) = self.index.services.get(host) else {
            return Some(Led::Unknown(destination, host));
        };
        // As in Istio: the one that is named, the only one, or the one that the request came to.
        let number = match (&destination.port, ports.len()) {
            (Some(port), _) => port.number.value,
            (None, 1) => *ports.keys().next()?,
            (None, _) => port,
        };
        let Some(&service) = ports.get(&number) else {
            let text = format!("no ServiceEntry has port {number} of {host}; add it, or name another port");
            self.reports.at(destination, Code::UnknownDestination.because(text));
            return None;
        };
        let subset = match &destination.subset {
            None => None,
            Some(name) => {
                let found = self.index.destinations(host).and_then(|destinations| destinations.subset(&name.value));
                if found.is_none() {
                    let text = format!("no DestinationRule for {host} defines the subset {}; define it", name.value);
                    self.reports.at(name, Code::UnknownSubset.because(text));
                    return None;
                }
                found.map(|(subset, _)| subset)
            }
        };
        let Some(asked) = self.asked(service, subset) else {
            return Some(Led::Clear(destination, format!("port {number} of {host}")));
        };
        let protocol = service.port.protocol.as_ref().map(|protocol| protocol.value);
        if let Some(Spoken::Opaque(_)) = protocol {
            let text = format!("port {number} of {host} is not said to be HTTP or HTTPS; give it such a protocol");
            self.reports.at(destination, Code::WrongProtocol.because(text));
            return None;
        }
        if (from, port) != (service.host, number) {
            self.led_to.insert((service.host, number));
        }
        Some(Led::Tls(self.upstream(service, subset, asked)))
    }
}

/// The weighted ones, and then those of mirrors.
pub(super) fn destinations_of(route: &Route) -> impl Iterator<Item = &Located<Destination>> {
    let weighted = http::weights(&route.route).map(|(destination, _)| &destination.destination);
    weighted.chain(mirrors_of(route))
}

fn mirrors_of(route: &Route) -> impl Iterator<Item = &Located<Destination>> {
    route.mirror.iter().chain(route.mirrors.iter().map(|mirror| &mirror.destination))
}

/// A route as far as it concerns a port; None if it does not.
pub(super) fn applicable(route: &Located<Route>, port: NonZeroU16) -> Option<Applicable<'_>> {
    let concerns = |matched: &&Located<RequestMatch>| {
        matched.is_for_mesh() && matched.port.as_ref().is_none_or(|wanted| wanted.value == port)
    };
    let matches: Vec<_> = route.matches.iter().filter(concerns).collect();
    (route.matches.is_empty() || !matches.is_empty()).then_some(Applicable { route, matches })
}

fn compile_route(applicable: &Applicable<'_>, led: Vec<Led<'_>>, upstreams: &mut Vec<Shared>) -> HttpRoute {
    let route = applicable.route;
    let mut led = led.into_iter().filter_map(|led| match led {
        Led::Tls(upstream) => Some(index_of(upstream, upstreams)),
        Led::Clear(..) | Led::Unknown(..) => None,
    });
    let mut up_to = 0;
    let weighted: Vec<_> = http::weights(&route.route)
        .zip(led.by_ref().take(http::weights(&route.route).count()))
        .map(|((destination, weight), upstream)| {
            up_to += weight;
            let headers = destination.headers.as_ref();
            Weighted { upstream, up_to, headers: http::changes(headers), authority: http::authority_of(headers) }
        })
        .collect();
    let of_mirror = route.mirror.iter().map(|_| route.mirror_percentage.as_ref().map(|percentage| &percentage.value));
    let of_mirrors = route.mirrors.iter().map(|mirror| mirror.percentage.as_ref());
    let mirrors = led
        .zip(of_mirror.chain(of_mirrors))
        .map(|(upstream, percentage)| Mirror { upstream, share: percentage.map_or(Share::ALL, http::share_of) })
        .collect();
    HttpRoute {
        name: route.name.as_deref().map(Arc::from),
        matches: applicable.matches.iter().map(|matched| http::request_match(matched)).collect(),
        action: match (&route.redirect, &route.direct_response) {
            (Some(redirect), _) => Action::Redirect(http::redirect(redirect)),
            (None, Some(response)) => Action::Respond(http::direct_response(response)),
            (None, None) => Action::Forward(weighted),
        },
        rewrite: http::rewrite(route),
        headers: http::changes(route.headers.as_ref()),
        timeout: route.timeout.filter(|time| !time.is_zero()),
        retries: route.retries.as_ref().map(|retries| http::retries(retries)),
        fault: route.fault.as_ref().map_or_else(Fault::default, http::fault),
        mirrors,
        location: route.location.clone(),
    }
}

/// The index of an upstream among those of the rule, to which it is added if it is new.
fn index_of(upstream: Shared, upstreams: &mut Vec<Shared>) -> UpstreamIndex {
    let known = upstreams.iter().position(|known| Arc::ptr_eq(known, &upstream));
    UpstreamIndex(known.unwrap_or_else(|| {
        upstreams.push(upstream);
        upstreams.len() - 1
    }))
}
