//! A port of a host, with all that is said of it, to an [`Upstream`].

use std::{num::NonZeroU32, path::PathBuf, sync::Arc, time::Duration};

use super::{
    Reports, credential,
    index::{Index, Service, StoreKind},
    namespaces::Namespace,
    settings::{Asked, AskedBy, Settings},
};
use crate::{
    config::{
        Code, HostPattern, Located,
        annotations::Annotations,
        backend_tls_policy::{BackendTlsPolicy, CaKind},
        destination_rule::{Origination, Subset},
        service_entry::{Protocol as Spoken, Resolution, ServiceEntry},
        traffic_policy::{self as raw, H2UpgradePolicy, Simple, TunnelProtocol},
    },
    policy::{
        Adjustments, ClientIdentity, ConnectionPool, Endpoint, Keepalive, LoadBalancer, OutlierDetection, Pem,
        Requirements, Roots, Targets, TlsSettings, Tunnel, TunnelMethod, Upstream, UpstreamProtocol, Verify,
    },
};

/// How long a connection that was made in advance is kept, if the user does not say: until the origin has had enough of it.
const PRECONNECTED: Duration = Duration::from_secs(3600);
/// What Istio has if nothing is said; Envoy's own number.
const CONSECUTIVE_ERRORS: u32 = 5;

/// The upstream for a service that `asked` asks TLS for.
pub(super) fn build<'d>(
    service: Service<'d>,
    subset: Option<&'d Subset>,
    settings: &Settings<'d>,
    asked: Asked<'d>,
    index: &Index<'d>,
    reports: &mut Reports,
) -> Upstream {
    let Service { host, entry, port, .. } = service;
    let balancer = settings.balancer.and_then(|balancer| balancer.simple.as_ref()).map(|simple| simple.value);
    let http = settings.pool.and_then(|pool| pool.http.as_ref());
    let annotations = settings.annotations.cloned().unwrap_or_default();
    check_pins(host, asked, &annotations, reports);
    let targets = match balancer {
        Some(Simple::Passthrough) => Targets::Original,
        _ => targets(service, subset, reports),
    };
    Upstream {
        host: host.clone(),
        port: port.number.value.get(),
        subset: subset.map(|subset| subset.name.value.as_str().into()),
        target_port: service.target_port().get(),
        protocol: match (&port.protocol, http.and_then(|http| http.h2_upgrade_policy)) {
            (Some(Located { value: Spoken::Http2 | Spoken::Grpc, .. }), _) | (_, Some(H2UpgradePolicy::Upgrade)) => {
                UpstreamProtocol::Http2
            }
            (_, Some(H2UpgradePolicy::DoNotUpgrade)) => UpstreamProtocol::Http1,
            (_, Some(H2UpgradePolicy::Default) | None) => UpstreamProtocol::Negotiated,
        },
        tls: match asked.by {
            AskedBy::Rule(_, origination) => tls_settings(host, entry, origination, asked.namespace, index, reports),
            AskedBy::Policy(policy) => validation(policy, asked.namespace, index, reports),
        }
        .requiring(annotations.requirements.clone()),
        pool: pool(settings.pool, annotations.preconnect),
        outlier_detection: settings.outlier_detection.map(outlier_detection),
        balancer: match balancer {
            Some(Simple::RoundRobin) => Some(LoadBalancer::RoundRobin),
            Some(Simple::LeastRequest) => Some(LoadBalancer::LeastRequest),
            Some(Simple::Random) => Some(LoadBalancer::Random),
            Some(Simple::Unspecified | Simple::Passthrough) | None => default_balancer(&targets),
        },
        targets,
        tunnel: settings.tunnel.map(|tunnel| Tunnel {
            method: match tunnel.protocol {
                Some(TunnelProtocol::Post) => TunnelMethod::Post,
                Some(TunnelProtocol::Connect) | None => TunnelMethod::Connect,
            },
            host: tunnel.target_host.clone(),
            port: tunnel.target_port,
        }),
        adjustments: adjustments(&annotations),
        preconnect: annotations.preconnect,
        location: asked.place().location,
    }
}

/// What is not verified has no chain in which a pinned key could be. Of one rule this is known when it is read; a subset and
/// the annotations can be two rules'.
fn check_pins(host: &HostPattern, asked: Asked<'_>, annotations: &Annotations, reports: &mut Reports) {
    if let AskedBy::Rule(_, origination) = asked.by
        && let Some(skip) = &origination.insecure_skip_verify
        && !annotations.requirements.pins.is_empty()
    {
        let text = format!(
            "this verifies nothing, yet the annotation egress.dev/pins of another DestinationRule for {host} pins keys of the \
             verified chain; remove one of them"
        );
        reports.at(skip, Code::Contradiction.because(text));
    }
}

/// As in Istio, endpoints that are listed share the requests. Several addresses of one name are what RFC 8305 is about.
fn default_balancer(targets: &Targets) -> Option<LoadBalancer> {
    match targets {
        Targets::Endpoints(endpoints) if endpoints.len() > 1 => Some(LoadBalancer::LeastRequest),
        Targets::Endpoints(_) | Targets::Resolve(_) | Targets::Original => None,
    }
}

fn adjustments(annotations: &Annotations) -> Adjustments {
    Adjustments {
        strip_forwarded_headers: annotations.strip_forwarded_headers,
        drop_secure_cookie_attribute: annotations.drop_secure_cookie_attribute,
        rewrite_location: annotations.rewrite_location,
    }
}

/// Where a service's target port is; for a subset, those of its endpoints that have its labels.
pub(super) fn targets(service: Service<'_>, subset: Option<&Subset>, reports: &mut Reports) -> Targets {
    let Service { host, entry, .. } = service;
    // Where the application chooses there are no endpoints that could have labels.
    let is_chosen_here = !matches!(entry.resolution(), Resolution::None | Resolution::DynamicDns);
    let labels = subset.map(|subset| &subset.labels).filter(|labels| is_chosen_here && !labels.is_empty());
    let chosen = entry.endpoints.iter().filter(|endpoint| {
        labels.is_none_or(|labels| labels.iter().all(|(key, value)| endpoint.labels.get(key) == Some(value)))
    });
    let errors = reports.errors;
    let mut endpoints = Vec::new();
    for endpoint in chosen {
        if let Some(network) = &endpoint.network {
            let text = "Istio has gateways to other networks, egress does not implement them; remove this if the address can be reached";
            reports.at(network, Code::Unsupported.because(text));
        }
        endpoints.extend(reports.used(&endpoint.address).map(|address| Endpoint {
            address: address.clone(),
            port: service.port_at(endpoint).get(),
            weight: endpoint.weight.and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MIN),
        }));
    }
    let is_empty = endpoints.is_empty() && reports.errors == errors;
    if let Some(subset) = subset.filter(|_| labels.is_some() && is_empty) {
        let text = format!("no endpoint of {host} has the labels of subset {}; give them to one", subset.name.value);
        reports.at(&subset.name, Code::UnknownSubset.because(text));
    }
    match (entry.resolution(), host) {
        // The application has looked the name up a moment ago, which is as good as if we did: TLS proves who answers.
        (Resolution::None | Resolution::DynamicDns, _) => Targets::Original,
        (Resolution::Static | Resolution::Dns, _) if !entry.endpoints.is_empty() => Targets::Endpoints(endpoints),
        // The entry has been refused if it wants a wildcard to be resolved.
        (Resolution::Static | Resolution::Dns, HostPattern::Wildcard(_)) => Targets::Original,
        (Resolution::Static | Resolution::Dns, HostPattern::Exact(host)) => Targets::Resolve(host.clone()),
    }
}

fn tls_settings<'d>(
    host: &HostPattern,
    entry: &ServiceEntry,
    asked: &'d Origination,
    namespace: Namespace<'d>,
    index: &Index<'d>,
    reports: &mut Reports,
) -> TlsSettings {
    if let Some(skip) = &asked.insecure_skip_verify {
        let text = format!(
            "the certificate of {host} is not verified: anyone on the way can read and change all; trust its issuer by \
             caCertificates"
        );
        reports.at(skip, Code::Unverified.because(text));
    }
    let names = match &asked.sni {
        _ if !asked.subject_alt_names.is_empty() => Verify::Names(asked.subject_alt_names.clone()),
        _ if !entry.subject_alt_names.is_empty() => {
            let names = entry.subject_alt_names.iter().filter_map(|name| reports.used(name));
            Verify::Names(names.map(|name| name.clone().into_server_name()).collect())
        }
        Some(sni) => {
            if asked.insecure_skip_verify.is_none() {
                let text = format!(
                    "the certificate must be valid for {0}, while Istio would accept any name, as there are no \
                     subjectAltNames; to have both do the same, add subjectAltNames: [{0}]",
                    sni.value,
                );
                reports.at(sni, Code::SniWithoutNames.because(text));
            }
            Verify::Names(vec![sni.to_server_name()])
        }
        None => Verify::Host,
    };
    let crl = asked.ca_crl.as_ref().map(resolve);
    let (roots, crl, client) = match &asked.credential {
        Some(credential) => {
            let found = credential::look_up(credential, namespace, index, reports);
            if let (Some(file), Some(_)) = (&asked.ca_crl, &found.crl) {
                let text = "the Secret of credentialName says what is revoked, too; remove one of them";
                reports.at(file, Code::Conflict.because(text));
            }
            (found.roots, crl.or(found.crl), found.client)
        }
        None => (
            asked.ca_certificates.as_ref().map_or(Roots::System, |file| Roots::File(resolve(file))),
            crl,
            asked
                .client
                .as_ref()
                .map(|client| ClientIdentity { certificate: resolve(&client.certificate), key: resolve(&client.key) }),
        ),
    };
    TlsSettings {
        sni: asked.sni.as_ref().map(|sni| sni.value.clone()),
        verify: if asked.insecure_skip_verify.is_some() { Verify::Skip } else { names },
        roots,
        crl,
        client,
        requirements: Requirements::default(),
    }
}

fn resolve(file: &Located<PathBuf>) -> Located<Pem> {
    file.with(Pem::File(file.location.resolve(&file.value)))
}

/// The TLS of a `BackendTLSPolicy`.
fn validation<'d>(
    policy: &'d BackendTlsPolicy,
    namespace: Namespace<'d>,
    index: &Index<'d>,
    reports: &mut Reports,
) -> TlsSettings {
    let validation = &policy.validation;
    let mut bundle = Vec::new();
    let mut names = Vec::new();
    for reference in &validation.ca_certificates {
        let (kind, name) = match reference.kind {
            CaKind::ConfigMap => (StoreKind::ConfigMap, reference.name.as_str()),
            CaKind::Secret => (StoreKind::Secret, reference.name.as_str()),
        };
        match index.store(kind, namespace, name).and_then(|store| store.entries.get("ca.crt")) {
            Some(content) => {
                bundle.extend_from_slice(content);
                bundle.push(b'\n');
                names.push(format!("ca.crt of {kind:?} {name}"));
            }
            None => {
                let place = index.place_without_store(kind, namespace, name);
                let text = format!("there is no {kind:?} {name} with ca.crt {place}; add it");
                reports.at(reference, Code::UnknownCredential.because(text));
            }
        }
    }
    let pem = Pem::Inline { name: names.join(", ").into(), content: bundle.into() };
    let alternatives: Vec<_> = validation.subject_alt_names.iter().map(|name| name.0.clone()).collect();
    TlsSettings {
        sni: Some(validation.hostname.value.clone()),
        verify: Verify::Names(if alternatives.is_empty() {
            vec![validation.hostname.to_server_name()]
        } else {
            alternatives
        }),
        // What was not found has been reported.
        roots: match validation.ca_certificates.first() {
            Some(first) if !names.is_empty() => Roots::File(first.with(pem)),
            Some(_) | None => Roots::System,
        },
        crl: None,
        client: None,
        requirements: Requirements::default(),
    }
}

/// Connections that are made in advance are kept for longer than others.
fn pool(raw: Option<&raw::ConnectionPool>, preconnect: u16) -> ConnectionPool {
    let mut pool = raw.map(connection_pool).unwrap_or_default();
    if preconnect > 0 {
        pool.idle_timeout.get_or_insert(PRECONNECTED);
    }
    pool
}

fn connection_pool(pool: &raw::ConnectionPool) -> ConnectionPool {
    let (tcp, http) = (pool.tcp.as_ref(), pool.http.as_ref());
    let unlimited = ConnectionPool::default();
    let limit = |given: Option<u32>| given.filter(|number| *number > 0).unwrap_or(u32::MAX);
    let tcp_idle_timeout = tcp.and_then(|tcp| tcp.idle_timeout).filter(|time| !time.is_zero());
    ConnectionPool {
        max_connections: limit(tcp.and_then(|tcp| tcp.max_connections)),
        connect_timeout: tcp.and_then(|tcp| tcp.connect_timeout).map_or(unlimited.connect_timeout, |time| time.0),
        keepalive: tcp.and_then(|tcp| tcp.keepalive.as_ref()).map(|keepalive| Keepalive {
            probes: keepalive.probes.and_then(|probes| probes.0),
            time: keepalive.time.map(|time| time.0),
            interval: keepalive.interval.map(|time| time.0),
        }),
        tcp_idle_timeout,
        max_connection_duration: tcp.and_then(|tcp| tcp.max_connection_duration).map(|time| time.0),
        max_pending_requests: limit(http.and_then(|http| http.max_pending_requests)),
        max_requests: limit(http.and_then(|http| http.max_requests)),
        max_requests_per_connection: http.and_then(|http| http.max_requests_per_connection).and_then(NonZeroU32::new),
        max_retries: limit(http.and_then(|http| http.max_retries)),
        // As in Istio.
        idle_timeout: http.and_then(|http| http.idle_timeout).map(|time| time.0).or(tcp_idle_timeout),
        max_concurrent_streams: http.and_then(|http| http.max_concurrent_streams).and_then(NonZeroU32::new),
    }
}

fn outlier_detection(given: &raw::OutlierDetection) -> OutlierDetection {
    let count = |given: Option<u32>, otherwise| NonZeroU32::new(given.unwrap_or(otherwise));
    OutlierDetection {
        server_errors: count(given.consecutive_5xx_errors, CONSECUTIVE_ERRORS),
        gateway_errors: count(given.consecutive_gateway_errors, 0),
        local_origin: match given.split {
            Some(true) => count(given.consecutive_local_origin_failures, CONSECUTIVE_ERRORS),
            Some(false) | None => None,
        },
        interval: given.interval.map_or(Duration::from_secs(10), |time| time.0),
        base_ejection_time: given.base_ejection_time.map_or(Duration::from_secs(30), |time| time.0),
        max_ejection_percent: match given.max_ejection_percent {
            Some(percent) if percent.0 > 0 => percent.0,
            Some(_) | None => 10,
        },
        min_health_percent: given.min_health_percent.map_or(0, |percent| percent.0),
    }
}

/// The same upstream behind one pointer, for rules that share it.
pub(super) type Shared = Arc<Upstream>;
