//! Clients with every kind of socket, each a process that makes requests without pause.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    process::Running,
    topology::DEVICE,
    wait::{wait_for, wait_until},
};
use nix::sys::signal::Signal;

use crate::{CLIENT, HOST, NAME, OTHER, PLACE, pod::Pod, tally::Tally};

/// How long a caller may take to get somewhere: it has one of many processes' share of the processor.
pub const LONG: Duration = Duration::from_secs(60);

/// All of them.
#[derive(Default)]
pub struct Callers(Vec<Caller>);

struct Caller {
    name: String,
    running: Running,
    /// How often it was asked for its tally.
    asked: usize,
    /// Whether its host is configured at all times.
    counts: bool,
}

impl Callers {
    /// Adds one of each kind in a pod.
    pub fn add(&mut self, pod: &Pod<'_>) -> Result<()> {
        for (host, address, options) in kinds(pod)? {
            let command = pod.command(CLIENT)?.args(["repeat", "--count", &address.to_string(), "--host", host]);
            let running = command.args(&options).spawn()?;
            let name = format!("{} {address} {options:?}", pod.netns.name());
            self.0.push(Caller { name, running, asked: 0, counts: host != OTHER });
        }
        Ok(())
    }

    /// Lets all of them begin.
    pub fn begin(&mut self) -> Result<()> {
        self.0.iter_mut().try_for_each(Caller::ask)
    }

    /// Waits until each has had an answer.
    pub fn wait_until_upgraded(&mut self) -> Result<()> {
        self.wait_for_each("be answered", Tally::upgraded)
    }

    /// Waits until each has been refused.
    pub fn wait_until_refused(&mut self) -> Result<()> {
        self.wait_for_each("be refused", Tally::refused)
    }

    /// Fails if one was answered in clear.
    pub fn check(&mut self) -> Result<()> {
        self.tallies()?.iter().try_for_each(|(_, tally)| tally.check())
    }

    /// How it went, in a line.
    pub fn summary(&mut self) -> Result<String> {
        let tallies = self.tallies()?;
        let sum = |of: fn(&Tally) -> u64| tallies.iter().map(|(_, tally)| of(tally)).sum::<u64>();
        let [total, upgraded, refused] = [Tally::total, Tally::upgraded, Tally::refused].map(sum);
        Ok(format!("{} callers: {upgraded} of {total} requests upgraded, {refused} refused", tallies.len()))
    }

    fn wait_for_each(&mut self, what: &str, count: fn(&Tally) -> u64) -> Result<()> {
        let before = self.tallies()?.into_iter().map(|(_, tally)| count(&tally)).collect::<Vec<_>>();
        let mut behind = Vec::new();
        let waited = wait_for(&format!("every caller to {what}"), LONG, || {
            let tallies = match self.tallies() {
                Ok(tallies) => tallies,
                Err(error) => return Some(Err(error)),
            };
            if let Some(leak) = tallies.iter().find_map(|(name, tally)| tally.check().context(name.clone()).err()) {
                return Some(Err(leak));
            }
            let after = tallies.into_iter().zip(&before).filter(|((_, tally), before)| count(tally) <= **before);
            behind = after.map(|(tally, _)| tally).collect();
            behind.is_empty().then_some(Ok(()))
        });
        waited.unwrap_or_else(|error| Err(error.context(format!("not: {behind:?}"))))
    }

    /// The tallies of those whose hosts are configured at all times.
    fn tallies(&mut self) -> Result<Vec<(String, Tally)>> {
        // All are asked before the first is waited for: each answers when it gets the processor.
        self.0.iter_mut().filter(|caller| caller.counts).try_for_each(Caller::ask)?;
        self.0.iter().filter(|caller| caller.counts).map(|caller| Ok((caller.name.clone(), caller.tally()?))).collect()
    }
}

impl Drop for Callers {
    fn drop(&mut self) {
        // All at once: one by one each would wait for the processor behind those that still call.
        for caller in &self.0 {
            caller.running.signal(Signal::SIGKILL).ok();
        }
    }
}

impl Caller {
    fn ask(&mut self) -> Result<()> {
        self.asked += 1;
        self.running.write_stdin(b"\n")
    }

    /// Its answer to the last question.
    fn tally(&self) -> Result<Tally> {
        let mut text = String::new();
        wait_until(&format!("{} to say how it goes", self.name), LONG, || {
            text = self.running.stdout();
            text.matches('\n').count() == self.asked
        })?;
        ensure!(self.running.stderr().is_empty(), "{}: {:?}", self.name, self.running.stderr());
        Tally::parse(text.lines().last().unwrap_or_default())
    }
}

/// The host, one of its addresses, and what the client is told besides.
type Kind = (&'static str, SocketAddr, Vec<String>);

fn kinds(pod: &Pod<'_>) -> Result<Vec<Kind>> {
    let mut kinds = Vec::new();
    for (host, place) in [(HOST, HOST), (NAME, PLACE)] {
        let sockets = pod.bed.sockets(place, 80);
        for ((address, closed), left) in
            sockets.into_iter().zip(pod.bed.sockets(place, 81)).zip(pod.bed.sockets(OTHER, 80))
        {
            let [source, closed, left] = [pod.source(address)?.to_string(), closed.to_string(), left.to_string()];
            let options: [&[&str]; 9] = [
                &[],
                &["--keep-alive"],
                &["--mptcp"],
                &["--fastopen"],
                &["--nonblocking"],
                &["--bind", &source],
                &["--device", DEVICE],
                &["--after-refusal-by", &closed],
                &["--after-leaving", &left],
            ];
            let mut add = |options: &[&str]| {
                kinds.push((host, address, options.iter().map(|&option| option.to_owned()).collect()));
            };
            // What is learned is found as what is looked up is: two kinds show that it is there.
            let of_host = if host == HOST { options.len() } else { 2 };
            for options in &options[..of_host] {
                add(options);
                if address.is_ipv4() && options.first() != Some(&"--after-leaving") {
                    add(&[*options, &["--mapped"]].concat());
                }
            }
        }
    }
    kinds.extend(pod.bed.sockets(OTHER, 80).map(|address| (OTHER, address, Vec::new())));
    Ok(kinds)
}
