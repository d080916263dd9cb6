//! What one more pod costs the agent, and how long many of them take: memory and descriptors for each network namespace,
//! the time until all are served, until an agent that is started anew serves them, and until they are let go.

pub(crate) mod memory;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Args;
use harness::{
    TestBed,
    agent::{Agent, AgentOptions},
    cgroup::Cgroup,
    netns::Netns,
    wait::wait_until,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;

use self::memory::{Accounting, Usage};

const HOST: &str = "edition.cnn.com";
/// Those of the node and of the test bed's own pod.
const OTHERS: usize = 2;
/// The machine may be slow at making and removing hundreds of namespaces; the agent is not waited for that long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What each network namespace costs: memory, descriptors, and time
///
/// The pods are network namespaces with one process each, in a cgroup of its own.
#[derive(Args)]
pub(crate) struct Options {
    /// How many pods
    #[arg(long, default_value_t = 250)]
    count: usize,
    /// Also write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What was measured.
struct Figures {
    count: usize,
    descriptors: f64,
    /// In bytes for each, as for kernel memory.
    resident: f64,
    kernel: Option<f64>,
    /// Of the agent, for each.
    cpu: Duration,
    /// From the start of the first pod to the last one being served.
    serving: Duration,
    /// From the start of an agent to all of them being served, and it being ready.
    start: Duration,
    /// From the end of all of them at once to the last one being let go.
    release: Duration,
}

impl Options {
    pub(crate) fn run(&self) -> Result<()> {
        let (_, limit) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, limit, limit)?;
        println!("Making {} network namespaces ...", self.count);
        let figures = self.measure()?;
        figures.print();
        if let Some(file) = &self.json {
            let json = format!("{:#}\n", figures.to_json());
            fs::write(file, json).with_context(|| format!("writing {}", file.display()))?;
        }
        Ok(())
    }

    fn measure(&self) -> Result<Figures> {
        let bed = TestBed::new("bench-namespaces")?;
        let name = |index| format!("egress-bench-{}-{index}", process::id());
        let namespaces = (0..self.count).map(|index| Netns::create(&name(index))).collect::<Result<Vec<_>>>()?;
        let cgroups = (0..self.count).map(|index| bed.cgroup().child(&name(index))).collect::<Result<Vec<_>>>()?;
        let config = bed.config_dir()?;
        let options = AgentOptions::new(config.path()).args(&["--host", HOST]);
        // What is free is given back at once, and in small pages, so that what is left is in use.
        let options = options.env("MIMALLOC_PURGE_DELAY", "0").env("MIMALLOC_ALLOW_THP", "0");

        let accounting = Accounting::create(&name(self.count))?;
        let mut agent = Agent::start(&bed, &options)?;
        let pid = agent.process().pid();
        if let Some(accounting) = &accounting {
            accounting.add(pid)?;
        }
        let usage = || Usage::of(pid, accounting.as_ref());
        wait_for(&agent, OTHERS)?;
        let before = usage()?;
        let began = Instant::now();
        let pods = namespaces.iter().zip(&cgroups).map(|(netns, cgroup)| Pod::start(netns, cgroup));
        let pods = pods.collect::<Result<Vec<_>>>()?;
        wait_for(&agent, self.count + OTHERS)?;
        let serving = began.elapsed();
        let after = usage()?;
        agent.terminate()?;

        let began = Instant::now();
        let agent = Agent::start(&bed, &options)?;
        wait_for(&agent, self.count + OTHERS)?;
        let start = began.elapsed();

        let began = Instant::now();
        drop(pods);
        wait_for(&agent, OTHERS)?;
        let release = began.elapsed();

        let each = |before: u64, after: u64| (after as f64 - before as f64) / self.count as f64;
        Ok(Figures {
            count: self.count,
            descriptors: each(before.descriptors, after.descriptors),
            resident: each(before.resident, after.resident),
            kernel: before.kernel.zip(after.kernel).map(|(before, after)| each(before, after)),
            cpu: (after.cpu - before.cpu) / u32::try_from(self.count)?,
            serving,
            start,
            release,
        })
    }
}

impl Figures {
    fn print(&self) {
        let kibibytes = |bytes: f64| bytes / 1024.0;
        println!("\n{} network namespaces, for each of them:", self.count);
        println!("  descriptors          {:8.1}", self.descriptors);
        println!("  memory of the agent  {:8.1} KiB", kibibytes(self.resident));
        match self.kernel {
            Some(kernel) => println!("  memory of the kernel {:8.1} KiB", kibibytes(kernel)),
            None => println!("  memory of the kernel        ? (no cgroup here accounts for memory)"),
        }
        println!("  time of the agent    {:8.3} ms", 1e3 * self.cpu.as_secs_f64());
        println!("all of them:");
        println!("  started and served   {:8.2} s", self.serving.as_secs_f64());
        println!("  start of the agent   {:8.2} s", self.start.as_secs_f64());
        println!("  ended and let go     {:8.2} s", self.release.as_secs_f64());
    }

    fn to_json(&self) -> serde_json::Value {
        json!({
            "namespaces": self.count,
            "descriptors_each": self.descriptors,
            "agent_bytes_each": self.resident,
            "kernel_bytes_each": self.kernel,
            "cpu_seconds_each": self.cpu.as_secs_f64(),
            "serving_seconds": self.serving.as_secs_f64(),
            "start_seconds": self.start.as_secs_f64(),
            "release_seconds": self.release.as_secs_f64(),
        })
    }
}

/// A process that lives in a network namespace and does nothing.
pub(crate) struct Pod(Child);

impl Pod {
    pub(crate) fn start(netns: &Netns, cgroup: &Cgroup) -> Result<Self> {
        let mut command = Command::new("nsenter");
        // The namespace first: the agent must not see the machine's own.
        command.arg(format!("--net={}", netns.path().display()));
        command.args(["sh", "-c", "echo 0 >\"$0\" && exec sleep infinity"]).arg(cgroup.procs()).stdin(Stdio::null());
        command.spawn().map(Self).context("starting a pod")
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Waits until the agent serves so many network namespaces.
pub(crate) fn wait_for(agent: &Agent<'_>, namespaces: usize) -> Result<()> {
    wait_until(&format!("the agent to serve {namespaces} namespaces"), PATIENCE, || {
        agent.metrics().is_ok_and(|metrics| metrics.sum("egress_network_namespaces", &[]) == namespaces as f64)
    })
}

/// How many entries a directory has.
fn entries(directory: &Path) -> Result<u64> {
    Ok(fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?.count() as u64)
}
