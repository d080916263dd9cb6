//! What there is to say of documents, each by itself.

use crate::config::{
    Code, Diagnostic, Document, Located, Message, Resource, Severity,
    destination_rule::{DestinationRule, Tls},
    service_entry::ServiceEntry,
    virtual_service::VirtualService,
};

/// What there is to say.
#[derive(Default)]
pub(super) struct Reports {
    pub(super) found: Vec<Diagnostic>,
    pub(super) errors: usize,
}

impl Reports {
    pub(super) fn at<T>(&mut self, place: &Located<T>, message: impl Into<Message>) {
        let found = Diagnostic::new(place.location.clone(), &place.path, message);
        self.errors += usize::from(found.severity() == Severity::Error);
        self.found.push(found);
    }
}

/// Names the fields that are understood and change nothing.
pub(super) fn report_no_effect(document: &Document, reports: &mut Reports) {
    const KUBERNETES: &str = "is in force in Kubernetes alone: here this holds for all applications";
    let mut visible = |export_to: &Option<Located<Vec<String>>>| {
        if let Some(place) = export_to.as_ref().filter(|names| names.iter().any(|name| name != "*")) {
            reports.at(place, Code::NoEffect.because(format!("exportTo {KUBERNETES}")));
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
                reports.at(selector, Code::NoEffect.because(format!("workloadSelector {KUBERNETES}")));
            } else {
                report_credentials(rule, reports);
            }
        }
        Resource::VirtualService(VirtualService::Mesh(service)) => {
            visible(&service.export_to);
        }
        Resource::VirtualService(_) | Resource::BackendTlsPolicy(_) | Resource::Secret(_) | Resource::ConfigMap(_) => {}
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
