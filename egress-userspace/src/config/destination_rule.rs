//! Istio's `DestinationRule`: how the ports of a host are spoken to.

use std::{collections::BTreeMap, ffi::OsStr, net::IpAddr, num::NonZeroU16, path::PathBuf};

use rustls_pki_types::ServerName;

use super::{
    Code, Errors, HostName, HostPattern, Located, Message,
    annotations::Annotations,
    decode::{Decode, Text, choose, shape},
    node::Node,
    service_entry::check_unique,
    traffic_policy::{self, TrafficPolicy},
};

/// What Istio has in the place of a file of authorities for the system's.
const SYSTEM_ROOTS: &str = "system";

/// A `DestinationRule`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationRule {
    /// The host it is about.
    pub host: Located<HostPattern>,
    /// What holds for the host.
    pub traffic_policy: Option<TrafficPolicy>,
    /// Parts of the host.
    pub subsets: Vec<Subset>,
    /// In which namespaces it is in force.
    pub export_to: Option<Located<Vec<String>>>,
    /// For which workloads it is in force.
    pub workload_selector: Option<Located<WorkloadSelector>>,
    /// Our own.
    pub annotations: Annotations,
}

shape! {
    /// The `spec` of a `DestinationRule`.
    pub struct Spec {
        /// The host it is about.
        "host" => host: Located<HostPattern>,
        /// What holds for the host.
        "trafficPolicy" => traffic_policy: Option<TrafficPolicy>,
        /// Parts of the host.
        "subsets" => subsets: Vec<Subset>,
        /// In which namespaces it is in force.
        "exportTo" => export_to: Option<Located<Vec<String>>>,
        /// For which workloads it is in force.
        "workloadSelector" => workload_selector: Option<Located<WorkloadSelector>>,
    }
    refused []
}

shape! {
    /// A part of a host.
    pub struct Subset {
        /// The name to refer to it.
        "name" => name: Located<String>,
        /// The labels that its endpoints have.
        "labels" => labels: BTreeMap<String, String>,
        /// What holds for it rather than for the host.
        "trafficPolicy" => traffic_policy: Option<TrafficPolicy>,
    }
    refused []
}

shape! {
    /// `workloadSelector`, which a `ServiceEntry` has otherwise.
    pub struct WorkloadSelector {
        /// The labels that pods have.
        "matchLabels" => match_labels: BTreeMap<String, String>,
    }
    refused []
}

shape! {
    /// The port that applications connect to.
    pub struct PortSelector {
        /// Its number.
        "number" => number: Located<NonZeroU16>,
    }
    refused []
}

/// What a `tls` block asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tls {
    /// No TLS.
    Disable,
    /// `SIMPLE` or `MUTUAL`.
    Originate(Box<Origination>),
}

/// How TLS is originated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origination {
    /// The name to ask for, if it is not the host.
    pub sni: Option<Located<HostName>>,
    /// The names of which the certificate must have one, if they are not implied.
    pub subject_alt_names: Vec<ServerName<'static>>,
    /// Where the user has turned verification off.
    pub insecure_skip_verify: Option<Located<bool>>,
    /// The file of the certificate authorities to trust, if they are not the system's.
    pub ca_certificates: Option<Located<PathBuf>>,
    /// The file of what these authorities have revoked, if that is to be looked at.
    pub ca_crl: Option<Located<PathBuf>>,
    /// Who we are, for `MUTUAL`.
    pub client: Option<ClientIdentity>,
    /// The `Secret` that has what `ca_certificates` and `client` would name files for.
    pub credential: Option<Credential>,
}

/// The `Secret` of a `credentialName`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// Its name.
    pub name: Located<String>,
    /// Whether it is to have a client certificate: for `MUTUAL`.
    pub is_mutual: bool,
}

/// The files of a client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientIdentity {
    /// The certificate chain.
    pub certificate: Located<PathBuf>,
    /// The private key.
    pub key: Located<PathBuf>,
}

shape! {
    /// A `tls` block as it is written.
    pub struct TlsBlock {
        /// What is asked for.
        "mode" => mode: Located<Mode>,
        /// For `MUTUAL`.
        "clientCertificate" => client_certificate: Option<Located<PathBuf>>,
        /// For `MUTUAL`.
        "privateKey" => private_key: Option<Located<PathBuf>>,
        /// Whom to trust.
        "caCertificates" => ca_certificates: Option<Located<PathBuf>>,
        /// The `Secret` that has all of them.
        "credentialName" => credential_name: Option<Located<String>>,
        /// What they have revoked.
        "caCrl" => ca_crl: Option<Located<PathBuf>>,
        /// The name to ask for.
        "sni" => sni: Option<Located<HostName>>,
        /// The names to verify.
        "subjectAltNames" => subject_alt_names: Vec<PeerName>,
        /// Whether to verify nothing.
        "insecureSkipVerify" => insecure_skip_verify: Option<Located<bool>>,
    }
    refused []
}

/// The `mode` of a `tls` block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// No TLS.
    Disable,
    /// TLS that verifies the server.
    Simple,
    /// TLS that shows a client certificate as well.
    Mutual,
}

impl Text for Mode {
    fn parse(text: &str) -> Result<Self, Message> {
        choose(
            text,
            &[("DISABLE", Self::Disable), ("SIMPLE", Self::Simple), ("MUTUAL", Self::Mutual)],
            &[("ISTIO_MUTUAL", "there is no mesh identity; use MUTUAL with a certificate, or SIMPLE")],
        )
    }
}

/// One of `subjectAltNames`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerName(ServerName<'static>);

impl PeerName {
    /// As TLS wants it.
    pub fn into_server_name(self) -> ServerName<'static> {
        self.0
    }
}

impl Text for PeerName {
    fn parse(text: &str) -> Result<Self, Message> {
        if text.contains("://") {
            return Err(Code::Unsupported.because(format!(
                "{text:?} is a URI, which egress does not verify; give a DNS name or an IP address"
            )));
        }
        if let Some(parent) = text.strip_prefix("*.") {
            return Err(Code::Unsupported.because(format!(
                "Istio holds {text} against the names of a certificate to the letter, egress does not implement that: it looks for a \
                 host that the certificate is valid for; give one, such as www.{parent}"
            )));
        }
        match text.parse::<IpAddr>() {
            Ok(address) => Ok(Self(ServerName::IpAddress(address.into()))),
            Err(_) => HostName::parse(text).map(|name| Self(name.to_server_name())),
        }
    }
}

impl Decode for Tls {
    fn decode(node: &Node, path: &str, errors: &mut Errors) -> Option<Self> {
        let block = TlsBlock::decode(node, path, errors)?;
        check_verification(&block, errors);
        check_credential(&block, errors);
        let client = client_identity(&block, errors)?;
        if block.mode.value == Mode::Disable {
            return Some(Self::Disable);
        }
        Some(Self::Originate(Box::new(Origination {
            sni: block.sni,
            subject_alt_names: block.subject_alt_names.into_iter().map(PeerName::into_server_name).collect(),
            insecure_skip_verify: block.insecure_skip_verify.filter(|skip| skip.value),
            ca_certificates: block.ca_certificates.filter(|file| file.value.as_os_str() != OsStr::new(SYSTEM_ROOTS)),
            ca_crl: block.ca_crl,
            client,
            credential: block
                .credential_name
                .map(|name| Credential { name, is_mutual: block.mode.value == Mode::Mutual }),
        })))
    }
}

/// Who wants nothing verified cannot say against what.
fn check_verification(block: &TlsBlock, errors: &mut Errors) {
    let Some(skip) = block.insecure_skip_verify.as_ref().filter(|skip| skip.value) else { return };
    let contradicted = [
        ("caCertificates", block.ca_certificates.is_some()),
        ("caCrl", block.ca_crl.is_some()),
        ("subjectAltNames", !block.subject_alt_names.is_empty()),
    ];
    for (field, _) in contradicted.into_iter().filter(|(_, is_set)| *is_set) {
        let text = format!("this verifies nothing, yet {field} says against what to verify; remove one of them");
        errors.at(skip, Code::Contradiction.because(text));
    }
}

/// A `Secret` stands in the place of files.
fn check_credential(block: &TlsBlock, errors: &mut Errors) {
    let Some(name) = &block.credential_name else { return };
    if block.mode.value == Mode::Disable {
        errors.at(
            name,
            Code::Contradiction.because("mode DISABLE needs no credential; use SIMPLE or MUTUAL, or remove it"),
        );
    }
    let files = [&block.ca_certificates, &block.client_certificate, &block.private_key];
    for file in files.into_iter().flatten() {
        errors.at(file, Code::Contradiction.because("credentialName says where this is; remove one of them"));
    }
}

/// The client certificate that the mode asks for, and none that it does not.
fn client_identity(block: &TlsBlock, errors: &mut Errors) -> Option<Option<ClientIdentity>> {
    match (block.mode.value, &block.client_certificate, &block.private_key) {
        (Mode::Mutual, Some(certificate), Some(key)) => {
            Some(Some(ClientIdentity { certificate: certificate.clone(), key: key.clone() }))
        }
        (Mode::Mutual, None, None) if block.credential_name.is_some() => Some(None),
        (Mode::Mutual, certificate, key) => {
            let absent = [("clientCertificate", certificate.is_none()), ("privateKey", key.is_none())];
            for (field, _) in absent.into_iter().filter(|(_, is_absent)| *is_absent) {
                let text = format!("MUTUAL needs {field}; add it, or use SIMPLE");
                errors.at(&block.mode, Code::MissingField.because(text));
            }
            None
        }
        (Mode::Disable | Mode::Simple, None, None) => Some(None),
        (Mode::Disable | Mode::Simple, certificate, key) => {
            for file in certificate.iter().chain(key) {
                errors.at(
                    file,
                    Code::Contradiction
                        .because("a client certificate is for mode MUTUAL; set that, or remove this field"),
                );
            }
            None
        }
    }
}

/// Decodes `spec` and checks what its fields say about each other.
pub(super) fn decode(spec: &Node, annotations: Annotations, errors: &mut Errors) -> Option<DestinationRule> {
    let Spec { host, traffic_policy, subsets, export_to, workload_selector } = Spec::decode(spec, "spec", errors)?;
    check_unique(subsets.iter().map(|subset| &subset.name), errors);
    let of_subsets = subsets.iter().filter_map(|subset| subset.traffic_policy.as_ref());
    for policy in traffic_policy.iter().chain(of_subsets) {
        traffic_policy::check(policy, errors);
        if !annotations.requirements.pins.is_empty() {
            check_pins(policy, errors);
        }
    }
    Some(DestinationRule { host, traffic_policy, subsets, export_to, workload_selector, annotations })
}

/// What is not verified has no chain in which a pinned key could be.
fn check_pins(policy: &TrafficPolicy, errors: &mut Errors) {
    let blocks = policy.port_level_settings.iter().filter_map(|settings| settings.tls.as_ref());
    for tls in blocks.chain(&policy.tls) {
        if let Tls::Originate(origination) = &tls.value
            && let Some(skip) = &origination.insecure_skip_verify
        {
            let text = "this verifies nothing, yet the annotation egress.dev/pins pins keys of the verified chain; remove one \
                        of them (a certificate that vouches for itself can be named in caCertificates)";
            errors.at(skip, Code::Contradiction.because(text));
        }
    }
}
