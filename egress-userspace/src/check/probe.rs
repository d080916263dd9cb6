//! What origins make of the rules: each upstream is resolved, connected to and shaken hands with, as the agent would.

mod findings;
mod plan;
mod report;

use std::{
    net::{IpAddr, SocketAddr},
    time::{SystemTime, UNIX_EPOCH},
};

use futures_util::{StreamExt as _, stream};
use tokio::{net::TcpStream, time::timeout};

pub use self::report::{
    AddressReport, CertificateReport, ClientCertificate, FailureReport, Outcome, ProbeReport, TlsReport,
};
use self::{
    findings::{findings, no_resolver},
    plan::{Plan, Probe, Target, plan},
};
use super::Place;
use crate::{
    config::{Diagnostic, Progress},
    policy::{EndpointAddress, HostName, Policy, Targets, Upstream, UpstreamProtocol, Verify},
    resolve::{ResolveError, Resolver},
    upstream::{
        Cause, Offer, UpstreamError,
        tls::{Observation, observe, observe_anyone},
        tunnel::{self, Way},
    },
};

/// Upstreams that are probed at a time, and addresses of each.
const UPSTREAMS_AT_ONCE: usize = 16;
const ADDRESSES_AT_ONCE: usize = 4;

/// Probes each upstream of the policy once, from the caller's network namespace. `names` are hosts to take for wildcards, and
/// to resolve for `resolution: NONE`. Nothing but handshakes is sent, through tunnels where the rules have them.
pub(super) async fn probe(
    policy: &Policy,
    names: &[HostName],
    progress: &Progress,
) -> (Vec<ProbeReport>, Vec<Diagnostic>) {
    let Plan { probes, mut problems } = plan(policy, names);
    let resolver = match Resolver::from_system(progress.clone()) {
        Ok(resolver) => resolver,
        Err(error) => return (Vec::new(), vec![no_resolver(&error)]),
    };
    let running = stream::iter(&probes).map(|probe| run(probe, &resolver)).buffered(UPSTREAMS_AT_ONCE);
    let reports: Vec<_> = running.collect().await;
    problems.extend(probes.iter().zip(&reports).flat_map(|(probe, report)| findings(&probe.upstream, report)));
    (reports, problems)
}

async fn run(probe: &Probe, resolver: &Resolver) -> ProbeReport {
    let Probe { upstream, rules, target } = probe;
    let mut report = ProbeReport {
        host: upstream.host.to_string(),
        rules: rules.clone(),
        location: Place::from(&upstream.location),
        server_name: None,
        tunnel: upstream.tunnel.as_ref().map(tunnel::authority),
        not_probed: None,
        unresolved: Vec::new(),
        addresses: Vec::new(),
    };
    let target = match target {
        Ok(target) => target,
        Err(reason) => {
            report.not_probed = Some((*reason).to_owned());
            return report;
        }
    };
    report.host = target.name.to_string();
    report.server_name = Some(target.server_name.to_str().into_owned());
    let (addresses, unresolved) = addresses(resolver, upstream, &target.name).await;
    report.unresolved = unresolved.iter().map(ToString::to_string).collect();
    let contacts = stream::iter(addresses).map(|address| contact(probe, target, address));
    report.addresses = contacts.buffered(ADDRESSES_AT_ONCE).collect().await;
    report
}

/// Where to connect to, and which names that could not be found out for.
async fn addresses(resolver: &Resolver, upstream: &Upstream, name: &HostName) -> (Vec<SocketAddr>, Vec<ResolveError>) {
    let targets: Vec<(EndpointAddress, u16)> = match &upstream.targets {
        Targets::Resolve(host) => vec![(EndpointAddress::Name(host.clone()), upstream.target_port)],
        Targets::Original => vec![(EndpointAddress::Name(name.clone()), upstream.target_port)],
        Targets::Endpoints(endpoints) => {
            endpoints.iter().map(|endpoint| (endpoint.address.clone(), endpoint.port)).collect()
        }
    };
    let (mut found, mut unresolved) = (Vec::new(), Vec::new());
    for (address, port) in targets {
        let ips = match &address {
            EndpointAddress::Ip(ip) => vec![*ip],
            EndpointAddress::Name(name) => resolve(resolver, name, &mut unresolved).await,
        };
        for address in ips.into_iter().map(|ip| SocketAddr::new(ip, port)) {
            if !found.contains(&address) {
                found.push(address);
            }
        }
    }
    (found, unresolved)
}

async fn resolve(resolver: &Resolver, name: &HostName, unresolved: &mut Vec<ResolveError>) -> Vec<IpAddr> {
    let answer = resolver.lookup(name).await;
    let (mut found, mut is_answered) = (Vec::new(), true);
    for family in [answer.v4, answer.v6] {
        match family {
            Ok(addresses) => found.extend(addresses),
            Err(reason) => {
                is_answered = false;
                unresolved.push(ResolveError { name: name.clone(), reason, authoritative: false });
            }
        }
    }
    unresolved.dedup();
    if found.is_empty() && is_answered {
        let reason = "it does not exist or has no addresses".to_owned();
        unresolved.push(ResolveError { name: name.clone(), reason, authoritative: true });
    }
    found
}

async fn contact(probe: &Probe, target: &Target, address: SocketAddr) -> AddressReport {
    let upstream = &*probe.upstream;
    let offer = match upstream.protocol {
        UpstreamProtocol::Negotiated => Offer::Both,
        UpstreamProtocol::Http2 => Offer::Http2,
        UpstreamProtocol::Http1 => Offer::Http1,
    };
    let stream = match connect(upstream, address).await {
        Ok(stream) => stream,
        Err(error) => return AddressReport::unreachable(address, &error),
    };
    let mut seen = observe(&target.originator, target.server_name.clone(), offer, stream).await;
    let host = || target.server_name.to_str().into_owned();
    let failure = seen.refusal.take().map(|source| match &seen.agreed {
        None => UpstreamError::Tls { host: host(), address, source },
        Some(_) => UpstreamError::TlsEnded { address, source },
    });
    // A refused certificate has ended the handshake: what else would have been agreed on?
    if failure.as_ref().is_some_and(|error| is_about_certificate(error.cause()))
        && let Ok(stream) = connect(upstream, address).await
    {
        let anyone = observe_anyone(&target.originator, target.server_name.clone(), offer, stream).await;
        (seen.agreed, seen.protocol) = (anyone.agreed, anyone.protocol);
    }
    report(upstream, address, failure.as_ref(), seen)
}

fn report(
    upstream: &Upstream,
    address: SocketAddr,
    failure: Option<&UpstreamError>,
    seen: Observation,
) -> AddressReport {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    AddressReport {
        address,
        outcome: match failure {
            Some(_) => Outcome::Refused,
            None if upstream.tls.verify == Verify::Skip => Outcome::Unverified,
            None => Outcome::Verified,
        },
        failure: failure.map(FailureReport::from),
        tls: seen.agreed.map(|agreed| TlsReport::new(&agreed, seen.protocol)),
        client_certificate: Some(match (seen.asks_for_certificate, &upstream.tls.client) {
            (false, _) => ClientCertificate::NotAskedFor,
            (true, Some(_)) => ClientCertificate::Shown,
            (true, None) => ClientCertificate::Missing,
        }),
        unenforced_pins: seen.unenforced_pins.map(|mismatch| mismatch.to_string()),
        certificates: seen
            .certificates
            .into_iter()
            .map(|(facts, verified)| CertificateReport::new(facts, verified, now))
            .collect(),
    }
}

/// A connection to an address, or through it to the origin.
async fn connect(upstream: &Upstream, address: SocketAddr) -> Result<Way, UpstreamError> {
    let limit = upstream.pool.connect_timeout;
    let stream = match timeout(limit, TcpStream::connect(address)).await {
        Ok(connected) => connected.map_err(|source| UpstreamError::Connect { address, source })?,
        Err(_) => return Err(UpstreamError::ConnectTimeout { address, limit }),
    };
    match &upstream.tunnel {
        Some(tunnel) => tunnel::open(stream, address, tunnel).await,
        None => Ok(Way::Left(stream)),
    }
}

fn is_about_certificate(cause: Cause) -> bool {
    cause.proxy_error() == "tls_certificate_error"
}
