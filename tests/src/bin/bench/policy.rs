//! What rules cost by their number: the start of an agent, a reload, requests meanwhile, connects, and memory.
//!
//! One host is really there, and its requests are measured. The others are wildcards with an address each, so that nobody
//! looks their names up, and the kernel knows each by its name and by its address.

mod load;
mod report;
mod rules;

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, value_parser};
use egress_common::LAYOUT_VERSION;
use harness::{
    TestBed,
    agent::{Agent, AgentOptions, ConfigDir},
    nginx::Site,
};

use self::{
    load::Load,
    report::{Figures, Row},
    rules::Rules,
};
use crate::{intercept::kernel::Maps, namespaces::memory::Usage, statistics::Series};

/// The host that is there.
const HOST: &str = "bench.example";
/// A debug build with a hundred thousand hosts on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// What rules cost by their number: start, reload, requests meanwhile, connects, memory
///
/// A reload changes one host. Requests come at a steady rate, before and while one reload follows another.
#[derive(Args)]
pub(crate) struct Options {
    /// How many hosts have rules; can be given more than once
    #[arg(long = "hosts", value_name = "COUNT", default_values_t = [10, 1_000, 100_000],
          value_parser = value_parser!(u32).range(1..=500_000))]
    hosts: Vec<u32>,
    /// Requests per second
    #[arg(long, default_value_t = 500, value_name = "COUNT")]
    rate: u32,
    /// Seconds for each of the two measurements of requests
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// How many reloads are timed while there are no requests
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u32).range(1..))]
    reloads: u32,
    /// Also write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Options {
    pub(crate) fn run(&self) -> Result<()> {
        let mut figures = Figures::default();
        for &hosts in &self.hosts {
            eprintln!("{hosts} hosts");
            figures.add(self.measure(hosts).with_context(|| format!("{hosts} hosts"))?);
        }
        print!("{figures}");
        if let Some(file) = &self.json {
            let json = format!("{:#}\n", figures.to_json());
            fs::write(file, json).with_context(|| format!("writing {}", file.display()))?;
        }
        Ok(())
    }

    fn measure(&self, hosts: u32) -> Result<Row> {
        let bed = TestBed::builder("bench-policy").host(HOST).build()?;
        let site = Site::new(&[HOST], bed.pki().server(&[HOST])?).directives("keepalive_requests 10000000;");
        let _origin = bed.nginx().site(site).file("1k", vec![b'x'; 1024]).start()?;
        let config = bed.config_dir()?;
        let mut rules = Rules::new(hosts);
        rules.write_all(&config)?;

        let memory = self.memory(&bed, &config, &mut rules)?;
        let options = AgentOptions::new(config.path()).log_file(&bed.dir().join("log"));
        let (mut agent, start) = start(&bed, &options)?;
        let pid = agent.process().pid();

        let (mut reload, mut reload_cpu) = (Series::default(), Series::default());
        for _ in 0..self.reloads {
            let before = Usage::of(pid, None)?.cpu;
            let took = self::reload(&agent, &config, &mut rules, &mut |_| {})?;
            reload.push(took.as_secs_f64());
            reload_cpu.push((Usage::of(pid, None)?.cpu - before).as_secs_f64());
        }

        let maps =
            Maps::open(&bed.bpffs().join(format!("egress/layout-{LAYOUT_VERSION}/maps")), bed.client().cookie()?)?;
        let runs = maps.runs_during(|| load::connects(&bed))?;
        let connect = runs.iter().find(|runs| runs.program == "connect4").context("connect4 did not run")?;
        ensure!(connect.count > 0, "connect4 did not run");

        let load = Load { bed: &bed, rate: self.rate, seconds: self.seconds, pid };
        let calm = load.run(|| {
            pause();
            agent.admin("/healthz").map(drop)
        })?;
        let (mut reloads, mut longest) = (0, Duration::ZERO);
        let busy = load.run(|| {
            self::reload(&agent, &config, &mut rules, &mut |waited| longest = longest.max(waited))?;
            reloads += 1;
            Ok(())
        })?;
        ensure!(reloads > 0, "nothing was reloaded");
        Ok(Row {
            hosts,
            start: start.as_secs_f64(),
            memory,
            reload,
            reload_cpu,
            connect_ns: connect.nanoseconds as f64 / connect.count as f64,
            calm,
            busy,
            reloads,
            longest_wait: longest.as_secs_f64(),
        })
    }

    /// Bytes of an agent that is ready, and after reloads. What is free it gives back at once, so that what is left is in use:
    /// that takes time, which is measured with another one.
    fn memory(&self, bed: &TestBed, config: &ConfigDir, rules: &mut Rules) -> Result<[u64; 2]> {
        let options =
            AgentOptions::new(config.path()).env("MIMALLOC_PURGE_DELAY", "0").log_file(&bed.dir().join("log"));
        let (mut agent, _) = start(bed, &options)?;
        let pid = agent.process().pid();
        let ready = Usage::of(pid, None)?.resident;
        for _ in 0..self.reloads {
            reload(&agent, config, rules, &mut |_| {})?;
        }
        // What was in force before is taken apart meanwhile.
        thread::sleep(Duration::from_secs(1));
        Ok([ready, Usage::of(pid, None)?.resident])
    }
}

/// Starts an agent, and says how long that takes.
fn start<'bed>(bed: &'bed TestBed, options: &AgentOptions) -> Result<(Agent<'bed>, Duration)> {
    let began = Instant::now();
    let mut agent = Agent::spawn(bed, options)?;
    while !agent.admin("/readyz").is_ok_and(|(status, _)| status == 200) {
        ensure!(agent.process().is_running(), "the agent ended: {}", log(&bed.dir().join("log")));
        ensure!(began.elapsed() < PATIENCE, "the agent is not ready: {}", log(&bed.dir().join("log")));
        pause();
    }
    Ok((agent, began.elapsed()))
}

/// Changes one host, and waits until that is in effect. `watch` is told how long the agent's control thread let each question
/// wait.
fn reload(
    agent: &Agent<'_>,
    config: &ConfigDir,
    rules: &mut Rules,
    watch: &mut dyn FnMut(Duration),
) -> Result<Duration> {
    let applied = || Ok::<_, anyhow::Error>(agent.metrics()?.sum("egress_policy_applied_total", &[]));
    let before = applied()?;
    let began = Instant::now();
    rules.change(config)?;
    loop {
        let asked = Instant::now();
        if applied()? > before {
            return Ok(began.elapsed());
        }
        watch(asked.elapsed());
        ensure!(began.elapsed() < PATIENCE, "a change is not taken in");
        pause();
    }
}

/// Between two looks, which cost too.
fn pause() {
    thread::sleep(Duration::from_millis(10));
}

fn log(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| error.to_string())
}
