//! All that `DestinationRule`s say of one port of a host.

use std::num::NonZeroU16;

use super::{check::originates, namespaces::Namespace};
use crate::config::{
    Located,
    annotations::Annotations,
    backend_tls_policy::BackendTlsPolicy,
    destination_rule::{DestinationRule, Origination, Subset, Tls},
    traffic_policy::{ConnectionPool, LoadBalancer, OutlierDetection, PortPolicy, TrafficPolicy, Tunnel},
};

/// The rules for a host: the first with a `trafficPolicy`, and the subsets of all.
pub(super) struct Destinations<'d> {
    pub(super) rules: Vec<(&'d DestinationRule, Namespace<'d>)>,
}

/// All that is said of one port of a host, or of a subset of it.
#[derive(Clone, Copy, Default)]
pub(super) struct Settings<'d> {
    pub(super) tls: Option<Asked<'d>>,
    /// Where it is said that there is to be none.
    pub(super) disabled: Option<&'d Located<Tls>>,
    pub(super) pool: Option<&'d ConnectionPool>,
    pub(super) outlier_detection: Option<&'d OutlierDetection>,
    pub(super) balancer: Option<&'d LoadBalancer>,
    pub(super) tunnel: Option<&'d Tunnel>,
    pub(super) annotations: Option<&'d Annotations>,
}

/// Who asks for TLS on a port.
#[derive(Clone, Copy)]
pub(super) struct Asked<'d> {
    pub(super) by: AskedBy<'d>,
    pub(super) namespace: Namespace<'d>,
}

#[derive(Clone, Copy)]
pub(super) enum AskedBy<'d> {
    Rule(&'d Located<Tls>, &'d Origination),
    Policy(&'d BackendTlsPolicy),
}

impl Asked<'_> {
    /// The place to name.
    pub(super) fn place(&self) -> Located<()> {
        match self.by {
            AskedBy::Rule(tls, _) => tls.with(()),
            AskedBy::Policy(policy) => policy.validation.with(()),
        }
    }
}

impl<'d> Destinations<'d> {
    /// The rule whose `trafficPolicy` counts.
    pub(super) fn main(&self) -> Option<(&'d DestinationRule, Namespace<'d>)> {
        self.rules.iter().find(|(rule, _)| rule.traffic_policy.is_some()).or(self.rules.first()).copied()
    }

    /// What they say of a port, and of a subset of it.
    pub(super) fn settings(&self, port: NonZeroU16, subset: Option<&Subset>) -> Settings<'d> {
        let mut settings = Settings::default();
        if let Some((rule, namespace)) = self.main() {
            settings.annotations = Some(&rule.annotations);
            settings.apply_for(port, rule.traffic_policy.as_ref(), namespace);
            // It can be another rule's, which can be in another namespace.
            if let Some((subset, namespace)) = subset.and_then(|subset| self.subset(&subset.name.value)) {
                settings.apply_for(port, subset.traffic_policy.as_ref(), namespace);
            }
        }
        settings
    }

    /// Where any of them names a port to ask for TLS on it. Of those that are taken for one it can be another than the first.
    pub(super) fn tls_of_port(&self, port: NonZeroU16) -> Option<&'d Located<Tls>> {
        let policies = self.rules.iter().filter_map(|(rule, _)| rule.traffic_policy.as_ref());
        let settings = policies.flat_map(|policy| &policy.port_level_settings);
        let of_port = settings.filter(|settings| settings.port.number.value == port);
        of_port.filter_map(|settings| settings.tls.as_ref()).find(|tls| originates(tls))
    }

    /// The subsets of all, and the namespaces of their rules.
    pub(super) fn subsets(&self) -> impl Iterator<Item = (&'d Subset, Namespace<'d>)> {
        self.rules.iter().flat_map(|(rule, namespace)| rule.subsets.iter().map(|subset| (subset, *namespace)))
    }

    /// The subset of a name, and the namespace of its rule.
    pub(super) fn subset(&self, name: &str) -> Option<(&'d Subset, Namespace<'d>)> {
        self.subsets().find(|(subset, _)| subset.name.value == name)
    }
}

impl<'d> Settings<'d> {
    /// What one policy says of a port, by its settings for it if it has any.
    pub(super) fn of(policy: &'d TrafficPolicy, of_port: Option<&'d PortPolicy>, namespace: Namespace<'d>) -> Self {
        let mut settings = Self::default();
        settings.apply(policy, of_port, namespace);
        settings
    }

    fn apply_for(&mut self, port: NonZeroU16, policy: Option<&'d TrafficPolicy>, namespace: Namespace<'d>) {
        let Some(policy) = policy else { return };
        let of_port = policy.port_level_settings.iter().find(|settings| settings.port.number.value == port);
        self.apply(policy, of_port, namespace);
    }

    /// What `policy` says counts from now on. As in Istio it replaces field by field, and its settings for a port replace
    /// all four of theirs, even by nothing.
    fn apply(&mut self, policy: &'d TrafficPolicy, of_port: Option<&'d PortPolicy>, namespace: Namespace<'d>) {
        let mut apply_tls = |tls: Option<&'d Located<Tls>>| {
            (self.tls, self.disabled) = match tls.map(|tls| (tls, &tls.value)) {
                Some((tls, Tls::Originate(origination))) => {
                    (Some(Asked { by: AskedBy::Rule(tls, origination), namespace }), None)
                }
                Some((tls, Tls::Disable)) => (None, Some(tls)),
                None => (None, None),
            };
        };
        if policy.tls.is_some() {
            apply_tls(policy.tls.as_ref());
        }
        self.pool = policy.connection_pool.as_ref().map(|pool| &pool.value).or(self.pool);
        self.outlier_detection = policy.outlier_detection.as_ref().map(|it| &it.value).or(self.outlier_detection);
        self.balancer = policy.load_balancer.as_ref().or(self.balancer);
        self.tunnel = policy.tunnel.as_ref().map(|tunnel| &tunnel.value).or(self.tunnel);
        if let Some(settings) = of_port {
            apply_tls(settings.tls.as_ref());
            self.pool = settings.connection_pool.as_ref().map(|pool| &pool.value);
            self.outlier_detection = settings.outlier_detection.as_ref().map(|it| &it.value);
            self.balancer = settings.load_balancer.as_ref();
        }
    }
}
