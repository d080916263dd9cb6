//! Ports of hosts that several `ServiceEntry`s have.
//!
//! Istio takes what the oldest of them says, and files do not tell which that is. So the first counts where it makes no difference, and
//! else none does.

use std::{collections::BTreeSet, num::NonZeroU16, ptr};

use foldhash::{HashMap, HashSet};

use super::{Compiler, check::wildcard_rules, index::Service, is_http};
use crate::config::{
    Code, HostPattern,
    service_entry::{Protocol, ServiceEntry},
};

/// What differs between two entries, whatever the host and port.
type Compared = HashMap<(*const ServiceEntry, *const ServiceEntry), Option<&'static str>>;

impl Compiler<'_, '_> {
    /// Refuses those that differ where TLS is originated, or would be by another's word.
    pub(super) fn check_twice(&mut self) {
        if self.index.twice.is_empty() {
            return;
        }
        let own = self.rules.iter().map(|rule| (&rule.host, rule.port));
        let upstreams = self.rules.iter().flat_map(|rule| &rule.upstreams);
        let concerned: HashSet<_> = own.chain(upstreams.map(|upstream| (&upstream.host, upstream.port))).collect();
        let wildcards = wildcard_rules(&self.rules);
        let mut compared = Compared::default();
        for &(first, other) in &self.index.twice {
            let before = defined_before(first);
            let is_named_otherwise = first.port.name.value != other.port.name.value;
            let message = if is_named_otherwise && self.index.sections.contains(first.host) {
                Code::Conflict.because(format!(
                    "{before}, with another name, while a BackendTLSPolicy means a port of the host by its name; make one of the two"
                ))
            } else if let Some(difference) = difference(first, other, &mut compared) {
                let before = format!("{before}, with {difference}");
                let port = first.port.number.value;
                // Of what is no HTTP no rule says what would be if it were.
                let may_be_concerned = || {
                    let mut wider = wildcards.covering(first.host).flat_map(|(_, rules)| rules);
                    protocol(first) != protocol(other)
                        && [first, other].into_iter().any(is_http)
                        && (self.is_asked_for(first.host, port) || wider.any(|rule| rule.port == port.get()))
                };
                if !concerned.contains(&(first.host, port.get())) && !may_be_concerned() {
                    Code::Merged.because(format!(
                        "{before}, which makes no difference here, as neither leads to TLS; make one of the two"
                    ))
                } else {
                    Code::Conflict.because(format!("{before}, and Istio would take the older one; make one of the two"))
                }
            } else {
                Code::Merged.because(format!("{before}, in the same way; remove one of them"))
            };
            self.reports.at(&other.port.number, message);
        }
    }
}

impl<'d> Compiler<'_, 'd> {
    /// Whether a port of a host would have TLS if it were one for HTTP.
    fn is_asked_for(&self, host: &'d HostPattern, port: NonZeroU16) -> bool {
        let mut routed = self.index.virtual_services.covering(host).take(1);
        self.index.settings(host, port, None).tls.is_some()
            || self.index.policy(host, port).is_some()
            || routed.any(|(_, several)| self.leads_to_tls(&several[0]))
    }
}

fn defined_before(Service { host, port, .. }: Service<'_>) -> String {
    format!("port {} of {host} is already defined at {}", port.number.value, port.number.location)
}

fn protocol(service: Service<'_>) -> Option<Protocol> {
    service.port.protocol.as_ref().map(|protocol| protocol.value)
}

/// What the other says otherwise, if that can make a difference.
fn difference(first: Service<'_>, other: Service<'_>, compared: &mut Compared) -> Option<&'static str> {
    if protocol(first) != protocol(other) {
        return Some("another protocol");
    }
    if first.target_port() != other.target_port() {
        return Some("another targetPort");
    }
    let entries = (ptr::from_ref(first.entry), ptr::from_ref(other.entry));
    let of_entries = *compared.entry(entries).or_insert_with(|| difference_of_entries(first.entry, other.entry));
    of_entries.or_else(|| (!ports(first).eq(ports(other))).then_some("other endpoints"))
}

/// Those of its endpoints.
fn ports(service: Service<'_>) -> impl Iterator<Item = NonZeroU16> {
    service.entry.endpoints.iter().map(move |endpoint| service.port_at(endpoint))
}

/// The same for whatever port.
fn difference_of_entries(first: &ServiceEntry, other: &ServiceEntry) -> Option<&'static str> {
    if first.resolution() != other.resolution() {
        return Some("another resolution");
    }
    let addresses = |entry: &ServiceEntry| entry.addresses.iter().map(|range| range.value).collect::<BTreeSet<_>>();
    // No more is looked at than the other has, so that many that differ from a long one cost what they are long themselves.
    if first.addresses.len() != other.addresses.len() || addresses(first) != addresses(other) {
        return Some("other addresses");
    }
    let [names, other_names] = [first, other].map(|entry| entry.subject_alt_names.iter().map(|name| &name.value));
    if !names.eq(other_names) {
        return Some("other subjectAltNames");
    }
    let [endpoints, other_endpoints] = [first, other].map(|entry| {
        entry.endpoints.iter().map(|endpoint| (&endpoint.address.value, endpoint.weight, &endpoint.labels))
    });
    (!endpoints.eq(other_endpoints)).then_some("other endpoints")
}
