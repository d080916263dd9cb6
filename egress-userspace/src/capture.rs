//! Which connections are redirected: those to addresses of configured hosts, or all to configured ports.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use foldhash::HashMap;

use egress_common::destination::Capture;
use futures_util::TryStreamExt as _;
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
};

use crate::{kernel::Intercepted, policy::Cidr, resolve::Names, route::RouteTable};

/// Prefixes that are shorter are parts of a default route (`0.0.0.0/1`, `2000::/3`) rather than a cluster's networks.
const SHORTEST: (u8, u8) = (8, 16);

/// The link-local networks (RFC 3927, RFC 4291 section 2.5.6). Metadata services are there.
const LINK_LOCAL_V4: Cidr = Cidr { address: IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), prefix_len: 16 };
/// In this one an address means nothing without its link, which an origin does not have: nothing can be passed on there.
const LINK_LOCAL_V6: Cidr = Cidr { address: IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), prefix_len: 10 };

/// What the user wants to be redirected.
#[derive(Clone, Debug)]
pub enum CaptureMode {
    /// Connections to addresses of configured hosts.
    Hosts,
    /// All connections to configured ports, but for those to these networks; without any, to networks that the node has
    /// routes to other than the default route. An address of a configured host is redirected even there. IPv6's link-local
    /// addresses are left alone in either case.
    Ports(Vec<Cidr>),
}

/// The node's routes cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the node's routes, which say what to leave alone: {0}; name the networks with --exclude-cidr")]
pub struct CaptureError(String);

impl From<io::Error> for CaptureError {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<rtnetlink::Error> for CaptureError {
    fn from(error: rtnetlink::Error) -> Self {
        Self(error.to_string())
    }
}

/// What is redirected besides the addresses of configured hosts.
#[derive(Debug)]
pub struct Captured {
    mode: CaptureMode,
    excluded: BTreeSet<Cidr>,
}

impl Captured {
    /// Reads the node's routes, if they matter.
    ///
    /// # Errors
    /// They cannot be read.
    pub async fn new(mode: CaptureMode) -> Result<Self, CaptureError> {
        let mut captured = Self { mode, excluded: BTreeSet::new() };
        captured.refresh().await?;
        Ok(captured)
    }

    /// Reads the node's routes again: nodes come and go. Says whether that makes a difference.
    ///
    /// # Errors
    /// They cannot be read; the networks stay as they were.
    pub async fn refresh(&mut self) -> Result<bool, CaptureError> {
        let excluded = match &self.mode {
            CaptureMode::Hosts => BTreeSet::new(),
            CaptureMode::Ports(given) if !given.is_empty() => given.iter().copied().chain([LINK_LOCAL_V6]).collect(),
            CaptureMode::Ports(_) => [LINK_LOCAL_V4, LINK_LOCAL_V6].into_iter().chain(routes().await?).collect(),
        };
        if excluded == self.excluded {
            return Ok(false);
        }
        tracing::info!(networks = %shown(&excluded), "connections to configured ports are left alone in these networks");
        self.excluded = excluded;
        Ok(true)
    }

    /// Whether connections are redirected whatever is known of hosts.
    pub fn is_by_port(&self) -> bool {
        matches!(self.mode, CaptureMode::Ports(_))
    }

    /// All that the kernel must know of networks, for these routes.
    pub fn destinations(&self, routes: &RouteTable, names: &Names) -> HashMap<Intercepted, Capture> {
        let mut wanted = HashMap::default();
        let hosts = routes.intercepted(names);
        if let CaptureMode::Ports(_) = self.mode {
            let ports: BTreeSet<_> = routes.routes().map(|route| route.rule.port).collect();
            for port in ports {
                let network = |address, prefix_len| Intercepted { address, prefix_len, port };
                wanted.insert(network(Ipv4Addr::UNSPECIFIED.into(), 0), Capture::Port);
                wanted.insert(network(Ipv6Addr::UNSPECIFIED.into(), 0), Capture::Port);
                let excluded = self.excluded.iter().map(|cidr| network(cidr.address, cidr.prefix_len));
                // The most specific network counts, and within one of a host's nothing is excluded.
                let excluded = excluded.filter(|excluded| !hosts.iter().any(|host| host.contains(excluded)));
                wanted.extend(excluded.map(|network| (network, Capture::Excluded)));
            }
        }
        wanted.extend(hosts.into_iter().map(|network| (network, Capture::Host)));
        wanted
    }
}

fn shown(networks: &BTreeSet<Cidr>) -> String {
    networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The networks that the main table of the current network namespace has routes to, the default route aside.
async fn routes() -> Result<BTreeSet<Cidr>, CaptureError> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let mut networks = BTreeSet::new();
    for query in [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()] {
        let mut routes = handle.route().get(query).execute();
        while let Some(route) = routes.try_next().await? {
            networks.extend(network(&route));
        }
    }
    connection.abort();
    Ok(networks)
}

/// The network that a route leads to, if that is one to leave alone.
fn network(route: &RouteMessage) -> Option<Cidr> {
    let RouteHeader { destination_prefix_length: prefix_len, table, kind, .. } = route.header;
    let table = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        })
        .unwrap_or(table.into());
    if kind != RouteType::Unicast || table != u32::from(RouteHeader::RT_TABLE_MAIN) {
        return None;
    }
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        // Connections to IPv4-mapped addresses go by the routes of IPv4.
        RouteAttribute::Destination(RouteAddress::Inet6(address)) if address.to_ipv4_mapped().is_none() => {
            Some(IpAddr::V6(*address))
        }
        _ => None,
    })?;
    let shortest = if address.is_ipv4() { SHORTEST.0 } else { SHORTEST.1 };
    (prefix_len >= shortest).then_some(Cidr { address, prefix_len })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn link_local_addresses_of_ipv6_are_left_alone_whatever_else_is() {
        let cidr = |text: &str| text.parse::<Cidr>().expect("a network");
        let captured = Captured::new(CaptureMode::Ports(vec![cidr("10.0.0.0/8")])).await.expect("nothing to read");
        assert_eq!(captured.excluded, BTreeSet::from([cidr("10.0.0.0/8"), cidr("fe80::/10")]));
        let captured = Captured::new(CaptureMode::Hosts).await.expect("nothing to read");
        assert!(captured.excluded.is_empty());
    }
}
