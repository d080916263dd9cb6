//! The namespaces of one test and the links between them.
//!
//! | link          | there               | origin side         |
//! |---------------|---------------------|---------------------|
//! | pod *i*       | 192.0.2.(4i+2)/30   | 192.0.2.(4i+1)/30   |
//! |               | 2001:db8:1:i::2/64  | 2001:db8:1:i::1/64  |
//! | node          | 203.0.113.2/30      | 203.0.113.1/30      |
//! |               | 2001:db8:3::2/64    | 2001:db8:3::1/64    |
//!
//! Hosts live on the origin's loopback device, at 198.51.100.N and 2001:db8:2::N. Pods and node have routes to these two
//! prefixes and to nothing else. As the namespaces are the test's own, all tests use the same addresses.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use anyhow::Result;

use crate::{link::DelayedLink, netns::Netns};

/// The network device of pods and node.
pub const DEVICE: &str = "eth0";

/// The namespaces of a test.
#[derive(Debug)]
pub struct Topology {
    prefix: String,
    /// The pod: where the application runs.
    pub client: Netns,
    /// Where the agent runs.
    pub node: Netns,
    /// Where origins listen.
    pub origin: Netns,
    pods: u8,
    delayed: Option<DelayedLink>,
}

impl Topology {
    /// Makes the three namespaces, called `prefix` and their role. With a delay, a packet takes that long from the
    /// client to the origin, and as long back.
    pub fn create(prefix: &str, delay: Option<Duration>) -> Result<Self> {
        let origin = Netns::create(&format!("{prefix}-origin"))?;
        let client = Netns::create(&format!("{prefix}-client"))?;
        let node = Netns::create(&format!("{prefix}-node"))?;
        let delayed = match delay {
            Some(delay) => Some(DelayedLink::create((&client, DEVICE), (&origin, "pod0"), delay)?),
            None => {
                veth(&client, &origin, "pod0")?;
                None
            }
        };
        pod_ends(0).configure(&client, &origin, "pod0")?;
        veth(&node, &origin, "node")?;
        node_ends().configure(&node, &origin, "node")?;
        Ok(Self { prefix: prefix.to_owned(), client, node, origin, pods: 1, delayed })
    }

    /// Makes one more pod with a link of its own to the origin.
    pub fn add_pod(&mut self, name: &str) -> Result<Netns> {
        let index = self.pods;
        let pod = Netns::create(&format!("{}-{name}", self.prefix))?;
        let device = format!("pod{index}");
        veth(&pod, &self.origin, &device)?;
        pod_ends(index).configure(&pod, &self.origin, &device)?;
        self.pods += 1;
        Ok(pod)
    }

    /// Gives the origin the addresses of host number `index`.
    pub fn add_host(&self, index: u8) -> Result<HostAddresses> {
        let host = HostAddresses {
            v4: Ipv4Addr::new(198, 51, 100, index),
            v6: Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, u16::from(index)),
        };
        self.origin.ip(&format!("addr add {}/32 dev lo\naddr add {}/128 dev lo nodad\n", host.v4, host.v6))?;
        Ok(host)
    }

    /// The client's own address, in the family of `destination`.
    pub fn client_address(&self, destination: IpAddr) -> IpAddr {
        let ends = pod_ends(0);
        if destination.is_ipv4() { ends.v4.0.into() } else { ends.v6.0.into() }
    }

    /// Leaves the namespaces behind on drop.
    pub(crate) fn keep(&mut self) {
        self.client.keep();
        self.node.keep();
        self.origin.keep();
        if let Some(link) = self.delayed.take() {
            link.keep();
        }
    }
}

/// Where a host can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostAddresses {
    /// On 198.51.100.0/24.
    pub v4: Ipv4Addr,
    /// On 2001:db8:2::/64.
    pub v6: Ipv6Addr,
}

impl HostAddresses {
    /// Both addresses, IPv4 first.
    pub fn both(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

/// The two ends of a link: theirs and the origin's.
struct Ends {
    v4: (Ipv4Addr, Ipv4Addr),
    v6: (Ipv6Addr, Ipv6Addr),
}

fn pod_ends(index: u8) -> Ends {
    let v4 = |last: u8| Ipv4Addr::new(192, 0, 2, 4 * index + last);
    let v6 = |last: u16| Ipv6Addr::new(0x2001, 0xdb8, 1, u16::from(index), 0, 0, 0, last);
    Ends { v4: (v4(2), v4(1)), v6: (v6(2), v6(1)) }
}

fn node_ends() -> Ends {
    let v4 = |last: u8| Ipv4Addr::new(203, 0, 113, last);
    let v6 = |last: u16| Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, last);
    Ends { v4: (v4(2), v4(1)), v6: (v6(2), v6(1)) }
}

impl Ends {
    fn configure(&self, netns: &Netns, origin: &Netns, origin_device: &str) -> Result<()> {
        let up = |device: &str, v4: Ipv4Addr, v6: Ipv6Addr| {
            format!("addr add {v4}/30 dev {device}\naddr add {v6}/64 dev {device} nodad\nlink set {device} up\n")
        };
        origin.ip(&up(origin_device, self.v4.1, self.v6.1))?;
        netns.ip(&(up(DEVICE, self.v4.0, self.v6.0)
            + &format!("route add 198.51.100.0/24 via {} dev {DEVICE}\n", self.v4.1)
            + &format!("route add 2001:db8:2::/64 via {} dev {DEVICE}\n", self.v6.1)))
    }
}

fn veth(netns: &Netns, origin: &Netns, origin_device: &str) -> Result<()> {
    netns.ip(&format!("link add {DEVICE} type veth peer name {origin_device} netns {}\n", origin.name()))
}
