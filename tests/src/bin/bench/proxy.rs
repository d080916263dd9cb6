//! What the proxy costs, against others that do the same: nginx, HAProxy and Envoy, and no proxy at all.
//!
//! Proxy, origin and client have a network namespace each; the proxy has one processor, client and origin the other. The
//! peers are addressed directly, which spares them what intercepting would cost; egress intercepts, as that is what it is for, and
//! it logs every request, to a file. The reading order:
//! - [`scenario`]: what is measured.
//! - [`peer`], [`program`]: what is compared, and how it is started; configurations are in `programs/`.
//! - [`grounds`], [`precedence`]: namespaces, processors, and the origin.
//! - [`load`]: the client, a process of its own; [`usage`]: CPU time and memory.
//! - [`measure`]: how a figure comes about.
//! - [`figures`], [`comparison`], [`report`], [`chart`]: what becomes of it.

mod chart;
mod comparison;
mod figures;
mod grounds;
pub(crate) mod load;
mod measure;
mod peer;
mod precedence;
mod program;
mod report;
mod scenario;
mod usage;

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum as _, value_parser};
use harness::TestBed;

use self::{
    figures::Figures,
    grounds::{Cores, Grounds},
    measure::{Bench, Effort},
    peer::{Peer, Upstream},
    precedence::Precedence,
    program::Servers,
    scenario::Scenario,
};

/// The cost of the proxy, against nginx, HAProxy, Envoy, and none
///
/// Everything is measured once in each round, in random order. Tables have the medians over all rounds, and the medians of the
/// ratios within rounds. What is not installed is left out. Needs two processors.
#[derive(Args)]
pub(crate) struct Options {
    /// Only these; can be given more than once
    #[arg(long = "scenario", value_name = "NAME")]
    scenarios: Vec<Scenario>,
    /// Only these; can be given more than once
    #[arg(long = "peer", value_name = "NAME")]
    peers: Vec<Peer>,
    /// How often everything is measured
    #[arg(long, default_value_t = 7, value_name = "COUNT", value_parser = value_parser!(u32).range(1..))]
    rounds: u32,
    /// As little as gives a figure for everything, to see that it works
    #[arg(long)]
    quick: bool,
    /// What the order is drawn from, to have the same again
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Also write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also draw a chart into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

impl Options {
    pub(crate) fn run(&self) -> Result<()> {
        let cores = Cores::take()?;
        let _precedence = if self.quick { None } else { Some(Precedence::take()?) };
        let grounds = Grounds::create(Grounds::hosts(TestBed::builder("bench-proxy")).build()?, cores)?;
        let origin = grounds.origin()?;
        let mut bench =
            Bench { grounds: &grounds, origin: &origin, servers: Servers::new(&grounds), effort: self.effort() };
        let mut figures = Figures::default();
        let peers = self.peers(&mut bench, &mut figures)?;
        if !bench.has_two_cores() {
            figures.notes.push("two workers: left out, as that needs four processors".to_owned());
        }
        let seed = self.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
        figures.notes.push(format!("order drawn from --seed {seed}"));
        figures.notes.iter().for_each(|note| println!("{note}"));
        let mut random = fastrand::Rng::with_seed(seed);
        for round in 1..=self.rounds {
            eprintln!("round {round} of {}", self.rounds);
            self.round(&mut bench, &peers, &mut random, &mut figures)?;
        }
        figures.sort(&Peer::ALL.map(Peer::label));
        print!("{figures}");
        if let Some(file) = &self.json {
            let json = format!("{:#}\n", figures.to_json());
            fs::write(file, json).with_context(|| format!("writing {}", file.display()))?;
        }
        if let Some(file) = &self.svg {
            fs::write(file, chart::svg(&figures)).with_context(|| format!("writing {}", file.display()))?;
        }
        Ok(())
    }

    fn effort(&self) -> Effort {
        let milliseconds = Duration::from_millis;
        if self.quick {
            Effort { warm_up: milliseconds(100), time: milliseconds(300), divisor: 10 }
        } else {
            Effort { warm_up: milliseconds(500), time: milliseconds(2000), divisor: 1 }
        }
    }

    /// Those that were asked for, are installed, and do what their name says.
    fn peers(&self, bench: &mut Bench<'_>, figures: &mut Figures) -> Result<Vec<Peer>> {
        let mut peers = Vec::new();
        let is_asked = |peer: &Peer| self.peers.is_empty() || self.peers.contains(peer);
        for peer in Peer::ALL.into_iter().filter(is_asked) {
            let (found, is_usable) = look(peer, bench).with_context(|| peer.label())?;
            if let Some(found) = found {
                figures.notes.push(format!("{}: {found}", peer.label()));
            }
            if is_usable {
                peers.push(peer);
            }
        }
        ensure!(!peers.is_empty(), "there is nothing to measure");
        Ok(peers)
    }

    fn round(
        &self,
        bench: &mut Bench<'_>,
        peers: &[Peer],
        random: &mut fastrand::Rng,
        figures: &mut Figures,
    ) -> Result<()> {
        let all = Scenario::value_variants().iter().copied();
        let scenarios: Vec<Scenario> =
            all.filter(|all| self.scenarios.is_empty() || self.scenarios.contains(all)).collect();
        for scenario in scenarios {
            let name = scenario.title();
            if scenario.compares_peers() {
                let mut peers = peers.to_vec();
                random.shuffle(&mut peers);
                for peer in peers {
                    let measured = bench.peer(scenario, peer).with_context(|| format!("{name}: {}", peer.label()))?;
                    if let Some(measured) = measured {
                        figures.add(scenario, peer.label(), measured);
                    }
                }
            } else if peers.iter().any(|peer| peer.is_egress())
                && (scenario != Scenario::Cores || bench.has_two_cores())
            {
                for (label, measured) in bench.own(scenario).with_context(|| name)? {
                    figures.add(scenario, label, measured);
                }
            }
        }
        Ok(())
    }
}

/// What a peer turns out to be, and whether it can be compared.
fn look(peer: Peer, bench: &mut Bench<'_>) -> Result<(Option<String>, bool)> {
    let Some(program) = peer.program() else { return Ok((None, true)) };
    if program.executable().is_none() {
        return Ok((Some("left out, as it is not installed".to_owned()), false));
    }
    bench.servers.ensure(program)?;
    let version = program.version()?;
    let kept = peer.target(bench.grounds, Upstream::Kept).context("there is an origin for all")?;
    let protocol = kept.protocol(bench.grounds)?;
    if protocol != peer.protocol() {
        return Ok((Some(format!("left out, as it speaks {protocol} to the origin")), false));
    }
    let mut found = format!("{version}, speaks {protocol} to the origin");
    if let Some(closing) = peer.target(bench.grounds, Upstream::Closing) {
        // Only the second connection can resume a session.
        closing.protocol(bench.grounds)?;
        let resumes = closing.protocol(bench.grounds)?.ends_with("resumed=r");
        found += if resumes { ", resumes TLS sessions" } else { ", does not resume TLS sessions" };
    }
    Ok((Some(found), true))
}
