//! A pod of this test: a namespace with a link that is captured, and a cgroup below the one that is served.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use anyhow::{Result, ensure};
use harness::{
    TestBed,
    capture::{Capture, Connection, Trace},
    cgroup::Cgroup,
    clients::Curl,
    netns::Netns,
    process::Command,
    topology::DEVICE,
};

use crate::{HOST, LOOKUP, PLACE, SERVER, Tolerance};

const URL: &str = "http://edition.cnn.com/in-clear-on-purpose";

/// A pod.
pub struct Pod<'bed> {
    pub bed: &'bed TestBed,
    pub netns: &'bed Netns,
    cgroup: Cgroup,
}

impl<'bed> Pod<'bed> {
    pub fn new(bed: &'bed TestBed, netns: &'bed Netns, index: usize) -> Result<Self> {
        Ok(Self { bed, netns, cgroup: bed.cgroup().child(&format!("pod{index}"))? })
    }

    /// A command in the pod.
    pub fn command(&self, program: &str) -> Result<Command> {
        self.bed.pod_command(self.netns, program)?.in_cgroup(&self.cgroup)
    }

    /// Asks for the addresses of a name.
    pub fn learn(&self, name: &str) -> Result<()> {
        let server = self.bed.addresses(SERVER).v4.to_string();
        for family in [[].as_slice(), &["--aaaa"]] {
            self.command(LOOKUP)?.args([&server, name]).args(family).run()?.success()?;
        }
        Ok(())
    }

    /// The pod's own address on the way to `destination`.
    pub fn source(&self, destination: SocketAddr) -> Result<IpAddr> {
        let any: IpAddr = match destination {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        self.netns.run(|| {
            // To connect a UDP socket is to ask for the route: it sends nothing.
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect(destination)?;
            Ok(socket.local_addr()?.ip())
        })
    }

    /// Captures what would be in clear.
    pub fn capture(&self) -> Result<Capture> {
        Capture::of_port(self.netns, DEVICE, 80)
    }

    /// One request that nobody intercepts.
    pub fn call_in_clear(&self) -> Result<()> {
        let result = Curl::new(self.bed.pod_command(self.netns, "curl")?, URL).args(["-4"]).run()?;
        ensure!(result.statuses() == [418], "not the tripwire: {result:?}");
        Ok(())
    }

    /// Nothing has gone to configured hosts in clear but the one request that was to.
    pub fn check_trace(&self, trace: &Trace, tolerance: Tolerance) -> Result<()> {
        let configured = [HOST, PLACE].map(|host| self.bed.sockets(host, 80));
        let counts = |connection: &Connection| {
            configured.as_flattened().contains(&connection.server)
                && (tolerance == Tolerance::Nothing || !connection.sent.is_empty())
        };
        let connections = trace.connections_to_port(80).into_iter().filter(counts).collect::<Vec<_>>();
        let seen =
            |connection: &Connection| format!("{}: {:?}", connection.server, String::from_utf8_lossy(&connection.sent));
        let text = connections.iter().map(seen).collect::<Vec<_>>().join("\n");
        ensure!(connections.len() == 1, "{} connections in clear:\n{text}", connections.len());
        ensure!(text.contains("GET /in-clear-on-purpose "), "in clear: {text}");
        Ok(())
    }
}
