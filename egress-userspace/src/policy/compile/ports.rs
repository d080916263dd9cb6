//! Ports that get TLS, against what is mostly spoken there.

use std::num::NonZeroU16;

use foldhash::HashSet;

use super::{Compiler, HTTPS, check::led_to, index::Service, upstream::Shared};
use crate::{
    config::{Code, service_entry::Resolution},
    policy::{Rule, Targets, Upstream},
};

impl<'d> Compiler<'_, 'd> {
    /// Says what is mostly not meant of where its TLS goes.
    pub(super) fn check_same_port(&mut self, Service { host, port, entry, .. }: Service<'d>, upstream: &Shared) {
        let number = port.number.value.get();
        let is_same_port = match &upstream.targets {
            Targets::Endpoints(endpoints) => endpoints.iter().any(|endpoint| endpoint.port == number),
            Targets::Resolve(_) | Targets::Original => upstream.target_port == number,
        };
        // What can be wrong with 443 is that it is taken for HTTP, which is said.
        if is_same_port && port.number.value != HTTPS {
            let text = format!(
                "TLS is originated to port {number} itself, while servers mostly have it on 443; name its port as targetPort"
            );
            self.reports.at(&port.number, Code::SamePort.because(text));
        }
        if host.is_exact() && entry.resolution() == Resolution::None && entry.addresses.is_empty() {
            let text = format!(
                "with resolution NONE, Istio's default, requests for {host} go to whatever address the application has \
                 connected to; use DNS"
            );
            match &entry.resolution {
                Some(resolution) => self.reports.at(resolution, Code::ResolutionNone.because(text)),
                None => self.reports.at(&entry.hosts, Code::ResolutionNone.because(text)),
            }
        }
    }

    /// Port 443 is one for TLS if a `VirtualService` leads to it, and what applications send there themselves is none of our business:
    /// HTTPS is not intercepted. Any other that is said to be HTTP is one for both, as in Istio.
    pub(super) fn leave_tls_alone(&mut self) {
        let is_other = |rule: &Rule, to: &Upstream| (&to.host, to.port) != (&rule.host, rule.port);
        let hosts: HashSet<_> = self
            .rules
            .iter()
            .flat_map(|rule| led_to(rule).filter(|to| to.port == HTTPS.get() && is_other(rule, to)))
            .map(|to| to.host.clone())
            .collect();
        let is_itself = |rule: &Rule, to: &Upstream| to.host == rule.host && to.target_port == rule.port;
        let left_alone = self.rules.extract_if(.., |rule| {
            rule.port == HTTPS.get() && hosts.contains(&rule.host) && led_to(rule).any(|to| is_itself(rule, to))
        });
        for rule in left_alone {
            let Some(service) = self.index.services.get(&rule.host).and_then(|ports| ports.get(&HTTPS)) else {
                continue;
            };
            let text = format!(
                "port 443 of {} is left alone, as a VirtualService leads to it: what applications send there themselves must be TLS \
                 already; say so by protocol HTTPS",
                rule.host,
            );
            self.reports.at(&service.port.number, Code::AlreadyTls.because(text));
        }
    }

    /// Says what a port without a protocol is taken for, and one that is mostly for another, once for all hosts that have it. What a
    /// wildcard's TLS is not for is intercepted with the others all the same.
    pub(super) fn check_spoken(&mut self) {
        let rules = self.rules.iter().map(|rule| (&rule.host, rule.port));
        for (host, number) in rules.chain(self.exceptions.iter().map(|exception| (&exception.host, exception.port))) {
            let ports = self.index.services.get(host);
            let service = NonZeroU16::new(number).and_then(|number| ports?.get(&number));
            let Some(Service { port, .. }) = service else { continue };
            let message = if port.protocol.is_none() {
                Code::Questionable.because(format!(
                    "port {number} has no protocol and is taken for HTTP: anything else is refused there; say so by protocol HTTP, or by \
                     TCP or HTTPS if it is that"
                ))
            } else if number == HTTPS.get() {
                Code::ClearTextPort.because(
                    "port 443 is said to be HTTP: TLS that applications make there themselves is refused; use protocol HTTPS if they do",
                )
            } else {
                continue;
            };
            self.reports.at(&port.number, message);
        }
    }
}
