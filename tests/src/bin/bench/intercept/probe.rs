//! The process that measures. It is one of its own since it goes in and out of the cgroup, and all that is in there is
//! killed in the end.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use super::{
    kernel::Maps,
    report::{Established, Hooks, Report},
    site::{Grounds, Site, Way},
    work::Work,
};

/// How long to measure, and what to make of it.
#[derive(Args, Clone)]
pub(super) struct Effort {
    /// How long rounds are repeated, in seconds
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    seconds: u64,
    /// As little as gives a figure for everything, to see that it works
    #[arg(long)]
    quick: bool,
    /// Where to write all figures as JSON as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Effort {
    /// How long rounds are to be repeated.
    pub(super) fn duration(&self) -> Duration {
        Duration::from_secs(if self.quick { 0 } else { self.seconds })
    }

    /// The same, as arguments.
    pub(super) fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["--seconds".to_owned(), self.seconds.to_string()];
        if self.quick {
            arguments.push("--quick".to_owned());
        }
        if let Some(file) = &self.json {
            arguments.extend(["--json".to_owned(), file.display().to_string()]);
        }
        arguments
    }

    /// How many times to do what is usually done `full` times.
    fn count(&self, full: u32) -> u32 {
        if self.quick { full.div_ceil(10) } else { full }
    }
}

/// Where everything is that was set up.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    effort: Effort,
    #[arg(long)]
    maps: PathBuf,
    #[arg(long)]
    intercepted_cgroup: PathBuf,
    #[arg(long)]
    other_cgroup: PathBuf,
    #[arg(long)]
    pod: PathBuf,
    #[arg(long)]
    pod_cookie: u64,
    #[arg(long)]
    pod_with_iptables: PathBuf,
    #[arg(long)]
    destination_v4: SocketAddr,
    #[arg(long)]
    destination_v6: SocketAddr,
}

impl Options {
    pub(crate) fn run(&self) -> Result<()> {
        let maps = Maps::open(&self.maps, self.pod_cookie)?;
        let grounds = Grounds {
            maps: &maps,
            intercepted: &self.intercepted_cgroup,
            other: &self.other_cgroup,
            pod: &self.pod,
            pod_with_iptables: &self.pod_with_iptables,
        };
        let site = |way, destination| Site::create(way, destination, &grounds);
        let sites = Way::ALL.into_iter().map(|way| site(way, self.destination_v4)).collect::<Result<Vec<_>>>()?;
        let mut report = Report::default();
        self.rounds(&sites, &mut report)?;

        for destination in [self.destination_v4, self.destination_v6] {
            let [past, redirected] = [Way::OwnPastEgress, Way::LoopbackByEgress].map(|way| site(way, destination));
            let redirected = redirected?;
            report.hooks.push(self.hooks(&maps, &past?)?);
            report.hooks.push(self.hooks(&maps, &redirected)?);
            report.established.push(self.established(&maps, &redirected)?);
        }

        print!("{report}");
        if let Some(file) = &self.effort.json {
            let json = format!("{:#}\n", report.to_json());
            fs::write(file, json).with_context(|| format!("writing {}", file.display()))?;
        }
        Ok(())
    }

    /// Rounds in which everything is done once, each time from another start, so that no way is always the one after the
    /// same other.
    fn rounds(&self, sites: &[Site<'_>], report: &mut Report) -> Result<()> {
        /// The first fills caches and is not counted.
        const AT_LEAST: usize = 3;
        let start = Instant::now();
        for round in 0.. {
            if round >= AT_LEAST && start.elapsed() >= self.effort.duration() {
                break;
            }
            for index in 0..sites.len() {
                let index = (round + index) % sites.len();
                sites[index].enter()?;
                for (works, work) in report.costs.iter_mut().zip(Work::ALL) {
                    let cost = work.run(&sites[index], self.effort.count(work.batch()))?;
                    if round > 0 {
                        works[index].push(cost);
                    }
                }
            }
        }
        Ok(())
    }

    /// What the programs cost for one connection. The kernel's figures are off while rounds are timed.
    fn hooks(&self, maps: &Maps, site: &Site<'_>) -> Result<Hooks> {
        let connects = self.effort.count(10_000);
        site.enter()?;
        let runs = maps.runs_during(|| Work::Connection.run(site, connects).map(drop))?;
        Ok(Hooks { way: site.way, destination: site.destination, connects, runs })
    }

    /// What the programs do while a redirected connection is used, and while it is asked for its peer.
    fn established(&self, maps: &Maps, site: &Site<'_>) -> Result<Established> {
        let (requests, megabytes) = (self.effort.count(10_000), self.effort.count(100));
        site.enter()?;
        let mut connection = site.connection()?;
        let runs = maps.runs_during(|| {
            connection.requests(requests)?;
            connection.megabytes(megabytes)
        })?;
        let peernames = maps.runs_during(|| {
            (0..requests).try_for_each(|_| {
                let peer = connection.peername()?;
                ensure!(peer == site.destination, "getpeername says {peer}");
                Ok(())
            })
        })?;
        Ok(Established { destination: site.destination, requests, megabytes, runs, peernames })
    }
}
