//! What ties it together: one value that a test makes first and that takes everything down last.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::geteuid,
};
use tempfile::TempDir;

use crate::{
    agent::{Agent, AgentOptions, ConfigDir},
    capture::Capture,
    cgroup::Cgroup,
    clients::Curl,
    netns::Netns,
    nginx::NginxBuilder,
    origin::OriginBuilder,
    pki::Pki,
    process::{Command, Mounts, Running},
    topology::{DEVICE, HostAddresses, Topology},
    tripwire::Tripwire,
    wait,
};

/// A machine in miniature. Declare it before what runs on it, so that it is dropped last.
#[derive(Debug)]
pub struct TestBed {
    // Dropped in this order: the cgroup kills what is left before the namespaces go.
    /// Keeps the pod alive between its other processes, as the pause process of a real one does.
    sandbox: Option<Running>,
    cgroup: Cgroup,
    topology: Topology,
    pki: Pki,
    hosts: BTreeMap<String, HostAddresses>,
    bpffs: PathBuf,
    mounts: Mounts,
    dir: Option<TempDir>,
}

/// How a test bed is to be.
#[derive(Debug)]
pub struct TestBedBuilder {
    name: String,
    hosts: Vec<(String, Option<String>, Families)>,
    delay: Option<Duration>,
    resolv_conf: String,
}

/// Which addresses of a host are in the hosts file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
    /// None: the host is found by other means.
    Neither,
    /// Both.
    Both,
}

impl TestBed {
    /// A test bed without hosts, to be named further.
    pub fn builder(name: &str) -> TestBedBuilder {
        TestBedBuilder { name: name.to_owned(), hosts: Vec::new(), delay: None, resolv_conf: String::new() }
    }

    /// The test bed of most tests: `edition.cnn.com` at an address of either family.
    pub fn new(name: &str) -> Result<Self> {
        Self::builder(name).host("edition.cnn.com").build()
    }

    /// The pod's namespace.
    pub fn client(&self) -> &Netns {
        &self.topology.client
    }

    /// The agent's namespace.
    pub fn node(&self) -> &Netns {
        &self.topology.node
    }

    /// The namespace of the origins.
    pub fn origin(&self) -> &Netns {
        &self.topology.origin
    }

    /// The cgroup that the agent is attached to and clients run in.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The test's certificates.
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// A directory for whatever the test needs.
    pub fn dir(&self) -> &Path {
        self.dir.as_ref().expect("the directory is there until drop").path()
    }

    /// The bpffs that agents of this test find at /sys/fs/bpf. It outlives them, as the machine's does.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// The names of all hosts.
    pub fn hosts(&self) -> Vec<&str> {
        self.hosts.keys().map(String::as_str).collect()
    }

    /// The addresses of a host.
    pub fn addresses(&self, host: &str) -> HostAddresses {
        *self.hosts.get(host).unwrap_or_else(|| panic!("the test bed was not given the host {host}"))
    }

    /// Both addresses of a host, with a port.
    pub fn sockets(&self, host: &str, port: u16) -> [SocketAddr; 2] {
        self.addresses(host).both().map(|address| SocketAddr::new(address, port))
    }

    /// The client's own address, in the family of `destination`.
    pub fn client_address(&self, destination: IpAddr) -> IpAddr {
        self.topology.client_address(destination)
    }

    /// Makes one more pod. It must be dropped before the test bed.
    pub fn add_pod(&mut self, name: &str) -> Result<Netns> {
        self.topology.add_pod(name)
    }

    /// A command in the pod: in its namespace, in the cgroup, with the test's hosts file and authority.
    pub fn client_command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        self.pod_command(self.client(), program)?.in_cgroup(&self.cgroup)
    }

    /// A command in the pod's namespace, but not in the cgroup: out of the agent's reach.
    pub fn outside_command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        self.pod_command(self.client(), program)
    }

    /// A command in another pod's namespace, in no cgroup yet.
    pub fn pod_command(&self, pod: &Netns, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        Ok(self.in_clean_environment(Command::new(program)).in_netns(pod)?.with_mounts(&self.mounts))
    }

    /// A command on the node: where the agent runs, with a bpffs of the test's own at /sys/fs/bpf.
    pub fn node_command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let command = self.in_clean_environment(Command::new(program)).in_netns(self.node())?;
        Ok(command.with_mounts(&self.node_mounts()))
    }

    /// What the node has in place of the machine's files and directories.
    pub(crate) fn node_mounts(&self) -> Mounts {
        let mut mounts = self.mounts.clone();
        mounts.bind(&self.bpffs, "/sys/fs/bpf");
        mounts
    }

    /// A curl in the pod.
    pub fn curl(&self, url: &str) -> Result<Curl> {
        Ok(Curl::new(self.client_command("curl")?, url))
    }

    /// A curl in the pod's namespace, but not in the cgroup.
    pub fn outside_curl(&self, url: &str) -> Result<Curl> {
        Ok(Curl::new(self.outside_command("curl")?, url))
    }

    /// An nginx to be given sites.
    pub fn nginx(&self) -> NginxBuilder<'_> {
        NginxBuilder::new(self)
    }

    /// An embedded origin to be given addresses.
    pub fn embedded_origin(&self) -> OriginBuilder<'_> {
        OriginBuilder::new(self.origin())
    }

    /// A tripwire on port 80 of these hosts.
    pub fn tripwire(&self, hosts: &[&str]) -> Result<Tripwire> {
        let addresses = hosts.iter().flat_map(|host| self.sockets(host, 80)).collect::<Vec<_>>();
        Tripwire::start(self.origin(), &addresses)
    }

    /// A capture of everything that passes the pod's only device.
    pub fn capture(&self) -> Result<Capture> {
        Capture::start(self.client(), DEVICE)
    }

    /// The configuration directory, at first without rules.
    pub fn config_dir(&self) -> Result<ConfigDir> {
        ConfigDir::create(&self.dir().join("config"))
    }

    /// Starts the agent on a configuration directory and waits until it intercepts.
    pub fn agent(&self, config: &ConfigDir) -> Result<Agent<'_>> {
        Agent::start(self, &AgentOptions::new(config.path()))
    }

    /// Nothing of the environment of whoever runs the tests gets in: it may name proxies and certificates.
    fn in_clean_environment(&self, command: Command) -> Command {
        ["PATH", "HOME"]
            .iter()
            .filter_map(|name| Some((name, std::env::var_os(name)?)))
            .fold(command.env_clear(), |command, (name, value)| command.env(name, value))
            .env("SSL_CERT_FILE", self.pki.ca_file())
    }
}

impl TestBedBuilder {
    /// Gives a host addresses of its own, in both families.
    #[must_use]
    pub fn host(self, name: &str) -> Self {
        self.host_with(name, Families::Both)
    }

    /// Gives a host addresses of its own, of which only some are in the hosts file.
    #[must_use]
    pub fn host_with(mut self, name: &str, families: Families) -> Self {
        self.hosts.push((name.to_owned(), None, families));
        self
    }

    /// Gives a host addresses of its own that are not in the hosts file.
    #[must_use]
    pub fn unlisted_host(self, name: &str) -> Self {
        self.host_with(name, Families::Neither)
    }

    /// Gives a host the addresses of an earlier one.
    #[must_use]
    pub fn alias(mut self, name: &str, of: &str) -> Self {
        self.hosts.push((name.to_owned(), Some(of.to_owned()), Families::Both));
        self
    }

    /// Lets each packet between the pod and the origin take this long.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// Gives pods and node a resolver configuration. Without this it is empty, and names come from the hosts file alone.
    #[must_use]
    pub fn resolv_conf(mut self, text: &str) -> Self {
        text.clone_into(&mut self.resolv_conf);
        self
    }

    /// Builds it all.
    pub fn build(self) -> Result<TestBed> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        if !geteuid().is_root() {
            bail!("this needs root: it makes network namespaces and cgroups, and loads BPF programs");
        }
        wait::unwind_on_interrupt();
        if wait::interrupted() {
            bail!("interrupted");
        }
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("egress-{}-{count}-{}", std::process::id(), self.name);

        let dir = tempfile::Builder::new().prefix(&format!("{prefix}-")).tempdir()?;
        // Clients may run as another user.
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let topology = Topology::create(&prefix, self.delay)?;
        let mut hosts = BTreeMap::new();
        let mut hosts_file = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
        for (index, (name, alias, families)) in (1..).zip(&self.hosts) {
            let addresses = match alias {
                Some(other) => *hosts.get(other).with_context(|| format!("{name}: no host {other} before it"))?,
                None => topology.add_host(index)?,
            };
            for address in addresses.both() {
                let listed = match families {
                    Families::Both => true,
                    Families::V4 => address.is_ipv4(),
                    Families::V6 => address.is_ipv6(),
                    Families::Neither => false,
                };
                if listed {
                    hosts_file += &format!("{address} {name}\n");
                }
            }
            hosts.insert(name.clone(), addresses);
        }

        let mut mounts = Mounts::default();
        for (name, text) in [("hosts", &hosts_file), ("resolv.conf", &self.resolv_conf)] {
            let file = dir.path().join(name);
            fs::write(&file, text)?;
            mounts.bind(file, Path::new("/etc").join(name));
        }
        let bpffs = dir.path().join("bpffs");
        fs::create_dir(&bpffs)?;
        let mut bed = TestBed {
            sandbox: None,
            cgroup: Cgroup::create(&prefix)?,
            topology,
            pki: Pki::create(&dir.path().join("pki"))?,
            hosts,
            bpffs,
            mounts,
            dir: Some(dir),
        };
        mount(Some("bpf"), &bed.bpffs, Some("bpf"), MsFlags::empty(), None::<&str>).context("mounting a bpffs")?;
        bed.sandbox = Some(bed.client_command("sleep")?.arg("infinity").spawn()?);
        Ok(bed)
    }
}

impl Drop for TestBed {
    fn drop(&mut self) {
        self.sandbox.take();
        if std::env::var_os("EGRESS_TEST_KEEP").is_some_and(|value| value == "1") {
            self.cgroup.keep();
            self.topology.keep();
            let dir = self.dir.take().map(TempDir::keep).unwrap_or_default();
            eprintln!("kept: {} and {}", dir.display(), self.cgroup.path().display());
            for netns in [self.client(), self.node(), self.origin()] {
                eprintln!("  nsenter --net={}", netns.path().display());
            }
        } else {
            // With the mount go the pins, and with the pins the programs.
            umount2(&self.bpffs, MntFlags::MNT_DETACH).ok();
        }
    }
}
