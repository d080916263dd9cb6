//! `--host NAME` and `--host '*.NAME'`: the pair of resources that it stands for.

use std::{collections::BTreeMap, num::NonZeroU16, path::Path};

use super::{
    Document, HostPattern, Located, Location, Metadata, Resource,
    annotations::Annotations,
    destination_rule::{DestinationRule, Origination, PortSelector, Tls},
    service_entry::{Protocol, Resolution, ServiceEntry, ServicePort},
    traffic_policy::{PortPolicy, TrafficPolicy},
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
        Resource::ServiceEntry(Box::new(service_entry(host, &location))),
        Resource::DestinationRule(Box::new(destination_rule(host, &location))),
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
        subject_alt_names: Vec::new(),
        export_to: None,
        workload_selector: None,
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
        credential: None,
    }));
    DestinationRule {
        host: at(location, host.clone()),
        traffic_policy: Some(TrafficPolicy {
            tls: None,
            connection_pool: None,
            outlier_detection: None,
            load_balancer: None,
            tunnel: None,
            port_level_settings: vec![PortPolicy {
                port: PortSelector { number: at(location, HTTP) },
                tls: Some(at(location, simple)),
                connection_pool: None,
                outlier_detection: None,
                load_balancer: None,
            }],
        }),
        subsets: Vec::new(),
        export_to: None,
        workload_selector: None,
        annotations: Annotations::default(),
    }
}

fn at<T>(location: &Location, value: T) -> Located<T> {
    Located::new(value, location.clone())
}
