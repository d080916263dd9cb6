//! Where everything runs: namespaces, addresses, processors, and the origin.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use harness::{
    TestBed,
    netns::Netns,
    process::{Command, Running},
    testbed::TestBedBuilder,
    topology::HostAddresses,
    wait::{PATIENCE, wait_until},
};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use serde_json::Value;

/// The hosts: the origin's virtual servers, each with an address of its own.
pub(super) const HTTP1: &str = "http1.bench.example";
pub(super) const HTTP2: &str = "http2.bench.example";
/// It closes each connection after a response.
pub(super) const CLOSING: &str = "closing.bench.example";
/// It does the same, and a connection to it is made before it is needed.
pub(super) const PRECONNECTED: &str = "preconnected.bench.example";
/// It speaks HTTP in clear, and no rule names it.
pub(super) const PLAIN: &str = "plain.bench.example";

/// Where the origin serves the same in clear.
pub(super) const PLAIN_PORT: u16 = 8080;

/// The link between the client and a peer's namespace: of a network that is for benchmarks (RFC 2544).
const CLIENT_ADDRESS: &str = "198.18.0.1/30";
const PROXY_ADDRESS: [u8; 4] = [198, 18, 0, 2];

/// Namespaces and processors. Declare it before what runs there.
pub(super) struct Grounds {
    /// The peers' namespace; egress runs in the node's. Dropped before the test bed.
    proxy: Netns,
    pub(super) bed: TestBed,
    pub(super) cores: Cores,
}

/// Who runs where.
#[derive(Clone, Copy)]
pub(super) struct Cores {
    /// Of what is measured.
    pub(super) proxy: CpuSet,
    /// The same with a second one, where there are enough.
    pub(super) two: Option<CpuSet>,
    /// Of everything else: client, origin, and this process.
    pub(super) others: CpuSet,
}

impl Grounds {
    /// Gives a test bed the hosts.
    pub(super) fn hosts(builder: TestBedBuilder) -> TestBedBuilder {
        builder.host(HTTP1).host(HTTP2).host(CLOSING).host(PRECONNECTED).host(PLAIN)
    }

    /// Makes the peers' namespace, and lets all namespaces be as busy ones are.
    pub(super) fn create(mut bed: TestBed, cores: Cores) -> Result<Self> {
        let proxy = bed.add_pod("proxy")?;
        bed.client().ip(&format!(
            "link add proxy0 type veth peer name client0 netns {}\naddr add {CLIENT_ADDRESS} dev proxy0\nlink set proxy0 up\n",
            proxy.name()
        ))?;
        proxy.ip(&format!("addr add {}/30 dev client0\nlink set client0 up\n", IpAddr::from(PROXY_ADDRESS)))?;
        for netns in [bed.client(), bed.node(), bed.origin(), &proxy] {
            for (setting, value) in [
                // The machine's own may pace what it sends, which takes time but no work.
                ("tcp_congestion_control", "reno"),
                ("ip_local_port_range", "1024 65535"),
                // Where peers listen: those of before may have had connections from there.
                ("ip_local_reserved_ports", "8100-8499"),
                ("tcp_tw_reuse", "1"),
                ("tcp_max_syn_backlog", "8192"),
            ] {
                netns.sysctl(&format!("net/ipv4/{setting}"), value)?;
            }
            netns.sysctl("net/core/somaxconn", "8192")?;
        }
        Ok(Self { proxy, bed, cores })
    }

    /// A command in the peers' namespace, on the proxy's core.
    pub(super) fn peer_command(&self, program: &Path) -> Result<Command> {
        Ok(self.bed.pod_command(&self.proxy, program)?.cpus(self.cores.proxy))
    }

    /// Where a peer is reached.
    pub(super) fn peer_address(port: u16) -> SocketAddr {
        SocketAddr::from((PROXY_ADDRESS, port))
    }

    /// A host's address.
    pub(super) fn address(&self, host: &str) -> IpAddr {
        let HostAddresses { v4, .. } = self.bed.addresses(host);
        v4.into()
    }

    /// A directory for what a program needs.
    pub(super) fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.bed.dir().join(name);
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// A configuration with what is known here filled in: `@NAME@` stands for it.
    pub(super) fn fill(&self, template: &str, dir: &Path, more: &[(&str, String)]) -> Result<String> {
        let known = [
            ("DIR", dir.display().to_string()),
            ("CA", self.bed.pki().ca_file().display().to_string()),
            ("HTTP1", self.address(HTTP1).to_string()),
            ("HTTP2", self.address(HTTP2).to_string()),
            ("CLOSING", self.address(CLOSING).to_string()),
            ("PRECONNECTED", self.address(PRECONNECTED).to_string()),
            ("PLAIN", self.address(PLAIN).to_string()),
            ("HTTP1_NAME", HTTP1.to_owned()),
            ("CLOSING_NAME", CLOSING.to_owned()),
        ];
        let text = known
            .iter()
            .chain(more)
            .fold(template.to_owned(), |text, (name, value)| text.replace(&format!("@{name}@"), value));
        match text.lines().find(|line| line.contains('@') && !line.contains("@type")) {
            Some(line) => bail!("a configuration is not filled in: {line}"),
            None => Ok(text),
        }
    }

    /// Starts the origin.
    pub(super) fn origin(&self) -> Result<Origin> {
        let dir = self.dir("origin")?;
        let root = dir.join("www");
        fs::create_dir(&root)?;
        for (name, length) in [("1k", 1024), ("100k", 102_400), ("100m", 100_000_000)] {
            // Zeroes: nobody compresses.
            fs::File::create(root.join(name))?.set_len(length)?;
        }
        let identity = self.bed.pki().server(&[HTTP1, HTTP2, CLOSING, PRECONNECTED])?;
        let configuration = dir.join("nginx.conf");
        let files = [
            ("CERTIFICATE", identity.certificate_file.display().to_string()),
            ("KEY", identity.key_file.display().to_string()),
        ];
        fs::write(&configuration, self.fill(include_str!("programs/origin.conf"), &dir, &files)?)?;
        let command = Command::new("nginx").args(["-e", "stderr", "-p"]).arg(&dir).arg("-c").arg(&configuration);
        let mut running = command.in_netns(self.bed.origin())?.cpus(self.cores.others).spawn()?;
        let address = SocketAddr::new(self.address(HTTP1), 443);
        wait_until("the origin to listen", PATIENCE, || {
            let listens = self.bed.origin().listening().is_ok_and(|listening| listening.contains(&address));
            listens || !running.is_running()
        })?;
        ensure!(running.is_running(), "the origin does not start:\n{}", running.stderr().join("\n"));
        Ok(Origin { running })
    }

    /// Runs the client in the pod, in reach of the agent or out of it.
    pub(super) fn client(&self, is_intercepted: bool, arguments: &[String]) -> Result<Value> {
        let output = self.client_command(is_intercepted, arguments)?.run()?.success()?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("the client printed {}", output.text()))
    }

    /// The client, to be run.
    pub(super) fn client_command(&self, is_intercepted: bool, arguments: &[String]) -> Result<Command> {
        let own = std::env::current_exe().context("cannot tell where this program is")?;
        let command = if is_intercepted { self.bed.client_command(own)? } else { self.bed.outside_command(own)? };
        Ok(command.arg("proxy-load").args(arguments).cpus(self.cores.others).patience(6 * PATIENCE))
    }
}

/// The running origin.
pub(super) struct Origin {
    running: Running,
}

impl Origin {
    pub(super) fn processes(&self) -> Result<Vec<u32>> {
        super::usage::family(self.running.pid())
    }
}

impl Cores {
    /// Leaves the last processor that this process may use to the proxy, and of four or more another one. It and all that it will
    /// start go on the others.
    pub(super) fn take() -> Result<Self> {
        let usable = sched_getaffinity(Pid::from_raw(0))?;
        let usable: Vec<usize> =
            (0..CpuSet::count()).filter(|core| usable.is_set(*core).is_ok_and(|set| set)).collect();
        ensure!(usable.len() > 1, "this needs two processors: one for the proxy, one for client and origin");
        let (others, proxies) = usable.split_at(usable.len() - if usable.len() < 4 { 1 } else { 2 });
        let set = |cores: &[usize]| -> Result<CpuSet> {
            let mut set = CpuSet::new();
            cores.iter().try_for_each(|core| set.set(*core))?;
            Ok(set)
        };
        let two = if proxies.len() > 1 { Some(set(proxies)?) } else { None };
        let cores = Self { proxy: set(&proxies[proxies.len() - 1..])?, two, others: set(others)? };
        sched_setaffinity(Pid::from_raw(0), &cores.others)?;
        Ok(cores)
    }
}
