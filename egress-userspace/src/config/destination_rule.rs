//! Istio's `DestinationRule`: how the ports of a host are spoken to.

use std::{net::IpAddr, num::NonZeroU16, path::PathBuf};

use rustls_pki_types::ServerName;

use super::{
    Errors, HostName, HostPattern, Located,
    annotations::{Annotations, Requirements},
    decode::{Decode, Text, choose, shape},
    node::Node,
    service_entry::check_unique,
};

shape! {
    /// The `spec` of a `DestinationRule`.
    pub struct DestinationRule {
        /// The host it is about.
        "host" => host: Located<HostPattern>,
        /// What holds for the host.
        "trafficPolicy" => traffic_policy: Option<TrafficPolicy>,
    }
    refused ["exportTo", "subsets", "workloadSelector"]
}

shape! {
    /// `spec.trafficPolicy`.
    pub struct TrafficPolicy {
        /// TLS for all ports that `port_level_settings` do not name.
        "tls" => tls: Option<Located<Tls>>,
        /// What holds for single ports instead.
        "portLevelSettings" => port_level_settings: Vec<PortPolicy>,
    }
    refused ["connectionPool", "loadBalancer", "outlierDetection", "proxyProtocol", "retryBudget", "tunnel"]
}

shape! {
    /// One of `spec.trafficPolicy.portLevelSettings`, which replaces all that is said for the host as a whole.
    pub struct PortPolicy {
        /// The port it is about.
        "port" => port: PortSelector,
        /// TLS for the port; if absent, none.
        "tls" => tls: Option<Located<Tls>>,
    }
    refused ["connectionPool", "loadBalancer", "outlierDetection"]
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
    /// What the annotations of the resource ask for.
    pub requirements: Requirements,
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
        /// What they have revoked.
        "caCrl" => ca_crl: Option<Located<PathBuf>>,
        /// The name to ask for.
        "sni" => sni: Option<Located<HostName>>,
        /// The names to verify.
        "subjectAltNames" => subject_alt_names: Vec<PeerName>,
        /// Whether to verify nothing.
        "insecureSkipVerify" => insecure_skip_verify: Option<Located<bool>>,
    }
    refused ["credentialName"]
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
    fn parse(text: &str) -> Result<Self, String> {
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

impl Text for PeerName {
    fn parse(text: &str) -> Result<Self, String> {
        if text.contains("://") {
            return Err(format!("{text:?} is a URI, which egress does not verify; give a DNS name or an IP address"));
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
        let client = client_identity(&block, errors)?;
        if block.mode.value == Mode::Disable {
            return Some(Self::Disable);
        }
        Some(Self::Originate(Box::new(Origination {
            sni: block.sni,
            subject_alt_names: block.subject_alt_names.into_iter().map(|PeerName(name)| name).collect(),
            insecure_skip_verify: block.insecure_skip_verify.filter(|skip| skip.value),
            ca_certificates: block.ca_certificates,
            ca_crl: block.ca_crl,
            client,
            requirements: Requirements::default(),
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
        errors.at(skip, format!("this verifies nothing, yet {field} says against what to verify; remove one of them"));
    }
}

/// The client certificate that the mode asks for, and none that it does not.
fn client_identity(block: &TlsBlock, errors: &mut Errors) -> Option<Option<ClientIdentity>> {
    match (block.mode.value, &block.client_certificate, &block.private_key) {
        (Mode::Mutual, Some(certificate), Some(key)) => {
            Some(Some(ClientIdentity { certificate: certificate.clone(), key: key.clone() }))
        }
        (Mode::Mutual, certificate, key) => {
            let absent = [("clientCertificate", certificate.is_none()), ("privateKey", key.is_none())];
            for (field, _) in absent.into_iter().filter(|(_, is_absent)| *is_absent) {
                errors.at(&block.mode, format!("MUTUAL needs {field}; add it, or use SIMPLE"));
            }
            None
        }
        (Mode::Disable | Mode::Simple, None, None) => Some(None),
        (Mode::Disable | Mode::Simple, certificate, key) => {
            for file in certificate.iter().chain(key) {
                errors.at(file, "a client certificate is for mode MUTUAL; set that, or remove this field");
            }
            None
        }
    }
}

/// Decodes `spec`, to which the annotations add, and checks what its fields say about each other.
pub(super) fn decode(spec: &Node, annotations: &Annotations, errors: &mut Errors) -> Option<DestinationRule> {
    let mut rule = DestinationRule::decode(spec, "spec", errors)?;
    if let Some(policy) = &mut rule.traffic_policy {
        check_unique(policy.port_level_settings.iter().map(|settings| &settings.port.number), errors);
        let blocks = policy.port_level_settings.iter_mut().filter_map(|settings| settings.tls.as_mut());
        for tls in blocks.chain(&mut policy.tls) {
            if let Tls::Originate(origination) = &mut tls.value {
                origination.require(&annotations.tls, errors);
            }
        }
    }
    Some(rule)
}

impl Origination {
    /// Adds what the annotations ask for.
    fn require(&mut self, requirements: &Requirements, errors: &mut Errors) {
        self.requirements = requirements.clone();
        if let Some(skip) = self.insecure_skip_verify.as_ref().filter(|_| !requirements.pins.is_empty()) {
            let text = "this verifies nothing, yet the annotation egress.dev/pins pins keys of the verified chain; remove \
                        one of them (a certificate that vouches for itself can be named in caCertificates)";
            errors.at(skip, text);
        }
    }
}

impl DestinationRule {
    /// What its `tls` block for a port says; one for the port stands in the place of the one for the host, even if it
    /// says nothing.
    pub fn tls(&self, port: NonZeroU16) -> Option<&Located<Tls>> {
        let policy = self.traffic_policy.as_ref()?;
        match policy.port_level_settings.iter().find(|settings| settings.port.number.value == port) {
            Some(settings) => settings.tls.as_ref(),
            None => policy.tls.as_ref(),
        }
    }
}
