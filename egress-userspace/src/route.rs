//! The policy in the form that requests need: a table of routes, swapped as a whole.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    config::{Code, Diagnostic},
    kernel::{Intercepted, Watched},
    policy::{
        Adjustments, ConnectionPool, EndpointAddress, HostName, HostPattern, HttpRoute, Location, Policy, Protocol,
        Rule, Targets, Upstream, UpstreamProtocol, parents,
    },
    resolve::{Addresses, Names, ResolveError},
    upstream::pool::To,
    upstream::tls::{Clients, Originator, TlsError, Workshop},
};

/// Names a route among all that ever were, so that pooled connections of an old one are not taken for a new one's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RouteId(u64);

impl RouteId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// One rule, ready for requests.
#[derive(Debug)]
pub struct Route {
    /// The route's own name.
    pub id: RouteId,
    /// What the user wrote.
    pub rule: Arc<Rule>,
    /// The only place that it leads to.
    pub upstream: Arc<Upstream>,
    /// How TLS is originated.
    pub originator: Originator,
    targets: Vec<Target>,
}

/// Where upstream addresses come from.
#[derive(Debug)]
enum Target {
    Resolved(Addresses, u16),
    Literal(SocketAddr),
    /// Where the application was going.
    Origin(u16),
}

impl Route {
    /// The addresses to try, best first, for a connection whose application was going to `origin`.
    ///
    /// The origin's own address comes first where it is among those resolved: the application chose it. It is also the
    /// last resort while we cannot resolve the name; TLS proves who it is.
    pub fn candidates(&self, origin: IpAddr) -> Vec<SocketAddr> {
        let mut found = Vec::new();
        for target in &self.targets {
            match target {
                Target::Resolved(addresses, port) => {
                    let addresses = addresses.load();
                    found.extend(addresses.iter().map(|&address| SocketAddr::new(address, *port)));
                }
                Target::Literal(address) => found.push(*address),
                Target::Origin(port) => found.push(SocketAddr::new(origin, *port)),
            }
        }
        if found.is_empty() && matches!(self.upstream.targets, Targets::Resolve(_)) {
            found.push(SocketAddr::new(origin, self.upstream.target_port));
        }
        // The application's choice first, then the families in turn (RFC 8305 section 4).
        let (same, other): (Vec<_>, Vec<_>) = found.into_iter().partition(|found| found.is_ipv4() == origin.is_ipv4());
        let (chosen, same): (Vec<_>, Vec<_>) = same.into_iter().partition(|found| found.ip() == origin);
        let (mut same, mut other) = (chosen.into_iter().chain(same), other.into_iter());
        let mut ordered = Vec::new();
        loop {
            let pair = (same.next(), other.next());
            if pair == (None, None) {
                return ordered;
            }
            ordered.extend(pair.0.into_iter().chain(pair.1));
        }
    }

    /// The one host that it is for; None if that is a wildcard.
    fn host(&self) -> Option<&HostName> {
        match &self.rule.host {
            HostPattern::Exact(host) => Some(host),
            HostPattern::Wildcard(_) => None,
        }
    }

    /// What a pooled connection must lead to, to serve a request for `host` whose application was going to `origin`.
    pub fn pooled(&self, host: &str, origin: IpAddr) -> To {
        To::Route {
            id: self.id,
            address: matches!(self.upstream.targets, Targets::Original).then_some(origin),
            name: (!self.rule.host.is_exact()).then(|| host.into()),
        }
    }
}

/// All routes of one policy.
#[derive(Debug, Default)]
pub struct RouteTable {
    /// By host; a host has a few ports at most.
    exact: HashMap<HostName, Vec<Arc<Route>>>,
    /// By what comes after the `*.`.
    wildcards: HashMap<HostName, Vec<Arc<Route>>>,
    /// What the routes share.
    clients: Clients,
}

impl RouteTable {
    /// The route for requests to `host` (lower case, no port, no trailing dot) that were going to `port`.
    ///
    /// The most specific rule for that port counts, as in Istio. An IP address stands for the host of the rule that lists it
    /// among its addresses; of several, the first by name.
    pub fn route(&self, host: &str, port: u16) -> Option<&Arc<Route>> {
        let wildcards = parents(host).filter_map(|parent| self.wildcards.get(parent));
        let mut covering = self.exact.get(host).into_iter().chain(wildcards).flatten();
        covering
            .find(|route| route.rule.port == port)
            .or_else(|| self.route_by_address(host.trim_matches(['[', ']']).parse().ok()?, port))
    }

    /// The route that was made for a rule like this one.
    fn route_of(&self, rule: &Rule) -> Option<&Arc<Route>> {
        self.of(&rule.host).get(rule.host.name())?.iter().find(|route| *route.rule == *rule)
    }

    fn of(&self, host: &HostPattern) -> &HashMap<HostName, Vec<Arc<Route>>> {
        match host {
            HostPattern::Exact(_) => &self.exact,
            HostPattern::Wildcard(_) => &self.wildcards,
        }
    }

    fn route_by_address(&self, address: IpAddr, port: u16) -> Option<&Arc<Route>> {
        let listed = |route: &&Arc<Route>| {
            route.rule.port == port && route.rule.addresses.iter().any(|cidr| cidr.contains(address))
        };
        self.routes().filter(listed).min_by(|one, other| one.rule.host.cmp(&other.rule.host))
    }

    /// All routes.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.exact.values().chain(self.wildcards.values()).flatten()
    }

    /// Whether both tables consist of the very same routes.
    pub fn same_routes(&self, other: &Self) -> bool {
        let ids = |table: &Self| table.routes().map(|route| route.id).collect::<HashSet<_>>();
        ids(self) == ids(other)
    }

    /// Every name that must be resolved: the rules' hosts, since applications connect to their addresses, and the names
    /// of endpoints. Addresses of wildcards are learned from what applications are answered.
    pub fn names(policy: &Policy) -> HashSet<HostName> {
        let mut names = HashSet::new();
        for rule in policy.rules() {
            if let HostPattern::Exact(host) = &rule.host {
                names.insert(host.clone());
            }
            for upstream in &rule.upstreams {
                match &upstream.targets {
                    Targets::Resolve(host) => _ = names.insert(host.clone()),
                    Targets::Endpoints(endpoints) => {
                        names.extend(endpoints.iter().filter_map(|endpoint| match &endpoint.address {
                            EndpointAddress::Name(name) => Some(name.clone()),
                            EndpointAddress::Ip(_) => None,
                        }));
                    }
                    Targets::Original => {}
                }
            }
        }
        names
    }

    /// Builds the table for `policy`. Routes that are the same as in `previous`, files included, are kept with their
    /// pooled connections and TLS sessions.
    ///
    /// # Errors
    /// The TLS settings of a rule cannot be carried out. All such rules are listed.
    pub fn build(policy: &Policy, previous: &Self, names: &Names) -> Result<Self, Vec<TlsError>> {
        let mut table = Self::default();
        let mut errors = Vec::new();
        let mut workshop = Workshop::new(&previous.clients);
        for rule in policy.rules() {
            let built = sole_upstream(rule).and_then(|upstream| {
                let originator = workshop.originator(&upstream.host, &upstream.tls, &upstream.location)?;
                let kept = previous.route_of(rule).filter(|old| old.originator.is_same_client(&originator));
                Ok(kept.cloned().unwrap_or_else(|| {
                    let (id, targets) = (RouteId::next(), targets(upstream, names));
                    Arc::new(Route { id, rule: rule.clone(), upstream: upstream.clone(), originator, targets })
                }))
            });
            match built {
                Ok(route) => {
                    let routes = match &rule.host {
                        HostPattern::Exact(_) => &mut table.exact,
                        HostPattern::Wildcard(_) => &mut table.wildcards,
                    };
                    routes.entry(rule.host.name().clone()).or_default().push(route);
                }
                // The same for all of them.
                Err(error @ TlsError::NoSystemRoots) => return Err(vec![error]),
                Err(error) => errors.push(error),
            }
        }
        table.clients = workshop.finish();
        if errors.is_empty() { Ok(table) } else { Err(errors) }
    }

    /// The networks that these routes' hosts are known to be in.
    pub fn intercepted(&self, names: &Names) -> HashSet<Intercepted> {
        let mut wanted = HashSet::new();
        for route in self.routes() {
            let port = route.rule.port;
            let resolved = route.host().into_iter().flat_map(|host| names.intercepted(host));
            wanted.extend(resolved.map(|address| Intercepted::host(address, port)));
            wanted.extend(route.rule.addresses.iter().map(|cidr| Intercepted {
                address: cidr.address,
                prefix_len: cidr.prefix_len,
                port,
            }));
        }
        wanted
    }

    /// Hosts and ports whose addresses the kernel must learn.
    pub fn watched(&self) -> Watched {
        self.routes().map(|route| (route.rule.host.clone(), route.rule.port)).collect()
    }

    /// Hosts of which no address is known, so that nothing of theirs is intercepted.
    pub fn unintercepted(&self, names: &Names) -> Vec<ResolveError> {
        self.routes()
            .filter(|route| route.rule.addresses.is_empty())
            .filter_map(|route| route.host())
            .filter(|host| names.intercepted(host).next().is_none())
            .filter_map(|host| names.failure(host).cloned())
            .collect()
    }
}

fn targets(upstream: &Upstream, names: &Names) -> Vec<Target> {
    match &upstream.targets {
        Targets::Resolve(host) => vec![Target::Resolved(names.addresses(host), upstream.target_port)],
        Targets::Original => vec![Target::Origin(upstream.target_port)],
        Targets::Endpoints(endpoints) => endpoints
            .iter()
            .map(|endpoint| match &endpoint.address {
                EndpointAddress::Ip(ip) => Target::Literal(SocketAddr::new(*ip, endpoint.port)),
                EndpointAddress::Name(name) => Target::Resolved(names.addresses(name), endpoint.port),
            })
            .collect(),
    }
}

/// The place that all requests of a rule go to, unless the rule asks for what requests are not yet given.
fn sole_upstream(rule: &Rule) -> Result<&Arc<Upstream>, TlsError> {
    match (pending(rule), rule.upstreams.first()) {
        (None, Some(upstream)) => Ok(upstream),
        (pending, _) => Err(TlsError::Settings {
            location: rule.location.clone(),
            problem: pending.map(|pending| pending.reason).unwrap_or_default(),
        }),
    }
}

/// What a rule asks for that requests are not yet given, if there is such a thing.
pub fn pending(rule: &Rule) -> Option<Diagnostic> {
    let refused = |location: &Location, what: &str| {
        let text = format!("{what} is understood, but cannot be carried out yet; remove it");
        Some(Diagnostic::new(location.clone(), "", Code::Pending.because(text)))
    };
    let [upstream] = rule.upstreams.as_slice() else {
        return refused(&rule.location, "a VirtualService");
    };
    if rule.routes.as_slice() != [HttpRoute::catch_all(upstream.location.clone())] {
        return refused(&rule.location, "a VirtualService");
    }
    let has_weights = match &upstream.targets {
        Targets::Endpoints(endpoints) => endpoints.iter().any(|endpoint| endpoint.weight != endpoints[0].weight),
        Targets::Resolve(_) | Targets::Original => false,
    };
    let pending = [
        ("protocol HTTP2 or GRPC", rule.protocol != Protocol::Http1),
        ("the weight of an endpoint", has_weights),
        ("h2UpgradePolicy", upstream.protocol != UpstreamProtocol::Negotiated),
        ("connectionPool", upstream.pool != ConnectionPool::default()),
        ("outlierDetection", upstream.outlier_detection.is_some()),
        ("loadBalancer", upstream.balancer.is_some()),
        ("tunnel", upstream.tunnel.is_some()),
        ("an annotation that adjusts requests or responses", upstream.adjustments != Adjustments::default()),
        ("egress.dev/preconnect", upstream.preconnect > 0),
    ];
    let (what, _) = pending.into_iter().find(|(_, is_asked)| *is_asked)?;
    refused(&upstream.location, what)
}
