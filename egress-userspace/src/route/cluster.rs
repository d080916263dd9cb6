//! An upstream of the policy, ready for requests: its addresses, which of them is next, and what is under way to it.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use arc_swap::ArcSwap;

use crate::{
    netns::NetnsCookie,
    policy::{EndpointAddress, HostPattern, LoadBalancer, Targets, Upstream},
    resolve::{Addresses, Known, Names},
    upstream::{
        UpstreamError,
        health::Health as Failing,
        limits::Usage,
        outlier::{Health, Seen},
        pool::To,
        tls::Originator,
    },
};

/// Names a cluster among all that ever were, so that pooled connections of an old one are not taken for a new one's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ClusterId(u64);

impl ClusterId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A place that requests are sent to; Envoy's word for it.
#[derive(Debug)]
pub struct Cluster {
    /// The cluster's own name.
    pub id: ClusterId,
    /// What the user wrote.
    pub upstream: Arc<Upstream>,
    /// How TLS is originated.
    pub originator: Originator,
    /// What is under way, and may be.
    pub usage: Arc<Usage>,
    targets: Vec<Target>,
    /// Which addresses are left out, if any may be.
    health: Option<Health>,
    /// Whose turn it is.
    turn: AtomicUsize,
    /// Requests under way to each address, where that matters.
    active: Arc<Counts>,
}

/// Where upstream addresses come from, and their share.
#[derive(Debug)]
struct Target {
    place: Place,
    weight: usize,
}

#[derive(Debug)]
enum Place {
    Resolved(Addresses, u16),
    Literal(SocketAddr),
    /// Where the application was going.
    Origin(u16),
}

/// Where one request goes, as far as it matters before a connection has to be made.
#[derive(Clone, Copy, Debug)]
pub struct Chosen {
    /// The address, where no other will do: none then, if none is known or all are left out.
    pub address: Option<SocketAddr>,
    /// How many there are, if it was chosen among all of them.
    pub among: Option<usize>,
    /// Whether another one could have been chosen.
    pub has_others: bool,
    /// Whether one of those was not tried yet.
    pub has_untried: bool,
}

/// A request under way to an address, for as long as this lives, be it longer than the cluster.
#[derive(Debug)]
pub struct Active(Option<(Arc<Counts>, SocketAddr)>);

/// Requests under way to each address.
#[derive(Debug, Default)]
struct Counts(Mutex<HashMap<SocketAddr, usize>>);

impl Counts {
    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, usize>> {
        // Nobody panics while holding it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cluster {
    /// The cluster for an upstream.
    pub(super) fn new(upstream: Arc<Upstream>, originator: Originator, names: &Names) -> Self {
        let targets = targets(&upstream, names);
        let usage = Usage::new(upstream.pool.clone()).leading_to(names_of(&targets));
        Self {
            id: ClusterId::next(),
            targets,
            health: upstream.outlier_detection.map(Health::new),
            usage: Arc::new(usage),
            upstream,
            originator,
            turn: AtomicUsize::new(0),
            active: Arc::default(),
        }
    }

    /// Chooses where a request goes whose application, in `netns`, was going to `origin`: rather not where it was `tried` already,
    /// nor, unless a balancer spreads requests whatever becomes of them, where connections are `failing`.
    pub fn choose(&self, netns: NetnsCookie, origin: IpAddr, failing: &Failing, tried: &[SocketAddr]) -> Chosen {
        let is_balanced = self.upstream.balancer.is_some();
        if !is_balanced && self.health.is_none() {
            let is_original = matches!(self.upstream.targets, Targets::Original);
            let address = is_original.then(|| SocketAddr::new(origin, self.upstream.target_port));
            return Chosen { address, among: None, has_others: false, has_untried: false };
        }
        let found = self.addresses(origin);
        let all = found.len();
        let mut candidates =
            if is_balanced { self.balanced(found, origin, tried.is_empty()) } else { preferred(found, origin) };
        // A connection to an address that is left out must not be used either, so each address has its own, and no other is
        // tried in its place.
        if let Some(health) = &self.health {
            candidates = health.well(netns, candidates, Instant::now());
        }
        // Where connections fail the fewest requests are under way.
        if matches!(self.upstream.balancer, Some(LoadBalancer::LeastRequest) | None) {
            // Each has a whole try to itself, and the application has one of its own family.
            candidates.sort_by_key(|address| address.is_ipv4() != origin.is_ipv4());
            failing.order(netns, &mut candidates);
        }
        candidates.sort_by_key(|address| tried.contains(address));
        let address = candidates.first().copied();
        let has_untried = candidates.iter().any(|other| Some(*other) != address && !tried.contains(other));
        Chosen { address, among: Some(all), has_others: candidates.len() > 1, has_untried }
    }

    /// The addresses to try for what was `chosen`, best first.
    ///
    /// # Errors
    /// All are left out.
    pub fn candidates(&self, origin: IpAddr, chosen: Chosen) -> Result<Vec<SocketAddr>, UpstreamError> {
        match chosen {
            Chosen { address: None, among: Some(count @ 1..), .. } => Err(UpstreamError::LeftOut { count }),
            Chosen { among: Some(_), .. } => Ok(chosen.address.into_iter().collect()),
            Chosen { among: None, .. } => Ok(preferred(self.addresses(origin), origin)),
        }
    }

    /// What a pooled connection must lead to, to serve a request for `host` that goes to what was `chosen`.
    pub fn pooled(&self, host: &str, chosen: &Chosen) -> To {
        // Who has shown to be one host is not asked for another.
        let is_for_all = match &self.upstream.host {
            HostPattern::Exact(own) => own.as_str() == host || !self.originator.asks_for(host),
            HostPattern::Wildcard(_) => false,
        };
        To::Cluster { id: self.id, address: chosen.address, name: (!is_for_all).then(|| host.into()) }
    }

    /// Counts a request as under way to an address.
    pub fn begin(&self, address: Option<SocketAddr>) -> Active {
        let counts = self.upstream.balancer == Some(LoadBalancer::LeastRequest);
        let Some(address) = address.filter(|_| counts) else { return Active(None) };
        *self.active.lock().entry(address).or_default() += 1;
        Active(Some((self.active.clone(), address)))
    }

    /// Takes in what an address has done to an application in `netns`, of `all` that there are.
    pub fn seen(&self, netns: NetnsCookie, address: SocketAddr, seen: Seen, all: usize) {
        if let Some(health) = &self.health
            && health.record(netns, address, seen, all, Instant::now())
        {
            tracing::warn!(host = %self.upstream.host, ?netns, %address, ?seen, "an address is left out for a while");
        }
    }

    /// Forgets a network namespace that is gone.
    pub(super) fn forget(&self, netns: NetnsCookie) {
        if let Some(health) = &self.health {
            health.forget(netns);
        }
    }

    /// All addresses and their weights.
    fn addresses(&self, origin: IpAddr) -> Vec<(SocketAddr, usize)> {
        let mut found = Vec::with_capacity(self.targets.len());
        for Target { place, weight } in &self.targets {
            match place {
                Place::Resolved(addresses, port) => {
                    let addresses = addresses.load();
                    found.extend(addresses.current.iter().map(|&address| (SocketAddr::new(address, *port), *weight)));
                }
                Place::Literal(address) => found.push((*address, *weight)),
                Place::Origin(port) => found.push((SocketAddr::new(origin, *port), *weight)),
            }
        }
        // The application has an address, though we cannot resolve the name; TLS proves who is there.
        if found.is_empty() && matches!(self.upstream.targets, Targets::Resolve(_)) {
            found.push((SocketAddr::new(origin, self.upstream.target_port), 1));
        }
        found
    }

    /// The balancer's choice first. Addresses of the other family than the application's are of use only if there are no others,
    /// or, as the least busy one need not be well, after them. A repeat is nobody's turn: else one of two that fails would be the
    /// first for each request.
    fn balanced(&self, found: Vec<(SocketAddr, usize)>, origin: IpAddr, is_first_try: bool) -> Vec<SocketAddr> {
        let (mut same, mut other): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|(address, _)| address.is_ipv4() == origin.is_ipv4());
        if same.is_empty() {
            same = std::mem::take(&mut other);
        }
        let total: usize = same.iter().map(|(_, weight)| weight).sum();
        if total == 0 {
            return Vec::new();
        }
        let at = |number: usize| {
            let mut below = 0;
            same.iter().position(|(_, weight)| {
                below += weight;
                number < below
            })
        };
        let drawn = || at(fastrand::usize(..total)).unwrap_or_default();
        let first = match self.upstream.balancer {
            Some(LoadBalancer::RoundRobin) => {
                let turn = self.turn.fetch_add(usize::from(is_first_try), Ordering::Relaxed);
                at(turn % total).unwrap_or_default()
            }
            Some(LoadBalancer::LeastRequest) => {
                let (one, other) = (drawn(), drawn());
                let active = self.active.lock();
                let load = |index: usize| active.get(&same[index].0).copied().unwrap_or_default();
                if load(other) < load(one) { other } else { one }
            }
            Some(LoadBalancer::Random) | None => drawn(),
        };
        same.rotate_left(first);
        if self.upstream.balancer == Some(LoadBalancer::LeastRequest) {
            same.append(&mut other);
        }
        same.into_iter().map(|(address, _)| address).collect()
    }
}

/// Connections of a cluster that was replaced serve nobody any more.
impl Drop for Cluster {
    fn drop(&mut self) {
        self.usage.end();
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let Some((active, address)) = &self.0 else { return };
        let mut active = active.lock();
        if let Some(count) = active.get_mut(address) {
            *count -= 1;
            if *count == 0 {
                active.remove(address);
            }
        }
    }
}

/// The application's choice first, where it is among them; then the families in turn (RFC 8305 section 4).
fn preferred(found: Vec<(SocketAddr, usize)>, origin: IpAddr) -> Vec<SocketAddr> {
    if let [(only, _)] = found[..] {
        return vec![only];
    }
    let found = found.into_iter().map(|(address, _)| address);
    let (same, other): (Vec<_>, Vec<_>) = found.partition(|found| found.is_ipv4() == origin.is_ipv4());
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

fn targets(upstream: &Upstream, names: &Names) -> Vec<Target> {
    let one = |place| vec![Target { place, weight: 1 }];
    match &upstream.targets {
        Targets::Resolve(host) => one(Place::Resolved(names.addresses(host), upstream.target_port)),
        Targets::Original => one(Place::Origin(upstream.target_port)),
        Targets::Endpoints(endpoints) => endpoints
            .iter()
            .map(|endpoint| {
                let place = match &endpoint.address {
                    EndpointAddress::Ip(ip) => Place::Literal(SocketAddr::new(*ip, endpoint.port)),
                    EndpointAddress::Name(name) => Place::Resolved(names.addresses(name), endpoint.port),
                };
                Target { place, weight: endpoint.weight.get() as usize }
            })
            .collect(),
    }
}

/// What connections to all of these lead to; none if that can be anything.
fn names_of(targets: &[Target]) -> Vec<Addresses> {
    let names = targets.iter().map(|target| match &target.place {
        Place::Resolved(addresses, _) => Some(addresses.clone()),
        Place::Literal(address) => Some(Arc::new(ArcSwap::from_pointee(Known::always(address.ip())))),
        Place::Origin(_) => None,
    });
    names.collect::<Option<_>>().unwrap_or_default()
}
