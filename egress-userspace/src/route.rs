//! The policy in the form that requests need: a table of routes, swapped as a whole.

mod cluster;
mod owners;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use foldhash::{HashMap, HashSet};

pub use self::cluster::{Active, Chosen, Cluster, ClusterId};
use self::owners::Owners;
use crate::{
    config::{Cidr, Progress},
    kernel::Intercepted,
    netns::NetnsCookie,
    policy::{
        Action, EndpointAddress, HostName, HostPattern, HttpRoute, Policy, Rule, Targets, Upstream, UpstreamIndex,
        parents,
    },
    resolve::{Names, ResolveError},
    upstream::tls::{Clients, Dated, Originator, TlsError, Validity, Workshop},
};

/// One rule, ready for requests.
#[derive(Debug)]
pub struct Route {
    /// What the user wrote.
    pub rule: Arc<Rule>,
    /// The rule's upstreams, by the same index.
    clusters: Vec<Arc<Cluster>>,
}

impl Route {
    /// The cluster of one of the rule's upstreams.
    pub fn cluster(&self, index: UpstreamIndex) -> &Arc<Cluster> {
        // A rule's routes name no others.
        &self.clusters[index.0]
    }

    /// The one host that it is for; None if that is a wildcard.
    fn host(&self) -> Option<&HostName> {
        match &self.rule.host {
            HostPattern::Exact(host) => Some(host),
            HostPattern::Wildcard(_) => None,
        }
    }

    /// The one place where all requests go that it is for, and the host that they are for; None where that depends on the request, or
    /// on whose turn it is.
    pub fn only(&self) -> Option<(&HostName, &Arc<Cluster>)> {
        let [cluster] = &self.clusters[..] else { return None };
        let goes_there = |route: &HttpRoute| match &route.action {
            Action::Forward(destinations) => {
                let mut authorities = destinations.iter().map(|destination| route.authority(destination));
                route.fault.abort.is_none() && authorities.all(|authority| authority.is_none())
            }
            Action::Redirect(_) | Action::Respond(_) => false,
        };
        let is_only = cluster.upstream.balancer.is_none() && self.rule.routes.iter().all(goes_there);
        self.host().filter(|_| is_only).map(|host| (host, cluster))
    }

    /// The addresses that its host is known to have: those of its own name, and those of its endpoints.
    fn addresses(&self, names: &Names) -> impl Iterator<Item = IpAddr> {
        let endpoints = self.rule.endpoints.iter();
        let own = endpoints.clone().filter_map(|endpoint| match endpoint {
            EndpointAddress::Ip(address) => Some(*address),
            EndpointAddress::Name(_) => None,
        });
        let called = self.host().into_iter().chain(endpoints.filter_map(EndpointAddress::name));
        own.chain(called.flat_map(|name| names.intercepted(name)))
    }

    /// The same with its port.
    fn places<'r>(self: &'r Arc<Self>, names: &Names) -> impl Iterator<Item = (SocketAddr, &'r Arc<Self>)> {
        self.addresses(names).map(move |address| (SocketAddr::new(address, self.rule.port), self))
    }

    /// Whether it is the very same.
    fn is(&self, rule: &Rule, clusters: &[Arc<Cluster>]) -> bool {
        let pairs = self.clusters.iter().zip(clusters);
        self.clusters.len() == clusters.len()
            && pairs.into_iter().all(|(one, other)| Arc::ptr_eq(one, other))
            && *self.rule == *rule
    }
}

/// What is said of one port of a host.
#[derive(Debug)]
enum Said {
    /// Its requests go by this route.
    Route(Arc<Route>),
    /// They are left as they are, whatever is said of a wildcard.
    Excepted {
        port: u16,
        /// The line that says so.
        by: Arc<str>,
    },
}

impl Said {
    fn port(&self) -> u16 {
        match self {
            Self::Route(route) => route.rule.port,
            Self::Excepted { port, .. } => *port,
        }
    }

    fn route(&self) -> Option<&Arc<Route>> {
        match self {
            Self::Route(route) => Some(route),
            Self::Excepted { .. } => None,
        }
    }
}

/// All routes of one policy.
#[derive(Debug, Default)]
pub struct RouteTable {
    /// By host; a host has a few ports at most.
    exact: HashMap<HostName, Vec<Said>>,
    /// By what comes after the `*.`.
    wildcards: HashMap<HostName, Vec<Said>>,
    /// By the networks of their addresses, and by port: the first by name.
    networks: HashMap<(Cidr, u16), Arc<Route>>,
    /// The lengths of those networks' prefixes, in bits.
    prefix_lens: BTreeSet<u8>,
    /// Whose the addresses are that hosts have by their names.
    owners: Owners,
    /// Of the hosts that they serve, by the names of endpoints.
    endpoints: HashMap<HostName, Vec<Arc<Route>>>,
    /// All clusters, by what they are called in the configuration.
    clusters: HashMap<ClusterName, Vec<Arc<Cluster>>>,
    /// What the clusters share.
    clients: Clients,
}

/// How TLS is originated for the upstreams of a policy. To make them reads files, which can take as long as it likes.
#[derive(Debug)]
pub struct Originators {
    /// In the order of the policy.
    of_upstreams: Vec<Originator>,
    clients: Clients,
    /// Why some are as they were before.
    pub kept: Vec<TlsError>,
}

impl Originators {
    /// Those for `policy`, telling what is being read. Where files are bad by now, or cannot be read, those of `previous` with the same
    /// settings are kept.
    ///
    /// # Errors
    /// The TLS settings of a rule cannot be carried out. All such rules are listed.
    pub fn make(policy: &Policy, previous: &RouteTable, progress: &Progress) -> Result<Self, Vec<TlsError>> {
        let (mut of_upstreams, mut errors) = (Vec::new(), Vec::new());
        let mut workshop = Workshop::telling(&previous.clients, progress.clone());
        for upstream in policy.rules().flat_map(|rule| &rule.upstreams) {
            match workshop.originator(&upstream.host, &upstream.tls, &upstream.location) {
                Ok(originator) => of_upstreams.push(originator),
                // The same for all of them.
                Err(error @ TlsError::SystemRoots(_)) => return Err(vec![error]),
                Err(error) => errors.push(error),
            }
        }
        let (clients, kept) = workshop.finish();
        if errors.is_empty() { Ok(Self { of_upstreams, clients, kept }) } else { Err(errors) }
    }
}

/// A host, one of its ports, and a subset.
type ClusterName = (HostPattern, u16, Option<Arc<str>>);

impl RouteTable {
    /// The route for requests to `host` (lower case, no port, no trailing dot) that were going to `port`.
    ///
    /// The most specific rule for that port counts, as in Istio. An IP address stands for the host of the rule that lists it
    /// among its addresses; of several, that of the smallest network, and of those with the same one the first by name.
    pub fn route(&self, host: &str, port: u16) -> Option<&Arc<Route>> {
        match self.said(host, port) {
            Some(said) => said.route(),
            None => self.route_by_address(host.trim_matches(['[', ']']).parse::<IpAddr>().ok()?.to_canonical(), port),
        }
    }

    /// Where it is said that requests to `host` on `port` are left as they are, though they are among those of a wildcard.
    pub fn exception(&self, host: &str, port: u16) -> Option<&Arc<str>> {
        match self.said(host, port)? {
            Said::Excepted { by, .. } => Some(by),
            Said::Route(_) => None,
        }
    }

    /// The most specific that is said of a port.
    fn said(&self, host: &str, port: u16) -> Option<&Said> {
        let wildcards = parents(host).filter_map(|parent| self.wildcards.get(parent));
        let mut covering = self.exact.get(host).into_iter().chain(wildcards).flatten();
        covering.find(|said| said.port() == port)
    }

    /// The route for the one host that has this address, as far as is known without what applications were told. None if others have
    /// it, too, or the addresses of one are listed that includes it.
    pub fn alone_at(&self, address: SocketAddr) -> Option<Arc<Route>> {
        let is_listed = self.route_by_address(address.ip(), address.port()).is_some();
        self.owners.of(address).filter(|_| !is_listed)
    }

    /// Takes in the addresses of all names.
    pub fn locate_all(&self, names: &Names) {
        self.owners.set(self.routes().flat_map(|route| route.places(names)));
    }

    /// Takes in the addresses that one name has, too.
    pub fn locate(&self, name: &HostName, names: &Names) {
        let own = self.exact.get(name).into_iter().flatten().filter_map(Said::route);
        let routes = own.chain(self.endpoints.get(name).into_iter().flatten());
        self.owners.add(routes.flat_map(|route| route.places(names)));
    }

    fn of(&self, host: &HostPattern) -> impl Iterator<Item = &Arc<Route>> {
        let table = match host {
            HostPattern::Exact(_) => &self.exact,
            HostPattern::Wildcard(_) => &self.wildcards,
        };
        table.get(host.name()).into_iter().flatten().filter_map(Said::route)
    }

    fn route_by_address(&self, address: IpAddr, port: u16) -> Option<&Arc<Route>> {
        let networks = self.prefix_lens.iter().rev().filter_map(|&prefix_len| Cidr::of(address, prefix_len));
        networks.filter_map(|network| self.networks.get(&(network, port))).next()
    }

    /// All routes.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.exact.values().chain(self.wildcards.values()).flatten().filter_map(Said::route)
    }

    /// When certificates that origins are shown, and revocation lists that they are looked up in, are over, by what they are called.
    pub fn times(&self) -> BTreeMap<(Dated, String), Validity> {
        self.clients.times()
    }

    /// Forgets a network namespace that is gone.
    pub fn forget(&self, netns: NetnsCookie) {
        self.clusters.values().flatten().for_each(|cluster| cluster.forget(netns));
    }

    /// Whether both tables consist of the very same routes.
    pub fn same_routes(&self, other: &Self) -> bool {
        let all = |table: &Self| table.routes().map(Arc::as_ptr).collect::<HashSet<_>>();
        all(self) == all(other)
    }

    /// The ports of the hosts that an endpoint of this name serves.
    pub fn served_by(&self, endpoint: &HostName) -> impl Iterator<Item = u16> {
        self.endpoints.get(endpoint).into_iter().flatten().map(|route| route.rule.port)
    }

    /// Every name that must be resolved: the rules' hosts and the names of their endpoints, since applications connect to their
    /// addresses, and those that requests are sent to. Addresses of wildcards are learned from what applications are answered.
    pub fn names(policy: &Policy) -> HashSet<HostName> {
        let mut names = HashSet::default();
        for rule in policy.rules() {
            if let HostPattern::Exact(host) = &rule.host {
                names.insert(host.clone());
            }
            names.extend(rule.endpoints.iter().filter_map(EndpointAddress::name).cloned());
            for upstream in &rule.upstreams {
                match &upstream.targets {
                    Targets::Resolve(host) => _ = names.insert(host.clone()),
                    Targets::Endpoints(endpoints) => {
                        names.extend(endpoints.iter().filter_map(|endpoint| endpoint.address.name()).cloned());
                    }
                    Targets::Original => {}
                }
            }
        }
        names
    }

    /// Builds the table for `policy`, whose `originators` were made by what was in files in the time of `previous`. Clusters that are
    /// the same as there, contents of files included, are kept with their pooled connections, limits and TLS sessions, wherever they
    /// are written now.
    pub fn build(policy: &Policy, originators: Originators, previous: &Self, names: &Names) -> Self {
        let mut table = Self { clients: originators.clients, ..Self::default() };
        let mut originators = originators.of_upstreams.into_iter();
        for rule in policy.rules() {
            let upstreams = rule.upstreams.iter().zip(originators.by_ref());
            let clusters =
                upstreams.map(|(upstream, originator)| table.cluster(upstream, &originator, previous, names));
            let clusters = clusters.collect();
            table.add(rule, clusters, previous);
        }
        for exception in policy.exceptions() {
            let by = exception.location.to_string().into();
            table.say(&exception.host, Said::Excepted { port: exception.port, by });
        }
        table
    }

    /// The cluster for an upstream: one that there is, so that rules share its connections and its limits, or one like it of the
    /// policy before.
    fn cluster(
        &mut self,
        upstream: &Arc<Upstream>,
        originator: &Originator,
        previous: &Self,
        names: &Names,
    ) -> Arc<Cluster> {
        let name = (upstream.host.clone(), upstream.port, upstream.subset.clone());
        let like = |cluster: &&Arc<Cluster>| {
            cluster.originator.is_same_client(originator) && cluster.upstream.is_like(upstream)
        };
        let of = |table: &Self| table.clusters.get(&name).into_iter().flatten().find(like).cloned();
        if let Some(present) = of(self) {
            return present;
        }
        let cluster =
            of(previous).unwrap_or_else(|| Arc::new(Cluster::new(upstream.clone(), originator.clone(), names)));
        self.clusters.entry(name).or_default().push(cluster.clone());
        cluster
    }

    fn add(&mut self, rule: &Arc<Rule>, clusters: Vec<Arc<Cluster>>, previous: &Self) {
        let kept = previous.of(&rule.host).find(|old| old.is(rule, &clusters)).cloned();
        let route = kept.unwrap_or_else(|| Arc::new(Route { rule: rule.clone(), clusters }));
        for cidr in &rule.addresses {
            self.prefix_lens.insert(cidr.prefix_len);
            let first = self.networks.entry((*cidr, rule.port)).or_insert_with(|| route.clone());
            if rule.host < first.rule.host {
                *first = route.clone();
            }
        }
        for name in rule.endpoints.iter().filter_map(EndpointAddress::name) {
            self.endpoints.entry(name.clone()).or_default().push(route.clone());
        }
        self.say(&rule.host, Said::Route(route));
    }

    fn say(&mut self, host: &HostPattern, said: Said) {
        let table = match host {
            HostPattern::Exact(_) => &mut self.exact,
            HostPattern::Wildcard(_) => &mut self.wildcards,
        };
        table.entry(host.name().clone()).or_default().push(said);
    }

    /// The networks that these routes' hosts are known to be in.
    pub fn intercepted(&self, names: &Names) -> HashSet<Intercepted> {
        let mut wanted = HashSet::default();
        for route in self.routes() {
            let port = route.rule.port;
            wanted.extend(route.addresses(names).map(|address| Intercepted::host(address, port)));
            wanted.extend(route.rule.addresses.iter().map(|cidr| Intercepted {
                address: cidr.address,
                prefix_len: cidr.prefix_len,
                port,
            }));
        }
        wanted
    }

    /// Hosts, and names of endpoints, of which no address is known, so that nothing of theirs is intercepted. Where they are served
    /// says nothing of that: applications connect to what they are told.
    pub fn unintercepted(&self, names: &Names) -> Vec<ResolveError> {
        self.routes()
            .filter(|route| route.rule.addresses.is_empty())
            .filter_map(|route| route.host())
            .chain(self.endpoints.keys())
            .filter(|host| names.intercepted(host).next().is_none())
            .filter_map(|host| names.failure(host).cloned())
            .collect()
    }

    /// What went wrong with one of the hosts, if no name server has answered for any, and none is intercepted without. Those that
    /// the hosts file has say nothing of that.
    pub fn unanswered(&self, names: &Names) -> Option<ResolveError> {
        let mut unanswered = None;
        for route in self.routes() {
            let host = route.host().filter(|_| !route.rule.is_located())?;
            if !names.is_listed(host) {
                unanswered = Some(names.unanswered(host)?);
            }
        }
        unanswered.cloned()
    }
}
