//! What was measured, as a table for people and as JSON.

use std::{
    fmt::{self, Display, Formatter},
    fs,
    net::SocketAddr,
    thread,
};

use serde_json::{Value, json};

use super::{kernel::Runs, site::Way, work::Work};
use crate::statistics::Series;

/// All of it.
#[derive(Default)]
pub(crate) struct Report {
    /// CPU time in microseconds: by work, in the order of [`Work::ALL`], and by way, in the order of [`Way::ALL`].
    pub(crate) costs: [[Series; Way::ALL.len()]; Work::ALL.len()],
    /// What the programs do for connects.
    pub(crate) hooks: Vec<Hooks>,
    /// What they do afterwards.
    pub(crate) established: Vec<Established>,
}

/// What the programs did while connections were made.
pub(crate) struct Hooks {
    /// How.
    pub(crate) way: Way,
    /// Where to.
    pub(crate) destination: SocketAddr,
    /// How many.
    pub(crate) connects: u32,
    /// By program.
    pub(crate) runs: Vec<Runs>,
}

/// What the programs did while a redirected connection was in use.
pub(crate) struct Established {
    /// Where the client thinks that it goes.
    pub(crate) destination: SocketAddr,
    /// How many requests there were.
    pub(crate) requests: u32,
    /// And how many megabytes.
    pub(crate) megabytes: u32,
    /// By program, during both.
    pub(crate) runs: Vec<Runs>,
    /// By program, during as many calls of getpeername(2) as there were requests.
    pub(crate) peernames: Vec<Runs>,
}

impl Report {
    /// Everything, for programs.
    pub(crate) fn to_json(&self) -> Value {
        let mut costs = Vec::new();
        for (work, ways) in Work::ALL.into_iter().zip(&self.costs) {
            for (way, cost) in Way::ALL.into_iter().zip(ways) {
                let base = &ways[way.base() as usize];
                costs.push(json!({
                    "work": work.label(),
                    "way": way.label(),
                    "cpu_us_min": cost.min(),
                    "cpu_us_median": cost.median(),
                    "cpu_us_more": cost.difference(base),
                    "ratio": cost.ratios(base).median(),
                    "per_second": 1e6 / cost.median(),
                }));
            }
        }
        let runs = |runs: &[Runs]| {
            let run = |runs: &Runs| json!({"program": runs.program, "runs": runs.count, "ns": runs.nanoseconds});
            runs.iter().map(run).collect::<Vec<_>>()
        };
        let hooks = |hooks: &Hooks| {
            let Hooks { way, destination, connects, runs: programs } = hooks;
            json!({"way": way.label(), "destination": destination, "connects": connects, "programs": runs(programs)})
        };
        let established = |used: &Established| {
            json!({
                "destination": used.destination,
                "requests": used.requests,
                "megabytes": used.megabytes,
                "programs": runs(&used.runs),
                "getpeername": {"calls": used.requests, "programs": runs(&used.peernames)},
            })
        };
        json!({
            "kernel": kernel_release(),
            "cpus": cpus(),
            "rounds": self.rounds(),
            "costs": costs,
            "hooks": self.hooks.iter().map(hooks).collect::<Vec<_>>(),
            "established": self.established.iter().map(established).collect::<Vec<_>>(),
        })
    }

    fn rounds(&self) -> usize {
        self.costs[0][0].len()
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "Linux {}, {} CPUs, {} rounds", kernel_release(), cpus(), self.rounds())?;
        writeln!(f, "CPU time of one thread that is client and listener, in microseconds. \"more\" and \"ratio\":")?;
        writeln!(f, "medians within the rounds, against no interception. \"per second\": that a core manages\n")?;
        for (work, ways) in Work::ALL.into_iter().zip(&self.costs) {
            writeln!(f, "{}", work.label())?;
            writeln!(f, "{:36} {:>9} {:>9} {:>9} {:>7} {:>11}", "", "min", "median", "more", "ratio", "per second")?;
            for (way, cost) in Way::ALL.into_iter().zip(ways) {
                let base = &ways[way.base() as usize];
                let (min, median, more) = (cost.min(), cost.median(), cost.difference(base));
                let (ratio, rate) = (cost.ratios(base).median(), 1e6 / median);
                writeln!(f, "  {:34} {min:>9.2} {median:>9.2} {more:>+9.2} {ratio:>7.3} {rate:>11.0}", way.label())?;
            }
            writeln!(f)?;
        }
        self.hooks.iter().try_for_each(|hooks| writeln!(f, "{hooks}"))?;
        self.established.iter().try_for_each(|established| writeln!(f, "{established}"))
    }
}

impl Display for Hooks {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { way, destination, connects, runs } = self;
        writeln!(f, "programs for a connection, {}: {}", family(destination), way.label())?;
        write_runs(f, runs, *connects)
    }
}

impl Display for Established {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { destination, requests, megabytes, runs, peernames } = self;
        let count = runs.iter().map(|runs| runs.count).sum::<u64>();
        let family = family(destination);
        writeln!(
            f,
            "programs on an open redirected connection, {family}: {count} runs during {requests} requests and"
        )?;
        writeln!(f, "{megabytes} MB; for a getpeername(2)")?;
        write_runs(f, peernames, *requests)
    }
}

/// A line for each program that ran, and their sum, for each of `count` times.
fn write_runs(f: &mut Formatter<'_>, runs: &[Runs], count: u32) -> fmt::Result {
    writeln!(f, "{:36} {:>9} {:>9}", "", "runs", "ns")?;
    let each = |value: u64| value as f64 / f64::from(count);
    for Runs { program, count, nanoseconds } in runs.iter().filter(|runs| runs.count > 0) {
        writeln!(f, "  {program:34} {:>9.2} {:>9.0}", each(*count), each(*nanoseconds))?;
    }
    let all = runs.iter().map(|runs| runs.nanoseconds).sum();
    writeln!(f, "  {:34} {:>9} {:>9.0}", "all", "", each(all))
}

fn family(address: &SocketAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

fn cpus() -> usize {
    thread::available_parallelism().map_or(0, usize::from)
}
