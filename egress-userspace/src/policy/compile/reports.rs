//! What there is to say of documents, each by itself.

use std::collections::BTreeMap;

use super::{check::disables, index::Index, namespaces::Namespace};
use crate::config::{
    Code, Diagnostic, Document, Foreign, HostPattern, IfUsed, Located, Message, Resource, Severity, Unread,
    destination_rule::{DestinationRule, Tls},
    service_entry::{ServiceEntry, WorkloadSelector},
    virtual_service::{RetryReason, Route, VirtualService},
};

/// What there is to say.
#[derive(Default)]
pub(super) struct Reports {
    pub(super) found: Vec<Diagnostic>,
    pub(super) errors: usize,
}

impl Reports {
    pub(super) fn at<T>(&mut self, place: &Located<T>, message: impl Into<Message>) {
        self.add(Diagnostic::new(place.location.clone(), &place.path, message));
    }

    /// A value that is used, unless egress does not have it.
    pub(super) fn used<'v, T>(&mut self, value: &'v Located<IfUsed<T>>) -> Option<&'v T> {
        value.0.as_ref().map_err(|message| self.at(value, message.clone())).ok()
    }

    fn add(&mut self, found: Diagnostic) {
        self.errors += usize::from(found.severity() == Severity::Error);
        self.found.push(found);
    }
}

/// What selects pods: the namespace that it does so in, which labels they have, and where that is said.
pub(super) type Selectors<'d> = Vec<(Option<&'d str>, &'d Located<WorkloadSelector>)>;

/// Those of `ServiceEntry`s.
pub(super) fn selectors<'d>(documents: &[&'d Document]) -> Selectors<'d> {
    let selector = |document: &&'d Document| match &document.resource {
        Resource::ServiceEntry(entry) => {
            Some((document.metadata.namespace.as_deref(), entry.workload_selector.as_ref()?))
        }
        _ => None,
    };
    documents.iter().filter_map(selector).collect()
}

fn report_foreign<'d>(
    document: &'d Document,
    foreign: &'d Foreign,
    selectors: &Selectors<'d>,
    index: &Index<'d>,
    reports: &mut Reports,
) {
    let Foreign { kind, workload, unread } = foreign;
    let place = kind.with(());
    let namespace = Namespace::of(&document.metadata);
    let is_ours = |host: &'d HostPattern| index.meant(host, namespace).any(|host| index.has_services_of(host));
    match unread {
        Some(Unread { hosts, errors }) if hosts.iter().any(is_ours) => {
            errors.iter().cloned().for_each(|error| reports.add(error));
            return;
        }
        Some(Unread { hosts, .. }) => {
            let text = format!(
                "this has no effect here: {} is taken for a service of the cluster, as no ServiceEntry has it",
                hosts[0]
            );
            reports.at(&place, Code::NoEffect.because(text));
            return;
        }
        None => {}
    }
    let selects = |labels: &BTreeMap<String, String>, selector: &WorkloadSelector| {
        selector.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
    };
    let selector = workload.as_ref().and_then(|labels| {
        let namespace = document.metadata.namespace.as_deref();
        // One that is not written can be any, such as `default`.
        let is_same = |other: Option<&str>| other.zip(namespace).is_none_or(|(one, other)| one == other);
        selectors.iter().find(|(other, selector)| is_same(*other) && selects(labels, selector))
    });
    match selector {
        Some((_, selector)) => {
            let text = format!(
                "kind {} is not supported by egress yet, and the ServiceEntry at {} selects this one; list it among the endpoints there",
                kind.value, selector.location,
            );
            reports.at(&place, Code::UnknownKind.because(text));
        }
        None => {
            let text = format!("kind {} has no effect here: it is for Istio's own proxies", kind.value);
            reports.at(&place, Code::NoEffect.because(text));
        }
    }
}

/// Names what is understood and changes nothing.
pub(super) fn report_no_effect<'d>(
    document: &'d Document,
    selectors: &Selectors<'d>,
    index: &Index<'d>,
    reports: &mut Reports,
) {
    let limited = |what: &str| {
        let is_disabled = match &document.resource {
            Resource::ServiceEntry(entry) => entry.hosts.iter().any(|host| index.is_disabled_for(&host.value)),
            Resource::DestinationRule(rule) => disables(rule),
            _ => false,
        };
        let but = but_exceptions(is_disabled);
        Code::NoEffect
            .because(format!("{what} is in force in Kubernetes alone: here this holds for all applications{but}"))
    };
    let mut visible = |export_to: &Option<Located<Vec<String>>>| {
        if let Some(place) = restricted(export_to) {
            reports.at(place, limited("exportTo"));
        }
    };
    match &document.resource {
        Resource::ServiceEntry(entry) => {
            visible(&entry.export_to);
            report_entry(entry, reports);
        }
        Resource::DestinationRule(rule) => {
            visible(&rule.export_to);
            if let Some(selector) = &rule.workload_selector {
                reports.at(selector, limited("workloadSelector"));
            } else {
                report_credentials(rule, reports);
            }
        }
        Resource::VirtualService(VirtualService::Mesh(service)) => {
            visible(&service.export_to);
            service.http.iter().for_each(|route| report_route(route, reports));
            if let Some(first) = service.tls.first() {
                let text = "these routes have no effect here: TLS of applications goes to where it was going";
                reports.at(first, Code::NoEffect.because(text));
            }
        }
        Resource::Foreign(foreign) => report_foreign(document, foreign, selectors, index, reports),
        Resource::VirtualService(_) | Resource::BackendTlsPolicy(_) | Resource::Secret(_) | Resource::ConfigMap(_) => {}
    }
}

/// What is not for all pods by what is said for some of them.
pub(super) fn but_exceptions(is_disabled: bool) -> &'static str {
    if is_disabled { ", but mode DISABLE makes no exception by it to the TLS of a wildcard" } else { "" }
}

/// An `exportTo` that does not say that what has it is in force in all namespaces.
pub(super) fn restricted(export_to: &Option<Located<Vec<String>>>) -> Option<&Located<Vec<String>>> {
    export_to.as_ref().filter(|names| names.iter().any(|name| name != "*"))
}

fn report_route(route: &Route, reports: &mut Reports) {
    for place in route.matches.iter().filter_map(|matched| matched.stat_prefix.as_ref()) {
        let text = "statPrefix changes nothing, as egress counts by host and not by match";
        reports.at(place, Code::NoEffect.because(text));
    }
    let Some(retries) = &route.retries else { return };
    for reason in retries.retry_on.iter().flat_map(|on| &on.0) {
        if let RetryReason::Never(text) = reason {
            reports.at(retries, Code::NoEffect.because(*text));
        }
    }
}

fn report_entry(entry: &ServiceEntry, reports: &mut Reports) {
    if let Some(selector) = &entry.workload_selector {
        let text = "workloadSelector is in force in Kubernetes alone: here the hosts are looked up by name";
        reports.at(selector, Code::NoEffect.because(text));
    }
    for endpoint in &entry.endpoints {
        if let Some(place) = &endpoint.locality {
            let text = "locality changes nothing, as all endpoints are equally near; remove it, or use weights";
            reports.at(place, Code::NoEffect.because(text));
        }
        if let Some(place) = &endpoint.service_account {
            let text = "serviceAccount changes nothing outside of a mesh; name subjectAltNames to verify who answers";
            reports.at(place, Code::NoEffect.because(text));
        }
    }
}

/// Istio's sidecars take no notice of a `credentialName` in a rule without `workloadSelector`.
fn report_credentials(rule: &DestinationRule, reports: &mut Reports) {
    let of_subsets = rule.subsets.iter().filter_map(|subset| subset.traffic_policy.as_ref());
    for policy in rule.traffic_policy.iter().chain(of_subsets) {
        let of_ports = policy.port_level_settings.iter().filter_map(|settings| settings.tls.as_ref());
        for tls in of_ports.chain(&policy.tls) {
            if let Tls::Originate(origination) = &tls.value
                && let Some(credential) = &origination.credential
            {
                let text = "Istio's sidecars ignore credentialName in a DestinationRule without workloadSelector, egress does \
                            not; to have both do the same, add a workloadSelector";
                reports.at(&credential.name, Code::Credential.because(text));
            }
        }
    }
}
