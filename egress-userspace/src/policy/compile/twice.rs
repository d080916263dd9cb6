//! Ports of hosts that several `ServiceEntry`s have.
//!
//! Istio takes what the oldest of them says, and files do not tell which that is. So the first counts where it makes no difference, and
//! else none does.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU16,
};

use foldhash::HashSet;

use super::{Compiler, Reports, index::Service, is_http};
use crate::config::{Code, service_entry::EndpointAddress};

/// A port of which two entries say different things.
pub(super) struct Twice<'d> {
    first: Service<'d>,
    other: Service<'d>,
    /// In what they differ.
    difference: &'static str,
}

/// What is left to be said when it is known what becomes of the port. The same thing twice is reported at once.
pub(super) fn compare<'d>(first: Service<'d>, other: Service<'d>, reports: &mut Reports) -> Option<Twice<'d>> {
    let difference = difference(first, other);
    if difference.is_none() {
        let text = format!("{}, in the same way; remove one of them", defined_before(first));
        reports.at(&other.port.number, Code::Merged.because(text));
    }
    difference.map(|difference| Twice { first, other, difference })
}

impl Compiler<'_, '_> {
    /// Refuses those that TLS is originated for, or would be by another's word.
    pub(super) fn check_twice(&mut self) {
        if self.index.twice.is_empty() {
            return;
        }
        let own = self.rules.iter().map(|rule| (&rule.host, rule.port));
        let upstreams = self.rules.iter().flat_map(|rule| &rule.upstreams);
        let concerned: HashSet<_> = own.chain(upstreams.map(|upstream| (&upstream.host, upstream.port))).collect();
        for &Twice { first, other, difference } in &self.index.twice {
            let protocol = |service: Service<'_>| service.port.protocol.as_ref().map(|protocol| protocol.value);
            let is_alike = protocol(first) == protocol(other) || ![first, other].into_iter().any(is_http);
            let before = format!("{}, with {difference}", defined_before(first));
            let message = if is_alike && !concerned.contains(&(first.host, first.port.number.value.get())) {
                Code::Merged.because(format!(
                    "{before}, which makes no difference here, as neither leads to TLS; make one of the two"
                ))
            } else {
                Code::Conflict.because(format!("{before}, and Istio would take the older one; make one of the two"))
            };
            self.reports.at(&other.port.number, message);
        }
    }
}

fn defined_before(Service { host, port, .. }: Service<'_>) -> String {
    format!("port {} of {host} is already defined at {}", port.number.value, port.number.location)
}

/// What the other says otherwise, if that can make a difference.
fn difference(first: Service<'_>, other: Service<'_>) -> Option<&'static str> {
    let protocol = |service: Service<'_>| service.port.protocol.as_ref().map(|protocol| protocol.value);
    let addresses =
        |service: Service<'_>| service.entry.addresses.iter().map(|range| range.value).collect::<BTreeSet<_>>();
    let (names, other_names) = (&first.entry.subject_alt_names, &other.entry.subject_alt_names);
    let differences = [
        ("another protocol", protocol(first) != protocol(other)),
        ("another targetPort", first.target_port() != other.target_port()),
        ("another resolution", first.entry.resolution() != other.entry.resolution()),
        ("other endpoints", !endpoints(first).eq(endpoints(other))),
        ("other addresses", addresses(first) != addresses(other)),
        ("other subjectAltNames", !names.iter().map(|name| &name.value).eq(other_names.iter().map(|name| &name.value))),
    ];
    differences.into_iter().find(|(_, differs)| *differs).map(|(what, _)| what)
}

fn endpoints<'d>(
    service: Service<'d>,
) -> impl Iterator<Item = (&'d EndpointAddress, NonZeroU16, Option<u32>, &'d BTreeMap<String, String>)> {
    let endpoints = service.entry.endpoints.iter();
    endpoints
        .map(move |endpoint| (&endpoint.address.value, service.port_at(endpoint), endpoint.weight, &endpoint.labels))
}
