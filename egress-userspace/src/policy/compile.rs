//! What several documents mean together: each port of each host against all that is said of it.

mod check;
mod credential;
mod exceptions;
mod full_names;
mod host_map;
mod http;
mod index;
mod namespaces;
mod ports;
mod reach;
mod reports;
mod routes;
mod same_host;
mod settings;
mod twice;
mod unused;
mod upstream;

use std::{num::NonZeroU16, ptr, sync::Arc};

use foldhash::{HashMap, HashSet};

use self::{
    full_names::FullNames,
    index::{Index, Routed, Service},
    reports::{Reports, report_no_effect, selectors},
    settings::{Asked, AskedBy},
    upstream::Shared,
};
use super::{Exception, HttpRoute, Rule};
use crate::config::{
    Code, Diagnostic, Document, HostPattern, Located, Location, Message, annotations::Annotations,
    destination_rule::Subset, service_entry::Protocol as Spoken, virtual_service::RequestMatch,
};

/// The rules that the documents ask for, the exceptions to them, and all that there is to say about them in the order of files and
/// lines. The rules are good only if none of it is an error.
pub(super) fn compile<'d>(
    documents: impl IntoIterator<Item = &'d Document>,
) -> (Vec<Rule>, Vec<Exception>, Vec<Diagnostic>) {
    let documents: Vec<&Document> = documents.into_iter().collect();
    let mut reports = Reports::default();
    let selectors = selectors(&documents);
    let full_names = FullNames::of(&documents);
    let index = Index::of(&documents, &full_names, &mut reports);
    for &document in &documents {
        report_no_effect(document, &selectors, &index, &mut reports);
    }
    let mut compiler = Compiler::new(&index, reports);
    compiler.compile();
    compiler.check_twice();
    compiler.check_same_host();
    compiler.check_namespaces();
    compiler.leave_tls_alone();
    for (service, is_excepted) in compiler.check_covered() {
        compiler.check_clear_text(service, is_excepted);
    }
    compiler.check_spoken();
    compiler.check_destinations();
    compiler.check_short_names();
    compiler.check_wildcards();
    compiler.check_number_of_ports();
    let Compiler { rules, exceptions, reports: Reports { found: mut diagnostics, .. }, .. } = compiler;
    diagnostics.sort();
    diagnostics.dedup();
    (rules, exceptions, diagnostics)
}

/// The port for TLS.
const HTTPS: NonZeroU16 = NonZeroU16::new(443).expect("443 is not zero");
/// The port for HTTP.
const HTTP: NonZeroU16 = NonZeroU16::new(80).expect("80 is not zero");

struct Compiler<'i, 'd> {
    index: &'i Index<'d>,
    reports: Reports,
    rules: Vec<Rule>,
    exceptions: Vec<Exception>,
    /// By host, port and subset.
    upstreams: HashMap<(&'d HostPattern, NonZeroU16, Option<&'d str>), Shared>,
    /// Ports that get no TLS of their own, and why not if it is asked for.
    without_tls: Vec<(Service<'d>, Option<Reason>)>,
    /// Where a `VirtualService` leads from another port.
    led_to: HashSet<(&'d HostPattern, NonZeroU16)>,
    /// The annotations of an upstream.
    in_force: HashSet<*const Annotations>,
    /// The routes and matches, one after the other, of which is known what no request gets to.
    checked: HashSet<Vec<*const ()>>,
}

impl<'i, 'd> Compiler<'i, 'd> {
    fn new(index: &'i Index<'d>, reports: Reports) -> Self {
        Self {
            index,
            reports,
            rules: Vec::new(),
            exceptions: Vec::new(),
            upstreams: HashMap::default(),
            without_tls: Vec::new(),
            led_to: HashSet::default(),
            in_force: HashSet::default(),
            checked: HashSet::default(),
        }
    }

    /// First what `VirtualService`s say, as that decides on ports that they lead to; then the ports that are left.
    fn compile(&mut self) {
        // By the hosts that they list: those that a ServiceEntry's host falls under, and those of which there is more to say than that
        // they lead nowhere.
        let mut concerned: HashSet<*const HostPattern> = HashSet::default();
        let mut in_force: HashSet<*const HostPattern> = HashSet::default();
        let mut rest = Vec::new();
        for service in self.index.services.iter().flat_map(|(_, ports)| ports.values()).copied() {
            let routed = self.index.virtual_services.covering(service.host).next().map(|(_, several)| &several[0]);
            concerned.extend(routed.map(|routed| ptr::from_ref(routed.host)));
            let Some(routed) = routed.filter(|_| is_http(service)) else {
                rest.push(service);
                continue;
            };
            if !self.is_concerned(routed, service) {
                if self.leads_to_tls(routed) {
                    self.report_not_concerned(routed, service);
                    in_force.insert(ptr::from_ref(routed.host));
                }
                rest.push(service);
                continue;
            }
            match self.compile_routed(routed, service) {
                Outcome::Rule | Outcome::Wrong => _ = in_force.insert(ptr::from_ref(routed.host)),
                Outcome::NotConcerned => rest.push(service),
            }
        }
        for service in rest {
            self.compile_port(service);
        }
        self.compile_other_hosts(&concerned, &mut in_force);
    }

    /// What `VirtualService`s say of hosts that no `ServiceEntry` has.
    fn compile_other_hosts(
        &mut self,
        concerned: &HashSet<*const HostPattern>,
        in_force: &mut HashSet<*const HostPattern>,
    ) {
        let mut unused = Vec::new();
        for (host, several) in self.index.virtual_services.iter() {
            // Services of a cluster can be called the same in several namespaces, which is no business of ours without TLS.
            let is_of_mesh = self.index.is_of_mesh(host);
            for routed in if is_of_mesh { several } else { &several[..1] } {
                let place = ptr::from_ref(routed.host);
                if in_force.contains(&place) {
                    // On other ports, or for other hosts.
                    self.check_answers(routed);
                    continue;
                }
                let is_known = concerned.contains(&place);
                match if is_known { Outcome::NotConcerned } else { self.compile_unknown(routed) } {
                    Outcome::NotConcerned => {
                        self.check_answers(routed);
                        unused.push(routed);
                    }
                    Outcome::Rule | Outcome::Wrong => _ = in_force.insert(place),
                }
            }
            let is_ours = !is_of_mesh || several.iter().any(|routed| in_force.contains(&ptr::from_ref(routed.host)));
            for other in several[1..].iter().filter(|_| is_ours) {
                let text = format!(
                    "{host} has a VirtualService already, at {}, and Istio would take either; make one of the two",
                    several[0].listed.location,
                );
                self.reports.at(other.listed, Code::Conflict.because(text));
            }
        }
        self.report_unused(&unused);
    }

    /// Whether a `VirtualService` has a say in a port that may be one for HTTP. Of one without a protocol nothing says that it is,
    /// be it ssh's, unless TLS is asked for there, or a match names it, or everybody knows.
    fn is_concerned(&mut self, routed: &Routed<'d>, service: Service<'d>) -> bool {
        let number = service.port.number.value;
        let mut matches = routed.service.http.iter().flat_map(|route| &route.matches);
        let names_it = |matched: &Located<RequestMatch>| {
            matched.is_for_mesh() && matched.port.as_ref().is_some_and(|port| port.value == number)
        };
        service.port.protocol.is_some()
            || number == HTTP
            || matches.any(names_it)
            || self.own_tls(service.host, number).is_some()
    }

    fn report_not_concerned(&mut self, routed: &Routed<'d>, Service { port, .. }: Service<'d>) {
        let text = format!(
            "port {} has no protocol, so the VirtualService at {}, which leads to TLS, is not for it: HTTP would leave in clear there; if \
             that is spoken, say so by protocol HTTP, and otherwise by TCP, or HTTPS",
            port.number.value, routed.listed.location,
        );
        self.reports.at(&port.number, Code::ClearText.because(text));
    }

    /// A host with a `VirtualService` and no `ServiceEntry`: as in Istio it is in force on port 80.
    fn compile_unknown(&mut self, routed: &Routed<'d>) -> Outcome {
        self.compile_routes(routed, routed.host, HTTP, None)
    }

    /// A port of a host with a `VirtualService`.
    fn compile_routed(&mut self, routed: &Routed<'d>, service: Service<'d>) -> Outcome {
        self.compile_routes(routed, service.host, service.port.number.value, Some(service))
    }

    /// A port that no `VirtualService` has a say in.
    fn compile_port(&mut self, service: Service<'d>) {
        let Service { host, port, .. } = service;
        let Some(asked) = self.asked(service, None) else {
            self.without_tls.push((service, None));
            return;
        };
        let number = port.number.value;
        let place = asked.place();
        match port.protocol.as_ref().map(|protocol| protocol.value) {
            // Without a protocol Istio looks at what is spoken. What turns out not to be HTTP is refused, as on any port.
            None | Some(Spoken::Http | Spoken::Http2 | Spoken::Grpc | Spoken::GrpcWeb) => {
                let upstream = self.upstream(service, None, asked);
                self.check_same_port(service, &upstream);
                let location = upstream.location.clone();
                let routes = vec![HttpRoute::catch_all(location.clone())];
                self.push_rule(host, number, Some(service), vec![upstream], routes, location);
            }
            Some(protocol @ (Spoken::Https | Spoken::Tls)) => {
                if !self.led_to.contains(&(host, number)) {
                    let name = protocol.name();
                    let message = if number == HTTP {
                        Code::NotOriginated.because(format!(
                            "port 80 of {host} has protocol {name}, so what is sent there is left as it is, HTTP in clear; say so by protocol \
                             HTTP if that is spoken there"
                        ))
                    } else {
                        Code::AlreadyTls
                            .because(format!("port {number} of {host} is {name} as it is, and gets no TLS around it"))
                    };
                    self.without_tls.push((service, Some((place, message))));
                }
            }
            Some(Spoken::Opaque(protocol)) => {
                let destinations = self.index.destinations(host);
                if let Some(tls) = destinations.and_then(|destinations| destinations.tls_of_port(number)) {
                    let text = format!(
                        "TLS can be originated only for HTTP, and port {number} of {host} has protocol {protocol}; if HTTP is spoken \
                         there, say so by protocol HTTP"
                    );
                    self.reports.at(tls, Code::WrongProtocol.because(text));
                    return;
                }
                let text = format!(
                    "port {number} of {host} has protocol {protocol}, which gets no TLS: what is sent there leaves in clear; if HTTP \
                     is spoken there, say so by protocol HTTP, and if applications make TLS themselves, by protocol TLS"
                );
                self.without_tls.push((service, Some((place, Code::NotOriginated.because(text)))));
            }
        }
    }

    fn push_rule(
        &mut self,
        host: &HostPattern,
        port: NonZeroU16,
        service: Option<Service<'d>>,
        upstreams: Vec<Shared>,
        routes: Vec<HttpRoute>,
        location: Location,
    ) {
        let entry = service.map(|service| service.entry);
        // What is at its endpoints then is the proxy, which applications may use for themselves.
        let is_behind_proxy = upstreams.iter().any(|upstream| upstream.host == *host && upstream.tunnel.is_some());
        let endpoints = entry.filter(|_| !is_behind_proxy).into_iter().flat_map(|entry| &entry.endpoints);
        self.rules.push(Rule {
            host: host.clone(),
            port: port.get(),
            addresses: entry.into_iter().flat_map(|entry| &entry.addresses).map(|range| range.value).collect(),
            endpoints: endpoints.filter_map(|endpoint| endpoint.address.0.clone().ok()).collect(),
            upstreams,
            routes,
            location,
        });
    }

    /// Who asks for TLS on a port, if anyone does.
    fn asked(&mut self, service: Service<'d>, subset: Option<&'d Subset>) -> Option<Asked<'d>> {
        let number = service.port.number.value;
        let by_rule = self.index.settings(service.host, number, subset).tls;
        let Some(policy) = self.index.policy(service.host, number) else { return by_rule };
        if let Some(by_rule) = by_rule {
            let text = format!(
                "port {number} of {} has TLS already, by the DestinationRule at {}; remove one of them",
                service.host,
                by_rule.place().location,
            );
            self.reports.at(&policy.policy.validation, Code::Conflict.because(text));
        }
        Some(Asked { by: AskedBy::Policy(policy.policy), namespace: policy.namespace })
    }

    /// The upstream for a port that TLS is asked for on.
    fn upstream(&mut self, service: Service<'d>, subset: Option<&'d Subset>, asked: Asked<'d>) -> Shared {
        let number = service.port.number.value;
        let key = (service.host, number, subset.map(|subset| subset.name.value.as_str()));
        if let Some(upstream) = self.upstreams.get(&key) {
            return upstream.clone();
        }
        let settings = self.index.settings(service.host, number, subset);
        self.in_force.extend(settings.annotations.map(ptr::from_ref));
        let upstream = Arc::new(upstream::build(service, subset, &settings, asked, self.index, &mut self.reports));
        self.upstreams.insert(key, upstream.clone());
        upstream
    }
}

/// What there is to say of something, and where.
type Reason = (Located<()>, Message);

/// What a `VirtualService` makes of a port.
enum Outcome {
    /// A rule.
    Rule,
    /// Nothing, as it is at fault.
    Wrong,
    /// Nothing, as it has no say in it, or as no TLS is involved.
    NotConcerned,
}

fn is_http(service: Service<'_>) -> bool {
    let protocol = service.port.protocol.as_ref().map(|protocol| protocol.value);
    matches!(protocol, None | Some(Spoken::Http | Spoken::Http2 | Spoken::Grpc | Spoken::GrpcWeb))
}
