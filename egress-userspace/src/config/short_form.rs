//! `--host NAME` and `--host '*.NAME'`: the pair of resources that it stands for.

use std::{collections::BTreeMap, num::NonZeroU16, path::Path};

use super::{
    Document, HostPattern, Located, Location, Metadata, Resource,
    annotations::Requirements,
    destination_rule::{DestinationRule, Origination, PortPolicy, PortSelector, Tls, TrafficPolicy},
    service_entry::{Protocol, Resolution, ServiceEntry, ServicePort},
};

const HTTP: NonZeroU16 = NonZeroU16::new(80).expect("80 is not zero");
const HTTPS: NonZeroU16 = NonZeroU16::new(443).expect("443 is not zero");

/// A `ServiceEntry` that leads port 80 of the host to 443, and a `DestinationRule` that originates TLS on it: the
/// pair of Istio's task "Egress TLS Origination".
pub(super) fn documents(host: &HostPattern) -> [Document; 2] {
    let location = Location::whole(Path::new(&format!("--host {host}")));
    let metadata =
        Metadata { name: host.to_string(), namespace: None, labels: BTreeMap::new(), annotations: BTreeMap::new() };
    [
        Resource::ServiceEntry(service_entry(host, &location)),
        Resource::DestinationRule(destination_rule(host, &location)),
    ]
    .map(|resource| Document { location: location.clone(), metadata: metadata.clone(), resource })
}

fn service_entry(host: &HostPattern, location: &Location) -> ServiceEntry {
    let port = |number, name: &str, protocol, target_port: Option<_>| ServicePort {
        number: at(location, number),
        name: at(location, name.to_owned()),
        protocol: Some(at(location, protocol)),
        target_port: target_port.map(|port| at(location, port)),
    };
    ServiceEntry {
        hosts: at(location, vec![at(location, host.clone())]),
        addresses: Vec::new(),
        ports: at(
            location,
            vec![
                port(HTTP, "http-port", Protocol::Http, Some(HTTPS)),
                port(HTTPS, "https-port", Protocol::Https, None),
            ],
        ),
        location: None,
        // A wildcard cannot be resolved.
        resolution: Some(at(location, if host.is_exact() { Resolution::Dns } else { Resolution::None })),
        endpoints: Vec::new(),
    }
}

fn destination_rule(host: &HostPattern, location: &Location) -> DestinationRule {
    let simple = Tls::Originate(Box::new(Origination {
        sni: None,
        subject_alt_names: Vec::new(),
        insecure_skip_verify: None,
        ca_certificates: None,
        ca_crl: None,
        client: None,
        requirements: Requirements::default(),
    }));
    DestinationRule {
        host: at(location, host.clone()),
        traffic_policy: Some(TrafficPolicy {
            tls: None,
            port_level_settings: vec![PortPolicy {
                port: PortSelector { number: at(location, HTTP) },
                tls: Some(at(location, simple)),
            }],
        }),
    }
}

fn at<T>(location: &Location, value: T) -> Located<T> {
    Located::new(value, location.clone())
}
