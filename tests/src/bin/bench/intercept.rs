//! What interception itself costs, without the proxy behind it: against no interception, and against iptables REDIRECT.
//!
//! An agent loads and pins the programs, and is then killed: what it left goes on, as it is meant to. The probe puts a
//! listener of its own into the agent's place, so that all that is compared leads to a listener of the same kind, on the
//! same loopback. The reading order:
//! - [`probe`]: the process that measures.
//! - [`site`]: what is compared, each with its listener.
//! - [`work`]: what is timed.
//! - [`kernel`]: the agent's maps, and what its programs cost.
//! - [`report`]: the table.

pub(crate) mod kernel;
pub(crate) mod probe;
mod report;
mod site;
mod work;

use std::{
    env,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::{Args, value_parser};
use egress_common::LAYOUT_VERSION;
use harness::{
    TestBed,
    agent::{Agent, AgentOptions},
    cgroup::Cgroup,
    netns::Netns,
    process::Command,
};

use self::probe::Effort;

const HOST: &str = "bench.example";

/// The cost of interception itself: for each connect, request and byte
///
/// Compares connections that nobody intercepts, that egress or iptables looks at and leaves alone, and that egress or
/// iptables redirects. All are made by one thread that is client and listener in turn, so that nothing is measured but the
/// kernel.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    effort: Effort,
    /// How many addresses the rules name
    #[arg(long, default_value_t = 1000, value_name = "COUNT", value_parser = value_parser!(u32).range(..=65_000))]
    destinations: u32,
}

impl Options {
    pub(crate) fn run(&self) -> Result<()> {
        let mut bed = TestBed::builder("bench-intercept").host(HOST).build()?;
        // Connection tracking is switched on by the first rule that needs it, for the whole namespace.
        let with_iptables = bed.add_pod("iptables")?;
        for pod in [bed.client(), &with_iptables] {
            // The machine's own may pace what it sends, which takes time but no work.
            pod.sysctl("net/ipv4/tcp_congestion_control", "reno")?;
        }
        let config = bed.config_dir()?;
        config.write("bench.yaml", &self.rules(&bed))?;
        Agent::start(&bed, &AgentOptions::new(config.path()))?.kill();

        println!("Measuring for {} s ...", self.effort.duration().as_secs().max(1));
        let outside = Cgroup::create(&format!("{}-outside", bed.client().name()))?;
        let output = self.probe(&bed, &outside, &with_iptables)?.run()?.success()?;
        print!("{}", output.text());
        Ok(())
    }

    /// A rule that has all addresses of interest, and no others but those of networks that are for benchmarks (RFC 2544).
    fn rules(&self, bed: &TestBed) -> String {
        let mut addresses = String::new();
        let first = u32::from(Ipv4Addr::new(198, 18, 0, 1));
        let others = (0..self.destinations).map(|index| IpAddr::from(Ipv4Addr::from(first + index)));
        for address in bed.addresses(HOST).both().into_iter().chain(others) {
            writeln!(addresses, "  - \"{address}\"").expect("writing to a string does not fail");
        }
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: bench\nspec:\n  hosts: [{HOST}]\n  \
             ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 443}}]\n  resolution: NONE\n  \
             addresses:\n{addresses}---\n\
             apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata:\n  name: bench\nspec:\n  host: {HOST}\n  \
             trafficPolicy: {{tls: {{mode: SIMPLE}}}}\n"
        )
    }

    fn probe(&self, bed: &TestBed, outside: &Cgroup, with_iptables: &Netns) -> Result<Command> {
        /// The setup of the probe, and a machine that is slow at it.
        const PATIENCE: Duration = Duration::from_secs(30);
        let own = env::current_exe().context("cannot tell where this program is")?;
        let maps: PathBuf = bed.bpffs().join(format!("egress/layout-{LAYOUT_VERSION}/maps"));
        let [v4, v6] = bed.sockets(HOST, 80).map(|destination| destination.to_string());
        Command::new(own)
            .arg("intercept-probe")
            .args(self.effort.arguments())
            .arg("--maps")
            .arg(maps)
            .arg("--intercepted-cgroup")
            .arg(bed.cgroup().path())
            .arg("--other-cgroup")
            .arg(outside.path())
            .arg("--pod")
            .arg(bed.client().path())
            .args(["--pod-cookie", &bed.client().cookie()?.to_string()])
            .arg("--pod-with-iptables")
            .arg(with_iptables.path())
            .args(["--destination-v4", &v4, "--destination-v6", &v6])
            .patience(self.effort.duration() + PATIENCE)
            .in_cgroup(outside)?
            .in_netns(bed.client())
    }
}
