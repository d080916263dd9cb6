//! How a figure comes about.

use std::{fs, net::SocketAddr, thread, time::Duration};

use anyhow::{Context as _, Result};
use harness::{TestBed, cgroup::Cgroup, netns::Netns};
use nix::time::{ClockId, clock_gettime};
use serde_json::Value;

use super::{
    figures::{Measure, Measured},
    grounds::{Cores, Grounds, HTTP1, Origin, PRECONNECTED},
    peer::{Peer, Target, Upstream},
    program::{Program, Servers},
    scenario::{Pattern, Scenario},
    usage::Memory,
};
use crate::namespaces::{Pod, wait_for};

/// In bytes.
const MEBIBYTE: f64 = 1024.0 * 1024.0;
/// Client connections whose like a proxy has to the origin for as long as it runs.
const MANY: usize = 1000;
/// What other processes may use of the machine meanwhile, in percent of it, and how often that is hoped for.
const NOISE: f64 = 8.0;
const TRIES: usize = 3;

/// How much of everything.
#[derive(Clone, Copy)]
pub(super) struct Effort {
    /// Before what is measured: pools fill, caches warm.
    pub(super) warm_up: Duration,
    pub(super) time: Duration,
    /// What the large counts are divided by.
    pub(super) divisor: usize,
}

/// What measuring needs.
pub(super) struct Bench<'a> {
    pub(super) grounds: &'a Grounds,
    pub(super) origin: &'a Origin,
    pub(super) servers: Servers<'a>,
    pub(super) effort: Effort,
}

/// The figures of a row.
type Labelled = (&'static str, Measured);

impl Bench<'_> {
    /// A scenario that compares peers, for one of them. None if it has no part in it.
    pub(super) fn peer(&mut self, scenario: Scenario, peer: Peer) -> Result<Option<Measured>> {
        let upstream = scenario.pattern().map_or(Upstream::Kept, |pattern| pattern.upstream);
        let Some(target) = peer.target(self.grounds, upstream) else { return Ok(None) };
        match (scenario.pattern(), peer.program()) {
            (Some(pattern), Some(Program::Egress)) if upstream == Upstream::Plain => {
                self.servers.start_capturing()?;
                let measured = self.load(&target, peer.program(), pattern);
                // All others are measured with what is usual.
                self.servers.stop(Program::Egress);
                measured.map(Some)
            }
            (Some(pattern), program) => {
                if let Some(program) = program {
                    self.servers.ensure(program)?;
                }
                let measured = self.load(&target, program, pattern);
                if let Some(program) = program.filter(|_| pattern.connections >= MANY) {
                    // As many connections to the origin would be left for what is measured next.
                    self.servers.stop(program);
                }
                measured.map(Some)
            }
            (None, Some(program)) if scenario == Scenario::Idle => self.idle(&target, program).map(Some),
            (None, Some(program)) => self.startup(&target, program).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// A scenario that compares egress with itself.
    pub(super) fn own(&mut self, scenario: Scenario) -> Result<Vec<Labelled>> {
        match scenario {
            Scenario::Seed => seed(self.grounds.cores),
            Scenario::StartupFirst => self.first_startup(),
            Scenario::Cores => self.cores(),
            _ => self.namespaces(),
        }
    }

    /// Measures until the rest of the machine leaves it alone, or not much longer.
    fn load(&mut self, target: &Target, program: Option<Program>, pattern: Pattern) -> Result<Measured> {
        let mut measured = self.load_once(target, program, pattern)?;
        for _ in 1..TRIES {
            let is_noisy = |(measure, value): &(Measure, f64)| *measure == Measure::Others && *value > NOISE;
            if self.effort.divisor > 1 || !measured.iter().any(is_noisy) {
                break;
            }
            measured = self.load_once(target, program, pattern)?;
        }
        Ok(measured)
    }

    fn load_once(&mut self, target: &Target, program: Option<Program>, pattern: Pattern) -> Result<Measured> {
        let processes = program.map_or(Ok(Vec::new()), |program| self.servers.processes(program))?;
        let mut arguments = target.arguments(self.grounds);
        let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        option("--path", pattern.path.to_owned());
        option("--connections", pattern.connections.to_string());
        option("--warm-up", self.effort.warm_up.as_millis().to_string());
        option("--milliseconds", self.effort.time.as_millis().to_string());
        if let Some(rate) = pattern.rate {
            option("--rate", rate.to_string());
        }
        if let Some(requests) = pattern.requests {
            option("--requests", requests.div_ceil(self.effort.divisor as u64).to_string());
        }
        processes.iter().for_each(|pid| option("--watch", pid.to_string()));
        self.origin.processes()?.iter().for_each(|pid| option("--known", pid.to_string()));
        if pattern.closes {
            arguments.push("--close".to_owned());
        }
        let result = self.grounds.client(target.is_intercepted, &arguments)?;
        if program == Some(Program::Egress) {
            self.servers.forget_log()?;
        }
        measured(&result, program.is_some(), pattern)
    }

    /// Memory: just started, and with many connections that have had a response each.
    fn idle(&mut self, target: &Target, program: Program) -> Result<Measured> {
        const CONNECTIONS: usize = 5000;
        /// So many in turn, so that few upstream connections are needed.
        const PER_SECOND: &str = "2000";
        /// What can be given back is given back by then.
        const HOLD: &str = "2000";
        self.servers.stop(program);
        self.servers.ensure(program)?;
        let processes = self.servers.processes(program)?;
        let idle = Memory::of(&processes)?;
        let count = (CONNECTIONS / self.effort.divisor).to_string();
        let mut arguments = target.arguments(self.grounds);
        arguments.extend(["--connections", &count, "--requests", &count, "--rate", PER_SECOND].map(str::to_owned));
        arguments.extend(["--hold", HOLD].map(str::to_owned));
        arguments.extend(processes.iter().flat_map(|pid| ["--watch".to_owned(), pid.to_string()]));
        let result = self.grounds.client(target.is_intercepted, &arguments)?;
        Ok(vec![
            (Measure::Resident, idle.resident as f64 / MEBIBYTE),
            (Measure::ResidentLoaded, number(&result, "resident")? / MEBIBYTE),
            (Measure::Proportional, idle.proportional as f64 / MEBIBYTE),
            (Measure::ProportionalLoaded, number(&result, "proportional")? / MEBIBYTE),
        ])
    }

    /// What an agent has pinned is there already: as at any start but the first.
    fn startup(&mut self, target: &Target, program: Program) -> Result<Measured> {
        self.servers.ensure(program)?;
        self.servers.stop(program);
        self.first_response(target, program)
    }

    /// Without what an agent has pinned. Where HTTP/2 is spoken nobody answers in clear meanwhile.
    fn first_startup(&mut self) -> Result<Vec<Labelled>> {
        let peer = Peer::EgressHttp2;
        let target = peer.target(self.grounds, Upstream::Kept).context("there is an origin for all")?;
        self.servers.stop(Program::Egress);
        let pins = self.grounds.bed.bpffs().join("egress");
        fs::remove_dir_all(&pins).with_context(|| format!("removing {}", pins.display()))?;
        Ok(vec![(peer.label(), self.first_response(&target, Program::Egress)?)])
    }

    /// From before the fork to the first response.
    fn first_response(&mut self, target: &Target, program: Program) -> Result<Measured> {
        const PATIENCE: Duration = Duration::from_secs(30);
        let mut arguments = target.arguments(self.grounds);
        arguments.push("--first".to_owned());
        let mut client = self.grounds.client_command(target.is_intercepted, &arguments)?.spawn()?;
        client.wait_for_output("ready")?;
        let began: Duration = clock_gettime(ClockId::CLOCK_MONOTONIC)?.into();
        self.servers.start(program)?;
        let status = client.wait(PATIENCE)?;
        let output = client.stdout();
        let result = output.lines().find(|line| line.starts_with('{'));
        let result = result.with_context(|| format!("{status}: {}", client.stderr().join("\n")))?;
        let first = number(&serde_json::from_str(result)?, "first")?;
        // The next one to be measured needs a program that is quite up.
        self.servers.stop(program);
        Ok(vec![(Measure::Time, 1e3 * (first - began.as_secs_f64()))])
    }

    /// Whether two workers can have a processor each, and the others as well.
    pub(super) fn has_two_cores(&self) -> bool {
        self.grounds.cores.two.is_some()
    }

    fn egress(&self) -> Result<Target> {
        Peer::EgressHttp1.target(self.grounds, Upstream::Kept).context("egress has an origin")
    }

    fn cores(&mut self) -> Result<Vec<Labelled>> {
        let target = self.egress()?;
        let mut rows = Vec::new();
        let cores = self.grounds.cores;
        for (label, workers, cores) in [("1 worker", 1, Some(cores.proxy)), ("2 workers", 2, cores.two)] {
            self.servers.start_with_workers(workers, cores.context("too few processors")?)?;
            rows.push((label, self.load(&target, Some(Program::Egress), Pattern::kept(64))?));
        }
        self.servers.stop(Program::Egress);
        Ok(rows)
    }

    fn namespaces(&mut self) -> Result<Vec<Labelled>> {
        /// Those of the node and of the pod.
        const USUAL: usize = 2;
        let count = 249 / self.effort.divisor;
        let target = self.egress()?;
        self.servers.ensure(Program::Egress)?;
        let before = self.load(&target, Some(Program::Egress), Pattern::kept(64))?;

        let cgroup = self.grounds.bed.cgroup();
        let name = |index| format!("egress-bench-{}-{index}", std::process::id());
        let namespaces = (0..count).map(|index| Netns::create(&name(index))).collect::<Result<Vec<_>>>()?;
        let cgroups = (0..count).map(|index| cgroup.child(&name(index))).collect::<Result<Vec<Cgroup>>>()?;
        let pods = namespaces.iter().zip(&cgroups).map(|(netns, cgroup)| Pod::start(netns, cgroup));
        let pods = pods.collect::<Result<Vec<_>>>()?;
        wait_for(self.servers.agent().context("egress runs")?, count + USUAL)?;
        let many = self.load(&target, Some(Program::Egress), Pattern::kept(64))?;
        drop(pods);
        wait_for(self.servers.agent().context("egress runs")?, USUAL)?;
        // The machine may become slower meanwhile, or faster.
        let after = self.load(&target, Some(Program::Egress), Pattern::kept(64))?;
        let few = before
            .into_iter()
            .zip(after)
            .map(|((measure, before), (_, after))| (measure, f64::midpoint(before, after)));
        Ok(vec![("1 pod", few.collect()), ("250 pods", many)])
    }
}

/// What an application waits for: before, when it follows the redirect, and after. Nothing has been resolved or connected
/// before, and TLS sessions are new, but for the last two rows. That of the last origin closes every connection after a response.
fn seed(cores: Cores) -> Result<Vec<Labelled>> {
    const DELAY: Duration = Duration::from_millis(20);
    /// A closed connection has been made anew by then: it is looked for every second, and takes three round trips.
    const IDLE: Duration = Duration::from_secs(2);
    let grounds = Grounds::create(Grounds::hosts(TestBed::builder("bench-seed")).delay(DELAY).build()?, cores)?;
    let _origin = grounds.origin()?;
    fs::write(grounds.dir("config")?.join("preconnected.yaml"), preconnected())?;
    let mut servers = Servers::new(&grounds);
    servers.ensure(Program::Egress)?;
    let once = |target: &Target| {
        let mut arguments = target.arguments(&grounds);
        arguments.extend(["--requests", "1"].map(str::to_owned));
        number(&grounds.client(target.is_intercepted, &arguments)?, "p50_us").map(|micros| micros / 1e3)
    };
    let through =
        |peer: Peer| peer.target(&grounds, Upstream::Kept).context("an origin").and_then(|target| once(&target));
    let (redirected, https) = (redirected(&grounds)?, through(Peer::DirectHttps)?);
    let (cold, warm) = (through(Peer::EgressHttp1)?, through(Peer::EgressHttp1)?);
    let (cold_http2, warm_http2) = (through(Peer::EgressHttp2)?, through(Peer::EgressHttp2)?);
    let address = SocketAddr::new(grounds.address(PRECONNECTED), 80);
    let preconnected = Target { address, host: PRECONNECTED, is_tls: false, is_intercepted: true };
    once(&preconnected)?;
    thread::sleep(IDLE);
    let preconnected = once(&preconnected)?;
    let row = |label, milliseconds| (label, vec![(Measure::Time, milliseconds)]);
    Ok(vec![
        row("301 and HTTPS", redirected),
        row("direct HTTPS", https),
        row("egress, cold", cold),
        row("egress, warm", warm),
        row("egress, HTTP/2, cold", cold_http2),
        row("egress, HTTP/2, warm", warm_http2),
        row("egress, preconnected", preconnected),
    ])
}

/// What one client takes that follows the redirect which a request in clear is answered with, in milliseconds. It knows the address, as
/// others do.
fn redirected(grounds: &Grounds) -> Result<f64> {
    let known = [80, 443].map(|port| format!("{HTTP1}:{port}:{}", grounds.address(HTTP1)));
    let arguments = ["-q", "-sSL", "--fail", "--http1.1", "-o", "/dev/null", "-w", "%{num_redirects} %{time_total}"];
    let known = known.iter().flat_map(|known| ["--resolve", known]);
    let output = grounds.bed.outside_command("curl")?.args(arguments).args(known).arg(format!("http://{HTTP1}/1k"));
    let output = output.run()?.success()?.text();
    let seconds = output.strip_prefix("1 ").with_context(|| format!("there was not one redirect: {output}"))?;
    Ok(1e3 * seconds.parse::<f64>()?)
}

/// The rules for the host to which connections are made before they are needed.
fn preconnected() -> String {
    format!(
        "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: preconnected}}
spec:
  hosts: [{PRECONNECTED}]
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 443}}]
  resolution: DNS
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: preconnected, annotations: {{egress.dev/preconnect: '1'}}}}
spec:
  host: {PRECONNECTED}
  trafficPolicy: {{tls: {{mode: SIMPLE}}}}
"
    )
}

/// The figures in what the client printed.
fn measured(result: &Value, is_proxied: bool, pattern: Pattern) -> Result<Measured> {
    let number = |name| number(result, name);
    let (requests, seconds, cpu) = (number("requests")?, number("seconds")?, number("cpu_us")?);
    let megabytes = number("bytes")? / 1e6;
    let is_bulk = pattern.requests.is_some();
    let mut measured = Vec::new();
    if is_proxied {
        measured.push(if is_bulk {
            (Measure::CpuPer100Mb, cpu / 1e3 / (megabytes / 100.0))
        } else {
            (Measure::Cpu, cpu / requests)
        });
        measured.push((Measure::System, 100.0 * number("system_us")? / cpu));
        measured.push((Measure::ResidentLoaded, number("resident")? / MEBIBYTE));
        measured.push((Measure::Busy, cpu / 1e4 / seconds));
    }
    if is_bulk {
        measured.push((Measure::MegabytesPerSecond, megabytes / seconds));
    } else {
        measured.push((Measure::P50, number("p50_us")?));
        measured.push((Measure::P99, number("p99_us")?));
        measured.push((Measure::P999, number("p999_us")?));
        measured.push((Measure::PerSecond, requests / seconds));
    }
    measured.push((Measure::Others, 100.0 * number("others_seconds")? / seconds / processors()));
    Ok(measured)
}

/// Of the machine; this process may use fewer.
fn processors() -> f64 {
    let count = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN);
    count.ok().flatten().map_or(1.0, |count| count as f64)
}

fn number(result: &Value, name: &str) -> Result<f64> {
    result[name].as_f64().with_context(|| format!("the client gave no {name}: {result}"))
}
