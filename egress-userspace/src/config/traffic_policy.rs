//! `trafficPolicy` of a `DestinationRule`, apart from `tls`: connections, failures, balancing, tunnels.

use std::{
    num::{NonZeroU16, NonZeroU32},
    time::Duration,
};

use super::{
    Code, Errors, Located, Message,
    decode::{Decode, Fields, Text, choose, shape},
    destination_rule::{PortSelector, Tls},
    node::Node,
    service_entry::EndpointAddress,
};

shape! {
    /// What holds for a host, or for a subset of it.
    pub struct TrafficPolicy {
        /// TLS for all ports that `port_level_settings` do not name.
        "tls" => tls: Option<Located<Tls>>,
        /// How connections are made and kept.
        "connectionPool" => connection_pool: Option<Located<ConnectionPool>>,
        /// When an address is left out for a while.
        "outlierDetection" => outlier_detection: Option<Located<OutlierDetection>>,
        /// How an address is chosen.
        "loadBalancer" => load_balancer: Option<LoadBalancer>,
        /// The way through a proxy.
        "tunnel" => tunnel: Option<Located<Tunnel>>,
        /// What holds for single ports instead.
        "portLevelSettings" => port_level_settings: Vec<PortPolicy>,
    }
    refused ["proxyProtocol", "retryBudget"]
}

shape! {
    /// One of `portLevelSettings`, which replaces all that is said for the host as a whole.
    pub struct PortPolicy {
        /// The port it is about.
        "port" => port: PortSelector,
        /// TLS for the port; if absent, none.
        "tls" => tls: Option<Located<Tls>>,
        /// How connections are made and kept.
        "connectionPool" => connection_pool: Option<Located<ConnectionPool>>,
        /// When an address is left out for a while.
        "outlierDetection" => outlier_detection: Option<Located<OutlierDetection>>,
        /// How an address is chosen.
        "loadBalancer" => load_balancer: Option<LoadBalancer>,
    }
    refused []
}

shape! {
    /// `connectionPool`. As in Istio, a number that is 0 says as much as none.
    pub struct ConnectionPool {
        /// Of connections.
        "tcp" => tcp: Option<TcpSettings>,
        /// Of requests.
        "http" => http: Option<HttpSettings>,
    }
    refused []
}

shape! {
    /// `connectionPool.tcp`.
    pub struct TcpSettings {
        /// At the same time.
        "maxConnections" => max_connections: Option<u32>,
        /// For the TCP handshake.
        "connectTimeout" => connect_timeout: Option<AtLeastOneMilli>,
        /// How dead connections are found out.
        "tcpKeepalive" => keepalive: Option<Keepalive>,
        /// When connections without traffic end; 0 is never.
        "idleTimeout" => idle_timeout: Option<Duration>,
        /// When connections end in any case.
        "maxConnectionDuration" => max_connection_duration: Option<AtLeastOneMilli>,
    }
    refused []
}

shape! {
    /// `connectionPool.tcp.tcpKeepalive`.
    pub struct Keepalive {
        /// Until the connection is dead.
        "probes" => probes: Option<Probes>,
        /// Before the first probe.
        "time" => time: Option<KeepaliveTime>,
        /// Between probes.
        "interval" => interval: Option<KeepaliveTime>,
    }
    refused []
}

shape! {
    /// `connectionPool.http`.
    pub struct HttpSettings {
        /// Requests that wait for a connection.
        "http1MaxPendingRequests" => max_pending_requests: Option<u32>,
        /// Requests under way, of HTTP/1.1 as well.
        "http2MaxRequests" => max_requests: Option<u32>,
        /// Requests on one connection.
        "maxRequestsPerConnection" => max_requests_per_connection: Option<u32>,
        /// Retries under way.
        "maxRetries" => max_retries: Option<u32>,
        /// When connections without requests end.
        "idleTimeout" => idle_timeout: Option<AtLeastOneMilli>,
        /// Whether HTTP/2 is spoken.
        "h2UpgradePolicy" => h2_upgrade_policy: Option<H2UpgradePolicy>,
        /// Requests at the same time on one HTTP/2 connection.
        "maxConcurrentStreams" => max_concurrent_streams: Option<u32>,
    }
    refused ["http2KeepAlive", "useClientProtocol"]
}

/// A time that is not shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtLeastOneMilli(pub Duration);

impl Text for AtLeastOneMilli {
    fn parse(text: &str) -> Result<Self, Message> {
        let time = Duration::parse(text)?;
        if time < Duration::from_millis(1) {
            return Err(format!("{text} is too short; use 1ms or more").into());
        }
        Ok(Self(time))
    }
}

/// A number of probes that the kernel takes (MAX_TCP_KEEPCNT): with more, connections would go without. As in Istio, 0 says as much as
/// none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probes(pub Option<NonZeroU32>);

impl Decode for Probes {
    fn decode(node: &Node, path: &str, errors: &mut Errors) -> Option<Self> {
        let number = u32::decode(node, path, errors)?;
        if number > 127 {
            errors.push(node.location.clone(), path, format!("{number} is not what the kernel takes; use 1 to 127"));
            return None;
        }
        Some(Self(NonZeroU32::new(number)))
    }
}

/// A time that the kernel takes, which counts seconds (MAX_TCP_KEEPIDLE, MAX_TCP_KEEPINTVL).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepaliveTime(pub Duration);

impl Text for KeepaliveTime {
    fn parse(text: &str) -> Result<Self, Message> {
        let time = Duration::parse(text)?;
        if time < Duration::from_secs(1) {
            return Err(format!("{text} is too short for the kernel, which counts in seconds; use 1s or more").into());
        }
        if time.as_secs() > 32_767 {
            return Err(format!("{text} is too long for the kernel; use 32767s or less").into());
        }
        Ok(Self(time))
    }
}

/// `h2UpgradePolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum H2UpgradePolicy {
    /// What ALPN leads to.
    Default,
    /// Only HTTP/1.1.
    DoNotUpgrade,
    /// Only HTTP/2.
    Upgrade,
}

impl Text for H2UpgradePolicy {
    fn parse(text: &str) -> Result<Self, Message> {
        let known = [("DEFAULT", Self::Default), ("DO_NOT_UPGRADE", Self::DoNotUpgrade), ("UPGRADE", Self::Upgrade)];
        choose(text, &known, &[])
    }
}

shape! {
    /// `outlierDetection`.
    pub struct OutlierDetection {
        /// Whether failures of connections are counted apart.
        "splitExternalLocalOriginErrors" => split: Option<bool>,
        /// Failures of connections; with `split`.
        "consecutiveLocalOriginFailures" => consecutive_local_origin_failures: Option<u32>,
        /// 502, 503 and 504.
        "consecutiveGatewayErrors" => consecutive_gateway_errors: Option<u32>,
        /// 500 to 599.
        "consecutive5xxErrors" => consecutive_5xx_errors: Option<u32>,
        /// How often it is decided.
        "interval" => interval: Option<AtLeastOneMilli>,
        /// How long an address is left out.
        "baseEjectionTime" => base_ejection_time: Option<AtLeastOneMilli>,
        /// How many addresses at most; 0 says as much as nothing.
        "maxEjectionPercent" => max_ejection_percent: Option<WholePercent>,
        /// How many addresses must be well.
        "minHealthPercent" => min_health_percent: Option<WholePercent>,
    }
    refused ["consecutiveErrors", "outlierDetectionHttpErrorCodes"]
}

/// A share in percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WholePercent(pub u8);

impl Decode for WholePercent {
    fn decode(node: &Node, path: &str, errors: &mut Errors) -> Option<Self> {
        let number = u32::decode(node, path, errors)?;
        match u8::try_from(number) {
            Ok(percent) if percent <= 100 => Some(Self(percent)),
            _ => {
                errors.push(node.location.clone(), path, format!("{number} is not a percentage; use 0 to 100"));
                None
            }
        }
    }
}

shape! {
    /// `loadBalancer`.
    pub struct LoadBalancer {
        /// The algorithm.
        "simple" => simple: Option<Located<Simple>>,
        /// Whether all addresses are equally near.
        "localityLbSetting" => locality: Option<NoLocality>,
    }
    refused ["consistentHash", "warmup", "warmupDurationSecs", "zoneAwareLbSetting"]
}

/// `loadBalancer.localityLbSetting` that says that there is to be none of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoLocality;

impl Decode for NoLocality {
    fn decode(node: &Node, path: &str, errors: &mut Errors) -> Option<Self> {
        let mut fields = Fields::of(node, path, errors)?;
        let enabled: Option<bool> = fields.take("enabled", errors)?;
        if enabled == Some(false) {
            fields.finish(&["distribute", "failover", "failoverPriority"], errors);
            return Some(Self);
        }
        let text = "Istio has this field, egress implements only `enabled: false` of it; set that, or remove it";
        errors.push(node.location.clone(), path, Code::Unsupported.because(text));
        None
    }
}

/// `loadBalancer.simple`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Simple {
    /// As egress likes.
    Unspecified,
    /// In turn.
    RoundRobin,
    /// The least busy of two.
    LeastRequest,
    /// At random.
    Random,
    /// The address that the application has connected to.
    Passthrough,
}

impl Text for Simple {
    fn parse(text: &str) -> Result<Self, Message> {
        choose(
            text,
            &[
                ("ROUND_ROBIN", Self::RoundRobin),
                ("LEAST_REQUEST", Self::LeastRequest),
                ("RANDOM", Self::Random),
                ("PASSTHROUGH", Self::Passthrough),
                ("UNSPECIFIED", Self::Unspecified),
            ],
            &[("LEAST_CONN", "Istio calls it LEAST_REQUEST now; use that")],
        )
    }
}

shape! {
    /// `tunnel`.
    pub struct Tunnel {
        /// How the proxy is asked.
        "protocol" => protocol: Option<TunnelProtocol>,
        /// Whom it is asked for.
        "targetHost" => target_host: EndpointAddress,
        /// On which port.
        "targetPort" => target_port: NonZeroU16,
    }
    refused []
}

/// How a proxy is asked for a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelProtocol {
    /// By CONNECT.
    Connect,
    /// By POST.
    Post,
}

impl Text for TunnelProtocol {
    fn parse(text: &str) -> Result<Self, Message> {
        choose(&text.to_ascii_uppercase(), &[("CONNECT", Self::Connect), ("POST", Self::Post)], &[])
    }
}

/// Checks what the fields say about each other.
pub(super) fn check(policy: &TrafficPolicy, errors: &mut Errors) {
    super::service_entry::check_unique(policy.port_level_settings.iter().map(|settings| &settings.port.number), errors);
    let of_ports = policy.port_level_settings.iter().filter_map(|settings| settings.outlier_detection.as_ref());
    for detection in policy.outlier_detection.iter().chain(of_ports) {
        if detection.consecutive_local_origin_failures.is_some() && detection.split != Some(true) {
            let message = "consecutiveLocalOriginFailures needs splitExternalLocalOriginErrors; set that to true, or remove \
                           the former";
            errors.at(detection, Code::Contradiction.because(message));
        }
    }
}
