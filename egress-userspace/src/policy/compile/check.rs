//! What is probably not meant, seen from all documents together.

use std::{collections::BTreeSet, num::NonZeroU16, ptr};

use foldhash::{HashMap, HashSet};

use egress_common::learned::NAME_PORTS;

use super::{
    Compiler, HTTPS,
    exceptions::{Disabled, except},
    host_map::HostMap,
    index::Service,
    is_http,
    settings::Destinations,
};
use crate::{
    config::{
        Code, HostPattern, Located,
        annotations::Annotations,
        destination_rule::{DestinationRule, Tls},
        service_entry::Protocol as Spoken,
        traffic_policy::{PortPolicy, TrafficPolicy},
    },
    policy::{HttpRoute, Rule, Upstream},
};

impl<'d> Compiler<'_, 'd> {
    /// Looks for what `DestinationRule`s say in vain.
    pub(super) fn check_destinations(&mut self) {
        // For each rule the ports of the hosts that it covers.
        let mut ports: HashMap<*const DestinationRule, BTreeSet<NonZeroU16>> = HashMap::default();
        for (host, services) in self.index.services.iter() {
            for (_, destinations) in self.index.destinations.covering(host) {
                for (rule, _) in &destinations.rules {
                    ports.entry(&raw const **rule).or_default().extend(services.keys());
                }
            }
        }
        for (host, destinations) in self.index.destinations.iter() {
            for (rule, _) in &destinations.rules {
                let known = ports.get(&(&raw const **rule));
                self.check_destination(host, rule, known);
            }
            let is_known = destinations.rules.iter().any(|(rule, _)| ports.contains_key(&(&raw const **rule)));
            self.check_annotations(host, destinations, is_known);
        }
        self.check_disabled(&ports);
        self.check_subsets_in_vain(&ports);
        self.check_tls_in_vain();
    }

    fn check_destination(&mut self, host: &HostPattern, rule: &DestinationRule, known: Option<&BTreeSet<NonZeroU16>>) {
        if !asks_for_tls(rule) && !is_annotated(rule) {
            return;
        }
        let Some(known) = known else {
            let text = format!("no ServiceEntry has the host {host}, so this does nothing; add one");
            self.reports.at(&rule.host, Code::UnusedDestinationRule.because(text));
            return;
        };
        let settings = policies(rule).flat_map(|policy| &policy.port_level_settings);
        for number in settings.map(|settings| &settings.port.number).filter(|number| !known.contains(&number.value)) {
            let text = format!("no ServiceEntry has port {} of {host}, so this does nothing", number.value);
            self.reports.at(number, Code::UnusedDestinationRule.because(text));
        }
    }

    /// Looks for the TLS of subsets that no route leads to: it is not that of the host. The `ports` are those of the hosts that each rule
    /// covers.
    fn check_subsets_in_vain(&mut self, ports: &HashMap<*const DestinationRule, BTreeSet<NonZeroU16>>) {
        // What is wrong elsewhere can be why.
        if self.reports.errors > 0 {
            return;
        }
        let led = self.upstreams.keys().filter_map(|(host, _, name)| self.index.destinations(host)?.subset((*name)?));
        let led: HashSet<_> = led.map(|(subset, _)| ptr::from_ref(subset)).collect();
        for (host, destinations) in self.index.destinations.iter() {
            let known = destinations.rules.iter().filter(|(rule, _)| ports.contains_key(&(&raw const **rule)));
            for subset in known.flat_map(|(rule, _)| &rule.subsets) {
                let name = subset.name.value.as_str();
                // Of several that are alike one counts.
                let is_first = destinations.subset(name).is_some_and(|(first, _)| ptr::eq(first, subset));
                let mut tls = subset.traffic_policy.iter().flat_map(tls_of).filter(|tls| originates(tls));
                if let Some(tls) = tls.next().filter(|_| is_first && !led.contains(&ptr::from_ref(subset))) {
                    let text = format!(
                        "no VirtualService leads to subset {name} of {host} on a port that this is for, so it does nothing; have a route lead \
                         there, or say it in the trafficPolicy of the host"
                    );
                    self.reports.at(tls, Code::UnusedDestinationRule.because(text));
                }
            }
        }
    }

    /// Of several rules for a host it is one whose annotations count. What others ask for must not be lost without a word.
    fn check_annotations(&mut self, host: &HostPattern, destinations: &Destinations<'_>, is_known: bool) {
        let Some((main, _)) = destinations.main() else { return };
        // Of those with a trafficPolicy as well it is said already that they differ, or that no ServiceEntry has the host.
        let others = destinations.rules.iter().map(|(rule, _)| rule).filter(|rule| rule.traffic_policy.is_none());
        let others = others.filter(|rule| is_annotated(rule));
        for rule in others.filter(|rule| rule.annotations != main.annotations) {
            let text = format!(
                "the annotations for {host} are those of its DestinationRule at {}, whose trafficPolicy counts, and they are \
                 others; move these there",
                main.host.location,
            );
            self.reports.at(&rule.host, Code::Conflict.because(text));
        }
        // What is wrong elsewhere can be why.
        let is_in_force = self.in_force.contains(&(&raw const main.annotations));
        if is_annotated(main) && is_known && !is_in_force && self.reports.errors == 0 {
            let text = format!(
                "nothing originates TLS for {host} by this rule, so its annotations do nothing; add `tls` to it, or remove them"
            );
            self.reports.at(&main.host, Code::UnusedDestinationRule.because(text));
        }
    }

    /// Of the ports without TLS of their own says which have that of a wildcard, and gives the others: those that no wildcard has, or
    /// for which there is to be none, and whether it is that.
    pub(super) fn check_covered(&mut self) -> Vec<(Service<'d>, bool)> {
        let wildcards = wildcard_rules(&self.rules);
        let (mut others, mut kept) = (Vec::new(), Vec::new());
        for (service, otherwise) in std::mem::take(&mut self.without_tls) {
            let Service { host, port, .. } = service;
            let number = port.number.value;
            let rules = wildcards.covering(host).flat_map(|(_, rules)| rules);
            let Some(wider) = rules.into_iter().find(|rule| rule.port == number.get()) else {
                match otherwise {
                    Some((place, message)) => self.reports.at(&place, message),
                    None => others.push((service, false)),
                }
                continue;
            };
            let disabled = self.index.disabled(service, &wider.host);
            if let Some(Disabled { tls, limit: None }) = disabled {
                self.exceptions.push(except(service, tls, self.index, &mut self.reports));
                others.push((service, true));
                continue;
            }
            if is_http(service) {
                let (go, code) = match leads_elsewhere(wider) {
                    None => ("go over TLS all the same".to_owned(), Code::Questionable),
                    Some(other) => (format!("would go to {other}"), Code::Conflict),
                };
                let why = match disabled.and_then(|Disabled { tls, limit }| Some((&tls.location, limit?))) {
                    None => format!(
                        "whatever there is for {host} itself; add a DestinationRule with `tls` for {host}, be it with mode DISABLE, or \
                         leave its port out"
                    ),
                    Some((disabled, (what, limit))) => format!(
                        "as mode DISABLE at {disabled} is for some pods alone by the {what} at {limit}, and here one rule is for all; change \
                         that if they are to leave in clear from all pods"
                    ),
                };
                let text = format!(
                    "requests for {host} and port {number} {go}, by what is said of {} at {}, which has them too, {why}",
                    wider.host, wider.location,
                );
                self.reports.at(&port.number, code.because(text));
                kept.push((service, wider.host.clone()));
                continue;
            }
            // Interception knows names and ports, and not what is spoken there over TCP.
            let protocol = port.protocol.as_ref().map_or("none", |protocol| protocol.value.name());
            if protocol != "UDP" {
                let text = format!(
                    "port {number} of {host} has protocol {protocol}, yet what is said of {} at {} has it intercepted, and anything but \
                     HTTP is refused there; list the hosts that are meant in place of the wildcard",
                    wider.host, wider.location,
                );
                self.reports.at(&port.number, Code::Questionable.because(text));
            }
        }
        self.check_excepted(&kept);
        others
    }

    /// Half of the seed's pair is the mistake to look for: a target port, and no TLS to it.
    pub(super) fn check_clear_text(&mut self, service: Service<'d>, is_excepted: bool) {
        let Service { host, port, .. } = service;
        let number = port.number.value;
        let is_stream = match port.protocol.as_ref().map(|protocol| protocol.value) {
            Some(Spoken::Https | Spoken::Tls) => false,
            Some(Spoken::Opaque(name)) => name != "UDP",
            _ => true,
        };
        if let Some(settings) = self.settings_without_tls(host, number).filter(|_| is_stream) {
            let text = format!(
                "portLevelSettings for port {number} replace all that is said of {host} there, `tls` included, so nothing originates TLS for \
                 it: what is sent there leaves in clear; add `tls` to them, be it with mode DISABLE"
            );
            self.reports.at(&settings.port.number, Code::NotOriginated.because(text));
            return;
        }
        if !is_http(service) {
            return;
        }
        if let Some(target) = port.target_port.as_ref().filter(|target| target.value != number) {
            let text = format!(
                "nothing originates TLS for port {number} of {host}, so its traffic is left as it is: in clear text to port \
                 {number}, not to {}; {}",
                target.value,
                self.remedy_for_clear_text(host, number),
            );
            self.reports.at(target, Code::NotOriginated.because(text));
        } else if number == HTTPS && port.protocol.is_some() && !is_excepted {
            // An exception is intercepted, and what follows from that is said with the rules.
            let text = format!(
                "port 443 of {host} is said to be HTTP and nothing originates TLS for it, so what is sent there in clear stays \
                 so; use protocol HTTPS, or add a DestinationRule"
            );
            self.reports.at(&port.number, Code::ClearTextPort.because(text));
        }
    }

    /// The settings for a port that take away, by saying nothing of it, the TLS that there is for all ports.
    fn settings_without_tls(&self, host: &HostPattern, number: NonZeroU16) -> Option<&'d PortPolicy> {
        let rules = self.index.destinations(host).into_iter().flat_map(|destinations| &destinations.rules);
        let policies =
            rules.flat_map(|(rule, _)| policies(rule)).filter(|policy| policy.tls.as_ref().is_some_and(originates));
        let mut settings = policies.flat_map(|policy| &policy.port_level_settings);
        settings.find(|settings| settings.port.number.value == number && settings.tls.is_none())
    }

    /// The rule that was meant may be there, and name another port.
    fn remedy_for_clear_text(&self, host: &HostPattern, number: NonZeroU16) -> String {
        let rule = self.index.destinations(host).and_then(Destinations::main);
        let settings =
            rule.and_then(|(rule, _)| rule.traffic_policy.as_ref()).map(|policy| &policy.port_level_settings);
        let other = settings.into_iter().flatten().find(|settings| settings.tls.as_ref().is_some_and(originates));
        match other {
            Some(other) => format!(
                "the DestinationRule must name port {number}, which applications connect to, rather than {} (at {})",
                other.port.number.value, other.port.number.location,
            ),
            None => "add a DestinationRule".to_owned(),
        }
    }

    /// Of wildcards within wildcards the more specific one counts, which is easily overlooked.
    pub(super) fn check_wildcards(&mut self) {
        let wildcards = wildcard_rules(&self.rules);
        for (host, rules) in wildcards.iter() {
            for rule in rules {
                let wider = wildcards.covering(host).skip(1).flat_map(|(_, rules)| rules);
                if let Some(wider) = wider.into_iter().find(|wider| wider.port == rule.port) {
                    let text = format!(
                        "requests for {host} and port {} follow this, and not what is said of {} at {}, which has them too; \
                         make sure that this is meant",
                        rule.port, wider.host, wider.location,
                    );
                    let place = Located::new((), rule.location.clone());
                    self.reports.at(&place, Code::OverlappingWildcards.because(text));
                }
            }
        }
    }

    /// The kernel has room for a few ports of each name.
    pub(super) fn check_number_of_ports(&mut self) {
        if self.rules.iter().map(|rule| rule.port).collect::<BTreeSet<_>>().len() <= NAME_PORTS {
            return;
        }
        let mut by_host: HostMap<'_, Vec<&Rule>> = HostMap::default();
        let endpoints: Vec<_> =
            self.rules.iter().flat_map(|rule| rule.endpoint_names().map(move |(name, _)| (name, rule))).collect();
        let hosts = self.rules.iter().map(|rule| (&rule.host, rule));
        for (host, rule) in hosts.chain(endpoints.iter().map(|(name, rule)| (name, *rule))) {
            by_host.entry(host, Vec::new).push(rule);
        }
        for (host, rules) in by_host.iter() {
            let covering = by_host.covering(host).flat_map(|(_, rules)| rules);
            let ports: BTreeSet<_> = covering.map(|rule| rule.port).collect();
            if let Some(first) = rules.first().filter(|_| ports.len() > NAME_PORTS) {
                let text = format!(
                    "{host} gets TLS on {} ports, rules for wildcards included; leave some out, as at most {NAME_PORTS} are possible",
                    ports.len(),
                );
                let place = Located::new((), first.location.clone());
                self.reports.at(&place, Code::TooManyPorts.because(text));
            }
        }
    }
}

fn is_annotated(rule: &DestinationRule) -> bool {
    rule.annotations != Annotations::default()
}

/// Whether it, or a subset of it, originates TLS.
pub(super) fn asks_for_tls(rule: &DestinationRule) -> bool {
    tls_blocks(rule).any(originates)
}

/// Whether it originates TLS on a port.
pub(super) fn asks_for_tls_on(rule: &DestinationRule, port: NonZeroU16) -> bool {
    let tls = rule.traffic_policy.as_ref().and_then(|policy| {
        let of_port = policy.port_level_settings.iter().find(|settings| settings.port.number.value == port);
        of_port.map_or(policy.tls.as_ref(), |settings| settings.tls.as_ref())
    });
    tls.is_some_and(originates)
}

/// Whether it, or a subset of it, says that there is to be no TLS.
pub(super) fn disables(rule: &DestinationRule) -> bool {
    tls_blocks(rule).any(|tls| tls.value == Tls::Disable)
}

fn tls_blocks(rule: &DestinationRule) -> impl Iterator<Item = &Located<Tls>> {
    policies(rule).flat_map(tls_of)
}

fn tls_of(policy: &TrafficPolicy) -> impl Iterator<Item = &Located<Tls>> {
    let of_ports = policy.port_level_settings.iter().filter_map(|settings| settings.tls.as_ref());
    of_ports.chain(&policy.tls)
}

pub(super) fn originates(tls: &Located<Tls>) -> bool {
    matches!(tls.value, Tls::Originate(_))
}

fn policies(rule: &DestinationRule) -> impl Iterator<Item = &TrafficPolicy> {
    let of_subsets = rule.subsets.iter().filter_map(|subset| subset.traffic_policy.as_ref());
    rule.traffic_policy.iter().chain(of_subsets)
}

/// Where a rule sends requests on to. Copies do not count: they harm nobody.
pub(super) fn led_to(rule: &Rule) -> impl Iterator<Item = &Upstream> {
    rule.routes.iter().flat_map(HttpRoute::destinations).map(|to| &**rule.upstream(to.upstream))
}

/// The first host that a rule sends requests to which are for others.
pub(super) fn leads_elsewhere(rule: &Rule) -> Option<&HostPattern> {
    led_to(rule).map(|to| &to.host).find(|host| **host != rule.host)
}

pub(super) fn wildcard_rules(rules: &[Rule]) -> HostMap<'_, Vec<&Rule>> {
    let mut wildcards: HostMap<'_, Vec<&Rule>> = HostMap::default();
    for rule in rules.iter().filter(|rule| !rule.host.is_exact()) {
        wildcards.entry(&rule.host, Vec::new).push(rule);
    }
    wildcards
}
