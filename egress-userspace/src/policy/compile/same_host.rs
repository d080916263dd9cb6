//! Hosts that several `DestinationRule`s have.
//!
//! In Istio the subsets of all are in force, and the oldest `trafficPolicy`, if they are of one namespace and for the same pods; else it
//! is the client that decides. Files do not tell which is the oldest, and here one is for all. So the first counts where it makes no
//! difference, and else none does.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU16,
    path::PathBuf,
};

use foldhash::HashMap;

use super::{
    Compiler,
    check::{asks_for_tls, disables},
    exceptions::limit,
    namespaces::Namespace,
    settings::{Asked, AskedBy, Destinations, Settings},
};
use crate::config::{
    Code, HostPattern, Located,
    destination_rule::{ClientIdentity, Credential, Origination, Subset},
    traffic_policy::{LoadBalancer, PortPolicy, TrafficPolicy},
};

/// What is said, and the namespace of who says it.
type Said<'d> = (&'d TrafficPolicy, Namespace<'d>);

impl Compiler<'_, '_> {
    /// Refuses those that differ where TLS is originated, or would be by one of them.
    pub(super) fn check_same_host(&mut self) {
        for (host, destinations) in self.index.destinations.iter() {
            // What a cluster's own services have, be it in several namespaces, is no business of ours.
            if destinations.rules.len() > 1 && !self.index.is_of_mesh(host) {
                self.check_policies(host, destinations);
                self.check_subsets(host, destinations);
            }
        }
    }

    fn check_policies(&mut self, host: &HostPattern, destinations: &Destinations<'_>) {
        let is_concerned = destinations.rules.iter().any(|(rule, _)| asks_for_tls(rule) || disables(rule))
            || destinations.main().is_some_and(|(main, _)| self.in_force.contains(&(&raw const main.annotations)));
        let (mut first, mut of_first) = destinations.rules[0];
        for &(rule, namespace) in &destinations.rules[1..] {
            let before = format!("{host} has a DestinationRule already, at {}", first.host.location);
            let is_same_namespace = of_first == namespace;
            let policies = first.traffic_policy.as_ref().zip(rule.traffic_policy.as_ref());
            let difference = policies.and_then(|(one, other)| {
                let of_annotations = || (first.annotations != rule.annotations).then(|| "its annotations".to_owned());
                difference((one, of_first), (other, namespace)).or_else(of_annotations)
            });
            let message = match difference {
                Some(what) if is_concerned => {
                    let why = if limit(first).or(limit(rule)).is_some() {
                        "while here each is for all pods"
                    } else if is_same_namespace {
                        "and Istio would take the older one"
                    } else {
                        "and in Istio the namespace of the client would decide"
                    };
                    Code::Conflict.because(format!("{before}, which differs in {what}, {why}; make one of the two"))
                }
                Some(what) => Code::Merged.because(format!(
                    "{before}, which differs in {what}: that makes no difference here, as neither leads to TLS; make one of the two"
                )),
                None if policies.is_some() => {
                    Code::Merged.because(format!("{before}, with the same trafficPolicy; make one of the two"))
                }
                None => {
                    let istio = if is_same_namespace { "as in Istio, " } else { "" };
                    Code::Merged.because(format!(
                        "{before}: {istio}the subsets of both are in force, and the one trafficPolicy; make one of the two"
                    ))
                }
            };
            self.reports.at(&rule.host, message);
            if first.traffic_policy.is_none() && rule.traffic_policy.is_some() {
                (first, of_first) = (rule, namespace);
            }
        }
    }

    fn check_subsets(&mut self, host: &HostPattern, destinations: &Destinations<'_>) {
        let mut known: HashMap<&str, (&Subset, Namespace<'_>)> = HashMap::default();
        for (subset, namespace) in destinations.subsets() {
            let name = &subset.name;
            let Some(&(first, of_first)) = known.get(name.value.as_str()) else {
                known.insert(&name.value, (subset, namespace));
                continue;
            };
            let before = format!("subset {} of {host} is already defined at {}", name.value, first.name.location);
            let message = match difference_of_subsets((first, of_first), (subset, namespace)) {
                Some(difference) => {
                    Code::Conflict.because(format!("{before}, which differs in {difference}; make one of the two"))
                }
                None => Code::Merged.because(format!("{before}, in the same way; remove one of them")),
            };
            self.reports.at(name, message);
        }
    }
}

/// What the other says otherwise, or in other words: what comes of those depends on what is said of the host.
fn difference_of_subsets(
    (first, of_first): (&Subset, Namespace<'_>),
    (other, of_other): (&Subset, Namespace<'_>),
) -> Option<String> {
    if first.labels != other.labels {
        return Some("labels".to_owned());
    }
    match (&first.traffic_policy, &other.traffic_policy) {
        (Some(first), Some(other)) => difference((first, of_first), (other, of_other)).or_else(|| {
            let is_same = settings_of_ports(first).keys().eq(settings_of_ports(other).keys());
            (!is_same).then(|| "portLevelSettings".to_owned())
        }),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => Some("trafficPolicy".to_owned()),
    }
}

/// What comes of the other otherwise, for whatever port, where nothing else is said.
fn difference((first, of_first): Said<'_>, (other, of_other): Said<'_>) -> Option<String> {
    let [of_ports, other_of_ports] = [first, other].map(settings_of_ports);
    let differing = |one: Option<&PortPolicy>, two: Option<&PortPolicy>| {
        Settings::of(first, one, of_first).difference(&Settings::of(other, two, of_other))
    };
    let named: BTreeSet<_> = of_ports.keys().chain(other_of_ports.keys()).collect();
    let of_port = |port: &NonZeroU16| {
        let what = differing(of_ports.get(port).copied(), other_of_ports.get(port).copied())?;
        Some(format!("{what} for port {port}"))
    };
    differing(None, None).map(str::to_owned).or_else(|| named.into_iter().find_map(of_port))
}

fn settings_of_ports(policy: &TrafficPolicy) -> BTreeMap<NonZeroU16, &PortPolicy> {
    policy.port_level_settings.iter().map(|settings| (settings.port.number.value, settings)).collect()
}

impl Settings<'_> {
    /// What is said otherwise of the same port.
    fn difference(&self, other: &Self) -> Option<&'static str> {
        let Self { tls, disabled, pool, outlier_detection, balancer, tunnel, annotations: _ } = self;
        let is_same_tls = match (tls, &other.tls) {
            (Some(one), Some(other)) => one.is_like(other),
            (one, other) => one.is_none() && other.is_none(),
        };
        // One that says nothing takes away what is said of the host.
        let simple = |balancer: Option<&LoadBalancer>| balancer.map(|it| it.simple.as_deref().copied());
        [
            ("tls", is_same_tls && disabled.is_some() == other.disabled.is_some()),
            ("connectionPool", *pool == other.pool),
            ("outlierDetection", *outlier_detection == other.outlier_detection),
            ("loadBalancer", simple(*balancer) == simple(other.balancer)),
            ("tunnel", *tunnel == other.tunnel),
        ]
        .into_iter()
        .find_map(|(what, is_same)| (!is_same).then_some(what))
    }
}

impl Asked<'_> {
    /// Whether the TLS is the same, be it written somewhere else.
    fn is_like(&self, other: &Self) -> bool {
        let (AskedBy::Rule(_, one), AskedBy::Rule(_, two)) = (self.by, other.by) else { return false };
        let Origination { sni, subject_alt_names, insecure_skip_verify, ca_certificates, ca_crl, client, credential } =
            one;
        let path = |file: &Located<PathBuf>| file.location.resolve(&file.value);
        let paths = |client: &ClientIdentity| (path(&client.certificate), path(&client.key));
        let secret = |credential: &Credential| (credential.name.value.clone(), credential.is_mutual);
        sni.as_deref() == two.sni.as_deref()
            && *subject_alt_names == two.subject_alt_names
            && insecure_skip_verify.is_some() == two.insecure_skip_verify.is_some()
            && ca_certificates.as_ref().map(path) == two.ca_certificates.as_ref().map(path)
            && ca_crl.as_ref().map(path) == two.ca_crl.as_ref().map(path)
            && client.as_ref().map(paths) == two.client.as_ref().map(paths)
            && credential.as_ref().map(secret) == two.credential.as_ref().map(secret)
            // Which is where the Secret is.
            && (credential.is_none() || self.namespace == other.namespace)
    }
}
