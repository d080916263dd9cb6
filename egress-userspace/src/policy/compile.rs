//! What several documents mean together: each port of each host against the `DestinationRule` for it.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map},
    num::NonZeroU16,
    path::PathBuf,
};

use egress_common::learned::NAME_PORTS;

use super::{ClientIdentity, Endpoint, Located, Roots, Rule, TlsSettings, Upstream, Verify, Warning};
use crate::config::{
    Document, Errors, HostPattern, Resource,
    destination_rule::{DestinationRule, Origination, Tls},
    service_entry::{Protocol, Resolution, ServiceEntry, ServicePort},
};

/// The rules that the documents ask for, and the warnings in the order of files and lines.
pub(super) fn compile(documents: &[Document]) -> Result<(Vec<Rule>, Vec<Warning>), Errors> {
    let mut compiler = Compiler::default();
    for document in documents {
        match &document.resource {
            Resource::ServiceEntry(entry) => compiler.add_service_entry(entry),
            Resource::DestinationRule(rule) => compiler.add_destination_rule(rule),
        }
    }
    compiler.finish()
}

#[derive(Default)]
struct Compiler<'d> {
    services: BTreeMap<&'d HostPattern, BTreeMap<NonZeroU16, Service<'d>>>,
    destinations: BTreeMap<&'d HostPattern, &'d DestinationRule>,
    rules: Vec<Rule>,
    warnings: Vec<Warning>,
    errors: Errors,
}

/// A port of a host.
#[derive(Clone, Copy)]
struct Service<'d> {
    host: &'d HostPattern,
    entry: &'d ServiceEntry,
    port: &'d ServicePort,
}

/// A `tls` block that asks for TLS on a port.
#[derive(Clone, Copy)]
struct Asked<'d> {
    tls: &'d Located<Tls>,
    origination: &'d Origination,
    /// Whether it names the port, rather than to be there for all of them.
    for_this_port: bool,
}

impl<'d> Compiler<'d> {
    fn add_service_entry(&mut self, entry: &'d ServiceEntry) {
        for host in entry.hosts.iter() {
            let services = self.services.entry(&host.value).or_default();
            for port in entry.ports.iter() {
                match services.entry(port.number.value) {
                    btree_map::Entry::Vacant(vacant) => _ = vacant.insert(Service { host, entry, port }),
                    btree_map::Entry::Occupied(first) => self.errors.at(
                        &port.number,
                        format!(
                            "port {} of {} is already defined at {}; remove one of them",
                            port.number.value,
                            host.value,
                            first.get().port.number.location,
                        ),
                    ),
                }
            }
        }
    }

    fn add_destination_rule(&mut self, rule: &'d DestinationRule) {
        match self.destinations.entry(&rule.host.value) {
            btree_map::Entry::Vacant(vacant) => _ = vacant.insert(rule),
            btree_map::Entry::Occupied(first) => self.errors.at(
                &rule.host,
                format!(
                    "{} has a DestinationRule already, at {}; make one of the two",
                    rule.host.value,
                    first.get().host.location,
                ),
            ),
        }
    }

    fn finish(mut self) -> Result<(Vec<Rule>, Vec<Warning>), Errors> {
        for rule in self.destinations.clone().into_values() {
            self.check_destination(rule);
        }
        let services: Vec<_> = self.services.values().flat_map(BTreeMap::values).copied().collect();
        for service in services {
            self.compile_port(service);
        }
        self.check_number_of_ports();
        self.warnings.sort();
        self.warnings.dedup();
        self.errors.or((self.rules, self.warnings))
    }

    /// Looks for what a `DestinationRule` says in vain.
    fn check_destination(&mut self, rule: &'d DestinationRule) {
        let Some(policy) = &rule.traffic_policy else { return };
        let blocks = policy.port_level_settings.iter().filter_map(|settings| settings.tls.as_ref()).chain(&policy.tls);
        if !blocks.into_iter().any(|tls| matches!(tls.value, Tls::Originate(_))) {
            return;
        }
        let services: Vec<_> = self.services.iter().filter(|(host, _)| rule.host.value.covers(host)).collect();
        if services.is_empty() {
            let text = format!("no ServiceEntry has the host {}, so this does nothing; add one", rule.host.value);
            self.warn(&rule.host, text);
            return;
        }
        let unknown: Vec<_> = policy
            .port_level_settings
            .iter()
            .map(|settings| &settings.port.number)
            .filter(|number| !services.iter().any(|(_, ports)| ports.contains_key(&number.value)))
            .collect();
        for number in unknown {
            let text =
                format!("no ServiceEntry has port {} of {}, so this does nothing", number.value, rule.host.value);
            self.warn(number, text);
        }
    }

    fn compile_port(&mut self, service: Service<'d>) {
        let Service { host, port, .. } = service;
        let Some(asked) = self.asked(service) else {
            self.check_clear_text(service);
            return;
        };
        let number = port.number.value;
        match &port.protocol {
            Some(Located { value: Protocol::Http, .. }) => {
                let rule = self.rule(service, host, asked);
                self.rules.push(rule);
            }
            Some(Located { value: protocol @ (Protocol::Https | Protocol::Tls), .. }) => {
                let text =
                    format!("port {number} of {host} is {} as it is, and gets no TLS around it", protocol.name());
                self.warn(asked.tls, text);
            }
            Some(protocol @ Located { value: Protocol::Http2 | Protocol::Grpc, .. }) => {
                let message = format!(
                    "TLS cannot be originated for {} yet, and {} asks for it; only for HTTP",
                    protocol.value.name(),
                    asked.tls.location,
                );
                self.errors.at(protocol, message);
            }
            protocol => {
                let protocol = match protocol {
                    Some(protocol) => format!("protocol {}", protocol.value.name()),
                    None => "no protocol".to_owned(),
                };
                if asked.for_this_port {
                    let message = format!(
                        "TLS can be originated only for protocol HTTP, and port {number} of {host} has {protocol}"
                    );
                    self.errors.at(asked.tls, message);
                } else {
                    let text =
                        format!("port {number} of {host} has {protocol}, so its traffic is left as it is: without TLS");
                    self.warn(asked.tls, text);
                }
            }
        }
    }

    /// The `tls` block that asks for TLS on a port, if one does.
    fn asked(&self, Service { host, port, .. }: Service<'d>) -> Option<Asked<'d>> {
        // Else the most specific wildcard; they come last in the map.
        let wildcards = self.destinations.iter().rev().take_while(|(pattern, _)| !pattern.is_exact());
        let covering = wildcards.filter(|(pattern, _)| pattern.covers(host));
        let destination = match self.destinations.get(host) {
            Some(destination) => *destination,
            None => *covering.max_by_key(|(pattern, _)| pattern.name().as_str().len())?.1,
        };
        let tls = destination.tls(port.number.value)?;
        let Tls::Originate(origination) = &tls.value else { return None };
        let top_level = destination.traffic_policy.as_ref().and_then(|policy| policy.tls.as_ref());
        let for_this_port = !top_level.is_some_and(|top_level| std::ptr::eq(top_level, tls));
        Some(Asked { tls, origination, for_this_port })
    }

    /// Half of the seed's pair is the mistake to look for: a target port, and no TLS to it.
    fn check_clear_text(&mut self, Service { host, port, .. }: Service<'d>) {
        let is_http = port.protocol.as_ref().is_some_and(|protocol| protocol.value == Protocol::Http);
        if let Some(target) = port.target_port.as_ref().filter(|target| is_http && target.value != port.number.value) {
            let number = port.number.value;
            let text = format!(
                "nothing originates TLS for port {number} of {host}, so its traffic is left as it is: in clear text to \
                 port {number}, not to {}; add a DestinationRule",
                target.value,
            );
            self.warn(target, text);
        }
    }

    fn rule(&mut self, service: Service<'d>, host: &HostPattern, asked: Asked<'d>) -> Rule {
        let Service { entry, port, .. } = service;
        let target_port = port.target_port.as_ref().unwrap_or(&port.number);
        let upstream = upstream(entry, port, host, target_port.value);
        let is_same_port = match &upstream {
            Upstream::Endpoints(endpoints) => endpoints.iter().any(|endpoint| endpoint.port == port.number.value.get()),
            Upstream::Resolve(_) | Upstream::Original => target_port.value == port.number.value,
        };
        if is_same_port {
            let text = format!(
                "TLS is originated to port {} itself, as no targetPort leads elsewhere; servers mostly have it on 443",
                port.number.value,
            );
            self.warn(&port.number, text);
        }
        Rule {
            host: host.clone(),
            port: port.number.value.get(),
            target_port: target_port.value.get(),
            addresses: entry.addresses.iter().map(|range| range.value).collect(),
            upstream,
            tls: self.tls_settings(host, asked.origination),
            location: asked.tls.location.clone(),
        }
    }

    fn tls_settings(&mut self, host: &HostPattern, asked: &Origination) -> TlsSettings {
        if let Some(skip) = &asked.insecure_skip_verify {
            self.warn(
                skip,
                format!("the certificate of {host} is not verified: anyone on the way can read and change all"),
            );
        }
        let names = match &asked.sni {
            _ if !asked.subject_alt_names.is_empty() => Verify::Names(asked.subject_alt_names.clone()),
            Some(sni) => {
                if asked.insecure_skip_verify.is_none() {
                    let text = format!(
                        "the certificate must be valid for {}, while Istio would accept any name, as there are no \
                         subjectAltNames",
                        sni.value,
                    );
                    self.warn(sni, text);
                }
                Verify::Names(vec![sni.to_server_name()])
            }
            None => match host {
                HostPattern::Exact(host) => Verify::Names(vec![host.to_server_name()]),
                HostPattern::Wildcard(_) => Verify::Host,
            },
        };
        TlsSettings {
            sni: asked.sni.as_ref().map(|sni| sni.value.clone()),
            verify: if asked.insecure_skip_verify.is_some() { Verify::Skip } else { names },
            roots: asked.ca_certificates.as_ref().map_or(Roots::System, |file| Roots::File(resolve(file))),
            crl: asked.ca_crl.as_ref().map(resolve),
            client: asked
                .client
                .as_ref()
                .map(|client| ClientIdentity { certificate: resolve(&client.certificate), key: resolve(&client.key) }),
            requirements: asked.requirements.clone(),
        }
    }

    /// The kernel has room for a few ports of each name.
    fn check_number_of_ports(&mut self) {
        if self.rules.iter().map(|rule| rule.port).collect::<BTreeSet<_>>().len() <= NAME_PORTS {
            return;
        }
        // They come in the order of hosts.
        for rule in self.rules.chunk_by(|one, other| one.host == other.host).filter_map(<[_]>::first) {
            let covering = self.rules.iter().filter(|other| other.host.covers(&rule.host));
            let ports: BTreeSet<_> = covering.map(|rule| rule.port).collect();
            if ports.len() > NAME_PORTS {
                let text = format!(
                    "{} gets TLS on {} ports, rules for wildcards included; at most {NAME_PORTS} are possible",
                    rule.host,
                    ports.len(),
                );
                self.errors.at(&Located::new((), rule.location.clone()), text);
            }
        }
    }

    fn warn<T>(&mut self, place: &Located<T>, text: String) {
        self.warnings.push(Warning { location: place.location.clone(), text });
    }
}

fn upstream(entry: &ServiceEntry, port: &ServicePort, host: &HostPattern, target_port: NonZeroU16) -> Upstream {
    match (entry.resolution(), entry.endpoints.as_slice(), host) {
        // The entry has been refused if it wants a wildcard to be resolved.
        (Resolution::None, ..) | (_, [], HostPattern::Wildcard(_)) => Upstream::Original,
        (Resolution::Static | Resolution::Dns, [], HostPattern::Exact(host)) => Upstream::Resolve(host.clone()),
        (Resolution::Static | Resolution::Dns, endpoints, _) => Upstream::Endpoints(
            endpoints
                .iter()
                .map(|endpoint| Endpoint {
                    address: endpoint.address.value.clone(),
                    port: endpoint.ports.get(&port.name.value).map_or(target_port, |port| port.value).get(),
                })
                .collect(),
        ),
    }
}

fn resolve(file: &Located<PathBuf>) -> Located<PathBuf> {
    file.with(file.location.resolve(&file.value))
}
