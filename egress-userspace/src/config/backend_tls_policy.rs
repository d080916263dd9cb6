//! The Gateway API's `BackendTLSPolicy`: TLS to a host, and how it is verified.

use rustls_pki_types::ServerName;

use super::{
    Code, Errors, HostName, Located, Message,
    decode::{Decode, Text, choose, shape},
    destination_rule::PeerName,
    node::Node,
};

shape! {
    /// The `spec` of a `BackendTLSPolicy`.
    pub struct BackendTlsPolicy {
        /// The hosts that it is about.
        "targetRefs" => targets: Located<Vec<Located<TargetRef>>>,
        /// How they are verified.
        "validation" => validation: Located<Validation>,
    }
    refused ["options", "targetRef", "tls"]
}

shape! {
    /// One of `targetRefs`.
    pub struct TargetRef {
        /// The API group of the kind.
        "group" => group: Option<String>,
        /// `ServiceEntry`, `Hostname` or `Service`.
        "kind" => kind: Located<TargetKind>,
        /// The name of the resource, or the host.
        "name" => name: String,
        /// The name of the port that it is about; if absent, all of them.
        "sectionName" => section: Option<Located<String>>,
    }
    refused ["namespace"]
}

/// What a policy can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetKind {
    /// All hosts of a `ServiceEntry`.
    ServiceEntry,
    /// A host.
    Hostname,
    /// A host by the name of a service, which a `ServiceEntry` stands for here.
    Service,
}

impl Text for TargetKind {
    fn parse(text: &str) -> Result<Self, Message> {
        choose(
            text,
            &[("ServiceEntry", Self::ServiceEntry), ("Hostname", Self::Hostname), ("Service", Self::Service)],
            &[],
        )
    }
}

shape! {
    /// `validation`.
    pub struct Validation {
        /// The name to ask for, and to verify unless there are others.
        "hostname" => hostname: Located<HostName>,
        /// Whom to trust.
        "caCertificateRefs" => ca_certificates: Vec<Located<CaRef>>,
        /// Whom to trust otherwise.
        "wellKnownCACertificates" => well_known: Option<Located<WellKnown>>,
        /// The names of which the certificate must have one.
        "subjectAltNames" => subject_alt_names: Vec<AltName>,
    }
    refused []
}

shape! {
    /// One of `caCertificateRefs`.
    pub struct CaRef {
        /// The API group of the kind, which is empty.
        "group" => group: Option<String>,
        /// `ConfigMap`, or `Secret`.
        "kind" => kind: CaKind,
        /// Its name.
        "name" => name: String,
    }
    refused ["namespace"]
}

/// Where certificates can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaKind {
    /// In a `ConfigMap`.
    ConfigMap,
    /// In a `Secret`.
    Secret,
}

impl Text for CaKind {
    fn parse(text: &str) -> Result<Self, Message> {
        choose(text, &[("ConfigMap", Self::ConfigMap), ("Secret", Self::Secret)], &[])
    }
}

/// `wellKnownCACertificates`: the roots of the operating system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WellKnown;

impl Text for WellKnown {
    fn parse(text: &str) -> Result<Self, Message> {
        choose(text, &[("System", Self)], &[])
    }
}

/// One of `subjectAltNames`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AltName(pub ServerName<'static>);

impl Decode for AltName {
    fn decode(node: &Node, path: &str, errors: &mut Errors) -> Option<Self> {
        let name = AltNameFields::decode(node, path, errors)?;
        let Some(hostname) = name.hostname else {
            errors.push(node.location.clone(), path, Code::MissingField.because("there is no name; give hostname"));
            return None;
        };
        Some(Self(hostname.into_server_name()))
    }
}

shape! {
    /// One of `subjectAltNames` as it is written.
    pub struct AltNameFields {
        /// `Hostname`.
        "type" => kind: AltNameKind,
        /// The name.
        "hostname" => hostname: Option<PeerName>,
    }
    refused ["uri"]
}

/// `Hostname`; certificates of workloads have URIs, which egress does not verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AltNameKind;

impl Text for AltNameKind {
    fn parse(text: &str) -> Result<Self, Message> {
        choose(text, &[("Hostname", Self)], &[("URI", "certificates of the web have none; use Hostname")])
    }
}

/// Decodes `spec` and checks what its fields say about each other.
pub(super) fn decode(spec: &Node, errors: &mut Errors) -> Option<BackendTlsPolicy> {
    let policy = BackendTlsPolicy::decode(spec, "spec", errors)?;
    if policy.targets.is_empty() {
        errors.at(&policy.targets, "the list is empty; name what the policy is about");
    }
    for target in policy.targets.iter() {
        let wanted = if target.kind.value == TargetKind::Service { "" } else { "networking.istio.io" };
        let group = target.group.as_deref().unwrap_or("");
        if group != wanted {
            let message = format!("the kind is of another API group than {group:?}; use {wanted:?}");
            errors.at(&target.kind, message);
        }
    }
    let validation = &policy.validation;
    match (validation.ca_certificates.as_slice(), &validation.well_known) {
        ([], None) => errors.at(
            validation,
            Code::MissingField
                .because("it is not said whom to trust; add caCertificateRefs, or wellKnownCACertificates: System"),
        ),
        ([_, ..], Some(_)) => errors.at(
            validation,
            Code::Contradiction.because("caCertificateRefs and wellKnownCACertificates exclude each other; choose one"),
        ),
        _ => {}
    }
    Some(policy)
}
