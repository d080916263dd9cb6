//! Istio's `ServiceEntry`: which hosts there are, on which ports, and where they are to be found.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    num::NonZeroU16,
};

use super::{
    Cidr, Code, Errors, HostName, HostPattern, IfUsed, Located, Message,
    decode::{Decode, Text, choose, shape},
    destination_rule::PeerName,
    node::Node,
};

shape! {
    /// The `spec` of a `ServiceEntry`.
    pub struct ServiceEntry {
        /// The hosts that all of the rest is about.
        "hosts" => hosts: Located<Vec<Located<HostPattern>>>,
        /// Addresses by which applications reach the hosts.
        "addresses" => addresses: Vec<Located<Cidr>>,
        /// The ports that applications connect to.
        "ports" => ports: Located<Vec<ServicePort>>,
        /// Inside or outside of a mesh, which makes no difference to egress.
        "location" => location: Option<MeshLocation>,
        /// How the addresses of `endpoints`, or of the hosts, are found. Istio takes `NONE` if it is not said.
        "resolution" => resolution: Option<Located<Resolution>>,
        /// Where the hosts are served, if not under their own names.
        "endpoints" => endpoints: Vec<Endpoint>,
        /// The names of which the certificate must have one, unless a `DestinationRule` says others.
        "subjectAltNames" => subject_alt_names: Vec<Located<IfUsed<PeerName>>>,
        /// In which namespaces it is in force.
        "exportTo" => export_to: Option<Located<Vec<String>>>,
        /// The pods that serve the hosts.
        "workloadSelector" => workload_selector: Option<Located<WorkloadSelector>>,
    }
    refused []
}

shape! {
    /// `workloadSelector`, which a `DestinationRule` has otherwise.
    pub struct WorkloadSelector {
        /// The labels that pods have.
        "labels" => labels: BTreeMap<String, String>,
    }
    refused []
}

shape! {
    /// One of `spec.ports`.
    pub struct ServicePort {
        /// The port that applications connect to.
        "number" => number: Located<NonZeroU16>,
        /// A name to refer to it.
        "name" => name: Located<String>,
        /// What is spoken on it.
        "protocol" => protocol: Option<Located<Protocol>>,
        /// The port to connect to in its stead.
        "targetPort" => target_port: Option<Located<NonZeroU16>>,
    }
    refused []
}

shape! {
    /// One of `spec.endpoints`.
    pub struct Endpoint {
        /// Where it is.
        "address" => address: Located<IfUsed<EndpointAddress>>,
        /// The ports it serves, by the names of `spec.ports`, where they differ.
        "ports" => ports: BTreeMap<String, Located<NonZeroU16>>,
        /// What subsets choose it by.
        "labels" => labels: BTreeMap<String, String>,
        /// Its share beside the other endpoints' weights.
        "weight" => weight: Option<u32>,
        /// Where in the world it is, of which egress makes no use.
        "locality" => locality: Option<Located<String>>,
        /// Who it is in a mesh, of which egress makes no use.
        "serviceAccount" => service_account: Option<Located<String>>,
        /// The network that it is in, if it cannot be reached from everywhere.
        "network" => network: Option<Located<String>>,
    }
    refused []
}

/// The address of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EndpointAddress {
    /// An address to connect to.
    Ip(IpAddr),
    /// A name to resolve.
    Name(HostName),
}

impl EndpointAddress {
    /// The name, if it is one.
    pub fn name(&self) -> Option<&HostName> {
        match self {
            Self::Name(name) => Some(name),
            Self::Ip(_) => None,
        }
    }
}

impl Text for EndpointAddress {
    fn parse(text: &str) -> Result<Self, Message> {
        if text.starts_with("unix:") {
            return Err(
                Code::Unsupported.because("Istio has Unix sockets as endpoints, egress does not implement them")
            );
        }
        match text.parse() {
            Ok(address) => Ok(Self::Ip(address)),
            Err(_) => HostName::parse(text).map(Self::Name),
        }
    }
}

/// `MESH_EXTERNAL` or `MESH_INTERNAL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeshLocation {
    /// Outside of the mesh.
    External,
    /// Inside of the mesh.
    Internal,
}

impl Text for MeshLocation {
    fn parse(text: &str) -> Result<Self, Message> {
        choose(text, &[("MESH_EXTERNAL", Self::External), ("MESH_INTERNAL", Self::Internal)], &[])
    }
}

/// How addresses are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The address that the application has connected to.
    None,
    /// The addresses of the endpoints.
    Static,
    /// By asking DNS.
    Dns,
    /// By asking DNS, for the name that the request is for.
    DynamicDns,
}

impl Text for Resolution {
    fn parse(text: &str) -> Result<Self, Message> {
        choose(
            text,
            &[
                ("NONE", Self::None),
                ("STATIC", Self::Static),
                ("DNS", Self::Dns),
                // Istio keeps connections when answers change, and so do we in any case.
                ("DNS_ROUND_ROBIN", Self::Dns),
                ("DYNAMIC_DNS", Self::DynamicDns),
            ],
            &[],
        )
    }
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 in clear text: what TLS can be originated for.
    Http,
    /// HTTP/2 in clear text.
    Http2,
    /// gRPC in clear text.
    Grpc,
    /// gRPC within HTTP of any version.
    GrpcWeb,
    /// HTTP over TLS.
    Https,
    /// TLS.
    Tls,
    /// Anything else.
    Opaque(&'static str),
}

impl Protocol {
    /// Its name as it is written in `protocol`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Http2 => "HTTP2",
            Self::Grpc => "GRPC",
            Self::GrpcWeb => "GRPC-WEB",
            Self::Https => "HTTPS",
            Self::Tls => "TLS",
            Self::Opaque(name) => name,
        }
    }
}

impl Text for Protocol {
    const EMPTY_IS_ABSENT: bool = true;

    fn parse(text: &str) -> Result<Self, Message> {
        let known: Vec<_> = [Self::Http, Self::Https, Self::Http2, Self::Grpc, Self::GrpcWeb, Self::Tls]
            .into_iter()
            .chain(["TCP", "UDP", "MONGO", "MYSQL", "REDIS"].map(Self::Opaque))
            .map(|protocol| (protocol.name(), protocol))
            .collect();
        // Istio minds the case of all other values, but not of this.
        choose(&text.to_ascii_uppercase(), &known, &[])
    }
}

/// Decodes `spec` and checks what its fields say about each other.
pub(super) fn decode(spec: &Node, errors: &mut Errors) -> Option<ServiceEntry> {
    let entry = ServiceEntry::decode(spec, "spec", errors)?;
    check_hosts(&entry, errors);
    check_ports(&entry, errors);
    check_endpoints(&entry, errors);
    Some(entry)
}

fn check_hosts(entry: &ServiceEntry, errors: &mut Errors) {
    if entry.hosts.is_empty() {
        errors.at(&entry.hosts, "the list is empty; name at least one host");
    }
    check_unique(entry.hosts.iter(), errors);
    if entry.resolution() == Resolution::Dns {
        for range in entry.addresses.iter().filter(|range| !range.is_single()) {
            errors.at(range, "an address range needs resolution NONE or STATIC; with DNS, name single addresses");
        }
    }
}

fn check_ports(entry: &ServiceEntry, errors: &mut Errors) {
    if entry.ports.is_empty() {
        errors.at(&entry.ports, "the list is empty; name at least one port");
    }
    check_unique(entry.ports.iter().map(|port| &port.number), errors);
    check_unique(entry.ports.iter().map(|port| &port.name), errors);
    for port in entry.ports.iter().filter(|port| port.name.is_empty()) {
        errors.at(&port.name, "the name is empty");
    }
}

fn check_endpoints(entry: &ServiceEntry, errors: &mut Errors) {
    let resolution = entry.resolution();
    if resolution == Resolution::DynamicDns {
        for host in entry.hosts.iter().filter(|host| host.value.is_exact()) {
            errors.at(
                host,
                Code::Contradiction.because("DYNAMIC_DNS is for wildcards; use DNS for the name of one host"),
            );
        }
    }
    if let Some(selector) = entry.workload_selector.as_ref().filter(|_| !entry.endpoints.is_empty()) {
        errors.at(
            selector,
            Code::Contradiction.because("endpoints and workloadSelector exclude each other; remove one of them"),
        );
    }
    if resolution == Resolution::Dns && entry.endpoints.is_empty() {
        for host in entry.hosts.iter().filter(|host| !host.value.is_exact()) {
            errors
                .at(host, "a wildcard cannot be resolved; use resolution NONE, which goes where the application goes");
        }
    }
    if let (Resolution::Static, [], Some(place), None) =
        (resolution, entry.endpoints.as_slice(), &entry.resolution, &entry.workload_selector)
    {
        errors.at(place, "STATIC needs `endpoints` with IP addresses; list them, or use DNS");
    }
    for endpoint in &entry.endpoints {
        if matches!(resolution, Resolution::None | Resolution::DynamicDns) {
            errors.at(
                &endpoint.address,
                Code::Contradiction.because(format!(
                    "with resolution {} there are no endpoints; remove them, or use STATIC or DNS",
                    if resolution == Resolution::None { "NONE" } else { "DYNAMIC_DNS" },
                )),
            );
        }
        if let (Resolution::Static, Ok(EndpointAddress::Name(name))) = (resolution, &endpoint.address.0) {
            errors.at(&endpoint.address, format!("{name} is not an IP address, as STATIC needs; use resolution DNS"));
        }
        for (name, port) in &endpoint.ports {
            if !entry.ports.iter().any(|known| known.name.value == *name) {
                errors.at(port, format!("no port of this ServiceEntry has the name {name:?}"));
            }
        }
    }
}

/// Refuses values that have been there before.
pub(super) fn check_unique<'v, T: Eq + std::hash::Hash + std::fmt::Display + 'v>(
    values: impl Iterator<Item = &'v Located<T>>,
    errors: &mut Errors,
) {
    let mut seen = HashMap::new();
    for value in values {
        match seen.get(&value.value) {
            None => _ = seen.insert(&value.value, &value.location),
            Some(first) => {
                let text = format!("{} is already at {first}; remove one of them", value.value);
                errors.at(value, Code::Duplicate.because(text));
            }
        }
    }
}

impl ServiceEntry {
    /// The resolution in force.
    pub fn resolution(&self) -> Resolution {
        self.resolution.as_ref().map_or(Resolution::None, |resolution| resolution.value)
    }
}
