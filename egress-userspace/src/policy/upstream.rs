//! Where requests are sent, and how connections to there are made, kept and chosen.

use std::{
    num::{NonZeroU16, NonZeroU32},
    path::Path,
    sync::Arc,
    time::Duration,
};

use super::{EndpointAddress, HostName, HostPattern, Location, TlsSettings};

/// One port of a host, or a subset of it, reached over TLS: there is no other kind of upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// The host, whose name is asked for and verified unless `tls` says otherwise.
    pub host: HostPattern,
    /// The port by which the configuration refers to it.
    pub port: u16,
    /// The part of the host's endpoints, if it is limited to one.
    pub subset: Option<Arc<str>>,
    /// The port to connect to.
    pub target_port: u16,
    /// Where to connect to.
    pub targets: Targets,
    /// What is spoken there.
    pub protocol: UpstreamProtocol,
    /// How to speak TLS there.
    pub tls: TlsSettings,
    /// How connections are made and kept.
    pub pool: ConnectionPool,
    /// When an address is left out for a while.
    pub outlier_detection: Option<OutlierDetection>,
    /// How an address is chosen; if absent, the one that the application chose comes first. Several endpoints have one.
    pub balancer: Option<LoadBalancer>,
    /// The proxy's own part on the way there.
    pub tunnel: Option<Tunnel>,
    /// What is done for applications and origins that TLS origination alone leaves unhappy.
    pub adjustments: Adjustments,
    /// How many connections are made before they are needed.
    pub preconnect: u16,
    /// The `tls` block that asks for it.
    pub location: Location,
}

/// Where an upstream's addresses come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// The target port of this name's addresses.
    Resolve(HostName),
    /// One of these; there is at least one.
    Endpoints(Vec<Endpoint>),
    /// The target port of the address that the application connected to.
    Original,
}

/// One place that serves a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: EndpointAddress,
    /// Its port.
    pub port: u16,
    /// Its share of the connections, beside the others' weights.
    pub weight: NonZeroU32,
}

/// What is spoken to an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// What ALPN leads to.
    #[default]
    Negotiated,
    /// HTTP/1.1 alone: `h2UpgradePolicy: DO_NOT_UPGRADE`.
    Http1,
    /// HTTP/2 alone: for ports of protocol HTTP2 or GRPC, and `h2UpgradePolicy: UPGRADE`.
    Http2,
}

/// How connections to an upstream are made and kept. Limits are those of one agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionPool {
    /// Connections at the same time at most.
    pub max_connections: u32,
    /// The time for a TCP connection, all addresses together.
    pub connect_timeout: Duration,
    /// How dead connections are found out.
    pub keepalive: Option<Keepalive>,
    /// When connections end that carry no bytes, after a switch to another protocol; if absent, never.
    pub tcp_idle_timeout: Option<Duration>,
    /// How old a connection gets at most; it ends with the exchange that is under way then.
    pub max_connection_duration: Option<Duration>,
    /// Requests that wait for a connection at most.
    pub max_pending_requests: u32,
    /// Requests under way at most.
    pub max_requests: u32,
    /// Requests on one connection at most.
    pub max_requests_per_connection: Option<NonZeroU32>,
    /// Retries under way at most.
    pub max_retries: u32,
    /// When connections without requests are closed; sooner if absent than servers commonly do.
    pub idle_timeout: Option<Duration>,
    /// Streams on one HTTP/2 connection at most.
    pub max_concurrent_streams: Option<NonZeroU32>,
}

impl ConnectionPool {
    /// Whether a connection serves one request at a time at most, whatever its protocol.
    pub fn shares_no_connections(&self) -> bool {
        [self.max_requests_per_connection, self.max_concurrent_streams].contains(&Some(NonZeroU32::MIN))
    }
}

impl Default for ConnectionPool {
    fn default() -> Self {
        Self {
            max_connections: u32::MAX,
            connect_timeout: Duration::from_secs(10),
            keepalive: None,
            tcp_idle_timeout: None,
            max_connection_duration: None,
            max_pending_requests: u32::MAX,
            max_requests: u32::MAX,
            max_requests_per_connection: None,
            max_retries: u32::MAX,
            idle_timeout: None,
            max_concurrent_streams: None,
        }
    }
}

/// TCP keepalive (RFC 1122 section 4.2.3.6); what is absent is the system's setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keepalive {
    /// Probes without an answer until the connection is dead.
    pub probes: Option<NonZeroU32>,
    /// How long it is idle before the first.
    pub time: Option<Duration>,
    /// The time between two.
    pub interval: Option<Duration>,
}

/// When an address is left out for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierDetection {
    /// After so many responses 5xx in a row; failures of connections count as such unless `local_origin` has a number.
    pub server_errors: Option<NonZeroU32>,
    /// After so many responses 502, 503 or 504 in a row.
    pub gateway_errors: Option<NonZeroU32>,
    /// After so many failures of connections in a row, where those are counted apart.
    pub local_origin: Option<NonZeroU32>,
    /// How often it is decided who comes back.
    pub interval: Duration,
    /// For how long, times the number of times that it has been left out.
    pub base_ejection_time: Duration,
    /// How many addresses at most, in percent: none, if one is more than that.
    pub max_ejection_percent: u8,
    /// If fewer addresses are well, in percent, none is left out.
    pub min_health_percent: u8,
}

/// How an address is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadBalancer {
    /// Each in its turn.
    RoundRobin,
    /// Of two drawn at random the one with fewer requests under way.
    LeastRequest,
    /// At random.
    Random,
}

/// A way through an HTTP proxy that is the upstream proper: TLS to the origin is made inside of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// How the proxy is asked.
    pub method: TunnelMethod,
    /// The origin's host as the proxy is to know it.
    pub host: EndpointAddress,
    /// The origin's port.
    pub port: NonZeroU16,
}

/// How a proxy is asked for a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelMethod {
    /// `CONNECT host:port` (RFC 9110 section 9.3.6).
    Connect,
    /// POST, whose content the proxy passes on to the host that it names, and whose response has what comes back.
    Post,
}

/// What the `egress.dev/` annotations ask for; all is off by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adjustments {
    /// `X-Forwarded-*` and `Forwarded` (RFC 7239) are removed from requests, so that no origin redirects to https because
    /// they say that http was spoken.
    pub strip_forwarded_headers: bool,
    /// `Secure` is removed from cookies (RFC 6265 section 4.1.2.5), which clients would not send back over http.
    pub drop_secure_cookie_attribute: bool,
    /// `Location: https://` becomes `http://` where it leads to a host that TLS is originated for.
    pub rewrite_location: bool,
}

impl Upstream {
    /// Whether it is the same, be it written somewhere else: connections and what is known of addresses outlive a comment.
    pub fn is_like(&self, other: &Self) -> bool {
        // All fields by name, so that a new one is not forgotten.
        let Self {
            host,
            port,
            subset,
            target_port,
            targets,
            protocol,
            tls,
            pool,
            outlier_detection,
            balancer,
            tunnel,
            adjustments,
            preconnect,
            location: _,
        } = self;
        *host == other.host
            && *port == other.port
            && *subset == other.subset
            && *target_port == other.target_port
            && *targets == other.targets
            && *protocol == other.protocol
            && tls.is_like(&other.tls)
            && *pool == other.pool
            && *outlier_detection == other.outlier_detection
            && *balancer == other.balancer
            && *tunnel == other.tunnel
            && *adjustments == other.adjustments
            && *preconnect == other.preconnect
    }

    /// The files that it names.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.tls.files()
    }
}
